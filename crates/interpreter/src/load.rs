//! A protected shared library was loaded: its dynamic linker has mapped and relocated it and calls this before anything else of it. It
//! has the processor open the library, and maps its code, and everything else that is only read, over what the file has there.
//!
//! The process is already a program that this processor started: nobody else can look into it, nor take a descriptor from it. The
//! processor decides whether it is; what it gives comes on a connection that the process makes after that was decided, so
//! that a connection of somebody who was this process before gets nothing.

use crate::frame::{Answer, MAX_ANSWER, answer, library_request};
use crate::hook::Hook;
use crate::maps::file_at;
use crate::sys::{
    Descriptor, Errno, PROT_EXEC, PROT_READ, Result, connect, connect_abstract, exit, keep_out_of_dumps, map_anonymous, map_over, memory,
    open, receive_descriptor, seal_memory, send, unmap,
};
use crate::text::{reason, say};
use core::ffi::CStr;

/// The exit code of a process that cannot go on, as that of one whose program cannot be executed.
const CANNOT_EXECUTE: u8 = 126;
/// Bytes of memory of its own: a thread that loads a library may have a small stack.
const ROOM: usize = 16 * 1024;

/// Why the library was not opened.
enum Failed<'a> {
    /// There is no connection to its processor.
    Unreachable(Errno),
    /// What could not be done, and why.
    Here(&'static [u8], Errno),
    /// The processor refuses: code and detail.
    Refused(&'a [u8], &'a [u8]),
    /// It says something that this version does not know.
    Unintelligible,
}

/// Opens the library, or says why not and ends the process. Gives where the library's own DT_INIT is; 0 where it has none.
pub fn load(hook: &Hook) -> usize {
    let room = match map_anonymous(ROOM) {
        Ok(room) => room,
        Err(error) => fail(b"a protected library", &Failed::Here(b"there is no memory to open it", error)),
    };
    // SAFETY: the memory was just mapped with this length, and nobody else knows of it until it is unmapped below.
    let (answers, paths) = unsafe { memory(room, ROOM) }.split_at_mut(MAX_ANSWER);
    let path = match file_at(hook.own_address(), paths) {
        Ok(path) => path,
        Err(error) => fail(b"a protected library", &Failed::Here(b"its file is not found in /proc/self/maps", error)),
    };
    if let Err(why) = open_code(hook, path, answers) {
        fail(path.to_bytes(), &why);
    }
    let (address, length) = hook.read_only();
    if length > 0 {
        // SAFETY: the library is relocated, and its linker was asked to make these pages read-only by a header that is spent. As there, a
        // kernel that cannot changes nothing.
        let _ = unsafe { seal_memory(address, length) };
    }
    // SAFETY: mapped above with this length; nothing refers to it any more.
    unsafe { unmap(room, ROOM) };
    hook.init()
}

fn open_code<'a>(hook: &Hook, path: &CStr, answers: &'a mut [u8]) -> core::result::Result<(), Failed<'a>> {
    let (first, second) = answers.split_at_mut(MAX_ANSWER / 2);
    let unset = || Failed::Here(b"it names no processor; put it in place anew", Errno::ENOENT);
    let library = open(path).map_err(|error| Failed::Here(b"it cannot be opened", error))?;
    let processor = connect(hook.socket().ok_or_else(unset)?).map_err(Failed::Unreachable)?;
    send(processor, &[&library_request(hook.own_address() as u64), b"", b"", b"", b""], Some(library)).map_err(LOST)?;
    library.close();
    let name = match answer(frame(processor, first).map_err(LOST)?) {
        Answer::Knock(name) => name,
        Answer::Refused(code, detail) => return Err(Failed::Refused(code, detail)),
        _ => return Err(Failed::Unintelligible),
    };
    let opened = connect_abstract(name).map_err(LOST)?;
    let mut prefix = [0; 4];
    let Ok(code) = receive_descriptor(opened, &mut prefix) else { return Err(refusal(processor, second)) };
    let body = rest(opened, prefix, second).map_err(LOST)?;
    let Answer::Library(pieces) = answer(body) else { return Err(Failed::Unintelligible) };
    for piece in pieces {
        let at = hook.bias().wrapping_add(piece.address);
        let protection = if piece.executable { PROT_READ | PROT_EXEC } else { PROT_READ };
        // SAFETY: the processor names read-only segments of this very library, which nothing has been called in and nobody writes to.
        let mapped = unsafe { map_over(at, piece.length, protection, Some((code, piece.at))) };
        mapped.map_err(|error| Failed::Here(b"its code cannot be mapped", error))?;
        keep_out_of_dumps(at, piece.length);
    }
    code.close();
    opened.close();
    processor.close();
    Ok(())
}

const LOST: fn(Errno) -> Failed<'static> = |error| Failed::Here(b"its processor does not answer any more", error);

/// Why the processor closed the second connection without a word: it says so on the first.
fn refusal(processor: Descriptor, space: &mut [u8]) -> Failed<'_> {
    match frame(processor, space).map(answer) {
        Ok(Answer::Refused(code, detail)) => Failed::Refused(code, detail),
        Ok(_) => Failed::Unintelligible,
        Err(error) => LOST(error),
    }
}

/// The next frame, or as much of it as there is space for.
fn frame(from: Descriptor, space: &mut [u8]) -> Result<&[u8]> {
    let mut prefix = [0; 4];
    from.fill(&mut prefix)?;
    rest(from, prefix, space)
}

fn rest(from: Descriptor, prefix: [u8; 4], space: &mut [u8]) -> Result<&[u8]> {
    let length = (u32::from_be_bytes(prefix) as usize).min(space.len());
    let body = space.get_mut(..length).unwrap_or_default();
    from.fill(body)?;
    Ok(body)
}

/// Says why and ends the process: a library cannot refuse to be loaded, and nothing of this one can be called.
fn fail(library: &[u8], why: &Failed<'_>) -> ! {
    match why {
        Failed::Unreachable(error) => {
            say([b"chipbound: error[processor_unreachable]: ", library, b": its processor cannot be reached: ", reason(*error)]);
        }
        Failed::Here(what, error) => {
            say([b"chipbound: error[start_failed]: ", library, b"", b""]);
            say([b": ", what, b": ", reason(*error)]);
        }
        Failed::Refused(code, detail) => {
            say([b"chipbound: error[", code, b"]: ", library]);
            say([b": ", detail, b"", b""]);
        }
        Failed::Unintelligible => {
            say([b"chipbound: error[malformed]: ", library, b": its processor answers what this version does not know", b""])
        }
    }
    say([b"\nwhat to do: chipbound verify ", library, b", and start the program with the processor that opens both\n", b""]);
    exit(CANNOT_EXECUTE)
}
