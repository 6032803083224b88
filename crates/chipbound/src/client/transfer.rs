//! A purchase moves to another processor: its own gives it up, the server says whose it is.

use super::{Device, blocking};
use crate::{control, receipts};
use chipbound_wire::api::Transferring;
use chipbound_wire::certificate::Trust;
use chipbound_wire::documents::{Confirmation, Receipt, Transfer};
use chipbound_wire::signed::{Verified, read_claims, verify_document};
use chipbound_wire::{Code, KeyId, Refusal, Result};
use serde_json::json;
use std::path::PathBuf;

/// Moves the order of a receipt to the processor `to`. Cut short anywhere it is gone on with by calling it again. Where the order's own
/// processor is revoked nobody asks it.
pub async fn transfer(device: &Device<'_>, receipt: &[u8], to: KeyId) -> Result<(Verified<Transfer>, PathBuf)> {
    let claims: Receipt = read_claims(receipt)?;
    let Transferring { transfer, request } = device.api.transfer(&claims.order, to, None).await?;
    let transfer = match (transfer, request) {
        (Some(transfer), _) => transfer,
        (None, Some(request)) => {
            let socket = device.socket.to_owned();
            let retirement = blocking(move || control::retire(&socket, request.0)).await?;
            let text = format!("this processor gave order {} up: it opens nothing of it any more", claims.order);
            device.story.step(1002, &text, json!({ "order": claims.order, "retired": true }));
            let done = device.api.transfer(&claims.order, to, Some(retirement)).await?.transfer;
            done.ok_or_else(|| Refusal::new(Code::OrderState, "the server has the retirement and does not transfer the order"))?
        }
        (None, None) => return Err(Refusal::new(Code::OrderState, "the server answers the transfer with nothing")),
    };
    let roots = receipts::roots(device.home, None)?;
    let transfer = verify(&transfer.0, &claims, to, &roots)?;
    let path = device.home.store_transfer(&claims.order, transfer.bytes())?;
    Ok((transfer, path))
}

/// The server's word that the order of `receipt` is for the processor `to`, verified at its own time under one of `roots`.
fn verify(transfer: &[u8], receipt: &Receipt, to: KeyId, roots: &[Vec<u8>]) -> Result<Verified<Transfer>> {
    let at = read_claims::<Transfer>(transfer)?.at;
    let mut refusal = Refusal::new(Code::CertificateForeign, "no authority is known here");
    for root in roots {
        match Trust::new(root).and_then(|trust| verify_document::<Transfer>(transfer, &trust, at)) {
            Ok(verified) => return check(&verified, receipt, to).map(|()| verified),
            Err(e) => refusal = e,
        }
    }
    Err(refusal)
}

/// Whether a re-download may be for another processor than the receipt's: the server's signed word for it must come along.
pub(super) fn check_processor(confirmation: &Confirmation, receipt: &Receipt, transfer: Option<&[u8]>, trust: &Trust) -> Result<bool> {
    if confirmation.processor == receipt.processor {
        return Ok(false);
    }
    let another = || Refusal::new(Code::ProcessorMismatch, "the server answers the receipt for another processor");
    verify(transfer.ok_or_else(another)?, receipt, confirmation.processor, &[trust.root().to_vec()]).map(|_| true)
}

fn check(transfer: &Transfer, receipt: &Receipt, to: KeyId) -> Result<()> {
    if transfer.order != receipt.order || transfer.account != receipt.account {
        return Err(Refusal::new(Code::OrderMismatch, "the transfer is of another order"));
    }
    if transfer.to != to {
        return Err(Refusal::new(Code::ProcessorMismatch, "the transfer is to another processor"));
    }
    Ok(())
}
