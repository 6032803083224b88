//! What this crate claims.

mod altered;
mod common;
mod data;
mod libraries;
mod programs;
mod secrets;
mod start;
mod vectors;
mod wraps;
