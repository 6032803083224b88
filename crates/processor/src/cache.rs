//! What was opened, kept for the next start of the same build: programs in memory files without a key, data ready to be read.
//!
//! A file is known by device, inode, size and times, and only once all of it was verified; what it opens to is known by the
//! **build**, the digest of the vendor's signed manifest, which names the plaintext's root. Two copies of one package, and the
//! packages of two orders of one release, are two files of one build: each is verified, one is opened, both share the memory.
//!
//! What is kept is bounded in number and bytes, and what was not used for longest goes first. Whoever got something from here
//! holds it himself: nothing that is dropped is taken from a program that runs.

use chipbound_loader::Identity;
use chipbound_wire::{Code, Digest, ProgramId, Refusal, Result};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Packages that are verified and opened at once. Others wait.
const OPENINGS: usize = 4;

/// Files remembered as verified; the one not used for longest is forgotten, and verified again when it comes back.
const FILES: usize = 1024;

/// Something that was opened.
pub trait Opened {
    /// Bytes of memory that keeping it costs.
    fn memory(&self) -> u64;
    /// Which program it is of.
    fn program(&self) -> &ProgramId;
    /// Its sequence number: the vendor's minimum may rise above it later.
    fn sequence(&self) -> u64;

    /// Refuses what a later manifest of its vendor withdrew.
    fn check_minimum(&self, minimum: u64) -> Result<()> {
        if self.sequence() < minimum {
            let detail = format!("{} has sequence number {}, the vendor asks for {minimum}", self.program(), self.sequence());
            return Err(Refusal::new(Code::SequenceTooOld, detail));
        }
        Ok(())
    }
}

/// What was opened, of one kind.
#[derive(Debug)]
pub struct Cache<T> {
    entries: usize,
    bytes: u64,
    inner: Mutex<Inner<T>>,
    ended: Condvar,
}

/// How much was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dropped {
    /// Builds.
    pub builds: u64,
    /// Bytes of their memory. What a running program still uses is freed when it ends.
    pub bytes: u64,
}

/// A file as the kernel describes it.
type File = [u64; 7];
/// The digest of the vendor's signed manifest.
type Build = Digest;

#[derive(Debug)]
struct Inner<T> {
    /// Verified files of the builds below, and when each was used last.
    files: HashMap<File, (Build, u64)>,
    builds: HashMap<Build, (Arc<T>, u64)>,
    /// What threads are busy with.
    verifying: HashSet<File>,
    opening: HashSet<Build>,
    clock: u64,
    /// Rises with every drop: what was being opened meanwhile is not kept.
    drops: u64,
}

impl<T: Opened> Cache<T> {
    /// A cache of at most `entries` builds and `bytes` bytes of their memory.
    #[must_use]
    pub fn new(entries: usize, bytes: u64) -> Self {
        let inner =
            Inner { files: HashMap::new(), builds: HashMap::new(), verifying: HashSet::new(), opening: HashSet::new(), clock: 0, drops: 0 };
        Self { entries, bytes, inner: Mutex::new(inner), ended: Condvar::new() }
    }

    /// What the file with this identity opens to. `begin` verifies the file's documents and gives its build; then either `open` opens
    /// the file or, where its build is here, `verify` verifies the rest of it: both verify every byte. Nothing is called for a file
    /// that was verified before and whose build is here. Starts of one build at once open it once.
    pub fn get<V>(
        &self,
        identity: &Identity,
        begin: impl FnOnce() -> Result<(Digest, V)>,
        verify: impl FnOnce(V) -> Result<()>,
        open: impl FnOnce(V) -> Result<T>,
    ) -> Result<Arc<T>> {
        let file = key(identity);
        let turn = match self.wait_for_file(file) {
            Ok(found) => return Ok(found),
            Err(turn) => turn,
        };
        let (build, begun) = begin()?;
        let _claim = match self.wait_for_build(build) {
            Ok(found) => {
                verify(begun)?;
                self.lock().know(file, build);
                return Ok(found);
            }
            Err(claim) => claim,
        };
        let opened = Arc::new(open(begun)?);
        self.keep(&turn, build, &opened);
        Ok(opened)
    }

    /// Drops what `gone` says.
    pub fn drop_where(&self, gone: impl Fn(&T) -> bool) -> Dropped {
        let mut inner = self.lock();
        inner.drops += 1;
        let builds: Vec<Build> = inner.builds.iter().filter(|(_, (opened, _))| gone(opened)).map(|(build, _)| *build).collect();
        let bytes = builds.iter().map(|build| inner.remove(build)).sum();
        Dropped { builds: builds.len() as u64, bytes }
    }

