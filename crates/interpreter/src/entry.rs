//! The entry of a program that carries the front: the bytes of the front, and the way in and out of them.
//!
//! A program is linked to begin at `chipbound_front`, with a crate that names this module. The front knows neither libc nor its own
//! address, so it does not matter that nothing is relocated yet, nor how the rest of the program was compiled.

use core::arch::global_asm;

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .text.chipbound_front, \"ax\", @progbits",
    ".balign 4096",
    ".Lchipbound_front:",
    concat!(".incbin \"", env!("CHIPBOUND_FRONT_IMAGE"), "\""),
    ".balign 16",
    ".globl chipbound_front",
    ".type chipbound_front, @function",
    "chipbound_front:",
    // The kernel's stack pointer, and what is in rdx for the ordinary entry, are kept over the call.
    "xor ebp, ebp",
    "mov rbx, rsp",
    "mov r12, rdx",
    "mov rdi, rsp",
    "lea rsi, [rip + _start]",
    "and rsp, -16",
    concat!("call .Lchipbound_front + ", env!("CHIPBOUND_FRONT_ENTRY")),
    "mov rsp, rbx",
    "mov rdx, r12",
    "jmp rax",
    ".size chipbound_front, . - chipbound_front",
    ".popsection",
);
