//! Orders that a card pays, on the real server against the simulated provider: each fault by its name, and at the end the provider's
//! book beside our ledger.

use crate::processor::{Delivered, Processor};
use crate::world::{User, World, code, sample};
use chipbound_server::payment::CardPayments;
use chipbound_server::payment::cards::{Cards, Patience};
use chipbound_server::payment::webhook::Webhooks;
use chipbound_server::reconcile::reconcile;
use chipbound_server::storage::Orders;
use chipbound_testkit::cards::webhooks::{post, post_signed, signature};
use chipbound_testkit::cards::{API_KEY, CardSimulator, Fault, Operation, Status, WEBHOOK_SECRET};
use chipbound_wire::api::*;
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Code, Digest, Result};
use http::StatusCode;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// One try each, so that a fault reaches the customer; [`EAGER`] asks again by itself.
const ONCE: Patience = Patience { answer: Duration::from_millis(400), tries: 1, pause: Duration::from_millis(5) };
const EAGER: Patience = Patience { tries: 3, ..ONCE };

const FAULTS: [Fault; 12] = [
    Fault::Late(Duration::from_millis(500)),
    Fault::Never,
    Fault::AnswerLost,
    Fault::RequestLost,
    Fault::Unavailable,
    Fault::FailedBefore,
    Fault::FailedAfter,
    Fault::TooMany,
    Fault::NotJson,
    Fault::WrongAmount,
    Fault::WrongId,
    Fault::Endless,
];

struct Shop {
    bank: CardSimulator,
    world: World,
    processor: Arc<Processor>,
}

impl Shop {
    async fn open(patience: Patience) -> Self {
        let bank = CardSimulator::start().await;
        let provider = Cards::new(&bank.url(), bank.trust(), Zeroizing::new(API_KEY.to_owned()), patience).unwrap();
        let webhooks = Some(Webhooks::new(&Zeroizing::new(WEBHOOK_SECRET.to_owned())));
        let world = World::with_cards(CardPayments { provider: Box::new(provider), webhooks }).await;
        world.publish("tool", &sample(1000)).await;
        let processor = Processor::new(&world.pki);
        Self { bank, world, processor }
    }

    async fn place(&self, user: &User<'_>, key: &str) -> Order {
        let new = NewOrder {
            program: "tool".to_owned(),
            version: None,
            processor: self.processor.id(),
            key_mode: Some(KeyMode::Direct),
            again: true,
        };
        user.place(key, &new).await.unwrap()
    }

    /// A delivered order that a card is to pay.
    async fn delivered(&self, user: &User<'_>, key: &str) -> (Order, Delivered) {
        let order = self.place(user, key).await;
        persist(async || pay(user, &order, "pm_card_visa").await).await;
        let delivered = user.receive(&order, &self.processor).await.unwrap();
        (order, delivered)
    }

    /// What a query of one number finds in the books.
    fn books(&self, query: &str) -> u64 {
        let books = rusqlite::Connection::open(self.world.folder.path().join("server.db")).unwrap();
        let found: i64 = books.query_row(query, [], |row| row.get(0)).unwrap();
        found.try_into().unwrap()
    }

    /// The provider's book and ours tell the same: every receipt one capture, every capture one receipt, no money in between.
    async fn audit(&self) {
        let payments = self.bank.payments();
        assert!(payments.iter().all(|p| p.captures <= 1), "a double charge: {payments:?}");
        let kept: u64 = payments.iter().map(|p| p.captured - p.refunded).sum();
        let held: u64 = payments.iter().filter(|p| p.status == Status::RequiresCapture).map(|p| p.amount).sum();
        assert_eq!(kept + held, self.books("SELECT coalesce(-sum(minor), 0) FROM balances WHERE book = 'card'"), "what the provider owes");
        let by_card = "JOIN entries USING (entry) JOIN payments USING (order_id)";
        assert_eq!(kept, self.books(&format!("SELECT coalesce(sum(minor), 0) FROM postings {by_card} WHERE book = 'revenue'")));
        let captures = payments.iter().map(|p| u64::from(p.captures)).sum::<u64>();
        assert_eq!(captures, self.books("SELECT count(*) FROM receipts JOIN payments USING (order_id)"), "a charge without a receipt");
        assert_eq!(captures, self.books("SELECT count(*) FROM payments WHERE state IN ('captured', 'refunded')"));
        self.world.audit().await;
    }
}