    /// Waits for a place among those who verify. The opened build, if the file is known by then.
    fn wait_for_file(&self, file: File) -> std::result::Result<Arc<T>, Turn<'_, T>> {
        let mut inner = self.lock();
        loop {
            if let Some(build) = inner.files.get(&file).map(|(build, _)| *build)
                && let Some(found) = inner.find(build)
            {
                inner.know(file, build);
                return Ok(found);
            }
            if inner.verifying.len() < OPENINGS && inner.verifying.insert(file) {
                return Err(Turn { cache: self, file, drops: inner.drops });
            }
            inner = self.ended.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until nobody else opens that build. The opened build, if it is here by then.
    fn wait_for_build(&self, build: Build) -> std::result::Result<Arc<T>, Claim<'_, T>> {
        let mut inner = self.lock();
        loop {
            if let Some(found) = inner.find(build) {
                return Ok(found);
            }
            if inner.opening.insert(build) {
                return Err(Claim { cache: self, build });
            }
            inner = self.ended.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn keep(&self, turn: &Turn<'_, T>, build: Build, opened: &Arc<T>) {
        let mut inner = self.lock();
        if opened.memory() > self.bytes || inner.drops != turn.drops {
            return;
        }
        inner.clock += 1;
        let now = inner.clock;
        inner.builds.insert(build, (Arc::clone(opened), now));
        inner.files.insert(turn.file, (build, now));
        inner.shrink(self.entries, self.bytes);
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that a thread verifies until this is dropped, whatever happened.
struct Turn<'a, T: Opened> {
    cache: &'a Cache<T>,
    file: File,
    drops: u64,
}

impl<T: Opened> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        self.cache.lock().verifying.remove(&self.file);
        self.cache.ended.notify_all();
    }
}

/// A build that a thread opens until this is dropped, whatever happened.
struct Claim<'a, T: Opened> {
    cache: &'a Cache<T>,
    build: Build,
}

impl<T: Opened> Drop for Claim<'_, T> {
    fn drop(&mut self) {
        self.cache.lock().opening.remove(&self.build);
        self.cache.ended.notify_all();
    }
}

impl<T: Opened> Inner<T> {
    /// The build, which is used now.
    fn find(&mut self, build: Build) -> Option<Arc<T>> {
        self.clock += 1;
        let now = self.clock;
        let (opened, used) = self.builds.get_mut(&build)?;
        *used = now;
        Some(Arc::clone(opened))
    }

    /// Remembers a verified file of a build, unless that was dropped meanwhile.
    fn know(&mut self, file: File, build: Build) {
        if !self.builds.contains_key(&build) {
            return;
        }
        self.files.insert(file, (build, self.clock));
        if self.files.len() > FILES
            && let Some(oldest) = self.files.iter().min_by_key(|(_, (_, used))| *used).map(|(file, _)| *file)
        {
            self.files.remove(&oldest);
        }
    }

    /// Removes a build with its files; the bytes that it cost.
    fn remove(&mut self, build: &Build) -> u64 {
        self.files.retain(|_, (of, _)| of != build);
        self.builds.remove(build).map_or(0, |(opened, _)| opened.memory())
    }

    fn shrink(&mut self, entries: usize, bytes: u64) {
        while self.builds.len() > entries || self.builds.values().map(|(opened, _)| opened.memory()).sum::<u64>() > bytes {
            let Some(oldest) = self.builds.iter().min_by_key(|(_, (_, used))| *used).map(|(build, _)| *build) else { return };
            self.remove(&oldest);
        }
    }
}

