//! Orders, holds, tickets, settlement.

use super::fixture::{BUYER, Fixture, NOW, OTHER, code, settlement};
use crate::storage::{Accounts, Deliveries, MakeReceipt, NewTicket, Orders, Settlement, Settling};
use chipbound_wire::api::OrderState;
use chipbound_wire::{Code, Digest, OrderId, Refusal};
use std::sync::Arc;

pub(super) async fn an_order_is_held_once_and_captured_once(books: Fixture) {
    books.delivered(1).await;
    assert_eq!(books.money().await, (750, 250));
    assert_eq!(books.agree(1).await.expect("agreed again").state, OrderState::Delivering);
    assert_eq!(books.money().await, (750, 250));
    let first = books.settle(1, 1, b"token").await.expect("settled");
    let again = books.settle(1, 1, b"another token").await.expect("settled again");
    assert_eq!(first, again, "repeats return the same bytes");
    assert_eq!(books.money().await, (750, 0));
    assert_eq!(books.receipts(BUYER).await, [first.receipt]);
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
        ("the number", "BEFORE INSERT ON sellers", "1 = 1"),
        ("the entry in the log", "BEFORE INSERT ON log_nodes", "1 = 1"),
        ("the checkpoint", "BEFORE INSERT ON log_checkpoints", "1 = 1"),
        ("the log's head", "BEFORE UPDATE ON log_head", "1 = 1"),
        ("after the log's head", "AFTER UPDATE ON log_head", "1 = 1"),
        ("the release", "BEFORE UPDATE ON orders", "NEW.state = 'released'"),
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
    books.delivered(1).await;
    let fails: MakeReceipt = Arc::new(|_| Err(Refusal::new(Code::Internal, "the key store is gone")));
    let settling = Settling { settlement: settlement(1, 1), receipt: fails };
    assert_eq!(code(books.repository.settle(vec![settling]).await), Code::Internal);
    assert_eq!(books.money().await, (750, 250));
    books.audit().await;
}

pub(super) async fn a_transaction_that_panics_changes_nothing_and_holds_nobody_up(books: Fixture) {
    books.delivered(1).await;
    let settling = Settling { settlement: settlement(1, 1), receipt: Arc::new(|_| panic!("a fault of ours")) };
    assert_eq!(code(books.repository.settle(vec![settling]).await), Code::Internal);
    assert_eq!(books.money().await, (750, 250));
    books.settle(1, 1, b"token").await.expect("settled after all");
    books.audit().await;
}

pub(super) async fn a_settlement_needs_a_hold_the_owner_and_a_seal_of_this_order(books: Fixture) {
    books.place(1, "k", b"p").await.expect("an order");
    assert_eq!(code(books.redeem(1, NOW).await), Code::OrderState, "not agreed to");
    assert_eq!(code(books.seal(1, 1).await), Code::OrderState, "not agreed to");
    books.delivered(2).await;
    books.delivered(3).await;
    assert_eq!(code(books.settle(2, 3, b"t").await), Code::AcknowledgementMismatch, "a seal of another order");
    let foreign = Settlement { account: OTHER, ..settlement(2, 2) };
    assert_eq!(code(books.settle_as(foreign).await), Code::UnknownOrder);
    books.audit().await;
}

pub(super) async fn an_order_that_runs_out_gives_the_money_back(books: Fixture) {
    books.delivered(1).await;
    books.place(2, "other", b"p").await.expect("an order");
    assert_eq!(books.repository.expire(NOW.after(100)).await.expect("expiry"), 0, "not yet");
    assert_eq!(books.repository.expire(NOW.after(101)).await.expect("expiry"), 2);
    assert_eq!(books.repository.expire(NOW.after(101)).await.expect("expiry"), 0, "once");
    assert_eq!(books.money().await, (1000, 0));
    assert_eq!(code(books.agree(2).await), Code::OrderExpired);
    assert_eq!(code(books.redeem(1, NOW.after(101)).await), Code::OrderExpired);
    assert_eq!(code(books.seal(1, 7).await), Code::OrderExpired, "no seal leaves for an order that ran out meanwhile");
    books.audit().await;
}

