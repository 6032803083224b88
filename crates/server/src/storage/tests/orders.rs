//! Orders, holds, tickets, settlement.

use super::fixture::{BUYER, Fixture, NOW, OTHER, code, log_signer};
use crate::storage::{Deliveries, MakeReceipt, NewTicket, Orders, Settlement};
use chipbound_wire::api::OrderState;
use chipbound_wire::{Code, Digest, OrderId, Refusal};

pub(super) async fn an_order_is_held_once_and_captured_once(books: Fixture) {
    books.delivered(1).await;
    assert_eq!(books.money().await, (750, 250));
    assert_eq!(books.agree(1).await.expect("agreed again").state, OrderState::Authorised);
    assert_eq!(books.money().await, (750, 250));
    let first = books.settle(1, 1, b"token").await.expect("settled");
    let again = books.settle(1, 1, b"another token").await.expect("settled again");
    assert_eq!(first, again, "repeats return the same bytes");
    assert_eq!(books.money().await, (750, 0));
    assert_eq!(books.repository.receipts(BUYER).await.expect("receipts"), [first.receipt]);
    books.audit().await;
}

pub(super) async fn parallel_settlements_charge_once_and_answer_alike(books: Fixture) {
    let books = std::sync::Arc::new(books);
    books.delivered(1).await;
    books.deliver(1, 9).await; // The same order delivered twice before it was settled.
    let tasks: Vec<_> = (0..16)
        .map(|i| {
            let books = books.clone();
            tokio::spawn(async move { books.settle(1, if i % 2 == 0 { 1 } else { 9 }, &[i]).await.expect("settled") })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.expect("a task"));
    }
    assert!(answers.iter().all(|a| a.receipt == answers[0].receipt));
    for half in 0..2 {
        assert!(answers.iter().skip(half).step_by(2).all(|a| a.token == answers[half].token), "one token for one delivery");
    }
    assert_eq!(books.money().await, (750, 0));
    books.audit().await;
}

pub(super) async fn a_settlement_cut_off_between_any_two_statements_changes_nothing(books: Fixture) {
    books.delivered(1).await;
    let before = books.repository.order(BUYER, OrderId([1; 16])).await.expect("the order");
    for (place, event, condition) in [
        ("the token", "BEFORE UPDATE ON deliveries", "1 = 1"),
        ("after the token", "AFTER UPDATE ON deliveries", "1 = 1"),
        ("the first posting", "BEFORE INSERT ON postings", "1 = 1"),
        ("the second posting", "BEFORE INSERT ON postings", "NEW.book = 'revenue'"),
        ("the entry", "BEFORE INSERT ON entries", "1 = 1"),
        ("after the entry", "AFTER INSERT ON entries", "1 = 1"),
        ("the receipt", "BEFORE INSERT ON receipts", "1 = 1"),
        ("after the receipt", "AFTER INSERT ON receipts", "1 = 1"),
        ("the entry in the log", "BEFORE INSERT ON log_nodes", "1 = 1"),
        ("the checkpoint", "BEFORE INSERT ON log_checkpoints", "1 = 1"),
        ("the log's head", "BEFORE UPDATE ON log_head", "1 = 1"),
        ("after the log's head", "AFTER UPDATE ON log_head", "1 = 1"),
        ("the order's state", "BEFORE UPDATE ON orders", "1 = 1"),
        ("after the order's state", "AFTER UPDATE ON orders", "1 = 1"),
    ] {
        books.cut(event, condition);
        assert_eq!(code(books.settle(1, 1, b"token").await), Code::Database, "cut at {place}");
        books.mend(event);
        assert_eq!(books.repository.order(BUYER, OrderId([1; 16])).await.expect("the order"), before, "cut at {place}");
        assert_eq!(books.money().await, (750, 250), "cut at {place}");
        assert_eq!(books.scalar("SELECT count(*) FROM deliveries WHERE token IS NOT NULL"), 0, "cut at {place}");
        assert_eq!(books.scalar("SELECT count(*) FROM log_nodes"), 0, "cut at {place}");
        books.audit().await;
    }
    let settled = books.settle(1, 1, b"token").await.expect("settled after all");
    assert!(settled.receipt.starts_with(b"receipt 1 entry-"), "number 1, for nothing was numbered before");
    books.audit().await;
}

