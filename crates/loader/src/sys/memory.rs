//! Memory of another process, and how the kernel lists a mapping of a file.

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mlock, mmap, mmap_anonymous, mprotect, munmap};
use rustix::process::Pid;

use crate::trace::proc_text;

/// Size of the pages that are tried, bytes.
const PAGE: usize = 4096;

/// Fills `buf` from the memory of a process that the caller traces.
pub(crate) fn read_memory(pid: Pid, address: u64, buf: &mut [u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(address as usize), iov_len: buf.len() };
    // SAFETY: the local vector names exactly `buf`, which may be written; the remote one is only a number here.
    let moved = unsafe { libc::process_vm_readv(pid.as_raw_nonzero().get(), &raw const local, 1, &raw const remote, 1, 0) };
    whole(moved, buf.len())
}

/// Writes `buf` to the memory of a process that the caller traces.
pub(crate) fn write_memory(pid: Pid, address: u64, buf: &[u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(address as usize), iov_len: buf.len() };
    // SAFETY: the local vector names exactly `buf`, which is only read; the remote one is only a number here.
    let moved = unsafe { libc::process_vm_writev(pid.as_raw_nonzero().get(), &raw const local, 1, &raw const remote, 1, 0) };
    whole(moved, buf.len())
}

fn whole(moved: isize, wanted: usize) -> io::Result<()> {
    match usize::try_from(moved) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(moved) if moved == wanted => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The device and inode columns, as in "fe:00 325843", that /proc/PID/maps shows for a mapping of this file. On overlay and btrfs
/// file systems they differ from what stat(2) says, so the file is mapped here for a moment and looked up.
pub(crate) fn listed_as(file: BorrowedFd<'_>) -> io::Result<String> {
    let page = Mapped::of(file, PAGE as u64, ProtFlags::READ, MapFlags::PRIVATE)?;
    let maps = proc_text("/proc/self/maps")?;
    let line = maps.lines().find(|line| covers(line, page.address.addr().get() as u64)).ok_or(io::ErrorKind::NotFound)?;
    let columns: Vec<&str> = line.split_ascii_whitespace().skip(3).take(2).collect();
    Ok(columns.join(" "))
}

/// Whether a page of a file can be mapped privately with this protection, as a process would map its code.
pub(crate) fn try_mapping(file: BorrowedFd<'_>, protection: ProtFlags) -> io::Result<()> {
    rustix::fs::ftruncate(file, PAGE as u64)?;
    Mapped::of(file, PAGE as u64, protection, MapFlags::PRIVATE).map(drop)
}

/// Whether anonymous memory that was writable can become executable.
pub(crate) fn try_anonymous_code() -> io::Result<()> {
    // SAFETY: a fresh private mapping at an address of the kernel's choice overlaps nothing of ours.
    let address = unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }?;
    // SAFETY: this is the mapping made above; nobody executes or writes it.
    let changed = unsafe { mprotect(address, PAGE, MprotectFlags::READ | MprotectFlags::EXEC) };
    // SAFETY: as above, and nobody was given its address.
    unsafe { munmap(address, PAGE) }?;
    Ok(changed?)
}

/// Whether a line of a maps file is about this address.
fn covers(line: &str, address: u64) -> bool {
    let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
    let number = |text| u64::from_str_radix(text, 16).ok();
    range.is_some_and(|(start, end)| number(start).is_some_and(|start| start <= address) && number(end).is_some_and(|end| address < end))
}

/// The beginning of a file, mapped at an address of the kernel's choice.
#[derive(Debug)]
struct Mapped {
    address: NonNull<c_void>,
    length: usize,
}

// SAFETY: nothing is read or written through this value itself; its end unmaps the mapping, once, from whatever thread.
unsafe impl Send for Mapped {}
// SAFETY: as above: a shared reference gives no access to the mapping.
unsafe impl Sync for Mapped {}

impl Mapped {
    fn of(file: BorrowedFd<'_>, length: u64, protection: ProtFlags, flags: MapFlags) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing of ours.
        let address = unsafe { mmap(std::ptr::null_mut(), length, protection, flags, file, 0) }?;
        Ok(Self { address: NonNull::new(address).ok_or(io::ErrorKind::OutOfMemory)?, length })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `of` with this length, and whoever has its address keeps this value alive.
        let _ = unsafe { munmap(self.address.as_ptr(), self.length) };
    }
}

/// A mapping of a memory file that keeps its pages from being swapped out.
#[derive(Debug)]
pub(crate) struct LockedPages {
    /// Nobody reads it.
    _pages: Mapped,
}

