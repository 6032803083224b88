//! Compares the card provider's book with ours, payment by payment, and changes neither.

use crate::paying::hold;
use crate::payment::{Outcome, Provider, Standing};
use crate::storage::{OrderPayment, PaymentState, Repository};
use chipbound_wire::{OrderId, Result};

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
