//! Orders that a card pays: from the agreement to the captured price, and back where an order comes to nothing (steps 1002, 1009).
//!
//! What the provider is to be asked is on the disk before it is asked, and what it confirmed before anything is built on
//! it. Whoever was interrupted in between asks the same again; where nobody comes back, [`Server::look_after_payments`] and
//! [`Server::recover`] do.

use crate::payment::{CardPayments, Charge, Hold, Outcome, Standing};
use crate::server::Server;
use crate::storage::{Begun, OrderPayment, PaymentState, Principal, Repository, Settlement};
use chipbound_wire::api::OrderState;
use chipbound_wire::payment::CardToken;
use chipbound_wire::{Code, Digest, OrderId, Refusal, Result};

/// Seconds after the end of an order for which a lost question may still arrive at the provider.
const LOST: u64 = 600;

impl<R: Repository> Server<R> {
    /// Has the card provider hold the price of an order that is about to be agreed to (step 1002).
    ///
    /// [`Code::PaymentDeclined`] where another card is needed, [`Code::PaymentPending`] where the same is to be asked again.
    pub(crate) async fn hold_by_card(&self, customer: &Principal, order: OrderId, confirmation: Digest, method: &CardToken) -> Result<()> {
        let cards = self.cards()?;
        let digest = Digest::of(method.as_str().as_bytes());
        let begun = self.repository.begin_payment(customer.account, order, confirmation, digest, self.now()).await?;
        let Begun::Ask(payment) = begun else { return Ok(()) };
        let outcome = match payment.state {
            PaymentState::Asked => cards.provider.authorise(&charge(&payment), method).await,
            PaymentState::Undecided => decided(&payment, cards.provider.standing(&hold(&payment)).await),
            _ => return Ok(()), // It is held.
        };
        let (state, reference) = match &outcome {
            Outcome::Done(hold) => (PaymentState::Held, hold.reference.as_str()),
            Outcome::Pending(hold) => (PaymentState::Undecided, hold.reference.as_str()),
            Outcome::Declined(_) => (PaymentState::Declined, ""),
            Outcome::Unknown(_) => return outcome.done().map(drop),
        };
        self.repository.payment_became(&payment, state, reference).await?;
        outcome.done().map(drop)
    }

    /// Has the card provider take the price of an acknowledged order (step 1009), once; nothing for an order that no card pays. That it
    /// is asked is on record before, and that it did after; only then anything is captured here.
    pub(crate) async fn take_by_card(&self, settlement: &Settlement) -> Result<()> {
        let Some(cards) = &self.cards else { return Ok(()) }; // The books refuse to capture what a card would have to pay.
        let Some(payment) = self.repository.payment(settlement.order).await?.filter(|p| p.state == PaymentState::Held) else {
            return Ok(());
        };
        self.repository.acknowledge(settlement).await?;
        self.repository.request_capture(settlement.order, &settlement.capture_key()).await?;
        let outcome = cards.provider.capture(&hold(&payment)).await;
        match &outcome {
            Outcome::Done(()) => drop(self.repository.payment_became(&payment, PaymentState::Captured, &payment.reference).await?),
            Outcome::Declined(_) => self.repository.payment_ended(&payment, self.now()).await?,
            Outcome::Pending(()) | Outcome::Unknown(_) => {}
        }
        outcome.done()
    }

    /// Asks the provider about every payment that nobody may come back for: undecided ones, those that are to be given back, and
    /// those of orders that came to nothing before anybody knew whether something is held. Returns how many changed.
    pub async fn look_after_payments(&self) -> Result<usize> {
        let (mut ended, mut after) = (0, OrderId([0; 16]));
        if self.cards.is_none() {
            return Ok(0);
        }
        loop {
            let some = self.repository.open_payments(after).await?;
            let Some(last) = some.last() else { return Ok(ended) };
            after = last.order;
            for payment in &some {
                ended += usize::from(self.look_after(payment).await?);
            }
        }
    }

