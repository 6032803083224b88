//! Asking the processor to attach to this process, which then execs the package (source paragraph 53).

use crate::frame::{Answer, Begun, MAX_ANSWER, PREFIX, answer, run_head};
use crate::sys::{Descriptor, Errno, allow_tracer, connect, peer, send};

/// Why the processor did not attach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused<'a> {
    /// There is no connection to it.
    Unreachable(Errno),
    /// The connection broke.
    Lost(Errno),
    /// It refuses: code and detail.
    Refused(&'a [u8], &'a [u8]),
    /// It says something that this version does not know.
    Unintelligible,
}

/// Room for an answer with its length before it.
pub type Space = [u8; PREFIX + MAX_ANSWER];
/// Nothing answered.
pub const NO_ANSWER: Space = [0; PREFIX + MAX_ANSWER];

/// Connects to the processor at `socket` and has it attach to this process for the package at `path`: its folder, perhaps
/// empty, and the rest. `package` is open where this user may read it. The answer's words are kept in `space`.
///
/// When this returns, the next exec of the package is stopped before its first instruction and given its code. The connection
/// stays open until that exec closes it. Where the process has `begun` in the interpreter of the package, the processor can instead
/// make it the program where it stands; then this does not return.
///
/// # Errors
/// See [`Refused`]; nothing stays open.
pub fn attach<'a>(
    socket: &[u8],
    path: [&[u8]; 3],
    package: Option<Descriptor>,
    begun: bool,
    space: &'a mut Space,
) -> Result<Descriptor, Refused<'a>> {
    let processor = connect(socket).map_err(Refused::Unreachable)?;
    let begun = begun.then(|| Begun::new(processor.number(), package.map(Descriptor::number)));
    let asked = ask(processor, path, package, begun, space);
    if asked.is_err() {
        processor.close();
    }
    asked.map(|()| processor)
}

fn ask<'a>(
    processor: Descriptor,
    path: [&[u8]; 3],
    package: Option<Descriptor>,
    begun: Option<Begun>,
    space: &'a mut Space,
) -> Result<(), Refused<'a>> {
    // Yama (ptrace_scope 1) lets only a tracer that was named here attach to a process that is not its child.
    peer(processor).and_then(allow_tracer).map_err(Refused::Lost)?;
    let length = path.iter().map(|part| part.len()).sum();
    let tail = begun.as_ref().map_or(&[][..], Begun::bytes);
    let head = run_head(length, tail).ok_or(Refused::Lost(Errno::ENAMETOOLONG))?;
    let [folder, between, name] = path;
    send(processor, &[&head, folder, between, name, tail], package).map_err(Refused::Lost)?;
    let (prefix, body) = space.split_at_mut(PREFIX);
    processor.fill(prefix).map_err(Refused::Lost)?;
    let length = prefix.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)).min(MAX_ANSWER);
    let body = body.get_mut(..length).unwrap_or_default();
    processor.fill(body).map_err(Refused::Lost)?;
    match answer(body) {
        Answer::Ready => Ok(()),
        Answer::Refused(code, detail) => Err(Refused::Refused(code, detail)),
        _ => Err(Refused::Unintelligible),
    }
}
