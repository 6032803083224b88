//! What the daemons and the command ask of their machine: durable files, sealed key files, no core dumps, the clock,
//! configuration. Shells only; nothing below them may depend on this crate.

pub mod config;
pub mod files;
pub mod keyfile;
pub mod process;
pub mod speech;

pub use keyfile::{FileKey, Kek, signing_request};
pub use process::now;
pub use speech::{Speech, lossy};
