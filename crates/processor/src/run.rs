//! Running a package (source \[53\]): the client becomes the program.

use crate::ahead;
use crate::cache::Opened;
use crate::config::Namespaces;
use crate::confine::{self, Work};
use crate::connection::{Connection, Peer};
use crate::data::{self, Ready};
use crate::libraries::Checked;
use crate::processor::{Processor, Program};
use crate::ways::{Way, Ways};
use chipbound_interpreter::direct::MARK_NAME;
pub use chipbound_loader::LOADER_VARIABLES;
use chipbound_loader::{AtExec, Identity, Image, Libraries, LoadError, NOT_STARTED, PageSource, Tracer};
use chipbound_sealing::{PackageReader, ReadAt, is_library};
use chipbound_trusted_core::{UnsettledPackage, open_in_one_pass};
use chipbound_wire::control::{How, Response};
use chipbound_wire::documents::Manifest;
use chipbound_wire::signed;
use chipbound_wire::suite::{Format, LoaderVariables, Mapping};
use chipbound_wire::{Code, Refusal, Result};
use rustix::fs::{Mode, OFlags};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What our interpreter adds to the environment for its second exec ([`chipbound_interpreter::direct`]).
const INTERPRETERS_OWN: &[&str] = &[MARK_NAME];

/// What a client asks for with [`Request::Run`](chipbound_wire::control::Request::Run).
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The package's path.
    pub path: &'a [u8],
    /// How its code is to get into the process.
    pub how: Option<How>,
    /// The client stands in our interpreter; the descriptors that are the interpreter's own.
    pub begun: Option<&'a [u32]>,
    /// The numbers under which the program finds its data.
    pub with: &'a [u32],
}

/// Verifies and opens the package, attaches to the client, tells it to exec, and makes it the program. From
/// [`Response::Ready`] on, a refusal is printed by the process itself, which ends with 126.
///
/// A client that stands in our interpreter already is made the program there, where nothing is promised against its user: somebody can
/// have traced it at its exec, and kept its memory open. Else it is to exec again, as everybody.
///
/// Beside the request came the package, where the client may read it, and then one package of data for each number in `with`: the
/// program finds its plaintext open under that number.
pub fn run(
    connection: &mut Connection,
    asked: &Asked<'_>,
    mut beside: impl ExactSizeIterator<Item = OwnedFd>,
    us: &Processor,
) -> Result<()> {
    let Asked { path, how, begun, with } = *asked;
    let peer = connection.peer();
    check_namespaces(peer, us)?;
    let came_open = beside.len() > with.len();
    let package = match beside.len().checked_sub(with.len()) {
        Some(0) => package(Some(path), None)?,
        Some(1) => package(Some(path), beside.next())?,
        _ => return Err(Refusal::new(Code::Malformed, "other descriptors came with the request than it names")),
    };
    let identity = identity_of(&package)?;
    let program = open_program(&package, &identity, us)?;
    if program.library.is_some() {
        return Err(Refusal::new(
            Code::UnsupportedProgram,
            format!("{} is a shared library: programs load it, it cannot be run", program.program),
        ));
    }
    let ready = |file| data::ready(check_file(File::from(file))?, &program, us);
    let data = with.iter().zip(beside).zip(1..).map(|((number, file), place)| {
        let said_of = |mut refusal: Refusal| {
            refusal.detail = format!("package {place} of data: {}", refusal.detail); // There may be several, and the program.
            refusal
        };
        Ok((*number, ready(file).map_err(said_of)?))
    });
    let data: Vec<(u32, Ready)> = data.collect::<Result<_>>()?;
    let reads_it = reads_it_anyway(peer) || (came_open && is_readable(&package));
    let ways = Ways::of(peer, how.as_ref(), &program, (!data.is_empty(), !reads_it), &us.obstacles)?;
    let How { mapping, explain } = how.unwrap_or_default();
    if explain {
        return connection.send(&ways.explained(mapping)?, None);
    }
    match ways.choose(mapping)? {
        Way::Traced(tracer, mapping) => {
            let begun = begun.filter(|_| reads_it);
            let verified = Verified { package, identity, program: Arc::clone(&program), data };
            trace(connection, tracer, (mapping, begun), verified, us)?;
        }
        Way::Executed => {
            hand_over(connection, &program, us)?;
            drop(package); // Nothing of its file system is in use any more.
        }
    }
    put_in_order(&program, us);
    Ok(())
}

/// How long a program that was opened runs before its memory is put in order: to lock it takes time from whoever begins to use it.
const A_WHILE: Duration = Duration::from_millis(100);

