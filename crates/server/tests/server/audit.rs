//! The auditor over the books of a real server: a busy shop's are right on either engine, and whatever is bent in the journal or in
//! the database is found by the rule that it breaks.

use crate::daemon::{Installation, buy, log_in, receive};
use crate::processor::{Delivered, Processor};
use crate::world::{User, World, eur, sample};
use chipbound_auditor::{Report, Rule, audit};
use chipbound_server::config::{Policy, Tax};
use chipbound_server::storage::{Accounts, Deliveries, Journal, NewTransfer, Orders, Settlement, Shares, Transfers};
use chipbound_testkit::Repeatable;
use chipbound_wire::api::{Acknowledge, Base64, NewOrder, Order, Settled};
use chipbound_wire::certificate::Role;
use chipbound_wire::documents::{Acknowledgement, Confirmation, Transfer};
use chipbound_wire::random::fresh;
use chipbound_wire::signed::read_claims;
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Code, KeyId};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What becomes of an order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Placed,
    Agreed,
    Cancelled,
    Delivering,
    Expired,
    Late,
    Acknowledged,
    Requested,
    Bought,
    Again,
    Moved,
    Refunded,
}

const WAYS: [Way; 12] = [
    Way::Placed,
    Way::Agreed,
    Way::Cancelled,
    Way::Delivering,
    Way::Expired,
    Way::Late,
    Way::Acknowledged,
    Way::Requested,
    Way::Bought,
    Way::Again,
    Way::Moved,
    Way::Refunded,
];

fn policy() -> Policy {
    let tax = |name: &str, rate| Tax { name: name.to_owned(), rate };
    Policy { house_share: 1250, taxes: vec![tax("VAT", 1900), tax("city", 250)], ..Policy::default() }
}

/// A shop in which every way was gone, some by chance more often.
struct Busy {
    world: World,
    processor: Arc<Processor>,
}

impl Busy {
    async fn new(world: World) -> Self {
        let busy = Self { processor: Processor::new(&world.pki), world };
        let (world, plain) = (&busy.world, sample(100));
        world.publish("tool", &plain).await;
        let vito = world.pki.holder(Role::Vendor);
        for (name, price) in [("game", 199), ("gift", 0)] {
            let program = chipbound_wire::ProgramId::new(&vito.id(), name).unwrap();
            let manifest = chipbound_wire::documents::Manifest { program, ..world.manifest(name, "1.0", 1, &plain) };
            world.log_in("vito").await.publish(&vito.sign(&manifest), eur(price), &plain).await.unwrap();
        }
        for user in ["ann", "bob"] {
            world.repository_deposit(user, 20_000).await;
        }
        busy.walk().await;
        busy
    }

    async fn walk(&self) {
        let world = &self.world;
        let seed = u64::from_be_bytes(fresh(&mut chipbound_wire::SystemRandom));
        println!("seed {seed}");
        let mut random = Repeatable::new(seed);
        let mut pick = |most: usize| usize::from(fresh::<1>(&mut random)[0]) % most;
        // Every way once with something that costs money, and more by chance.
        let mut ways: Vec<_> = WAYS.iter().map(|way| (*way, "tool")).collect();
        ways.extend((0..12).map(|_| (WAYS[pick(WAYS.len())], ["tool", "game", "gift"][pick(3)])));
        let (timed, others): (Vec<_>, Vec<_>) = ways.into_iter().partition(|(way, _)| matches!(way, Way::Expired | Way::Late));
        let (mut late, mut number) = (Vec::new(), 0);
        for (way, program) in timed {
            let name = ["ann", "bob"][pick(2)];
            number += 1;
            let (order, delivered) = self.delivered(&world.log_in(name).await, program, number).await;
            if way == Way::Late {
                late.push((name, order, delivered));
            }
        }
        world.pass(24 * 3600 + 1);
        world.server.expire().await.unwrap();
        for (user, order, delivered) in late {
            world.log_in(user).await.acknowledge(order.order, &delivered.acknowledgement).await.unwrap();
        }
        for (way, program) in others {
            let user = world.log_in(["ann", "bob"][pick(2)]).await;
            number += 1;
            self.go(way, &user, program, number).await;
            world.pass(7);
        }
        world.repository.payout("vera", eur(100), "transfer 17", "bank 17", world.now()).await.unwrap();
        world.repository.payout("ann", eur(10), "", "bank 18", world.now()).await.unwrap();
    }

