//! The certificate authority of chipbound (source \[33\]-\[35\]): enrols processors, servers and vendors, renews and revokes.
//!
//! [`issuing`] makes certificates and lists from values alone; [`authority`] decides who gets one; [`store`] remembers it;
//! [`http`] serves it; [`installation`] and [`command`] are the operator's side. What it does not do: it sees no program, no
//! order and no private key but its own, and certifies no name that its operator did not give.

pub mod authority;
pub mod command;
pub mod config;
mod enrolment;
pub mod http;
pub mod installation;
pub mod issuing;
mod pending;
pub mod request;
pub mod store;
