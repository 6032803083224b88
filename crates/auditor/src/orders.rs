//! Orders: what they are by their signed documents, and what their states demand.

use crate::journal::{self, Book, PaymentState};
use crate::states::{Holds, demand};
use crate::{Audit, Report, Rule, verified};
use chipbound_wire::api::OrderState;
use chipbound_wire::documents::{Acknowledgement, Confirmation, Transfer};
use chipbound_wire::signed::{read_claims, verify_past_document};
use chipbound_wire::{AccountId, Amount, Currency, Digest, KeyId, OrderId, Result, Time};
use std::collections::BTreeMap;

/// Seconds for which a server may be late with giving back what ran out: it looks every few seconds.
const SWEEP: u64 = 60;

/// The orders of the journal.
pub(crate) type Orders = BTreeMap<OrderId, Order>;

/// An order, and what the rest of the books says of it.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) account: AccountId,
    pub(crate) seller: AccountId,
    pub(crate) price: Amount,
    pub(crate) manifest: Digest,
    pub(crate) redownload_until: Time,
    /// Digest of program and version, as agreed.
    pub(crate) product: Option<Digest>,
    /// The processor of the confirmation.
    pub(crate) first: Option<KeyId>,
    pub(crate) rounds: Vec<Round>,
    pub(crate) capture: Option<Capture>,
    pub(crate) refunded: bool,
    pub(crate) receipts: u32,
    pub(crate) issued_at: Time,
    pub(crate) expires_at: Time,
    processor: KeyId,
    pub(crate) state: OrderState,
    holds: u64,
    requested: bool,
    /// Seal and terms that were acknowledged first.
    acknowledged: Option<(Digest, Digest)>,
    /// Whether that was a delivery of this order.
    sealed: bool,
    delivered: bool,
    tokens: u32,
    transfers: Vec<(KeyId, KeyId)>,
    pub(crate) payment: Option<PaymentState>,
}

/// One hold of an order.
#[derive(Debug)]
pub(crate) struct Round {
    /// The book that it was taken from.
    pub(crate) source: Book,
    pub(crate) end: End,
}

/// How a hold ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// Not yet.
    Open,
    Released,
    Captured,
}

/// The capture of an order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capture {
    pub(crate) entry: u64,
    pub(crate) at: Time,
    pub(crate) amount: Amount,
    pub(crate) revenue: i128,
    pub(crate) fees: i128,
    pub(crate) tax: i128,
    /// Digest of the taxes' names and rates, where they are on record.
    pub(crate) rates: Option<Digest>,
}

/// What an order is sold as.
pub(crate) fn product(program: &str, version: &str) -> Digest {
    Digest::of(format!("{program}\n{version}").as_bytes())
}

impl Order {
    /// The last moment at which a hold of that round may begin: the order's end, or for later rounds one more of its terms.
    pub(crate) fn last_hold(&self, round: u64) -> Time {
        let term = self.expires_at.0.saturating_sub(self.issued_at.0);
        if round <= 1 { self.expires_at } else { self.expires_at.after(term) }
    }

    fn holds(&self) -> Holds {
        match self.rounds.last().map(|round| round.end) {
            None => Holds::None,
            Some(End::Open) => Holds::Open,
            Some(End::Released) => Holds::GivenBack,
            Some(End::Captured) => Holds::Captured,
        }
    }

