//! The small program that the PT_INTERP of a package is to name: what the kernel starts when somebody executes a package
//! directly. In this version no package names it yet (PT_INTERP stays the program's own, and a direct start ends at the
//! first fetch from a segment without execute permission); it says what to do and ends with 126, as a shell does for a
//! program that cannot be executed. No libc, no allocation, no relocation, nothing of ours.

#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};

const MESSAGE: &[u8] = b"chipbound: this program is bound to a processor; start it with: chipbound run PACKAGE\n";
const STDERR: usize = 2;
const CANNOT_EXECUTE: usize = 126;
const SYS_WRITE: usize = 1;
const SYS_EXIT_GROUP: usize = 231;

/// Where the kernel begins. The stack is aligned for a call, which the entry itself was not.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "and rsp, -16", "call {main}", "ud2", main = sym main)
}

extern "C" fn main() -> ! {
    syscall(SYS_WRITE, STDERR, MESSAGE.as_ptr() as usize, MESSAGE.len());
    loop {
        syscall(SYS_EXIT_GROUP, CANNOT_EXECUTE, 0, 0);
    }
}

fn syscall(number: usize, first: usize, second: usize, third: usize) {
    // SAFETY: both system calls made here only read the bytes of MESSAGE or end the process; the kernel changes no
    // registers but rax, rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => _,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        syscall(SYS_EXIT_GROUP, CANNOT_EXECUTE, 0, 0);
    }
}
