//! The spool: a folder of this daemon's own with one file for each delivery between its first byte and the moment when the client
//! has the package on its own disk. What lies in it opens nothing before the release token (A26).
//!
//! A delivery of [`KEPT_FROM`] bytes or more has its file under the name of its order and stays when it is cut short, whoever was
//! killed: beside it `ORDER.progress` says of which terms how much of the body is there. The next delivery of that order offers it to the
//! server and opens it anew before anything is added; what does not open is thrown away. Everything else goes with its delivery.

mod progress;

use chipbound_wire::documents::Kept;
use chipbound_wire::random::fresh;
use chipbound_wire::{Code, Digest, Hex, OrderId, Refusal, Result, SystemRandom, Time};
use progress::Progress;
use rustix::fs::{Mode, OFlags};
use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of the smallest body that is kept when its delivery is cut short.
pub const KEPT_FROM: u64 = 1024 * 1024;

/// What the bytes of a delivery are called: an order, or 32 hexadecimal digits that nobody can guess.
const BODY: &str = "delivery";
/// What stands beside those that are kept.
const PROGRESS: &str = "progress";

/// The folder.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    /// Bytes that cut-short deliveries may take together.
    most: u64,
    busy: Arc<Busy>,
}

/// Orders whose file a delivery is at.
#[derive(Default, Debug)]
struct Busy {
    orders: Mutex<HashSet<OrderId>>,
    freed: Condvar,
}

impl Busy {
    fn orders(&self) -> MutexGuard<'_, HashSet<OrderId>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a delivery is of, and for whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Goods {
    /// Digest of the signed terms.
    pub terms: Digest,
    /// Bytes of the body.
    pub size: u64,
    /// Until when it is of use.
    pub until: Time,
    /// The user who asked for it.
    pub uid: u32,
    /// Program and version, for people.
    pub title: String,
}

/// A delivery that was cut short, and waits to go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// Its order.
    pub order: OrderId,
    /// Bytes of the body that are here.
    pub done: u64,
    /// What it is.
    pub goods: Goods,
}

/// The right to an order's file in the spool, which one delivery has at a time.
#[derive(Debug)]
pub struct Place {
    folder: PathBuf,
    /// None where another delivery of the order is at the file.
    order: Option<OrderId>,
    busy: Arc<Busy>,
}

/// One delivery's file. Dropped, it is removed, unless it is one that is kept.
#[derive(Debug)]
pub struct SpoolFile {
    path: PathBuf,
    file: File,
    /// For those that are kept.
    progress: Option<Progress>,
    _place: Place,
}

impl Spool {
    /// Opens the folder, making it with mode 0700 when it is missing, and removes what is of no use any more. At most `most` bytes of
    /// deliveries that were cut short are kept.
    pub fn open(folder: &Path, most: u64, now: Time) -> Result<Self> {
        chipbound_host::files::create_private_folder(folder)?;
        let spool = Self { folder: folder.to_owned(), most, busy: Arc::default() };
        spool.tidy(now)?;
        Ok(spool)
    }

