//! The card provider's client against the simulator, each fault by its name.

use crate::world::eur;
use chipbound_server::payment::cards::{Cards, Patience};
use chipbound_server::payment::{Charge, Hold, Outcome, Provider, Standing};
use chipbound_testkit::cards::{API_KEY, CardSimulator, Fault, Operation, Status};
use chipbound_wire::payment::CardToken;
use chipbound_wire::{OrderId, Time};
use std::time::Duration;
use zeroize::Zeroizing;

const PATIENCE: Patience = Patience { answer: Duration::from_millis(400), tries: 4, pause: Duration::from_millis(20) };

fn client(bank: &CardSimulator, patience: Patience) -> Cards {
    Cards::new(&bank.url(), bank.trust(), Zeroizing::new(API_KEY.to_owned()), patience).unwrap()
}

fn charge(order: u8) -> Charge {
    Charge { order: OrderId([order; 16]), amount: eur(250), attempt: 0, since: chipbound_host::now() }
}

fn visa() -> CardToken {
    "pm_card_visa".parse().unwrap()
}

async fn held(cards: &Cards, order: u8) -> Hold {
    cards.authorise(&charge(order), &visa()).await.done().unwrap()
}

/// The only payment: its state, how often and how much was taken, how much was given back.
fn only(bank: &CardSimulator) -> (Status, u32, u64, u64) {
    let payments = bank.payments();
    let [payment] = payments.as_slice() else { panic!("{payments:?}") };
    (payment.status, payment.captures, payment.captured, payment.refunded)
}

const EVERY_LOST_ANSWER: [Fault; 11] = [
    Fault::Late(Duration::from_millis(500)),
    Fault::Never,
    Fault::AnswerLost,
    Fault::RequestLost,
    Fault::Unavailable,
    Fault::TooMany,
    Fault::NotJson,
    Fault::WrongAmount,
    Fault::WrongId,
    Fault::WrongCurrency,
    Fault::Endless,
];

#[tokio::test]
async fn a_price_is_held_taken_once_and_given_back_once() {
    let bank = CardSimulator::start().await;
    let cards = client(&bank, PATIENCE);
    let hold = held(&cards, 1).await;
    assert_eq!((only(&bank), cards.standing(&hold).await), ((Status::RequiresCapture, 0, 0, 0), Outcome::Done(Standing::Held)));
    for _ in 0..2 {
        assert_eq!(cards.capture(&hold).await, Outcome::Done(()));
        assert_eq!(only(&bank), (Status::Succeeded, 1, 250, 0));
    }
    assert!(matches!(cards.cancel(&hold).await, Outcome::Declined(_)), "what was taken is not released");
    for _ in 0..2 {
        assert_eq!(cards.refund(&hold).await, Outcome::Done(()));
        assert_eq!(only(&bank), (Status::Succeeded, 1, 250, 250));
    }
}

#[tokio::test]
async fn a_released_hold_is_never_taken() {
    let bank = CardSimulator::start().await;
    let cards = client(&bank, PATIENCE);
    let hold = held(&cards, 1).await;
    assert_eq!(cards.cancel(&hold).await, Outcome::Done(()));
    assert_eq!(cards.cancel(&hold).await, Outcome::Done(()));
    assert!(matches!(cards.capture(&hold).await, Outcome::Declined(_)));
    assert!(matches!(cards.refund(&hold).await, Outcome::Declined(_)));
    assert_eq!(only(&bank), (Status::Canceled, 0, 0, 0));
}

