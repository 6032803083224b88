//! What tests of several crates share: a whole public key infrastructure in memory, sample documents, repeatable randomness.
//! For tests only; nothing here keeps a secret.

pub mod cards;
pub mod documents;
pub mod pki;
pub mod postgres;

pub use cards::CardSimulator;
pub use pki::{Holder, MemoryKey, Pki, Wanted};

use chipbound_wire::Random;

/// Bytes that are the same in every run with the same seed, different at every call, and fit for nothing but tests.
#[derive(Clone, Debug)]
pub struct Repeatable {
    seed: u64,
    calls: u64,
}

impl Repeatable {
    /// A source that depends on `seed` alone.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, calls: 0 }
    }
}

impl Random for Repeatable {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.calls += 1;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_be_bytes()).update(&self.calls.to_be_bytes());
        hasher.finalize_xof().fill(bytes);
    }
}
