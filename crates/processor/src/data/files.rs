//! The file system of data: the kernel asks for ranges of plaintext, and gets what was verified.
//!
//! It has one folder, which lists nothing. A name in it is random, stands for the data of one start, and is good for one look-up: it
//! is made when a program is about to be started and gone when it was. A file lives while a program has it open; then the kernel
//! forgets it, and what it kept of it.

use crate::confine::{self, Work};
use crate::data::kernel::Mounted;
use chipbound_loader::Identity;
use chipbound_sealing::{DataReader, ReadAt};
use chipbound_wire::random::fresh;
use chipbound_wire::{Code, ProgramId, Refusal, Result, SystemRandom};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, Notifier, OpenFlags, ReplyAttr,
    ReplyData, ReplyEntry, ReplyOpen, Request, Session, SessionACL,
};
use rustix::io::fcntl_dupfd_cloexec;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Write;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};
use zeroize::Zeroizing;

/// Threads that answer the kernel, at most.
const THREADS: usize = 4;
/// The most that is answered at once, bytes. The kernel asks for 128 KiB in a row of reads, and for 1 MiB at most.
const MAX_READ: u64 = 1 << 20;
/// How long the kernel may believe what a file is: it never changes.
const UNCHANGED: Duration = Duration::from_secs(24 * 3600);
/// How long it may believe a name: not at all.
const NO_TIME: Duration = Duration::ZERO;

/// Data that programs read.
#[derive(Debug)]
pub struct Served {
    number: u64,
    reader: DataReader<File>,
    program: ProgramId,
    complained: AtomicBool,
}

impl Served {
    /// Data whose package was opened for reading in ranges.
    #[must_use]
    pub fn new(reader: DataReader<File>, program: ProgramId) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(INodeNo::ROOT.0 + 1);
        Self { number: NEXT.fetch_add(1, Relaxed), reader, program, complained: AtomicBool::new(false) }
    }

    fn attributes(&self) -> FileAttr {
        attributes(self.number, self.reader.size(), FileType::RegularFile, 0o444)
    }

    /// The plaintext at `offset`, shorter at the end. What does not verify is named in the log, once.
    fn read(&self, offset: u64, size: u64) -> Result<Zeroizing<Vec<u8>>> {
        let size = self.reader.size().saturating_sub(offset).min(size).min(MAX_READ);
        let mut buffer = Zeroizing::new(vec![0; usize::try_from(size).expect("at most 1 MiB")]);
        let read = self.reader.read(&mut buffer, offset.min(self.reader.size()));
        if let Err(reason) = &read
            && !self.complained.swap(true, Relaxed)
        {
            tracing::warn!(program = %self.program, %reason, "a program reads data that is not what was delivered");
        }
        read.map(|()| buffer)
    }
}

/// The served file system. It ends with the daemon: reads fail from then on.
#[derive(Debug)]
pub struct Files {
    root: OwnedFd,
    notifier: Notifier,
    table: Arc<Table>,
}

#[derive(Debug, Default)]
struct Table(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    names: HashMap<String, Arc<Served>>,
    /// What the kernel knows, and how many look-ups it has not forgotten yet.
    known: HashMap<u64, (Arc<Served>, u64)>,
    /// What is in use, by its package.
    shared: Vec<(Identity, Weak<Served>)>,
}

/// A name that is good until it was looked up or this is dropped.
#[derive(Debug)]
pub struct Announced {
    name: String,
    root: OwnedFd,
    notifier: Notifier,
    table: Arc<Table>,
}

impl Files {
    /// Begins to answer the kernel on threads of their own.
    pub fn start(mounted: Mounted) -> Result<Self> {
        let failed = |e: std::io::Error| Refusal::new(Code::DataUnavailable, format!("the FUSE connection: {e}")).because(e);
        let table = Arc::new(Table::default());
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(thread::available_parallelism().map_or(1, usize::from).min(THREADS));
        let session = Session::from_fd(Answers(Arc::clone(&table)), mounted.device, SessionACL::All, config).map_err(failed)?;
        let notifier = session.notifier();
        let serve = move || {
            let confined = confine::thread(Work::Data).map_err(std::io::Error::other);
            if let Err(error) = confined.and_then(|()| session.run()) {
                tracing::error!(%error, "data is not served any more");
            }
        };
        thread::Builder::new().name("data".into()).spawn(serve).map_err(failed)?;
        Ok(Self { root: mounted.root, notifier, table })
    }

