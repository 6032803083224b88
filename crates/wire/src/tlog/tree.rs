//! The Merkle tree of RFC 9162 §2.1: hashes, proofs, and their verification.

use super::sha256;
use crate::error::{Code, Refusal, Result};
use crate::ids::TreeHash;

/// Entries of a log, beyond which its proofs are refused.
pub(super) const MAX_SIZE: u64 = 1 << 62;

/// Hashes in one proof; more than a tree of [`MAX_SIZE`] ever needs.
pub(super) const MAX_PROOF: usize = 64;

/// The hash of a leaf: SHA-256(0x00 ‖ entry).
#[must_use]
pub fn leaf_hash(entry: &[u8]) -> TreeHash {
    sha256(&[&[0], entry])
}

/// The hash of an inner node: SHA-256(0x01 ‖ left ‖ right).
#[must_use]
pub fn node_hash(left: &TreeHash, right: &TreeHash) -> TreeHash {
    sha256(&[&[1], &left.0, &right.0])
}

/// Whoever knows hashes of a tree.
pub trait Subtrees {
    /// The hash over the leaves `start..end`, or none where it must be made of its two halves. Single leaves must be known
    /// where nothing above them is. Asked only for ranges that are nodes of the tree.
    fn known(&mut self, start: u64, end: u64) -> Result<Option<TreeHash>>;
}

/// The largest power of two below `size`, which is at least 2: where RFC 9162 splits.
fn split(size: u64) -> u64 {
    1 << (size - 1).ilog2()
}

/// The hash of the node over the leaves `start..end`.
fn node(source: &mut impl Subtrees, start: u64, end: u64) -> Result<TreeHash> {
    if let Some(hash) = source.known(start, end)? {
        return Ok(hash);
    }
    if end - start < 2 {
        return Err(Refusal::new(Code::Internal, format!("leaf {start} of the log is not known")));
    }
    let middle = start + split(end - start);
    Ok(node_hash(&node(source, start, middle)?, &node(source, middle, end)?))
}

/// The root of the tree of the first `size` leaves.
pub fn tree_root(source: &mut impl Subtrees, size: u64) -> Result<TreeHash> {
    check_size(size)?;
    if size == 0 { Ok(sha256(&[])) } else { node(source, 0, size) }
}

/// The proof that leaf `index` is in the tree of the first `size` leaves (RFC 9162 §2.1.3.1), the leaf's sibling first.
pub fn inclusion_proof(source: &mut impl Subtrees, index: u64, size: u64) -> Result<Vec<TreeHash>> {
    check_size(size)?;
    if index >= size {
        return Err(Refusal::new(Code::NotInLog, format!("entry {index} is not among the first {size}")));
    }
    let (mut start, mut end, mut path) = (0, size, Vec::new());
    while end - start > 1 {
        let middle = start + split(end - start);
        if index < middle {
            path.push(node(source, middle, end)?);
            end = middle;
        } else {
            path.push(node(source, start, middle)?);
            start = middle;
        }
    }
    path.reverse();
    Ok(path)
}

/// The proof that the tree of the first `old` leaves is the beginning of that of the first `new` (RFC 9162 §2.1.4.1).
pub fn consistency_proof(source: &mut impl Subtrees, old: u64, new: u64) -> Result<Vec<TreeHash>> {
    check_size(new)?;
    if old > new {
        return Err(Refusal::new(Code::LogInconsistent, format!("{old} entries cannot be the beginning of {new}")));
    }
    if old == 0 || old == new {
        return Ok(Vec::new());
    }
    let (mut start, mut end, mut path) = (0, new, Vec::new());
    let mut whole = true; // Whether everything of the old tree from `start` on is this node of the new one.
    while old != end {
        let middle = start + split(end - start);
        if old <= middle {
            path.push(node(source, middle, end)?);
            end = middle;
        } else {
            path.push(node(source, start, middle)?);
            start = middle;
            whole = false;
        }
    }
    if !whole {
        path.push(node(source, start, end)?);
    }
    path.reverse();
    Ok(path)
}

