//! The place in a library's stub where the client writes what the stub has to know.

use crate::sys::{MAX_SOCKET_PATH, PAGE};

/// What the slot begins with, once in the stub: how the writer finds it.
pub const MAGIC: [u8; 16] = *b"chipbound/librar";
/// Bytes of the path with the zeros behind it.
const PATH: usize = 112;
/// Bytes of the slot: magic, path, four numbers in little endian.
pub const SIZE: usize = MAGIC.len() + PATH + 4 * 8;

/// The slot in the stub.
#[repr(C, align(8))]
#[derive(Debug)]
pub struct Hook {
    magic: [u8; MAGIC.len()],
    path: [u8; PATH],
    address: u64,
    init: u64,
    read_only: [u64; 2],
}

/// What is written there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known<'a> {
    /// The path of the processor's socket.
    pub socket: &'a [u8],
    /// Where the stub's first byte lies in the library, before the load bias.
    pub address: u64,
    /// Where the library's own DT_INIT leads, before the load bias; 0 where it has none.
    pub init: u64,
    /// Address, before the load bias, and length of what is to be made read-only first; 0 and 0 where nothing is.
    pub read_only: (u64, u64),
}

impl Hook {
    /// A slot in which nothing was written.
    #[must_use]
    pub const fn empty() -> Self {
        Self { magic: MAGIC, path: [0; PATH], address: 0, init: 0, read_only: [0; 2] }
    }

    /// The path of the processor's socket; None where none was written.
    #[must_use]
    pub fn socket(&self) -> Option<&[u8]> {
        let length = (0..PATH).take_while(|i| self.byte(*i) != 0).count();
        self.path.get(..length).filter(|path| !path.is_empty())
    }

    /// Where the library lies: the load bias.
    #[must_use]
    pub fn bias(&self) -> usize {
        self.own_address().wrapping_sub(self.number(&raw const self.address))
    }

    /// Where the library's own DT_INIT is; 0 where it has none.
    #[must_use]
    pub fn init(&self) -> usize {
        match self.number(&raw const self.init) {
            0 => 0,
            init => self.bias().wrapping_add(init),
        }
    }

    /// The whole pages that are to be made read-only, as dynamic linkers do: first address and length.
    #[must_use]
    pub fn read_only(&self) -> (usize, usize) {
        let start = self.bias().wrapping_add(self.number(&raw const self.read_only[0]));
        let end = start.wrapping_add(self.number(&raw const self.read_only[1]));
        let floor = |address: usize| address & !(PAGE - 1);
        (floor(start), floor(end) - floor(start))
    }

    /// Where this slot is in memory: an address inside the library.
    #[must_use]
    pub fn own_address(&self) -> usize {
        (&raw const *self).addr()
    }

    // Read as it stands in memory: the compiler knows the slot only as it was before the writer came.
    fn byte(&self, at: usize) -> u8 {
        // SAFETY: the byte is part of a live slot.
        self.path.get(at).map_or(0, |byte| unsafe { core::ptr::from_ref(byte).read_volatile() })
    }

    fn number(&self, field: *const u64) -> usize {
        // SAFETY: the field is part of this slot, which is live.
        unsafe { field.read_volatile() as usize }
    }
}

/// The stub for one library: a copy of `stub` with its slot filled. None where the path is empty, too long for a unix socket or has a
/// NUL in it, or where the stub has not exactly one empty slot.
///
/// The caller gives the room: `into` has the length of `stub`.
#[must_use]
pub fn write(stub: &[u8], known: Known<'_>, into: &mut [u8]) -> Option<()> {
    let Known { socket, address, init, read_only: (start, length) } = known;
    if socket.is_empty() || socket.len() > MAX_SOCKET_PATH || socket.contains(&0) || into.len() != stub.len() {
        return None;
    }
    let mut places = stub.windows(SIZE).enumerate().filter(|(_, window)| window.starts_with(&MAGIC));
    let (at, slot) = places.next()?;
    if places.next().is_some() || slot[MAGIC.len()..].iter().any(|byte| *byte != 0) {
        return None;
    }
    into.copy_from_slice(stub);
    let slot = into.get_mut(at + MAGIC.len()..)?;
    slot.get_mut(..socket.len())?.copy_from_slice(socket);
    // The stub knows where its slot is, and finds by this where the library is.
    for (place, number) in slot.get_mut(PATH..)?.chunks_exact_mut(8).zip([address + at as u64, init, start, length]) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LIBRARY;

    #[test]
    fn the_stub_has_one_slot_and_takes_what_is_written_there() {
        let mut into = [0; LIBRARY.len()];
        let known = Known { socket: b"/run/sock", address: 0x5000, init: 0x1234, read_only: (0x3000, 7) };
        assert_eq!(write(LIBRARY, known, &mut into), Some(()));
        let at = into.windows(MAGIC.len()).position(|w| w == MAGIC).expect("a slot");
        assert_eq!(at % align_of::<Hook>(), 0);
        assert_eq!(&into[at + 16..at + 26], b"/run/sock\0");
        assert_eq!(into[at + 128..at + 136], (0x5000 + at as u64).to_le_bytes());
        assert_eq!(into[at + 136..at + 144], 0x1234_u64.to_le_bytes());
        assert_eq!(&into[at + 144..at + 160], [0x3000_u64.to_le_bytes(), 7_u64.to_le_bytes()].as_flattened());
        let mut again = [0; LIBRARY.len()];
        assert_eq!(write(&into, known, &mut again), None, "its slot is not empty");
    }

    #[test]
    fn no_path_that_is_no_socket_is_written() {
        let mut into = [0; LIBRARY.len()];
        for socket in [&b""[..], b"/a\0b", &[b'/'; MAX_SOCKET_PATH + 1]] {
            assert_eq!(write(LIBRARY, Known { socket, address: 0, init: 0, read_only: (0, 0) }, &mut into), None);
        }
        assert_eq!(write(LIBRARY, Known { socket: b"/a", address: 0, init: 0, read_only: (0, 0) }, &mut into[1..]), None);
    }
}
