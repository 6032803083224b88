//! Step 1115 (1011): the package on the client's disk, whole or not at all.

use super::blocking;
use super::placing::name_interpreter;
use chipbound_host::files::Pending;
use chipbound_wire::{Code, Refusal, Result};
use rustix::fs::{Advice, FallocateFlags, copy_file_range, fadvise, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Bytes copied at once inside the kernel; after each piece the disk begins to write it.
const PIECE: usize = 8 * 1024 * 1024;
/// Bytes copied at once by hand.
const PIECE_BY_HAND: usize = 256 * 1024;

/// The program's name in the current folder; [`Code::Conflict`] when something is there already.
pub fn default_target(name: &str) -> Result<PathBuf> {
    let target = PathBuf::from(name);
    if target.symlink_metadata().is_ok() {
        return Err(Refusal::new(Code::Conflict, format!("{name} is there already; name the package's file with -o")));
    }
    Ok(target)
}

/// A package on its way to the disk: a file under a temporary name in the target's folder, removed unless it was taken to its
/// end.
#[derive(Debug)]
pub struct Partial {
    pending: Pending,
    target: PathBuf,
}

impl Partial {
    /// Makes the file, after what a killed client left of that target; [`Code::Conflict`] where the target is something else than a file,
    /// which would be replaced.
    pub fn beside(target: &Path) -> Result<Self> {
        let target = std::path::absolute(target).map_err(|e| Refusal::io(target.display(), e))?;
        if target.is_dir() {
            return Err(Refusal::new(Code::Conflict, format!("{} is a folder; name a file", target.display())));
        }
        if target.symlink_metadata().is_ok_and(|meta| !meta.is_file() && !meta.is_symlink()) {
            return Err(Refusal::new(Code::Conflict, format!("{} is there and is no file; name another with -o", target.display())));
        }
        Ok(Self { pending: Pending::create_anew(&target, 0o666)?, target })
    }

    /// Has the file system set room for `size` bytes aside, where it can; [`Code::DiskFull`] where there is none.
    pub fn reserve(&mut self, size: u64) -> Result<()> {
        let asked = if size == 0 { Ok(()) } else { fallocate(self.pending.file(), FallocateFlags::KEEP_SIZE, 0, size) };
        match asked {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(e) => Err(Refusal::io(self.target.display(), e.into())),
        }
    }

    /// Copies the package, `size` bytes from the start of `package`, and puts it in its place: file on the disk, then its name,
    /// then its folder. A program names `interpreter` then, where one is given. [`Code::DiskFull`] leaves nothing behind.
    pub async fn take(mut self, package: File, size: u64, interpreter: Option<Vec<u8>>) -> Result<PathBuf> {
        // The thread has a descriptor of its own: whoever cancels drops `self`, and with it the temporary name.
        let to = self.pending.file().try_clone().map_err(|e| Refusal::io(self.target.display(), e))?;
        let what = self.target.display().to_string();
        blocking(move || {
            let failed = |e| Refusal::io(&what, e);
            copy(&package, &to, size).map_err(failed)?;
            name_interpreter(&to, interpreter.as_deref())?;
            allow_execution(&to).and_then(|()| to.sync_all()).map_err(failed)
        })
        .await?;
        self.pending.keep()?;
        Ok(self.target)
    }
}

/// Copies inside the kernel where the file systems can; by hand where they cannot. The disk writes beside it, so that little is left
/// to wait for at the end.
pub(crate) fn copy(from: &File, to: &File, size: u64) -> io::Result<()> {
    let mut by_hand: Option<Vec<u8>> = None;
    let mut done = 0;
    while done < size {
        let wanted = (size - done).min(PIECE as u64) as usize;
        let copied = match &mut by_hand {
            Some(buffer) => copy_by_hand(from, to, done, wanted, buffer)?,
            None => match copy_in_kernel(from, to, done, wanted) {
                Err(e) if is_unsupported(e) => {
                    by_hand = Some(vec![0; PIECE_BY_HAND]);
                    continue;
                }
                other => other?,
            },
        };
        if copied == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the processor's package is shorter than it said"));
        }
        begin_writing(to, done, copied);
        done += copied as u64;
    }
    Ok(())
}

/// At most `wanted` bytes at `offset`; how many, 0 only at the end of `from`.
fn copy_in_kernel(from: &File, to: &File, offset: u64, wanted: usize) -> rustix::io::Result<usize> {
    rustix::io::retry_on_intr(|| copy_file_range(from, Some(&mut { offset }), to, Some(&mut { offset }), wanted))
}

