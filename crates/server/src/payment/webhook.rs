//! What the card provider tells of its own accord: signed events. An event is a hint about which order to look after; what
//! happened is then asked at the provider, so that late, repeated, swapped and stale events can do no harm.

use super::judge::is_reference;
use aws_lc_rs::hmac;
use chipbound_wire::{Code, OrderId, Refusal, Result, Time};
use data_encoding::HEXLOWER_PERMISSIVE;
use serde_json::Value;
use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use zeroize::Zeroizing;

/// The header with the signature.
pub const SIGNATURE: &str = "stripe-signature";
/// Bytes of an event.
pub const MAX_EVENT: usize = 64 * 1024;
/// Seconds by which an event's signature may be older or newer than our clock.
const TOLERANCE: u64 = 300;
/// Signatures in one header: the provider sends two while a secret is replaced.
const MAX_SIGNATURES: usize = 8;
/// Events that are remembered as done.
const REMEMBERED: usize = 4096;

/// Which order the provider has news of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hint {
    /// The event's id.
    pub event: String,
    /// The order.
    pub order: OrderId,
    /// The payment.
    pub reference: String,
}

/// The end of the provider's webhooks.
pub struct Webhooks {
    key: hmac::Key,
    done: Mutex<Done>,
}

/// The newest events that were looked after.
#[derive(Default)]
struct Done {
    known: HashSet<String>,
    order: VecDeque<String>,
}

impl std::fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Webhooks(…)")
    }
}

