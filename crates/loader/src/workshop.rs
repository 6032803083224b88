//! What waits ready for a program that is opened for the first time: threads, and memory that the kernel has given already. Neither is
//! needed; both cost time when somebody waits for a program to start.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, mpsc};
use std::thread;

use rustix::fs::{FallocateFlags, fallocate, ftruncate};

use crate::image::create_memory;
use crate::sys::WritablePages;

/// Bytes of the memory files that wait ready, ascending. A program takes the largest of which it needs at least half: what is too much has
/// to be given back before it starts, what is missing is given while it is opened.
const SPARES: [u64; 2] = [4 << 20, 8 << 20];

/// Threads and memory that wait ready. Its owner says when they are made: [`Workshop::staff`], [`Workshop::restock`]. Without them
/// images are built all the same.
#[derive(Clone, Default)]
pub struct Workshop(Arc<Shared>);

#[derive(Default)]
struct Shared {
    crew: Mutex<Crew>,
    /// There is work.
    come: Condvar,
    /// A thread has let go of some.
    gone: Condvar,
    spares: Mutex<[Option<Memory>; SPARES.len()]>,
}

/// A memory file, and its beginning mapped to be written where the kernel has given that already.
pub(crate) struct Memory {
    pub(crate) file: File,
    pub(crate) pages: Option<WritablePages>,
}

#[derive(Default)]
struct Crew {
    /// Threads that wait or work.
    threads: usize,
    /// What nobody began yet.
    offered: VecDeque<Arc<dyn Work>>,
}

/// Something that several threads do a part of each until nothing is left.
pub(crate) trait Work: Send + Sync {
    /// Does parts until none is left that nobody began.
    fn take_part(&self);
}

impl Workshop {
    /// Makes so many threads more, which wait for programs to open for as long as this process lives. Each calls `begin` first, and ends
    /// where that says no: what a thread that reads foreign files is to give up, it gives up there. Returns once all have begun.
    ///
    /// # Errors
    /// The kernel makes no more threads; those that were made stay.
    pub fn staff(&self, threads: usize, begin: impl Fn() -> bool + Clone + Send + 'static) -> io::Result<()> {
        let (begun, all) = mpsc::channel::<()>();
        for _ in 0..threads {
            let (shop, begin, begun) = (self.clone(), begin.clone(), begun.clone());
            thread::Builder::new().name("open".into()).spawn(move || {
                if begin() {
                    shop.crew().threads += 1;
                    drop(begun);
                    shop.serve();
                }
            })?;
        }
        drop(begun);
        let _ = all.recv(); // Nobody sends: it ends when the last thread has begun.
        Ok(())
    }

    /// Sees to it that memory files wait ready, of 4 and 8 MiB that the kernel has given and that are mapped here. To be called when nobody
    /// waits; where the kernel gives none, there is none.
    pub fn restock(&self) {
        let mut spares = self.0.spares.lock().unwrap_or_else(PoisonError::into_inner);
        for (spare, size) in spares.iter_mut().zip(SPARES) {
            if spare.is_none() {
                *spare = given(size).ok();
            }
        }
    }

    /// A memory file of `size` bytes, all zeros: one that waits ready, where that saves time.
    pub(crate) fn memory(&self, size: u64) -> io::Result<Memory> {
        let memory = self.spare_for(size).map_or_else(|| create_memory().map(|file| Memory { file, pages: None }), Ok)?;
        ftruncate(&memory.file, size)?;
        Ok(memory)
    }

