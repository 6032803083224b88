//! Receipts (source \[51\], \[60\]): found, verified off line, and shown to people.

use crate::home::{Home, PROOF};
use chipbound_wire::bounded::decode;
use chipbound_wire::certificate::Trust;
use chipbound_wire::documents::{ExportedReceipt, Receipt};
use chipbound_wire::limits::{MAX_CERTIFICATE, MAX_DOCUMENT, MAX_PROOF_FILE};
use chipbound_wire::signed::{Verified, read_claims, verify_document};
use chipbound_wire::tlog::Entered;
use chipbound_wire::{Amount, Code, OrderId, Refusal, Result, Time};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use std::path::Path;

/// Verifies a receipt's signature without any server: chain and role at the receipt's own time of issue, under one of `roots`
/// (DER). With no root that fits: what the last one says.
pub fn verify(receipt: &[u8], roots: &[Vec<u8>]) -> Result<Verified<Receipt>> {
    let claims: Receipt = read_claims(receipt)?;
    under_one_of(roots, |root| verify_document(receipt, &Trust::new(root)?, claims.issued_at))
}

fn under_one_of<T>(roots: &[Vec<u8>], verify: impl Fn(&[u8]) -> Result<T>) -> Result<T> {
    let mut refusal = Refusal::new(Code::CertificateForeign, "no authority is known here: pass its root certificate with --root FILE");
    for root in roots {
        match verify(root) {
            Ok(verified) => return Ok(verified),
            Err(e) => refusal = e,
        }
    }
    Err(refusal)
}

/// A receipt, with the proof that it is in its server's log where one lies beside it. Nothing is verified.
#[derive(Clone, Debug)]
pub struct Found {
    /// The signed receipt.
    pub receipt: Vec<u8>,
    /// The proof.
    pub proof: Option<Vec<u8>>,
}

/// A receipt that was verified.
#[derive(Debug)]
pub struct Checked {
    /// The receipt.
    pub receipt: Verified<Receipt>,
    /// Its place in the log; the first receipts have none.
    pub entered: Option<Entered>,
}

