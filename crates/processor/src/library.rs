//! Opening a shared library in a program that loads it (source \[53\] and \[65\], for code that comes in parts).
//!
//! The dynamic linker has mapped the library's file, whose code is ciphertext that cannot be executed, and calls the stub that the
//! client put there (`chipbound_interpreter::load`). That asks here, as part of the program.

use crate::connection::{Connection, Peer};
use crate::processor::{Processor, Program};
use crate::readers;
use crate::run::{check_file, check_namespaces, identity_of, open_program, put_in_order, refusal_of};
use chipbound_loader::Image;
use chipbound_wire::bounded::List;
use chipbound_wire::control::{Piece, Response};
use chipbound_wire::limits::MAX_PIECES;
use chipbound_wire::suite::LoaderVariables;
use chipbound_wire::{Code, Digest, Random, Refusal, Result, SystemRandom};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the process may take to make its second connection.
const KNOCK: Duration = Duration::from_secs(10);

/// Opens the library for the process that asks: verifies it, whoever asks being a program that may have it, and gives its memory.
///
/// Whose the connection is was true when it was made. A process can hand its connection on and become a program of ours afterwards; so
/// what is given comes on another connection, which this very process makes after it was found to be such a program, and it must be
/// the same program when it has made it.
pub(crate) fn open_in(connection: &mut Connection, library: OwnedFd, address: u64, us: &Processor) -> Result<()> {
    let peer = connection.peer();
    match check_namespaces(peer, us) {
        // Of a program of one's own user the kernel does not show even this, and nothing is promised.
        Err(refusal) if refusal.code == Code::TraceRefused && is_own_user(peer) => {}
        other => other?,
    }
    let running = us.started.program_of(peer.pid)?;
    let file = check_file(File::from(library))?;
    let identity = identity_of(&file)?;
    let opened = open_program(&file, &identity, us)?;
    let Some(for_programs) = &opened.library else {
        return Err(Refusal::new(Code::UnsupportedProgram, format!("{} is no shared library", opened.program)));
    };
    readers::check(&opened.program, for_programs, &running.program)?;
    if opened.loader_variables == LoaderVariables::Forbid {
        readers::check_closed(&opened.program, &running.program, running.loader_variables)?;
    }
    check_place(&file, &opened, peer)?;
    check_mapping(&file, address, peer)?;

    let (listener, name) = listen()?;
    connection.send(&Response::Knock { name }, None)?;
    let stream = accept(&listener, peer)?;
    if !Arc::ptr_eq(&us.started.program_of(peer.pid)?, &running) {
        return Err(Refusal::new(Code::ProcessMismatch, "the process became another program while its library was opened"));
    }
    Connection::new(stream)?.send(&Response::Library { pieces: pieces(&opened.image)? }, Some(opened.image.file()))?;
    let pid = peer.pid.as_raw_nonzero();
    tracing::info!(library = %opened.program, program = %running.program, pid, "library opened");
    put_in_order(&opened, us);
    Ok(())
}

/// Whoever can write to a library that is mapped changes its plain parts after they were verified: where foreign code is forbidden, that
/// must be nobody but the administrator. As for other libraries, nothing is promised against root and this processor's own user.
fn check_place(file: &File, library: &Program, peer: Peer) -> Result<()> {
    if peer.uid == 0 || is_own_user(peer) || library.loader_variables == LoaderVariables::Allow {
        return Ok(());
    }
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|e| Refusal::io("where the library lies", e))?;
    chipbound_loader::check_file(&path).map_err(refusal_of)?;
    if identity_of(File::open(&path).map_err(|e| Refusal::io(path.display(), e))?)? != identity_of(file)? {
        return Err(Refusal::new(Code::ForeignLibrary, format!("{} is another file than the one that is loaded", path.display())));
    }
    Ok(())
}

fn is_own_user(peer: Peer) -> bool {
    peer.uid == rustix::process::geteuid().as_raw()
}

/// The file that came along is the one that is mapped, where the kernel lets this daemon see that.
fn check_mapping(file: &File, address: u64, peer: Peer) -> Result<()> {
    let failed = |e| Refusal::io("what the process has mapped", e);
    let maps = match chipbound_loader::proc_text(format!("/proc/{}/maps", peer.pid.as_raw_nonzero())) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => return Ok(()),
        other => other.map_err(failed)?,
    };
    let file = file.metadata().map_err(failed)?;
    let holds = |line: &&str| {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        let number = |text| u64::from_str_radix(text, 16).ok();
        range.and_then(|(start, end)| Some((number(start)?..number(end)?).contains(&address))).unwrap_or(false)
    };
    let mapped = maps.lines().find(holds).and_then(crate::started::file_in);
    if mapped != Some((file.dev(), file.ino())) {
        return Err(Refusal::new(Code::ProcessMismatch, "the library that was verified is not the one that is loaded"));
    }
    Ok(())
}

/// A socket that nobody knows yet.
fn listen() -> Result<(UnixListener, Digest)> {
    let failed = |e| Refusal::io("the socket of a library", e);
    let mut name = [0; 32];
    SystemRandom.fill(&mut name);
    let address = SocketAddr::from_abstract_name(name).map_err(failed)?;
    let listener = UnixListener::bind_addr(&address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok((listener, Digest(name)))
}

/// The connection of this very process.
fn accept(listener: &UnixListener, peer: Peer) -> Result<UnixStream> {
    let failed = |e| Refusal::io("the socket of a library", e);
    let until = Instant::now() + KNOCK;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(Refusal::new(Code::TimedOut, "the program did not come for its library")),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(failed(e.into())),
        }
        let stream = match listener.accept() {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => continue,
            accepted => accepted.map_err(failed)?.0,
        };
        let from = rustix::net::sockopt::socket_peercred(&stream).map_err(|e| failed(e.into()))?;
        if (from.pid, from.uid.as_raw()) == (peer.pid, peer.uid) {
            stream.set_nonblocking(false).map_err(failed)?;
            return Ok(stream);
        }
    }
}

fn pieces(image: &Image) -> Result<List<Piece, MAX_PIECES>> {
    let piece = |p: chipbound_loader::Piece| Piece { address: p.address, length: p.length, at: p.at, executable: p.executable };
    List::new(image.pieces().map(piece).collect())
}
