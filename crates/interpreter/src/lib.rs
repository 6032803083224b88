//! The launcher: what stands between an exec and the processor, in a few kilobytes without libc, allocation or relocations.
//!
//! The same modules are used in three places, as programs of their own that `build.rs` makes:
//!
//! - [`INTERPRETER`], the program that the `PT_INTERP` of a package names: somebody executes a package, and the kernel starts this one
//!   ([`direct`]);
//! - the front of `chipbound`, which does `chipbound run` before anything else of that program is loaded ([`run`], [`linker`]);
//! - [`LIBRARY`], the stub that a protected shared library has called first ([`load`]).
//!
//! They need nothing but the kernel, so that a start costs next to nothing before the package's own. What they must not do: decide
//! anything. They ask the processor and say what it answered.
//!
//! Machine-specific is [`sys`]'s inner module and the entries.

#![no_std]

pub mod ask;
pub mod direct;
#[cfg(target_arch = "x86_64")]
mod entry;
pub mod frame;
pub mod hook;
pub mod linker;
pub mod load;
pub mod maps;
pub mod run;
pub mod slot;
pub mod stack;
pub mod sys;
pub mod text;

/// The interpreter's file, its slot empty; see [`slot::write`].
pub const INTERPRETER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/interpreter"));

/// The stub of a library as it lies in memory, its slot empty; see [`hook::write`].
pub const LIBRARY: &[u8] = include_bytes!(env!("CHIPBOUND_LIBRARY_IMAGE"));
/// Where the stub begins.
pub const LIBRARY_ENTRY: u64 = decimal(env!("CHIPBOUND_LIBRARY_ENTRY"));

/// What the processor answered when the front of this program asked it and was refused, at most [`frame::MAX_ANSWER`] bytes; none where nobody
/// was refused, or where more was answered.
#[must_use]
pub fn refused() -> Option<&'static [u8]> {
    unsafe extern "C" {
        safe fn getauxval(kind: core::ffi::c_ulong) -> core::ffi::c_ulong;
    }
    let page = getauxval(stack::AT_FLAGS as core::ffi::c_ulong) as usize;
    if page == 0 || !page.is_multiple_of(sys::PAGE) {
        return None;
    }
    // SAFETY: the kernel has no address there; the front does, that of a page which nobody writes or unmaps.
    let page: &[u8] = unsafe { sys::memory(page, sys::PAGE) };
    let (length, answer) = page.split_first_chunk::<{ frame::PREFIX }>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    answer.get(..length).filter(|_| length <= frame::MAX_ANSWER)
}

/// The number that these digits say.
const fn decimal(digits: &str) -> u64 {
    let (bytes, mut number, mut at) = (digits.as_bytes(), 0, 0);
    while at < bytes.len() {
        number = number * 10 + (bytes[at] - b'0') as u64;
        at += 1;
    }
    number
}
