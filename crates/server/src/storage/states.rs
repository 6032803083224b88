//! Which steps an order may take: one table.

use super::StoredOrder;
use chipbound_wire::api::OrderState::{
    self, Acknowledged, Authorised, Cancelled, CaptureRequested, Captured, Confirmed, Delivering, Expired, Refunded, Released,
};
use chipbound_wire::{Code, Refusal, Result};

/// Every legal step, from and to.
pub(super) const STEPS: [(OrderState, OrderState); 16] = [
    (Confirmed, Authorised),
    (Confirmed, Cancelled),
    (Confirmed, Expired),
    (Authorised, Delivering),
    (Authorised, Cancelled),
    (Authorised, Expired),
    (Delivering, Acknowledged),
    (Delivering, Cancelled),
    (Delivering, Expired),
    (Expired, Acknowledged), // Late, and the price could be held once more.
    (Acknowledged, CaptureRequested),
    (CaptureRequested, Captured),
    (CaptureRequested, Expired), // The card provider's own hold had ended.
    (Captured, Released),
    (Captured, Refunded),
    (Released, Refunded),
];

/// Takes a step, or refuses with the code of the state in which the order is.
pub(super) fn step(order: &mut StoredOrder, to: OrderState) -> Result<()> {
    if !STEPS.contains(&(order.state, to)) {
        return Err(refusal(order.state));
    }
    order.state = to;
    Ok(())
}

/// Why an order in that state allows nothing of what was asked: how it stands, which another client may just have changed, and what can
/// be done with it now.
pub(super) fn refusal(state: OrderState) -> Refusal {
    let (code, text) = match state {
        Cancelled => (Code::OrderCancelled, "the order was cancelled: nothing was taken for it"),
        Expired => (Code::OrderExpired, "the order ran out before it was acknowledged: nothing was taken for it"),
        Refunded => (Code::OrderRefunded, "the order's price was given back"),
        Confirmed => (Code::OrderState, "the order waits to be agreed to, and nothing is held for it: agree to it, or let it run out"),
        Authorised => (Code::OrderState, "the order's price is held and nothing was sent yet: have it delivered, or cancel it"),
        Delivering => (Code::OrderState, "the order is being delivered: let that end, or cancel it before its package is sealed"),
        Acknowledged | CaptureRequested => {
            (Code::OrderState, "the order was delivered and its price is being taken: ask again in a moment, its receipt is there then")
        }
        Captured | Released => {
            (Code::OrderState, "the order is paid: its receipt downloads it again, and only the server's operator gives its price back")
        }
    };
    Refusal::new(code, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_refused_hears_how_the_order_stands_and_what_can_be_done() {
        let states = [Confirmed, Authorised, Delivering, Acknowledged, CaptureRequested, Captured, Released, Cancelled, Expired, Refunded];
        for state in states {
            let refused = step(&mut order_in(state), Confirmed).expect_err("nothing leads back to the beginning");
            let over = matches!(state, Cancelled | Expired | Refunded);
            assert_eq!(refused.code == Code::OrderState, !over, "{state:?}");
            let (now, next) = refused.detail.split_once(": ").unwrap_or((&refused.detail, ""));
            assert!(now.starts_with("the order") && (over || !next.is_empty()), "{refused}");
        }
    }

    fn order_in(state: OrderState) -> StoredOrder {
        use chipbound_wire::{AccountId, Amount, Digest, KeyId, OrderId, Time, suite::KeyMode};
        StoredOrder {
            order: OrderId([1; 16]),
            account: AccountId([1; 16]),
            manifest: Digest([1; 32]),
            seller: AccountId([2; 16]),
            processor: KeyId([1; 32]),
            key_mode: KeyMode::Direct,
            price: Amount { minor: 1, currency: "EUR".parse().expect("a currency") },
            state,
            confirmation: Vec::new(),
            issued_at: Time(1),
            expires_at: Time(2),
            redownload_until: Time(3),
            holds: 0,
            receipt: None,
        }
    }
}
