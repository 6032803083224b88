//! Payments at the card provider: what was asked for, and what it confirmed.

use super::books::Books;
use super::sql::{Row, Tx, all, first, unreadable, values};
use super::{StoredOrder, orders};
use chipbound_wire::api::OrderState;
use chipbound_wire::{AccountId, Amount, Code, Digest, OrderId, Refusal, Result, Time};

/// How the card provider stands to an order's price. Nothing but these states and the provider's own reference is ever kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PaymentState {
    /// It is asked to hold it; what it did is not known.
    Asked,
    /// It has not decided.
    Undecided,
    /// It holds it.
    Held,
    /// It refused; another card may be asked.
    Declined,
    /// It is asked to give the hold back, since the order came to nothing.
    Ending,
    /// It gave the hold back, or the hold ran out there.
    Ended,
    /// It took it.
    Captured,
    /// It is asked to give back what it took, since the order was refunded.
    Refunding,
    /// It gave back what it took.
    Refunded,
}

impl PaymentState {
    /// The stable text form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Undecided => "undecided",
            Self::Held => "held",
            Self::Declined => "declined",
            Self::Ending => "ending",
            Self::Ended => "ended",
            Self::Captured => "captured",
            Self::Refunding => "refunding",
            Self::Refunded => "refunded",
        }
    }
}

/// An order that a card pays, and where that payment stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OrderPayment {
    /// The order.
    pub order: OrderId,
    /// Its price.
    pub amount: Amount,
    /// When it was placed.
    pub issued_at: Time,
    /// Until when it can be agreed to, delivered and acknowledged.
    pub expires_at: Time,
    /// Where the order stands.
    pub order_state: OrderState,
    /// Counts the payments that were declined before this one.
    pub attempt: u32,
    /// Where the payment stands.
    pub state: PaymentState,
    /// What the provider calls it; empty where it did not say.
    pub reference: String,
}

/// What is to be done about a payment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Begun {
    /// The order was agreed to before: nothing.
    Agreed,
    /// The provider is to be asked; that it is was noted down.
    Ask(OrderPayment),
}

/// Payments by card. The provider is asked between these methods, never within one: what it is to be asked is noted down before, and
/// what it confirmed after.
pub trait Payments {
    /// Notes down that the provider is asked to hold the price of an order that is not agreed to yet, by the payment method with that
    /// digest. The same refusals as [`super::Orders::authorise`], and [`chipbound_wire::Code::PaymentPending`] while it is not known what
    /// became of another method's payment.
    fn begin_payment(
        &self,
        account: AccountId,
        order: OrderId,
        confirmation: Digest,
        method: Digest,
        now: Time,
    ) -> impl Future<Output = Result<Begun>> + Send;
    /// The payment of an order, if a card was ever to pay it.
    fn payment(&self, order: OrderId) -> impl Future<Output = Result<Option<OrderPayment>>> + Send;
    /// Notes down what became of a payment that still is as it is `known`; whether it was.
    fn payment_became(&self, known: &OrderPayment, state: PaymentState, reference: &str) -> impl Future<Output = Result<bool>> + Send;
    /// The provider's hold had ended before it could take the price of an order whose capture was requested: the order has run out.
    fn payment_ended(&self, known: &OrderPayment, now: Time) -> impl Future<Output = Result<()>> + Send;
    /// Some of the payments that the provider is to be asked about, by order, beginning after `after`: undecided ones, those that it is
    /// to give back, and those of orders that came to nothing while nobody knew whether it holds anything.
    fn open_payments(&self, after: OrderId) -> impl Future<Output = Result<Vec<OrderPayment>>> + Send;
    /// Some of all payments, by order, beginning after `after`.
    fn all_payments(&self, after: OrderId) -> impl Future<Output = Result<Vec<OrderPayment>>> + Send;
}

/// Payments in one answer of [`Payments::open_payments`].
const PAGE: u32 = 64;

