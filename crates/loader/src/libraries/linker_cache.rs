//! glibc's list of libraries, `/etc/ld.so.cache` (glibc's `sysdeps/generic/dl-cache.h`).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::trust::Walk;
use crate::error::LoadError;

const PLACE: &str = "/etc/ld.so.cache";
/// The form of glibc 2.2 and later. Older files carry an old list before it.
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// Bytes of the header and of each entry.
const HEADER: usize = 48;
const ENTRY: usize = 24;
/// The largest list that is read, bytes.
const MAX: u64 = 64 << 20;

/// Paths by the names of libraries.
#[derive(Default)]
pub(super) struct LinkerCache {
    paths: HashMap<Vec<u8>, Vec<Vec<u8>>>,
}

impl LinkerCache {
    /// Reads the list; none is an empty one, and one in another form too: the dynamic linker ignores it as well.
    pub(super) fn read(walk: &mut Walk) -> Result<Self, LoadError> {
        let small = |path: &Path| std::fs::metadata(path).is_ok_and(|m| m.len() <= MAX);
        if !walk.file(Path::new(PLACE))? || !small(Path::new(PLACE)) {
            return Ok(Self::default());
        }
        Ok(std::fs::read(PLACE).ok().and_then(|bytes| Self::parse(&bytes)).unwrap_or_default())
    }

    /// Every path of a library, for whatever machine.
    pub(super) fn paths(&self, name: &[u8]) -> impl Iterator<Item = &Path> {
        self.paths.get(name).into_iter().flatten().map(|path| Path::new(OsStr::from_bytes(path)))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        // Strings are counted from the beginning of this form.
        let start = bytes.windows(MAGIC.len()).position(|window| window == MAGIC)?;
        let bytes = &bytes[start..];
        let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
        let text = |at: usize| bytes.get(at..).and_then(|rest| rest.split(|&byte| byte == 0).next()).map(<[u8]>::to_vec);
        let mut paths = HashMap::<Vec<u8>, Vec<Vec<u8>>>::new();
        for index in 0..number(MAGIC.len())? {
            let entry = HEADER.checked_add(index.checked_mul(ENTRY)?)?;
            paths.entry(text(number(entry + 4)?)?).or_default().push(text(number(entry + 8)?)?);
        }
        Some(Self { paths })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_list_names_the_c_library_and_no_cut_of_it_makes_the_parser_panic() {
        let Ok(bytes) = std::fs::read(PLACE) else {
            println!("not run here: this system has no {PLACE}");
            return;
        };
        let cache = LinkerCache::parse(&bytes).unwrap();
        assert!(cache.paths(b"libc.so.6").any(|path| path.is_absolute() && path.exists()));
        for len in (0..bytes.len()).step_by(97) {
            if let Some(cut) = LinkerCache::parse(&bytes[..len]) {
                assert!(cut.paths.len() <= cache.paths.len() + 1);
            }
        }
    }
}
