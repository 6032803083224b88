//! Receipts: numbers, signatures, and what they say.

use crate::journal;
use crate::log::SKEW;
use crate::orders::{Capture, Order, product};
use crate::taxes::{rates_of, taxes};
use crate::{Audit, Rule, verified};
use chipbound_wire::documents::{Receipt, TaxLine};
use chipbound_wire::signed::{Verified, verify_past_document};
use chipbound_wire::tlog::{entry_of, origin_of};
use chipbound_wire::{AccountId, Result, Time, TreeHash};
use std::collections::BTreeMap;

/// Who numbered the first receipts: the server.
const NOBODY: AccountId = AccountId([0; 16]);

/// How far each seller's numbers came.
#[derive(Default)]
pub(crate) struct Receipts {
    sellers: BTreeMap<AccountId, Series>,
}

#[derive(Default)]
struct Series {
    /// What the seller's own count says.
    count: u64,
    /// The last number.
    last: u64,
    /// Whether the last one is in the log.
    logged: bool,
}

impl Receipts {
    pub(crate) fn seller(&mut self, seller: &journal::Seller) {
        self.sellers.entry(seller.seller).or_default().count = seller.receipts;
    }
}

impl Audit<'_> {
    pub(crate) fn receipt(&mut self, row: &journal::Receipt) -> Result<()> {
        self.report.totals.receipts += 1;
        let about = format!("receipt {} of seller {}, order {}", row.number, row.seller, row.order);
        self.numbered(row, &about);
        let witness = row.log_index.and_then(|index| self.log.witness(index));
        let signed = verified(verify_past_document::<Receipt>(&row.receipt.0, self.trust, witness.unwrap_or(row.issued_at)))?;
        let commitment = signed.is_ok().then(|| TreeHash(entry_of(&row.receipt.0)));
        if let Some(Err(found)) = row.log_index.map(|index| self.log.claim(index, commitment)) {
            self.report.find(Rule::LogEntry, &about, "the commitment to this receipt", found);
        }
        if let Some(order) = self.orders.get_mut(&row.order) {
            order.receipts += 1;
        } else {
            self.report.find(Rule::ReceiptOfCapture, &about, "an order", "it is not there");
        }
        match signed {
            Err(why) => self.report.find(Rule::ReceiptSignature, about, "a receipt signed by a server", why),
            Ok(signed) => self.says(row, &signed, witness, &about),
        }
        Ok(())
    }

    fn numbered(&mut self, row: &journal::Receipt, about: &str) {
        let series = self.receipts.sellers.entry(row.seller).or_default();
        if row.number != series.last + 1 {
            self.report.find(Rule::ReceiptNumber, about, format!("number {}", series.last + 1), format!("number {}", row.number));
        }
        series.last = row.number;
        if series.logged && row.log_index.is_none() {
            self.report.find(Rule::LogEntry, about, "an entry of the log, as those before it", "none");
        }
        series.logged = row.log_index.is_some();
    }

    /// Compares what a receipt says with its row, its order, its capture and its place in the log.
    fn says(&mut self, row: &journal::Receipt, receipt: &Verified<Receipt>, witness: Option<Time>, about: &str) {
        let place = receipt.log.as_ref();
        if place.map(|place| place.index) != row.log_index {
            let said = |index: Option<u64>| index.map_or("no entry of the log".to_owned(), |index| format!("entry {index} of the log"));
            self.report.find(Rule::LogEntry, about, said(place.map(|place| place.index)), said(row.log_index));
        }
        let mut differ = Differences::default();
        differ.compare("number", receipt.number, row.number);
        differ.compare("order", receipt.order, row.order);
        differ.compare("account", receipt.account, row.account);
        differ.compare("issued_at", receipt.issued_at.0, row.issued_at.0);
        if let Some(sale) = &receipt.sale
            && row.seller != NOBODY
        {
            differ.compare("seller", sale.seller, row.seller);
        }
        if let Some(place) = place {
            let own = origin_of(self.trust.root(), receipt.signer().subject());
            differ.compare("log", place.origin.to_string(), own.clone());
            differ.compare("log", self.log.name(place.index).map_or_else(|| own.clone(), str::to_owned), own);
        }
        if let Some(witness) = witness
            && receipt.issued_at > witness.after(SKEW)
        {
            differ.compare("issued_at, at most", receipt.issued_at.0, witness.0);
        }
        if let Some(order) = self.orders.get(&row.order) {
            differ.compare("buyer", receipt.account, order.account);
            differ.compare("manifest", receipt.manifest, order.manifest);
            differ.compare("redownload_until", receipt.redownload_until.0, order.redownload_until.0);
            if let Some(first) = order.first {
                differ.compare("processor", receipt.processor, first);
            }
            if let Some(agreed) = order.product {
                differ.compare("program and version", product(receipt.program.as_str(), &receipt.version), agreed);
            }
            if row.seller != NOBODY {
                differ.compare("seller", row.seller, order.seller);
            }
            if let Some(capture) = order.capture {
                differ.compare("payment", receipt.payment.to_string(), format!("entry-{}", capture.entry));
                differ.compare("captured at", receipt.issued_at.0, capture.at.0);
            }
        }
        if !differ.expected.is_empty() {
            self.report.find(Rule::ReceiptContent, about, differ.expected.join(", "), differ.found.join(", "));
        }
        if let Some(Order { capture: Some(capture), .. }) = self.orders.get(&row.order) {
            let capture = *capture;
            self.amounts(receipt, &capture, about);
        }
    }

    fn amounts(&mut self, receipt: &Receipt, capture: &Capture, about: &str) {
        if receipt.amount != capture.amount {
            self.report.find(Rule::ReceiptAmount, about, format!("a capture of {}", receipt.amount), capture.amount);
        }
        let lines: &[TaxLine] = receipt.sale.as_ref().map_or(&[], |sale| &sale.taxes);
        let rates: Vec<_> = lines.iter().map(|line| line.rate).collect();
        for (line, minor) in lines.iter().zip(taxes(&rates, u128::from(receipt.amount.minor))) {
            if minor != u128::from(line.minor) {
                let about = format!("{about}, tax {:?}", &*line.name);
                self.report.find(Rule::ReceiptTax, about, minor, line.minor);
            }
        }
        let sum: i128 = lines.iter().map(|line| i128::from(line.minor)).sum();
        if sum != capture.tax {
            self.report.find(Rule::ReceiptTax, about, format!("{sum} posted as tax"), capture.tax);
        }
        let named = rates_of(lines.iter().map(|line| (&*line.name, line.rate)));
        if capture.rates.is_some_and(|rates| rates != named) {
            self.report.find(Rule::ReceiptTax, about, "the taxes that are on record with the capture", "others");
        }
    }

    pub(crate) fn end_of_receipts(&mut self) {
        for (seller, series) in &self.receipts.sellers {
            if series.count != series.last {
                let (expected, found) = (format!("{} receipts", series.count), format!("numbers up to {}", series.last));
                self.report.find(Rule::ReceiptNumber, format!("seller {seller}"), expected, found);
            }
        }
        self.end_of_entries();
    }
}

#[derive(Default)]
struct Differences {
    expected: Vec<String>,
    found: Vec<String>,
}

impl Differences {
    /// The receipt's word and what stands elsewhere.
    fn compare<T: PartialEq + ToString>(&mut self, what: &str, receipt: T, elsewhere: T) {
        if receipt != elsewhere {
            self.expected.push(format!("{what} {}", receipt.to_string()));
            self.found.push(format!("{what} {}", elsewhere.to_string()));
        }
    }
}
