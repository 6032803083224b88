//! The BLAKE3 of a body by blocks of 64 KiB, so that one pass gives the root that the seal names and, for later reads, a value
//! of each block from which that root follows.

use crate::layout::CHUNK_STEP;
use blake3::hazmat::{HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use chipbound_wire::{Digest, Result};
use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, available_parallelism};

/// Bytes of a block: a power of two, and so a subtree of BLAKE3 wherever it lies.
pub(crate) const BLOCK: usize = CHUNK_STEP;
const _: () = assert!(BLOCK.is_power_of_two());

/// Bytes of a body for each thread that hashes it: below, a thread costs more than it does.
const PER_THREAD: u64 = 1 << 20;
/// The most threads that hash one body.
const MAX_THREADS: u64 = 8;
/// Chunks that wait for each thread.
const WAITING: usize = 2;

/// The number of its first block, and its bytes.
type Chunk<'a> = (usize, Cow<'a, [u8]>);

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

    /// Hashes a body that `read` gives to the function it is called with, chunk by chunk and in order: whole blocks, but for the last
    /// chunk. Large bodies are hashed on several threads meanwhile.
    pub(crate) fn of<'a>(size: u64, read: impl FnOnce(&mut dyn FnMut(Cow<'a, [u8]>)) -> Result<()>) -> Result<Self> {
        let mut blocks = Self::new(size);
        if threads_for(size) < 2 {
            read(&mut |chunk| blocks.update(&chunk))?;
            return Ok(blocks);
        }
        let count = usize::try_from(size.div_ceil(BLOCK as u64)).expect("bodies are far smaller than memory can be addressed");
        blocks.values = vec![[0; 32]; count];
        let (sender, queue) = sync_channel(threads_for(size) * WAITING);
        let queue = Mutex::new(queue);
        let nothing = Self::new(size);
        let hashed = thread::scope(|scope| {
            let hash = || nothing.hash(&queue);
            let named = || thread::Builder::new().name("hash".into());
            let others: Vec<_> = (1..threads_for(size)).filter_map(|_| named().spawn_scoped(scope, hash).ok()).collect();
            let mut first = 0;
            let mut own = Vec::new();
            let done = read(&mut |chunk| {
                let blocks = chunk.len().div_ceil(BLOCK);
                if others.is_empty() {
                    own.extend(nothing.values_of(first, &chunk)); // No thread could be had.
                } else {
                    sender.send((first, chunk)).expect("the receiver outlives this");
                }
                first += blocks;
            });
            drop(sender);
            own.extend(others.into_iter().flat_map(|other| other.join().expect("hashing does not panic")));
            done.map(|()| own)
        })?;
        for (index, value) in hashed {
            blocks.values[index] = value;
        }
        Ok(blocks)
    }

    /// One thread's part of [`Self::of`].
    fn hash(&self, queue: &Mutex<Receiver<Chunk<'_>>>) -> Vec<(usize, [u8; 32])> {
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
        std::iter::from_fn(next).flat_map(|(first, chunk)| self.values_of(first, &chunk)).collect()
    }

    /// The values of the blocks of a chunk whose first one is `first`.
    fn values_of(&self, first: usize, chunk: &[u8]) -> Vec<(usize, [u8; 32])> {
        chunk.chunks(BLOCK).enumerate().map(|(i, block)| (first + i, self.value(first + i, block))).collect()
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

/// The chaining values of the blocks of a body that were seen so far, by whatever thread and in whatever order.
pub(crate) struct Seen {
    size: u64,
    values: Vec<OnceLock<[u8; 32]>>,
}

impl Seen {
    /// For a body of `size` bytes, none of which was seen yet.
    pub(crate) fn new(size: u64) -> Self {
        let count = usize::try_from(size.div_ceil(BLOCK as u64)).expect("bodies are far smaller than memory can be addressed");
        Self { size, values: (0..count).map(|_| OnceLock::new()).collect() }
    }

    /// Whether the block at `offset`, a multiple of [`BLOCK`], is what it was when it was seen first: now, perhaps.
    pub(crate) fn take(&self, offset: u64, block: &[u8]) -> bool {
        let index = (offset / BLOCK as u64) as usize;
        let value = Blocks::new(self.size).value(index, block);
        self.values.get(index).is_some_and(|seen| *seen.get_or_init(|| value) == value)
    }

    /// The values of all blocks, once those that were not seen yet are: `load` reads one by its offset. Where there are many, several
    /// threads do.
    pub(crate) fn complete(self, load: impl Fn(u64) -> Result<Vec<u8>> + Sync) -> Result<Blocks> {
        let missing: Vec<u64> = (0..self.values.len()).filter(|i| self.values[*i].get().is_none()).map(|i| (i * BLOCK) as u64).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(offset) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let block = load(*offset).inspect_err(|_| next.store(missing.len(), Ordering::Relaxed))?; // The others stop too.
                self.take(*offset, &block);
            }
            Ok(())
        };
        thread::scope(|scope| {
            let named = || thread::Builder::new().name("hash".into());
            let threads = 1..threads_for((missing.len() * BLOCK) as u64);
            let others: Vec<_> = threads.filter_map(|_| named().spawn_scoped(scope, work).ok()).collect();
            let own = work();
            others.into_iter().fold(own, |sum, other| sum.and(other.join().expect("hashing does not panic")))
        })?;
        let values = self.values.into_iter().map(|value| value.into_inner().expect("every block was taken above"));
        Ok(Blocks { size: self.size, values: values.collect() })
    }
}