    /// Nobody waits here while the shop is being stocked.
    fn spare_for(&self, size: u64) -> Option<Memory> {
        let mut spares = match self.0.spares.try_lock() {
            Ok(spares) => spares,
            Err(TryLockError::Poisoned(spares)) => spares.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        spares.iter_mut().zip(SPARES).rev().find_map(|(spare, of)| spare.take_if(|_| size >= of / 2))
    }

    /// Does `work` on this thread, and on up to `helpers` of those that wait. When it returns, none of them has the work any more; the
    /// caller gives it to nobody else meanwhile.
    pub(crate) fn together(&self, helpers: usize, work: &Arc<dyn Work>) {
        let own = Arc::strong_count(work);
        let helpers = {
            let mut crew = self.crew();
            let helpers = helpers.min(crew.threads);
            crew.offered.extend((0..helpers).map(|_| Arc::clone(work)));
            helpers
        };
        (0..helpers).for_each(|_| self.0.come.notify_one());
        work.take_part();
        let mut crew = self.crew();
        crew.offered.retain(|offered| !Arc::ptr_eq(offered, work));
        while Arc::strong_count(work) > own {
            crew = self.0.gone.wait(crew).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What one of the threads does.
    fn serve(&self) -> ! {
        loop {
            let mut crew = self.crew();
            let work = loop {
                match crew.offered.pop_front() {
                    Some(work) => break work,
                    None => crew = self.0.come.wait(crew).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(crew);
            let taken = Taken { shop: self, work: Some(work) };
            taken.work.iter().for_each(|work| work.take_part());
        }
    }

    fn crew(&self) -> MutexGuard<'_, Crew> {
        self.0.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Work that one of the threads has, until this is dropped, whatever happened.
struct Taken<'a> {
    shop: &'a Workshop,
    work: Option<Arc<dyn Work>>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut crew = self.shop.crew();
        drop(self.work.take()); // Under the lock, under which it is counted.
        if thread::panicking() {
            crew.threads -= 1;
        }
        drop(crew);
        self.shop.0.gone.notify_all();
    }
}

impl fmt::Debug for Workshop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workshop").field("threads", &self.crew().threads).finish_non_exhaustive()
    }
}

/// A memory file whose pages are there, mapped if the kernel does that in one go.
fn given(size: u64) -> io::Result<Memory> {
    let file = create_memory()?;
    ftruncate(&file, size)?;
    fallocate(&file, FallocateFlags::empty(), 0, size)?;
    let pages = WritablePages::of(file.as_fd(), size).ok();
    Ok(Memory { file, pages })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// So many threads have to be there at once before any goes on.
    struct Meeting(Barrier, Mutex<HashSet<thread::ThreadId>>);

    impl Work for Meeting {
        fn take_part(&self) {
            self.0.wait();
            self.1.lock().unwrap().insert(thread::current().id());
        }
    }

    fn staffed(threads: usize) -> Workshop {
        let (shop, begun) = (Workshop::default(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&begun);
        shop.staff(threads, move || count.fetch_add(1, Ordering::Relaxed) < usize::MAX).unwrap();
        assert_eq!((begun.load(Ordering::Relaxed), shop.crew().threads), (threads, threads));
        shop
    }

    #[test]
    fn those_who_wait_take_part_and_nobody_keeps_the_work() {
        let shop = staffed(3);
        for _ in 0..50 {
            let meeting = Arc::new(Meeting(Barrier::new(4), Mutex::default()));
            shop.together(3, &(Arc::clone(&meeting) as Arc<dyn Work>));
            let met = Arc::into_inner(meeting).expect("nobody else has it").1.into_inner().unwrap();
            assert!(met.len() == 4 && met.contains(&thread::current().id()));
        }
    }

    #[test]
    fn without_anybody_who_waits_the_work_is_done_all_the_same() {
        let nobody = Workshop::default();
        nobody.staff(1, || false).unwrap();
        let meeting = Arc::new(Meeting(Barrier::new(1), Mutex::default()));
        nobody.together(3, &(Arc::clone(&meeting) as Arc<dyn Work>));
        assert_eq!(Arc::into_inner(meeting).expect("nobody else has it").1.into_inner().unwrap().len(), 1);
    }

    #[test]
    fn a_thread_that_fails_lets_go_of_the_work_and_leaves() {
        struct Fails(thread::ThreadId, Barrier);
        impl Work for Fails {
            fn take_part(&self) {
                self.1.wait();
                assert!(thread::current().id() == self.0, "this panic is part of the test");
            }
        }
        let shop = staffed(1);
        let work: Arc<dyn Work> = Arc::new(Fails(thread::current().id(), Barrier::new(2)));
        shop.together(1, &work);
        assert_eq!((Arc::strong_count(&work), shop.crew().threads), (1, 0));
    }

    #[test]
    fn a_memory_file_that_waits_is_given_once_of_the_size_that_is_wanted_and_empty() {
        let shop = Workshop::default();
        let [small, large] = SPARES;
        let given = |size: u64| {
            let file = shop.memory(size).unwrap().file;
            let mut bytes = vec![1; 4096];
            file.read_exact_at(&mut bytes, size - 4096).unwrap();
            let meta = file.metadata().unwrap();
            assert!(meta.len() == size && bytes.iter().all(|byte| *byte == 0));
            meta.blocks() * 512
        };
        shop.restock();
        assert_eq!(given(4096), 0, "it would have to give nearly all of it back");
        for expected in [small - 4096, 0] {
            assert_eq!(given(small - 4096), expected, "it is gone then");
        }
        assert_eq!(given(large + 4096), large);
        shop.restock();
        assert_eq!(given(small), small, "half of the large one");
        assert_eq!(given(small), small, "the small one");
        assert_eq!(given(small), 0);
    }
}