    async fn placed(&self, user: &User<'_>, program: &str, number: u32) -> Order {
        let new = NewOrder {
            program: program.to_owned(),
            version: None,
            processor: self.processor.id(),
            key_mode: Some(KeyMode::Direct),
            again: true,
        };
        user.place(&format!("key-{number}"), &new).await.unwrap()
    }

    async fn delivered(&self, user: &User<'_>, program: &str, number: u32) -> (Order, Delivered) {
        let order = self.placed(user, program, number).await;
        user.agree(&order).await.unwrap();
        let delivered = user.receive(&order, &self.processor).await.unwrap();
        (order, delivered)
    }

    async fn go(&self, way: Way, user: &User<'_>, program: &str, number: u32) {
        let (world, repository) = (&self.world, &self.world.repository);
        if matches!(way, Way::Placed | Way::Agreed | Way::Cancelled) {
            let order = self.placed(user, program, number).await;
            let confirmation: Confirmation = read_claims(&order.confirmation.0).unwrap();
            if way != Way::Placed {
                user.agree(&order).await.unwrap();
            }
            if way == Way::Cancelled {
                repository.cancel(confirmation.account, order.order, world.now()).await.unwrap();
            }
            return;
        }
        let (order, delivered) = self.delivered(user, program, number).await;
        let (id, confirmation) = (order.order, read_claims::<Confirmation>(&order.confirmation.0).unwrap());
        match way {
            Way::Delivering => return,
            Way::Acknowledged | Way::Requested => {
                repository.acknowledge(&self.settlement(&confirmation, &delivered)).await.unwrap();
                if way == Way::Requested {
                    repository.request_capture(id, "key").await.unwrap();
                }
                return;
            }
            _ => {}
        }
        let settled = user.acknowledge(id, &delivered.acknowledgement).await.unwrap();
        match way {
            Way::Again => {
                let again = user.redownload(&settled.receipt.0).await.unwrap();
                let second = user.receive(&again, &self.processor).await.unwrap();
                user.acknowledge(id, &second.acknowledgement).await.unwrap();
            }
            Way::Moved => {
                let (from, to, at) = (self.processor.id(), KeyId([9; 32]), world.now());
                let transfer = Transfer { order: id, account: confirmation.account, from, to, at };
                let transfer = world.keys.get().receipt.signer().sign(&transfer).unwrap();
                let new = NewTransfer { order: id, account: confirmation.account, from, to, retirement: None, transfer, at };
                repository.transfer(&new).await.unwrap();
            }
            Way::Refunded => drop(repository.refund(id, "it did not run", world.now()).await.unwrap()),
            _ => {}
        }
    }

    fn settlement(&self, confirmation: &Confirmation, delivered: &Delivered) -> Settlement {
        Settlement {
            order: confirmation.order,
            account: confirmation.account,
            seal: read_claims::<Acknowledgement>(&delivered.acknowledgement).unwrap().seal,
            acknowledgement: delivered.acknowledgement.clone(),
            token: b"token".to_vec(),
            shares: Shares::default(),
            at: self.world.now(),
            log: self.world.keys.get().log.clone(),
        }
    }

    async fn tampering(&self) -> Tampering<'_> {
        Tampering { world: &self.world, lines: parse(&self.world.journal().await) }
    }
}

fn parse(journal: &[u8]) -> Vec<Value> {
    journal.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(|line| serde_json::from_slice(line).unwrap()).collect()
}

/// A copy of a journal that can be bent.
#[derive(Clone)]
struct Tampering<'w> {
    world: &'w World,
    lines: Vec<Value>,
}

impl Tampering<'_> {
    /// The first line of that kind of which `is` holds.
    fn find(&mut self, kind: &str, is: impl Fn(&Value) -> bool) -> &mut Value {
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

    fn bytes(&self) -> Vec<u8> {
        let mut lines = self.lines.clone();
        let count = lines.len() - 1;
        *lines.last_mut().unwrap() = json!({ "end": count });
        lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect()
    }

    fn report(&self) -> Report {
        audit(self.bytes().as_slice(), &self.world.pki.trust()).unwrap()
    }
}