    /// In which ways the order is not what its state demands: what is expected, and what is there.
    fn differences(&self) -> (Vec<String>, Vec<String>) {
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        let demand = demand(self.state, self.payment.is_some());
        let holds = self.holds();
        if holds != demand.holds && (holds, demand.holds) != (Holds::None, Holds::GivenBack) {
            expected.push(said(demand.holds).to_owned());
            found.push(said(holds).to_owned());
        }
        if self.holds != self.rounds.len() as u64 {
            expected.push(format!("{} holds", self.holds));
            found.push(format!("{} holds", self.rounds.len()));
        }
        let facts = [
            ("refund", Some(demand.refunded), self.refunded),
            ("acknowledgement", demand.acknowledged, self.acknowledged.is_some()),
            ("capture asked for", demand.requested, self.requested),
            ("delivery", demand.delivered, self.delivered),
            ("release token", demand.token, self.tokens > 0),
        ];
        for (what, wanted, there) in facts {
            if wanted.is_some_and(|wanted| wanted != there) {
                let (yes, no) = (format!("a {what}"), format!("no {what}"));
                let (wanted, actual) = if there { (no, yes) } else { (yes, no) };
                expected.push(wanted);
                found.push(actual);
            }
        }
        (expected, found)
    }

    /// Where its transfers lead from its first processor, if they lead on one way and all of them.
    fn led_to(&self) -> Option<KeyId> {
        let mut at = self.first?;
        let mut left = self.transfers.clone();
        while let Some(next) = left.iter().position(|(from, _)| *from == at) {
            at = left.swap_remove(next).1;
        }
        left.is_empty().then_some(at)
    }
}

fn said(holds: Holds) -> &'static str {
    match holds {
        Holds::None => "no hold",
        Holds::GivenBack => "every hold given back",
        Holds::Open => "a hold that stands",
        Holds::Captured => "the last hold captured",
    }
}