impl Webhooks {
    /// Events signed with `secret`, `whsec_…`, whole, as the provider shows it.
    #[must_use]
    pub fn new(secret: &Zeroizing<String>) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), done: Mutex::default() }
    }

    /// Verifies an event and says which order it is about; none where it is about nothing of ours, or was looked after already.
    ///
    /// # Errors
    /// [`Code::SignatureInvalid`] where no signature is under our secret and within five minutes of our clock; [`Code::Malformed`]
    /// where what was signed is no event.
    pub fn hear(&self, signature: &str, body: &[u8], now: Time) -> Result<Option<Hint>> {
        self.verify(signature, body, now)?;
        let no_event = || Refusal::new(Code::Malformed, "what the card provider signed is no event");
        let event: Value = serde_json::from_slice(body).map_err(|e| no_event().because(e))?;
        let id = event["id"].as_str().filter(|id| !id.is_empty() && id.len() <= 255).ok_or_else(no_event)?;
        if self.done.lock().unwrap_or_else(PoisonError::into_inner).known.contains(id) {
            return Ok(None);
        }
        let object = &event["data"]["object"];
        let reference = if object["object"] == "payment_intent" { &object["id"] } else { &object["payment_intent"] };
        let reference = reference.as_str().filter(|reference| is_reference(reference));
        let order = object["metadata"]["order"].as_str().and_then(|order| order.parse().ok());
        let (Some(reference), Some(order)) = (reference, order) else { return Ok(None) };
        Ok(Some(Hint { event: id.to_owned(), order, reference: reference.to_owned() }))
    }

    /// The order of this event was looked after: its repeats ask nothing of anybody.
    pub fn done(&self, hint: &Hint) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if done.known.insert(hint.event.clone()) {
            done.order.push_back(hint.event.clone());
        }
        if done.order.len() > REMEMBERED
            && let Some(oldest) = done.order.pop_front()
        {
            done.known.remove(&oldest);
        }
    }

    /// `t=SECONDS,v1=HEX[,v1=HEX…]`; other schemes in it are passed over. The signature is compared in constant time.
    fn verify(&self, signature: &str, body: &[u8], now: Time) -> Result<()> {
        let refused = |why: &str| Err(Refusal::new(Code::SignatureInvalid, format!("an event of the card provider's: {why}")));
        let field = |name| signature.split(',').filter_map(move |part: &str| part.trim().split_once('=').filter(|(n, _)| *n == name));
        let Some((_, at)) = field("t").next() else { return refused("it is not signed") };
        let signed = [at.as_bytes(), b".", body].concat();
        let good = field("v1")
            .take(MAX_SIGNATURES)
            .any(|(_, hex)| HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).is_ok_and(|tag| hmac::verify(&self.key, &signed, &tag).is_ok()));
        if !good {
            return refused("it is not signed with our secret");
        }
        match at.parse::<u64>() {
            Ok(at) if at.abs_diff(now.0) <= TOLERANCE => Ok(()),
            _ => refused("it was signed more than five minutes from now"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chipbound_testkit::cards::webhooks::signature;

    const SECRET: &str = "whsec_test";
    const NOW: Time = Time(1_800_000_000);

    fn webhooks() -> Webhooks {
        Webhooks::new(&Zeroizing::new(SECRET.to_owned()))
    }

    fn event(order: &str) -> Vec<u8> {
        let object = serde_json::json!({ "object": "payment_intent", "id": "pi_1", "metadata": { "order": order } });
        serde_json::json!({ "id": "evt_1", "type": "payment_intent.succeeded", "data": { "object": object } }).to_string().into_bytes()
    }

    #[test]
    fn a_signature_that_openssl_made_verifies_beside_other_schemes() {
        // printf '1800000000.{}' | openssl dgst -sha256 -hmac whsec_test
        let header = "t=1800000000,v1=482e6337ac5272392d375c6fdc4d52a7e615dc2facedab0ffe155ddfd6a56e66,v0=6ffb";
        assert_eq!(webhooks().hear(header, b"{}", NOW).expect_err("signed, but no event").code, Code::Malformed);
    }

    #[test]
    fn an_event_names_its_order_once_it_was_looked_after_never_again() {
        let order = OrderId([7; 16]);
        let (webhooks, body) = (webhooks(), event(&order.to_string()));
        let signed = signature(SECRET, NOW.0, &body);
        let hint = webhooks.hear(&signed, &body, NOW).expect("good").expect("a hint");
        assert_eq!((hint.order, hint.reference.as_str()), (order, "pi_1"));
        assert!(webhooks.hear(&signed, &body, NOW).expect("good").is_some(), "until it was looked after");
        webhooks.done(&hint);
        assert!(webhooks.hear(&signed, &body, NOW).expect("good").is_none());
        let strange = event("not ours");
        assert!(webhooks.hear(&signature(SECRET, NOW.0, &strange), &strange, NOW).expect("good").is_none());
    }

    #[test]
    fn forged_altered_and_stale_events_are_refused() {
        let body = event("07070707070707070707070707070707");
        let good = signature(SECRET, NOW.0, &body);
        let stale = signature(SECRET, NOW.0 - TOLERANCE - 1, &body);
        let early = signature(SECRET, NOW.0 + TOLERANCE + 1, &body);
        let redated = good.replace(&NOW.0.to_string(), &(NOW.0 + 1).to_string());
        for (what, header) in
            [("none", ""), ("forged", &signature("whsec_other", NOW.0, &body)), ("stale", &stale), ("early", &early), ("redated", &redated)]
        {
            assert_eq!(webhooks().hear(header, &body, NOW).expect_err(what).code, Code::SignatureInvalid, "{what}");
        }
        let mut altered = body.clone();
        altered[10] ^= 1;
        assert_eq!(webhooks().hear(&good, &altered, NOW).expect_err("altered").code, Code::SignatureInvalid);
        let two = format!("t={},v1=00,{}", NOW.0, good.split_once(',').expect("two parts").1);
        assert!(webhooks().hear(&two, &body, NOW).is_ok(), "the second of two secrets");
    }

    #[test]
    fn what_was_looked_after_is_remembered_within_a_bound() {
        let webhooks = webhooks();
        for n in 0..=REMEMBERED {
            webhooks.done(&Hint { event: format!("evt_{n}"), order: OrderId([0; 16]), reference: "pi_1".to_owned() });
        }
        let done = webhooks.done.lock().expect("not poisoned");
        assert_eq!((done.known.len(), done.order.len()), (REMEMBERED, REMEMBERED));
    }
}
