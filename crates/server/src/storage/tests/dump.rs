//! What a backup holds of the books, and books that are made of it.

use super::fixture::{Fixture, NOW, Place, eur};
use crate::storage::dump::{Row, TABLES};
use crate::storage::sql::{Tx, all};
use crate::storage::{Accounts, Books, CommonPackage, Journal, Orders, Releases, Transfers};
use chipbound_testkit::postgres::Cluster;
use chipbound_wire::suite::Aead;
use chipbound_wire::{Code, Digest, KeyId, OrderId};
use std::collections::BTreeSet;

/// What a backup leaves out, and why it may.
const LEFT_OUT: [&str; 7] = [
    "_sqlx_migrations", // The form; its number stands in the backup's head.
    "balances",         // Made of the postings.
    "parcels",          // A delivery that was cut short begins anew.
    "sessions",         // Who logged out or was shut out since must not be logged in again.
    "tickets",          // Good for a minute.
    "tokens",           // What was withdrawn since must not be good again.
    "uploads",          // Their bytes are not there.
];

async fn rows(books: &Books) -> Vec<Row> {
    let put = |rows: &mut Vec<Row>, row| {
        rows.push(row);
        Ok(())
    };
    books.dump(Vec::new(), put).await.expect("dumped")
}

/// Empty books on the other engine.
async fn other_engine(place: &Place) -> Fixture {
    let place = match place {
        Place::Database(_) => Place::File(tempfile::tempdir().expect("a folder")),
        Place::File(_) => Place::Database(Cluster::shared().create_database()),
    };
    let repository = Books::open(&place.location()).await.expect("a database");
    Fixture { place, repository }
}

pub(super) async fn a_backup_holds_every_column_of_every_table_but_those_left_out_by_name(books: Fixture) {
    let columns = match &books.place {
        Place::File(_) => {
            "SELECT m.name AS tabled, c.name AS columned FROM sqlite_master m, pragma_table_info(m.name) c
             WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'"
        }
        Place::Database(_) => {
            "SELECT table_name::text AS tabled, column_name::text AS columned FROM information_schema.columns WHERE table_schema = 'public'"
        }
    };
    let read = move |tx: &dyn Tx| all(tx, columns, &[], |row| Ok((row.text("tabled")?, row.text("columned")?)));
    let found: BTreeSet<_> = books.repository.read(read).await.expect("columns").into_iter().collect();
    for table in LEFT_OUT {
        assert!(found.iter().any(|(name, _)| name == table), "{table} is left out, but there is none");
    }
    let found: BTreeSet<_> = found.into_iter().filter(|(table, _)| !LEFT_OUT.contains(&table.as_str())).collect();
    let column = |table: &str, name: &str| (table.to_owned(), name.trim_matches('"').to_owned());
    let held: BTreeSet<_> = TABLES.iter().flat_map(|t| t.columns.iter().map(|(name, _)| column(t.name, name))).collect();
    assert_eq!(held, found);
}

pub(super) async fn a_backup_becomes_the_same_books_on_the_other_engine_and_these_go_on(books: Fixture) {
    let package = CommonPackage {
        manifest: super::fixture::release(b"v", "tool", "1.0", 1).manifest,
        aead: Aead::Aes256Gcm,
        package_id: Digest([1; 32]),
        content_key: vec![1],
        blob: "common/x".to_owned(),
        body_root: Digest([2; 32]),
        body_size: 1,
        table_root: Digest([3; 32]),
        table_size: 1,
    };
    books.repository.keep_common_package(&package).await.expect("kept");
    books.repository_deposit(100_000).await;
    // More than a page of rows and of entries; one paid, one refunded, one that only waits.
    for number in 1..=110 {
        books.delivered(number).await;
        books.settle(number, number, b"token").await.expect("settled");
    }
    books.repository.refund(OrderId([5; 16]), "", NOW).await.expect("refunded");
    books.repository.payout("vera", eur(200), "transfer", "p1", NOW).await.expect("paid out");
    books.place(111, "waiting", b"p").await.expect("an order");
    let transfer = crate::storage::NewTransfer {
        order: OrderId([7; 16]),
        account: super::fixture::BUYER,
        from: KeyId([7; 32]),
        to: KeyId([8; 32]),
        leaving: crate::storage::Leaving::Revoked,
        transfer: vec![1],
        at: NOW,
    };
    books.repository.transfer(&transfer).await.expect("moved");

    let dumped = rows(&books.repository).await;
    let other = other_engine(&books.place).await;
    let source = dumped.clone();
    other.repository.fill(move |put| source.iter().cloned().try_for_each(&mut *put)).await.expect("filled");
    assert_eq!(rows(&other.repository).await, dumped);
    let journal = |books: Books| async move { books.journal(NOW, Vec::new()).await.expect("a journal") };
    assert!(journal(other.repository.clone()).await == journal(books.repository.clone()).await, "the journals differ");
    other.delivered(112).await;
    other.settle(112, 112, b"token").await.expect("numbers, entries and the log go on");
    other.audit().await;

    // A second time, or with a row less, nothing happens.
    let source = dumped.clone();
    let again = other.repository.fill(move |put| source.iter().cloned().try_for_each(&mut *put)).await;
    assert_eq!(again.expect_err("not empty").code, Code::Conflict);
    let half = other_engine(&books.place).await;
    let source: Vec<_> = dumped.into_iter().filter(|row| row.table != "accounts").collect();
    half.repository.fill(move |put| source.iter().cloned().try_for_each(&mut *put)).await.expect_err("refers to what is not there");
    assert!(half.repository.are_new().await.expect("asked"), "nothing of it stayed");
}
