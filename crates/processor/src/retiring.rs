//! Giving an order up for another processor: what opens its packages is forgotten, durably, before the processor says so.

use crate::processor::Processor;
use chipbound_trusted_core::{Memory, Step};
use chipbound_wire::documents::{Retirement, RetirementRequest};
use chipbound_wire::signature::Sign;
use chipbound_wire::signed::{Verified, verify_document};
use chipbound_wire::{Code, Refusal, Result};

/// Gives up the order that the server's signed request names; the signed retirement. A program of it that runs goes on; what was opened of
/// it is dropped from memory. Repeated, it says the same again.
///
/// Refuses a request that does not verify, is for another processor ([`Code::ProcessorMismatch`]) or too old
/// ([`Code::OrderExpired`]).
pub fn retire(us: &Processor, request: &[u8]) -> Result<Vec<u8>> {
    let enrolment = us.vault.enrolment()?;
    let now = us.now();
    let request: Verified<RetirementRequest> = verify_document(request, &enrolment.trust.get(), now)?;
    if request.from != us.vault.keys().key_id() || request.to == request.from {
        return Err(Refusal::new(Code::ProcessorMismatch, "the request to give an order up is for another processor"));
    }
    if request.until < now {
        return Err(Refusal::new(Code::OrderExpired, "the request to give the order up is too old"));
    }
    if us.vault.check_order(&request.order).is_ok() {
        us.remember(Step::Retired { order: request.order })?;
        us.drop_where("an order was given up", |opened| *opened.program() == request.program);
        if us.spool.forget(request.order)? {
            tracing::info!(order = %request.order, "what waited of the order is gone too");
        }
        tracing::info!(order = %request.order, to = %request.to, "gave the order up");
    }
    let identity = us.identity(&enrolment);
    identity.signer().sign(&Retirement { order: request.order, to: request.to, at: now })
}
