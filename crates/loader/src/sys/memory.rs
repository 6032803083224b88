//! Memory of another process, and how the kernel lists a mapping of a file.

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mlock, mmap, mmap_anonymous, mprotect, munmap};
use rustix::process::Pid;

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
    // SAFETY: a fresh private read-only mapping at an address of the kernel's choice overlaps nothing of ours.
    let address = unsafe { mmap(std::ptr::null_mut(), PAGE, ProtFlags::READ, MapFlags::PRIVATE, file, 0) }?;
    let maps = std::fs::read_to_string("/proc/self/maps");
    // SAFETY: this is the mapping made above, and nobody was given its address.
    unsafe { munmap(address, PAGE) }?;
    let line = maps?.lines().find(|line| covers(line, address.addr() as u64)).map(str::to_owned).ok_or(io::ErrorKind::NotFound)?;
    let columns: Vec<&str> = line.split_ascii_whitespace().skip(3).take(2).collect();
    Ok(columns.join(" "))
}

/// Whether a page of a file can be mapped privately with this protection, as a process would map its code.
pub(crate) fn try_mapping(file: BorrowedFd<'_>, protection: ProtFlags) -> io::Result<()> {
    rustix::fs::ftruncate(file, PAGE as u64)?;
    // SAFETY: a fresh private mapping at an address of the kernel's choice overlaps nothing of ours; nothing touches it.
    let address = unsafe { mmap(std::ptr::null_mut(), PAGE, protection, MapFlags::PRIVATE, file, 0) }?;
    // SAFETY: this is the mapping made above, and nobody was given its address.
    unsafe { munmap(address, PAGE) }?;
    Ok(())
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

/// A mapping of a memory file that keeps its pages from being swapped out.
#[derive(Debug)]
pub(crate) struct LockedPages {
    address: NonNull<c_void>,
    length: usize,
}

// SAFETY: the mapping is never read or written through this value; only its end unmaps it, once, from whatever thread.
unsafe impl Send for LockedPages {}
// SAFETY: as above: a shared reference gives no access to the mapping.
unsafe impl Sync for LockedPages {}

impl LockedPages {
    /// Maps and locks so many bytes from the beginning of the file.
    pub(crate) fn of(file: BorrowedFd<'_>, length: u64) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        // SAFETY: a fresh read-only mapping at an address of the kernel's choice overlaps nothing of ours.
        let address = unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, file, 0) }?;
        let pages = Self { address: NonNull::new(address).ok_or(io::ErrorKind::OutOfMemory)?, length };
        // SAFETY: the mapping was just made with this length; locking it changes nothing that it holds.
        unsafe { mlock(address, length) }?;
        Ok(pages)
    }
}

impl Drop for LockedPages {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `of` with this length, and nobody was given its address.
        let _ = unsafe { munmap(self.address.as_ptr(), self.length) };
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
}
