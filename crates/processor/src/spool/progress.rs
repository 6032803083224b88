//! How far a delivery has come: a small file beside its bytes, of which the last number is written over after each chunk. It only says
//! what to offer: every byte is opened and hashed again before it counts.

use super::{Goods, remove};
use chipbound_wire::limits::{MAX_CHUNK, MAX_NAME};
use chipbound_wire::{Digest, Refusal, Result, Time};
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Begins the file: what it is, and the version of its form.
const MAGIC: [u8; 8] = *b"cbspool1";
/// Magic, digest of the terms, then numbers, big endian: bytes done, size of the body, until when, whose; and the title for people.
const LENGTH: usize = DONE_AT as usize + 4 * 8;
const DONE_AT: u64 = 8 + 32;
/// Bytes of the longest title: a program's name and version.
const MAX_TITLE: usize = 2 * MAX_NAME;

/// The file.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) goods: Goods,
    pub(super) done: u64,
    pub(super) changed: SystemTime,
    file: File,
    path: PathBuf,
}

impl Progress {
    /// A new file, of mode 0600: nothing is done.
    pub(super) fn create(path: &Path, goods: Goods) -> Result<Self> {
        let failed = |e| Refusal::io("making a spool file", e);
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        let numbers = [0, goods.size, goods.until.0, goods.uid.into()].map(u64::to_be_bytes).concat();
        let title = &goods.title.as_bytes()[..goods.title.floor_char_boundary(MAX_TITLE)];
        file.write_all_at(&[&MAGIC[..], &goods.terms.0, &numbers, title].concat(), 0).map_err(failed)?;
        Ok(Self { goods, done: 0, changed: SystemTime::now(), file, path: path.to_owned() })
    }

    /// The file of an earlier delivery, to be written on.
    pub(super) fn go_on(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path).map_err(|e| Refusal::io("a spool file", e))?;
        Self::of(file, path).ok_or_else(|| Refusal::new(chipbound_wire::Code::Io, "a spool file was changed meanwhile"))
    }

    /// The same to be looked at; None where it is not there, or damaged.
    pub(super) fn read(path: &Path) -> Option<Self> {
        Self::of(File::open(path).ok()?, path)
    }

    fn of(file: File, path: &Path) -> Option<Self> {
        let meta = file.metadata().ok().filter(|m| (LENGTH..=LENGTH + MAX_TITLE).contains(&(m.len() as usize)))?;
        let mut bytes = vec![0; meta.len() as usize];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (terms, rest) = rest.split_first_chunk::<32>()?;
        let (numbers, title) = rest.split_at_checked(4 * 8)?;
        let mut numbers = numbers.as_chunks::<8>().0.iter().map(|n| u64::from_be_bytes(*n));
        let (done, size, until, uid) = (numbers.next()?, numbers.next()?, numbers.next()?, numbers.next()?);
        let (title, uid) = (String::from_utf8(title.to_vec()).ok()?, u32::try_from(uid).ok()?);
        let whole = done == size || (done < size && done.is_multiple_of(MAX_CHUNK as u64));
        let goods = Goods { terms: Digest(*terms), size, until: Time(until), uid, title };
        whole.then(|| Self { goods, done, changed: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), file, path: path.to_owned() })
    }

    /// So many bytes are done.
    pub(super) fn advance(&mut self, done: u64) -> Result<()> {
        self.file.write_all_at(&done.to_be_bytes(), DONE_AT).map_err(|e| Refusal::io("writing the spool", e))?;
        self.done = done;
        Ok(())
    }

    /// Removes the file.
    pub(super) fn remove(self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!(%error, "a spool file could not be removed");
        }
    }
}
