//! Where plaintext programs, common ciphertext and the ciphertext of deliveries under way lie: an object store, today a folder.
//! Plaintext lies nowhere else.

use blake3::Hasher;
use bytes::{Bytes, BytesMut};
use chipbound_wire::random::fresh;
use chipbound_wire::{Code, Digest, Hex, Refusal, Result, SystemRandom};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{GetResultPayload, MultipartUpload, ObjectStoreExt as _};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::{DirEntry, File};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes that are written at once.
const PART: usize = 1024 * 1024;

/// The blobs of one installation.
#[derive(Clone, Debug)]
pub struct Blobs {
    store: std::sync::Arc<LocalFileSystem>,
    folder: PathBuf,
}

/// A server works with the folder of blobs for as long as this lives.
#[derive(Debug)]
pub struct Entered {
    folder: File,
    alone: bool,
}

impl Entered {
    /// Whether no other server works with the folder, nor can until [`Self::share`].
    #[must_use]
    pub fn alone(&self) -> bool {
        self.alone
    }

    /// Lets other servers in.
    pub fn share(&mut self) -> Result<()> {
        self.alone = false;
        flock(&self.folder, FlockOperation::LockShared).map_err(|e| cannot_lock(e.into()))
    }
}

fn cannot_lock(error: std::io::Error) -> Refusal {
    Refusal::io("locking the store of programs", error)
}

/// What was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// BLAKE3 root of the bytes.
    pub root: Digest,
    /// How many.
    pub size: u64,
}

/// What a blob holds, the first part of its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A plaintext program.
    Plain,
    /// Ciphertext of common key mode: for each chunk its tags, then its bytes.
    Common,
    /// Ciphertext that was made for one order, in the same form: until its processor has it.
    Order,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Plain, Self::Common, Self::Order];

    fn folder(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Common => "common",
            Self::Order => "order",
        }
    }

    /// A name that no other blob has.
    #[must_use]
    pub fn new_name(self) -> String {
        format!("{}/{}", self.folder(), Hex(&fresh::<16>(&mut SystemRandom)))
    }
}

fn failed(error: object_store::Error) -> Refusal {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Refusal::io("the store of programs", std::io::Error::from(io.kind()));
        }
        source = error.source();
    }
    Refusal::new(Code::Io, "the store of programs failed").because(error)
}

impl Blobs {
    /// Opens the folder, making it (mode 0700) if it is not there.
    pub fn open(folder: &Path) -> Result<Self> {
        for kind in Kind::ALL {
            chipbound_host::files::create_private_folder(&folder.join(kind.folder()))?;
        }
        let store = LocalFileSystem::new_with_prefix(folder).map_err(failed)?.with_fsync(true);
        Ok(Self { store: std::sync::Arc::new(store), folder: folder.to_owned() })
    }

    /// Begins a blob that is there when it is finished, and not before.
    pub async fn begin(&self, name: &str) -> Result<Writing> {
        let upload = self.store.put_multipart(&ObjectPath::from(name)).await.map_err(failed)?;
        let file = self.folder.join(name);
        Ok(Writing { upload, file, buffer: BytesMut::with_capacity(PART), hash: Hasher::new(), size: 0 })
    }

    /// Writes everything that `source` gives, in bounded memory.
    pub async fn write(&self, name: &str, mut source: impl AsyncRead + Unpin) -> Result<Written> {
        let mut writing = self.begin(name).await?;
        loop {
            match source.read_buf(&mut writing.buffer).await {
                Ok(0) => return writing.finish().await,
                Ok(n) => writing.taken(n).await?,
                Err(error) => {
                    writing.abort().await;
                    return Err(chipbound_transport::refusal_of("receiving the plaintext", error));
                }
            }
        }
    }

