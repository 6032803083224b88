//! Journals that were bent, and what breaks each rule alone.

use crate::world::World;
use chipbound_auditor::{Report, Rule, audit};
use chipbound_wire::KeyId;
use chipbound_wire::api::Base64;
use chipbound_wire::documents::Confirmation;
use chipbound_wire::signed::read_claims;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn parse(journal: &[u8]) -> Vec<Value> {
    journal.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(|line| serde_json::from_slice(line).unwrap()).collect()
}

/// A copy of a journal that can be bent.
#[derive(Clone)]
pub(super) struct Tampering<'w> {
    pub(super) world: &'w World,
    pub(super) lines: Vec<Value>,
}

impl Tampering<'_> {
    /// The first line of that kind of which `is` holds.
    pub(super) fn find(&mut self, kind: &str, is: impl Fn(&Value) -> bool) -> &mut Value {
        let found = self.lines.iter_mut().filter_map(|line| line.get_mut(kind)).find(|line| is(line));
        found.unwrap_or_else(|| panic!("no such {kind}"))
    }

    fn all(&self, kind: &str) -> Vec<&Value> {
        self.lines.iter().filter_map(|line| line.get(kind)).collect()
    }

    /// The entry of that kind for an order that is in that state and of another price than zero.
    fn entry(&mut self, kind: &str, state: &str) -> &mut Value {
        let orders: BTreeSet<_> =
            self.all("order").iter().filter(|o| o["state"] == state && o["price"] != 0).map(|o| o["order"].to_string()).collect();
        self.find("entry", |e| e["kind"] == kind && orders.contains(&e["order"].to_string()))
    }

    /// Adds a line after the others of its kind.
    fn add(&mut self, kind: &str, line: Value) {
        let last = self.lines.iter().rposition(|line| line.get(kind).is_some()).expect("there are some");
        self.lines.insert(last + 1, json!({ kind: line }));
    }

    fn add_entry(&mut self, kind: &str, order: &Value, round: u64, postings: &[(&str, &Value, i64)]) {
        let (number, at) = (self.all("entry").len() as u64 + 1000, self.world.now());
        let postings: Vec<_> = postings
            .iter()
            .map(|(book, account, minor)| json!({ "book": book, "account": account, "currency": "EUR", "minor": minor }))
            .collect();
        let entry = json!({ "entry": number, "kind": kind, "order": order, "round": round, "at": at, "note": "", "postings": postings });
        self.add("entry", entry);
        self.rebalance();
    }

    /// Makes the balances those of the postings again, so that the bent ledger alone is found.
    fn rebalance(&mut self) {
        let mut sums = BTreeMap::new();
        for posting in self.all("entry").iter().flat_map(|entry| entry["postings"].as_array().unwrap()) {
            let place = [&posting["account"], &posting["book"], &posting["currency"]].map(|v| v.as_str().unwrap().to_owned());
            *sums.entry(place).or_insert(0) += posting["minor"].as_i64().unwrap();
        }
        let first = self.lines.iter().position(|line| line.get("balance").is_some()).expect("there are balances");
        self.lines.retain(|line| line.get("balance").is_none());
        for ([account, book, currency], minor) in sums {
            self.lines.insert(first, json!({ "balance": { "account": account, "book": book, "currency": currency, "minor": minor } }));
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut lines = self.lines.clone();
        let count = lines.len() - 1;
        *lines.last_mut().unwrap() = json!({ "end": count });
        lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect()
    }

    pub(super) fn report(&self) -> Report {
        audit(self.bytes().as_slice(), &self.world.pki.trust()).unwrap()
    }
}

pub(super) fn rules(report: &Report) -> BTreeSet<Rule> {
    report.findings.iter().map(|finding| finding.rule).collect()
}

/// The posting of an entry to that book.
fn posting<'v>(entry: &'v mut Value, book: &str) -> &'v mut Value {
    entry["postings"].as_array_mut().unwrap().iter_mut().find(|p| p["book"] == book).unwrap()
}

fn shift(value: &mut Value, by: i64) {
    *value = json!(value.as_i64().unwrap() + by);
}

/// Changes the last byte of signed bytes.
fn flip(value: &mut Value) {
    let mut bytes: Base64 = serde_json::from_value(value.clone()).unwrap();
    *bytes.0.last_mut().unwrap() ^= 1;
    *value = serde_json::to_value(bytes).unwrap();
}