#[tokio::test]
async fn each_lost_answer_is_asked_for_again_and_nothing_happens_twice() {
    for fault in EVERY_LOST_ANSWER {
        for operation in [Operation::Create, Operation::Capture, Operation::Cancel, Operation::Refund] {
            let bank = CardSimulator::start().await;
            let cards = client(&bank, PATIENCE);
            bank.plan(operation, fault);
            let hold = held(&cards, 1).await;
            if operation == Operation::Cancel {
                assert_eq!(cards.cancel(&hold).await, Outcome::Done(()), "{fault:?}");
                assert_eq!(only(&bank), (Status::Canceled, 0, 0, 0), "{fault:?}");
                continue;
            }
            assert_eq!(cards.capture(&hold).await, Outcome::Done(()), "{fault:?} at {operation:?}");
            assert_eq!(cards.refund(&hold).await, Outcome::Done(()), "{fault:?} at {operation:?}");
            assert_eq!(only(&bank), (Status::Succeeded, 1, 250, 250), "{fault:?} at {operation:?}");
        }
    }
}

#[tokio::test]
async fn a_failure_that_the_provider_remembers_is_found_out_about() {
    let bank = CardSimulator::start().await;
    let cards = client(&bank, PATIENCE);
    bank.plan(Operation::Create, Fault::FailedBefore);
    assert!(matches!(cards.authorise(&charge(1), &visa()).await, Outcome::Declined(_)), "the list shows that nothing is held");
    assert!(bank.payments().is_empty());
    bank.plan(Operation::Create, Fault::FailedAfter);
    let hold = cards.authorise(&Charge { attempt: 1, ..charge(1) }, &visa()).await.done().unwrap();
    assert_eq!(hold.reference, bank.payments()[0].id, "the list shows what is held");
    for fault in [Fault::FailedBefore, Fault::FailedBefore] {
        bank.plan(Operation::Capture, fault);
    }
    assert_eq!(cards.capture(&hold).await, Outcome::Done(()), "under the third key");
    bank.plan(Operation::Refund, Fault::FailedBefore);
    bank.plan(Operation::Refund, Fault::FailedAfter);
    assert_eq!(cards.refund(&hold).await, Outcome::Done(()), "under the second key, as the list shows");
    assert_eq!(only(&bank), (Status::Succeeded, 1, 250, 250));
}

#[tokio::test]
async fn a_provider_that_keeps_answering_wrongly_is_never_believed() {
    for fault in [Fault::WrongAmount, Fault::WrongId, Fault::WrongCurrency, Fault::NotJson] {
        let bank = CardSimulator::start().await;
        let cards = client(&bank, PATIENCE);
        let hold = held(&cards, 1).await;
        for _ in 0..20 {
            bank.plan(Operation::Create, fault);
            bank.plan(Operation::Capture, fault);
            bank.plan(Operation::Read, fault);
        }
        assert!(matches!(cards.authorise(&charge(2), &visa()).await, Outcome::Unknown(_)), "{fault:?}");
        assert!(matches!(cards.capture(&hold).await, Outcome::Unknown(_)), "{fault:?}");
        bank.no_more_faults();
        assert_eq!(cards.capture(&hold).await, Outcome::Done(()), "{fault:?}: asked again, it is the same capture");
        assert_eq!(bank.payments().iter().map(|p| p.captures).sum::<u32>(), 1, "{fault:?}");
        assert_eq!(cards.authorise(&charge(2), &visa()).await.done().unwrap().reference, bank.payments()[1].id, "{fault:?}");
    }
}

#[tokio::test]
async fn the_same_question_is_the_same_hold_also_at_once_and_after_a_restart() {
    let bank = CardSimulator::start().await;
    let (cards, other) = (client(&bank, PATIENCE), client(&bank, PATIENCE));
    bank.plan(Operation::Create, Fault::Late(Duration::from_millis(100)));
    let (one, two) = (charge(1), charge(1));
    let method = visa();
    let (a, b) = tokio::join!(cards.authorise(&one, &method), other.authorise(&two, &method));
    assert_eq!(a, b);
    assert_eq!(held(&client(&bank, PATIENCE), 1).await, a.done().unwrap());
    assert_eq!(only(&bank), (Status::RequiresCapture, 0, 0, 0));
}