    /// Writes a blob of a backup under the name that it had: of a program or its common ciphertext. [`Code::Malformed`] for another name.
    pub(crate) async fn restore(&self, name: &str, source: &mut dyn std::io::Read) -> Result<()> {
        let (folder, rest) = name.split_once('/').unwrap_or_default();
        let known = [Kind::Plain, Kind::Common].iter().any(|kind| kind.folder() == folder);
        if !known || rest.len() != 32 || !rest.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Refusal::new(Code::Malformed, "the backup has a program under a name that no program has"));
        }
        let mut writing = self.begin(name).await?;
        let mut buffer = vec![0; PART];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => return writing.finish().await.map(drop),
                Ok(n) => writing.put(&buffer[..n]).await?,
                Err(error) => return Err(Refusal::io("reading the backup", error)),
            }
        }
    }

    /// A blob of `size` bytes that is written and read at once, mode 0600, with the room for it set aside; [`Code::DiskFull`] where there
    /// is none. It is on the disk when whoever writes it syncs it, and goes with the next start if nothing refers to it.
    pub(crate) fn create(&self, name: &str, size: u64) -> Result<File> {
        let failed = |e| Refusal::io("the store of programs", e);
        let path = self.folder.join(name);
        let file =
            File::options().read(true).write(true).create_new(true).mode(chipbound_host::files::PRIVATE).open(&path).map_err(failed)?;
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, size.max(1)) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(file),
            Err(e) => {
                std::fs::remove_file(&path).map_err(failed)?;
                Err(failed(e.into()))
            }
        }
    }

    /// The blob, for reading at any offset.
    pub async fn read(&self, name: &str) -> Result<File> {
        match self.store.get(&ObjectPath::from(name)).await.map_err(failed)?.payload {
            GetResultPayload::File(file, _) => Ok(file),
            GetResultPayload::Stream(_) => Err(Refusal::new(Code::Internal, "a folder gave no file")),
        }
    }

    /// Removes the blob, if it is there.
    pub async fn remove(&self, name: &str) -> Result<()> {
        match self.store.delete(&ObjectPath::from(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Says that a server works with the folder, for as long as what is returned lives (flock(2)). Waits while one that found itself
    /// alone tidies up.
    pub fn enter(&self) -> Result<Entered> {
        let folder = File::open(&self.folder).map_err(cannot_lock)?;
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Entered { folder, alone: true }),
            Err(Errno::WOULDBLOCK) => {
                flock(&folder, FlockOperation::LockShared).map_err(|e| cannot_lock(e.into()))?;
                Ok(Entered { folder, alone: false })
            }
            Err(e) => Err(cannot_lock(e.into())),
        }
    }

    /// Where the blobs lie.
    pub(crate) fn folder(&self) -> std::path::Display<'_> {
        self.folder.display()
    }

    /// Whether there is no blob at all.
    pub(crate) fn is_empty(&self) -> Result<bool> {
        for kind in Kind::ALL {
            let folder = self.folder.join(kind.folder());
            let failed = |e| Refusal::io(format_args!("cannot read {}", folder.display()), e);
            if std::fs::read_dir(&folder).map_err(failed)?.next().is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes every file to which nothing in `in_use` refers: what a killed server left half-written. Only before anything is
    /// being written, or beside other servers with `spared` above zero: what was changed for less than that time ago stays. Returns how many.
    pub fn sweep(&self, in_use: &HashSet<String>, spared: Duration) -> Result<usize> {
        let mut removed = 0;
        for kind in Kind::ALL {
            let folder = self.folder.join(kind.folder());
            let failed = |e| Refusal::io(format_args!("cannot tidy {}", folder.display()), e);
            for entry in std::fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = format!("{}/{}", kind.folder(), entry.file_name().to_string_lossy());
                if in_use.contains(&name) || !spared.is_zero() && !is_older(&entry, spared) {
                    continue;
                }
                match std::fs::remove_file(entry.path()) {
                    Ok(()) => removed += 1,
                    Err(e) if e.kind() == ErrorKind::NotFound => {} // Another server was at it.
                    Err(e) => return Err(failed(e)),
                }
            }
        }
        Ok(removed)
    }
}

/// Whether the file is there and was not changed for so long.
fn is_older(entry: &DirEntry, than: Duration) -> bool {
    let changed = entry.metadata().and_then(|file| file.modified());
    changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age > than))
}

/// A blob that is being written. Dropped before [`Self::finish`], it never was.
pub struct Writing {
    upload: Box<dyn MultipartUpload>,
    file: PathBuf,
    buffer: BytesMut,
    hash: Hasher,
    size: u64,
}

impl std::fmt::Debug for Writing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Writing({}, {} bytes)", self.file.display(), self.size)
    }
}

