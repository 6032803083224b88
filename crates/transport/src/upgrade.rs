//! From a request with `Upgrade: chipbound/1` to a raw stream (RFC 9110 §7.8; design §2 step 1003).

use crate::deadline::Watched;
use crate::problem::ApiError;
use crate::tunnel::{RawStream, ServerTls};
use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use chipbound_wire::{Code, Refusal, Result};
use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::future::Future;

/// The protocol that a tunnel speaks, as it is named in the `Upgrade` field.
pub const PROTOCOL: &str = "chipbound/1";

/// A request that asks for a tunnel, as an extractor; any other request is refused with [`Code::UnexpectedMessage`].
pub struct Upgrade(OnUpgrade);

impl Upgrade {
    /// The answer 101 that the handler must return, and the stream, which is there once the answer was sent. Await it in a
    /// task of its own; dropping it closes the connection.
    #[must_use = "the tunnel begins when the response is returned and the stream is awaited"]
    pub fn accept(self) -> (Response, impl Future<Output = Result<RawStream>> + Send + 'static) {
        let response = (StatusCode::SWITCHING_PROTOCOLS, [(CONNECTION, "upgrade"), (UPGRADE, PROTOCOL)]).into_response();
        (response, raw_stream(self.0))
    }
}

async fn raw_stream(pending: OnUpgrade) -> Result<RawStream> {
    let upgraded =
        pending.await.map_err(|e| Refusal::new(Code::PathTruncated, "the connection ended before the tunnel began").because(e))?;
    let parts = upgraded
        .downcast::<TokioIo<Watched<ServerTls>>>()
        .map_err(|_| Refusal::new(Code::Internal, "a tunnel was asked of a connection that serve() did not accept"))?;
    let (tls, place) = parts.io.into_inner().into_parts();
    Ok(RawStream::new(parts.read_buf, tls, place))
}

impl<S: Sync> FromRequestParts<S> for Upgrade {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> std::result::Result<Self, ApiError> {
        let refused = || ApiError(Refusal::new(Code::UnexpectedMessage, format!("this route wants Upgrade: {PROTOCOL}")));
        if !asks_for_tunnel(&parts.headers) {
            return Err(refused());
        }
        parts.extensions.remove::<OnUpgrade>().map(Self).ok_or_else(refused)
    }
}

/// Whether the header fields switch to [`PROTOCOL`]; both a request's and a 101's look like this.
pub(crate) fn asks_for_tunnel(headers: &HeaderMap) -> bool {
    let names = |field, name: &str| {
        headers
            .get_all(field)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .any(|v| v.trim().eq_ignore_ascii_case(name))
    };
    names(CONNECTION, "upgrade") && names(UPGRADE, PROTOCOL)
}
