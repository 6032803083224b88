//! Seals programs and data for one processor, and opens them: content keys and their wraps (HPKE, RFC 9180), the AEAD over
//! pages and chunks, ELF and data packages, the release gate's commitments, and secrets at rest.
//!
//! Here is no clock, no socket and no file: bytes come through [`ReadAt`] or as arguments, randomness as an argument. Nothing
//! from outside is used before it was checked; plaintext leaves an AEAD only after its tag.

#![forbid(unsafe_code)]

pub mod at_rest;
mod cipher;
mod kdf;
mod read_at;

pub use read_at::ReadAt;
