//! `chipbound`: the client device (91 of the source), and the hand of vendor and operator.
//!
//! The client device relays what it cannot read ([`client`]); `run` becomes the program ([`mod@run`]). What it must not do: hold
//! a key that opens anything, or decide anything that server or processor must decide.

pub mod api;
pub mod bins;
pub mod cli;
pub mod client;
pub mod control;
pub mod demo;
pub mod home;
pub mod log;
pub mod log_audit;
pub mod output;
pub mod receipts;
pub mod run;
pub mod vendor;
pub mod verbs;
pub mod with;
