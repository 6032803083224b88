//! What was bought is not charged a second time by habit.

use super::fixture::{BUYER, Fixture, NOW};
use crate::storage::{Leaving, NewOrder, NewTransfer, Orders, StoredOrder, Transfers};
use chipbound_wire::{Code, Digest, KeyId, OrderId, Refusal, Result};

const FIRST: KeyId = KeyId([7; 32]);
const SECOND: KeyId = KeyId([8; 32]);
const THIRD: KeyId = KeyId([9; 32]);

impl Fixture {
    /// Places that order, not wanting it again.
    async fn once(&self, number: u8, change: impl FnOnce(StoredOrder) -> StoredOrder) -> Result<StoredOrder> {
        let new = NewOrder {
            order: change(Self::order(number)),
            idempotency_key: format!("key {number}"),
            parameters: Digest::of(b"p"),
            again: false,
            withdrawn: false,
        };
        self.repository.place_order(&new).await
    }

    async fn once_for(&self, number: u8, processor: KeyId) -> Result<StoredOrder> {
        self.once(number, |order| StoredOrder { processor, ..order }).await
    }
}

fn refused(outcome: Result<StoredOrder>, words: &str) {
    let Refusal { code, detail, .. } = outcome.expect_err(words);
    assert!(code == Code::AlreadyBought && detail.contains(words), "{detail}");
}

pub(super) async fn what_was_bought_for_a_processor_is_ordered_again_only_by_those_who_want_it_again(books: Fixture) {
    let order = OrderId([1; 16]);
    books.delivered(1).await;
    books.once(2, |order| order).await.expect("the first is not acknowledged yet, and may come to nothing");
    books.settle(1, 1, b"token").await.expect("settled");
    refused(books.once(3, |order| order).await, &format!("with order {order} for this processor"));
    books.once(2, |order| order).await.expect("what was placed before is shown as it is");
    books.place(4, "key 4", b"p").await.expect("it is wanted again");
    books.once_for(5, SECOND).await.expect("another processor's");
    let later = NOW.after(1001);
    books.once(6, |order| StoredOrder { issued_at: later, ..order }).await.expect("the receipt buys nothing any more");

    let word =
        NewTransfer { order, account: BUYER, from: FIRST, to: SECOND, leaving: Leaving::Retired(vec![5]), transfer: vec![1], at: NOW };
    books.repository.transfer(&word).await.expect("moved");
    refused(books.once(7, |order| order).await, &format!("which was transferred to processor {SECOND}"));
    refused(books.once_for(8, SECOND).await, "which is for this processor since it was transferred");
    books.once_for(9, THIRD).await.expect("a third processor's");

    books.repository.refund(order, "it did not run", NOW).await.expect("refunded");
    books.once(10, |order| order).await.expect("its price was given back");
    books.once_for(11, SECOND).await.expect("there too");
}
