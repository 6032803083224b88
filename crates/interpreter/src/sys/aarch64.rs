//! What AArch64 has of its own: the system call instruction, the numbers, the layout of `struct stat`. CI compiles it; for lack of such a
//! machine it has never been run.

use core::arch::asm;

pub(super) const GETCWD: usize = 17;
pub(super) const FACCESSAT: usize = 48;
pub(super) const OPENAT: usize = 56;
pub(super) const CLOSE: usize = 57;
pub(super) const READ: usize = 63;
pub(super) const RECVMSG: usize = 212;
pub(super) const MUNMAP: usize = 215;
pub(super) const MADVISE: usize = 233;
pub(super) const WRITE: usize = 64;
pub(super) const READLINKAT: usize = 78;
pub(super) const NEWFSTATAT: usize = 79;
pub(super) const EXIT_GROUP: usize = 94;
pub(super) const PRCTL: usize = 167;
pub(super) const SOCKET: usize = 198;
pub(super) const CONNECT: usize = 203;
pub(super) const GETSOCKOPT: usize = 209;
pub(super) const SENDMSG: usize = 211;
pub(super) const EXECVE: usize = 221;
pub(super) const MMAP: usize = 222;
pub(super) const MPROTECT: usize = 226;

/// Size of `struct stat`, in words of eight bytes.
pub(super) const STAT_WORDS: usize = 16;

/// Device, inode and mode in a `struct stat`.
pub(super) fn stat_fields(stat: &[u64; STAT_WORDS]) -> (u64, u64, u32) {
    (stat[0], stat[1], stat[2] as u32)
}

/// Makes a system call and returns what the kernel returned: from -4095 to -1 an error number.
///
/// # Safety
/// The caller guarantees of every pointer among the arguments what this system call asks for.
pub(super) unsafe fn syscall(number: usize, arguments: [usize; 6]) -> isize {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    let result;
    // SAFETY: the kernel changes no register but x0, and no memory but what the caller answers for.
    unsafe {
        asm!(
            "svc #0",
            in("x8") number,
            inlateout("x0") first.cast_signed() => result,
            in("x1") second,
            in("x2") third,
            in("x3") fourth,
            in("x4") fifth,
            in("x5") sixth,
            options(nostack),
        );
    }
    result
}
