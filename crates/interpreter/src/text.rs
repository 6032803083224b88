//! Paths put together, and what is said to a person, without allocation.

use crate::sys::{Errno, MAX_PATH, STDERR};
use core::ffi::CStr;

/// A path under construction.
#[derive(Debug)]
pub struct PathBuffer {
    bytes: [u8; MAX_PATH],
    length: usize,
}

impl Default for PathBuffer {
    fn default() -> Self {
        Self { bytes: [0; MAX_PATH], length: 0 }
    }
}

impl PathBuffer {
    /// Adds bytes; None where it would be longer than a path may be.
    pub fn push(&mut self, bytes: &[u8]) -> Option<()> {
        self.spare().get_mut(..bytes.len())?.copy_from_slice(bytes);
        self.grow(bytes.len());
        Some(())
    }

    /// Begins again.
    pub fn clear(&mut self) {
        self.bytes = [0; MAX_PATH];
        self.length = 0;
    }

    /// The room behind what is there, but for the NUL.
    pub fn spare(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.length..MAX_PATH - 1).unwrap_or_default()
    }

    /// Counts bytes in that were written to the room.
    pub fn grow(&mut self, length: usize) {
        self.length = (self.length + length).min(MAX_PATH - 1);
    }

    /// The bytes, without a NUL.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// The path for a system call; None where a NUL is in it.
    #[must_use]
    pub fn path(&self) -> Option<&CStr> {
        CStr::from_bytes_with_nul(self.bytes.get(..=self.length)?).ok()
    }
}

/// Says these parts on standard error. Whoever does not listen is not told.
pub fn say(parts: [&[u8]; 4]) {
    for mut rest in parts {
        while let Ok(written @ 1..) = STDERR.write(rest) {
            rest = rest.get(written..).unwrap_or_default();
        }
    }
}

/// Words for an error number.
#[must_use]
pub fn reason(error: Errno) -> &'static [u8] {
    match error.0 {
        1 => b"operation not permitted",
        2 => b"no such file",
        7 => b"arguments and environment are too long",
        8 => b"no program that this machine can execute",
        11 => b"try again",
        12 => b"out of memory",
        13 => b"permission denied",
        23 | 24 => b"too many open files",
        26 => b"the file is being written to",
        32 | 104 => b"it closed the connection",
        36 => b"the path is too long",
        111 => b"nobody listens there",
        _ => b"the kernel refuses",
    }
}