#[tokio::test]
async fn cards_that_are_declined_or_need_their_holder_hold_nothing_and_an_undecided_one_is_pending() {
    let bank = CardSimulator::start().await;
    let cards = client(&bank, PATIENCE);
    for (order, method) in [(1, "pm_card_chargeDeclined"), (2, "pm_card_authenticationRequired"), (3, "pm_unknown")] {
        let outcome = cards.authorise(&charge(order), &method.parse().unwrap()).await;
        assert!(matches!(outcome, Outcome::Declined(_)), "{method}: {outcome:?}");
    }
    let hold = match cards.authorise(&charge(4), &"pm_card_processing".parse().unwrap()).await {
        Outcome::Pending(hold) => hold,
        other => panic!("{other:?}"),
    };
    assert_eq!(cards.standing(&hold).await, Outcome::Done(Standing::Undecided));
    assert_eq!(cards.capture(&hold).await, Outcome::Pending(()));
    bank.decide(&hold.reference, Status::RequiresCapture);
    assert_eq!(cards.capture(&hold).await, Outcome::Done(()));
}

#[tokio::test]
async fn a_wrong_api_key_decides_nothing_and_a_stranger_is_no_provider() {
    let bank = CardSimulator::start().await;
    let wrong = Cards::new(&bank.url(), bank.trust(), Zeroizing::new("sk_test_wrong".to_owned()), PATIENCE).unwrap();
    assert!(matches!(wrong.authorise(&charge(1), &visa()).await, Outcome::Unknown(_)));
    let elsewhere = CardSimulator::start().await;
    let diverted = Cards::new(&elsewhere.url(), bank.trust(), Zeroizing::new(API_KEY.to_owned()), PATIENCE).unwrap();
    assert!(matches!(diverted.authorise(&charge(1), &visa()).await, Outcome::Unknown(_)));
    assert!(bank.payments().is_empty() && elsewhere.heard().is_empty(), "the key went to nobody else");
}

#[tokio::test]
async fn a_payment_whose_answer_was_lost_is_found_by_its_order_among_many() {
    let bank = CardSimulator::start().await;
    let cards = client(&bank, PATIENCE);
    let since = chipbound_host::now();
    for order in 0..150 {
        held(&cards, order).await;
    }
    let found = cards.payments_of(&Charge { since, ..charge(3) }).await.done().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].0.order, found[0].1), (OrderId([3; 16]), Standing::Held));
    let later = Charge { since: Time(since.0 + 3600), ..charge(3) };
    assert_eq!(cards.payments_of(&later).await, Outcome::Done(Vec::new()));
}

#[tokio::test]
async fn under_faults_drawn_from_seeds_every_payment_ends_and_none_is_taken_twice() {
    for seed in 1..=8 {
        let bank = CardSimulator::start().await;
        let cards = client(&bank, Patience { pause: Duration::from_millis(2), tries: 2, ..PATIENCE });
        bank.draw_faults(seed, 400);
        for order in 0..10 {
            let mut charge = charge(order);
            let hold = loop {
                match cards.authorise(&charge, &visa()).await {
                    Outcome::Done(hold) => break hold,
                    Outcome::Declined(_) => charge.attempt += 1,
                    _ => {}
                }
            };
            let mut ended = false;
            for _ in 0..200 {
                let outcome = if order % 2 == 0 { cards.capture(&hold).await } else { cards.cancel(&hold).await };
                if outcome == Outcome::Done(()) {
                    ended = true;
                    break;
                }
                assert!(matches!(outcome, Outcome::Unknown(_)), "seed {seed}: {outcome:?}");
            }
            assert!(ended, "seed {seed}: order {order} does not end");
            let payment = bank.payments().into_iter().find(|p| p.id == hold.reference).unwrap();
            let expected = if order % 2 == 0 { (Status::Succeeded, 1, 250) } else { (Status::Canceled, 0, 0) };
            assert_eq!((payment.status, payment.captures, payment.captured), expected, "seed {seed}");
        }
        let taken: u32 = bank.payments().iter().map(|p| p.captures).sum();
        assert_eq!(taken, 5, "seed {seed}: one for each captured order, none for a hold that was lost");
    }
}