impl Found {
    /// Verifies the receipt, and that it is in its server's log, without any server, under one of `roots`. A certificate that
    /// `revocations` (DER) names counts for what was entered before it was revoked.
    ///
    /// # Errors
    /// [`Code::NotInLog`] for a receipt that names a place in a log and comes without a proof; codes of [`Entered::verify`].
    pub fn check(&self, roots: &[Vec<u8>], revocations: Option<&[u8]>) -> Result<Checked> {
        let claims: Receipt = read_claims(&self.receipt)?;
        let trust = |root: &[u8]| match revocations {
            Some(list) => Trust::new(root)?.with_revocations(list),
            None => Trust::new(root),
        };
        match (&claims.log, &self.proof) {
            (None, _) => {
                let receipt = under_one_of(roots, |root| verify_document(&self.receipt, &trust(root)?, claims.issued_at))?;
                Ok(Checked { receipt, entered: None })
            }
            (Some(_), Some(proof)) => {
                let entered = under_one_of(roots, |root| Entered::verify(&self.receipt, proof, &trust(root)?))?;
                Ok(Checked { receipt: entered.receipt().clone(), entered: Some(entered) })
            }
            (Some(_), None) => {
                // A receipt that is not genuine is refused for that.
                verify(&self.receipt, roots)?;
                Err(Refusal::new(Code::NotInLog, "no proof lies beside the receipt; `chipbound receipts` fetches it from the server"))
            }
        }
    }
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

/// Reads a receipt: a file, or the order or the number of a receipt that is kept here.
pub fn find(home: &Home, name: &str) -> Result<Found> {
    let path = Path::new(name);
    if path.exists() {
        return read_file(path);
    }
    let unknown = |what: &str| Refusal::new(Code::UnknownOrder, format!("{name} is no file, and no receipt of {what} is kept here"));
    let order = match (name.parse::<OrderId>(), name.parse::<u64>()) {
        (Ok(order), _) => order, // Also one that happens to have no letter.
        (_, Ok(number)) => return of_number(home, number),
        _ => return Err(unknown("that order or number")),
    };
    match home.receipt_path(&order) {
        kept if kept.exists() => read_file(&kept),
        _ => Err(unknown("that order")),
    }
}

/// A receipt with its proof beside it, or one that was exported with it.
fn read_file(path: &Path) -> Result<Found> {
    let bytes = chipbound_host::files::read(path, MAX_DOCUMENT + MAX_PROOF_FILE).map_err(|refusal| match refusal.code {
        Code::TooLarge => Refusal::new(Code::WrongDocument, format!("{} is no receipt: it is larger than any", path.display())),
        _ => refusal,
    })?;
    if let Ok(ExportedReceipt { receipt, proof }) = decode(&bytes) {
        return Ok(Found { receipt: receipt.into_vec(), proof: proof.map(chipbound_wire::bounded::Bytes::into_vec) });
    }
    if let Err(refusal) = read_claims::<Receipt>(&bytes) {
        return Err(Refusal::new(Code::WrongDocument, format!("{} is no receipt, or was damaged", path.display())).because(refusal));
    }
    let beside = path.with_extension(PROOF);
    let proof = if beside.exists() { Some(chipbound_host::files::read(&beside, MAX_PROOF_FILE)?) } else { None };
    Ok(Found { receipt: bytes, proof })
}

/// The one receipt with this number; each seller counts from 1, so there may be several.
fn of_number(home: &Home, number: u64) -> Result<Found> {
    let mut found = Vec::new();
    for (path, bytes) in home.receipts()? {
        let claims: Receipt = read_claims(&bytes)?;
        if claims.number == number {
            found.push((claims.order.to_string(), path));
        }
    }
    match found.len() {
        1 => read_file(&found.remove(0).1),
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

/// Columns of a printed receipt.
const WIDTH: usize = 78;

/// A receipt as a page for people.
#[must_use]
pub fn page(receipt: &Receipt) -> String {
    let mut lines = vec![format!("{:^WIDTH$}", format!("RECEIPT {}", receipt.number)).trim_end().to_owned(), String::new()];
    let mut fact = |name: &str, value: String| lines.push(format!("{name:12}{value}").trim_end().to_owned());
    if let Some(sale) = &receipt.sale {
        fact("sold by", if sale.name.is_empty() { "the vendor of the program".to_owned() } else { sale.name.to_string() });
        fact("", format!("account {}", sale.seller));
    }
    fact("sold to", format!("account {}", receipt.account));
    fact("date", moment(receipt.issued_at));
    fact("order", receipt.order.to_string());
    fact("paid by", receipt.payment.to_string());
    lines.push("-".repeat(WIDTH));
    lines.extend(items(receipt));
    lines.push("-".repeat(WIDTH));
    let mut fact = |name: &str, value: String| lines.push(format!("{name:12}{value}").trim_end().to_owned());
    fact("program", receipt.program.to_string());
    fact("manifest", receipt.manifest.to_string());
    fact("processor", receipt.processor.to_string());
    fact("again", format!("any number of times until {}, for that processor:", moment(receipt.redownload_until)));
    fact("", format!("chipbound redownload {}", receipt.order));
    if let Some(sale) = receipt.sale.as_ref().filter(|sale| !sale.conditions.is_empty()) {
        fact("conditions", sale.conditions.to_string());
    }
    if let Some(place) = &receipt.log {
        fact("log", format!("entry {} of {}", place.index, &*place.origin));
    }
    lines.join("\n")
}

/// What was sold, the taxes in it, and the total, with the amounts at the right.
fn items(receipt: &Receipt) -> Vec<String> {
    let row = |what: String, amount: Amount| {
        let amount = amount.to_string();
        let room = WIDTH.saturating_sub(amount.len());
        format!("{what:room$}{amount}")
    };
    let mut rows = vec![row(format!("{} {}", receipt.program.name(), &*receipt.version), receipt.amount)];
    for tax in receipt.sale.iter().flat_map(|sale| sale.taxes.iter()) {
        let what = format!("  contains {} {}", &*tax.name, percent(tax.rate));
        rows.push(row(what, Amount { minor: tax.minor, currency: receipt.amount.currency }));
    }
    rows.push(row("total".to_owned(), receipt.amount));
    rows
}

/// Hundredths of a percent for people.
fn percent(rate: u32) -> String {
    let text = format!("{}.{:02}", rate / 100, rate % 100);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A receipt for machines.
#[must_use]
pub fn value(receipt: &Receipt) -> serde_json::Value {
    let mut value = json!({
        "receipt": receipt.number, "program": receipt.program, "version": &*receipt.version, "amount": receipt.amount,
        "issued_at": receipt.issued_at, "redownload_until": receipt.redownload_until, "order": receipt.order,
        "processor": receipt.processor, "manifest": receipt.manifest, "account": receipt.account, "payment": &*receipt.payment,
    });
    if let Some(sale) = &receipt.sale {
        let taxes: Vec<_> = sale.taxes.iter().map(|t| json!({ "name": &*t.name, "rate": t.rate, "minor": t.minor })).collect();
        value["seller"] = json!({ "account": sale.seller, "name": &*sale.name });
        value["taxes"] = json!(taxes);
        value["conditions"] = json!(&*sale.conditions);
    }
    if let Some(place) = &receipt.log {
        value["log"] = json!({ "origin": &*place.origin, "index": place.index });
    }
    value
}

/// A moment for people, in UTC.
#[must_use]
pub fn moment(time: Time) -> String {
    let second = i64::try_from(time.0).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    second.map_or_else(|| "for ever".to_owned(), |s| s.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_shown_without_what_says_nothing() {
        for (rate, shown) in [(1900, "19 %"), (550, "5.5 %"), (5, "0.05 %"), (0, "0 %"), (10_000, "100 %")] {
            assert_eq!(percent(rate), shown);
        }
    }
}
