//! The tamper-resistant processor and its downloading program (source \[32\], 901), as a daemon: the shell around `trusted-core`,
//! `session` and `loader`.
//!
//! It serves one unix socket ([`daemon`], [`conversation`]). [`receive`](mod@receive) tells one delivery, Fig. 5 of the source,
//! from top to bottom; [`run`] makes a client the program of a package; `library` opens a shared library in a program that [`started`] knows;
//! [`open`] opens data, [`data`] gives it to programs. What it keeps is in [`vault`]. It
//! decides nothing that `trusted-core` decides, and gives no key and no plaintext to anybody but the process or file that a
//! package allows.

pub mod admission;
mod ahead;
pub mod cache;
pub mod command;
pub mod config;
pub mod confine;
pub mod connection;
pub mod conversation;
pub mod daemon;
pub mod data;
pub mod enrolling;
mod filters;
pub mod intake;
pub mod interpreter;
mod libraries;
mod library;
pub mod line;
pub mod open;
pub mod processor;
pub mod readers;
pub mod receive;
pub mod retiring;
pub mod room;
pub mod run;
pub mod spool;
pub mod started;
mod sys;
pub mod vault;
pub mod ways;