pub(super) async fn a_receipt_that_cannot_be_signed_captures_nothing(books: Fixture) {
    let order = books.delivered(1).await;
    let settlement = Settlement {
        order,
        account: BUYER,
        seal: Digest::of(&[1]),
        acknowledgement: b"a".to_vec(),
        token: b"t".to_vec(),
        at: NOW,
        log: log_signer(),
    };
    let fails: MakeReceipt = Box::new(|_| Err(Refusal::new(Code::Internal, "the key store is gone")));
    assert_eq!(code(books.repository.settle(settlement, fails).await), Code::Internal);
    assert_eq!(books.money().await, (750, 250));
    books.audit().await;
}

pub(super) async fn a_transaction_that_panics_changes_nothing_and_holds_nobody_up(books: Fixture) {
    let order = books.delivered(1).await;
    let (acknowledgement, token) = (b"a".to_vec(), b"t".to_vec());
    let settlement = Settlement { order, account: BUYER, seal: Digest::of(&[1]), acknowledgement, token, at: NOW, log: log_signer() };
    assert_eq!(code(books.repository.settle(settlement, Box::new(|_| panic!("a fault of ours"))).await), Code::Internal);
    assert_eq!(books.money().await, (750, 250));
    books.settle(1, 1, b"token").await.expect("settled after all");
    books.audit().await;
}

pub(super) async fn a_settlement_needs_a_hold_the_owner_and_a_seal_of_this_order(books: Fixture) {
    books.place(1, "k", b"p").await.expect("an order");
    books.deliver(1, 1).await;
    assert_eq!(code(books.settle(1, 1, b"t").await), Code::OrderState, "not agreed to");
    books.delivered(2).await;
    assert_eq!(code(books.settle(2, 1, b"t").await), Code::AcknowledgementMismatch, "a seal of another order");
    let foreign = Settlement {
        order: OrderId([2; 16]),
        account: OTHER,
        seal: Digest::of(&[2]),
        acknowledgement: b"a".to_vec(),
        token: b"t".to_vec(),
        at: NOW,
        log: log_signer(),
    };
    assert_eq!(code(books.repository.settle(foreign, Box::new(|_| Ok(vec![]))).await), Code::UnknownOrder);
    books.audit().await;
}

pub(super) async fn an_order_that_runs_out_gives_the_money_back_and_cannot_be_settled(books: Fixture) {
    books.delivered(1).await;
    books.place(2, "other", b"p").await.expect("an order");
    assert_eq!(books.repository.expire(NOW.after(100)).await.expect("expiry"), 0, "not yet");
    let late = Settlement {
        order: OrderId([1; 16]),
        account: BUYER,
        seal: Digest::of(&[1]),
        acknowledgement: b"a".to_vec(),
        token: b"t".to_vec(),
        at: NOW.after(101),
        log: log_signer(),
    };
    assert_eq!(code(books.repository.settle(late, Box::new(|_| Ok(vec![]))).await), Code::OrderExpired, "before the hold is given back");
    assert_eq!(books.repository.expire(NOW.after(101)).await.expect("expiry"), 2);
    assert_eq!(books.repository.expire(NOW.after(101)).await.expect("expiry"), 0, "once");
    assert_eq!(books.money().await, (1000, 0));
    assert_eq!(code(books.settle(1, 1, b"t").await), Code::OrderExpired);
    assert_eq!(code(books.agree(2).await), Code::OrderExpired);
    books.audit().await;
}

pub(super) async fn money_that_is_not_there_is_not_held(books: Fixture) {
    for number in 1..=5 {
        books.place(number, &format!("{number}"), b"p").await.expect("an order");
    }
    for number in 1..=4 {
        books.agree(number).await.expect("10 EUR pay for four");
    }
    assert_eq!(code(books.agree(5).await), Code::InsufficientFunds);
    assert_eq!(books.money().await, (0, 1000));
    books.audit().await;
}

pub(super) async fn agreeing_to_another_confirmation_holds_nothing(books: Fixture) {
    let order = books.place(1, "k", b"p").await.expect("an order").order;
    let other = books.repository.authorise(BUYER, order, Digest::of(b"another confirmation"), NOW).await;
    assert_eq!(code(other), Code::TermsMismatch);
    assert_eq!(books.money().await, (1000, 0));
}

