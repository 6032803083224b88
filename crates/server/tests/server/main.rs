//! The server over real sockets on loopback: its client, its vendors and its processors, honest and hostile.

#![expect(clippy::unwrap_used, reason = "tests")]

mod accounts;
mod audit;
mod backup;
mod cards;
mod daemon;
mod deliveries;
mod log;
mod memory;
mod openapi;
mod orders;
mod payments;
mod permissions;
mod processor;
mod publishing;
mod reconciling;
mod refusals;
mod settlement;
mod transferring;
mod world;
