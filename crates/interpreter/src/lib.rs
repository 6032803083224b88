//! The launcher: what stands between an exec and the processor, in a few kilobytes without libc, allocation or relocations.
//!
//! The same modules are used in two places, as programs of their own that `build.rs` makes:
//!
//! - [`INTERPRETER`], the program that the `PT_INTERP` of a package names: somebody executes a package, and the kernel starts this one
//!   ([`direct`]).
//!
//! They need nothing but the kernel, so that a start costs next to nothing before the package's own. What they must not do: decide
//! anything. They ask the processor and say what it answered.
//!
//! Machine-specific is [`sys`]'s inner module and the entries.

#![no_std]

pub mod ask;
pub mod direct;
pub mod frame;
pub mod slot;
pub mod stack;
pub mod sys;
pub mod text;

/// The interpreter's file, its slot empty; see [`slot::write`].
pub const INTERPRETER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/interpreter"));