async fn pay(user: &User<'_>, order: &Order, token: &str) -> Result<Order> {
    let agreement = Agreement { confirmation: Digest::of(&order.confirmation.0), payment: Payment::Card(token.to_owned()) };
    user.post(&format!("/v1/orders/{}/agreement", order.order), &agreement).await
}

/// Does the same until it is not pending or declined any more, as a customer would.
async fn persist<T>(ask: impl AsyncFn() -> Result<T>) -> T {
    for _ in 0..100 {
        match ask().await {
            Ok(done) => return done,
            Err(refusal) => assert!(matches!(refusal.code, Code::PaymentPending | Code::PaymentDeclined), "{refusal}"),
        }
    }
    panic!("it never came to an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_is_charged_for_the_receipt_and_for_nothing_before() {
    let shop = Shop::open(ONCE).await;
    let ann = shop.world.log_in("ann").await;
    let (order, delivered) = shop.delivered(&ann, "key").await;
    assert_eq!(shop.bank.payments()[0].status, Status::RequiresCapture, "held, nothing taken");
    assert_eq!(ann.money().await, (1000, 250), "her own money is untouched");
    let settled = ann.acknowledge(order.order, &delivered.acknowledgement).await.unwrap();
    assert_eq!((shop.bank.payments()[0].status, shop.bank.payments()[0].captured), (Status::Succeeded, 250));
    assert_eq!(ann.acknowledge(order.order, &delivered.acknowledgement).await.unwrap(), settled, "the same bytes");
    assert!(shop.processor.opens(&delivered, &settled.token.0, shop.world.now()).unwrap());
    assert_eq!((ann.money().await, pay(&ann, &order, "pm_card_mastercard").await.unwrap().state), ((1000, 0), OrderState::Released));
    assert_eq!(shop.bank.payments().len(), 1);
    let bob = shop.world.log_in("bob").await;
    let prepaid = bob.buy("tool", shop.processor.id(), KeyMode::Direct).await;
    let delivered = bob.receive(&prepaid, &shop.processor).await.unwrap();
    bob.acknowledge(prepaid.order, &delivered.acknowledgement).await.unwrap();
    assert_eq!((bob.money().await, shop.bank.payments().len()), ((750, 0), 1), "who pays from the account asks no card");
    shop.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_becomes_of_the_question_for_a_hold_one_hold_comes_of_it() {
    let shop = Shop::open(ONCE).await;
    let ann = shop.world.log_in("ann").await;
    for (number, fault) in FAULTS.into_iter().enumerate() {
        let order = shop.place(&ann, &format!("key {number}").replace(' ', "-")).await;
        shop.bank.plan(Operation::Create, fault);
        let first = pay(&ann, &order, "pm_card_visa").await;
        if !matches!(fault, Fault::FailedAfter) {
            assert!(matches!(code(first), Code::PaymentPending | Code::PaymentDeclined), "{fault:?}: nothing is believed");
            assert_eq!(code(ann.ticket(order.order).await), Code::OrderState, "{fault:?}: nothing is delivered");
        }
        persist(async || pay(&ann, &order, "pm_card_visa").await).await;
        let held = shop.bank.payments().into_iter().filter(|p| p.order == order.order.to_string() && p.status == Status::RequiresCapture);
        assert_eq!(held.count(), 1, "{fault:?}");
    }
    shop.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_becomes_of_the_question_for_a_capture_no_token_leaves_before_the_provider_confirmed() {
    let shop = Shop::open(ONCE).await;
    let ann = shop.world.log_in("ann").await;
    for (number, fault) in FAULTS.into_iter().enumerate() {
        let (order, delivered) = shop.delivered(&ann, &format!("key-{number}")).await;
        shop.bank.plan(Operation::Capture, fault);
        shop.bank.plan(Operation::Read, Fault::Unavailable);
        assert_eq!(code(ann.acknowledge(order.order, &delivered.acknowledgement).await), Code::PaymentPending, "{fault:?}");
        let shown: Order = ann.get(&format!("/v1/orders/{}", order.order)).await.unwrap();
        assert!(shown.receipt.is_none(), "{fault:?}");
        let settled = persist(async || ann.acknowledge(order.order, &delivered.acknowledgement).await).await;
        assert!(shop.processor.opens(&delivered, &settled.token.0, shop.world.now()).unwrap(), "{fault:?}");
        assert_eq!(shop.bank.payments()[number].captures, 1, "{fault:?}");
        shop.bank.no_more_faults();
    }
    shop.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declined_card_holds_nothing_and_another_or_the_accounts_money_pays() {
    let shop = Shop::open(ONCE).await;
    let ann = shop.world.log_in("ann").await;
    let order = shop.place(&ann, "one").await;
    for token in ["pm_card_chargeDeclined", "pm_card_authenticationRequired", "pm_unknown"] {
        assert_eq!(code(pay(&ann, &order, token).await), Code::PaymentDeclined, "{token}");
    }
    assert_eq!(pay(&ann, &order, "pm_card_visa").await.unwrap().state, OrderState::Authorised);
    let other = shop.place(&ann, "two").await;
    assert_eq!(code(pay(&ann, &other, "pm_card_chargeDeclined").await), Code::PaymentDeclined);
    ann.agree(&other).await.unwrap();
    assert_eq!(ann.money().await, (750, 500), "one held by the card, one of her own");
    shop.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_clients_of_one_order_make_one_hold_and_one_capture() {
    let shop = Shop::open(EAGER).await;
    let ann = shop.world.log_in("ann").await;
    let order = shop.place(&ann, "key").await;
    shop.bank.plan(Operation::Create, Fault::Late(Duration::from_millis(60)));
    let tokens = ["pm_card_visa", "pm_card_mastercard", "pm_card_visa", "pm_card_mastercard"];
    let attempts = tokens.map(|token| pay(&ann, &order, token));
    let [a, b, c, d] = attempts;
    let outcomes = tokio::join!(a, b, c, d);
    assert!([outcomes.0, outcomes.1, outcomes.2, outcomes.3].iter().any(Result::is_ok));
    assert_eq!(shop.bank.payments().len(), 1, "the second card waits for what becomes of the first");
    assert_eq!(code_or_ok(ann.agree(&order).await), None, "agreed to by card");
    let delivered = ann.receive(&order, &shop.processor).await.unwrap();
    shop.bank.plan(Operation::Capture, Fault::Late(Duration::from_millis(60)));
    let acknowledge = || ann.acknowledge(order.order, &delivered.acknowledgement);
    let (a, b, c) = tokio::join!(acknowledge(), acknowledge(), acknowledge());
    let settled = persist(async || acknowledge().await).await;
    assert!([a, b, c].into_iter().flatten().all(|other| other == settled));
    shop.audit().await;
}

fn code_or_ok<T>(outcome: Result<T>) -> Option<Code> {
    outcome.err().map(|refusal| refusal.code)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hold_of_an_order_that_ran_out_is_given_back_also_one_whose_answer_was_lost() {
    let shop = Shop::open(ONCE).await;
    let ann = shop.world.log_in("ann").await;
    let (held, delivered) = shop.delivered(&ann, "held").await;
    let lost = shop.place(&ann, "lost").await;
    shop.bank.plan(Operation::Create, Fault::AnswerLost);
    assert_eq!(code(pay(&ann, &lost, "pm_card_visa").await), Code::PaymentPending);
    assert_eq!(shop.bank.payments().len(), 2, "it is held, and nobody here knows");
    assert_eq!(code(ann.agree(&lost).await), Code::PaymentPending, "not twice, by card and account");
    shop.world.pass(24 * 3600 + 601);
    assert_eq!(shop.world.server.look_after_payments().await.unwrap(), 0, "nothing before the orders end");
    assert_eq!(shop.world.server.expire().await.unwrap(), 2);
    shop.bank.plan(Operation::Cancel, Fault::Unavailable);
    shop.bank.plan(Operation::Read, Fault::Unavailable);
    shop.world.server.look_after_payments().await.unwrap();
    shop.world.server.look_after_payments().await.unwrap();
    assert!(shop.bank.payments().iter().all(|p| p.status == Status::Canceled), "{:?}", shop.bank.payments());
    let ann = shop.world.log_in("ann").await;
    assert_eq!(code(ann.acknowledge(held.order, &delivered.acknowledgement).await), Code::OrderExpired);
    assert_eq!(ann.money().await, (1000, 0));
    shop.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_nobody_comes_back_for_is_driven_to_its_end_and_does_not_run_out() {
    let shop = Shop::open(ONCE).await;
    let ann = shop.world.log_in("ann").await;
    let (order, delivered) = shop.delivered(&ann, "key").await;
    shop.bank.plan(Operation::Capture, Fault::AnswerLost);
    shop.bank.plan(Operation::Read, Fault::Unavailable);
    assert_eq!(code(ann.acknowledge(order.order, &delivered.acknowledgement).await), Code::PaymentPending);
    shop.world.pass(24 * 3600 + 1);
    assert_eq!(shop.world.server.expire().await.unwrap(), 0, "it may be taken already");
    assert_eq!(shop.world.server.recover().await.unwrap(), 1);
    let ann = shop.world.log_in("ann").await;
    let shown: Order = ann.get(&format!("/v1/orders/{}", order.order)).await.unwrap();
    assert_eq!(shown.state, OrderState::Released);
    let settled = ann.acknowledge(order.order, &delivered.acknowledgement).await.unwrap();
    assert!(shop.processor.opens(&delivered, &settled.token.0, shop.world.now()).unwrap(), "who paid has the program");
    shop.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_goes_back_to_the_card_and_not_to_the_account() {
    let shop = Shop::open(ONCE).await;
    let ann = shop.world.log_in("ann").await;
    let (order, delivered) = shop.delivered(&ann, "key").await;
    ann.acknowledge(order.order, &delivered.acknowledgement).await.unwrap();
    shop.world.repository.refund(order.order, "asked for", shop.world.now()).await.unwrap();
    for fault in [Fault::AnswerLost, Fault::WrongAmount] {
        shop.bank.plan(Operation::Refund, fault);
        shop.bank.plan(Operation::Read, Fault::Unavailable);
        assert_eq!(shop.world.server.look_after_payments().await.unwrap(), 0, "{fault:?}: it is asked again");
    }
    assert_eq!(shop.world.server.look_after_payments().await.unwrap(), 1);
    assert_eq!(shop.world.server.look_after_payments().await.unwrap(), 0);
    assert_eq!((shop.bank.payments()[0].refunded, ann.money().await), (250, (1000, 0)));
    assert_eq!(shop.books("SELECT count(*) FROM balances WHERE book = 'card' AND minor <> 0"), 0, "the provider owes nothing");
    shop.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hold_of_a_cancelled_order_is_given_back_to_the_card() {
    let shop = Shop::open(ONCE).await;
    let ann = shop.world.log_in("ann").await;
    let order = shop.place(&ann, "key").await;
    pay(&ann, &order, "pm_card_visa").await.unwrap();
    let cancelled: Order = ann.post(&format!("/v1/orders/{}/cancellation", order.order), &()).await.unwrap();
    assert_eq!((cancelled.state, ann.money().await), (OrderState::Cancelled, (1000, 0)));
    assert_eq!(shop.world.server.look_after_payments().await.unwrap(), 1);
    assert_eq!(shop.bank.payments()[0].status, Status::Canceled);
    shop.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_the_provider_ended_is_refused_by_name_and_releases_nothing() {
    let shop = Shop::open(ONCE).await;
    let ann = shop.world.log_in("ann").await;
    let (order, delivered) = shop.delivered(&ann, "key").await;
    shop.bank.decide(&shop.bank.payments()[0].id, Status::Canceled);
    assert_eq!(code(ann.acknowledge(order.order, &delivered.acknowledgement).await), Code::PaymentDeclined);
    assert_eq!(code(ann.acknowledge(order.order, &delivered.acknowledgement).await), Code::OrderExpired);
    assert_eq!(ann.money().await, (1000, 0));
    shop.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_repeated_late_and_out_of_order_change_nothing_and_a_forged_one_is_refused() {
    let shop = Shop::open(ONCE).await;
    let ann = shop.world.log_in("ann").await;
    let order = shop.place(&ann, "key").await;
    assert_eq!(code(pay(&ann, &order, "pm_card_processing").await), Code::PaymentPending);
    let payment = shop.bank.payments()[0].id.clone();
    let now = shop.world.now().0;
    let tell = async |event: &serde_json::Value| post(&shop.world.client, "/webhooks/cards", event, WEBHOOK_SECRET, now).await.unwrap();
    assert_eq!(tell(&shop.bank.events()[0]).await, StatusCode::NO_CONTENT, "still processing");
    shop.bank.decide(&payment, Status::RequiresCapture);
    let held = shop.bank.events()[1].clone();
    let lie = json!({ "id": "evt_lie", "type": "payment_intent.succeeded", "data": { "object": {
        "object": "payment_intent", "id": payment, "status": "succeeded", "metadata": { "order": order.order.to_string() } } } });
    assert_eq!(tell(&lie).await, StatusCode::NO_CONTENT, "signed, but what counts is what the provider answers");
    assert_eq!(shop.books("SELECT count(*) FROM payments WHERE state = 'held'"), 1, "the hint was enough to look");
    assert_eq!(pay(&ann, &order, "pm_card_processing").await.unwrap().state, OrderState::Authorised);
    let delivered = ann.receive(&order, &shop.processor).await.unwrap();
    ann.acknowledge(order.order, &delivered.acknowledgement).await.unwrap();
    let asked = shop.bank.heard().len();
    for event in [shop.bank.events().last().unwrap(), &held, &held, &shop.bank.events()[0], &lie] {
        assert_eq!(tell(event).await, StatusCode::NO_CONTENT);
    }
    assert_eq!(shop.bank.heard().len(), asked, "what has ended is asked about no more");
    let body = held.to_string().into_bytes();
    for (what, signed) in [
        ("unsigned", String::new()),
        ("forged", signature("whsec_other", now, &body)),
        ("stale", signature(WEBHOOK_SECRET, now - 301, &body)),
    ] {
        let status = post_signed(&shop.world.client, "/webhooks/cards", body.clone(), &signed).await.unwrap();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{what}");
    }
    let long = vec![b'x'; 64 * 1024 + 1];
    let status = post_signed(&shop.world.client, "/webhooks/cards", long.clone(), &signature(WEBHOOK_SECRET, now, &long)).await.unwrap();
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    shop.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reconciling_lists_what_stands_otherwise_at_the_provider_and_changes_nothing() {
    let shop = Shop::open(ONCE).await;
    let ann = shop.world.log_in("ann").await;
    let (_, (order, _)) = (shop.delivered(&ann, "one").await, shop.delivered(&ann, "two").await);
    let provider = Cards::new(&shop.bank.url(), shop.bank.trust(), Zeroizing::new(API_KEY.to_owned()), ONCE).unwrap();
    let right = reconcile(&shop.world.repository, &provider).await.unwrap();
    assert_eq!((right.compared, right.differences.len()), (2, 0));
    let of_two = shop.bank.payments().into_iter().find(|p| p.order == order.order.to_string()).unwrap();
    shop.bank.decide(&of_two.id, Status::Canceled);
    let wrong = reconcile(&shop.world.repository, &provider).await.unwrap();
    assert_eq!((wrong.compared, wrong.differences.len()), (2, 1));
    assert_eq!((wrong.differences[0].ours.order, wrong.differences[0].theirs.as_str()), (order.order, "ended"));
    assert_eq!(shop.books("SELECT count(*) FROM payments WHERE state = 'held'"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_a_card_is_refused_in_every_field_and_lies_nowhere() {
    let shop = Shop::open(ONCE).await;
    let ann = shop.world.log_in("ann").await;
    let number = "4242424242424242";
    let new = NewOrder { program: "tool".to_owned(), version: None, processor: shop.processor.id(), key_mode: None, again: false };
    assert_eq!(code(ann.place(number, &new).await), Code::CardNumber);
    assert_eq!(code(ann.place("1", &NewOrder { program: number.to_owned(), ..new.clone() }).await), Code::CardNumber);
    assert_eq!(code(ann.place("2", &NewOrder { version: Some(format!("1 {number}")), ..new.clone() }).await), Code::CardNumber);
    let order = shop.place(&ann, "3").await;
    for token in [number, "pm_4242424242424242", "4242-4242-4242-4242"] {
        let refusal = pay(&ann, &order, token).await.unwrap_err();
        assert_eq!(refusal.code, Code::CardNumber);
        assert!(!refusal.detail.contains("4242"), "{}", refusal.detail);
    }
    pay(&ann, &order, "pm_card_visa").await.unwrap();
    assert!(shop.bank.heard().iter().all(|field| !field.contains("4242")), "nor is it handed on");
    for name in ["server.db", "server.db-wal"] {
        let bytes = std::fs::read(shop.world.folder.path().join(name)).unwrap();
        for kept in ["4242424242424242", "pm_card_visa"] {
            assert!(!bytes.windows(kept.len()).any(|w| w == kept.as_bytes()), "{kept} in {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_provider_takes_no_cards_and_no_events() {
    let world = World::new().await;
    world.publish("tool", &sample(10)).await;
    let ann = world.log_in("ann").await;
    let new =
        NewOrder { program: "tool".to_owned(), version: None, processor: Processor::new(&world.pki).id(), key_mode: None, again: false };
    let order = ann.place("key", &new).await.unwrap();
    assert_eq!(code(pay(&ann, &order, "pm_card_visa").await), Code::NotSupported);
    let status = post(&world.client, "/webhooks/cards", &json!({}), WEBHOOK_SECRET, world.now().0).await.unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_faults_drawn_from_seeds_both_books_agree_at_the_end() {
    for seed in 1..=4 {
        let shop = Shop::open(Patience { tries: 2, ..ONCE }).await;
        let ann = shop.world.log_in("ann").await;
        shop.bank.draw_faults(seed, 300);
        for number in 0..5 {
            let (order, delivered) = shop.delivered(&ann, &format!("key-{number}")).await;
            if number != 4 {
                persist(async || ann.acknowledge(order.order, &delivered.acknowledgement).await).await;
            }
            shop.world.server.look_after_payments().await.unwrap();
        }
        shop.bank.no_more_faults();
        shop.world.pass(24 * 3600 + 601);
        shop.world.server.expire().await.unwrap();
        shop.world.server.look_after_payments().await.unwrap();
        let payments = shop.bank.payments();
        assert_eq!(payments.iter().filter(|p| p.status == Status::Succeeded).count(), 4, "seed {seed}: {payments:?}");
        assert!(payments.iter().all(|p| p.status != Status::RequiresCapture), "seed {seed}: {payments:?}");
        shop.audit().await;
    }
}