/// As [`copy_in_kernel`], with a buffer.
fn copy_by_hand(from: &File, to: &File, offset: u64, wanted: usize, buffer: &mut [u8]) -> io::Result<usize> {
    let mut copied = 0;
    while copied < wanted {
        let part = buffer.len().min(wanted - copied);
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(from, &mut buffer[..part], offset + copied as u64))?;
        if read == 0 {
            break;
        }
        to.write_all_at(&buffer[..read], offset + copied as u64)?;
        copied += read;
    }
    Ok(copied)
}

/// What the file systems of the two files do not do together.
fn is_unsupported(e: Errno) -> bool {
    matches!(e, Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP | Errno::BADF | Errno::PERM)
}

/// Has the kernel begin to write what was copied last. On Linux this advice starts the writing of changed pages and lets go of those
/// alone that are on the disk already; where it does not, the writing is left to the end.
fn begin_writing(to: &File, offset: u64, size: usize) {
    let _ = fadvise(to, offset, NonZeroU64::new(size as u64), Advice::DontNeed);
}

/// A package that is an ELF file may be executed by whoever may read it, as compilers have it.
fn allow_execution(file: &File) -> io::Result<()> {
    let mut magic = [0; 4];
    if file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"\x7fELF" {
        let mode = file.metadata()?.permissions().mode();
        file.set_permissions(std::fs::Permissions::from_mode(mode | (mode & 0o444) >> 2))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(folder: &Path) -> Vec<String> {
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[tokio::test]
    async fn a_package_appears_whole_under_its_name_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("tool");
        let bytes: Vec<u8> = b"\x7fELF".iter().copied().chain((0..5_000_000u32).map(|i| (i >> 8) as u8)).collect();
        let partial = Partial::beside(&target).unwrap();
        assert!(!target.exists(), "not under its name before it is whole");
        let stored = partial.take(file(&bytes), bytes.len() as u64, None).await.unwrap();
        assert_eq!(stored, target);
        assert!(std::fs::read(&target).unwrap() == bytes);
        assert_ne!(target.metadata().unwrap().permissions().mode() & 0o100, 0, "a program can be executed");
        assert_eq!(names(folder.path()), ["tool"]);
    }

    #[test]
    fn what_the_kernel_cannot_copy_is_copied_by_hand_to_the_same_bytes() {
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i >> 8) as u8).collect();
        let (from, to) = (file(&bytes), file(b""));
        let mut buffer = vec![0; PIECE_BY_HAND];
        assert_eq!(copy_by_hand(&from, &to, 0, 2_000_000, &mut buffer).unwrap(), 2_000_000);
        assert_eq!(copy_by_hand(&from, &to, 2_000_000, 2_000_000, &mut buffer).unwrap(), 1_000_000, "up to the end");
        assert_eq!(copy_by_hand(&from, &to, 3_000_000, 1, &mut buffer).unwrap(), 0);
        let mut copied = vec![0; bytes.len()];
        to.read_exact_at(&mut copied, 0).unwrap();
        assert!(copied == bytes);
        // A pipe is no file of any file system: the kernel refuses, and says so in a way that is known here.
        let (_reader, writer) = io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(writer));
        assert!(is_unsupported(copy_in_kernel(&from, &pipe, 0, 1).unwrap_err()));
    }

    #[test]
    fn a_folder_a_device_or_a_pipe_is_never_replaced_by_a_package() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        for place in [folder.path(), &pipe, Path::new("/dev/null")] {
            assert_eq!(Partial::beside(place).unwrap_err().code, Code::Conflict, "{}", place.display());
        }
        assert_eq!(names(folder.path()), ["pipe"]);
        let said = Partial::beside(&folder.path().join("none/tool")).unwrap_err().detail;
        assert!(said.contains("/none/tool: ") && !said.contains(".part"), "it names what was asked for: {said}");
    }

    #[tokio::test]
    async fn a_short_or_cancelled_package_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("tool");
        std::fs::write(&target, "old").unwrap();
        let partial = Partial::beside(&target).unwrap();
        assert_eq!(partial.take(file(b"new"), 4, None).await.unwrap_err().code, Code::Io);
        drop(Partial::beside(&target).unwrap());
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["tool"]);
    }
}
