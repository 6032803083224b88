//! Compares the card provider's book with ours, payment by payment from either side, and changes neither but for what the operator has
//! given back.

use crate::paying::hold;
use crate::payment::{Hold, Listed, Outcome, Provider, Standing};
use crate::storage::{OrderPayment, PaymentState, Repository};
use chipbound_wire::{Code, OrderId, Refusal, Result, Time};

/// What came out of a comparison.
#[derive(Debug, Default)]
pub struct Reconciliation {
    /// How many payments were compared.
    pub compared: usize,
    /// Payments about which the provider says something else than our books, or nothing.
    pub differences: Vec<Difference>,
}

/// A payment that stands otherwise at the provider.
#[derive(Debug)]
pub struct Difference {
    /// As our books have it.
    pub ours: OrderPayment,
    /// What the provider says.
    pub theirs: String,
}

/// A payment at the provider, held or taken for an order, of which our books know nothing: it was made after the backup that was brought
/// into them, or by another shop of the same account there.
#[derive(Debug)]
pub struct Stranger {
    /// The order that it is for.
    pub order: OrderId,
    /// Whether that order is in our books.
    pub order_is_here: bool,
    /// What the provider calls it.
    pub reference: String,
    /// The payment and where it stands, or why what the provider says of it cannot be believed.
    pub found: std::result::Result<(Hold, Standing), String>,
}

impl Stranger {
    /// What it is and how it stands there, for people.
    #[must_use]
    pub fn standing(&self) -> String {
        match &self.found {
            Ok((hold, standing)) => format!("{}  there: {}", hold.amount, name(*standing)),
            Err(why) => format!("no answer that can be believed: {why}"),
        }
    }

    /// Has the provider give back what it holds or took for this payment; whether that is done, or on its way.
    ///
    /// # Errors
    /// [`Code::PaymentPending`] where the provider did not confirm: the same may be asked again. [`Code::PaymentDeclined`] where it says no.
    pub async fn give_back(&self, provider: &dyn Provider) -> Result<bool> {
        let (hold, standing) = self.found.as_ref().map_err(|why| Refusal::new(Code::PaymentPending, why.clone()))?;
        let outcome = match standing {
            Standing::Captured => provider.refund(hold).await,
            Standing::Held | Standing::Undecided | Standing::Ended => provider.cancel(hold).await,
        };
        match outcome {
            Outcome::Pending(()) => Ok(false),
            other => other.done().map(|()| true),
        }
    }
}

/// Looks through everything that the provider has for orders since then, for payments that hold or took something and that our books do
/// not know.
///
/// # Errors
/// [`Code::PaymentPending`] where the provider does not answer as it should.
pub async fn strangers<R: Repository>(books: &R, provider: &dyn Provider, since: Time) -> Result<Vec<Stranger>> {
    let (mut strangers, mut after) = (Vec::new(), None::<String>);
    loop {
        let (listed, next) = provider.payments(since, after.as_deref()).await.done()?;
        for Listed { order, reference, found } in listed {
            if is_over(provider, &found).await || is_known(books, order, &reference).await? {
                continue;
            }
            let order_is_here = books.has_order(order).await?;
            strangers.push(Stranger { order, order_is_here, reference, found });
        }
        if next.is_none() || next == after {
            return Ok(strangers);
        }
        after = next;
    }
}

/// Whether nothing is held, and what was taken was given back.
async fn is_over(provider: &dyn Provider, found: &std::result::Result<(Hold, Standing), String>) -> bool {
    match found {
        Ok((_, Standing::Ended)) => true,
        Ok((hold, Standing::Captured)) => matches!(provider.given_back(hold).await, Outcome::Done(())),
        _ => false,
    }
}

/// Whether our books know it, or that it may be there: that it is asked for is on record before the provider is.
async fn is_known<R: Repository>(books: &R, order: OrderId, reference: &str) -> Result<bool> {
    let ours = books.payment(order).await?;
    Ok(ours.is_some_and(|ours| ours.reference == reference || ours.state == PaymentState::Asked))
}

/// Asks the provider about every payment that it has a reference for.
pub async fn reconcile<R: Repository>(books: &R, provider: &dyn Provider) -> Result<Reconciliation> {
    let (mut result, mut after) = (Reconciliation::default(), OrderId([0; 16]));
    loop {
        let some = books.all_payments(after).await?;
        let Some(last) = some.last() else { return Ok(result) };
        after = last.order;
        for ours in some {
            let expected = expected(ours.state);
            if expected.is_empty() || ours.reference.is_empty() {
                continue;
            }
            result.compared += 1;
            let theirs = match provider.standing(&hold(&ours)).await {
                Outcome::Done(standing) if expected.contains(&standing) => continue,
                Outcome::Done(standing) => name(standing).to_owned(),
                Outcome::Declined(why) | Outcome::Unknown(why) => format!("no answer that can be believed: {why}"),
                Outcome::Pending(_) => name(Standing::Undecided).to_owned(),
            };
            result.differences.push(Difference { ours, theirs });
        }
    }
}

/// What the provider may say of a payment that we have in that state.
fn expected(state: PaymentState) -> &'static [Standing] {
    match state {
        PaymentState::Asked | PaymentState::Declined => &[],
        PaymentState::Undecided => &[Standing::Undecided],
        PaymentState::Held => &[Standing::Held],
        PaymentState::Ending => &[Standing::Held, Standing::Ended],
        PaymentState::Ended => &[Standing::Ended],
        PaymentState::Captured | PaymentState::Refunding | PaymentState::Refunded => &[Standing::Captured],
    }
}

fn name(standing: Standing) -> &'static str {
    match standing {
        Standing::Undecided => "undecided",
        Standing::Held => "held",
        Standing::Captured => "captured",
        Standing::Ended => "ended",
    }
}