/// What a client is to become.
struct Verified {
    package: File,
    identity: Identity,
    program: Arc<Program>,
    /// Each with the number under which the program finds it.
    data: Vec<(u32, Ready)>,
}

/// Tells the client to exec, or stops it where it stands in our interpreter, and makes it the program.
fn trace(
    connection: &mut Connection,
    tracer: Tracer,
    (mapping, begun): (Mapping, Option<&[u32]>),
    verified: Verified,
    us: &Processor,
) -> Result<()> {
    let Verified { package, identity, program, data } = &verified;
    check_peer(connection.peer())?; // The pid is held by the trace from here on; it is still the client's.
    let patience = Duration::from_secs(us.config.limits.start_seconds);
    let (mut stopped, libraries) = match begun.zip(us.interpreter.as_ref()) {
        Some((own, interpreter)) => {
            confine::thread(Work::Start)?;
            let libraries = Checked::new(connection.peer(), package, program);
            if connection.watched().map_err(|e| Refusal::io("the client", e))?.is_gone() {
                return Err(Refusal::new(Code::Cancelled, "the client went away")); // Whoever has its number now is somebody else.
            }
            (tracer.take_over(Arc::clone(interpreter), own.to_vec(), patience).map_err(refusal_of)?, libraries)
        }
        None => {
            connection.send(&Response::Ready, None)?;
            confine::thread(Work::Start)?; // Only now: the client is on its way to its exec meanwhile.
            let libraries = Checked::new(connection.peer(), package, program);
            let mut stopped = tracer.await_exec(patience).map_err(refusal_of)?;
            if let Some(own) = &us.interpreter {
                stopped.own_interpreter(Arc::clone(own));
            }
            (stopped, libraries)
        }
    };
    if mapping == Mapping::Anonymous {
        stopped.in_huge_pages();
    }
    if let Err(refusal) = prepare(&mut stopped, identity, (program, &libraries), data) {
        let _ = stopped.refuse(&refusal.for_people(), NOT_STARTED); // Where that fails, it was killed.
        return Err(refusal);
    }
    let words = |error: &LoadError| described(error).for_people();
    // Known before its first instruction; should it not come to that, nobody ever executes the package under this pid.
    us.started.remember(connection.peer().pid, program, identity, Some(program.image.file()))?;
    let started = stopped.complete_or_say(&program.image, words).map_err(refusal_of)?;
    let stopped = started.stopped.as_micros();
    tracing::info!(program = %program.program, pid = started.pid.as_raw_nonzero(), %mapping, stopped_microseconds = stopped, "started");
    Ok(())
}

/// Whether nothing is promised to anybody against this user: root, and this processor's own.
pub(crate) fn reads_it_anyway(peer: Peer) -> bool {
    peer.uid == 0 || peer.uid == rustix::process::geteuid().as_raw()
}

/// Whether whoever opened this file may read it. A descriptor that only names a file (`O_PATH`) can be had without that.
fn is_readable(package: &File) -> bool {
    let unread = OFlags::PATH | OFlags::WRONLY;
    rustix::fs::fcntl_getfl(package).is_ok_and(|flags| !flags.intersects(unread))
}

/// Gives the client what it executes: the program's own file, which its user may not read.
fn hand_over(connection: &mut Connection, program: &Arc<Program>, us: &Processor) -> Result<()> {
    let file = program.image.executable().map_err(refusal_of)?;
    us.started.remember(connection.peer().pid, program, &identity_of(&file)?, None)?;
    let response = Response::Execute { drop_loader_variables: program.loader_variables == LoaderVariables::Forbid };
    connection.send(&response, Some(file.as_fd()))?;
    let pid = connection.peer().pid.as_raw_nonzero();
    tracing::info!(program = %program.program, pid, mapping = %Mapping::MemfdExec, "handed over");
    Ok(())
}

/// After a first start: its memory is locked, and what the start took of what waits ready is replaced.
pub(crate) fn put_in_order(program: &Arc<Program>, us: &Processor) {
    if program.locked.get().is_some() {
        return;
    }
    std::thread::sleep(A_WHILE);
    // What the cache has no room for, or let go of meanwhile, would be locked for no time at all.
    if Arc::strong_count(program) > 1 {
        program.lock();
    }
    us.workshop.restock();
}

