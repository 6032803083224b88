//! The authority as a whole, over real HTTPS on the loopback.

mod common;
mod enrolment;
mod installation;
