//! chipbound-auditor: recomputes a server's books from its journal, and says where they are not what docs/ledger.md says they are.
//!
//! - [`journal`]: the form of the journal, which the server writes;
//! - [`audit`]: reads one and returns a [`Report`];
//! - [`Rule`]: what must hold, each rule with a stable name and what to do where it does not.
//!
//! What it does not do: it opens no database and shares no line with the code that keeps the books. It stands on the wire's documents
//! and their verifiers alone, so that it can run anywhere. It keeps some 500 bytes for each order and 33 for each receipt in memory;
//! entries, documents and all else are read and forgotten.

mod cards;
pub mod journal;
mod ledger;
mod log;
mod orders;
mod reader;
mod receipts;
mod report;
mod rules;
mod states;
mod taxes;

pub use report::{Finding, Money, Report, Totals};
pub use rules::Rule;

use chipbound_wire::api::AccountRole;
use chipbound_wire::certificate::Trust;
use chipbound_wire::{AccountId, Code, Result, Time};
use journal::Line;
use ledger::Ledger;
use log::Log;
use orders::Orders;
use reader::Reader;
use receipts::Receipts;
use std::collections::HashMap;
use std::io::BufRead;

/// Audits a journal under the authority that `trust` names. A revocation list in it must be as new as the journal's documents.
///
/// # Errors
/// [`Code::Malformed`] and [`Code::TooLarge`] where it is not a whole journal, with the line's number; [`Code::Io`];
/// [`Code::RevocationListStale`] where the list is older than what is to be verified by it. What the books get wrong is no error but a
/// finding of the report.
pub fn audit(journal: impl BufRead, trust: &Trust) -> Result<Report> {
    let mut reader = Reader::new(journal);
    let made_at = reader.head()?;
    let mut audit = Audit::new(trust, made_at);
    while let Some(line) = reader.next()? {
        audit.take(line)?;
    }
    audit.end();
    Ok(audit.report)
}

/// What was read so far.
struct Audit<'t> {
    trust: &'t Trust,
    made_at: Time,
    report: Report,
    accounts: HashMap<AccountId, AccountRole>,
    orders: Orders,
    ledger: Ledger,
    log: Log,
    receipts: Receipts,
}

impl<'t> Audit<'t> {
    fn new(trust: &'t Trust, made_at: Time) -> Self {
        Self {
            trust,
            made_at,
            report: Report::new(made_at),
            accounts: HashMap::new(),
            orders: Orders::default(),
            ledger: Ledger::default(),
            log: Log::default(),
            receipts: Receipts::default(),
        }
    }

    fn take(&mut self, line: Line) -> Result<()> {
        match line {
            Line::Order(order) => self.order(&order)?,
            Line::Transfer(transfer) => self.transfer(&transfer)?,
            Line::Statement(statement) => self.statement(&statement)?,
            Line::Receipt(receipt) => self.receipt(&receipt)?,
            Line::Account(account) => {
                self.accounts.insert(account.account, account.role);
                self.report.totals.accounts += 1;
            }
            Line::Seller(seller) => self.receipts.seller(&seller),
            Line::Delivery(delivery) => self.delivery(&delivery),
            Line::Payment(payment) => self.payment(&payment),
            Line::Entry(entry) => self.entry(&entry),
            Line::Stray(stray) => self.stray(&stray),
            Line::Balance(balance) => self.balance(&balance),
            Line::Checkpoint(checkpoint) => self.checkpoint(&checkpoint),
            Line::Node(node) => self.node(&node),
            Line::LogHead(head) => self.log_head(&head),
            Line::Journal(_) | Line::End(_) => {} // The reader's.
        }
        Ok(())
    }

    /// What can be said only when everything was read.
    fn end(&mut self) {
        self.end_of_ledger();
        self.end_of_log();
        self.end_of_receipts();
        self.end_of_orders();
    }
}

/// What a verifier said, as a finding or as the reason why there can be no audit.
fn verified<T>(outcome: Result<T>) -> Result<std::result::Result<T, String>> {
    match outcome {
        Ok(good) => Ok(Ok(good)),
        Err(refusal) if refusal.code == Code::RevocationListStale => Err(refusal),
        Err(refusal) => Ok(Err(format!("{}: {}", refusal.code, refusal.detail))),
    }
}