const STATES: [PaymentState; 9] = [
    PaymentState::Asked,
    PaymentState::Undecided,
    PaymentState::Held,
    PaymentState::Declined,
    PaymentState::Ending,
    PaymentState::Ended,
    PaymentState::Captured,
    PaymentState::Refunding,
    PaymentState::Refunded,
];

/// Where the payment stands that a row names, if it names one.
pub(super) fn state(row: &dyn Row) -> Result<Option<PaymentState>> {
    let text = row.optional_text("payment_state")?;
    text.map(|text| STATES.into_iter().find(|s| s.as_str() == text).ok_or_else(unreadable)).transpose()
}

fn payment(row: &dyn Row) -> Result<OrderPayment> {
    Ok(OrderPayment {
        order: OrderId(row.id("order_id")?),
        amount: row.amount()?,
        issued_at: Time(row.number("issued_at")?),
        expires_at: Time(row.number("expires_at")?),
        order_state: row.parsed("state")?,
        attempt: u32::try_from(row.number("attempt")?).map_err(|_| unreadable())?,
        state: state(row)?.ok_or_else(unreadable)?,
        reference: row.text("reference")?,
    })
}

/// The payment of an order, if a card was ever to pay it.
pub(super) fn find(books: &dyn Tx, order: OrderId) -> Result<Option<OrderPayment>> {
    let find =
        "SELECT o.order_id, o.price, o.currency, o.issued_at, o.expires_at, o.state, p.attempt, p.state AS payment_state, p.reference
                FROM payments p JOIN orders o USING (order_id) WHERE o.order_id = $1";
    first(books, find, values![&order], payment)
}

/// Whether the card provider holds the price of an order with that payment, and not the account's own money. Refuses with
/// [`Code::PaymentPending`] while nobody knows, and with [`Code::OrderExpired`] where it gave its hold back.
pub(super) fn by_card(payment: Option<PaymentState>) -> Result<bool> {
    match payment {
        None | Some(PaymentState::Declined) => Ok(false),
        Some(PaymentState::Held) => Ok(true),
        Some(PaymentState::Asked | PaymentState::Undecided) => {
            Err(Refusal::new(Code::PaymentPending, "the card provider has not confirmed that it holds the price"))
        }
        Some(_) => Err(Refusal::new(Code::OrderExpired, "the order ran out, and the card provider holds nothing for it any more")),
    }
}

/// Refuses to capture the price of an order with that payment that the card provider did not confirm to have taken.
pub(super) fn check_taken(payment: Option<PaymentState>) -> Result<()> {
    match payment {
        None | Some(PaymentState::Declined | PaymentState::Captured) => Ok(()),
        Some(_) => Err(Refusal::new(Code::PaymentPending, "the card provider has not confirmed that it took the price")),
    }
}

/// The order came to nothing: what the card provider holds or took is to be given back.
pub(super) fn give_back(tx: &dyn Tx, order: OrderId) -> Result<()> {
    let change = "UPDATE payments SET state = CASE state WHEN 'held' THEN 'ending' ELSE 'refunding' END
                  WHERE order_id = $1 AND state IN ('held', 'captured')";
    tx.put(change, values![&order])
}

impl Payments for Books {
    async fn begin_payment(&self, account: AccountId, order: OrderId, confirmation: Digest, method: Digest, now: Time) -> Result<Begun> {
        let begin = move |tx: &dyn Tx| {
            let order = orders::locked(tx, account, order)?;
            orders::check_agreement(&order, confirmation)?;
            orders::check_running(&order, now)?;
            begin(tx, &order, &method)
        };
        self.write(begin).await
    }

    async fn payment(&self, order: OrderId) -> Result<Option<OrderPayment>> {
        self.read(move |books: &dyn Tx| find(books, order)).await
    }

