//! Orders, confirmations, agreement (step 1002).

use crate::processor::Processor;
use crate::world::{World, code, eur, sample};
use chipbound_server::config::Policy;
use chipbound_server::storage::{Deliveries, Settlement, Shares};
use chipbound_testkit::postgres::Cluster;
use chipbound_wire::api::{Account, Agreement, NewOrder, Order, OrderState, Payment};
use chipbound_wire::bounded::List;
use chipbound_wire::certificate::Role;
use chipbound_wire::documents::{Acknowledgement, Confirmation, Manifest};
use chipbound_wire::signed::{read_claims, verify_document};
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Code, Digest, KeyId};

fn wanted(program: &str) -> NewOrder {
    NewOrder { program: program.to_owned(), version: None, processor: KeyId([7; 32]), key_mode: None, again: true }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmation_says_what_was_ordered_and_agreeing_holds_the_price() {
    let world = World::with(Policy { seller: "The shop".to_owned(), ..Policy::default() }).await;
    let published = world.publish("tool", &sample(10)).await;
    let ann = world.log_in("ann").await;
    let order = ann.place("key", &wanted("tool")).await.unwrap();
    let confirmation = verify_document::<Confirmation>(&order.confirmation.0, &world.pki.trust(), world.now()).unwrap();
    assert_eq!(confirmation.signer().role(), Role::ServerStatement);
    assert_eq!(confirmation.program, published.release.program);
    assert_eq!((confirmation.manifest, confirmation.processor), (published.release.manifest, KeyId([7; 32])));
    assert_eq!((confirmation.price, confirmation.order), (eur(250), order.order));
    assert!(confirmation.conditions.starts_with("The shop: "), "{}", confirmation.conditions);
    assert_eq!((order.state, ann.money().await), (OrderState::Confirmed, (1000, 0)), "nothing is taken or held yet");
    let agreed = ann.agree(&order).await.unwrap();
    assert_eq!((agreed.state, ann.money().await), (OrderState::Authorised, (750, 250)));
    assert_eq!(agreed.confirmation, order.confirmation);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_places_the_same_order_even_at_once_and_with_other_parameters_none() {
    let world = World::new().await;
    world.publish("tool", &sample(10)).await;
    let ann = world.log_in("ann").await;
    let new = wanted("tool");
    let (a, b, c) = tokio::join!(ann.place("key", &new), ann.place("key", &new), ann.place("key", &new));
    let first = a.unwrap();
    assert_eq!((&b.unwrap(), &c.unwrap()), (&first, &first));
    world.pass(5);
    assert_eq!(ann.place("key", &wanted("tool")).await.unwrap(), first, "the same bytes later on");
    assert_eq!(code(ann.place("key", &NewOrder { processor: KeyId([8; 32]), ..wanted("tool") }).await), Code::IdempotencyConflict);
    let bob = world.log_in("bob").await;
    assert_ne!(bob.place("key", &wanted("tool")).await.unwrap().order, first.order, "keys are each account's own");
    for key in ["", "with space", &"k".repeat(129)] {
        assert_eq!(code(ann.place(key, &wanted("tool")).await), Code::Malformed, "{key:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_vendor_withdrew_is_not_sold_any_more() {
    let world = World::new().await;
    let plain = sample(10);
    world.publish("tool", &plain).await;
    let (ann, vera) = (world.log_in("ann").await, world.log_in("vera").await);
    let first = NewOrder { version: Some("1.0".to_owned()), ..wanted("tool") };
    let before = ann.place("before", &first).await.unwrap();
    vera.publish(&world.vendor.sign(&world.manifest("tool", "2.0", 2, &plain)), eur(250), &plain).await.unwrap();
    ann.place("an-older-one", &first).await.expect("it was not withdrawn");
    let newest = Manifest { minimum_sequence: 2, ..world.manifest("tool", "3.0", 3, &plain) };
    vera.publish(&world.vendor.sign(&newest), eur(250), &plain).await.unwrap();
    assert_eq!(code(ann.place("after", &first).await), Code::SequenceTooOld);
    assert_eq!(ann.place("before", &first).await.unwrap(), before, "what was placed before is shown as it is");
    ann.place("second", &NewOrder { version: Some("2.0".to_owned()), ..wanted("tool") }).await.expect("it may be opened");
    ann.place("newest", &wanted("tool")).await.expect("the newest");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_or_is_not_allowed_cannot_be_ordered() {
    let world = World::new().await;
    let plain = sample(10);
    let manifest = Manifest { key_modes: List::new(vec![KeyMode::Direct]).unwrap(), ..world.manifest("tool", "1.0", 1, &plain) };
    world.log_in("vera").await.publish(&world.vendor.sign(&manifest), eur(250), &plain).await.unwrap();
    let ann = world.log_in("ann").await;
    assert_eq!(code(ann.place("1", &wanted("unknown")).await), Code::UnknownProgram);
    assert_eq!(code(ann.place("2", &NewOrder { version: Some("9".to_owned()), ..wanted("tool") }).await), Code::UnknownProgram);
    assert_eq!(code(ann.place("3", &NewOrder { key_mode: Some(KeyMode::Common), ..wanted("tool") }).await), Code::NothingInCommon);
}

#[tokio::test(flavor = "multi_thread")]
async fn agreeing_without_money_or_to_another_confirmation_is_refused() {
    let world = World::new().await;
    let plain = sample(10);
    let dear = world.vendor.sign(&world.manifest("dear", "1.0", 1, &plain));
    world.log_in("vera").await.publish(&dear, eur(1001), &plain).await.unwrap();
    let ann = world.log_in("ann").await;
    let order = ann.place("key", &wanted("dear")).await.unwrap();
    let refusal = ann.agree(&order).await.unwrap_err();
    assert_eq!(refusal.code, Code::InsufficientFunds);
    assert!(refusal.detail.contains("10.01 EUR") && refusal.detail.contains("10.00 EUR"), "{}", refusal.detail);
    let other = Agreement { confirmation: Digest::of(b"another"), payment: Payment::Prepaid };
    let path = format!("/v1/orders/{}/agreement", order.order);
    assert_eq!(code(ann.post::<Order>(&path, &other).await), Code::TermsMismatch);
    assert_eq!(ann.money().await, (1000, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_runs_out_gives_its_hold_back() {
    let world = World::new().await;
    world.publish("tool", &sample(10)).await;
    let processor = Processor::new(&world.pki);
    let ann = world.log_in("ann").await;
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    let delivered = ann.receive(&order, &processor).await.unwrap();
    world.pass(24 * 3600 + 1);
    let ann = world.log_in("ann").await;
    let shown: Order = ann.get(&format!("/v1/orders/{}", order.order)).await.unwrap();
    assert_eq!(shown.state, OrderState::Expired, "also before the hold is given back");
    assert_eq!(ann.money().await, (750, 250));
    assert_eq!(world.server.expire().await.unwrap(), 1);
    assert_eq!(ann.money().await, (1000, 0));
    assert_eq!(code(ann.ticket(order.order).await), Code::OrderExpired);
    assert_eq!(code(ann.agree(&order).await), Code::OrderExpired);
    assert_eq!(ann.money().await, (1000, 0));
    let settled = ann.acknowledge(order.order, &delivered.acknowledgement).await.unwrap();
    assert_eq!(ann.money().await, (750, 0), "it was received whole after all: held once more, and taken");
    assert!(processor.opens(&delivered, &settled.token.0, world.now()).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_ran_out_long_ago_is_money_and_no_program() {
    let world = World::new().await;
    world.publish("tool", &sample(10)).await;
    let processor = Processor::new(&world.pki);
    let ann = world.log_in("ann").await;
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    let delivered = ann.receive(&order, &processor).await.unwrap();
    world.pass(2 * 24 * 3600 + 1);
    let ann = world.log_in("ann").await;
    world.server.expire().await.unwrap();
    assert_eq!(code(ann.acknowledge(order.order, &delivered.acknowledgement).await), Code::OrderExpired);
    assert_eq!(ann.money().await, (1000, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_cancelled_by_its_owner_until_something_is_sealed() {
    let world = World::new().await;
    world.publish("tool", &sample(10)).await;
    let processor = Processor::new(&world.pki);
    let ann = world.log_in("ann").await;
    let cancel = async |order: &Order| ann.post::<Order>(&format!("/v1/orders/{}/cancellation", order.order), &()).await;
    let given_up = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    assert_eq!(cancel(&given_up).await.unwrap().state, OrderState::Cancelled);
    assert_eq!(cancel(&given_up).await.unwrap().state, OrderState::Cancelled, "and again");
    assert_eq!(ann.money().await, (1000, 0));
    assert_eq!(code(ann.ticket(given_up.order).await), Code::OrderCancelled);
    let sealed = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    ann.receive(&sealed, &processor).await.unwrap();
    assert_eq!(code(cancel(&sealed).await), Code::OrderState);
    assert_eq!(ann.money().await, (750, 250));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_postgresql_sells_delivers_and_settles_and_its_restart_drives_on_what_was_left() {
    let world = World::on_postgres().await;
    world.publish("tool", &sample(1000)).await;
    let processor = Processor::new(&world.pki);
    let ann = world.log_in("ann").await;
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    let delivered = ann.receive(&order, &processor).await.unwrap();
    let claims: Acknowledgement = read_claims(&delivered.acknowledgement).unwrap();
    let settlement = Settlement {
        order: order.order,
        account: ann.get::<Account>("/v1/account").await.unwrap().account,
        seal: claims.seal,
        acknowledgement: delivered.acknowledgement.clone(),
        token: Vec::new(),
        shares: Shares::default(),
        at: world.now(),
        log: world.keys.get().log.clone(),
    };
    world.repository.acknowledge(&settlement).await.unwrap();
    world.repository.request_capture(order.order, &settlement.capture_key()).await.unwrap();
    assert_eq!(ann.money().await, (750, 250), "nothing is taken yet");
    assert_eq!(world.server.recover().await.unwrap(), 1);
    assert_eq!(ann.money().await, (750, 0));
    let settled = ann.acknowledge(order.order, &delivered.acknowledgement).await.unwrap();
    assert!(processor.opens(&delivered, &settled.token.0, world.now()).unwrap());
    assert_eq!(ann.money().await, (750, 0), "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_its_database_is_away_a_server_says_so_and_goes_on_when_it_is_back() {
    let cluster = Cluster::start(false);
    let world = World::on(&cluster, Policy::default()).await;
    world.publish("tool", &sample(1000)).await;
    let processor = Processor::new(&world.pki);
    let ann = world.log_in("ann").await;
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    let delivered = ann.receive(&order, &processor).await.unwrap();
    cluster.go_away();
    for _ in 0..2 {
        let refusal = ann.acknowledge(order.order, &delivered.acknowledgement).await.unwrap_err();
        assert_eq!((refusal.code, refusal.code.status()), (Code::DatabaseUnavailable, 503), "{refusal}");
        assert_eq!(code(ann.get::<Account>("/v1/account").await), Code::DatabaseUnavailable);
    }
    cluster.come_back();
    let settled = ann.acknowledge(order.order, &delivered.acknowledgement).await.unwrap();
    assert!(processor.opens(&delivered, &settled.token.0, world.now()).unwrap());
    assert_eq!(ann.money().await, (750, 0), "once");
}