    /// Whether the payment changed. The provider's faults are no faults of this: it is asked again later.
    async fn look_after(&self, payment: &OrderPayment) -> Result<bool> {
        let provider = &self.cards()?.provider;
        let over = matches!(payment.order_state, OrderState::Expired | OrderState::Cancelled);
        let next = match payment.state {
            PaymentState::Undecided => match provider.standing(&hold(payment)).await {
                Outcome::Done(Standing::Held) if over => Some(PaymentState::Ending),
                Outcome::Done(Standing::Held) => Some(PaymentState::Held),
                Outcome::Done(Standing::Ended) => Some(PaymentState::Declined),
                _ => None,
            },
            PaymentState::Ending => self.give_back(&hold(payment)).await,
            PaymentState::Refunding => matches!(provider.refund(&hold(payment)).await, Outcome::Done(())).then_some(PaymentState::Refunded),
            PaymentState::Asked if over && self.now().0 > payment.expires_at.after(LOST).0 => self.give_back_all(payment).await,
            _ => None,
        };
        let Some(next) = next else { return Ok(false) };
        tracing::info!(order = %payment.order, from = payment.state.as_str(), to = next.as_str(), "a card payment was looked after");
        self.repository.payment_became(payment, next, &payment.reference).await
    }

    /// Ends a hold; what was taken against all order is given back as well.
    async fn give_back(&self, hold: &Hold) -> Option<PaymentState> {
        let provider = &self.cards().ok()?.provider;
        match provider.cancel(hold).await {
            Outcome::Done(()) => Some(PaymentState::Ended),
            Outcome::Declined(_) => match provider.standing(hold).await {
                Outcome::Done(Standing::Ended) => Some(PaymentState::Ended),
                Outcome::Done(Standing::Captured) => {
                    matches!(provider.refund(hold).await, Outcome::Done(())).then_some(PaymentState::Refunded)
                }
                _ => None,
            },
            Outcome::Pending(()) | Outcome::Unknown(_) => None,
        }
    }

    /// Ends whatever the provider has for an order whose question was never answered.
    async fn give_back_all(&self, payment: &OrderPayment) -> Option<PaymentState> {
        let Outcome::Done(found) = self.cards().ok()?.provider.payments_of(&charge(payment)).await else { return None };
        for (hold, standing) in found {
            match standing {
                Standing::Ended => {}
                Standing::Held | Standing::Captured => drop(self.give_back(&hold).await?),
                Standing::Undecided => return None,
            }
        }
        Some(PaymentState::Ended)
    }

    fn cards(&self) -> Result<&CardPayments> {
        self.cards.as_ref().ok_or_else(|| Refusal::new(Code::NotSupported, "this server takes no cards"))
    }

    /// Takes an event of the card provider's ([`crate::payment::webhook`]).
    pub async fn hear_event(&self, signature: &str, body: &[u8]) -> Result<()> {
        let webhooks = self.cards.as_ref().and_then(|cards| cards.webhooks.as_ref());
        let webhooks = webhooks.ok_or_else(|| Refusal::new(Code::NotFound, "this server takes no events"))?;
        let Some(hint) = webhooks.hear(signature, body, self.now())? else { return Ok(()) };
        if let Some(payment) = self.repository.payment(hint.order).await? {
            self.look_after(&payment).await?;
            if matches!(payment.order_state, OrderState::Acknowledged | OrderState::CaptureRequested) {
                self.recover().await?;
            }
        }
        webhooks.done(&hint);
        Ok(())
    }
}

/// The question of a payment.
fn charge(payment: &OrderPayment) -> Charge {
    Charge { order: payment.order, amount: payment.amount, attempt: payment.attempt, since: payment.issued_at }
}

/// A payment as the provider knows it.
pub(crate) fn hold(payment: &OrderPayment) -> Hold {
    Hold { order: payment.order, amount: payment.amount, reference: payment.reference.clone() }
}

/// What became of a payment that was undecided.
fn decided(payment: &OrderPayment, standing: Outcome<Standing>) -> Outcome<Hold> {
    match standing {
        Outcome::Done(Standing::Held) => Outcome::Done(hold(payment)),
        Outcome::Done(Standing::Undecided) | Outcome::Pending(_) => Outcome::Pending(hold(payment)),
        Outcome::Done(Standing::Ended) => Outcome::Declined("nothing is held".to_owned()),
        Outcome::Done(Standing::Captured) => Outcome::Unknown("it says that the price was taken already".to_owned()),
        Outcome::Declined(why) => Outcome::Declined(why),
        Outcome::Unknown(why) => Outcome::Unknown(why),
    }
}
