//! Databases of earlier versions are brought to this form with everything that is in them.

use super::fixture::{BUYER, Fixture, NOW, OTHER, Place, settlement};
use crate::storage::{Accounts, Books, Log, Orders};
use chipbound_testkit::postgres::Cluster;
use chipbound_wire::OrderId;
use chipbound_wire::api::OrderState::*;
use sqlx::Connection;

/// What the version before the whole state machine wrote: an order in each of its states (the third is delivered, the fourth paid), and
/// one more account that paid with the second receipt. `#07*16#` is sixteen bytes 7.
const ROWS: &str = "
    INSERT INTO accounts VALUES (#01*16#, 'ann', 'customer', 'x', 0), (#02*16#, 'bob', 'customer', 'x', 0), (#03*16#, 'vera', 'vendor', 'x', 0);
    INSERT INTO releases VALUES (#09*32#, 'v/tool', 'tool', '1.0', 1, #03*16#, 250, 'EUR', #01*1#, #01*1#, #09*32#, 4096, 'plain', 1);
    INSERT INTO orders (order_id, account, manifest, processor, key_mode, price, currency, state, confirmation, idempotency_key, parameters,
        issued_at, expires_at, redownload_until)
    SELECT o.id, a, #09*32#, #07*32#, 'direct', 250, 'EUR', s, o.id, s || expires, #05*32#, 1000000, expires, 2000000 FROM (
        SELECT #01*16# AS id, #01*16# AS a, 'confirmed' AS s, 1000100 AS expires
        UNION ALL SELECT #02*16#, #01*16#, 'authorised', 1000100 UNION ALL SELECT #03*16#, #01*16#, 'authorised', 1000101
        UNION ALL SELECT #04*16#, #01*16#, 'settled', 1000100 UNION ALL SELECT #05*16#, #01*16#, 'expired', 999999
        UNION ALL SELECT #06*16#, #02*16#, 'settled', 1000100) o;
    INSERT INTO deliveries (terms_digest, order_id, terms, wrap, kem, sealing_key, release_secret, content_key, seal, seal_digest, acknowledgement,
        token, created_at) VALUES
        (#13*32#, #03*16#, #01*1#, #01*1#, 'x-wing', #01*1#, #01*1#, #01*1#, #03*1#, #33*32#, NULL, NULL, 1000000),
        (#14*32#, #04*16#, #01*1#, #01*1#, 'x-wing', #01*1#, #01*1#, #01*1#, #04*1#, #34*32#, #01*1#, #02*1#, 1000000);
    INSERT INTO receipts VALUES (1, #04*16#, #01*16#, #04*9#, NULL);
    INSERT INTO receipts VALUES (2, #06*16#, #02*16#, #06*9#, 0);
    INSERT INTO log_nodes VALUES (0, 0, #0a*32#);
    INSERT INTO log_statements VALUES (#0b*32#, #0c*9#);
    INSERT INTO log_checkpoints VALUES (1, 'a checkpoint', #0b*32#);
    UPDATE log_head SET size = 1, edge = #0d*32#, statement = #0b*32#;
    INSERT INTO tickets VALUES (#21*32#, #02*16#, #01*16#, 1000050);
";

/// Entries of that version: number, kind, order, and the books between which 250 go (1000 for a deposit).
const ENTRIES: [(&str, &str, &str, &str); 10] = [
    ("deposit", "NULL", "'deposits', #01*16#", "'funds', #01*16#"),
    ("deposit", "NULL", "'deposits', #02*16#", "'funds', #02*16#"),
    ("hold", "#02*16#", "'funds', #01*16#", "'held', #01*16#"),
    ("hold", "#03*16#", "'funds', #01*16#", "'held', #01*16#"),
    ("hold", "#04*16#", "'funds', #01*16#", "'held', #01*16#"),
    ("capture", "#04*16#", "'held', #01*16#", "'revenue', #03*16#"),
    ("hold", "#05*16#", "'funds', #01*16#", "'held', #01*16#"),
    ("release", "#05*16#", "'held', #01*16#", "'funds', #01*16#"),
    ("hold", "#06*16#", "'funds', #02*16#", "'held', #02*16#"),
    ("capture", "#06*16#", "'held', #02*16#", "'revenue', #03*16#"),
];

fn rows() -> String {
    let mut all = ROWS.to_owned();
    for (n, (kind, order, from, to)) in (1..).zip(ENTRIES) {
        let minor = if kind == "deposit" { 1000 } else { 250 };
        all += &format!(
            "INSERT INTO postings (entry, book, account, currency, minor) VALUES ({n}, {from}, 'EUR', -{minor}), ({n}, {to}, 'EUR', {minor});
             INSERT INTO entries (entry, kind, order_id, at) VALUES ({n}, '{kind}', {order}, 1000000);"
        );
    }
    all
}

/// The rows in the dialect of one engine.
fn literal(rows: &str, before: &str, after: &str) -> String {
    let parts = rows.split('#').enumerate().map(|(n, part)| match part.split_once('*') {
        Some((byte, times)) if n % 2 == 1 => format!("{before}{}{after}", byte.repeat(times.parse().expect("a number"))),
        _ => part.to_owned(),
    });
    parts.collect()
}

#[tokio::test]
async fn a_sqlite_database_of_the_last_version_keeps_everything() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("server.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.expect("a database");
    sqlx::migrate!("./migrations/sqlite").run_to(10, &mut connection).await.expect("the last version's form");
    connection.close().await.expect("closed");
    let rows = literal(&rows(), "x'", "'");
    rusqlite::Connection::open(&path).expect("the database").execute_batch(&format!("BEGIN; {rows} COMMIT;")).expect("its rows");
    keeps_everything(Place::File(folder)).await;
}

#[tokio::test]
async fn a_postgres_database_of_the_last_version_keeps_everything() {
    let cluster = Cluster::shared();
    let name = cluster.create_database();
    let options: sqlx::postgres::PgConnectOptions = cluster.url(&name).parse().expect("a URL");
    let mut connection = sqlx::PgConnection::connect_with(&options).await.expect("a database");
    sqlx::migrate!("./migrations/postgres").run_to(10, &mut connection).await.expect("the last version's form");
    connection.close().await.expect("closed");
    let rows = literal(&rows(), "'\\x", "'::bytea");
    cluster.sql(&name, &format!("{rows} SELECT setval('entry_numbers', 10);")).expect("its rows");
    keeps_everything(Place::Database(name)).await;
}

async fn keeps_everything(place: Place) {
    let repository = Books::open(&place.location()).await.expect("brought to this form");
    let books = Fixture { place, repository };
    let states = [(1, Confirmed), (2, Authorised), (3, Delivering), (4, Released), (5, Expired)];
    for (number, state) in states {
        assert_eq!(books.state(number).await, state, "order {number}");
    }
    assert_eq!(books.money().await, (250, 500));
    assert_eq!(books.repository.order(BUYER, OrderId([4; 16])).await.expect("the order").receipt, Some(vec![4; 9]));
    assert_eq!(books.receipts(OTHER).await, [vec![6; 9]]);
    assert_eq!(books.repository.log_proof(OrderId([4; 16])).await.expect("a query"), None, "it is older than the log");
    let proof = books.repository.log_proof(OrderId([6; 16])).await.expect("a query").expect("it is in the log");
    assert!(proof.ends_with("a checkpoint"), "{proof}");
    books.audit().await;
    books.redeem(2, NOW).await.expect("its ticket's order goes on");
    let mut third = settlement(3, 3);
    third.seal = chipbound_wire::Digest([0x33; 32]);
    let receipt = books.settle_as(third).await.expect("settled").receipt;
    assert!(receipt.starts_with(b"receipt 1 entry-"), "the vendor's own series begins");
    assert_eq!(books.repository.expire(NOW.after(1000)).await.expect("expiry"), 2);
    assert_eq!(books.money().await, (500, 0));
    books.repository.refund(OrderId([6; 16]), "", NOW).await.expect("refunded, though it was paid before");
    assert_eq!(books.repository.balances(OTHER).await.expect("money")[0].available.minor, 1000);
    books.audit().await;
}