fn threads_for(size: u64) -> usize {
    if size < 2 * PER_THREAD {
        return 1; // To learn the number of cores takes longer than to hash so little.
    }
    static CORES: OnceLock<u64> = OnceLock::new();
    let cores = *CORES.get_or_init(|| available_parallelism().map_or(1, |cores| cores.get() as u64));
    (size / PER_THREAD).clamp(1, cores.min(MAX_THREADS)) as usize
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
    use super::*;
    use chipbound_wire::{Code, Refusal};

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
    fn several_threads_find_the_same_root_whatever_comes_first() {
        let bytes: Vec<u8> = (0..5 * (1 << 20) + 3).map(|i| (i % 253) as u8).collect();
        let all = Blocks::of(bytes.len() as u64, |take| {
            bytes.chunks(4 * BLOCK).for_each(|chunk| take(Cow::Borrowed(chunk)));
            Ok(())
        });
        assert_eq!(all.unwrap().root(), Digest::of(&bytes));
        let refusal = Blocks::of(bytes.len() as u64, |take| {
            take(Cow::Owned(bytes[..4 * BLOCK].to_vec()));
            Err(Refusal::new(Code::Io, "the disk"))
        });
        assert_eq!(refusal.err().map(|e| e.code), Some(Code::Io));
    }

    #[test]
    fn blocks_seen_in_any_order_have_the_root_of_the_body_and_none_may_change() {
        let bytes: Vec<u8> = (0..70 * BLOCK + 9).map(|i| (i % 241) as u8).collect();
        let block = |at: u64| &bytes[at as usize..bytes.len().min(at as usize + BLOCK)];
        let all = || {
            let seen = Seen::new(bytes.len() as u64);
            for at in [69, 3, 70, 3].map(|n| n * BLOCK as u64) {
                assert!(seen.take(at, block(at)));
            }
            seen
        };
        assert_eq!(all().complete(|at| Ok(block(at).to_vec())).unwrap().root(), Digest::of(&bytes));
        assert!(!all().take(3 * BLOCK as u64, block(4 * BLOCK as u64)) && !all().take(71 * BLOCK as u64, block(0)));
        let refusal = all().complete(|_| Err(Refusal::new(Code::Io, "the disk")));
        assert_eq!(refusal.err().map(|e| e.code), Some(Code::Io));
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
