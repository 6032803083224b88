//! The receipts' log over the first path.

use crate::processor::Processor;
use crate::world::{World, code, sample};
use chipbound_wire::Code;
use chipbound_wire::api::Order;
use chipbound_wire::suite::KeyMode;
use chipbound_wire::tlog::{Entered, LogKey, SignedCheckpoint, entry_of, read_entry_bundle};

#[tokio::test(flavor = "multi_thread")]
async fn each_receipt_comes_with_a_proof_and_anybody_may_read_the_log_that_names_nobody() {
    let world = World::new().await;
    let none = world.client.get_bytes("/log/checkpoint", None, 1 << 16).await;
    assert_eq!(code(none), Code::NotFound, "before the first receipt");
    world.publish("tool", &sample(1000)).await;
    let processor = Processor::new(&world.pki);
    let mut receipts = Vec::new();
    for user in ["ann", "bob"] {
        let user = world.log_in(user).await;
        let order = user.buy("tool", processor.id(), KeyMode::Direct).await;
        let delivered = user.receive(&order, &processor).await.unwrap();
        let settled = user.acknowledge(order.order, &delivered.acknowledgement).await.unwrap();
        let proof = settled.proof.unwrap();
        let entered = Entered::verify(&settled.receipt.0, proof.as_bytes(), &world.pki.trust()).unwrap();
        let (sale, place) = (entered.receipt().sale.as_ref().unwrap(), entered.receipt().log.as_ref().unwrap());
        assert_eq!((place.index, entered.checkpoint().size), (receipts.len() as u64, receipts.len() as u64 + 1));
        assert!(sale.taxes.is_empty() && sale.conditions.starts_with("For one processor"), "{sale:?}");
        let shown: Order = user.get(&format!("/v1/orders/{}", order.order)).await.unwrap();
        assert_eq!(shown.proof, Some(proof), "the same whenever it is asked for");
        receipts.push(settled.receipt.0);
    }
    let get = async |path: &str| world.client.get_bytes(&format!("/log/{path}"), None, 1 << 16).await;
    let key = LogKey::of_statement(&get("key").await.unwrap(), &world.pki.trust()).unwrap();
    let checkpoint = SignedCheckpoint::verify(&get("checkpoint").await.unwrap(), &key).unwrap();
    assert_eq!((checkpoint.size, checkpoint.time()), (2, world.now()));
    let entries = read_entry_bundle(&get("tile/entries/000.p/2").await.unwrap(), 2).unwrap();
    assert_eq!(entries, [entry_of(&receipts[0]), entry_of(&receipts[1])]);
    for path in ["tile/0/000", "tile/0/000.p/3", "tile/1/000.p/1", "tile/0/001.p/1", "tile/0/0", "tile/9/000", "tile/", "tile/../key"] {
        assert_eq!(code(get(path).await), Code::NotFound, "{path}");
    }
}
