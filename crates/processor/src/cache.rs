//! Opened programs, kept for the next start of the same build. They are memory files without a key; what they cost is
//! bounded, and the one that was not started for longest goes first.

use chipbound_loader::{Identity, Image};
use chipbound_wire::suite::LoaderVariables;
use chipbound_wire::{Code, ProgramId, Refusal, Result};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A program that was verified and opened.
#[derive(Debug)]
pub struct Program {
    /// Its memory.
    pub image: Image,
    /// Which program.
    pub program: ProgramId,
    /// Its sequence number: the vendor's minimum may rise above it later.
    pub sequence: u64,
    /// What happens to loader variables.
    pub loader_variables: LoaderVariables,
}

/// The opened programs.
#[derive(Debug)]
pub struct Cache {
    entries: usize,
    bytes: u64,
    inner: Mutex<Inner>,
    opened: Condvar,
}

/// Programs that are opened at once; their memory is not in the cache yet. Others wait.
const OPENINGS: usize = 4;

#[derive(Debug, Default)]
struct Inner {
    places: HashMap<[u64; 7], Place>,
    clock: u64,
}

#[derive(Debug)]
enum Place {
    /// Another thread is opening it.
    Opening,
    Open {
        program: Arc<Program>,
        used: u64,
    },
}

impl Cache {
    /// A cache of at most `entries` programs and `bytes` bytes of their memory.
    #[must_use]
    pub fn new(entries: usize, bytes: u64) -> Self {
        Self { entries, bytes, inner: Mutex::default(), opened: Condvar::new() }
    }

    /// The program in the file with this identity, opened with `open` unless it is here. Starts of one build at once open it once.
    pub fn get(&self, identity: &Identity, open: impl FnOnce() -> Result<Program>) -> Result<Arc<Program>> {
        let key = key(identity);
        let mut inner = self.lock();
        loop {
            inner.clock += 1;
            let now = inner.clock;
            let full = inner.openings() >= OPENINGS;
            match inner.places.get_mut(&key) {
                Some(Place::Open { program, used }) => {
                    *used = now;
                    return Ok(Arc::clone(program));
                }
                Some(Place::Opening) => inner = self.opened.wait(inner).unwrap_or_else(PoisonError::into_inner),
                None if full => inner = self.opened.wait(inner).unwrap_or_else(PoisonError::into_inner),
                None => break,
            }
        }
        inner.places.insert(key, Place::Opening);
        drop(inner);
        let mut place = Reserved { cache: self, key, program: None };
        let program = Arc::new(open()?);
        place.program = Some(Arc::clone(&program));
        Ok(program)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that a thread is filling; dropped without a program it is free again, whatever happened.
struct Reserved<'a> {
    cache: &'a Cache,
    key: [u64; 7],
    program: Option<Arc<Program>>,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut inner = self.cache.lock();
        inner.places.remove(&self.key);
        if let Some(program) = self.program.take().filter(|p| p.image.memory() <= self.cache.bytes) {
            inner.clock += 1;
            let used = inner.clock;
            inner.places.insert(self.key, Place::Open { program, used });
            inner.shrink(self.cache.entries, self.cache.bytes);
        }
        drop(inner);
        self.cache.opened.notify_all();
    }
}

impl Inner {
    fn openings(&self) -> usize {
        self.places.values().filter(|place| matches!(place, Place::Opening)).count()
    }

    fn shrink(&mut self, entries: usize, bytes: u64) {
        loop {
            let open = self.places.iter().filter_map(|(key, place)| match place {
                Place::Open { program, used } => Some((*used, *key, program.image.memory())),
                Place::Opening => None,
            });
            let (count, sum, oldest) =
                open.fold((0, 0, None), |(count, sum, oldest): (usize, u64, Option<(u64, [u64; 7])>), (used, key, size)| {
                    let oldest = oldest.filter(|o| o.0 < used).or(Some((used, key)));
                    (count + 1, sum + size, oldest)
                });
            match oldest {
                Some((_, key)) if count > entries || sum > bytes => drop(self.places.remove(&key)),
                _ => return,
            }
        }
    }
}

/// Device, inode, size and both times: a file that was written to since is another one.
fn key(identity: &Identity) -> [u64; 7] {
    [
        identity.device,
        identity.inode,
        identity.size,
        identity.modified.0.cast_unsigned(),
        identity.modified.1.cast_unsigned(),
        identity.changed.0.cast_unsigned(),
        identity.changed.1.cast_unsigned(),
    ]
}

impl Program {
    /// Refuses a program that a later manifest of its vendor withdrew.
    pub fn check_minimum(&self, minimum: u64) -> Result<()> {
        if self.sequence < minimum {
            let detail = format!("{} has sequence number {}, the vendor asks for {minimum}", self.program, self.sequence);
            return Err(Refusal::new(Code::SequenceTooOld, detail));
        }
        Ok(())
    }
}
