//! Whether a path leads to the same place whatever ordinary users do.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Stat, lstat, readlink, statfs};
use rustix::io::Errno;

use super::foreign;
use crate::error::LoadError;

/// The most symbolic links on the way to one file, as the kernel has it.
const MAX_LINKS: usize = 40;
/// Others may write (`S_IWGRP | S_IWOTH`), and nobody may take away what is another's (`S_ISVTX`).
const WRITABLE: u32 = 0o022;
const STICKY: u32 = 0o1000;
/// A file system whose answers some user gives (`FUSE_SUPER_MAGIC`).
const FUSE: i64 = 0x6573_5546;

/// What was looked at, to see later whether it is still so.
#[derive(Debug, Default)]
pub(super) struct Seen(Vec<(PathBuf, Print)>);

impl Seen {
    /// Whether every file and folder is as it was. What was not there is covered by its folder, which only the trusted may change.
    pub(super) fn is_unchanged(&self) -> bool {
        self.0.iter().all(|(path, print)| lstat(path).is_ok_and(|now| Print::of(&now) == *print))
    }
}

/// By what a change shows: the kernel alone sets the time of the last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Print([u64; 4], [u32; 3]);

impl Print {
    fn of(stat: &Stat) -> Self {
        let changed = [stat.st_ctime.cast_unsigned(), stat.st_ctime_nsec];
        Self([stat.st_dev, stat.st_ino, changed[0], changed[1]], [stat.st_mode, stat.st_uid, stat.st_gid])
    }
}

/// Looks at paths, each part once.
#[derive(Default)]
pub(super) struct Walk {
    seen: HashMap<PathBuf, Option<Stat>>,
    /// What only the trusted can write to, at whatever name.
    trusted: HashSet<PathBuf>,
}

impl Walk {
    /// Whether there is a file at this path; if so, nobody but the trusted can change it or put another there, and if not, nobody else
    /// can make one.
    ///
    /// # Errors
    /// [`LoadError::ForeignLibrary`] names what an ordinary user could change.
    pub(super) fn file(&mut self, path: &Path) -> Result<bool, LoadError> {
        match self.resolve(path)? {
            None => Ok(false),
            Some((_, stat)) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => Ok(false),
            Some((place, stat)) => self.trusted(&place, &stat, false).map(|()| true),
        }
    }

    /// The same for a folder in which files are looked for.
    pub(super) fn folder(&mut self, path: &Path) -> Result<bool, LoadError> {
        match self.resolve(path)? {
            Some((place, stat)) if is_folder(&stat) => self.trusted(&place, &stat, false).map(|()| true),
            _ => Ok(false),
        }
    }

    /// What there is to be seen again.
    pub(super) fn into_seen(self) -> Seen {
        Seen(self.seen.into_iter().filter_map(|(path, stat)| Some((path, Print::of(&stat?)))).collect())
    }

    /// Follows a path part by part; each folder on the way is trusted before anything in it is looked at.
    fn resolve(&mut self, path: &Path) -> Result<Option<(PathBuf, Stat)>, LoadError> {
        let mut place = PathBuf::from("/");
        let mut stat = self.look(&place)?.ok_or_else(|| foreign(path, "has no root folder above it"))?;
        let mut rest: Vec<OsString> = parts(path);
        let mut links = 0;
        while let Some(part) = rest.pop() {
            if part == ".." {
                place.pop();
                stat = self.look(&place)?.ok_or_else(|| foreign(path, "leads nowhere"))?;
                continue;
            }
            if !is_folder(&stat) {
                return Ok(None);
            }
            let next = place.join(&part);
            let Some(found) = self.look(&next)? else {
                return self.trusted(&place, &stat, false).map(|()| None);
            };
            // In a sticky folder nobody takes away what is the trusted's.
            self.trusted(&place, &stat, is_trusted_owner(&found))?;
            if FileType::from_raw_mode(found.st_mode) == FileType::Symlink {
                links += 1;
                if links > MAX_LINKS {
                    return Err(foreign(path, "has too many symbolic links on its way"));
                }
                let target = readlink(&next, Vec::new()).map_err(|e| foreign(&next, &format!("cannot be followed: {e}")))?;
                let target = PathBuf::from(OsStr::from_bytes(target.as_bytes()));
                if target.is_absolute() {
                    place = PathBuf::from("/");
                    stat = self.look(&place)?.ok_or_else(|| foreign(path, "leads nowhere"))?;
                }
                rest.extend(parts(&target));
                continue;
            }
            (place, stat) = (next, found);
        }
        Ok(Some((place, stat)))
    }

    fn look(&mut self, path: &Path) -> Result<Option<Stat>, LoadError> {
        if let Some(known) = self.seen.get(path) {
            return Ok(*known);
        }
        let stat = match lstat(path) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT | Errno::NOTDIR) => None,
            Err(errno) => return Err(foreign(path, &format!("cannot be examined by the processor: {errno}"))),
        };
        self.seen.insert(path.to_owned(), stat);
        Ok(stat)
    }

    fn trusted(&mut self, place: &Path, stat: &Stat, sticky_is_enough: bool) -> Result<(), LoadError> {
        if self.trusted.contains(place) {
            return Ok(());
        }
        if !is_trusted_owner(stat) {
            return Err(foreign(place, &format!("belongs to user {}, not to root", stat.st_uid)));
        }
        if stat.st_mode & WRITABLE != 0 && !(sticky_is_enough && stat.st_mode & STICKY != 0) {
            return Err(foreign(place, &format!("can be written to by others than root (mode {:04o})", stat.st_mode & 0o7777)));
        }
        let system = statfs(place).map_err(|e| foreign(place, &format!("cannot be examined by the processor: {e}")))?;
        if system.f_type == FUSE {
            return Err(foreign(place, "lies in a file system of some user's (FUSE)"));
        }
        if stat.st_mode & WRITABLE == 0 {
            self.trusted.insert(place.to_owned());
        }
        Ok(())
    }
}

/// Root, and whoever this process is.
fn is_trusted_owner(stat: &Stat) -> bool {
    stat.st_uid == 0 || stat.st_uid == rustix::process::geteuid().as_raw()
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// The parts of a path, the last first.
fn parts(path: &Path) -> Vec<OsString> {
    let named = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().rev().filter_map(named).collect()
}