/// At the exec stop: the file that the kernel started is the one that was verified, loader variables and libraries are as the vendor
/// wants them, and the data are given.
fn prepare(stopped: &mut AtExec, verified: &Identity, opened: (&Program, &Checked), data: &[(u32, Ready)]) -> Result<()> {
    let (program, libraries) = opened;
    if stopped.exe_identity().map_err(refusal_of)? != *verified {
        return Err(Refusal::new(Code::ProcessMismatch, "the file that was started is not the package that was verified"));
    }
    let taken_away = match program.loader_variables {
        LoaderVariables::Forbid => &[LOADER_VARIABLES, INTERPRETERS_OWN].concat()[..],
        LoaderVariables::Allow => INTERPRETERS_OWN,
    };
    stopped.drop_variables(taken_away).map_err(refusal_of)?;
    libraries.hold_for(stopped, program)?;
    for (number, ready) in data {
        stopped.give(ready.given(*number)?);
    }
    Ok(())
}

/// The opened program, from the cache or verified and opened now.
pub(crate) fn open_program(package: &File, identity: &Identity, us: &Processor) -> Result<Arc<Program>> {
    let begin = || {
        ahead::read(package, identity.size);
        confine::thread(Work::Start)?; // What is parsed now was written by anybody.
        let enrolment = us.vault.enrolment()?;
        let file = package.try_clone().map_err(|e| Refusal::io("the package", e))?;
        let opened = open_in_one_pass(file, &us.vault, &*us.vault.keys(), &enrolment.root)?;
        if opened.manifest.format != Format::ElfX8664 {
            return Err(Refusal::new(Code::UnsupportedProgram, "the package holds data; open it with `chipbound open`"));
        }
        Ok((opened.manifest.digest(), opened))
    };
    let open = |UnsettledPackage { manifest, plaintext }| {
        let library = is_library(&plaintext);
        let source = Arc::new(Plaintext(plaintext));
        let pages = Arc::clone(&source) as Arc<dyn PageSource>;
        let build = if matches!(library, Ok(true)) { Image::build_library } else { Image::build };
        let image = build(pages, &us.workshop);
        let Plaintext(plaintext) = Arc::into_inner(source).expect("the loader has let go of it");
        let opened = UnsettledPackage { manifest, plaintext };
        let (manifest, plaintext) = settle(opened, package, identity)?; // What is wrong with the package comes before what is wrong with its program.
        let library = library?.then(|| manifest.readers.clone());
        let image = image.map_err(refusal_of)?;
        let libraries = Libraries::of(&Loaded { image: &image, plaintext }).map_err(refusal_of)?;
        tracing::info!(program = %manifest.program, bytes = image.memory(), "opened");
        Ok(Program {
            image,
            program: manifest.program.clone(),
            sequence: manifest.sequence,
            loader_variables: manifest.loader_variables,
            libraries,
            library,
            locked: OnceLock::new(),
        })
    };
    let verify = |opened: UnsettledPackage<File>| settle(opened, package, identity).map(drop);
    let program = us.programs.get(identity, begin, verify, open)?;
    program.check_minimum(us.vault.minimum(&program.program))?;
    Ok(program)
}

/// The plaintext, once the whole file was found to be the package, and still to be the same file.
fn settle(
    opened: UnsettledPackage<File>,
    package: &File,
    identity: &Identity,
) -> Result<(signed::Verified<Manifest>, PackageReader<File>)> {
    let settled = opened.settle()?;
    if identity_of(package)? != *identity {
        return Err(Refusal::new(Code::ProcessMismatch, "the package changed while it was verified"));
    }
    Ok(settled)
}

/// The plaintext as the loader reads it.
struct Plaintext<P>(P);

impl<P: ReadAt + Send + Sync> PageSource for Plaintext<P> {
    fn len(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

/// The plaintext as it is loaded already, and else as it is read.
struct Loaded<'a, P> {
    image: &'a Image,
    plaintext: P,
}

impl<P: ReadAt + Send + Sync> PageSource for Loaded<'_, P> {
    fn len(&self) -> u64 {
        self.plaintext.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.image.read_loaded(offset, buf)? { Ok(()) } else { self.plaintext.read_exact_at(buf, offset) }
    }
}

/// The package that a request is about: as its client opened it, or by its path.
pub(crate) fn package(path: Option<&[u8]>, descriptor: Option<OwnedFd>) -> Result<File> {
    match (descriptor, path) {
        (Some(descriptor), _) => check_file(File::from(descriptor)),
        (None, Some(path)) => open_by_path(path),
        (None, None) => Err(Refusal::new(Code::Malformed, "neither a descriptor nor a path of the package came with the request")),
    }
}

/// A package that the client may execute but not read is opened by the daemon. The path decides nothing: what the kernel started
/// is compared with what was opened.
fn open_by_path(path: &[u8]) -> Result<File> {
    let path = OsStr::from_bytes(path);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| Refusal::io(format_args!("the package {} cannot be opened by the processor", path.to_string_lossy()), e.into()))?;
    check_file(file.into())
}

