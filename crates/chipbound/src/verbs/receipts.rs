//! The verbs about receipts.

use super::logged_in;
use crate::api::Api;
use crate::home::Home;
use crate::log_audit::{Source, audit};
use crate::output::Output;
use crate::{log, receipts};
use chipbound_host::files::{read, write_new};
use chipbound_host::lossy;
use chipbound_wire::bounded::{Bytes, encode};
use chipbound_wire::certificate::Trust;
use chipbound_wire::documents::{ExportedReceipt, Receipt};
use chipbound_wire::limits::MAX_REVOCATION_LIST;
use chipbound_wire::signed::read_claims;
use chipbound_wire::{Code, Refusal, Result};
use clap::Subcommand;
use serde_json::json;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

/// Which receipts are listed.
#[derive(clap::Args, Debug)]
pub struct Listed {
    /// List only what is kept here, without a server
    #[arg(long)]
    offline: bool,
    /// Fetch and list so many, the newest ones [default: all]
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroU32>,
}

/// What is done with receipts.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Print a receipt as a page, with whether it is genuine
    #[command(after_help = "Example:\n  chipbound receipt show 7c9e6679f0a34de28b1dd0c1c4e0a9b2")]
    Show {
        /// A receipt's file, or the order or number of a receipt that is kept
        receipt: String,
        /// The authority's root certificate, PEM or DER [default: the authorities met here]
        #[arg(long, value_name = "FILE")]
        root: Option<PathBuf>,
    },
    /// Verify a receipt's signature and certificate at the time it was entered in its server's log, and its place there
    #[command(after_help = "Example:\n  chipbound receipt verify 7c9e6679f0a34de28b1dd0c1c4e0a9b2 --root authority/root.der")]
    Verify {
        /// A receipt's file, or the order or number of a receipt that is kept
        receipt: String,
        /// The authority's root certificate, PEM or DER [default: the authorities met here]
        #[arg(long, value_name = "FILE")]
        root: Option<PathBuf>,
        /// The authority's revocation list (DER): what was entered after its certificate was revoked is refused
        #[arg(long, value_name = "FILE")]
        revocations: Option<PathBuf>,
    },
    /// List your receipts, fetching those that are not kept here yet
    #[command(after_help = "Example:\n  chipbound receipt list --offline")]
    List(Listed),
    /// Write a receipt and its proof into one file, for whoever is to verify it elsewhere
    #[command(after_help = "Example:\n  chipbound receipt export 7c9e6679f0a34de28b1dd0c1c4e0a9b2 -o perl.receipt")]
    Export {
        /// A receipt's file, or the order or number of a receipt that is kept
        receipt: String,
        /// The file to write, which must not be there yet
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Compute a server's whole log of receipts from its entries, and compare it with what the server signed and with what is kept here
    #[command(
        after_help = "Example:\n  chipbound receipt audit-log https://127.0.0.1:8443 --tls-root server/tls-root.pem --root authority/root.der"
    )]
    AuditLog {
        /// The server's address, or a folder with a copy of its /log
        log: String,
        /// The authority's root certificate, PEM or DER [default: the authorities met here]
        #[arg(long, value_name = "FILE")]
        root: Option<PathBuf>,
        /// The server's private TLS root in PEM [default: that of the log-in, where it is at this server, else the public roots]
        #[arg(long, value_name = "FILE")]
        tls_root: Option<PathBuf>,
    },
}

/// Does a verb about receipts.
pub async fn execute(verb: Verb, home: &Home, output: &Output) -> Result<()> {
    match verb {
        Verb::Show { receipt, root } => show(home, output, &receipt, root.as_deref()),
        Verb::Verify { receipt, root, revocations } => verify(home, output, &receipt, root, revocations),
        Verb::List(listed) => list(home, output, listed).await,
        Verb::Export { receipt, output: file } => export(home, output, &receipt, file),
        Verb::AuditLog { log, root, tls_root } => {
            let roots = receipts::roots(home, root.as_deref())?;
            let report = audit(Source::of(&log, tls_root.as_deref(), home)?, &roots, home).await?;
            output.result(report.lines().join("\n"), &report.value());
            Ok(())
        }
    }
}

fn show(home: &Home, output: &Output, name: &str, root: Option<&Path>) -> Result<()> {
    let roots = receipts::roots(home, root)?;
    let found = receipts::find(home, name)?;
    let receipt: Receipt = read_claims(&found.receipt)?;
    let checked = found.check(&roots, None);
    let verdict = match &checked {
        Ok(_) => "genuine, as verified here without any server".to_owned(),
        Err(refusal) => format!("NOT VERIFIED: {refusal}"),
    };
    let mut value = receipts::value(&receipt);
    value["verified"] = json!(checked.is_ok());
    output.result(format!("{}\n{:12}{verdict}", receipts::page(&receipt), "this copy"), &value);
    Ok(())
}

