//! Packages that lie on a disk and not in memory: much of one is asked for as soon as somebody wants it.

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;

/// How much is asked for at once, bytes. To ask takes time of the one thread that does; what comes after is read ahead by the kernel itself.
const AT_ONCE: u64 = 16 << 20;
/// Bytes at the end that are wanted first: documents, and tags.
const END: u64 = 256 << 10;

/// Has the kernel read a package of `size` bytes, unless its end is in memory: then the rest is as well, or will be read as it is wanted.
/// Nothing depends on it.
pub(crate) fn read(package: &File, size: u64) {
    let (mut last, before) = ([0], size.saturating_sub(END));
    let there = preadv2(package, &mut [IoSliceMut::new(&mut last)], size.saturating_sub(1), ReadWriteFlags::NOWAIT);
    if matches!(there, Err(Errno::AGAIN)) {
        let _ = fadvise(package, before, None, Advice::WillNeed); // It is advice.
        let _ = fadvise(package, 0, NonZeroU64::new(before.min(AT_ONCE)), Advice::WillNeed);
    }
}
