//! Opened code that stays in memory: pages of an image that cannot be swapped out.

use std::io;

use crate::image::Image;
use crate::sys::LockedPages;

/// All pages of an image, locked for as long as this value lives, for every process that has them.
#[derive(Debug)]
pub struct Locked {
    _pages: LockedPages,
}

impl Image {
    /// Locks all its pages. What a process writes to its private copies (data, relocated text) is the process's own and not locked.
    ///
    /// # Errors
    /// Those of mlock(2): above all the lock limit of this process (`ulimit -l`), against which its bytes count.
    pub fn lock(&self) -> io::Result<Locked> {
        LockedPages::of(self.descriptor(), self.memory()).map(|pages| Locked { _pages: pages })
    }
}
