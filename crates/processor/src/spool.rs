//! The spool: a folder of this daemon's own with one file for each delivery between its first byte and the moment when the client
//! has the package on its own disk. What lies in it opens nothing before the release token (A26).

use chipbound_wire::random::fresh;
use chipbound_wire::{Code, Hex, Refusal, Result, SystemRandom};
use rustix::fs::{Mode, OFlags};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// How the files are named, after 32 hexadecimal digits.
const SUFFIX: &str = ".delivery";

/// The folder.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
}

/// One delivery's file, removed when this is dropped.
#[derive(Debug)]
pub struct SpoolFile {
    path: PathBuf,
    file: File,
}

impl Spool {
    /// Opens the folder, making it with mode 0700 when it is missing, and removes what a crash left in it.
    pub fn open(folder: &Path) -> Result<Self> {
        chipbound_host::files::create_private_folder(folder)?;
        let spool = Self { folder: folder.to_owned() };
        spool.clear()?;
        Ok(spool)
    }

    /// Removes every delivery.
    pub fn clear(&self) -> Result<()> {
        let folder = &self.folder;
        let entries = fs::read_dir(folder).map_err(|e| Refusal::io(folder.display(), e))?;
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().ends_with(SUFFIX) {
                fs::remove_file(entry.path()).map_err(|e| Refusal::io(entry.path().display(), e))?;
            }
        }
        Ok(())
    }

    /// A new file of mode 0600 under a name that nobody can guess.
    pub fn create(&self) -> Result<SpoolFile> {
        let name = format!("{}{SUFFIX}", Hex(&fresh::<16>(&mut SystemRandom)));
        let path = self.folder.join(name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| Refusal::io("making a spool file", e.into()))?;
        Ok(SpoolFile { path, file: file.into() })
    }
}

impl SpoolFile {
    /// Writes all of `bytes` at `offset`; [`Code::DiskFull`] when there is no room.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| Refusal::io("writing the spool", e))
    }

    /// The file, for the writer that appends the trailer.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Bytes written so far.
    pub fn size(&self) -> Result<u64> {
        self.file.metadata().map(|m| m.len()).map_err(|e| Refusal::io("the spool", e))
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
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, "a spool file could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_spool_file_is_its_owners_alone_and_goes_with_its_delivery() {
        let folder = tempfile::tempdir().expect("folder");
        let spool = Spool::open(&folder.path().join("spool")).expect("spool");
        let file = spool.create().expect("file");
        let path = file.path.clone();
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().expect("folder")).expect("there").permissions().mode() & 0o777, 0o700);
        file.write_at(b"body", 0).expect("written");
        assert!(file.reader().expect("reader").write_at(b"x", 0).is_err(), "the reader cannot write");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_crash_left_is_removed_on_start() {
        let folder = tempfile::tempdir().expect("folder");
        let spool = Spool::open(&folder.path().join("spool")).expect("spool");
        let left = spool.create().expect("file");
        let path = left.path.clone();
        std::mem::forget(left);
        Spool::open(&folder.path().join("spool")).expect("spool again");
        assert!(!path.exists());
    }
}