pub(super) async fn a_late_acknowledgement_is_held_once_more_or_refused_by_name(books: Fixture) {
    for number in 1..=3 {
        books.delivered(number).await;
    }
    let late = |number: u8, after: u64| Settlement { at: NOW.after(after), ..settlement(number, number) };
    books.settle_as(late(1, 101)).await.expect("its hold was not given back yet");
    assert_eq!(books.repository.expire(NOW.after(101)).await.expect("expiry"), 2);
    assert_eq!(books.money().await, (750, 0));
    books.settle_as(late(2, 200)).await.expect("held once more");
    assert_eq!(books.money().await, (500, 0));
    assert_eq!(code(books.settle_as(late(3, 201)).await), Code::OrderExpired, "more than one term late");
    books.repository.payout("ann", super::fixture::eur(400), "", "p", NOW).await.expect("paid out");
    let refusal = books.settle_as(late(3, 150)).await.expect_err("there is not enough");
    assert_eq!(refusal.code, Code::OrderExpired);
    assert!(refusal.detail.contains("the balance 1.00 EUR"), "{}", refusal.detail);
    assert_eq!(books.state(3).await, OrderState::Expired);
    books.audit().await;
}

pub(super) async fn what_was_not_sealed_is_cancelled_and_what_was_is_not(books: Fixture) {
    for number in 1..=4 {
        books.place(number, &format!("{number}"), b"p").await.expect("an order");
    }
    for number in 2..=4 {
        books.agree(number).await.expect("a hold");
    }
    books.redeem(3, NOW).await.expect("a second path");
    books.deliver(4, 4).await;
    let cancel = |number: u8| books.repository.cancel(BUYER, OrderId([number; 16]), NOW);
    for number in 1..=3 {
        assert_eq!(cancel(number).await.expect("cancelled").state, OrderState::Cancelled);
        assert_eq!(cancel(number).await.expect("cancelled before").state, OrderState::Cancelled);
        assert_eq!(code(books.agree(number).await), Code::OrderCancelled);
        assert_eq!(code(books.redeem(number, NOW).await), Code::OrderCancelled);
        assert_eq!(code(books.seal(number, number).await), Code::OrderCancelled, "no seal leaves for it any more");
    }
    assert_eq!(code(cancel(4).await), Code::OrderState, "a package was sealed");
    assert_eq!(books.money().await, (750, 250));
    assert_eq!(code(books.repository.cancel(OTHER, OrderId([4; 16]), NOW).await), Code::UnknownOrder);
    books.settle(4, 4, b"t").await.expect("settled");
    assert_eq!(code(cancel(4).await), Code::OrderState, "it is paid");
    books.audit().await;
}

pub(super) async fn a_cancel_and_a_delivery_at_once_end_in_one_of_two_ways_and_whoever_lost_hears_which(books: Fixture) {
    let books = Arc::new(books);
    books.repository_deposit(10_000).await;
    for number in 1..=16 {
        books.place(number, &format!("{number}"), b"p").await.expect("an order");
        books.agree(number).await.expect("a hold");
        books.redeem(number, NOW).await.expect("a second path");
        let (other, order) = (books.clone(), OrderId([number; 16]));
        let cancel = tokio::spawn(async move { other.repository.cancel(BUYER, order, NOW).await });
        let sealed = books.seal(number, number).await;
        match (cancel.await.expect("a task"), sealed) {
            (Ok(cancelled), Err(refused)) => {
                assert_eq!(cancelled.state, OrderState::Cancelled);
                assert_eq!((refused.code, refused.detail.contains("was cancelled")), (Code::OrderCancelled, true), "{refused}");
            }
            (Err(refused), Ok(())) => {
                assert_eq!((refused.code, refused.detail.contains("sealed")), (Code::OrderState, true), "{refused}");
                books.settle(number, number, b"t").await.expect("the delivery ends as ever");
            }
            other => panic!("both or neither: {:?} {:?}", other.0.map(|o| o.state), other.1),
        }
    }
    books.audit().await;
}

pub(super) async fn what_was_left_between_acknowledgement_and_capture_is_driven_on(books: Fixture) {
    for number in 1..=3 {
        books.delivered(number).await;
    }
    let repository = &books.repository;
    for number in [1, 2, 1] {
        let state = repository.acknowledge(&settlement(number, number)).await.expect("acknowledged").state;
        assert_eq!(state, OrderState::Acknowledged);
    }
    assert_eq!(repository.request_capture(OrderId([2; 16]), "first key").await.expect("a key"), "first key");
    assert_eq!(repository.request_capture(OrderId([2; 16]), "second key").await.expect("a key"), "first key", "that was kept");
    assert_eq!(code(repository.request_capture(OrderId([3; 16]), "key").await), Code::OrderState, "nothing was acknowledged");
    assert_eq!(repository.expire(NOW.after(101)).await.expect("expiry"), 1, "what is acknowledged does not run out");
    let opened = books.opened_again().await.expect("a restart");
    let left = opened.unsettled().await.expect("a list");
    let states: Vec<_> = left.iter().map(|l| (l.order.state, l.seal, l.acknowledgement.clone())).collect();
    let said = b"acknowledged".to_vec();
    assert_eq!(
        states,
        [(OrderState::Acknowledged, Digest::of(&[1]), said.clone()), (OrderState::CaptureRequested, Digest::of(&[2]), said)]
    );
    for number in [1, 2] {
        let late = Settlement { at: NOW.after(10_000), ..settlement(number, number) };
        books.settle_as(late).await.expect("settled, however late");
        assert_eq!(books.state(number).await, OrderState::Released);
    }
    assert!(opened.unsettled().await.expect("a list").is_empty());
    books.audit().await;
}