/// Device, inode, size and both times: a file that was written to since is another one.
fn key(identity: &Identity) -> File {
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

#[cfg(test)]
mod tests {
    use super::*;
    use chipbound_wire::KeyId;
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[derive(Debug)]
    struct Thing(ProgramId, u64);

    impl Opened for Thing {
        fn memory(&self) -> u64 {
            self.1
        }
        fn program(&self) -> &ProgramId {
            &self.0
        }
        fn sequence(&self) -> u64 {
            1
        }
    }

    fn thing(size: u64) -> Thing {
        Thing(ProgramId::new(&KeyId([1; 32]), "thing").expect("a good name"), size)
    }

    fn file(inode: u64) -> Identity {
        Identity { device: 1, inode, size: 10, modified: (0, 0), changed: (0, 0) }
    }

    fn begun(build: u8) -> impl FnOnce() -> Result<(Digest, ())> {
        move || Ok((Digest([build; 32]), ()))
    }

    /// What opening `inode` of `build` did: whether it was verified, whether it was opened.
    fn use_it(cache: &Cache<Thing>, inode: u64, build: u8, size: u64) -> (bool, bool) {
        let (verified, opened) = (Cell::new(false), Cell::new(false));
        let verify = |()| {
            verified.set(true);
            Ok(())
        };
        let open = |()| {
            opened.set(true);
            verify(()).map(|()| thing(size))
        };
        cache.get(&file(inode), begun(build), verify, open).expect("opened");
        (verified.get(), opened.get())
    }

    #[test]
    fn each_file_is_verified_once_and_each_build_opened_once() {
        let cache = Cache::new(4, 100);
        assert_eq!(use_it(&cache, 1, 1, 10), (true, true));
        assert_eq!(use_it(&cache, 1, 1, 10), (false, false));
        assert_eq!(use_it(&cache, 2, 1, 10), (true, false), "another file of the same build");
        assert_eq!(use_it(&cache, 2, 1, 10), (false, false));
        assert_eq!(use_it(&cache, 3, 2, 10), (true, true), "another build");
    }

    #[test]
    fn a_file_that_is_not_what_it_says_is_refused_although_its_build_is_here() {
        let cache = Cache::new(4, 100);
        use_it(&cache, 1, 1, 10);
        let altered = |()| Err(Refusal::new(Code::PageAltered, "no"));
        let refused = cache.get(&file(2), begun(1), altered, |()| Ok(thing(10)));
        assert_eq!(refused.expect_err("refused").code, Code::PageAltered);
        assert_eq!(use_it(&cache, 2, 1, 10), (true, false), "and it is not taken for verified");
    }

    #[test]
    fn what_was_not_used_for_longest_goes_when_bytes_or_places_are_over() {
        let cache = Cache::new(3, 100);
        for build in 1..=3 {
            use_it(&cache, build.into(), build, 30);
        }
        use_it(&cache, 1, 1, 30);
        assert_eq!(use_it(&cache, 4, 4, 30), (true, true), "a fourth takes the place of the second");
        assert_eq!(use_it(&cache, 1, 1, 30), (false, false));
        assert_eq!(use_it(&cache, 3, 3, 30), (false, false));
        assert_eq!(use_it(&cache, 2, 2, 50), (true, true), "the second comes back, and is larger now: two go");
        assert_eq!(cache.lock().builds.len(), 2);
        assert_eq!(cache.lock().files.len(), 2, "files go with their build");
        assert_eq!(use_it(&cache, 5, 5, 101), (true, true), "what is larger than all is opened and not kept");
        assert_eq!(use_it(&cache, 5, 5, 101), (true, true));
        assert_eq!(use_it(&cache, 2, 2, 50), (false, false), "and drives nothing out");
    }

    #[test]
    fn what_is_dropped_is_verified_and_opened_anew_and_stays_with_whoever_has_it() {
        let cache = Cache::new(4, 100);
        let held = cache.get(&file(1), begun(1), Ok, |()| Ok(thing(10))).expect("opened");
        assert_eq!(cache.drop_where(|t| t.check_minimum(1).is_err()), Dropped::default(), "still allowed");
        assert_eq!(cache.drop_where(|t| t.check_minimum(2).is_err()), Dropped { builds: 1, bytes: 10 });
        assert_eq!(Arc::strong_count(&held), 1);
        assert_eq!(use_it(&cache, 1, 1, 10), (true, true));
    }

    #[test]
    fn what_is_dropped_while_it_is_opened_is_not_kept() {
        let cache = Cache::new(4, 100);
        let open = |()| {
            cache.drop_where(|_| true);
            Ok(thing(10))
        };
        cache.get(&file(1), begun(1), Ok, open).expect("opened");
        assert_eq!(use_it(&cache, 1, 1, 10), (true, true));
    }

    #[test]
    fn two_files_of_one_build_at_once_open_it_once_and_a_failure_frees_the_place() {
        let cache = Cache::new(4, 100);
        let refused = cache.get(&file(9), begun(1), Ok, |()| Err(Refusal::new(Code::PageAltered, "no")));
        assert_eq!(refused.expect_err("refused").code, Code::PageAltered);
        let opened = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for inode in 0..16 {
                let (cache, opened) = (&cache, &opened);
                scope.spawn(move || {
                    let open = |()| {
                        opened.fetch_add(1, SeqCst);
                        std::thread::yield_now();
                        Ok(thing(10))
                    };
                    cache.get(&file(inode), begun(1), Ok, open).expect("opened");
                });
            }
        });
        assert_eq!(opened.load(SeqCst), 1);
    }
}