    async fn payment_became(&self, known: &OrderPayment, state: PaymentState, reference: &str) -> Result<bool> {
        let (known, reference) = (known.clone(), reference.to_owned());
        let became = move |tx: &dyn Tx| {
            let order = orders::locked_of_anybody(tx, known.order)?.state;
            // Nobody waits any more for what the provider holds for an order that came to nothing meanwhile.
            let over = state == PaymentState::Held && matches!(order, OrderState::Cancelled | OrderState::Expired);
            let state = if over { PaymentState::Ending } else { state };
            let change = "UPDATE payments SET state = $1, reference = $2 WHERE order_id = $3 AND state = $4 AND attempt = $5";
            let values = values![state.as_str(), &reference, &known.order, known.state.as_str(), known.attempt];
            Ok(tx.execute(change, values)? == 1)
        };
        self.write(became).await
    }

    async fn payment_ended(&self, known: &OrderPayment, now: Time) -> Result<()> {
        let known = known.clone();
        let ended = move |tx: &dyn Tx| {
            let mut order = orders::locked_of_anybody(tx, known.order)?;
            let change = "UPDATE payments SET state = 'ended' WHERE order_id = $1 AND state = 'held'";
            match tx.execute(change, values![&known.order])? {
                0 => Ok(()), // Somebody else was faster.
                _ => orders::end(tx, &mut order, OrderState::Expired, now),
            }
        };
        self.write(ended).await
    }

    async fn open_payments(&self, after: OrderId) -> Result<Vec<OrderPayment>> {
        let find =
            "SELECT o.order_id, o.price, o.currency, o.issued_at, o.expires_at, o.state, p.attempt, p.state AS payment_state, p.reference
                    FROM payments p JOIN orders o USING (order_id)
                    WHERE p.state IN ('asked', 'undecided', 'ending', 'refunding') AND o.order_id > $1
                      AND (p.state <> 'asked' OR o.state IN ('expired', 'cancelled'))
                    ORDER BY o.order_id LIMIT $2";
        self.read_long(move |books: &dyn Tx| all(books, find, values![&after, PAGE], payment)).await
    }

    async fn all_payments(&self, after: OrderId) -> Result<Vec<OrderPayment>> {
        let find =
            "SELECT o.order_id, o.price, o.currency, o.issued_at, o.expires_at, o.state, p.attempt, p.state AS payment_state, p.reference
                    FROM payments p JOIN orders o USING (order_id) WHERE o.order_id > $1 ORDER BY o.order_id LIMIT $2";
        self.read_long(move |books: &dyn Tx| all(books, find, values![&after, PAGE], payment)).await
    }
}

/// Notes down what the provider is about to be asked for, before it is.
fn begin(tx: &dyn Tx, order: &StoredOrder, method: &Digest) -> Result<Begun> {
    if order.state != OrderState::Confirmed {
        return Ok(Begun::Agreed);
    }
    let Some(before) = find(tx, order.order)? else {
        let insert = "INSERT INTO payments (order_id, attempt, method, state, reference) VALUES ($1, 0, $2, 'asked', '')";
        tx.put(insert, values![&order.order, method])?;
        return begun(tx, order.order);
    };
    if matches!(before.state, PaymentState::Declined | PaymentState::Ended) {
        let again = "UPDATE payments SET state = 'asked', attempt = attempt + 1, method = $1, reference = '' WHERE order_id = $2";
        tx.put(again, values![method, &order.order])?;
        return begun(tx, order.order);
    }
    let same = first(tx, "SELECT method FROM payments WHERE order_id = $1", values![&order.order], |row| row.id("method"))?;
    if before.state == PaymentState::Asked && same != Some(method.0) {
        return Err(Refusal::new(Code::PaymentPending, "another card is being asked for this order"));
    }
    Ok(Begun::Ask(before))
}

fn begun(tx: &dyn Tx, order: OrderId) -> Result<Begun> {
    find(tx, order)?.map(Begun::Ask).ok_or_else(unreadable)
}
