//! chipbound-server, the program distribution device (source \[29\], 93): accounts and money, releases, orders, the server's end
//! of the second path, receipts.
//!
//! - [`storage`]: what is kept, one repository of whole transactions;
//! - [`blobs`]: plaintext programs and common ciphertext;
//! - [`api`]: the routes of the first path, each a few lines over [`Server`];
//! - [`accounts`], [`publishing`], [`ordering`], [`paying`], [`settling`]: what the routes do;
//! - [`payment`]: who holds and takes a customer's money;
//! - [`sequencer`]: orders are settled in batches;
//! - [`deliver`]: the server's role in Fig. 4, one function from the ticket to the farewell (`packing` seals for it);
//! - [`line`](mod@line): the second path on a line of its own;
//! - [`keys`], [`log_key`], [`standing`], [`rotation`]: the server's keys, their renewal and replacement, and the revocation list;
//! - [`config`], [`init`], [`run`], [`command`]: the daemon; [`reconcile`](mod@reconcile): its books beside the card provider's;
//!   `backup`: everything that it keeps as one file, and back.
//!
//! What it does not do: it issues no certificate, trusts no name, and opens no package. A plaintext program leaves it only sealed to a
//! certified processor, and a release token only with the capture of the price.

pub mod accounts;
mod ahead;
pub mod api;
mod auditing;
mod backup;
pub mod blobs;
pub mod command;
pub mod config;
pub mod deliver;
pub mod init;
pub mod keys;
pub mod line;
pub mod log_key;
pub mod openapi;
pub mod operating;
pub mod ordering;
mod packing;
pub mod pages;
mod parcel;
pub mod paying;
pub mod payment;
mod places;
pub mod publishing;
pub mod reconcile;
pub mod rotation;
mod routes;
pub mod run;
pub mod sequencer;
mod server;
pub mod settling;
pub mod standing;
mod statement;
pub mod storage;
mod strangers;
mod threads;
pub mod tokens;
pub mod transferring;

pub use server::{Clock, Parts, Server};
