//! Files that are there whole or not at all.

use chipbound_wire::{Code, Hex, Random, Refusal, Result, SystemRandom, random::fresh};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The mode of a file that only its owner reads.
pub const PRIVATE: u32 = 0o600;
/// The mode of a file that anybody may read.
pub const PUBLIC: u32 = 0o644;

/// A file under a temporary name beside its target; it takes the target's name only when it is whole and on the disk.
/// Dropped before that, it is removed.
#[derive(Debug)]
pub struct Pending {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    kept: bool,
}

impl Pending {
    /// Creates the temporary file in the folder of `target`, with the mode given.
    pub fn create(target: &Path, mode: u32) -> Result<Self> {
        let suffix = fresh::<8>(&mut SystemRandom as &mut dyn Random);
        let name = target.file_name().ok_or_else(|| Refusal::new(Code::Io, format!("{} names no file", target.display())))?;
        let temporary = folder(target).join(format!(".{}.{}.part", name.to_string_lossy(), Hex(&suffix)));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(&temporary);
        let file = file.map_err(|e| Refusal::io(format_args!("cannot create {}", target.display()), e))?;
        Ok(Self { file, temporary, target: target.to_owned(), kept: false })
    }

    /// The same, after what killed processes left of this target was removed. The file is locked (flock(2)) for as long as it is open, by
    /// which it is known that somebody writes it.
    pub fn create_anew(target: &Path, mode: u32) -> Result<Self> {
        remove_left(target);
        loop {
            let pending = Self::create(target, mode)?;
            // Whoever tidies up may have seen it before it was locked.
            let locked = flock(&pending.file, FlockOperation::NonBlockingLockExclusive);
            let removed = pending.file.metadata().is_ok_and(|file| file.nlink() == 0);
            if !removed && locked != Err(Errno::WOULDBLOCK) {
                return Ok(pending);
            }
        }
    }

    /// The file, to be written.
    #[must_use]
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Puts it on the disk, then under its name, then the folder on the disk.
    pub fn keep(mut self) -> Result<()> {
        let failed = |e| Refusal::io(format_args!("cannot write {}", self.target.display()), e);
        self.file.sync_all().map_err(failed)?;
        std::fs::rename(&self.temporary, &self.target).map_err(failed)?;
        self.kept = true;
        sync_folder(&self.target)
    }

    /// The same, refusing with [`Code::Conflict`] where the name is taken already.
    pub fn keep_new(mut self) -> Result<()> {
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::AlreadyExists => Refusal::new(Code::Conflict, format!("{} is there already", self.target.display())),
            _ => Refusal::io(format_args!("cannot write {}", self.target.display()), e),
        };
        self.file.sync_all().map_err(failed)?;
        rustix::fs::renameat_with(rustix::fs::CWD, &self.temporary, rustix::fs::CWD, &self.target, rustix::fs::RenameFlags::NOREPLACE)
            .map_err(|e| failed(e.into()))?;
        self.kept = true;
        sync_folder(&self.target)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing can be done about a file that cannot be removed; its name says what it is.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Removes temporary files of the target that nobody has locked. What cannot be looked at stays.
fn remove_left(target: &Path) {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let is_ours = |file: &str| target_of(file) == Some(&*name);
    let Ok(entries) = std::fs::read_dir(folder(target)) else { return };
    for entry in entries.flatten().filter(|entry| is_ours(&entry.file_name().to_string_lossy())) {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let Ok(file) = OpenOptions::new().read(true).custom_flags(flags).open(entry.path()) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = std::fs::remove_file(entry.path()); // Its name says what it is.
        }
    }
}

/// The name that a temporary file of [`Pending`] is to have in the end; none for every other file.
#[must_use]
pub fn target_of(temporary: &str) -> Option<&str> {
    let (target, digits) = temporary.strip_prefix('.')?.strip_suffix(".part")?.rsplit_once('.')?;
    (digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then_some(target)
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn sync_folder(path: &Path) -> Result<()> {
    let folder = folder(path);
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Refusal::io(format_args!("cannot sync {}", folder.display()), e))
}

/// Writes `bytes` to `path` so that after any crash the old content or the new one is there, never a mixture.
pub fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut pending = Pending::create(path, mode)?;
    pending.file().write_all(bytes).map_err(|e| Refusal::io(format_args!("cannot write {}", path.display()), e))?;
    pending.keep()
}

/// Writes a file that must not be there yet ([`Code::Conflict`]).
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut pending = Pending::create(path, mode)?;
    pending.file().write_all(bytes).map_err(|e| Refusal::io(format_args!("cannot write {}", path.display()), e))?;
    pending.keep_new()
}

/// Reads a file of at most `limit` bytes.
pub fn read(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| Refusal::io(format_args!("cannot read {}", path.display()), e))?;
    read_limited(file, path, limit)
}

/// Opens a file for reading without waiting for anybody, as opening a pipe that nobody writes to would.
pub fn open_at_once(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// Reads a file that holds a secret: it must belong to this process's user and nobody else may touch it
/// ([`Code::InsecurePermissions`]).
pub fn read_private(path: &Path, limit: usize) -> Result<Vec<u8>> {
    read_limited(open_private(path)?, path, limit)
}

/// Fills `secret` with a file like that; whether it is of exactly that length. No other memory holds any of it.
pub fn read_private_exactly(path: &Path, secret: &mut [u8]) -> Result<bool> {
    let file = open_private(path)?;
    let whole = file.metadata().is_ok_and(|meta| meta.len() == secret.len() as u64);
    Ok(whole && (&file).read_exact(secret).is_ok())
}

fn open_private(path: &Path) -> Result<File> {
    let failed = |e| Refusal::io(format_args!("cannot read {}", path.display()), e);
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if meta.permissions().mode() & 0o077 != 0 || meta.uid() != geteuid().as_raw() {
        let detail = format!("{} has mode {:04o} and owner {}", path.display(), meta.permissions().mode() & 0o7777, meta.uid());
        return Err(Refusal::new(Code::InsecurePermissions, detail));
    }
    Ok(file)
}

fn read_limited(file: File, path: &Path, limit: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|e| Refusal::io(format_args!("cannot read {}", path.display()), e))?;
    if bytes.len() > limit {
        return Err(Refusal::new(Code::TooLarge, format!("{} is larger than {limit} bytes", path.display())));
    }
    Ok(bytes)
}

/// Makes a folder (and its parents) that only its owner may enter; one that is there already is left as it is.
pub fn create_private_folder(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| Refusal::io(format_args!("cannot create the folder {}", path.display()), e))
}

/// Takes away what a failed `init` made in a folder that [`create_new_installation`] found empty, so that the same command can be given
/// again. What cannot be taken away stays: the next `init` says so.
pub fn clear_installation(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let _ = match entry.file_type() {
            Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(entry.path()),
            _ => std::fs::remove_file(entry.path()),
        };
    }
}

/// Makes the folder of a new installation: it must not be there yet, or be empty ([`Code::Conflict`]).
pub fn create_new_installation(path: &Path) -> Result<()> {
    create_private_folder(path)?;
    let mut entries = std::fs::read_dir(path).map_err(|e| Refusal::io(format_args!("cannot read {}", path.display()), e))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Refusal::new(Code::Conflict, format!("{} is not empty; nothing in it was touched", path.display()))),
    }
}
