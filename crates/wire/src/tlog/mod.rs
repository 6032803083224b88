//! The receipts' log as values: an append-only Merkle tree (RFC 9162 §2.1, SHA-256), its proofs, its tiles and checkpoints as
//! C2SP's tlog-tiles, tlog-checkpoint, tlog-cosignature and tlog-proof write them down. Who keeps the entries is somebody else's
//! affair: what is computed here asks a [`Subtrees`] for hashes.
//!
//! An entry is a commitment to one signed receipt ([`entry_of`]). The receipt holds 32 random bytes, so that whoever reads the log
//! learns how many receipts there are and when, and neither account nor program nor amount.

mod checkpoint;
mod entered;
mod note;
mod proof;
mod tiles;
mod tree;

pub use checkpoint::{Checkpoint, LogKey, SignedCheckpoint, origin_of};
pub use entered::Entered;
pub use note::Note;
pub use proof::InclusionProof;
pub use tiles::{TILE_WIDTH, Tile, TileKind, Tiles, entry_bundle, read_entry_bundle};
pub use tree::{
    Frontier, Subtrees, consistency_proof, inclusion_proof, leaf_hash, node_hash, tree_root, verify_consistency, verify_inclusion,
};

use crate::ids::TreeHash;
use aws_lc_rs::digest::{Context, SHA256};

/// What precedes a signed receipt in its entry's hash.
const ENTRY_LABEL: &[u8] = b"chipbound/1 receipt in the log\0";

/// The entry of a signed receipt: SHA-256 over a label and the bytes that were signed. It hides them, because each receipt
/// holds a salt.
#[must_use]
pub fn entry_of(signed_receipt: &[u8]) -> [u8; 32] {
    sha256(&[ENTRY_LABEL, signed_receipt]).0
}

fn sha256(parts: &[&[u8]]) -> TreeHash {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    TreeHash(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
}
