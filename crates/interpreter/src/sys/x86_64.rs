//! What x86-64 has of its own: the system call instruction, the numbers, the layout of `struct stat`, the first instructions.

use core::arch::asm;

pub(super) const READ: usize = 0;
pub(super) const WRITE: usize = 1;
pub(super) const CLOSE: usize = 3;
pub(super) const MMAP: usize = 9;
pub(super) const MPROTECT: usize = 10;
pub(super) const MUNMAP: usize = 11;
pub(super) const MADVISE: usize = 28;
pub(super) const SOCKET: usize = 41;
pub(super) const CONNECT: usize = 42;
pub(super) const SENDMSG: usize = 46;
pub(super) const RECVMSG: usize = 47;
pub(super) const GETSOCKOPT: usize = 55;
pub(super) const EXECVE: usize = 59;
pub(super) const GETCWD: usize = 79;
pub(super) const PRCTL: usize = 157;
pub(super) const EXIT_GROUP: usize = 231;
pub(super) const OPENAT: usize = 257;
pub(super) const NEWFSTATAT: usize = 262;
pub(super) const READLINKAT: usize = 267;
pub(super) const FACCESSAT: usize = 269;

/// Size of `struct stat`, in words of eight bytes.
pub(super) const STAT_WORDS: usize = 18;

/// Device, inode and mode in a `struct stat`.
pub(super) fn stat_fields(stat: &[u64; STAT_WORDS]) -> (u64, u64, u32) {
    (stat[0], stat[1], stat[3] as u32)
}

/// Makes a system call and returns what the kernel returned: from -4095 to -1 an error number.
///
/// # Safety
/// The caller guarantees of every pointer among the arguments what this system call asks for.
pub(super) unsafe fn syscall(number: usize, arguments: [usize; 6]) -> isize {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    let result;
    // SAFETY: the kernel changes no registers but rax, rcx and r11, and no memory but what the caller answers for.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number.cast_signed() => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            in("r8") fifth,
            in("r9") sixth,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}
