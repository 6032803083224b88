//! The program that the `PT_INTERP` of a package names. `build.rs` makes it of the library's modules, without libc and without a
//! relocation; see [`direct`].

#![no_std]
#![no_main]

mod ask;
mod bare;
mod direct;
mod frame;
mod slot;
mod stack;
mod sys;
mod text;

use core::arch::naked_asm;

#[used]
#[unsafe(link_section = ".rodata.chipbound")]
static SLOT: slot::Slot = slot::Slot::empty();

/// Where the kernel begins. The stack is aligned for a call, which the entry itself was not.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    #[cfg(target_arch = "x86_64")]
    naked_asm!("xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {main}", "ud2", main = sym main);
    #[cfg(target_arch = "aarch64")]
    naked_asm!("mov x29, xzr", "mov x30, xzr", "mov x0, sp", "bl {main}", "brk #1", main = sym main);
}

extern "C" fn main(top: *mut usize) -> ! {
    // SAFETY: this is the stack pointer that the kernel gave to the entry.
    direct::start(unsafe { stack::Stack::read(top) }, &SLOT)
}
