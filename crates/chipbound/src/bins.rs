//! The folders in which packages are installed under a name, and whose they are.

use chipbound_host::files::target_of;
use chipbound_wire::{Code, Refusal, Result};
use rustix::process::geteuid;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where root installs.
pub const SYSTEM: &str = "/usr/local/bin";
/// The group of the packages that customers execute and cannot read; the processor is in it, they are not.
pub const GROUP: &str = "chipbound";

/// Who an installed package belongs to, and what others may do with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ownership {
    /// The group it is given to; the caller's own where none.
    pub group: Option<u32>,
    /// Its mode.
    pub mode: u32,
}

/// As it is installed here: root:chipbound 0751 by root where that group exists, so that others execute it and cannot read it;
/// 0755 by anybody else. A library is 0644: the dynamic linker of whoever loads it has to read it.
#[must_use]
pub fn ownership(library: bool) -> Ownership {
    if library {
        return Ownership { group: None, mode: 0o644 };
    }
    let group = if geteuid().is_root() { group_id(&std::fs::read_to_string("/etc/group").unwrap_or_default()) } else { None };
    Ownership { group, mode: if group.is_some() { 0o751 } else { 0o755 } }
}

fn group_id(groups: &str) -> Option<u32> {
    groups.lines().find_map(|line| line.strip_prefix(GROUP)?.strip_prefix(':')?.split(':').nth(1)?.parse().ok())
}

/// The folder to install into: as told, else root's, else the user's own.
pub fn folder(told: Option<&Path>) -> Result<PathBuf> {
    if let Some(told) = told {
        return Ok(told.to_owned());
    }
    if geteuid().is_root() {
        return Ok(SYSTEM.into());
    }
    own().ok_or_else(|| Refusal::new(Code::ConfigInvalid, "there is no $HOME: name the folder with --bin"))
}

/// The folders to look in: as told, else the user's own and root's.
#[must_use]
pub fn folders(told: Option<&Path>) -> Vec<PathBuf> {
    told.map_or_else(|| own().into_iter().chain([SYSTEM.into()]).collect(), |told| vec![told.to_owned()])
}

fn own() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map(|home| PathBuf::from(home).join(".local/bin"))
}

/// The regular files in a folder that may be executed, by name; none where there is no such folder.
pub fn programs(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Refusal::io(folder.display(), e);
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut paths = entries.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
    paths.retain(|path| path.file_name().is_some_and(|name| target_of(&name.to_string_lossy()).is_none())); // Installed now, or never.
    paths.retain(|path| path.symlink_metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0));
    paths.sort();
    Ok(paths)
}

/// Whether a file that may not be read was installed so on purpose: by root, for its users to execute alone.
#[must_use]
pub fn for_execution_alone(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.uid() == 0 && m.gid() != 0 && m.permissions().mode() & 0o7777 == 0o751)
}

/// Whether a folder is one that shells look in.
#[must_use]
pub fn in_path(folder: &Path) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|entry| entry == folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_found_by_its_whole_name_and_nothing_else() {
        let groups = "root:x:0:\nchipbounder:x:7:\nxchipbound:x:8:\nchipbound:x:998:daemon\nbroken";
        assert_eq!(group_id(groups), Some(998));
        for none in ["", "chipbound", "chipbound:x", "chipbound:x:many:", "chipbounder:x:7:"] {
            assert_eq!(group_id(none), None, "{none:?}");
        }
    }

    #[test]
    fn only_files_that_may_be_executed_are_looked_at() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, mode) in [("b", 0o755), ("a", 0o711), ("plain", 0o644), (".c.0123456789abcdef.part", 0o755)] {
            let path = folder.path().join(name);
            std::fs::write(&path, "").expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
        }
        std::fs::create_dir(folder.path().join("folder")).expect("made");
        std::os::unix::fs::symlink("a", folder.path().join("link")).expect("made");
        let names: Vec<_> = programs(folder.path()).expect("read").iter().map(|p| p.file_name().expect("a name").to_owned()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(programs(&folder.path().join("missing")).expect("none").is_empty());
    }
}
