//! The interpreter of this processor: the small program that placed packages name in their PT_INTERP, so that the kernel starts
//! them directly. It knows one thing, the path of this processor's socket, and decides nothing.

use crate::config::Config;
use chipbound_host::files::{PRIVATE, Pending, read};
use chipbound_interpreter::{INTERPRETER, slot};
use chipbound_loader::OwnInterpreter;
use chipbound_wire::limits::MAX_INTERPRETER;
use chipbound_wire::{Code, Refusal, Result};
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Everybody may start packages by it; only its owner changes it.
const MODE: u32 = 0o755;

/// Makes sure that the interpreter of this configuration stands at its path, whole, as this version has it, and gives the path;
/// `None` where the configuration names none. What is there already and differs is replaced at once or not at all.
///
/// Refuses with [`Code::ConfigInvalid`] where its path or the socket's is too long, else as the file system does.
pub fn ensure(config: &Config) -> Result<Option<PathBuf>> {
    let Some(path) = &config.start.interpreter else { return Ok(None) };
    let path = absolute(path)?;
    if path.as_os_str().len() > MAX_INTERPRETER {
        let detail = format!("start.interpreter: {} is longer than {MAX_INTERPRETER} bytes", path.display());
        return Err(Refusal::new(Code::ConfigInvalid, detail));
    }
    let bytes = for_socket(&absolute(&config.socket)?)?;
    let mode = path.metadata().map_or(0, |m| m.permissions().mode() & 0o7777);
    if mode != MODE || !read(&path, bytes.len()).is_ok_and(|there| there == bytes) {
        let failed = |e| Refusal::io(format_args!("cannot write {}", path.display()), e);
        let mut pending = Pending::create(&path, PRIVATE)?;
        pending.file().write_all(&bytes).map_err(failed)?;
        pending.file().set_permissions(Permissions::from_mode(MODE)).map_err(failed)?; // Whatever the umask is.
        pending.keep()?;
    }
    Ok(Some(path))
}

/// The interpreter of this configuration, made sure of and open.
pub fn open(config: &Config) -> Result<Option<Arc<OwnInterpreter>>> {
    let Some(path) = ensure(config)? else { return Ok(None) };
    let own =
        OwnInterpreter::open(&path).map_err(|e| Refusal::new(Code::Io, format!("the interpreter {}: {e}", path.display())).because(e))?;
    Ok(Some(Arc::new(own)))
}

/// The bytes of an interpreter for the processor that listens there; [`Code::ConfigInvalid`] where that path is too long.
pub fn for_socket(socket: &Path) -> Result<Vec<u8>> {
    let mut bytes = vec![0; INTERPRETER.len()];
    slot::write(INTERPRETER, socket.as_os_str().as_bytes(), &mut bytes).ok_or_else(|| {
        let detail = format!("socket: {} is too long for a unix socket, so that no interpreter can name it", socket.display());
        Refusal::new(Code::ConfigInvalid, detail)
    })?;
    Ok(bytes)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Refusal::io(path.display(), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &Path, text: &str) -> Config {
        let path = folder.join("processor.toml");
        std::fs::write(&path, format!("class = \"software\"\n{text}")).expect("written");
        Config::load(&path).expect("a configuration")
    }

    #[test]
    fn the_interpreter_is_written_once_and_again_when_it_is_another_one() {
        let folder = tempfile::tempdir().expect("folder");
        let config = config(folder.path(), "[start]\ninterpreter = \"interpreter\"");
        let path = ensure(&config).expect("written").expect("a path");
        assert_eq!(path, folder.path().join("interpreter"));
        let inode = || std::os::unix::fs::MetadataExt::ino(&path.metadata().expect("there"));
        let (first, bytes) = (inode(), std::fs::read(&path).expect("readable"));
        let socket = folder.path().join("processor.sock");
        let named = bytes.windows(socket.as_os_str().len()).any(|w| w == socket.as_os_str().as_bytes());
        assert!(named && path.metadata().expect("there").permissions().mode() & 0o7777 == MODE);
        ensure(&config).expect("there already");
        assert_eq!(inode(), first, "nothing was written");
        std::fs::write(&path, "another").expect("written");
        ensure(&config).expect("written");
        assert!(std::fs::read(&path).expect("readable") == bytes);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).expect("mode");
        ensure(&config).expect("written");
        assert_eq!(path.metadata().expect("there").permissions().mode() & 0o7777, MODE, "nobody else may change it");
    }

    #[test]
    fn a_configuration_without_an_interpreter_gets_none_and_paths_too_long_are_refused() {
        let folder = tempfile::tempdir().expect("folder");
        assert_eq!(ensure(&config(folder.path(), "")).expect("none"), None);
        let long = "n".repeat(300);
        for text in [format!("[start]\ninterpreter = \"/{long}\""), format!("socket = \"/{long}\"\n[start]\ninterpreter = \"i\"")] {
            assert_eq!(ensure(&config(folder.path(), &text)).expect_err("too long").code, Code::ConfigInvalid);
        }
    }
}
