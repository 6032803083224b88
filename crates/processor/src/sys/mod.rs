//! Memory for keys: the system calls of the processor that have no safe wrapper, and all its unsafe code.
#![expect(unsafe_code, reason = "memory that only this process can read, or that is locked, exists only as system calls")]

use rustix::fs::ftruncate;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use zeroize::Zeroize;

/// How far memory for keys is out of others' reach. The best that the machine has is taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Hidden {
    /// Can be swapped out: the lock limit (`ulimit -l`) leaves no room, or there is no right to lock memory.
    Swappable,
    /// Locked, and left out of core dumps. Root reads it.
    Locked,
    /// Taken out of the kernel's own map (`memfd_secret`): neither root's process_vm_readv nor /proc/PID/mem nor ptrace reads it, and it
    /// is not swapped. Whoever can run code in this process or in the kernel can.
    Secret,
}

impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Swappable => "can be swapped out: raise the lock limit (ulimit -l, LimitMEMLOCK=)",
            Self::Locked => "locked; this kernel gives no memory that root cannot read (memfd_secret)",
            Self::Secret => "readable by this process alone (memfd_secret)",
        })
    }
}

/// A secret in pages of its own, which are zeroed and given back when it is dropped.
pub(crate) struct SecretPages {
    address: NonNull<u8>,
    /// Bytes of the mapping, whole pages.
    mapped: usize,
    /// Bytes of the secret.
    length: usize,
    hidden: Hidden,
}

// SAFETY: the pages belong to this value alone, are written only before it exists and in its drop, and are only read between.
unsafe impl Send for SecretPages {}
// SAFETY: as above: shared references only read.
unsafe impl Sync for SecretPages {}

impl SecretPages {
    /// Copies a secret, which the caller erases, into pages that are as hidden as this machine allows.
    ///
    /// # Errors
    /// Whatever mmap(2) says when there is no memory at all.
    pub(crate) fn holding(secret: &[u8]) -> io::Result<Self> {
        let mapped = secret.len().max(1).next_multiple_of(rustix::param::page_size());
        let (address, hidden) = match map_secret(mapped) {
            Ok(address) => (address, Hidden::Secret),
            Err(_) => map_locked(mapped)?,
        };
        // SAFETY: the mapping was just made, is writable, at least as long as the secret, and cannot overlap it.
        unsafe { std::ptr::copy_nonoverlapping(secret.as_ptr(), address.as_ptr(), secret.len()) };
        Ok(Self { address, mapped, length: secret.len(), hidden })
    }

    /// How far it is out of reach.
    #[must_use]
    pub(crate) fn hidden(&self) -> Hidden {
        self.hidden
    }
}

impl AsRef<[u8]> for SecretPages {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the pages are mapped for as long as this value lives, were written up to `length` before it existed, and nobody writes.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.length) }
    }
}

impl Drop for SecretPages {
    fn drop(&mut self) {
        // SAFETY: nobody else holds a reference to the pages any more, which are mapped and writable.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.length) }.zeroize();
        // SAFETY: the mapping was made by `holding` with this length and is given back only here.
        let _ = unsafe { munmap(self.address.as_ptr().cast(), self.mapped) };
    }
}

impl fmt::Debug for SecretPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretPages({} bytes, {:?})", self.length, self.hidden)
    }
}

/// Pages out of the kernel's own map. They count against the lock limit.
fn map_secret(length: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: memfd_secret takes flags and returns a new descriptor or an error.
    let number = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let number = i32::try_from(number).ok().filter(|n| *n >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    ftruncate(&file, length as u64)?;
    // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing of ours.
    let address = unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file.as_fd(), 0) }?;
    Ok(mapped(address))
}

/// Ordinary pages, locked where the limit allows it.
fn map_locked(length: usize) -> io::Result<(NonNull<u8>, Hidden)> {
    // SAFETY: as above.
    let address = unsafe { mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }?;
    // SAFETY: the mapping was just made with this length; neither call changes what it holds.
    let locked = unsafe { mlock(address, length) }.is_ok();
    // SAFETY: as above; the pages hold nothing yet.
    let _ = unsafe { madvise(address, length, Advice::LinuxDontDump) };
    Ok((mapped(address), if locked { Hidden::Locked } else { Hidden::Swappable }))
}

fn mapped(address: *mut c_void) -> NonNull<u8> {
    NonNull::new(address.cast()).expect("mmap returns no null address for success")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_secret_is_held_as_it_is_and_shown_by_no_debug_output() {
        for length in [0, 1, 32, 4096, 10_000] {
            let secret: Vec<u8> = (0..length).map(|n: usize| n as u8 ^ 0x5a).collect();
            let pages = SecretPages::holding(&secret).unwrap();
            assert_eq!(pages.as_ref(), secret);
            assert_eq!(format!("{pages:?}"), format!("SecretPages({length} bytes, {:?})", pages.hidden()));
        }
    }

    #[test]
    fn secret_pages_are_unreadable_through_proc_and_locked_ones_are_not() {
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let read = |address: NonNull<u8>| {
            let mut bytes = [0; 4];
            memory.read_exact_at(&mut bytes, address.as_ptr() as u64).map(|()| bytes)
        };
        let pages = SecretPages::holding(b"mine").unwrap();
        match pages.hidden() {
            Hidden::Secret => drop(read(pages.address).unwrap_err()),
            other => println!("memfd_secret: not run here, this kernel has it not or has it switched off: {other}"),
        }
        let (address, hidden) = map_locked(4096).unwrap();
        assert_eq!((read(address).unwrap(), hidden), ([0; 4], Hidden::Locked));
        // SAFETY: made above with this length, and used no more.
        unsafe { munmap(address.as_ptr().cast(), 4096) }.unwrap();
    }
}
