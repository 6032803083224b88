//! What this crate claims.

mod common;
mod data;
mod programs;
mod wraps;
