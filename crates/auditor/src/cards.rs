//! Card payments: what the ledger says of the card, compared with what the provider confirmed.

use crate::journal::{Book, Payment, PaymentState};
use crate::orders::{End, Order};
use crate::{Audit, Rule};
use chipbound_wire::api::OrderState;

impl Audit<'_> {
    pub(crate) fn payment(&mut self, payment: &Payment) {
        let about = format!("order {}", payment.order);
        let Some(order) = self.orders.get_mut(&payment.order) else {
            return self.report.find(Rule::EntryKnown, format!("payment of {about}"), about, "no such order");
        };
        order.payment = Some(payment.state);
        if payment.reference.is_empty() && !matches!(payment.state, PaymentState::Asked | PaymentState::Declined | PaymentState::Ended) {
            self.report.find(Rule::CardPayment, about, "the provider's reference", "none");
        }
    }
}

impl Order {
    /// Where order and card payment do not fit together: what is expected of the payment, and what it is.
    pub(crate) fn unlike_its_card(&self) -> Option<(String, String)> {
        use PaymentState as P;
        let over = matches!(self.state, OrderState::Cancelled | OrderState::Expired);
        let last = self.rounds.last().map(|round| (round.source, round.end));
        let allowed: &[Option<P>] = match last {
            Some((Book::Card, End::Open)) if self.state == OrderState::CaptureRequested => &[Some(P::Held), Some(P::Captured)],
            Some((Book::Card, End::Open)) => &[Some(P::Held)],
            Some((Book::Card, End::Captured)) if self.refunded => &[Some(P::Refunding), Some(P::Refunded)],
            Some((Book::Card, End::Captured)) => &[Some(P::Captured)],
            Some((Book::Card, End::Released)) => &[Some(P::Ending), Some(P::Ended), Some(P::Refunding), Some(P::Refunded)],
            // The account's own money pays where a card was never asked, or refused.
            Some(_) => &[None, Some(P::Declined)],
            None if over => {
                &[None, Some(P::Asked), Some(P::Undecided), Some(P::Declined), Some(P::Ending), Some(P::Ended), Some(P::Refunded)]
            }
            None => &[None, Some(P::Asked), Some(P::Undecided), Some(P::Held), Some(P::Declined), Some(P::Ended)],
        };
        let said = |payment: &Option<P>| payment.map_or("no payment".to_owned(), |state| format!("{state:?}").to_lowercase());
        let expected = || allowed.iter().map(said).collect::<Vec<_>>().join(" or ");
        (!allowed.contains(&self.payment)).then(|| (expected(), said(&self.payment)))
    }
}
