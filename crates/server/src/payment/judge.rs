//! What the card provider's answers say, believed only where they are about the payment that was asked for.

use super::{Hold, Listed, Outcome, Standing};
use chipbound_wire::{Amount, OrderId};
use serde_json::Value;

/// The longest reference, in bytes.
const MAX_REFERENCE: usize = 64;

/// Why an answer is not believed.
pub(super) type Wrong = &'static str;

/// A payment as an answer describes it, for the order and amount that were asked for.
pub(super) fn payment(answer: &Value, order: &OrderId, amount: &Amount) -> Result<(Hold, Standing), Wrong> {
    let text = |name: &str| answer[name].as_str();
    if text("object") != Some("payment_intent") {
        return Err("the answer is no payment");
    }
    if answer["metadata"]["order"].as_str() != Some(order.to_string().as_str()) {
        return Err("the answer is about another order");
    }
    if answer["amount"].as_u64() != Some(amount.minor) {
        return Err("the answer names another amount");
    }
    if text("currency") != Some(&currency(amount)) {
        return Err("the answer names another currency");
    }
    if text("capture_method") != Some("manual") {
        return Err("the answer is about a payment that is not captured by hand");
    }
    let reference = text("id").filter(|id| is_reference(id)).ok_or("the answer names no payment")?;
    let hold = Hold { order: *order, amount: *amount, reference: reference.to_owned() };
    Ok((hold, standing(answer, amount)?))
}

/// The same, of a payment whose reference is known.
pub(super) fn payment_again(answer: &Value, known: &Hold) -> Result<Standing, Wrong> {
    let (hold, standing) = payment(answer, &known.order, &known.amount)?;
    if hold == *known { Ok(standing) } else { Err("the answer is about another payment") }
}

fn standing(answer: &Value, amount: &Amount) -> Result<Standing, Wrong> {
    match answer["status"].as_str() {
        Some("requires_capture") if answer["amount_capturable"].as_u64() == Some(amount.minor) => Ok(Standing::Held),
        Some("succeeded") if answer["amount_received"].as_u64() == Some(amount.minor) => Ok(Standing::Captured),
        Some("requires_capture" | "succeeded") => Err("the answer names another amount"),
        Some("processing") => Ok(Standing::Undecided),
        // What its holder would have to confirm in person is no hold: nobody is there to be asked.
        Some("canceled" | "requires_payment_method" | "requires_confirmation" | "requires_action") => Ok(Standing::Ended),
        _ => Err("the answer names no state"),
    }
}

/// A payment of a list, if it is for an order.
pub(super) fn listed(one: &Value) -> Option<Listed> {
    let order = one["metadata"]["order"].as_str()?.parse().ok()?;
    let reference = one["id"].as_str().filter(|id| is_reference(id))?.to_owned();
    let amount = || {
        let currency = one["currency"].as_str()?.to_ascii_uppercase().parse().ok()?;
        Some(Amount { minor: one["amount"].as_u64()?, currency })
    };
    let found = amount().ok_or("the answer names no amount").and_then(|amount| payment(one, &order, &amount));
    Some(Listed { order, reference, found: found.map_err(str::to_owned) })
}

/// A refund of the whole payment.
pub(super) fn refund(answer: &Value, hold: &Hold) -> Result<Outcome<()>, Wrong> {
    let right = answer["object"] == "refund"
        && answer["payment_intent"] == hold.reference.as_str()
        && answer["amount"] == hold.amount.minor
        && answer["currency"] == currency(&hold.amount).as_str();
    if !right {
        return Err("the answer is not about this refund");
    }
    match answer["status"].as_str() {
        Some("succeeded") => Ok(Outcome::Done(())),
        Some("pending" | "requires_action") => Ok(Outcome::Pending(())),
        Some("failed" | "canceled") => Ok(Outcome::Declined("the refund failed".to_owned())),
        _ => Err("the answer names no state"),
    }
}

/// The currency as the provider writes it.
pub(super) fn currency(amount: &Amount) -> String {
    amount.currency.as_str().to_ascii_lowercase()
}

/// A reference stands in addresses: `pi_` and letters or digits.
pub(super) fn is_reference(text: &str) -> bool {
    text.len() <= MAX_REFERENCE
        && text.strip_prefix("pi_").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
}

/// A word of the provider's that may be shown: its codes are lower-case letters, digits and underscores.
pub(super) fn word(value: &Value) -> Option<&str> {
    value.as_str().filter(|w| (1..=64).contains(&w.len()) && w.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
}
