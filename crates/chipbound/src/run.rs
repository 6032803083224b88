//! `chipbound run PACKAGE args…` (source \[53\], step 1012 and after): asks the processor to attach, then *becomes* the program.
//!
//! Nothing of this process outlives the exec but what the program is to have: its three streams, arguments, environment,
//! folder and signals. The ordinary case never comes here: the front of the command (`chipbound_interpreter::run`) does the same
//! before a runtime starts, and leaves to this module what is unusual, and what it was refused, to be said in full.

use crate::control::{Conversation, unexpected};
use crate::output::Output;
use crate::verbs::parsed;
use crate::with::{Taken, With};
use chipbound_host::files::open_at_once;
use chipbound_processor::run::LOADER_VARIABLES;
use chipbound_sealing::Package;
use chipbound_wire::bounded::{Bytes, List, decode};
use chipbound_wire::control::{How, Request, Response, WayHere};
use chipbound_wire::suite::Mapping;
use chipbound_wire::{Code, Refusal, Result};
use rustix::io::Errno;
use rustix::process::{PTracer, set_ptracer};
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The exit code when a package is there and cannot be started, as shells have it.
const CANNOT_START: u8 = 126;
/// The exit code when there is no such package.
const NOT_FOUND: u8 = 127;

/// What the command line says about a start beside the package.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Wishes {
    /// A package of data that the program finds open, its path in an environment variable; once for each
    #[arg(long, value_name = "NAME=PACKAGE")]
    pub with: Vec<With>,
    /// The way its code takes into the process: sealed-memfd, anonymous (huge pages) or memfd-exec [default: as the processor chooses]
    #[arg(long, value_name = "WAY", value_parser = parsed::<Mapping>)]
    pub mapping: Option<Mapping>,
    /// Say which way would be taken and what stands in the others; start nothing
    #[arg(long)]
    pub explain: bool,
}

/// What the processor has answered.
enum Attached {
    /// It waits for the exec of this path. The conversation stays open until the exec closes it: its end tells the processor that
    /// nobody will exec.
    Traced(PathBuf, Conversation),
    /// It gave this to execute.
    File { file: OwnedFd, drop_loader_variables: bool },
    /// It said the ways, and which it would take.
    Explained { chosen: Option<Mapping>, ways: Vec<WayHere> },
}

/// Starts the package in `arguments` (its path, then the program's own arguments) through the processor at `socket`, with data.
/// Returns only when it could not be started, the refusal and the exit code, or when `wishes` asks for words alone: they are in `output`.
pub fn run(socket: &Path, wishes: &Wishes, arguments: &[OsString], output: &Output) -> std::result::Result<(), (Refusal, u8)> {
    let Some((name, arguments)) = arguments.split_first() else {
        return Err((Refusal::new(Code::ConfigInvalid, "run which package? chipbound run ./app ARGS…"), 2));
    };
    match Taken::take(&wishes.with).and_then(|taken| Ok((attach(socket, wishes, name, &taken)?, taken))) {
        Ok((Attached::Traced(path, _conversation), taken)) => {
            Err(execute(Command::new(&path).arg0(name).args(arguments).envs(taken.environment()), &path))
        }
        Ok((Attached::File { file, drop_loader_variables }, _)) => {
            let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            let mut command = Command::new(&path);
            if drop_loader_variables {
                for name in loader_variables() {
                    command.env_remove(name);
                }
            }
            Err(execute(command.arg0(name).args(arguments), &path))
        }
        Ok((Attached::Explained { chosen, ways }, _)) => {
            say(chosen, &ways, output);
            Ok(())
        }
        Err(refusal) if refusal.code == Code::NotFound => Err((refusal, NOT_FOUND)),
        Err(refusal) if refusal.code == Code::NotAPackage && !wishes.with.is_empty() => {
            Err((blamed(refusal, name, &wishes.with), CANNOT_START))
        }
        Err(refusal) => Err((refusal, CANNOT_START)),
    }
}

/// The same refusal with the name of the file that is no package, of the several that the command line names.
fn blamed(refusal: Refusal, name: &OsStr, with: &[With]) -> Refusal {
    let no_package = |path: &Path| open_at_once(path).is_ok_and(|file| Package::read(&file).is_err());
    let named = find(name).into_iter().chain(with.iter().map(|with| with.package.clone()));
    match named.into_iter().find(|path| no_package(path)) {
        Some(path) if !refusal.detail.contains(&*path.to_string_lossy()) => {
            Refusal::new(refusal.code, format!("{}: {}", path.display(), refusal.detail))
        }
        _ => refusal,
    }
}