/// Checks that `leaf` is entry `index` of the tree of `size` leaves with that root (RFC 9162 §2.1.3.2). [`Code::NotInLog`].
pub fn verify_inclusion(leaf: &TreeHash, index: u64, size: u64, proof: &[TreeHash], root: &TreeHash) -> Result<()> {
    check_size(size)?;
    let bad = |why: &str| Err(Refusal::new(Code::NotInLog, format!("the proof of entry {index} among {size} {why}")));
    if index >= size || proof.len() > MAX_PROOF {
        return bad("is of no such tree");
    }
    let (mut at, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return bad("is too long");
        }
        if at % 2 == 1 || at == last {
            hash = node_hash(sibling, &hash);
            while at.is_multiple_of(2) && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    if last != 0 {
        return bad("is too short");
    }
    if hash == *root { Ok(()) } else { bad("leads to another root") }
}

/// Checks that the tree of `old` leaves with the first root is the beginning of the tree of `new` leaves with the second
/// (RFC 9162 §2.1.4.2). [`Code::LogInconsistent`].
pub fn verify_consistency(old: u64, old_root: &TreeHash, new: u64, new_root: &TreeHash, proof: &[TreeHash]) -> Result<()> {
    check_size(new)?;
    let bad = |why: &str| Err(Refusal::new(Code::LogInconsistent, format!("the log of {new} entries {why} the one of {old} entries")));
    if old > new || proof.len() > MAX_PROOF {
        return bad("cannot be compared with");
    }
    if old == new {
        return if old_root == new_root && proof.is_empty() { Ok(()) } else { bad("is another than") };
    }
    if old == 0 {
        return if *old_root == sha256(&[]) && proof.is_empty() { Ok(()) } else { bad("is another than") };
    }
    let mut path = proof.iter();
    let (mut at, mut last) = (old - 1, new - 1);
    while at % 2 == 1 {
        (at, last) = (at >> 1, last >> 1);
    }
    // Where the old tree is one whole node of the new one, its root is left out of the proof.
    let first = if old.is_power_of_two() { Some(old_root) } else { path.next() };
    let Some(first) = first else { return bad("has no proof that it goes on from") };
    let (mut of_old, mut of_new) = (*first, *first);
    for sibling in path {
        if last == 0 {
            return bad("has too long a proof that it goes on from");
        }
        if at % 2 == 1 || at == last {
            of_old = node_hash(sibling, &of_old);
            of_new = node_hash(sibling, &of_new);
            while at.is_multiple_of(2) && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            of_new = node_hash(&of_new, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    if last == 0 && of_old == *old_root && of_new == *new_root { Ok(()) } else { bad("does not go on from") }
}

fn check_size(size: u64) -> Result<()> {
    if size > MAX_SIZE {
        return Err(Refusal::new(Code::TooLarge, format!("a log of {size} entries is larger than the limit")));
    }
    Ok(())
}

/// The right edge of a tree: the roots of the whole subtrees that make it up, the largest first. It is all that is needed to append,
/// and with the leaves appended since, all that is needed to prove them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Frontier {
    size: u64,
    roots: Vec<TreeHash>,
}

impl Frontier {
    /// The edge of the tree of `size` leaves as [`Self::to_bytes`] wrote it; [`Code::Malformed`] where the length does not fit.
    pub fn from_bytes(size: u64, bytes: &[u8]) -> Result<Self> {
        check_size(size)?;
        let (roots, rest) = bytes.as_chunks::<32>();
        if !rest.is_empty() || roots.len() != size.count_ones() as usize {
            return Err(Refusal::new(Code::Malformed, format!("{} bytes are not the edge of a tree of {size} leaves", bytes.len())));
        }
        Ok(Self { size, roots: roots.iter().copied().map(TreeHash).collect() })
    }

    /// 32 bytes for each bit that is set in the size.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.roots.iter().flat_map(|root| root.0).collect()
    }

    /// Leaves so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf; calls `whole` with every subtree that is whole now: how many levels above the leaves, which one of its
    /// level, and its hash.
    pub fn push(&mut self, leaf: TreeHash, mut whole: impl FnMut(u32, u64, &TreeHash)) {
        let (mut hash, mut level) = (leaf, 0);
        whole(0, self.size, &hash);
        while self.size >> level & 1 == 1 {
            let left = self.roots.pop().expect("there is a root for each bit of the size");
            hash = node_hash(&left, &hash);
            level += 1;
            whole(level, self.size >> level, &hash);
        }
        self.roots.push(hash);
        self.size += 1;
    }

    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> TreeHash {
        let mut right_to_left = self.roots.iter().rev().copied();
        let Some(right) = right_to_left.next() else { return sha256(&[]) };
        right_to_left.fold(right, |right, left| node_hash(&left, &right))
    }
}

/// Nodes by where each of their leaves begins and ends; what is not here is made of its halves.
pub(super) type Known = std::collections::HashMap<(u64, u64), TreeHash>;

impl Subtrees for Known {
    fn known(&mut self, start: u64, end: u64) -> Result<Option<TreeHash>> {
        Ok(self.get(&(start, end)).copied())
    }
}

impl Frontier {
    /// The proofs of the leaves that `new` adds to this tree, in the tree that has them all.
    pub fn prove_appended(&self, new: &[TreeHash]) -> Result<Vec<Vec<TreeHash>>> {
        let mut known = Known::new();
        let (mut start, mut bits) = (0, self.size);
        for root in &self.roots {
            let width = 1 << bits.ilog2();
            known.insert((start, start + width), *root);
            (start, bits) = (start + width, bits - width);
        }
        let mut grown = self.clone();
        for leaf in new {
            grown.push(*leaf, |level, index, hash| {
                known.insert((index << level, (index + 1) << level), *hash);
            });
        }
        (self.size..grown.size).map(|index| inclusion_proof(&mut known, index, grown.size)).collect()
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