impl LockedPages {
    /// Maps and locks so many bytes from the beginning of the file.
    pub(crate) fn of(file: BorrowedFd<'_>, length: u64) -> io::Result<Self> {
        let pages = Mapped::of(file, length, ProtFlags::READ, MapFlags::PRIVATE)?;
        // SAFETY: the mapping was just made with this length; locking it changes nothing that it holds.
        unsafe { mlock(pages.address.as_ptr(), pages.length) }?;
        Ok(Self { _pages: pages })
    }
}

/// The beginning of a memory file, mapped to be written. Its pages are there already, so that writing costs no fault.
#[derive(Debug)]
pub(crate) struct WritablePages(Mapped);

impl WritablePages {
    /// Maps so many bytes from the beginning of a file that nobody else has, and has the kernel give all their pages (Linux 5.14).
    pub(crate) fn of(file: BorrowedFd<'_>, length: u64) -> io::Result<Self> {
        let pages = Mapped::of(file, length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)?;
        // SAFETY: the mapping was just made with this length; that its pages are there changes nothing that it holds.
        unsafe { madvise(pages.address.as_ptr(), pages.length, Advice::LinuxPopulateWrite) }?;
        Ok(Self(pages))
    }

    /// The parts of the mapping that lie at these places of the file, each for one thread: none for one that goes beyond `end` or the
    /// mapping, or begins before the end of the one before.
    pub(crate) fn parts(self, end: u64, wanted: impl Iterator<Item = (u64, usize)>) -> Vec<Option<WritablePart>> {
        let (end, mut free) = (usize::try_from(end).unwrap_or(usize::MAX).min(self.0.length), 0);
        let pages = Arc::new(self);
        let part = |(at, length): (u64, usize)| {
            let begin = usize::try_from(at).ok().filter(|begin| *begin >= free)?;
            free = begin.checked_add(length).filter(|after| *after <= end)?;
            Some(WritablePart { pages: Arc::clone(&pages), begin, length })
        };
        wanted.map(part).collect()
    }
}

/// Some bytes of a mapping that no other value of this kind reaches.
#[derive(Debug)]
pub(crate) struct WritablePart {
    pages: Arc<WritablePages>,
    begin: usize,
    length: usize,
}

impl WritablePart {
    /// The bytes. The file is at least as long as the end was that its parts were made with.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `parts` gives each byte of the mapping to one value at most, this one, which is borrowed mutably for as long as the
        // slice lives, and which keeps the mapping. The file is ours alone, nobody makes it shorter, and all its bytes are initialised.
        unsafe { std::slice::from_raw_parts_mut(self.pages.0.address.cast::<u8>().as_ptr().add(self.begin), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn locked_pages_are_locked_while_they_live() {
        let file = rustix::fs::memfd_create("chipbound-locked", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 3 * 4096).unwrap();
        let locked = || {
            let all = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let ours = all.split("/memfd:chipbound-locked").nth(1)?.lines().find(|line| line.starts_with("Locked:"))?.to_owned();
            ours.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        assert_eq!(locked(), None);
        let pages = LockedPages::of(file.as_fd(), 3 * 4096).unwrap();
        assert_eq!(locked(), Some(12), "kibibytes");
        drop(pages);
        assert_eq!(locked(), None);
    }

    #[test]
    fn a_file_is_listed_as_the_kernel_lists_its_mappings() {
        let program = std::env::current_exe().unwrap();
        let listed = listed_as(std::fs::File::open(&program).unwrap().as_fd()).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.ends_with(program.to_str().unwrap())).unwrap();
        assert!(line.contains(&format!(" {listed} ")), "{listed}: {line}");
    }

    #[test]
    fn parts_of_a_mapping_reach_their_own_bytes_of_the_file_and_none_overlap() {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::from(rustix::fs::memfd_create("chipbound-parts", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(3 * 4096).unwrap();
        let pages = WritablePages::of(file.as_fd(), 3 * 4096).unwrap();
        let wanted = [(0, 100), (100, 50), (140, 20), (160, 0), (4096, 4096), (8192, 4096), (8192, 4097), (u64::MAX, 1)];
        let mut parts = pages.parts(8192 + 4096, wanted.into_iter());
        let made: Vec<_> = parts.iter().map(Option::is_some).collect();
        assert_eq!(made, [true, true, false, true, true, true, false, false]);
        parts[1].as_mut().unwrap().bytes().fill(7);
        parts[5].as_mut().unwrap().bytes().fill(9);
        let mut held = vec![0; 3 * 4096];
        file.read_exact_at(&mut held, 0).unwrap();
        let expected = |at: usize| if (100..150).contains(&at) { 7 } else { u8::from(at >= 8192) * 9 };
        assert!((0..held.len()).all(|at| held[at] == expected(at)));
    }
}