/// Only regular files: reading anything else could block, or have effects.
pub(crate) fn check_file(file: File) -> Result<File> {
    let meta = file.metadata().map_err(|e| Refusal::io("the package", e))?;
    if !meta.is_file() {
        return Err(Refusal::new(Code::NotAPackage, "not a regular file"));
    }
    Ok(file)
}

pub(crate) fn identity_of(file: impl AsFd) -> Result<Identity> {
    Identity::of(file).map_err(|e| Refusal::io("the package", e))
}

/// The client lives in this process's user and mount namespaces, so that paths and users mean the same to both.
pub(crate) fn check_namespaces(peer: Peer, us: &Processor) -> Result<()> {
    let own_user = peer.uid == rustix::process::geteuid().as_raw();
    if us.config.namespaces == Namespaces::AnyForOwnUser && own_user {
        return Ok(());
    }
    let ours = our_namespaces();
    let client = peer.pid.as_raw_nonzero().to_string();
    for (namespace, ours) in NAMESPACES.into_iter().zip(ours) {
        let theirs = inode_of(&client, namespace).map_err(|e| match e.kind() {
            // The kernel lets only those look who may trace.
            io::ErrorKind::PermissionDenied => {
                Refusal::new(Code::TraceRefused, "the processor may not look at processes of this user: it lacks CAP_SYS_PTRACE").because(e)
            }
            _ => Refusal::io("the client's namespaces", e),
        })?;
        if Some(theirs) != *ours {
            return Err(Refusal::new(Code::ForeignNamespace, format!("the client is in another {namespace} namespace than the processor")));
        }
    }
    Ok(())
}

/// What paths and users depend on.
const NAMESPACES: [&str; 2] = ["user", "mnt"];
/// Device and inode of this process's own, which it never leaves.
static OUR_NAMESPACES: OnceLock<[Option<(u64, u64)>; 2]> = OnceLock::new();

/// Learned once; the daemon does so at its start.
pub(crate) fn our_namespaces() -> &'static [Option<(u64, u64)>; 2] {
    OUR_NAMESPACES.get_or_init(|| NAMESPACES.map(|namespace| inode_of("self", namespace).ok()))
}

fn inode_of(process: &str, namespace: &str) -> io::Result<(u64, u64)> {
    std::fs::metadata(format!("/proc/{process}/ns/{namespace}")).map(|m| (m.dev(), m.ino()))
}

/// How much of a process's status is read, bytes: at once, and far beyond the line that counts.
const MAX_STATUS: usize = 1024;

/// The process that is traced now belongs to the user who connected.
fn check_peer(peer: Peer) -> Result<()> {
    let mut status = [0; MAX_STATUS];
    let read = File::open(format!("/proc/{}/status", peer.pid.as_raw_nonzero())).and_then(|mut file| file.read(&mut status));
    let status = String::from_utf8_lossy(&status[..read.map_err(|e| Refusal::io("the client", e))?]);
    let effective = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse::<u32>().ok());
    if effective != Some(peer.uid) {
        return Err(Refusal::new(Code::ProcessMismatch, "the client is not the process that connected any more"));
    }
    Ok(())
}

/// What went wrong in the loader, with its code.
pub(crate) fn refusal_of(error: LoadError) -> Refusal {
    described(&error).because(error)
}

fn described(error: &LoadError) -> Refusal {
    use std::error::Error;
    let code = match error {
        LoadError::Unsupported(_) | LoadError::Privileged => Code::UnsupportedProgram,
        LoadError::Source(_) => Code::PageAltered,
        LoadError::TraceRefused(_) => Code::TraceRefused,
        LoadError::TimedOut => Code::TimedOut,
        LoadError::ProcessMismatch(_) => Code::ProcessMismatch,
        LoadError::ForeignLibrary(_) => Code::ForeignLibrary,
        _ => Code::StartFailed,
    };
    let mut detail = error.to_string();
    let mut under = error.source();
    while let Some(e) = under {
        detail = format!("{detail}: {e}");
        under = e.source();
    }
    Refusal::new(code, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_only_names_a_file_shows_nothing_of_who_may_read_it() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let opened = |flags| File::from(rustix::fs::open(file.path(), flags | OFlags::CLOEXEC, Mode::empty()).expect("opened"));
        assert!(is_readable(&opened(OFlags::RDONLY)) && is_readable(&opened(OFlags::RDWR)));
        assert!(!is_readable(&opened(OFlags::PATH)) && !is_readable(&opened(OFlags::WRONLY)));
    }
}
