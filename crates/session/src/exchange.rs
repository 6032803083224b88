//! The explicit exchange (steps 1004-1006; source \[46\]-\[48\]): both ends sign the same facts about this one connection.
//! TLS alone would not show a peer that relays the handshake of an honest one.

use chipbound_wire::bounded::encode;
use chipbound_wire::certificate::SealingKey;
use chipbound_wire::documents::ExchangeFacts;
use chipbound_wire::suite::Kem;
use chipbound_wire::{Code, Digest, KeyId, Refusal, Result};

/// The digest by which offer and seal name an exchange.
pub(crate) fn digest(facts: &ExchangeFacts) -> Digest {
    Digest::of(&encode(facts))
}

/// Whether what the other end signed is about this connection, these keys and this order.
pub(crate) fn check(claimed: &ExchangeFacts, ours: &ExchangeFacts) -> Result<()> {
    let exchange = |what: &str| Err(Refusal::new(Code::ExchangeMismatch, format!("the signed exchange names another {what}")));
    if claimed.exporter != ours.exporter {
        return exchange("connection");
    }
    if claimed.processor != ours.processor || claimed.server != ours.server {
        return Err(Refusal::new(Code::IdentityMismatch, "the signed exchange names other keys than TLS proved"));
    }
    if claimed.processor_challenge != ours.processor_challenge || claimed.server_challenge != ours.server_challenge {
        return exchange("challenge");
    }
    if claimed.session_key != ours.session_key {
        return exchange("session sealing key");
    }
    if claimed.statement_key != ours.statement_key {
        return exchange("statement key");
    }
    if claimed.order != ours.order {
        return Err(Refusal::new(Code::OrderMismatch, format!("the exchange is about order {}, not {}", claimed.order, ours.order)));
    }
    // Every field was compared above; one that is added later must not slip through.
    if claimed == ours { Ok(()) } else { exchange("fact") }
}

/// Whether the document of the exchange was signed by the key that TLS proved.
pub(crate) fn check_signer(signer: KeyId, peer: KeyId) -> Result<()> {
    if signer == peer {
        return Ok(());
    }
    Err(Refusal::new(Code::IdentityMismatch, "the exchange was signed by another key than the one that TLS proved"))
}

/// Whether a session's sealing key has the length of its mechanism.
pub(crate) fn check_session_key(key: &SealingKey) -> Result<()> {
    let length = match key.kem {
        Kem::XWing => 1216,
        Kem::DhkemP256 => 65,
    };
    if key.public.len() == length {
        return Ok(());
    }
    Err(Refusal::new(Code::Malformed, format!("a session sealing key of {} bytes for {}", key.public.len(), key.kem)))
}