/// Returns only if the kernel refuses.
fn execute(command: &mut Command, path: &Path) -> (Refusal, u8) {
    let error = command.exec();
    let code = if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { CANNOT_START };
    (Refusal::new(Code::StartFailed, format!("{}: {error}", path.display())).because(error), code)
}

/// The variables that the processor would have taken away, had it traced this process.
fn loader_variables() -> impl Iterator<Item = OsString> {
    let names = std::env::vars_os().map(|(name, _)| name);
    names.filter(|name| {
        let whole = [name.as_bytes(), b"="].concat();
        LOADER_VARIABLES.iter().any(|start| whole.starts_with(start.as_bytes()))
    })
}

fn say(chosen: Option<Mapping>, ways: &[WayHere], output: &Output) {
    let here = |way: &WayHere| match &way.obstacle {
        _ if Some(way.mapping) == chosen => "chosen",
        None => "possible",
        Some(_) => "impossible",
    };
    let why = |way: &WayHere| way.obstacle.as_ref().map_or_else(|| about(way.mapping).to_owned(), ToString::to_string);
    let rows: Vec<_> = ways.iter().map(|way| vec![way.mapping.to_string(), here(way).to_owned(), why(way)]).collect();
    let values: Vec<_> = ways.iter().map(|way| json!({ "way": way.mapping.as_str(), "here": here(way), "why": why(way) })).collect();
    output.table(&["way", "here", "why"], &rows, &values);
}

fn about(mapping: Mapping) -> &'static str {
    match mapping {
        Mapping::SealedMemfd => "all instances share one copy of the code",
        Mapping::Anonymous => "huge pages for large code that jumps about; a copy for each instance",
        Mapping::MemfdExec => "without tracing; /proc/self/exe and $ORIGIN are not the package's",
    }
}

/// Has the processor verify the package and attach to this process. Once it is traced, the next exec of the path is stopped before its
/// first instruction and given its code.
fn attach(socket: &Path, wishes: &Wishes, name: &OsStr, taken: &Taken) -> Result<Attached> {
    if let Some(refusal) = refused_before() {
        return Err(refusal);
    }
    let path = find(name)?;
    // Open only where this user may read it; otherwise the processor opens the path itself. Close-on-exec, as all of std's.
    let package = match open_at_once(&path) {
        Ok(file) => Some(file),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => None,
        Err(e) => return Err(Refusal::io(path.display(), e)),
    };
    if package.as_ref().is_some_and(|f| f.metadata().is_ok_and(|m| !m.is_file())) {
        return Err(Refusal::new(Code::NotAPackage, format!("{} is not a regular file", path.display())));
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
    let how = How { mapping: wishes.mapping, explain: wishes.explain };
    let request = Request::Run { path: Bytes::new(whole.as_os_str().as_bytes().to_vec())?, how: Some(how), begun: None, with };
    let descriptors: Vec<_> = package.iter().map(AsFd::as_fd).chain(taken.packages()).collect();
    conversation.ask(&request, &descriptors)?;
    match conversation.answer_after(|_, _| ())? {
        Response::Ready => Ok(Attached::Traced(path, conversation)),
        Response::Execute { drop_loader_variables } => Ok(Attached::File { file: conversation.descriptor()?, drop_loader_variables }),
        Response::Explained { chosen, ways } => Ok(Attached::Explained { chosen, ways: ways.into_vec() }),
        other => Err(unexpected(&other)),
    }
}

/// What the processor answered when the front of this command asked the same, if it refused for a reason that stays: this command can
/// execute a memory file where the front cannot.
fn refused_before() -> Option<Refusal> {
    let Ok(Response::Refused { abort }) = decode(chipbound_interpreter::refused()?) else { return None };
    let refusal = abort.into_refusal();
    (!matches!(refusal.code, Code::TraceRefused | Code::StartFailed)).then_some(refusal)
}

/// The file that a name means: as it stands if there is one, else, for a name without a slash, the first in `PATH`.
fn find(name: &OsStr) -> Result<PathBuf> {
    let here = Path::new(name);
    let missing = || Refusal::new(Code::NotFound, format!("{}: there is no such package", here.display()));
    if name.as_bytes().contains(&b'/') {
        return match here.try_exists() {
            Ok(true) => Ok(here.to_owned()),
            Ok(false) => Err(missing()),
            Err(e) => Err(Refusal::io(here.display(), e)), // It may be there: a file system that is gone, a folder that is closed.
        };
    }
    let local = Path::new(".").join(here);
    if local.is_file() {
        return Ok(local);
    }
    std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|folder| folder.join(here)).find(|file| file.is_file()))
        .ok_or_else(missing)
}
