//! The receipts' log.

use super::fixture::{Fixture, log_signer};
use crate::storage::Log;
use chipbound_wire::tlog::{
    InclusionProof, SignedCheckpoint, Tile, Tiles, consistency_proof, entry_of, leaf_hash, read_entry_bundle, tree_root,
    verify_consistency, verify_inclusion,
};
use chipbound_wire::{Code, OrderId, Refusal};
use std::collections::HashMap;

/// A proof that must hold for that receipt, and its checkpoint.
pub(super) fn holds(proof: &str, receipt: &[u8]) -> SignedCheckpoint {
    let proof = InclusionProof::parse(proof.as_bytes()).expect("a proof");
    let signer = log_signer();
    assert_eq!(proof.extra, signer.statement());
    let checkpoint = SignedCheckpoint::verify(proof.checkpoint.as_bytes(), signer.key()).expect("a checkpoint");
    let leaf = leaf_hash(&entry_of(receipt));
    verify_inclusion(&leaf, proof.index, checkpoint.size, &proof.hashes, &checkpoint.root).expect("it is in the log");
    checkpoint
}

pub(super) async fn every_receipt_is_entered_in_the_log_and_proven_the_same_each_time(books: Fixture) {
    assert_eq!(books.repository.log_checkpoint().await.expect("a query"), None);
    let mut checkpoints = Vec::new();
    for number in 1..=4 {
        books.delivered(number).await;
        let settled = books.settle(number, number, b"token").await.expect("settled");
        let proof = settled.proof.expect("a proof");
        checkpoints.push(holds(&proof, &settled.receipt));
        for earlier in 1..=number {
            let again = books.settle(earlier, earlier, b"token").await.expect("settled again");
            let kept = books.repository.log_proof(OrderId([earlier; 16])).await.expect("a query").expect("a proof");
            assert_eq!(again.proof.as_ref(), Some(&kept));
            assert_eq!(&holds(&kept, &again.receipt), &checkpoints[usize::from(earlier) - 1], "the checkpoint of its own batch");
        }
    }
    let newest = books.repository.log_checkpoint().await.expect("a query").expect("a checkpoint");
    assert_eq!(newest, checkpoints[3].note());
    let mut tiles = HashMap::new();
    for tile in Tile::all(4).chain(Tile::bundles(4)) {
        tiles.insert(tile, books.repository.log_tile(tile).await.expect("a query").expect("a tile"));
    }
    let fetch = |tile: &Tile| tiles.get(tile).cloned().ok_or_else(|| Refusal::new(Code::NotFound, "no such tile"));
    assert_eq!(tree_root(&mut Tiles::new(4, fetch), 4).expect("a root"), checkpoints[3].root);
    for (old, checkpoint) in (1..).zip(&checkpoints) {
        let proof = consistency_proof(&mut Tiles::new(4, fetch), old, 4).expect("a proof");
        verify_consistency(old, &checkpoint.root, 4, &checkpoints[3].root, &proof).expect("one log");
    }
    let bundle = tiles.iter().find(|(tile, _)| tile.to_string() == "entries/000.p/4").expect("the entries").1;
    let entries = read_entry_bundle(bundle, 4).expect("four entries");
    for (index, entry) in entries.iter().enumerate() {
        let receipt = books.settle(index as u8 + 1, index as u8 + 1, b"t").await.expect("settled").receipt;
        assert_eq!(*entry, entry_of(&receipt));
    }
    let beyond = "0/000.p/5".parse().expect("a tile");
    assert_eq!(books.repository.log_tile(beyond).await.expect("a query"), None);
    books.audit().await;
}

pub(super) async fn the_log_only_grows(books: Fixture) {
    books.delivered(1).await;
    let settled = books.settle(1, 1, b"token").await.expect("settled");
    for statement in [
        "UPDATE log_nodes SET position = 7",
        "DELETE FROM log_nodes",
        "UPDATE log_checkpoints SET note = ''",
        "DELETE FROM log_checkpoints",
        "UPDATE log_head SET size = 0",
        "UPDATE log_head SET edge = edge",
    ] {
        assert!(books.beside(statement).is_err(), "{statement}");
    }
    holds(&settled.proof.expect("a proof"), &settled.receipt);
}
