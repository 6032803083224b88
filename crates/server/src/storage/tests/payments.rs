//! Payments by card, beside orders and ledger.

use super::fixture::{BUYER, Fixture, NOW, OTHER, code};
use crate::storage::{Begun, OrderPayment, Orders, PaymentState, Payments};
use chipbound_wire::api::OrderState;
use chipbound_wire::{Code, Digest, OrderId, Result};

const VISA: Digest = Digest([1; 32]);
const OTHER_CARD: Digest = Digest([2; 32]);

async fn begin(books: &Fixture, number: u8, method: Digest) -> Result<Begun> {
    books.repository.begin_payment(BUYER, OrderId([number; 16]), Digest::of(&[number; 10]), method, NOW).await
}

async fn asked(books: &Fixture, number: u8, method: Digest) -> OrderPayment {
    match begin(books, number, method).await.expect("begun") {
        Begun::Ask(payment) => payment,
        Begun::Agreed => panic!("agreed to before"),
    }
}

/// An order whose price a card holds, agreed to.
async fn held(books: &Fixture, number: u8) -> OrderPayment {
    books.place(number, &format!("key {number}"), b"p").await.expect("an order");
    let payment = asked(books, number, VISA).await;
    assert!(books.repository.payment_became(&payment, PaymentState::Held, "pi_1").await.expect("noted"));
    assert_eq!(books.agree(number).await.expect("held").state, OrderState::Authorised);
    books.repository.payment(payment.order).await.expect("read").expect("there")
}

pub(super) async fn a_card_is_asked_under_one_attempt_until_it_is_declined(books: Fixture) {
    books.place(1, "key", b"p").await.expect("an order");
    let first = asked(&books, 1, VISA).await;
    assert_eq!((first.state, first.attempt), (PaymentState::Asked, 0));
    assert_eq!(asked(&books, 1, VISA).await, first, "the same question");
    assert_eq!(code(begin(&books, 1, OTHER_CARD).await), Code::PaymentPending, "nobody knows what became of the first");
    assert_eq!(code(books.agree(1).await), Code::PaymentPending);
    let foreign = books.repository.begin_payment(OTHER, OrderId([1; 16]), Digest::of(&[1; 10]), VISA, NOW).await;
    assert_eq!(code(foreign), Code::UnknownOrder);
    assert!(books.repository.payment_became(&first, PaymentState::Declined, "").await.expect("noted"));
    assert!(!books.repository.payment_became(&first, PaymentState::Held, "pi_1").await.expect("noted"), "it is not as it was known");
    let second = asked(&books, 1, OTHER_CARD).await;
    assert_eq!((second.state, second.attempt), (PaymentState::Asked, 1));
    assert!(!books.repository.payment_became(&first, PaymentState::Held, "pi_1").await.expect("noted"), "an answer to an older question");
    assert!(books.repository.payment_became(&second, PaymentState::Declined, "").await.expect("noted"));
    books.agree(1).await.expect("her own money pays");
    assert_eq!(books.money().await, (750, 250));
    assert_eq!(begin(&books, 1, VISA).await.expect("nothing to do"), Begun::Agreed);
    books.audit().await;
}

pub(super) async fn what_a_card_holds_is_captured_only_when_it_was_taken_and_goes_back_to_the_card(books: Fixture) {
    for number in 1..=3 {
        held(&books, number).await;
    }
    assert_eq!(books.money().await, (1000, 750));
    books.deliver(1, 1).await;
    assert_eq!(code(books.settle(1, 1, b"t").await), Code::PaymentPending, "nothing is captured that was not taken");
    let payment = books.repository.payment(OrderId([1; 16])).await.expect("read").expect("there");
    assert!(books.repository.payment_became(&payment, PaymentState::Captured, "pi_1").await.expect("noted"));
    books.settle(1, 1, b"t").await.expect("settled");
    books.repository.cancel(BUYER, OrderId([2; 16]), NOW).await.expect("cancelled");
    assert_eq!(books.repository.expire(NOW.after(101)).await.expect("expiry"), 1);
    books.repository.refund(OrderId([1; 16]), "", NOW).await.expect("refunded");
    assert_eq!(books.money().await, (1000, 0), "nothing of it was the account's");
    let open = books.repository.open_payments(OrderId([0; 16])).await.expect("listed");
    let states: Vec<_> = open.iter().map(|p| p.state).collect();
    assert_eq!(states, [PaymentState::Refunding, PaymentState::Ending, PaymentState::Ending]);
    assert_eq!(books.repository.open_payments(OrderId([1; 16])).await.expect("listed").len(), 2);
    books.audit().await;
}

pub(super) async fn what_a_card_holds_for_an_order_that_came_to_nothing_is_let_go_although_nobody_agreed(books: Fixture) {
    for number in 1..=3 {
        books.place(number, &format!("key {number}"), b"p").await.expect("an order");
    }
    let [first, second, third] = [asked(&books, 1, VISA).await, asked(&books, 2, VISA).await, asked(&books, 3, VISA).await];
    assert!(books.repository.payment_became(&first, PaymentState::Held, "pi_1").await.expect("noted"));
    books.repository.cancel(BUYER, first.order, NOW).await.expect("cancelled");
    books.repository.cancel(BUYER, second.order, NOW).await.expect("cancelled");
    assert!(books.repository.payment_became(&second, PaymentState::Held, "pi_2").await.expect("noted"), "the answer came late");
    assert!(books.repository.payment_became(&third, PaymentState::Held, "pi_3").await.expect("noted"));
    assert_eq!(books.repository.expire(NOW.after(101)).await.expect("expiry"), 1);
    let open = books.repository.open_payments(OrderId([0; 16])).await.expect("listed");
    let states: Vec<_> = open.iter().map(|p| (p.order, p.state)).collect();
    assert_eq!(states, [first, second, third].map(|payment| (payment.order, PaymentState::Ending)), "the provider is asked to let go");
    assert_eq!(books.money().await, (1000, 0));
    books.audit().await;
}
