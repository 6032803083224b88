//! Seals programs and data for one processor, and opens them: content keys and their wraps (HPKE, RFC 9180), the AEAD over
//! pages and chunks, ELF and data packages, the release gate's commitments, and secrets at rest.
//!
//! Here is no clock, no socket and no file: bytes come through [`ReadAt`] or as arguments, randomness as an argument. Nothing
//! from outside is used before it was checked; plaintext leaves an AEAD only after its tag.

#![forbid(unsafe_code)]

pub mod at_rest;
mod blocks;
mod cipher;
mod data;
mod elf;
pub mod gate;
mod kdf;
mod kem;
mod keys;
mod layout;
mod manifest;
pub mod package;
mod pages;
mod read_at;
mod reader;
mod secret;
mod start;
mod wrap;

pub use data::DataReader;
pub use elf::is_library;
pub use gate::ReleaseSecret;
pub use kem::{Decapsulate, SealingKeyPair, SessionKey};
pub use keys::{ContentKey, PageKeys};
pub use layout::{CHUNK_STEP, Layout, MAX_PATCHES, MAX_RANGES, Patch, Range};
pub use manifest::{open_manifest, seal_manifest};
pub use package::Package;
pub use pages::{Opened, Opener, Roots, Sealer, plain_digest};
pub use read_at::ReadAt;
pub use reader::{AT_ONCE, BodyReader, OnePass, PackageReader};
pub use start::{LibraryPlace, StartRecord};
pub use wrap::{
    DirectWrap, open_possession, open_release, open_session, open_wrap, seal_possession, seal_release, wrap_common, wrap_session,
};