    /// Removes everything but deliveries that wait to go on. Only where no delivery is under way.
    pub fn tidy(&self, now: Time) -> Result<()> {
        let waiting: HashSet<_> = self.waiting()?.into_iter().filter(|w| w.goods.until >= now).map(|w| w.order.to_string()).collect();
        for path in self.files()? {
            let ours = path.extension().is_some_and(|e| e == BODY || e == PROGRESS);
            let kept = path.file_stem().and_then(|stem| stem.to_str()).is_some_and(|stem| waiting.contains(stem));
            if ours && !kept {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// The deliveries that were cut short, the one that was at work last first.
    pub fn waiting(&self) -> Result<Vec<Waiting>> {
        let mut found = Vec::new();
        for path in self.files()?.into_iter().filter(|p| p.extension().is_some_and(|e| e == PROGRESS)) {
            let order = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<OrderId>().ok());
            let (Some(order), Some(progress)) = (order, Progress::read(&path)) else { continue };
            let Progress { goods, done, changed, .. } = progress;
            found.push((changed, Waiting { order, done, goods }));
        }
        found.sort_by_key(|(changed, _)| std::cmp::Reverse(*changed));
        Ok(found.into_iter().map(|(_, waiting)| waiting).collect())
    }

    /// Takes the order's place for one delivery. Where another delivery is at it for longer than `patience`, this one is not kept: one
    /// that was paused a moment ago, and is begun again at once, finds the earlier one still at work on the last bytes that came.
    #[must_use]
    pub fn place(&self, order: OrderId, patience: Duration) -> Place {
        let taken = |orders: &mut HashSet<OrderId>| orders.contains(&order);
        let waited = self.busy.freed.wait_timeout_while(self.busy.orders(), patience, taken);
        let free = waited.unwrap_or_else(PoisonError::into_inner).0.insert(order);
        Place { folder: self.folder.clone(), order: free.then_some(order), busy: Arc::clone(&self.busy) }
    }

    /// Throws away what waits for this order; whether anything did. [`Code::Busy`] while a delivery is at it.
    pub fn forget(&self, order: OrderId) -> Result<bool> {
        let place = self.place(order, Duration::ZERO);
        if place.order.is_none() {
            return Err(Refusal::new(Code::Busy, "a delivery of this order is under way"));
        }
        let waited = place.kept().is_some();
        place.clear()?;
        Ok(waited)
    }

    /// Makes room for `size` more bytes among those that may be kept: the oldest that wait go first.
    fn make_room(&self, size: u64, now: Time) -> Result<()> {
        let mut room = self.most.saturating_sub(size);
        for waiting in self.waiting()? {
            room = match room.checked_sub(waiting.done) {
                Some(rest) if waiting.goods.until >= now => rest,
                _ => {
                    let thrown = self.forget(waiting.order);
                    if matches!(thrown, Ok(true)) {
                        tracing::info!(order = %waiting.order, bytes = waiting.done, "no room to keep this delivery any longer");
                    }
                    room
                }
            };
        }
        Ok(())
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.folder).map_err(|e| Refusal::io(self.folder.display(), e))?;
        Ok(entries.flatten().map(|entry| entry.path()).collect())
    }

    /// A new file for `goods` in `place`, mode 0600; what an earlier delivery of the order left is thrown away.
    pub fn begin(&self, place: Place, goods: Goods, now: Time) -> Result<SpoolFile> {
        place.clear()?;
        let kept = place.order.filter(|_| goods.size >= KEPT_FROM && goods.size <= self.most);
        let path = match kept {
            Some(order) => {
                self.make_room(goods.size, now)?;
                place.path(order, BODY)
            }
            None => self.folder.join(format!("{}.{BODY}", Hex(&fresh::<16>(&mut SystemRandom)))),
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| Refusal::io("making a spool file", e.into()))?;
        let mut file = SpoolFile { path, file: file.into(), progress: None, _place: place };
        if let Some(order) = kept {
            file.progress = Some(Progress::create(&file._place.path(order, PROGRESS), goods)?);
        }
        Ok(file)
    }
}

impl Place {
    /// What an earlier delivery of the order left here, to be offered.
    #[must_use]
    pub fn kept(&self) -> Option<Kept> {
        let Progress { goods, done, .. } = Progress::read(&self.path(self.order?, PROGRESS))?;
        (done > 0).then_some(Kept { terms: goods.terms, bytes: done })
    }

    /// The file of which [`Self::kept`] spoke.
    pub fn go_on(self) -> Result<SpoolFile> {
        let order = self.order.ok_or_else(|| Refusal::new(Code::Internal, "nothing was kept of this delivery"))?;
        let path = self.path(order, BODY);
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| Refusal::io("a spool file", e.into()))?;
        let progress = Progress::go_on(&self.path(order, PROGRESS))?;
        Ok(SpoolFile { path, file: file.into(), progress: Some(progress), _place: self })
    }

    fn path(&self, order: OrderId, extension: &str) -> PathBuf {
        self.folder.join(format!("{order}.{extension}"))
    }

