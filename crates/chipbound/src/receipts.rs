//! Receipts (source \[51\], \[60\]): verified off line, and shown to people.

use crate::home::Home;
use chipbound_wire::certificate::Trust;
use chipbound_wire::documents::Receipt;
use chipbound_wire::limits::{MAX_CERTIFICATE, MAX_DOCUMENT};
use chipbound_wire::signed::{Verified, read_claims, verify_document};
use chipbound_wire::{Code, OrderId, Refusal, Result, Time};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use std::path::Path;

/// Verifies a receipt without any server: signature, chain and role at the receipt's own time of issue, under one of `roots`
/// (DER). With no root that fits: what the last one says.
pub fn verify(receipt: &[u8], roots: &[Vec<u8>]) -> Result<Verified<Receipt>> {
    let claims: Receipt = read_claims(receipt)?;
    let mut refusal = Refusal::new(Code::CertificateForeign, "no authority is known here: pass its root certificate with --root FILE");
    for root in roots {
        match Trust::new(root).and_then(|trust| verify_document(receipt, &trust, claims.issued_at)) {
            Ok(verified) => return Ok(verified),
            Err(e) => refusal = e,
        }
    }
    Err(refusal)
}

/// The roots to verify under: the certificate in `told` (PEM or DER), else every authority that this home met.
pub fn roots(home: &Home, told: Option<&Path>) -> Result<Vec<Vec<u8>>> {
    let Some(path) = told else { return home.authorities() };
    let bytes = chipbound_host::files::read(path, 4 * MAX_CERTIFICATE)?;
    let der = if bytes.starts_with(b"-----") {
        let bad = |e| Refusal::new(Code::Malformed, format!("{} holds no certificate in PEM", path.display())).because(e);
        CertificateDer::from_pem_slice(&bytes).map_err(bad)?.to_vec()
    } else {
        bytes
    };
    Ok(vec![der])
}

/// Reads a receipt's bytes: a file, or the order or the number of a receipt that is kept here.
pub fn find(home: &Home, name: &str) -> Result<Vec<u8>> {
    let path = Path::new(name);
    if path.exists() {
        return chipbound_host::files::read(path, MAX_DOCUMENT);
    }
    if let Ok(number) = name.parse::<u64>() {
        return of_number(home, number);
    }
    let unknown = |what: &str| Refusal::new(Code::UnknownOrder, format!("{name} is no file, and no receipt of {what} is kept here"));
    let order = name.parse::<OrderId>().map_err(|_| unknown("that order or number"))?;
    match home.receipt_path(&order) {
        kept if kept.exists() => chipbound_host::files::read(&kept, MAX_DOCUMENT),
        _ => Err(unknown("that order")),
    }
}

/// The one receipt with this number; each seller counts from 1, so there may be several.
fn of_number(home: &Home, number: u64) -> Result<Vec<u8>> {
    let mut found = Vec::new();
    for (_, bytes) in home.receipts()? {
        let claims: Receipt = read_claims(&bytes)?;
        if claims.number == number {
            found.push((claims.order.to_string(), bytes));
        }
    }
    match found.len() {
        1 => Ok(found.remove(0).1),
        0 => Err(Refusal::new(Code::UnknownOrder, format!("no receipt {number} is kept here"))),
        _ => {
            let orders: Vec<_> = found.into_iter().map(|(order, _)| order).collect();
            Err(Refusal::new(Code::UnknownOrder, format!("several sellers gave a receipt {number}; name its order: {}", orders.join(", "))))
        }
    }
}

/// A receipt as lines for people.
#[must_use]
pub fn lines(receipt: &Receipt) -> Vec<(&'static str, String)> {
    vec![
        ("receipt", receipt.number.to_string()),
        ("program", format!("{} {}", receipt.program, &*receipt.version)),
        ("amount", receipt.amount.to_string()),
        ("issued", moment(receipt.issued_at)),
        ("re-download until", moment(receipt.redownload_until)),
        ("order", receipt.order.to_string()),
        ("processor", receipt.processor.to_string()),
        ("manifest", receipt.manifest.to_string()),
        ("account", receipt.account.to_string()),
        ("payment", receipt.payment.to_string()),
    ]
}

/// A receipt for machines.
#[must_use]
pub fn value(receipt: &Receipt) -> serde_json::Value {
    json!({
        "receipt": receipt.number, "program": receipt.program, "version": &*receipt.version, "amount": receipt.amount,
        "issued_at": receipt.issued_at, "redownload_until": receipt.redownload_until, "order": receipt.order,
        "processor": receipt.processor, "manifest": receipt.manifest, "account": receipt.account, "payment": &*receipt.payment,
    })
}

/// A moment for people, in UTC.
#[must_use]
pub fn moment(time: Time) -> String {
    let second = i64::try_from(time.0).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    second.map_or_else(|| "for ever".to_owned(), |s| s.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}
