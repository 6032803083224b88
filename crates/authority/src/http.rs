//! The authority's HTTPS: the routes of `chipbound_wire::enrolment`, and running them.

use crate::authority::Authority;
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use chipbound_host::{FileKey, now};
use chipbound_transport::extract::Octets;
use chipbound_transport::tls::{ALPN_HTTP1, server_config};
use chipbound_transport::{ApiError, ServeLimits, serve};
use chipbound_wire::bounded::{decode, encode};
use chipbound_wire::enrolment::CONTENT_TYPE;
use chipbound_wire::signature::Sign;
use chipbound_wire::{Code, Refusal, Result, Time};
use http::HeaderMap;
use http::header;
use minicbor::{Decode, Encode};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::sync::Arc;
use tokio::net::TcpListener;

type Answer = std::result::Result<Response, ApiError>;

/// Media type of a revocation list (RFC 2585 §4.2).
const PKIX_CRL: &str = "application/pkix-crl";
/// Media type of a certificate (RFC 2585 §4.1).
const PKIX_CERT: &str = "application/pkix-cert";

/// The routes.
pub fn router(authority: Arc<Authority>) -> Router {
    Router::new()
        .route("/v1/enrolments", post(begin))
        .route("/v1/enrolments/finish", post(finish))
        .route("/v1/revocations", get(revocations))
        .route("/v1/root", get(root))
        .with_state(authority)
}

/// Serves the routes on `listener` until `shutdown` resolves. The TLS key is made here and never leaves this process; the
/// chain ends with the root, so that whoever holds only its digest can tell.
pub async fn run(authority: Arc<Authority>, listener: TcpListener, shutdown: impl Future<Output = ()>) -> Result<()> {
    let (key, pkcs8) = FileKey::generate()?;
    let chain = [authority.tls_leaf(key.spki(), now())?, authority.issuing().to_vec(), authority.root().to_vec()];
    let chain = chain.into_iter().map(CertificateDer::from).collect();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pkcs8.to_vec()));
    let tls = server_config(chain, key, &[ALPN_HTTP1])?;
    serve(listener, tls, router(authority), ServeLimits::default(), shutdown).await
}

async fn begin(State(authority): State<Arc<Authority>>, headers: HeaderMap, Octets(body): Octets) -> Answer {
    Ok(cbor(&authority.begin(&read(&headers, &body)?, now()).await?))
}

async fn finish(State(authority): State<Arc<Authority>>, headers: HeaderMap, Octets(body): Octets) -> Answer {
    Ok(cbor(&authority.finish(&read(&headers, &body)?, now()).await?))
}

async fn revocations(State(authority): State<Arc<Authority>>) -> Answer {
    let at: Time = now();
    Ok(([(header::CONTENT_TYPE, PKIX_CRL)], authority.revocations(at).await?).into_response())
}

async fn root(State(authority): State<Arc<Authority>>) -> Response {
    ([(header::CONTENT_TYPE, PKIX_CERT)], authority.root().to_vec()).into_response()
}

fn read<T: for<'b> Decode<'b, ()>>(headers: &HeaderMap, body: &[u8]) -> Result<T> {
    if headers.get(header::CONTENT_TYPE).is_none_or(|t| t != CONTENT_TYPE) {
        return Err(Refusal::new(Code::Malformed, format!("the body is not declared as {CONTENT_TYPE}")));
    }
    decode(body)
}

fn cbor<T: Encode<()>>(value: &T) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], encode(value)).into_response()
}
