//! Step 1103 (1002): the order and its confirmation. Nothing is agreed to that is not what was asked for.

use super::Device;
use super::deliver::Wish;
use super::pending::{Pending, Purpose};
use super::store::{Partial, default_target};
use super::transfer::check_processor;
use chipbound_host::process::now;
use chipbound_wire::api::{NewOrder, Order, OrderState, Release};
use chipbound_wire::certificate::Trust;
use chipbound_wire::documents::{Confirmation, Receipt};
use chipbound_wire::signed::{Verified, read_claims, verify_document};
use chipbound_wire::{AccountId, Code, Fault, KeyId, Refusal, Result};

/// An order whose confirmation was verified.
#[derive(Debug)]
pub struct Placed {
    /// The purchase, on the disk.
    pub pending: Pending,
    /// The server's order.
    pub order: Order,
    /// Its confirmation, which is what was asked for.
    pub confirmation: Verified<Confirmation>,
}

/// Whom an order is for.
#[derive(Clone, Copy, Debug)]
pub struct Buyer {
    /// The account that is logged in.
    pub account: AccountId,
    /// The identity key of this machine's processor.
    pub processor: KeyId,
}

/// Places the order, or takes up the one that an earlier run placed. An order that ran out is replaced by a new one, once.
pub async fn place(device: &Device<'_>, wish: &Wish, buyer: Buyer, trust: &Trust) -> Result<Placed> {
    let processor = buyer.processor;
    let purpose = Purpose {
        server: device.session.server.clone(),
        user: device.session.user.clone(),
        program: wish.program.clone(),
        version: wish.version.clone(),
        key_mode: wish.key_mode,
        processor,
    };
    if let Some(pending) = Pending::resume(device.home, &purpose)? {
        let order = submit(device, wish, processor, &pending).await;
        match order {
            Ok(order) if !ran_out(&order)? => return checked(pending, order, wish, buyer, trust),
            Ok(_) => pending.done()?,
            Err(refusal) => return give_up(pending, refusal),
        }
    }
    let release = look_up(device, wish).await?;
    let name = wish.program.rsplit('/').next().unwrap_or_default();
    let target = wish.target.clone().map_or_else(|| default_target(name), Ok)?;
    Partial::beside(&target)?; // A place that cannot be written is found out before anything is ordered.
    let pending = Pending::begin(device.home, purpose, target, release.as_ref())?;
    match submit(device, wish, processor, &pending).await {
        Ok(order) => checked(pending, order, wish, buyer, trust),
        Err(refusal) => give_up(pending, refusal),
    }
}

/// Whether an order is over without a charge, or was not acknowledged in its time; its hold, if any, is given back by the server.
fn ran_out(order: &Order) -> Result<bool> {
    let confirmation: Confirmation = read_claims(&order.confirmation.0)?;
    let over = matches!(order.state, OrderState::Expired | OrderState::Cancelled | OrderState::Refunded);
    Ok(over || (order.state.runs_out() && confirmation.expires_at <= now()))
}

async fn submit(device: &Device<'_>, wish: &Wish, processor: KeyId, pending: &Pending) -> Result<Order> {
    let (program, version) = (wish.program.clone(), wish.version.clone());
    let order = NewOrder { program, version, processor, key_mode: wish.key_mode, again: wish.again };
    device.api.order(&pending.idempotency_key, &order).await
}

/// A purchase that the server will never take is forgotten; one that was only interrupted is kept.
fn give_up<T>(pending: Pending, refusal: Refusal) -> Result<T> {
    let later = matches!(refusal.code, Code::Unauthenticated | Code::InsufficientFunds);
    if matches!(refusal.code.fault(), Fault::Caller | Fault::Denied) && !later {
        pending.done()?;
    }
    Err(refusal)
}

fn checked(pending: Pending, order: Order, wish: &Wish, buyer: Buyer, trust: &Trust) -> Result<Placed> {
    match verify_confirmation(&order, wish, buyer, &pending, trust) {
        Ok(confirmation) => Ok(Placed { pending, order, confirmation }),
        Err(refusal) => {
            if order.state == OrderState::Confirmed {
                pending.done()?; // Nothing was agreed to; a wish that is mended places an order of its own.
            }
            Err(refusal)
        }
    }
}