pub(super) type Bend = fn(&mut Tampering<'_>);

/// For each rule something that breaks it, and it alone.
pub(super) const BENT: &[(Rule, &str, Bend)] = &[
    (Rule::EntrySum, "a cent from nowhere", |t| {
        shift(&mut posting(t.find("entry", |e| e["kind"] == "deposit"), "funds")["minor"], 1);
        t.rebalance();
    }),
    (Rule::EntrySum, "an entry without postings", |t| {
        t.add_entry("deposit", &Value::Null, 0, &[]);
    }),
    (Rule::EntryShape, "a price that another customer's money pays", |t| {
        let buyer = t.entry("hold", "authorised")["postings"][0]["account"].clone();
        let other = t.find("entry", |e| e["kind"] == "deposit" && e["postings"][0]["account"] != buyer)["postings"][0]["account"].clone();
        posting(t.entry("hold", "authorised"), "funds")["account"] = other;
        t.rebalance();
    }),
    (Rule::EntryRound, "a price given back twice", |t| {
        let refund = t.entry("refund", "refunded").clone();
        t.add("entry", refund);
        t.rebalance();
    }),
    (Rule::EntryKnown, "postings without an entry", |t| {
        let account = t.find("balance", |b| b["book"] == "deposits")["account"].clone();
        let last = t.lines.iter().rposition(|line| line.get("entry").is_some()).unwrap();
        let posting = json!({ "book": "deposits", "account": account, "currency": "EUR", "minor": 0 });
        t.lines.insert(last + 1, json!({ "stray": { "entry": 77_777, "postings": [posting] } }));
    }),
    (Rule::BalanceNegative, "a payout of more than there is", |t| {
        let ann = t.find("entry", |e| e["kind"] == "payout" && e["note"] == "")["postings"][0]["account"].clone();
        t.add_entry("payout", &Value::Null, 0, &[("funds", &ann, -1_000_000), ("deposits", &ann, 1_000_000)]);
    }),
    (Rule::PayoutCovered, "a payout of more than was earned", |t| {
        let vera = t.find("entry", |e| e["note"] == "transfer 17")["postings"][0]["account"].clone();
        t.add_entry("payout", &Value::Null, 0, &[("revenue", &vera, -1_000_000), ("deposits", &vera, 1_000_000)]);
    }),
    (Rule::BalanceDerived, "a balance that was raised", |t| shift(&mut t.find("balance", |b| b["book"] == "funds")["minor"], 100)),
    (Rule::BalanceDerived, "a balance that was forgotten", |t| {
        let last = t.lines.iter().rposition(|line| line.get("balance").is_some()).unwrap();
        t.lines.remove(last);
    }),
    (Rule::RefundMirrors, "a refund that the vendor bears alone", |t| {
        let refund = t.entry("refund", "refunded");
        shift(&mut posting(refund, "fees")["minor"], 3);
        shift(&mut posting(refund, "revenue")["minor"], -3);
        t.rebalance();
    }),
    (Rule::OrderState, "a paid order that counts as refunded", |t| {
        t.find("order", |o| o["state"] == "released")["state"] = json!("refunded")
    }),
    (Rule::OrderState, "a cancelled order that counts as agreed to", |t| {
        t.find("order", |o| o["state"] == "cancelled")["state"] = json!("authorised");
    }),
    (Rule::OrderConfirmation, "another price than was agreed", |t| shift(&mut t.find("order", |o| o["state"] == "confirmed")["price"], 1)),
    (Rule::OrderConfirmation, "a confirmation that nobody signed", |t| {
        flip(&mut t.find("order", |o| o["state"] == "delivering")["confirmation"]);
    }),
    (Rule::OrderAcknowledgement, "an acknowledgement that nobody signed", |t| {
        flip(&mut t.find("order", |o| o["state"] == "released")["acknowledgement"]);
    }),
    (Rule::OrderAcknowledgement, "another order's acknowledgement", |t| {
        let other = t.find("order", |o| o["state"] == "acknowledged")["acknowledgement"].clone();
        t.find("order", |o| o["state"] == "released")["acknowledgement"] = other;
    }),
    (Rule::OrderAcknowledgement, "an acknowledgement of other terms than were sent", |t| {
        let seal = t.find("order", |o| o["state"] == "released")["seal"].clone();
        t.find("delivery", |d| d["seal"] == seal)["terms"] = json!(chipbound_wire::Digest([3; 32]));
    }),
    (Rule::OrderProcessor, "a purchase that moved by itself", |t| {
        t.find("order", |o| o["state"] == "released")["processor"] = json!(KeyId([5; 32]));
    }),
    (Rule::OrderProcessor, "a transfer that nobody signed", |t| flip(&mut t.find("transfer", |_| true)["transfer"])),
    (Rule::HoldTerm, "holds of last week", |t| shift(&mut t.find("journal", |_| true)["made_at"], 7 * 24 * 3600)),
    (Rule::HoldTerm, "a hold after its order's end", |t| shift(&mut t.entry("hold", "authorised")["at"], 2 * 24 * 3600)),
    (Rule::TokenUnpaid, "a token before the price was taken", |t| {
        let order = t.find("order", |o| o["state"] == "delivering")["order"].clone();
        let delivery = t.find("delivery", |d| d["order"] == order);
        (delivery["token"], delivery["acknowledged"]) = (json!(true), json!(true));
    }),
    (Rule::CardPayment, "a card that was charged for what the account paid", |t| {
        let order = t.find("order", |o| o["state"] == "released")["order"].clone();
        let first = t.lines.iter().position(|line| line.get("entry").is_some()).unwrap();
        t.lines.insert(first, json!({ "payment": { "order": order, "attempt": 0, "state": "captured", "reference": "pi_1" } }));
    }),
    (Rule::ReceiptOfCapture, "a price taken without a receipt", |t| {
        let hold = t.entry("hold", "capture-requested").clone();
        let (order, held) = (hold["order"].clone(), posting(&mut hold.clone(), "held").clone());
        let row = t.find("order", |o| o["order"] == order);
        row["state"] = json!("captured");
        let (seller, price) = (row["seller"].clone(), held["minor"].as_i64().unwrap());
        t.add_entry("capture", &order, 1, &[("held", &held["account"], -price), ("revenue", &seller, price)]);
        t.entry("capture", "captured")["shares"] = json!({ "house": 0, "taxes": [] });
    }),
    (Rule::ReceiptNumber, "a count beyond the receipts", |t| shift(&mut t.find("seller", |_| true)["receipts"], 1)),
    (Rule::ReceiptSignature, "a receipt that was changed after it was signed", |t| flip(&mut t.find("receipt", |_| true)["receipt"])),
    (Rule::ReceiptContent, "a receipt of another moment than its row's", |t| shift(&mut t.find("receipt", |_| true)["issued_at"], -1)),
    (Rule::ReceiptAmount, "more taken than the receipt says", |t| {
        let order = t.entry("capture", "released")["order"].clone();
        let row = t.find("order", |o| o["order"] == order);
        shift(&mut row["price"], 100);
        let confirmation: Base64 = serde_json::from_value(row["confirmation"].clone()).unwrap();
        let mut agreed: Confirmation = read_claims(&confirmation.0).unwrap();
        agreed.price.minor += 100;
        let signed = t.world.keys.get().statement.signer().sign(&agreed).unwrap();
        t.find("order", |o| o["order"] == order)["confirmation"] = serde_json::to_value(Base64(signed)).unwrap();
        let entries = t.lines.iter_mut().filter_map(|line| line.get_mut("entry")).filter(|entry| entry["order"] == order);
        for posting in entries.flat_map(|entry| entry["postings"].as_array_mut().unwrap()) {
            if ["funds", "held", "revenue"].iter().any(|book| posting["book"] == *book) {
                let sign = posting["minor"].as_i64().unwrap().signum();
                shift(&mut posting["minor"], 100 * sign);
            }
        }
        let capture = t.entry("capture", "released");
        let fees = posting(capture, "fees")["minor"].take().as_i64().unwrap();
        posting(capture, "fees")["minor"] = json!(0);
        shift(&mut posting(capture, "revenue")["minor"], fees);
        capture["shares"]["house"] = json!(0);
        t.rebalance();
    }),
    (Rule::ReceiptTax, "a cent of tax that went to the vendor", |t| {
        let capture = t.entry("capture", "released");
        shift(&mut posting(capture, "tax")["minor"], -1);
        shift(&mut posting(capture, "revenue")["minor"], 1);
        t.rebalance();
    }),
    (Rule::HouseShare, "a cent of the vendor's that went to the house", |t| {
        let capture = t.entry("capture", "released");
        shift(&mut posting(capture, "fees")["minor"], 1);
        shift(&mut posting(capture, "revenue")["minor"], -1);
        t.rebalance();
    }),
    (Rule::HouseShare, "a higher rate on record than was taken", |t| {
        shift(&mut t.entry("capture", "released")["shares"]["house"], 100);
    }),
    (Rule::HouseShare, "a capture whose rates were forgotten", |t| {
        let last = t.lines.iter().rposition(|line| line.get("entry").is_some_and(|e| e["kind"] == "capture")).unwrap();
        t.lines[last]["entry"].as_object_mut().unwrap().remove("shares");
    }),
    (Rule::ReceiptTax, "another tax on record than on the receipt", |t| {
        t.entry("capture", "released")["shares"]["taxes"][0]["name"] = json!("Toll");
    }),
    (Rule::LogEntry, "a receipt that left the log", |t| {
        let last = t.lines.iter().rposition(|line| line.get("receipt").is_some()).unwrap();
        t.lines[last]["receipt"]["log_index"] = Value::Null;
    }),
    (Rule::LogTree, "another edge", |t| flip(&mut t.find("log-head", |_| true)["edge"])),
    (Rule::LogCheckpoint, "a checkpoint that nobody signed", |t| {
        let note = t.find("checkpoint", |c| c["size"] == 2)["note"].as_str().unwrap().to_owned();
        t.find("checkpoint", |c| c["size"] == 1)["note"] = json!(note);
    }),
    (Rule::LogCheckpoint, "a checkpoint that was forgotten", |t| {
        let last = t.lines.iter().rposition(|line| line.get("checkpoint").is_some()).unwrap();
        t.lines.remove(last);
    }),
];
