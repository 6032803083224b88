//! The first path's plumbing (design §2 step 1001): TLS 1.3 and HTTP/1.1, set up once for the authority, the server, the
//! command and the processor's renewal.
//!
//! - [`tls`]: which cryptography, which versions, and whom a client trusts ([`ServerTrust`]);
//! - [`serve`](mod@serve): an accept loop with caps, rates and time-outs (attack A16);
//! - [`upgrade`]: from a request to the raw TLS stream of a tunnel, and [`BlockingTls`] for a role that runs on a thread;
//! - [`client`]: requests that answer with a value or a [`Refusal`](chipbound_wire::Refusal);
//! - [`enrolment`]: the client's side of enrolment at an authority;
//! - [`problem`] and [`extract`]: refusals as RFC 9457 problem details, both ways.
//!
//! What it does not do: it knows no route, no document, no account and no clock of the protocol; it issues no certificate;
//! the second path's TLS is `chipbound-session`'s. Everything here speaks TLS 1.3 and verifies its peer; there is no other way.

mod admission;
pub mod blocking;
pub mod client;
mod client_body;
mod deadline;
pub mod enrolment;
pub mod extract;
mod origin;
pub mod problem;
pub mod serve;
pub mod tls;
mod trust;
pub mod tunnel;
pub mod upgrade;

pub use admission::network_of;
pub use blocking::{BlockingTls, Timeouts};
pub use client::Client;
pub use problem::{ApiError, Problem};
pub use serve::{ServeLimits, serve};
pub use tls::{ServerTrust, client_config, provider, server_config};
pub use tunnel::{ClientRaw, RawStream, refusal_of};
pub use upgrade::{PROTOCOL, Upgrade};