impl Audit<'_> {
    pub(crate) fn order(&mut self, row: &journal::Order) -> Result<()> {
        *self.report.totals.orders.entry(row.state.as_str()).or_default() += 1;
        let about = format!("order {}", row.order);
        let confirmation = self.confirmation(row, &about)?;
        if ![row.account, row.seller].iter().all(|account| self.accounts.contains_key(account)) {
            self.report.find(Rule::EntryKnown, &about, "the accounts of buyer and seller", "one of them is not there");
        }
        let acknowledged = self.acknowledged(row, confirmation.as_ref().map(|c| c.processor), &about)?;
        let order = Order {
            account: row.account,
            seller: row.seller,
            price: Amount { minor: row.price, currency: row.currency },
            manifest: row.manifest,
            redownload_until: row.redownload_until,
            product: confirmation.as_ref().map(|c| product(c.program.as_str(), &c.version)),
            first: confirmation.map(|c| c.processor),
            rounds: Vec::new(),
            capture: None,
            refunded: false,
            receipts: 0,
            issued_at: row.issued_at,
            expires_at: row.expires_at,
            processor: row.processor,
            state: row.state,
            holds: row.holds,
            requested: row.capture_requested,
            acknowledged,
            sealed: false,
            delivered: false,
            tokens: 0,
            transfers: Vec::new(),
            payment: None,
        };
        self.orders.insert(row.order, order);
        Ok(())
    }

    /// The order's confirmation, if it is one and says what the row says.
    fn confirmation(&mut self, row: &journal::Order, about: &str) -> Result<Option<Confirmation>> {
        let confirmation = match verified(verify_past_document::<Confirmation>(&row.confirmation.0, self.trust, row.issued_at))? {
            Ok(confirmation) => Confirmation::clone(&confirmation),
            Err(why) => {
                self.report.find(Rule::OrderConfirmation, about, "a confirmation signed by a server", why);
                return Ok(None);
            }
        };
        let signed = Said {
            order: confirmation.order,
            account: confirmation.account,
            price: confirmation.price.minor,
            currency: confirmation.price.currency,
            manifest: confirmation.manifest,
            issued_at: confirmation.issued_at.0,
            expires_at: confirmation.expires_at.0,
            redownload_until: confirmation.redownload_until.0,
        };
        let kept = Said {
            order: row.order,
            account: row.account,
            price: row.price,
            currency: row.currency,
            manifest: row.manifest,
            issued_at: row.issued_at.0,
            expires_at: row.expires_at.0,
            redownload_until: row.redownload_until.0,
        };
        if signed != kept {
            let (signed, kept) = signed.where_they_differ(&kept);
            self.report.find(Rule::OrderConfirmation, about, signed, kept);
        }
        Ok(Some(confirmation))
    }

    /// Seal and terms that the order's own acknowledgement names.
    fn acknowledged(&mut self, row: &journal::Order, processor: Option<KeyId>, about: &str) -> Result<Option<(Digest, Digest)>> {
        let (Some(seal), Some(bytes)) = (row.seal, &row.acknowledgement) else {
            if row.seal.is_some() || row.acknowledgement.is_some() {
                self.report.find(Rule::OrderAcknowledgement, about, "a seal and its acknowledgement", "one without the other");
            }
            return Ok(None);
        };
        let claimed = read_claims::<Acknowledgement>(&bytes.0).map_or(row.issued_at, |claims| claims.at);
        let terms = match verified(verify_past_document::<Acknowledgement>(&bytes.0, self.trust, claimed))? {
            Err(why) => {
                self.report.find(Rule::OrderAcknowledgement, about, "an acknowledgement signed by a processor", why);
                None
            }
            Ok(signed) if signed.order != row.order || signed.seal != seal => {
                let found = format!("one of the seal {} of order {}", signed.seal, signed.order);
                self.report.find(Rule::OrderAcknowledgement, about, format!("an acknowledgement of the seal {seal}"), found);
                None
            }
            Ok(signed) if processor.is_some_and(|processor| signed.signer().key_id() != processor) => {
                let expected = processor.map(|p| format!("an acknowledgement by processor {p}")).unwrap_or_default();
                self.report.find(Rule::OrderAcknowledgement, about, expected, format!("one by {}", signed.signer().key_id()));
                None
            }
            Ok(signed) => Some(signed.terms),
        };
        // What is wrong with it was said: below it counts as there.
        Ok(Some((seal, terms.unwrap_or(Digest([0; 32])))))
    }

    pub(crate) fn delivery(&mut self, delivery: &journal::Delivery) {
        let about = format!("order {}", delivery.order);
        let Some(order) = self.orders.get_mut(&delivery.order) else {
            return self.report.find(Rule::EntryKnown, format!("delivery {}", delivery.seal), &about, "no such order");
        };
        order.delivered = true;
        order.tokens += u32::from(delivery.token);
        if let Some((seal, terms)) = order.acknowledged
            && seal == delivery.seal
        {
            order.sealed = true;
            if terms != delivery.terms && terms != Digest([0; 32]) {
                let expected = format!("an acknowledgement of the terms {}", delivery.terms);
                self.report.find(Rule::OrderAcknowledgement, &about, expected, format!("one of the terms {terms}"));
            }
        }
        if delivery.acknowledged != delivery.token {
            self.report.find(Rule::OrderState, about, "an acknowledgement and its token together", "one without the other");
        }
    }

    pub(crate) fn transfer(&mut self, row: &journal::Transfer) -> Result<()> {
        let about = format!("order {}", row.order);
        let document = verified(verify_past_document::<Transfer>(&row.transfer.0, self.trust, row.at))?;
        let Some(order) = self.orders.get_mut(&row.order) else {
            self.report.find(Rule::EntryKnown, format!("transfer of {}", row.order), about, "no such order");
            return Ok(());
        };
        order.transfers.push((row.from, row.to));
        let kept = Transfer { order: row.order, account: order.account, from: row.from, to: row.to, at: row.at };
        match document {
            Err(why) => self.report.find(Rule::OrderProcessor, about, "a transfer signed by a server", why),
            Ok(signed) if *signed != kept => {
                self.report.find(Rule::OrderProcessor, about, format!("{:?}", *signed), format!("{kept:?}"));
            }
            Ok(_) => {}
        }
        Ok(())
    }

    /// What the states demand, once everything else was read.
    pub(crate) fn end_of_orders(&mut self) {
        for (id, order) in &self.orders {
            order.judge(&format!("order {id}, {}", order.state.as_str()), self.made_at, &mut self.report);
        }
    }
}