    fn clear(&self) -> Result<()> {
        let Some(order) = self.order else { return Ok(()) };
        // Without its progress a body is of no use, so that this order of things leaves nothing that is believed.
        [PROGRESS, BODY].into_iter().try_for_each(|extension| remove(&self.path(order, extension)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(order) = self.order {
            self.busy.orders().remove(&order);
            self.busy.freed.notify_all();
        }
    }
}

impl SpoolFile {
    /// Writes all of `bytes` at `offset`; [`Code::DiskFull`] when there is no room.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| Refusal::io("writing the spool", e))
    }

    /// Fills `bytes` from `offset`.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(bytes, offset).map_err(|e| Refusal::io("reading the spool", e))
    }

    /// Bytes of the body that an earlier delivery left here.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.progress.as_ref().map_or(0, |p| p.done)
    }

    /// The first `done` bytes of the body are here, with their tags.
    pub fn advance(&mut self, done: u64) -> Result<()> {
        self.progress.as_mut().map_or(Ok(()), |progress| progress.advance(done))
    }

    /// The delivery has come to its end: nothing of it is kept.
    pub fn discard(mut self) {
        self.forget();
    }

    fn forget(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.remove();
        }
    }

    /// Another descriptor of the file that can only read.
    pub fn reader(&self) -> Result<File> {
        let reader = File::open(&self.path).map_err(|e| Refusal::io("the spool", e))?;
        let same = |a: &fs::Metadata, b: &fs::Metadata| {
            use std::os::unix::fs::MetadataExt;
            (a.dev(), a.ino()) == (b.dev(), b.ino())
        };
        match (reader.metadata(), self.file.metadata()) {
            (Ok(a), Ok(b)) if same(&a, &b) => Ok(reader),
            _ => Err(Refusal::new(Code::Io, "the spool file is not the one that was written")),
        }
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        if self.done() > 0 {
            return; // It waits to go on.
        }
        self.forget();
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, "a spool file could not be removed");
        }
    }
}