pub(super) async fn an_idempotency_key_names_one_order(books: Fixture) {
    let first = books.place(1, "key", b"parameters").await.expect("an order");
    assert_eq!(books.place(2, "key", b"parameters").await.expect("the same"), first);
    assert_eq!(code(books.place(3, "key", b"others").await), Code::IdempotencyConflict);
    assert_eq!(books.scalar("SELECT count(*) FROM orders"), 1);
}

pub(super) async fn a_foreign_order_is_as_if_it_were_not_there(books: Fixture) {
    let order = books.delivered(1).await;
    let repository = &books.repository;
    assert_eq!(code(repository.order(OTHER, order).await), Code::UnknownOrder);
    assert_eq!(code(repository.authorise(OTHER, order, Digest::of(&[1; 10]), NOW).await), Code::UnknownOrder);
    let ticket = NewTicket { ticket: Digest([1; 32]), order, account: OTHER, expires_at: NOW.after(9) };
    assert_eq!(code(repository.issue_ticket(&ticket, NOW, 4).await), Code::UnknownOrder);
    let receipt = books.settle(1, 1, b"t").await.expect("settled").receipt;
    assert_eq!(code(repository.readmit(OTHER, order, &receipt, NOW).await), Code::UnknownOrder);
    assert!(repository.receipts(OTHER).await.expect("none").is_empty());
}

pub(super) async fn a_ticket_admits_once_in_time_and_its_owner_only(books: Fixture) {
    let order = books.delivered(1).await;
    let repository = &books.repository;
    for n in 1..=4 {
        let ticket = NewTicket { ticket: Digest([n; 32]), order, account: BUYER, expires_at: NOW.after(9) };
        repository.issue_ticket(&ticket, NOW, 4).await.expect("a ticket");
    }
    let fifth = NewTicket { ticket: Digest([5; 32]), order, account: BUYER, expires_at: NOW.after(9) };
    assert_eq!(code(repository.issue_ticket(&fifth, NOW, 4).await), Code::RateLimited);
    assert_eq!(code(repository.redeem_ticket(Digest([1; 32]), Some(OTHER), NOW).await), Code::TicketInvalid);
    assert_eq!(repository.redeem_ticket(Digest([1; 32]), Some(BUYER), NOW).await.expect("its owner").order, order);
    assert_eq!(code(repository.redeem_ticket(Digest([1; 32]), Some(BUYER), NOW).await), Code::TicketInvalid, "a replay");
    assert_eq!(repository.redeem_ticket(Digest([2; 32]), None, NOW).await.expect("a line of its own").order, order);
    assert_eq!(code(repository.redeem_ticket(Digest([3; 32]), None, NOW.after(10)).await), Code::TicketInvalid, "late");
    assert_eq!(code(repository.redeem_ticket(Digest([99; 32]), None, NOW).await), Code::TicketInvalid, "unknown");
}

pub(super) async fn a_settled_order_is_delivered_again_for_its_receipt_only(books: Fixture) {
    let order = books.delivered(1).await;
    let receipt = books.settle(1, 1, b"t").await.expect("settled").receipt;
    let repository = &books.repository;
    let ticket = |n| NewTicket { ticket: Digest([n; 32]), order, account: BUYER, expires_at: NOW.after(9) };
    assert_eq!(code(repository.issue_ticket(&ticket(1), NOW, 4).await), Code::OrderState);
    assert_eq!(code(repository.readmit(BUYER, order, b"another receipt", NOW.after(5)).await), Code::ReceiptMismatch);
    repository.readmit(BUYER, order, &receipt, NOW.after(5)).await.expect("its receipt");
    repository.issue_ticket(&ticket(1), NOW.after(5), 4).await.expect("a ticket");
    assert_eq!(code(repository.issue_ticket(&ticket(2), NOW.after(6), 4).await), Code::OrderState);
    books.deliver(1, 2).await;
    let again = books.settle(1, 2, b"second token").await.expect("acknowledged again");
    assert_eq!((again.receipt, again.token.as_slice()), (receipt, b"second token".as_slice()), "the same receipt, that delivery's token");
    assert_eq!(books.money().await, (750, 0), "no second charge");
    books.audit().await;
}
