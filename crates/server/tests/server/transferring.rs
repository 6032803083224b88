//! Purchases that move to another processor without the word of their own.

use crate::processor::Processor;
use crate::world::{User, World, code, sample};
use chipbound_server::storage::{Leaving, NewTransfer, Orders, Transfers};
use chipbound_wire::api::{Order, TransferOrder, Transferring};
use chipbound_wire::documents::Confirmation;
use chipbound_wire::signed::read_claims;
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Code, KeyId, Result};

/// A key that no processor has.
const MISTYPED: KeyId = KeyId([9; 32]);

async fn transfer(user: &User<'_>, order: &Order, to: KeyId) -> Result<Transferring> {
    user.post(&format!("/v1/orders/{}/transfers", order.order), &TransferOrder { to, retirement: None }).await
}

/// What the server writes when a processor said that it gave the order up.
fn given_up(world: &World, order: &Order, from: KeyId, to: KeyId) -> NewTransfer {
    let account = read_claims::<Confirmation>(&order.confirmation.0).unwrap().account;
    NewTransfer { order: order.order, account, from, to, leaving: Leaving::Retired(vec![5]), transfer: vec![1], at: world.now() }
}

async fn what_was_moved_to_a_mistyped_key_is_moved_on(world: World) {
    world.publish("tool", &sample(1000)).await;
    let (first, second, third) = (Processor::new(&world.pki), Processor::new(&world.pki), Processor::new(&world.pki));
    let ann = world.log_in("ann").await;
    let order = ann.buy("tool", first.id(), KeyMode::Direct).await;
    let delivered = ann.receive(&order, &first).await.unwrap();
    let receipt = ann.acknowledge(order.order, &delivered.acknowledgement).await.unwrap().receipt.0;
    let asked = transfer(&ann, &order, second.id()).await.unwrap();
    assert!(asked.transfer.is_none() && asked.request.is_some(), "the first was reached: it is asked");
    world.repository.transfer(&given_up(&world, &order, first.id(), MISTYPED)).await.unwrap();

    let moved = transfer(&ann, &order, second.id()).await.unwrap();
    assert!(moved.transfer.is_some() && moved.request.is_none(), "nobody is there to be asked");
    assert_eq!(code(transfer(&ann, &order, first.id()).await), Code::OrderRetired, "not back to who gave it up");
    assert_eq!(code(transfer(&ann, &order, MISTYPED).await), Code::OrderRetired);

    let again = ann.redownload(&receipt).await.unwrap();
    world.pass(10);
    ann.receive(&again, &second).await.unwrap();
    world.pass(10);
    let asked = transfer(&ann, &order, third.id()).await.unwrap();
    assert!(asked.transfer.is_none() && asked.request.is_some(), "the second was reached, even without its acknowledgement");
    // A delivery that is put on record between the question and the transfer.
    let late = NewTransfer { leaving: Leaving::Unreached, ..given_up(&world, &order, second.id(), third.id()) };
    assert_eq!(code(world.repository.transfer(&late).await), Code::Conflict);
    assert_eq!(world.repository.order(late.account, late.order).await.unwrap().processor, second.id());
    assert_eq!(ann.money().await, (750, 0), "charged once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purchase_moved_to_a_key_that_no_processor_has_is_moved_on() {
    what_was_moved_to_a_mistyped_key_is_moved_on(World::new().await).await;
    what_was_moved_to_a_mistyped_key_is_moved_on(World::on_postgres().await).await;
}
