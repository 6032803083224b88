//! Memory for the packages that are taken into it while they are verified, to be read once. Who finds none reads twice, in the memory of some
//! pages.

use chipbound_sealing::AT_ONCE;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that are free, of those for all packages that are in memory at once.
#[derive(Debug)]
pub struct Room(AtomicU64);

impl Default for Room {
    /// For two of the largest packages that are taken into memory.
    fn default() -> Self {
        Self(AtomicU64::new(2 * AT_ONCE))
    }
}

/// Bytes that one package has until this is dropped.
#[derive(Debug)]
pub struct Taken<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Room {
    /// Takes as much as a package of `size` bytes needs; `None` where it is larger than [`AT_ONCE`] or others have what it needs.
    pub fn take(&self, size: u64) -> Option<Taken<'_>> {
        let bytes = Some(size).filter(|size| *size <= AT_ONCE)?;
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(bytes)).ok()?;
        Some(Taken { room: self, bytes })
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.room.0.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_opened_at_once_never_have_more_than_all_the_room() {
        let room = Room(AtomicU64::new(100));
        let (first, second) = (room.take(60).unwrap(), room.take(40).unwrap());
        assert!(room.take(1).is_none());
        drop(first);
        assert!(room.take(61).is_none());
        let third = room.take(60).unwrap();
        drop((second, third));
        assert_eq!(room.0.into_inner(), 100);
        assert!(Room(AtomicU64::new(u64::MAX)).take(AT_ONCE + 1).is_none(), "larger ones take two passes always");
    }
}
