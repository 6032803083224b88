//! What a protected shared library has called before anything else of it. `build.rs` makes it of the library's modules, and the
//! client appends it to a library that it puts in place; see [`load`].

#![no_std]
#![no_main]

mod bare;
mod frame;
mod hook;
mod load;
mod maps;
mod sys;
mod text;

use core::arch::naked_asm;

#[used]
#[unsafe(link_section = ".rodata.chipbound")]
static HOOK: hook::Hook = hook::Hook::empty();

/// Where the dynamic linker begins, as in any DT_INIT; goes on to the library's own with the same arguments.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn library() {
    naked_asm!(
        "push rdi", "push rsi", "push rdx", // With the way back these leave the stack aligned for a call.
        "call {main}",
        "pop rdx", "pop rsi", "pop rdi",
        "test rax, rax",
        "jz 2f",
        "jmp rax",
        "2:", "ret",
        main = sym main,
    )
}

extern "C" fn main() -> usize {
    load::load(&HOOK)
}
