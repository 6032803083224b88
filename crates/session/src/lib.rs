//! Both ends of the second path (steps 1003-1008): TLS, messages, and what each end may believe at each step.
//!
//! There is no socket and no clock here. [`path::Path`] drives TLS and messages over any [`std::io::Read`] and
//! [`std::io::Write`]; the states of [`processor`] and [`server`] take the bytes of one message and give the bytes of the
//! next. A state is consumed by its step, so no step can be left out or done twice, and whatever a later step uses was
//! verified by an earlier one. `now` and randomness are arguments.
//!
//! # Call order
//!
//! | step | processor | server |
//! |---|---|---|
//! | 1003 | [`Path::connect`](path::Path::connect) | [`Path::accept`](path::Path::accept) |
//! | 1004 | [`processor::begin`] gives `Hello` | [`server::begin`], then [`AwaitingHello::hello`](server::AwaitingHello::hello) takes it |
//! | 1005 | [`AwaitingServer::server_exchange`](processor::AwaitingServer::server_exchange) takes it | gives `ServerExchange` |
//! | 1006 | gives `ProcessorExchange` | [`AwaitingProcessor::processor_exchange`](server::AwaitingProcessor::processor_exchange) takes it |
//! | S22 | [`Authenticated::asked`](processor::Authenticated::asked) takes `AskCapabilities`, gives `Offer` | [`Authenticated::offer`](server::Authenticated::offer) takes it; [`Negotiating::choose`](server::Negotiating::choose) decides |
//! | 1007 | [`Offered::start`](processor::Offered::start) takes `Start` | [`Negotiating::start`](server::Negotiating::start) gives it |
//! | | chunks: the caller opens them by [`Receiving::delivery`](processor::Receiving::delivery) | chunks: the caller seals and sends them |
//! | | [`Receiving::seal`](processor::Receiving::seal) takes `Seal` and what the caller measured | [`Sending::seal`](server::Sending::seal) gives it |
//! | 1008 | the caller records the delivery durably, then [`Compared::acknowledge`](processor::Compared::acknowledge) | [`AwaitingAcknowledgement::acknowledgement`](server::AwaitingAcknowledgement::acknowledgement) |
//! | 1012 | [`Path::close`](path::Path::close) | [`Path::close`](path::Path::close) |
//!
//! Whoever gets a [`Refusal`](chipbound_wire::Refusal) from a state or from the path calls
//! [`Path::abort`](path::Path::abort) with it and drops both: so both ends report the same code.
//!
//! Opening and comparing the package is the caller's: this crate knows wraps as bytes, and measured digests as arguments.

mod exchange;
pub mod path;
pub mod processor;
pub mod server;
pub mod tls;

use chipbound_wire::certificate::{Certified, Trust};
use chipbound_wire::documents::{Manifest, Terms, Wrap};
use chipbound_wire::signed::{Signer, Verified};
use chipbound_wire::{Digest, Time};

/// What the TLS connection proved, the ground of the explicit exchange.
#[derive(Clone, Debug)]
pub struct Channel {
    /// The peer: its certificate was verified, and it holds the key.
    pub peer: Certified,
    /// The TLS exporter of the connection; a relay of two connections has two.
    pub exporter: Digest,
}

/// What every step needs of its surroundings.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Whom to trust.
    pub trust: &'a Trust,
    /// The time of this step.
    pub now: Time,
    /// This end's key and chain: the processor's identity, or the server's second-path key.
    pub signer: &'a Signer<'a>,
}

/// What the server sends before the first chunk. Terms and manifest are verified; the rest is an allegation until the seal
/// names it.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The terms.
    pub terms: Verified<Terms>,
    /// The vendor's manifest.
    pub manifest: Verified<Manifest>,
    /// The main wrap, for the certified sealing key and the release secret.
    pub wrap: Wrap,
    /// The wrap for the session's sealing key.
    pub session_wrap: Wrap,
    /// The layout of the package in CBOR, not parsed yet; the seal's table root will cover it.
    pub layout: Vec<u8>,
    /// The plain digest that the body must prove to have; the seal will name it.
    pub plain_digest: Digest,
}

/// Roots and sizes over what went over the path, as the seal names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Roots {
    /// BLAKE3 root over the whole body.
    pub body_root: Digest,
    /// Bytes of the body.
    pub body_size: u64,
    /// BLAKE3 root over the table: the layout and all tags.
    pub table_root: Digest,
    /// Bytes of the table.
    pub table_size: u64,
}