impl Order {
    fn judge(&self, about: &str, now: Time, report: &mut Report) {
        let (expected, found) = self.differences();
        if !expected.is_empty() {
            report.find(Rule::OrderState, about, expected.join(", "), found.join(", "));
        }
        if let Some((seal, _)) = self.acknowledged.filter(|_| !self.sealed) {
            report.find(Rule::OrderAcknowledgement, about, format!("a delivery with the seal {seal}"), "there is none");
        }
        if self.tokens > 0 && self.capture.is_none() {
            report.find(Rule::TokenUnpaid, about, "no release token before the capture", format!("{} tokens", self.tokens));
        }
        if let Some((expected, found)) = self.unlike_its_card() {
            report.find(Rule::CardPayment, about, expected, found);
        }
        let until = self.last_hold(if self.state.runs_out() { 1 } else { 2 }).after(SWEEP);
        if self.holds() == Holds::Open && now > until {
            report.find(Rule::HoldTerm, about, format!("no hold after {}", until.0), format!("one that stands at {}", now.0));
        }
        let captures = u32::from(self.capture.is_some());
        if captures != self.receipts {
            report.find(Rule::ReceiptOfCapture, about, format!("{captures} receipts"), format!("{} receipts", self.receipts));
        }
        self.judge_processor(about, report);
    }

    fn judge_processor(&self, about: &str, report: &mut Report) {
        let led = self.led_to();
        if self.first.is_some() && led != Some(self.processor) {
            let led = led.map_or("transfers that follow each other".to_owned(), |to| format!("processor {to}"));
            report.find(Rule::OrderProcessor, about, led, format!("processor {}", self.processor));
        } else if !self.transfers.is_empty() && self.capture.is_none() {
            report.find(Rule::OrderProcessor, about, "no transfer of what is not bought", format!("{}", self.transfers.len()));
        }
    }
}

/// What row and confirmation of an order both say; the processor may have changed since.
#[derive(PartialEq, Eq)]
struct Said {
    order: OrderId,
    account: AccountId,
    price: u64,
    currency: Currency,
    manifest: Digest,
    issued_at: u64,
    expires_at: u64,
    redownload_until: u64,
}

impl Said {
    /// What this one says and what the other one says, of all about which they do not agree.
    fn where_they_differ(&self, other: &Self) -> (String, String) {
        let (these, those) = (self.lines(), other.lines());
        let differing = these.into_iter().zip(those).filter(|(this, that)| this != that);
        let (these, those): (Vec<_>, Vec<_>) = differing.unzip();
        (these.join(", "), those.join(", "))
    }

    fn lines(&self) -> [String; 7] {
        [
            format!("order {}", self.order),
            format!("account {}", self.account),
            format!("price {} {}", self.price, self.currency),
            format!("manifest {}", self.manifest),
            format!("issued at {}", self.issued_at),
            format!("expires at {}", self.expires_at),
            format!("re-download until {}", self.redownload_until),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_row_and_its_confirmation_only_what_differs_is_shown() {
        let said = |price, issued_at| Said {
            order: OrderId([1; 16]),
            account: AccountId([2; 16]),
            price,
            currency: "EUR".parse().expect("a currency"),
            manifest: Digest([3; 32]),
            issued_at,
            expires_at: 5,
            redownload_until: 6,
        };
        assert_eq!(said(100, 4).where_they_differ(&said(1, 4)), ("price 100 EUR".to_owned(), "price 1 EUR".to_owned()));
        let (signed, kept) = said(100, 4).where_they_differ(&said(1, 9));
        assert_eq!((&*signed, &*kept), ("price 100 EUR, issued at 4", "price 1 EUR, issued at 9"));
    }
}