impl Writing {
    /// Adds bytes.
    pub async fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (some, rest) = bytes.split_at(bytes.len().min(PART - self.buffer.len()));
            self.buffer.extend_from_slice(some);
            self.taken(some.len()).await?;
            bytes = rest;
        }
        Ok(())
    }

    /// `n` more bytes are in the buffer.
    async fn taken(&mut self, n: usize) -> Result<()> {
        self.hash.update(&self.buffer[self.buffer.len() - n..]);
        self.size += n as u64;
        if self.buffer.len() < PART {
            return Ok(());
        }
        let part = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(PART));
        self.send(part.freeze()).await
    }

    async fn send(&mut self, part: Bytes) -> Result<()> {
        self.upload.put_part(part.into()).await.map_err(failed)
    }

    /// Puts the blob under its name and on the disk, mode 0600.
    pub async fn finish(mut self) -> Result<Written> {
        let rest = std::mem::take(&mut self.buffer).freeze();
        if !rest.is_empty() || self.size == 0 {
            self.send(rest).await?;
        }
        self.upload.complete().await.map_err(failed)?;
        let private = std::fs::Permissions::from_mode(chipbound_host::files::PRIVATE);
        std::fs::set_permissions(&self.file, private).map_err(|e| Refusal::io("the store of programs", e))?;
        Ok(Written { root: Digest(*self.hash.finalize().as_bytes()), size: self.size })
    }

    /// Gives it up.
    pub async fn abort(mut self) {
        if let Err(error) = self.upload.abort().await {
            tracing::warn!(%error, "an unfinished blob could not be removed; the next start does it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs() -> (tempfile::TempDir, Blobs) {
        let folder = tempfile::tempdir().expect("a folder");
        let blobs = Blobs::open(&folder.path().join("blobs")).expect("a store");
        (folder, blobs)
    }

    #[tokio::test]
    async fn a_blob_is_read_back_as_it_was_written_and_only_its_owner_may() {
        let (_folder, blobs) = blobs();
        for size in [0usize, 1, PART - 1, PART, 2 * PART + 17] {
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let name = Kind::Plain.new_name();
            let written = blobs.write(&name, bytes.as_slice()).await.expect("written");
            assert_eq!(written, Written { root: Digest::of(&bytes), size: size as u64 });
            let file = blobs.read(&name).await.expect("there");
            assert_eq!(file.metadata().expect("metadata").permissions().mode() & 0o777, 0o600);
            let mut back = vec![0; size];
            chipbound_sealing::ReadAt::read_exact_at(&file, &mut back, 0).expect("read back");
            assert_eq!(back, bytes);
        }
        assert_eq!(std::fs::metadata(blobs.folder.join("plain")).expect("metadata").permissions().mode() & 0o777, 0o700);
    }

    #[tokio::test]
    async fn what_was_not_finished_never_was_and_the_sweep_leaves_only_what_is_in_use() {
        let (_folder, blobs) = blobs();
        let kept = Kind::Common.new_name();
        blobs.write(&kept, b"kept".as_slice()).await.expect("written");
        let lost = Kind::Plain.new_name();
        blobs.write(&lost, b"lost".as_slice()).await.expect("written");
        let half = Kind::Plain.new_name();
        let mut writing = blobs.begin(&half).await.expect("begun");
        writing.put(&vec![1; PART + 1]).await.expect("put");
        assert!(blobs.read(&half).await.is_err(), "not there before it is finished");
        std::mem::forget(writing); // As if the server were killed now.
        let removed = blobs.sweep(&HashSet::from([kept.clone()]), Duration::ZERO).expect("swept");
        assert!(removed >= 1);
        assert!(blobs.read(&kept).await.is_ok() && blobs.read(&lost).await.is_err());
        assert_eq!(std::fs::read_dir(blobs.folder.join("plain")).expect("the folder").count(), 0, "nothing half-written is left");
    }

    #[tokio::test]
    async fn what_another_server_may_be_writing_is_spared() {
        let (folder, blobs) = blobs();
        let mut first = blobs.enter().expect("the first server");
        assert!(first.alone());
        first.share().expect("it tidied up");
        let mut writing = blobs.begin(&Kind::Plain.new_name()).await.expect("begun");
        writing.put(&vec![1; PART + 1]).await.expect("put");
        let unrecorded = Kind::Common.new_name();
        blobs.write(&unrecorded, b"not on record yet".as_slice()).await.expect("written");
        let old = folder.path().join("blobs").join(Kind::Order.new_name());
        std::fs::write(&old, b"left").expect("written");
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
        File::options().append(true).open(&old).expect("the file").set_modified(long_ago).expect("an older one");

        let second = Blobs::open(&folder.path().join("blobs")).expect("the same store");
        let entered = second.enter().expect("the second server");
        assert!(!entered.alone(), "the first one works with it");
        assert_eq!(second.sweep(&HashSet::new(), Duration::from_secs(3600)).expect("swept"), 1);
        assert!(!old.exists(), "nobody writes that any more");
        writing.finish().await.expect("the first server's is whole");
        assert!(blobs.read(&unrecorded).await.is_ok());
        drop((first, entered));
        assert!(blobs.enter().expect("after both").alone());
    }
}
