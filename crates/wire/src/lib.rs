//! What travels between the programs of chipbound: documents, messages, limits and error codes.
//!
//! Everything here is a value: no I/O, no clock, no randomness. Bytes from outside become a type of this crate only after
//! they were parsed with every length checked; a signed document becomes [`signed::Verified`] only after its signature,
//! its certificate chain and the role in that certificate were checked. The contract in CDDL (RFC 8610) is
//! `docs/chipbound.cddl`.

pub mod api;
pub mod bounded;
pub mod certificate;
pub mod control;
pub mod documents;
pub mod enrolment;
pub mod error;
pub mod ids;
pub mod limits;
pub mod messages;
pub mod payment;
pub mod random;
#[cfg(feature = "schema")]
mod schema;
pub mod signature;
pub mod signed;
pub mod suite;
pub mod tlog;

pub use error::{Code, Fault, Refusal, Result};
pub use ids::{AccountId, Amount, Currency, Digest, Hex, KeyId, OrderId, ProgramId, Time, TreeHash};
pub use random::{Random, SystemRandom};