pub(super) async fn a_batch_settles_all_of_its_orders_or_none(books: Fixture) {
    for number in 1..=3 {
        books.delivered(number).await;
    }
    let all = [3, 1, 2, 1].map(|n| super::fixture::settling(settlement(n, n)));
    let wrong = super::fixture::settling(settlement(2, 9));
    let (first, batch) = (all[0].clone(), all.to_vec());
    assert_eq!(code(books.repository.settle([&[first, wrong][..], &batch].concat()).await), Code::AcknowledgementMismatch);
    assert_eq!(books.money().await, (250, 750), "nothing was taken");
    let settled = books.repository.settle(batch.clone()).await.expect("settled");
    for (settled, (number, order)) in settled.iter().zip([(1, 3_u8), (2, 1), (3, 2), (2, 1)]) {
        let receipt = String::from_utf8(settled.receipt.clone()).expect("text");
        assert!(receipt.starts_with(&format!("receipt {number} ")) && receipt.ends_with(&OrderId([order; 16]).to_string()), "{receipt}");
        let checkpoint = super::log::holds(settled.proof.as_ref().expect("a proof"), &settled.receipt);
        assert_eq!(checkpoint.size, 3, "all are under one checkpoint");
    }
    assert_eq!(books.repository.settle(batch).await.expect("settled again"), settled);
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

pub(super) async fn orders_placed_at_once_under_one_key_are_one(books: Fixture) {
    let books = std::sync::Arc::new(books);
    let place = |n| {
        let books = books.clone();
        tokio::spawn(async move { books.place(n, "key", b"parameters").await.expect("an order").order })
    };
    let tasks: Vec<_> = (1..=16).map(place).collect();
    let mut placed = Vec::new();
    for task in tasks {
        placed.push(task.await.expect("a task"));
    }
    placed.dedup();
    assert_eq!((placed.len(), books.scalar("SELECT count(*) FROM orders")), (1, 1));
}

pub(super) async fn a_ticket_that_is_shown_many_times_at_once_admits_one(books: Fixture) {
    let books = std::sync::Arc::new(books);
    books.place(1, "key", b"p").await.expect("an order");
    let order = books.agree(1).await.expect("held").order;
    // The first ticket of an order, and one of an order that is being delivered.
    for first in [true, false] {
        let ticket = NewTicket { ticket: Digest([first.into(); 32]), order, account: BUYER, expires_at: NOW.after(9) };
        books.repository.issue_ticket(&ticket, NOW, 4).await.expect("a ticket");
        let show = |_| {
            let books = books.clone();
            tokio::spawn(async move { books.repository.redeem_ticket(ticket.ticket, Some(BUYER), NOW).await.map_err(|r| r.code) })
        };
        let tasks: Vec<_> = (0..16).map(show).collect();
        let mut admitted = 0;
        for task in tasks {
            match task.await.expect("a task") {
                Ok(found) => admitted += i32::from(found.order == order && found.state == OrderState::Delivering),
                Err(code) => assert_eq!(code, Code::TicketInvalid),
            }
        }
        assert_eq!((admitted, books.scalar("SELECT count(*) FROM tickets")), (1, 0));
    }
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
    assert!(books.receipts(OTHER).await.is_empty());
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
    let is_there = |n, now| repository.has_ticket(Digest([n; 32]), now);
    assert!(is_there(1, NOW).await.expect("a look") && !is_there(1, NOW.after(10)).await.expect("a look"));
    assert_eq!(code(repository.redeem_ticket(Digest([1; 32]), Some(OTHER), NOW).await), Code::TicketInvalid);
    assert_eq!(repository.redeem_ticket(Digest([1; 32]), Some(BUYER), NOW).await.expect("its owner").order, order);
    assert_eq!(code(repository.redeem_ticket(Digest([1; 32]), Some(BUYER), NOW).await), Code::TicketInvalid, "a replay");
    assert!(!is_there(1, NOW).await.expect("a look"), "it was used up");
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
