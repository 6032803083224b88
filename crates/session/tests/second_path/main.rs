//! Both ends of the second path against each other in memory, and against those who should not get through.

#![expect(clippy::unwrap_used, reason = "a test whose world cannot be made should fail")]

mod certificates;
mod common;
mod delivery;
mod exchange;
mod negotiation;
mod paths;
mod states;