    /// The data of the package with this identity, if a program reads it now: then both share what the kernel keeps of it. Else it is
    /// made with `open`.
    pub fn share(&self, identity: &Identity, open: impl FnOnce() -> Served) -> Arc<Served> {
        let mut inner = self.table.lock();
        inner.shared.retain(|(_, served)| served.strong_count() > 0);
        let found = inner.shared.iter().find(|(of, _)| of == identity).and_then(|(_, served)| served.upgrade());
        found.unwrap_or_else(|| {
            let served = Arc::new(open());
            inner.shared.push((*identity, Arc::downgrade(&served)));
            served
        })
    }

    /// Makes a name for the data.
    pub fn announce(&self, served: &Arc<Served>) -> Result<Announced> {
        let root = fcntl_dupfd_cloexec(&self.root, 0).map_err(|e| Refusal::io("the folder of data", e.into()))?;
        let random: [u8; 16] = fresh(&mut SystemRandom);
        let name = random.iter().fold(String::new(), |mut name, byte| {
            write!(name, "{byte:02x}").expect("a string takes all");
            name
        });
        self.table.lock().names.insert(name.clone(), Arc::clone(served));
        Ok(Announced { name, root, notifier: self.notifier.clone(), table: Arc::clone(&self.table) })
    }
}

impl Announced {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder in which it is good.
    pub fn folder(&self) -> rustix::io::Result<OwnedFd> {
        fcntl_dupfd_cloexec(self.root.as_fd(), 0)
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        let looked_up = self.table.lock().names.remove(&self.name).is_none();
        if looked_up {
            // The kernel would keep the name, and with it the file, until it is short of memory. Without it the file goes with its
            // last descriptor. Where it has none any more, there is nothing to tell.
            let _ = self.notifier.inval_entry(INodeNo::ROOT, OsStr::new(&self.name));
        }
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, number: INodeNo) -> Option<Arc<Served>> {
        self.lock().known.get(&number.0).map(|(served, _)| Arc::clone(served))
    }
}

/// What the kernel is answered. What is not here is refused by the library.
struct Answers(Arc<Table>);

impl Filesystem for Answers {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut inner = self.0.lock();
        let name = std::str::from_utf8(name.as_bytes()).unwrap_or_default();
        let Some(served) = inner.names.remove(name).filter(|_| parent == INodeNo::ROOT) else {
            return reply.error(Errno::ENOENT);
        };
        let attributes = served.attributes();
        inner.known.entry(served.number).or_insert_with(|| (served, 0)).1 += 1;
        drop(inner);
        reply.entry_with_ttls(&UNCHANGED, &NO_TIME, &attributes, Generation(0));
    }

    fn forget(&self, _: &Request, number: INodeNo, times: u64) {
        let mut inner = self.0.lock();
        if let Some((served, looked_up)) = inner.known.get_mut(&number.0) {
            *looked_up = looked_up.saturating_sub(times);
            if *looked_up == 0 {
                tracing::debug!(program = %served.program, "data is not read any more");
                inner.known.remove(&number.0);
            }
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.known(number) {
            Some(served) => reply.attr(&UNCHANGED, &served.attributes()),
            None if number == INodeNo::ROOT => reply.attr(&UNCHANGED, &attributes(number.0, 0, FileType::Directory, 0o111)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.0.known(number) {
            Some(_) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(served) = self.0.known(number) else { return reply.error(Errno::EIO) };
        match served.read(offset, size.into()) {
            Ok(bytes) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
        }
    }
}

fn attributes(number: u64, size: u64, kind: FileType, mode: u16) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 64 * 1024,
        flags: 0,
    }
}