fn verify(home: &Home, output: &Output, name: &str, root: Option<PathBuf>, revocations: Option<PathBuf>) -> Result<()> {
    let roots = receipts::roots(home, root.as_deref())?;
    let revocations = revocations.map(|path| read(&path, MAX_REVOCATION_LIST)).transpose()?;
    let checked = receipts::find(home, name)?.check(&roots, revocations.as_deref())?;
    let (receipt, signer) = (&checked.receipt, checked.receipt.signer());
    let mut lines: Vec<_> = receipts::lines(receipt).into_iter().map(|(name, value)| format!("{name:18}{value}")).collect();
    let mut value = receipts::value(receipt);
    lines.push(format!("{:18}{} ({}), key {}", "signed by", signer.subject(), signer.role(), signer.key_id()));
    value["verified"] = json!(true);
    value["signer"] = json!({ "subject": signer.subject(), "key": signer.key_id() });
    match (&checked.entered, &receipt.log) {
        (Some(entered), Some(place)) => {
            let checkpoint = entered.checkpoint();
            let when = receipts::moment(checkpoint.time());
            lines.push(format!(
                "{:18}entry {} of {}, witnessed {when} with {} entries",
                "log", place.index, checkpoint.origin, checkpoint.size
            ));
            value["witnessed_at"] = json!(checkpoint.time());
        }
        _ => lines.push(format!("{:18}none: it was given before there was one", "log")),
    }
    lines.push("the receipt is genuine".to_owned());
    output.result(lines.join("\n"), &value);
    Ok(())
}

/// Lists the receipts that are kept here, after those that the server has besides were fetched.
pub(crate) async fn list(home: &Home, output: &Output, listed: Listed) -> Result<()> {
    let most = listed.limit.map_or(usize::MAX, |limit| usize::try_from(limit.get()).unwrap_or(usize::MAX));
    let fetched = if listed.offline { Ok(()) } else { fetch(home, most).await };
    let mut found: Vec<(Receipt, PathBuf)> =
        home.receipts()?.into_iter().map(|(path, bytes)| Ok((read_claims(&bytes)?, path))).collect::<Result<_>>()?;
    found.sort_by_key(|(r, _)| std::cmp::Reverse((r.issued_at, r.number)));
    found.truncate(most);
    let row = |(r, _): &(Receipt, PathBuf)| {
        let program = format!("{} {}", r.program.name(), &*r.version);
        vec![r.number.to_string(), receipts::moment(r.issued_at), r.amount.to_string(), program, r.order.to_string()]
    };
    let rows: Vec<_> = found.iter().map(row).collect();
    let value = |(r, path): &(Receipt, PathBuf)| {
        let mut value = receipts::value(r);
        value["path"] = json!(lossy(path));
        value
    };
    let values: Vec<_> = found.iter().map(value).collect();
    output.table(&["RECEIPT", "ISSUED", "AMOUNT", "PROGRAM", "ORDER"], &rows, &values);
    fetched
}

/// Fetches receipts and proofs that are not kept here, of the `most` newest. What the server shows and cannot prove is refused after all
/// are fetched.
async fn fetch(home: &Home, most: usize) -> Result<()> {
    let (_, api) = logged_in(home)?;
    let (mut outcome, mut next, mut left) = (Ok(()), None, most);
    loop {
        let page = api.receipts(next.as_deref(), left).await?;
        for receipt in page.receipts.iter().take(left) {
            outcome = outcome.and(fetch_one(home, &api, &receipt.0).await?);
        }
        left = left.saturating_sub(page.receipts.len());
        // A server that shows nothing and says that there is more would be asked for ever.
        if left == 0 || page.receipts.is_empty() || page.next.is_none() || page.next == next {
            return outcome;
        }
        next = page.next;
    }
}

/// Keeps a receipt, and its proof; the inner result says whether that is one.
async fn fetch_one(home: &Home, api: &Api, receipt: &[u8]) -> Result<Result<()>> {
    let claims: Receipt = read_claims(receipt)?;
    if !home.receipt_path(&claims.order).exists() {
        home.store_receipt(&claims.order, receipt)?;
    }
    if claims.log.is_none() || home.proof_path(&claims.order).exists() {
        return Ok(Ok(()));
    }
    let proof = api.order_state(&claims.order).await?.proof;
    Ok(prove(home, api, receipt, proof.as_deref()).await)
}

/// Checks the proof under the first authority that the receipt verifies under.
async fn prove(home: &Home, api: &Api, receipt: &[u8], proof: Option<&str>) -> Result<()> {
    let mut refusal = Refusal::new(Code::CertificateForeign, "no authority is known here");
    for root in home.authorities()? {
        match receipts::verify(receipt, std::slice::from_ref(&root)) {
            Ok(receipt) => return log::check(home, api, &receipt, proof, &Trust::new(&root)?).await,
            Err(e) => refusal = e,
        }
    }
    Err(refusal)
}

fn export(home: &Home, output: &Output, name: &str, file: PathBuf) -> Result<()> {
    let found = receipts::find(home, name)?;
    let proof = found.proof.map(Bytes::new).transpose()?;
    let proven = proof.is_some();
    write_new(&file, &encode(&ExportedReceipt { receipt: Bytes::new(found.receipt)?, proof }), 0o644)?;
    let with = if proven { "with its proof" } else { "without a proof" };
    output.result(format!("{}: the receipt {with}", file.display()), &json!({ "exported": lossy(&file), "proof": proven }));
    Ok(())
}
