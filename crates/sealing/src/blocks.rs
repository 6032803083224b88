//! The BLAKE3 of a body by blocks of 64 KiB, so that one pass gives the root that the seal names and, for later reads, a value
//! of each block from which that root follows.

use crate::layout::CHUNK_STEP;
use blake3::hazmat::{HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use chipbound_wire::Digest;

/// Bytes of a block: a power of two, and so a subtree of BLAKE3 wherever it lies.
pub(crate) const BLOCK: usize = CHUNK_STEP;
const _: () = assert!(BLOCK.is_power_of_two());

/// The chaining values of all blocks of a body.
pub(crate) struct Blocks {
    size: u64,
    values: Vec<[u8; 32]>,
}

impl Blocks {
    /// For a body of `size` bytes, none of which was seen yet.
    pub(crate) fn new(size: u64) -> Self {
        Self { size, values: Vec::new() }
    }

    /// Takes the next bytes of the body: whole blocks, but for its last one.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        for block in bytes.chunks(BLOCK) {
            self.values.push(self.value(self.values.len(), block));
        }
    }

    /// Whether `block` is the one that was taken at `offset`, a multiple of [`BLOCK`].
    pub(crate) fn matches(&self, offset: u64, block: &[u8]) -> bool {
        let index = (offset / BLOCK as u64) as usize;
        self.values.get(index).is_some_and(|value| *value == self.value(index, block))
    }

    /// The BLAKE3 of the whole body, once all of it was taken.
    pub(crate) fn root(&self) -> Digest {
        match self.values.as_slice() {
            [] => Digest::of(&[]),
            [only] => Digest(*only),
            values => {
                let (left, right) = self.halves(self.size, values);
                Digest(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes())
            }
        }
    }

    /// The value of a block; where it is the only one, that is the hash of the body itself.
    fn value(&self, index: usize, block: &[u8]) -> [u8; 32] {
        if self.size <= BLOCK as u64 {
            return *blake3::hash(block).as_bytes();
        }
        blake3::Hasher::new().set_input_offset(index as u64 * BLOCK as u64).update(block).finalize_non_root()
    }

    /// The values of the two subtrees of a tree over `size` bytes with at least two blocks.
    fn halves(&self, size: u64, values: &[[u8; 32]]) -> ([u8; 32], [u8; 32]) {
        let left = left_subtree_len(size);
        let (first, second) = values.split_at((left / BLOCK as u64) as usize);
        (self.subtree(left, first), self.subtree(size - left, second))
    }

    fn subtree(&self, size: u64, values: &[[u8; 32]]) -> [u8; 32] {
        if let [only] = values {
            return *only;
        }
        let (left, right) = self.halves(size, values);
        merge_subtrees_non_root(&left, &right, Mode::Hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_the_blocks_is_the_hash_of_the_body() {
        let bytes: Vec<u8> = (0..9 * BLOCK + 1).map(|i| (i % 251) as u8).collect();
        for blocks in 0..=9 {
            for size in [blocks * BLOCK, blocks * BLOCK + 1, (blocks * BLOCK).saturating_sub(1), blocks * BLOCK / 3] {
                let mut taken = Blocks::new(size as u64);
                bytes[..size].chunks(4 * BLOCK).for_each(|part| taken.update(part));
                assert_eq!(taken.root(), Digest::of(&bytes[..size]), "{size}");
            }
        }
    }

    #[test]
    fn a_block_matches_in_its_own_place_only() {
        let bytes = vec![7; 3 * BLOCK];
        let mut taken = Blocks::new(bytes.len() as u64);
        taken.update(&bytes);
        let (block, mut changed) = (&bytes[..BLOCK], bytes[..BLOCK].to_vec());
        changed[100] ^= 1;
        assert!(taken.matches(0, block) && taken.matches(2 * BLOCK as u64, block));
        assert!(!taken.matches(0, &changed) && !taken.matches(0, &block[1..]) && !taken.matches(3 * BLOCK as u64, block));
    }
}
