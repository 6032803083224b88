//! Statements that are kept back and go to the database in one message.

use super::fixture::{BUYER, Fixture, NOW, Place};
use crate::storage::sql::{Tx, first, number, unreadable, values};
use crate::storage::{Accounts, Orders};
use chipbound_testkit::postgres::Cluster;
use chipbound_wire::api::OrderState;
use chipbound_wire::{Code, Digest, OrderId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const CANCEL: &str = "UPDATE orders SET state = 'cancelled' WHERE order_id = $1";

pub(super) async fn a_failure_among_changes_nobody_looks_at_undoes_all_of_them_and_is_the_one_that_is_named(books: Fixture) {
    books.place(1, "key", b"p").await.expect("an order");
    let order = OrderId([1; 16]);
    let fails = move |tx: &dyn Tx| {
        tx.put(CANCEL, values![&order])?;
        tx.put("INSERT INTO sellers (seller, receipts) VALUES ($1, -1)", values![&BUYER])?;
        tx.put("UPDATE orders SET holds = -1", &[])
    };
    let refusal = books.repository.write(fails).await.expect_err("a constraint");
    assert_eq!(refusal.code, Code::Database);
    assert!(refusal.detail.contains("receipts") && !refusal.detail.contains("holds"), "{}", refusal.detail);
    assert_eq!(books.state(1).await, OrderState::Confirmed);
    // The same where a query comes after it, whatever is made of its refusal.
    let looks_away = move |tx: &dyn Tx| {
        tx.put(CANCEL, values![&order])?;
        let failed = tx.put("INSERT INTO sellers (seller, receipts) VALUES ($1, -1)", values![&BUYER]);
        let found = failed.and_then(|()| number(tx, "SELECT count(*) AS n FROM orders", &[]));
        Err::<(), _>(found.expect_err("the failure before it"))
    };
    let refusal = books.repository.write(looks_away).await.expect_err("a constraint");
    assert!(refusal.detail.contains("receipts"), "{}", refusal.detail);
    assert_eq!(books.state(1).await, OrderState::Confirmed);
    books.repository.cancel(BUYER, order, NOW).await.expect("the connection goes on");
}

pub(super) async fn a_change_nobody_looked_at_is_seen_by_the_query_that_follows_and_gone_with_a_refusal(books: Fixture) {
    books.place(1, "key", b"p").await.expect("an order");
    let order = OrderId([1; 16]);
    let refused = move |tx: &dyn Tx| {
        tx.put(CANCEL, values![&order])?;
        let state = first(tx, "SELECT state FROM orders WHERE order_id = $1", values![&order], |row| row.text("state"))?;
        assert_eq!(state.as_deref(), Some("cancelled"));
        Err::<(), _>(unreadable())
    };
    books.repository.write(refused).await.expect_err("refused");
    assert_eq!(books.state(1).await, OrderState::Confirmed);
}

pub(super) async fn more_changes_than_are_kept_back_at_once_happen_together_or_not_at_all(books: Fixture) {
    let many = |refused: bool| {
        move |tx: &dyn Tx| {
            for n in 0..1000_u32 {
                let token = Digest::of(&n.to_be_bytes());
                tx.put("INSERT INTO sessions (token, account, expires_at) VALUES ($1, $2, 7)", values![&token, &BUYER])?;
            }
            if refused { Err(unreadable()) } else { Ok(()) }
        }
    };
    books.repository.write(many(true)).await.expect_err("refused");
    assert_eq!(books.scalar("SELECT count(*) FROM sessions"), 0);
    books.repository.write(many(false)).await.expect("done");
    assert_eq!(books.scalar("SELECT count(*) FROM sessions"), 1000);
}

pub(super) async fn a_statement_that_ends_its_transaction_does_so_with_all_before_it_or_changes_nothing(books: Fixture) {
    books.place(1, "key", b"p").await.expect("an order");
    let order = OrderId([1; 16]);
    let ends = move |holds: i64| {
        move |tx: &dyn Tx| {
            tx.put(CANCEL, values![&order])?;
            tx.execute_last("UPDATE orders SET holds = $1 WHERE order_id = $2", values![holds, &order])
        }
    };
    assert_eq!(books.repository.write(ends(-1)).await.expect_err("a constraint").code, Code::Database);
    assert_eq!((books.state(1).await, books.scalar("SELECT holds FROM orders")), (OrderState::Confirmed, 0));
    assert_eq!(books.repository.write(ends(7)).await.expect("done"), 1);
    assert_eq!((books.state(1).await, books.scalar("SELECT holds FROM orders")), (OrderState::Cancelled, 7));
    // Where it changed nothing, what follows may say why; the connection goes on.
    let says_why = move |tx: &dyn Tx| {
        let changed = tx.execute_last("UPDATE orders SET holds = 8 WHERE state = 'confirmed'", &[])?;
        Ok((changed, first(tx, "SELECT state FROM orders WHERE order_id = $1", values![&order], |row| row.text("state"))?))
    };
    for _ in 0..9 {
        assert_eq!(books.repository.write(says_why).await.expect("a reason"), (0, Some("cancelled".to_owned())));
    }
    books.place(2, "another", b"p").await.expect("another order");
}

pub(super) async fn servers_that_run_while_a_newer_version_makes_a_table_wider_go_on(books: Fixture) {
    books.delivered(1).await;
    assert_eq!(books.state(1).await, OrderState::Delivering);
    books.beside("ALTER TABLE orders ADD COLUMN of_a_newer_version INTEGER").expect("wider");
    for _ in 0..40 {
        assert_eq!(books.state(1).await, OrderState::Delivering); // By one connection or another.
    }
    books.settle(1, 1, b"token").await.expect("settled");
    assert!(books.state(1).await.is_paid());
}

pub(super) async fn nothing_is_written_outside_of_a_transaction(books: Fixture) {
    books.place(1, "key", b"p").await.expect("an order");
    let write = |books: &dyn Tx| books.execute("UPDATE orders SET state = 'cancelled'", &[]);
    assert_eq!(books.repository.read(write).await.expect_err("only a query").code, Code::Database);
    assert_eq!(books.state(1).await, OrderState::Confirmed);
}

/// Ends every connection to a database, and waits until they are gone.
fn cut(database: &str) {
    let others = format!("FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()");
    Cluster::shared().sql("postgres", &format!("SELECT pg_terminate_backend(pid, 10000) {others}")).expect("they are cut");
}

#[tokio::test]
async fn a_connection_cut_between_two_messages_of_a_transaction_leaves_nothing_and_it_is_run_again() {
    let books = Fixture::on_postgres().await;
    let Place::Database(database) = &books.place else { panic!("it is on PostgreSQL") };
    let (database, attempts) = (database.clone(), Arc::new(AtomicU32::new(0)));
    books.place(1, "key", b"p").await.expect("an order");
    let counted = attempts.clone();
    let transaction = move |tx: &dyn Tx| {
        tx.put("UPDATE orders SET holds = holds + 1", &[])?;
        let holds = number(tx, "SELECT holds AS n FROM orders", &[])?;
        if counted.fetch_add(1, Ordering::Relaxed) == 0 {
            cut(&database);
        }
        tx.put("UPDATE orders SET holds = holds + 10", &[])?;
        Ok(holds)
    };
    assert_eq!(books.repository.write(transaction).await.expect("run again"), 1, "nothing of the first attempt is there");
    assert_eq!(attempts.load(Ordering::Relaxed), 2);
    assert_eq!(books.scalar("SELECT holds FROM orders"), 11);
}

#[tokio::test]
async fn a_transaction_of_one_message_is_not_lost_on_connections_that_ended_while_nobody_used_them() {
    let books = Fixture::on_postgres().await;
    let Place::Database(database) = &books.place else { panic!("it is on PostgreSQL") };
    books.repository.open_session(BUYER, Digest([1; 32]), NOW, 9).await.expect("a session");
    for n in 2..9 {
        cut(database);
        books.repository.open_session(BUYER, Digest([n; 32]), NOW, 9).await.expect("another, on a new connection");
    }
    assert_eq!(books.scalar("SELECT count(*) FROM sessions"), 8);
}

#[tokio::test]
async fn a_transaction_whose_connection_is_cut_again_and_again_is_refused_as_a_database_that_is_away_and_changed_nothing() {
    let books = Fixture::on_postgres().await;
    let Place::Database(database) = &books.place else { panic!("it is on PostgreSQL") };
    books.place(1, "key", b"p").await.expect("an order");
    // Before its only message, and after a first one; by something that looks at its failures, or away; by one that ends it itself.
    for (asks, looks, ends) in [(false, true, false), (true, true, false), (true, false, false), (false, true, true), (true, true, true)] {
        let (database, attempts) = (database.clone(), Arc::new(AtomicU32::new(0)));
        let counted = attempts.clone();
        let refusal = books.repository.write(move |tx: &dyn Tx| {
            counted.fetch_add(1, Ordering::Relaxed);
            tx.put("UPDATE orders SET holds = holds + 1", &[])?;
            if asks {
                number(tx, "SELECT holds AS n FROM orders", &[])?;
            }
            cut(&database);
            match (asks, looks) {
                _ if ends => drop(tx.execute_last("UPDATE orders SET holds = holds + 10", &[])?),
                (true, true) => drop(number(tx, "SELECT holds AS n FROM orders", &[])?),
                (true, false) => drop(number(tx, "SELECT holds AS n FROM orders", &[])),
                _ => {}
            }
            Ok(())
        });
        assert_eq!(refusal.await.expect_err("cut each time").code, Code::DatabaseUnavailable);
        assert_eq!(attempts.load(Ordering::Relaxed), 2, "once more on a new connection");
    }
    assert_eq!(books.scalar("SELECT holds FROM orders"), 0);
}
