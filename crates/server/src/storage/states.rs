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

/// Why an order in that state allows nothing of what was asked.
pub(super) fn refusal(state: OrderState) -> Refusal {
    match state {
        Cancelled => Refusal::new(Code::OrderCancelled, "the order was cancelled"),
        Expired => Refusal::new(Code::OrderExpired, "the order ran out before it was acknowledged"),
        Refunded => Refusal::new(Code::OrderRefunded, "the order's price was given back"),
        Confirmed => Refusal::new(Code::OrderState, "the order was not agreed to: nothing is held for it"),
        other => Refusal::new(Code::OrderState, format!("the order is {} already", other.as_str())),
    }
}
