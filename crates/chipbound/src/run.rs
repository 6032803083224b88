//! `chipbound run PACKAGE args…` (source \[53\], step 1012 and after): asks the processor to attach, then *becomes* the program.
//!
//! Nothing of this process outlives the exec but what the program is to have: its three streams, arguments, environment,
//! folder and signals. The ordinary case never comes here: the front of the command (`chipbound_interpreter::run`) does the same
//! before a runtime starts, and leaves to this module what is unusual, and what is refused, to be said in full.

use crate::control::{Conversation, unexpected};
use crate::with::{Taken, With};
use chipbound_wire::bounded::{Bytes, List};
use chipbound_wire::control::{Request, Response};
use chipbound_wire::{Code, Refusal, Result};
use rustix::io::Errno;
use rustix::process::{PTracer, set_ptracer};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The exit code when a package is there and cannot be started, as shells have it.
const CANNOT_START: u8 = 126;
/// The exit code when there is no such package.
const NOT_FOUND: u8 = 127;

/// Starts the package in `arguments` (its path, then the program's own arguments) through the processor at `socket`, with data.
/// Returns only when it could not be started: the refusal and the exit code.
#[must_use]
pub fn run(socket: &Path, arguments: &[OsString], with: &[With]) -> (Refusal, u8) {
    let Some((name, arguments)) = arguments.split_first() else {
        return (Refusal::new(Code::ConfigInvalid, "run which package? chipbound run ./app ARGS…"), 2);
    };
    match Taken::take(with).and_then(|taken| Ok((attach(socket, name, &taken)?, taken))) {
        // The conversation stays open until the exec closes it: its end tells the processor that nobody will exec.
        Ok(((path, _conversation), taken)) => {
            let error = Command::new(&path).arg0(name).args(arguments).envs(taken.environment()).exec();
            let code = if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { CANNOT_START };
            (Refusal::new(Code::StartFailed, format!("{}: {error}", path.display())).because(error), code)
        }
        Err(refusal) if refusal.code == Code::NotFound => (refusal, NOT_FOUND),
        Err(refusal) => (refusal, CANNOT_START),
    }
}

/// Has the processor verify the package and attach to this process. When this returns, the next exec of the path is stopped
/// before its first instruction and given its code.
fn attach(socket: &Path, name: &OsStr, taken: &Taken) -> Result<(PathBuf, Conversation)> {
    let path = find(name)?;
    // Open only where this user may read it; otherwise the processor opens the path itself. Close-on-exec, as all of std's.
    let package = match File::open(&path) {
        Ok(file) => Some(file),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => None,
        Err(e) => return Err(Refusal::io(path.display(), e)),
    };
    if package.as_ref().is_some_and(|f| f.metadata().is_ok_and(|m| m.is_dir())) {
        return Err(Refusal::new(Code::NotAPackage, format!("{} is a folder", path.display())));
    }
    let mut conversation = Conversation::open(socket)?;
    // Yama (ptrace_scope 1) lets only a tracer that was named here attach to a process that is not its child.
    match set_ptracer(PTracer::ProcessID(conversation.peer()?)) {
        Ok(()) | Err(Errno::INVAL) => {} // Without Yama there is no such call and nothing to allow.
        Err(e) => return Err(Refusal::io("naming the processor as tracer", e.into())),
    }
    let whole = std::path::absolute(&path).map_err(|e| Refusal::io(path.display(), e))?;
    let numbers = taken.numbers();
    let with = if numbers.is_empty() { None } else { Some(List::new(numbers)?) };
    let request = Request::Run { path: Bytes::new(whole.as_os_str().as_bytes().to_vec())?, with };
    let descriptors: Vec<_> = package.iter().map(AsFd::as_fd).chain(taken.packages()).collect();
    conversation.ask(&request, &descriptors)?;
    match conversation.answer_after(|_, _| ())? {
        Response::Ready => Ok((path, conversation)),
        other => Err(unexpected(&other)),
    }
}

/// The file that a name means: as it stands if there is one, else, for a name without a slash, the first in `PATH`.
fn find(name: &OsStr) -> Result<PathBuf> {
    let here = Path::new(name);
    let missing = || Refusal::new(Code::NotFound, format!("{}: there is no such package", here.display()));
    if name.as_bytes().contains(&b'/') {
        return if here.exists() { Ok(here.to_owned()) } else { Err(missing()) };
    }
    let local = Path::new(".").join(here);
    if local.is_file() {
        return Ok(local);
    }
    std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|folder| folder.join(here)).find(|file| file.is_file()))
        .ok_or_else(missing)
}
