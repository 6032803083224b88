//! Payment providers: who holds and takes a customer's money.
//!
//! - [`Provider`]: what an order asks of one, [`Outcome`]: what it may answer;
//! - [`cards`]: a provider in the shape of Stripe's PaymentIntents, reached over HTTPS;
//! - [`config`]: the section `[payment]`;
//! - [`webhook`]: what that provider tells of its own accord, signed.
//!
//! What it does not do: it decides nothing about an order and writes nothing; a card's number never comes here.

pub mod cards;
pub mod config;
mod judge;
pub mod webhook;

use chipbound_wire::payment::CardToken;
use chipbound_wire::{Amount, Code, OrderId, Refusal, Time};
use std::future::Future;
use std::pin::Pin;

/// The card provider as a server uses it.
pub struct CardPayments {
    /// Whom to ask.
    pub provider: Box<dyn Provider>,
    /// What it tells; none where its events are not taken.
    pub webhooks: Option<webhook::Webhooks>,
}

impl std::fmt::Debug for CardPayments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CardPayments(…)")
    }
}

/// What a provider answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome<T> {
    /// It happened, and the answer was verified to be about this payment.
    Done(T),
    /// It did not happen and will not: the reason, in the provider's words.
    Declined(String),
    /// The provider has not decided yet; asked for by [`Provider::standing`] later on.
    Pending(T),
    /// Nobody knows: no answer, a failure, or an answer that is not about this payment. The same may be asked again.
    Unknown(String),
}

impl<T> Outcome<T> {
    /// The value of what happened; otherwise [`Code::PaymentDeclined`] or [`Code::PaymentPending`].
    pub fn done(self) -> chipbound_wire::Result<T> {
        match self {
            Self::Done(value) => Ok(value),
            Self::Declined(reason) => Err(Refusal::new(Code::PaymentDeclined, format!("the card provider declined: {reason}"))),
            Self::Pending(_) => Err(Refusal::new(Code::PaymentPending, "the card provider has not decided yet")),
            Self::Unknown(why) => Err(Refusal::new(Code::PaymentPending, format!("the card provider did not confirm: {why}"))),
        }
    }
}

/// A price that is to be held.
#[derive(Clone, Debug)]
pub struct Charge {
    /// The order that it is for.
    pub order: OrderId,
    /// The price.
    pub amount: Amount,
    /// Counts the payments of this order that were declined before this one: each asks under a key of its own.
    pub attempt: u32,
    /// When the order was placed: nothing of it can be older at the provider.
    pub since: Time,
}

/// A payment at a provider.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hold {
    /// The order that it is for.
    pub order: OrderId,
    /// The price.
    pub amount: Amount,
    /// What the provider calls it.
    pub reference: String,
}

/// Where a payment stands at its provider.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Not decided yet.
    Undecided,
    /// Held, nothing taken.
    Held,
    /// Taken, all of it.
    Captured,
    /// Nothing is held, and nothing was taken.
    Ended,
}

/// A payment for an order as the provider lists it; no more of it is believed than stands here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The order that it says it is for.
    pub order: OrderId,
    /// What the provider calls it.
    pub reference: String,
    /// The payment and where it stands, or what is wrong with how it is described.
    pub found: Result<(Hold, Standing), String>,
}

/// Payments, and after which one the next page begins.
pub type ListedPage = (Vec<Listed>, Option<String>);

/// An answer that is on its way.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Outcome<T>> + Send + 'a>>;

/// Who holds and takes money. Every question may be asked again: what happened already does not happen a second time.
pub trait Provider: Send + Sync {
    /// Holds the price, by a payment method of the customer's. Asked again with the same attempt and method it is the same hold.
    fn authorise<'a>(&'a self, charge: &'a Charge, method: &'a CardToken) -> Answer<'a, Hold>;
    /// Takes what is held, once.
    fn capture<'a>(&'a self, hold: &'a Hold) -> Answer<'a, ()>;
    /// Gives back what is held. Declined if it was taken.
    fn cancel<'a>(&'a self, hold: &'a Hold) -> Answer<'a, ()>;
    /// Gives back what was taken, once.
    fn refund<'a>(&'a self, hold: &'a Hold) -> Answer<'a, ()>;
    /// Where a payment stands.
    fn standing<'a>(&'a self, hold: &'a Hold) -> Answer<'a, Standing>;
    /// Every payment that the provider has for this order, for one whose answer was lost. At most the newest 1,000 payments since
    /// the order was placed are looked through.
    fn payments_of<'a>(&'a self, charge: &'a Charge) -> Answer<'a, Vec<(Hold, Standing)>>;
    /// A page of all payments for orders that the provider has since then, newest first, at most 100: the first one, or the one after the
    /// payment that the page before named.
    fn payments<'a>(&'a self, since: Time, after: Option<&'a str>) -> Answer<'a, ListedPage>;
    /// Whether what was taken was given back; Declined where it was not.
    fn given_back<'a>(&'a self, hold: &'a Hold) -> Answer<'a, ()>;
}
