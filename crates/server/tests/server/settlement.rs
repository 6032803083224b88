//! Acknowledgement, capture, receipt, token, re-download (step 1009; source \[60\]).

use crate::processor::Processor;
use crate::world::{World, code, sample, server_identity};
use chipbound_server::config::Policy;
use chipbound_testkit::documents;
use chipbound_wire::api::{Order, OrderState, Receipts};
use chipbound_wire::certificate::Role;
use chipbound_wire::documents::{Acknowledgement, Confirmation, Receipt};
use chipbound_wire::signed::{read_claims, verify_document};
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Code, Digest, OrderId};

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_captures_once_and_every_repeat_returns_the_same_bytes() {
    let world = World::new().await;
    let published = world.publish("tool", &sample(1000)).await;
    let processor = Processor::new(&world.pki);
    let ann = world.log_in("ann").await;
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    let delivered = ann.receive(&order, &processor).await.unwrap();
    let (a, b, c, d) = tokio::join!(
        ann.acknowledge(order.order, &delivered.acknowledgement),
        ann.acknowledge(order.order, &delivered.acknowledgement),
        ann.acknowledge(order.order, &delivered.acknowledgement),
        ann.acknowledge(order.order, &delivered.acknowledgement),
    );
    let settled = a.unwrap();
    for other in [b.unwrap(), c.unwrap(), d.unwrap()] {
        assert_eq!(other, settled);
    }
    world.pass(10);
    assert_eq!(ann.acknowledge(order.order, &delivered.acknowledgement).await.unwrap(), settled);
    assert_eq!(ann.money().await, (750, 0));
    let receipt = verify_document::<Receipt>(&settled.receipt.0, &world.pki.trust(), world.now()).unwrap();
    assert_eq!(receipt.signer().role(), Role::ServerReceipt);
    assert_eq!((receipt.number, receipt.order, receipt.amount.minor), (1, order.order, 250));
    assert_eq!((&receipt.program, receipt.processor), (&published.release.program, processor.id()));
    let shown: Order = ann.get(&format!("/v1/orders/{}", order.order)).await.unwrap();
    assert_eq!((shown.state, shown.receipt.as_ref()), (OrderState::Released, Some(&settled.receipt)));
    let receipts: Receipts = ann.get("/v1/receipts").await.unwrap();
    assert_eq!(receipts.receipts, [settled.receipt]);
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_are_numbered_without_a_gap_and_listed_newest_first() {
    let world = World::new().await;
    world.publish("tool", &sample(10)).await;
    let processor = Processor::new(&world.pki);
    let (ann, bob) = (world.log_in("ann").await, world.log_in("bob").await);
    for user in [&ann, &bob, &ann] {
        let order = user.buy("tool", processor.id(), KeyMode::Direct).await;
        let delivered = user.receive(&order, &processor).await.unwrap();
        user.acknowledge(order.order, &delivered.acknowledgement).await.unwrap();
        world.pass(1);
    }
    let numbers = |receipts: Receipts| receipts.receipts.iter().map(|r| read_claims::<Receipt>(&r.0).unwrap().number).collect::<Vec<_>>();
    assert_eq!(numbers(ann.get("/v1/receipts").await.unwrap()), [3, 1]);
    assert_eq!(numbers(bob.get("/v1/receipts").await.unwrap()), [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_receipt_stands_on_one_page_also_where_many_are_of_one_second() {
    let world = World::new().await;
    world.repository_deposit("ann", 1000).await;
    world.publish("tool", &sample(10)).await;
    let processor = Processor::new(&world.pki);
    let ann = world.log_in("ann").await;
    let mut given = Vec::new();
    for n in 0..5 {
        let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
        let delivered = ann.receive(&order, &processor).await.unwrap();
        given.push(ann.acknowledge(order.order, &delivered.acknowledgement).await.unwrap().receipt);
        if n == 2 {
            world.pass(1);
        }
    }
    for limit in [1, 2, 4, 5] {
        let (mut shown, mut pages) = (Vec::new(), 0);
        let mut path = format!("/v1/receipts?limit={limit}");
        loop {
            let page: Receipts = ann.get(&path).await.unwrap();
            assert!(page.receipts.len() <= limit);
            (shown, pages) = ([shown, page.receipts].concat(), pages + 1);
            let Some(next) = page.next else { break };
            path = format!("/v1/receipts?limit={limit}&cursor={next}");
        }
        assert_eq!(pages, given.len().div_ceil(limit));
        assert!(shown.iter().all(|r| given.contains(r)), "others than were given");
        assert!(given.iter().all(|r| shown.contains(r)) && shown.len() == given.len(), "each once");
        assert!(given[3..].contains(&shown[0]) && given[3..].contains(&shown[1]), "the newest first");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_of_something_else_settles_nothing() {
    let world = World::new().await;
    world.publish("tool", &sample(1000)).await;
    let (processor, other) = (Processor::new(&world.pki), Processor::new(&world.pki));
    let (ann, bob) = (world.log_in("ann").await, world.log_in("bob").await);
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    let second = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    let delivered = ann.receive(&order, &processor).await.unwrap();
    let good: Acknowledgement = read_claims(&delivered.acknowledgement).unwrap();
    let sign = |acknowledgement: &Acknowledgement| processor.holder.sign(acknowledgement);
    let mut bent = delivered.acknowledgement.clone();
    let end = bent.len() - 1;
    bent[end] ^= 1;
    for (what, target, bytes, refused) in [
        ("replayed for another order", second.order, delivered.acknowledgement.clone(), Code::AcknowledgementMismatch),
        ("by another processor", order.order, other.holder.sign(&good), Code::AcknowledgementMismatch),
        (
            "of another order's number",
            order.order,
            sign(&Acknowledgement { order: OrderId([1; 16]), ..good.clone() }),
            Code::AcknowledgementMismatch,
        ),
        ("of other terms", order.order, sign(&Acknowledgement { terms: Digest([1; 32]), ..good.clone() }), Code::AcknowledgementMismatch),
        ("of another seal", order.order, sign(&Acknowledgement { seal: Digest([1; 32]), ..good.clone() }), Code::AcknowledgementMismatch),
        ("altered", order.order, bent, Code::SignatureInvalid),
        ("by a vendor", order.order, world.vendor.sign(&good), Code::CertificateRole),
        ("another document", order.order, order.confirmation.0.clone(), Code::WrongDocument),
        ("garbage", order.order, b"garbage".to_vec(), Code::Malformed),
    ] {
        assert_eq!(code(ann.acknowledge(target, &bytes).await), refused, "{what}");
    }
    assert_eq!(code(bob.acknowledge(order.order, &delivered.acknowledgement).await), Code::UnknownOrder, "another account");
    assert_eq!(ann.money().await, (500, 500), "nothing was captured");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_downloads_again_without_a_charge() {
    let world = World::new().await;
    let plain = sample(70_000);
    world.publish("tool", &plain).await;
    let processor = Processor::new(&world.pki);
    let ann = world.log_in("ann").await;
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    let first = ann.receive(&order, &processor).await.unwrap();
    let settled = ann.acknowledge(order.order, &first.acknowledgement).await.unwrap();
    assert_eq!(code(ann.ticket(order.order).await), Code::OrderState, "a settled order needs its receipt");
    world.pass(30 * 3600);
    let ann = world.log_in("ann").await;
    let again = ann.redownload(&settled.receipt.0).await.unwrap();
    assert_eq!((again.order, again.state), (order.order, OrderState::Released));
    let (agreed, anew): (Confirmation, Confirmation) =
        (read_claims(&order.confirmation.0).unwrap(), read_claims(&again.confirmation.0).unwrap());
    assert_eq!(anew.issued_at, world.now(), "signed now, under a certificate of now");
    assert_eq!(Confirmation { issued_at: agreed.issued_at, expires_at: agreed.expires_at, ..anew }, agreed, "nothing else differs");
    let second = ann.receive(&again, &processor).await.unwrap();
    assert!(second.plain == plain && second.body != first.body, "a fresh encryption of the same program");
    let resettled = ann.acknowledge(order.order, &second.acknowledgement).await.unwrap();
    assert_eq!(resettled.receipt, settled.receipt, "the same receipt");
    assert_ne!(resettled.token, settled.token, "that delivery's own token");
    assert!(processor.opens(&second, &resettled.token.0, world.now()).unwrap());
    assert_eq!(code(processor.opens(&second, &settled.token.0, world.now())), Code::TokenMismatch, "the first delivery's token does not");
    assert_eq!(ann.money().await, (750, 0));
    assert_eq!(ann.acknowledge(order.order, &first.acknowledgement).await.unwrap(), settled, "the first delivery's answer stands");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_that_is_not_this_servers_this_accounts_or_in_time_downloads_nothing() {
    let world = World::new().await;
    world.publish("tool", &sample(1000)).await;
    let (processor, other) = (Processor::new(&world.pki), Processor::new(&world.pki));
    let (ann, bob) = (world.log_in("ann").await, world.log_in("bob").await);
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    let delivered = ann.receive(&order, &processor).await.unwrap();
    let receipt = ann.acknowledge(order.order, &delivered.acknowledgement).await.unwrap().receipt.0;
    let claims: Receipt = read_claims(&receipt).unwrap();
    let mut altered = receipt.clone();
    let end = altered.len() - 1;
    altered[end] ^= 1;
    let elsewhere = server_identity(&world.pki, Role::ServerReceipt, "another shop").signer().sign(&claims).unwrap();
    let invented = Receipt { order: OrderId([5; 16]), ..claims.clone() };
    let invented = world.keys.get().receipt.signer().sign(&invented).unwrap();
    let resigned = world.keys.get().receipt.signer().sign(&Receipt { number: 7, ..claims.clone() }).unwrap();
    let self_made = processor.holder.sign(&documents::acknowledgement(order.order, b"", b"", world.now()));
    for (what, receipt, refused) in [
        ("altered", altered, Code::SignatureInvalid),
        ("another server's", elsewhere, Code::ReceiptMismatch),
        ("for an order that does not exist", invented, Code::UnknownOrder),
        ("not the one that was given", resigned, Code::ReceiptMismatch),
        ("no receipt", self_made, Code::WrongDocument),
    ] {
        assert_eq!(code(ann.redownload(&receipt).await), refused, "{what}");
    }
    assert_eq!(code(bob.redownload(&receipt).await), Code::AccountMismatch, "another account's");
    ann.redownload(&receipt).await.unwrap();
    let bobs = bob.buy("tool", other.id(), KeyMode::Direct).await;
    let ticket = ann.ticket(order.order).await.unwrap().ticket;
    assert_eq!(code(ann.receive_with(ticket, &bobs, &other).await), Code::ProcessorMismatch, "for another processor");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_past_its_time_buys_nothing_any_more() {
    let world = World::with(Policy { redownload_days: 1, ..Policy::default() }).await;
    world.publish("tool", &sample(1000)).await;
    let processor = Processor::new(&world.pki);
    let ann = world.log_in("ann").await;
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    let delivered = ann.receive(&order, &processor).await.unwrap();
    let receipt = ann.acknowledge(order.order, &delivered.acknowledgement).await.unwrap().receipt.0;
    world.pass(24 * 3600 + 1);
    assert_eq!(code(world.log_in("ann").await.redownload(&receipt).await), Code::ReceiptExpired);
}
