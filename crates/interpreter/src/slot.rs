//! The place in the interpreter's file where `chipbound-processor init` writes which processor this interpreter asks.

use crate::sys::MAX_SOCKET_PATH;

/// What the slot begins with, once in the file: how the writer finds it.
pub const MAGIC: [u8; 16] = *b"chipbound/socket";
/// Bytes of the slot: the magic, the path, zeros up to the end; at least one.
pub const SIZE: usize = 128;

/// The slot in the file.
#[repr(C)]
#[derive(Debug)]
pub struct Slot {
    magic: [u8; MAGIC.len()],
    path: [u8; SIZE - MAGIC.len()],
}

impl Slot {
    /// A slot without a path.
    #[must_use]
    pub const fn empty() -> Self {
        Self { magic: MAGIC, path: [0; SIZE - MAGIC.len()] }
    }

    /// The path of the processor's socket; None where none was written.
    #[must_use]
    pub fn path(&self) -> Option<&[u8]> {
        // Read as it stands in memory: the compiler knows the slot only as it was before the writer came.
        let length = (0..self.path.len()).take_while(|i| self.byte(*i) != 0).count();
        self.path.get(..length).filter(|path| !path.is_empty())
    }

    fn byte(&self, at: usize) -> u8 {
        // SAFETY: the byte is part of a live slot.
        self.path.get(at).map_or(0, |byte| unsafe { core::ptr::from_ref(byte).read_volatile() })
    }
}

/// The interpreter's file for the processor at `socket`: a copy of `program` with the path in its slot. None where the path is empty,
/// too long for a unix socket, has a NUL in it, or where the program has not exactly one empty slot.
///
/// The caller gives the room: `into` has the length of `program`.
#[must_use]
pub fn write(program: &[u8], socket: &[u8], into: &mut [u8]) -> Option<()> {
    if socket.is_empty() || socket.len() > MAX_SOCKET_PATH || socket.contains(&0) || into.len() != program.len() {
        return None;
    }
    let mut places = program.windows(SIZE).enumerate().filter(|(_, window)| window.starts_with(&MAGIC));
    let (at, slot) = places.next()?;
    if places.next().is_some() || slot[MAGIC.len()..].iter().any(|byte| *byte != 0) {
        return None;
    }
    into.copy_from_slice(program);
    into.get_mut(at + MAGIC.len()..)?.get_mut(..socket.len())?.copy_from_slice(socket);
    Some(())
}

/// The path of the socket in an interpreter's file that [`write()`] made. None where there is none.
#[must_use]
pub fn socket_in(interpreter: &[u8]) -> Option<&[u8]> {
    let slot = interpreter.windows(SIZE).find(|window| window.starts_with(&MAGIC))?.get(MAGIC.len()..)?;
    slot.split(|byte| *byte == 0).next().filter(|path| !path.is_empty())
}
