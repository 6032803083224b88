//! What runs first in `chipbound`. `build.rs` makes it of the library's modules, as the interpreter; the library's `entry` carries its
//! bytes, and `chipbound` begins there; see [`run`] and [`linker`].

#![no_std]
#![no_main]

mod ask;
mod bare;
mod frame;
mod linker;
mod run;
mod stack;
mod sys;
mod text;

/// `top` is the kernel's stack pointer, `ordinary` where the ordinary program begins. Returns where to go on: the process has become
/// another program, or this one is to be an ordinary one.
#[unsafe(no_mangle)]
extern "C" fn front(top: *mut usize, ordinary: usize) -> usize {
    // SAFETY: the entry hands over the stack pointer that the kernel gave to it.
    let mut stack = unsafe { stack::Stack::read(top) };
    run::start(&mut stack);
    linker::load(&mut stack, ordinary)
}