/// Removes a file that may be gone already.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Refusal::io(path.display(), e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const NOW: Time = Time(1000);
    const MOST: u64 = 10 * KEPT_FROM;

    fn spool(folder: &tempfile::TempDir) -> Spool {
        Spool::open(&folder.path().join("spool"), MOST, NOW).expect("spool")
    }

    fn goods(size: u64) -> Goods {
        Goods { terms: Digest([1; 32]), size, until: NOW.after(100), uid: 7, title: "tool 1.0".to_owned() }
    }

    fn order(n: u8) -> OrderId {
        OrderId([n; 16])
    }

    /// A delivery of 2 MiB that came as far as `done`.
    fn cut_short(spool: &Spool, n: u8, done: u64) {
        let mut file = spool.begin(spool.place(order(n), Duration::ZERO), goods(2 * KEPT_FROM), NOW).expect("file");
        file.write_at(&[n; 100], 0).expect("written");
        file.advance(done).expect("advanced");
    }

    #[test]
    fn a_small_delivery_is_its_owners_alone_and_goes_with_its_file() {
        let folder = tempfile::tempdir().expect("folder");
        let spool = spool(&folder);
        let mut file = spool.begin(spool.place(order(1), Duration::ZERO), goods(KEPT_FROM - 1), NOW).expect("file");
        let path = file.path.clone();
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().expect("folder")).expect("there").permissions().mode() & 0o777, 0o700);
        file.write_at(b"body", 0).expect("written");
        file.advance(4).expect("nothing is kept of it");
        assert!(file.reader().expect("reader").write_at(b"x", 0).is_err(), "the reader cannot write");
        drop(file);
        assert!(!path.exists() && spool.waiting().expect("read").is_empty());
    }

    #[test]
    fn a_delivery_that_was_cut_short_waits_across_a_restart_and_goes_when_it_is_done_or_too_old() {
        let folder = tempfile::tempdir().expect("folder");
        let first = spool(&folder);
        cut_short(&first, 1, KEPT_FROM);
        cut_short(&first, 2, 0);
        std::mem::forget(first.begin(first.place(order(3), Duration::ZERO), goods(10), NOW).expect("file")); // As if it were killed now.
        let again = spool(&folder);
        let waiting = Waiting { order: order(1), done: KEPT_FROM, goods: goods(2 * KEPT_FROM) };
        assert_eq!(again.waiting().expect("read"), [waiting]);
        assert_eq!(again.files().expect("files").len(), 2, "of the others nothing is left");
        let place = again.place(order(1), Duration::ZERO);
        assert_eq!(place.kept(), Some(Kept { terms: Digest([1; 32]), bytes: KEPT_FROM }));
        let file = place.go_on().expect("goes on");
        let mut bytes = [0; 100];
        file.read_at(&mut bytes, 0).expect("read");
        assert_eq!((file.done(), bytes), (KEPT_FROM, [1; 100]));
        file.discard();
        assert!(again.files().expect("files").is_empty());
        cut_short(&again, 1, KEPT_FROM);
        again.tidy(NOW.after(101)).expect("tidied");
        assert!(again.files().expect("files").is_empty(), "too old");
    }

    #[test]
    fn two_deliveries_of_one_order_do_not_write_one_file() {
        let folder = tempfile::tempdir().expect("folder");
        let spool = spool(&folder);
        let first = spool.begin(spool.place(order(1), Duration::ZERO), goods(2 * KEPT_FROM), NOW).expect("file");
        let second = spool.begin(spool.place(order(1), Duration::ZERO), goods(2 * KEPT_FROM), NOW).expect("another");
        assert_ne!(first.path, second.path);
        assert_eq!(spool.forget(order(1)).expect_err("at work").code, Code::Busy);
        drop((first, second));
        assert!(!spool.forget(order(1)).expect("nothing waits"));
    }

    #[test]
    fn a_delivery_that_is_begun_again_at_once_goes_on_after_the_one_that_was_cut_short() {
        let folder = tempfile::tempdir().expect("folder");
        let spool = spool(&folder);
        let mut paused = spool.begin(spool.place(order(1), Duration::ZERO), goods(2 * KEPT_FROM), NOW).expect("file");
        std::thread::scope(|scope| {
            let again = scope.spawn(|| spool.place(order(1), Duration::from_secs(600)).kept());
            paused.write_at(&[1; KEPT_FROM as usize], 0).expect("written");
            paused.advance(KEPT_FROM).expect("noted");
            drop(paused);
            assert_eq!(again.join().expect("it ends"), Some(Kept { terms: Digest([1; 32]), bytes: KEPT_FROM }));
        });
    }

    #[test]
    fn what_waits_is_bounded_and_the_oldest_goes_first() {
        let folder = tempfile::tempdir().expect("folder");
        let spool = spool(&folder);
        for n in 1..=8 {
            cut_short(&spool, n, 2 * KEPT_FROM);
            filetime(&spool, n);
        }
        let left: Vec<_> = spool.waiting().expect("read").iter().map(|w| w.order).collect();
        assert_eq!(left, [8, 7, 6, 5, 4].map(order));
        let large = spool.begin(spool.place(order(9), Duration::ZERO), goods(MOST + 1), NOW).expect("file");
        assert!(large.progress.is_none(), "one that is larger than all that may be kept is not kept, and nothing goes for it");
        assert_eq!(spool.waiting().expect("read").len(), 5);
    }

    /// Steps of the file system's clock are coarse: the order of these is made plain.
    fn filetime(spool: &Spool, n: u8) {
        let file = File::options().write(true).open(spool.place(order(n), Duration::ZERO).path(order(n), PROGRESS)).expect("open");
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(n))).expect("set");
    }

    #[test]
    fn a_progress_that_is_damaged_is_none() {
        let folder = tempfile::tempdir().expect("folder");
        let spool = spool(&folder);
        cut_short(&spool, 1, KEPT_FROM);
        let path = spool.place(order(1), Duration::ZERO).path(order(1), PROGRESS);
        let whole = fs::read(&path).expect("read");
        for bad in [&whole[..60], &[], &[&whole[..], &[b'x'; 300][..]].concat(), &[&[!whole[0]], &whole[1..]].concat()] {
            fs::write(&path, bad).expect("written");
            assert!(spool.place(order(1), Duration::ZERO).kept().is_none() && spool.waiting().expect("read").is_empty());
        }
    }
}
