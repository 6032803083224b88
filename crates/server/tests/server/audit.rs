//! The auditor over the books of a real server: a busy shop's are right on either engine, and whatever is bent in the journal or in
//! the database is found by the rule that it breaks.

use crate::daemon::{Installation, buy, log_in, receive};
use crate::world::{World, sample};
use chipbound_auditor::{Rule, audit};
use chipbound_server::storage::Journal;
use chipbound_wire::Code;
use chipbound_wire::api::{Acknowledge, Base64, Settled};
use serde_json::{Value, json};
use std::collections::BTreeSet;

mod bent;
mod busy;

use bent::{BENT, rules};
use busy::{Busy, policy};

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
