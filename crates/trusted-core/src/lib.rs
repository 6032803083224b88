//! The part of the processor that decides: what is remembered, what a release token opens, and whether a package may be
//! opened here (source \[51\]-\[53\], steps 1008-1011).
//!
//! Nothing here does I/O, reads a clock, draws randomness or logs: bytes, times and random bytes are arguments, and what has to
//! be written comes back as bytes. Key material sits behind [`KeyStore`]; above it stands only what HPKE needs.
//!
//! The order of one delivery: [`Record::of`] what was compared → [`State::prepare`] it, write the bytes, [`State::commit`] →
//! sign the acknowledgement → [`release`] with the token, prepare, write and commit that too → hand the package out. Later
//! [`open_package`] opens a package file, and only one that is recorded and released.
#![forbid(unsafe_code)]

mod gate;
mod held;
mod keystore;
mod package;
mod state;

pub use gate::{Delivery, Released, SharedSecrets, release};
pub use held::{Held, Keep};
pub use keystore::{KeyStore, SoftwareKeyStore, generate_identity};
pub use package::{OpenedData, OpenedPackage, UnsettledPackage, open_data, open_in_one_pass, open_package, settle};
pub use state::{MAX_RECORDS, Memory, Prepared, Record, Release, Settled, State, Step};
