//! Chance that a seed repeats.

use chipbound_testkit::Repeatable;
use chipbound_wire::Random;
use chipbound_wire::random::fresh;

/// Numbers that are the same for the same seed.
pub(crate) struct Dice(Repeatable);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Repeatable::new(seed))
    }

    /// One of 0 to `bound - 1`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        u64::from_be_bytes(fresh(&mut self.0 as &mut dyn Random)) % bound.max(1)
    }

    /// An index of a list of that length.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.index(all.len())]
    }
}