/// The server's signature, and that the confirmation is what was asked for.
fn verify_confirmation(order: &Order, wish: &Wish, buyer: Buyer, pending: &Pending, trust: &Trust) -> Result<Verified<Confirmation>> {
    // What is paid outlives the certificate that it was confirmed with: its receipt is what counts from then on.
    let at = if order.state.is_paid() { read_claims::<Confirmation>(&order.confirmation.0)?.issued_at } else { now() };
    let confirmation: Verified<Confirmation> = verify_document(&order.confirmation.0, trust, at)?;
    let mismatch = |code, what: String| Err(Refusal::new(code, format!("the confirmation is not what was asked for: {what}")));
    if confirmation.order != order.order {
        return mismatch(Code::OrderMismatch, "it is for another order".to_owned());
    }
    if !names(&wish.program, &confirmation) || wish.version.as_deref().is_some_and(|v| v != &*confirmation.version) {
        return mismatch(Code::TermsMismatch, format!("it is for {} {}", confirmation.program, &*confirmation.version));
    }
    if confirmation.account != buyer.account {
        return mismatch(Code::AccountMismatch, "it is for another account".to_owned());
    }
    if confirmation.processor != buyer.processor {
        return mismatch(Code::ProcessorMismatch, format!("it is for processor {}", confirmation.processor));
    }
    if ran_out(order)? {
        return Err(Refusal::new(Code::OrderExpired, "the confirmation ran out before it was agreed to"));
    }
    if let Some(expected) = pending.expected_price.filter(|p| *p != confirmation.price) {
        return mismatch(Code::TermsMismatch, format!("it says {}, the catalogue said {expected}", confirmation.price));
    }
    if let Some(most) = wish.max_price
        && (confirmation.price.currency != most.currency || confirmation.price.minor > most.minor)
    {
        return Err(Refusal::new(Code::PriceExceeded, format!("it costs {}, and --max-price is {most}", confirmation.price)));
    }
    Ok(confirmation)
}

fn names(program: &str, confirmation: &Confirmation) -> bool {
    confirmation.program.as_str() == program || confirmation.program.name() == program
}

/// The confirmation of a re-download: for the receipt's release and processor, and nothing that would have to be agreed to. Whether the
/// order was transferred to that processor comes along.
pub fn verify_again(order: &Order, receipt: &[u8], trust: &Trust) -> Result<(Verified<Confirmation>, bool)> {
    let receipt: Receipt = read_claims(receipt)?;
    let confirmation: Verified<Confirmation> = verify_document(&order.confirmation.0, trust, now())?;
    if confirmation.order != order.order || !order.state.is_paid() {
        return Err(Refusal::new(Code::OrderMismatch, "the server answers the receipt with another order"));
    }
    if (&confirmation.program, &confirmation.version, confirmation.manifest) != (&receipt.program, &receipt.version, receipt.manifest) {
        return Err(Refusal::new(Code::ReceiptMismatch, "the server answers the receipt with another release"));
    }
    let transferred = check_processor(&confirmation, &receipt, order.transfer.as_ref().map(|t| t.0.as_slice()), trust)?;
    Ok((confirmation, transferred))
}

/// What the catalogue says of the wish. None where an older version is asked for: the catalogue names the newest alone.
async fn look_up(device: &Device<'_>, wish: &Wish) -> Result<Option<Release>> {
    let programs = device.api.programs().await?;
    let mut found: Vec<_> = programs.iter().filter(|r| r.program.as_str() == wish.program || r.program.name() == wish.program).collect();
    match found.len() {
        0 => {
            let names = programs.iter().map(|r| r.program.name());
            Err(Refusal::new(Code::UnknownProgram, unknown(&wish.program, names)))
        }
        1 => Ok(found.pop().filter(|r| wish.version.as_ref().is_none_or(|v| *v == r.version)).cloned()),
        _ => {
            let ids: Vec<_> = found.iter().map(|r| r.program.as_str()).collect();
            Err(Refusal::new(Code::UnknownProgram, format!("several vendors have a {}; say which: {}", wish.program, ids.join(", "))))
        }
    }
}

/// That there is no such program, and which was perhaps meant.
fn unknown<'a>(wished: &str, names: impl Iterator<Item = &'a str>) -> String {
    let near = names.map(|name| (strsim::normalized_damerau_levenshtein(wished, name), name));
    match near.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((likeness, name)) if likeness >= 0.5 => format!("there is no program {wished:?}; did you mean {name}?"),
        _ => format!("there is no program {wished:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_is_answered_with_the_nearest_one_and_a_strange_one_is_not() {
        let names = ["perl", "python", "busybox"];
        assert!(unknown("pyhton", names.into_iter()).ends_with("did you mean python?"));
        assert!(unknown("busibox", names.into_iter()).ends_with("did you mean busybox?"));
        assert!(!unknown("zzz", names.into_iter()).contains("mean"));
        assert!(!unknown("perl", [].into_iter()).contains("mean"));
    }
}