fn rules(report: &Report) -> BTreeSet<Rule> {
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

type Bend = fn(&mut Tampering<'_>);

/// For each rule something that breaks it, and it alone.
const BENT: &[(Rule, &str, Bend)] = &[
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

async fn every_way_leaves_books_without_a_finding(world: World) {
    let busy = Busy::new(world).await;
    let totals = busy.world.audit().await.totals;
    let states: BTreeSet<_> = totals.orders.keys().copied().collect();
    let expected =
        ["acknowledged", "authorised", "cancelled", "capture-requested", "confirmed", "delivering", "expired", "refunded", "released"];
    assert_eq!(states, BTreeSet::from(expected));
    assert!(totals.receipts >= 5 && totals.logged == totals.receipts, "{totals:?}");
    let money = totals.money.values().next().unwrap();
    assert_eq!((money.deposited, money.paid_out), (42_000, 110));
    assert!(money.held > 0 && money.captured > money.refunded, "{money:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_shop_on_sqlite_is_audited_without_a_finding() {
    every_way_leaves_books_without_a_finding(World::with(policy()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_shop_on_postgres_is_audited_without_a_finding() {
    every_way_leaves_books_without_a_finding(World::on_postgres_with(policy()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_bent_in_a_journal_is_found_by_the_rule_that_it_breaks() {
    let busy = Busy::new(World::with(policy()).await).await;
    let clean = busy.tampering().await;
    assert_eq!(clean.report().text(), busy.world.audit().await.text());
    for (rule, what, bend) in BENT {
        let mut bent = clean.clone();
        bend(&mut bent);
        let report = bent.report();
        assert_eq!(rules(&report), BTreeSet::from([*rule]), "{what}:\n{}", report.text());
        assert!(report.text().contains(rule.advice()), "{what}");
    }
    // Books of before the rates were kept.
    let mut before = clean.clone();
    before.find("journal", |_| true)["version"] = json!(1);
    for entry in before.lines.iter_mut().filter_map(|line| line.get_mut("entry")?.as_object_mut()) {
        entry.remove("shares");
    }
    assert_eq!(before.report().text(), clean.report().text());
    let broken: BTreeSet<_> = BENT.iter().map(|(rule, _, _)| *rule).collect();
    assert_eq!(broken, Rule::ALL.iter().copied().collect(), "each rule is broken once");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_bent_in_the_database_past_its_triggers_is_found() {
    let busy = Busy::new(World::with(policy()).await).await;
    let file = busy.world.folder.path().join("server.db");
    for (bend, expected) in [
        ("UPDATE balances SET minor = minor + 1 WHERE book = 'held'", vec![Rule::BalanceDerived]),
        ("UPDATE orders SET state = 'released' WHERE state = 'refunded'", vec![Rule::OrderState]),
        (
            "DROP TRIGGER postings_stay; UPDATE postings SET minor = minor + 1 WHERE book = 'revenue' AND entry = \
             (SELECT max(entry) FROM entries JOIN orders USING (order_id) WHERE kind = 'capture' AND state = 'released')",
            vec![Rule::EntrySum, Rule::BalanceDerived],
        ),
        (
            "DROP TRIGGER receipts_are_kept; DELETE FROM receipts WHERE log_index = (SELECT max(log_index) FROM receipts)",
            vec![Rule::ReceiptOfCapture, Rule::ReceiptNumber, Rule::LogEntry],
        ),
        ("DROP TRIGGER entries_are_kept; DELETE FROM entries WHERE kind = 'refund'", vec![Rule::EntryKnown, Rule::OrderState]),
        (
            "DROP TRIGGER log_nodes_stay; UPDATE log_nodes SET value = randomblob(32) WHERE position = 0",
            vec![Rule::LogEntry, Rule::LogTree, Rule::LogCheckpoint],
        ),
    ] {
        let copy = tempfile::tempdir().unwrap();
        let bent = copy.path().join("server.db");
        let original = rusqlite::Connection::open(&file).unwrap();
        original.execute("VACUUM INTO $1", [bent.to_str().unwrap()]).unwrap();
        rusqlite::Connection::open(&bent).unwrap().execute_batch(&format!("PRAGMA foreign_keys = OFF; {bend}")).unwrap();
        let books = chipbound_server::storage::Books::open_file(&bent).await.unwrap();
        let journal = books.journal(busy.world.now(), Vec::new()).await.unwrap();
        let report = audit(journal.as_slice(), &busy.world.pki.trust()).unwrap();
        assert_eq!(rules(&report), BTreeSet::from_iter(expected), "{bend}:\n{}", report.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_whole_journal_is_refused_with_its_line() {
    let world = World::new().await;
    let journal = world.journal().await;
    let refused = |bytes: &[u8]| audit(bytes, &world.pki.trust()).expect_err("refused");
    let lines: Vec<_> = journal.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    let mut swapped = lines.clone();
    swapped.swap(1, lines.len() - 2);
    let mut without = lines.clone();
    without.remove(1);
    let long = [lines[0].clone(), vec![b'x'; 200_000]].concat();
    for (what, bytes, expected) in [
        ("nothing", Vec::new(), Code::Malformed),
        ("cut off at a line's end", lines[..lines.len() - 1].concat(), Code::Malformed),
        ("cut off within a line", journal[..journal.len() - 3].to_vec(), Code::Malformed),
        ("a line less", without.concat(), Code::Malformed),
        ("another order", swapped.concat(), Code::Malformed),
        ("more after the end", [journal.clone(), lines[1].clone()].concat(), Code::Malformed),
        ("a field that nobody knows", journal.clone().into_iter().chain(b"{}".to_vec()).collect(), Code::Malformed),
        ("a line without end", long, Code::TooLarge),
    ] {
        let refusal = refused(&bytes);
        assert_eq!(refusal.code, expected, "{what}: {refusal}");
        assert!(refusal.detail.contains("line "), "{what}: {refusal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auditor_reads_the_journal_over_the_first_path_while_the_shop_goes_on() {
    for world in [World::with(policy()).await, World::on_postgres_with(policy()).await] {
        let busy = Busy::new(world).await;
        let (world, otto, bob) = (&busy.world, busy.world.log_in("otto").await, busy.world.log_in("bob").await);
        let read = async || world.client.get_bytes("/v1/journal", Some(&otto.token), 1 << 24).await;
        let (bought, journal) = tokio::join!(busy.delivered(&bob, "tool", 1000), read());
        let journal = journal.unwrap();
        let report = audit(&journal[..], &world.pki.trust()).unwrap();
        assert!(report.is_clean(), "{}", report.text());
        drop(bought);
        assert_eq!(read().await.unwrap(), world.journal().await);
    }
}

/// Runs a verb: its exit code, standard output and standard error.
fn verb(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_chipbound-server")).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_audits_a_running_server_or_its_journal_elsewhere_and_is_told_what_is_wrong() {
    let installation = Installation::new().await;
    let daemon = installation.start().await;
    let client = installation.client(&daemon);
    installation.publish(&client, &sample(1000)).await;
    let (ann, processor) = (log_in(&client, "ann").await, installation.processor().await);
    let order = buy(&client, &ann, processor.id(), None).await;
    let acknowledgement = Base64(receive(&client, &ann, &order, &processor).await.unwrap());
    let path = format!("/v1/orders/{}/acknowledgement", order.order);
    client.post_json::<_, Settled>(&path, Some(&ann), &[], &Acknowledge { acknowledgement }).await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let config = installation.config.to_str().unwrap();
    let (code, said, _) = verb(&["audit", "--config", config]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.ends_with("1 receipts, 1 log entries, 1 checkpoints: the books are right\n"), "{said}");
    let (code, journal, _) = verb(&["journal", "--config", config]);
    assert_eq!(code, Some(0));
    for secret in ["argon2", "correct horse", "vera", ann.as_str()] {
        assert!(!journal.contains(secret), "{secret}");
    }
    let (journal, root) = (file("journal", journal.as_bytes()), file("root.der", installation.root()));
    let (code, said, _) = verb(&["audit", "--journal", &journal, "--root", &root, "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &said["clean"], &said["orders"]["released"]), (Some(0), &json!(true), &json!(1)));
    let other = file("other.der", chipbound_testkit::Pki::new(chipbound_host::now()).root());
    let (code, said, _) = verb(&["audit", "--journal", &journal, "--root", &other]);
    assert!(code == Some(70) && said.contains("receipt-signature  receipt 1 of seller"), "{code:?} {said}");

    let database = installation.config.with_file_name("server.db");
    rusqlite::Connection::open(database).unwrap().execute("UPDATE balances SET minor = minor + 7 WHERE book = 'funds'", []).unwrap();
    let (code, said, error) = verb(&["audit", "--config", config]);
    assert!(code == Some(70) && error.contains("books_inconsistent"), "{code:?} {error}");
    assert!(
        said.starts_with("balance-derived  funds of account ") && said.contains("expected  1750 EUR\n  found     1757 EUR\n"),
        "{said}"
    );
}
