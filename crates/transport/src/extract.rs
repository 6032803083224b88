//! Extractors that refuse with problem details, and bodies that may not dawdle (attack A16).

use crate::problem::{ApiError, chain};
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use chipbound_wire::{Code, Refusal};
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// A JSON body, in or out. `Content-Type` must be `application/json`; what does not parse is [`Code::Malformed`], named by
/// place and not by content, so that no password is repeated.
#[derive(Clone, Copy, Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if !kind.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case("application/json")) {
            return Err(ApiError(Refusal::new(Code::Malformed, "the body is not declared as application/json")));
        }
        let Octets(bytes) = Octets::from_request(request, state).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|e| ApiError(bad_json(&e)))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => ([(CONTENT_TYPE, "application/json")], body).into_response(),
            Err(e) => ApiError(Refusal::new(Code::Internal, "an answer cannot be written as JSON").because(e)).into_response(),
        }
    }
}

/// What is wrong with a JSON text, repeating nothing of it but the name of a field that is missing.
pub(crate) fn bad_json(error: &serde_json::Error) -> Refusal {
    let text = error.to_string();
    let missing = text.starts_with("missing field").then(|| text.split('`').nth(1)).flatten();
    let what = match missing {
        Some(field) => format!("the field {field} is missing"),
        None if error.is_data() => "it is not of the form that is wanted".to_owned(),
        None => "it is no JSON".to_owned(),
    };
    Refusal::new(Code::Malformed, format!("the body does not parse at line {} column {}: {what}", error.line(), error.column()))
}

/// A whole body as bytes, within the route's limit; [`Code::TooLarge`] beyond it.
#[derive(Clone, Debug)]
pub struct Octets(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Octets {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        Bytes::from_request(request, state).await.map(Self).map_err(|rejection| {
            let refusal = match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => Refusal::new(Code::TooLarge, "the body is longer than this route takes"),
                _ => body_refusal(&rejection),
            };
            ApiError(refusal)
        })
    }
}

/// A body of declared length that is read as it comes, in bounded memory; for uploads. It has no limit but its length: the
/// handler compares [`Upload::len`] with its own first. Without `Content-Length` it is refused with [`Code::Malformed`].
pub struct Upload {
    len: u64,
    body: Body,
}

impl Upload {
    /// Bytes of the body.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a length to compare with a limit, not a collection")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The bytes: exactly [`Upload::len`] of them, or an error that [`refusal_of`](crate::refusal_of) names. Reading the first
    /// sends `100 Continue` to a client that waits for it.
    pub fn into_reader(self) -> impl AsyncRead + Send + Unpin + 'static {
        BodyReader { body: self.body, chunk: Bytes::new() }
    }
}

impl<S: Send + Sync> FromRequest<S> for Upload {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let declared = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        let len = declared.ok_or_else(|| ApiError(Refusal::new(Code::Malformed, "an upload declares its Content-Length")))?;
        Ok(Self { len, body: request.into_body() })
    }
}

struct BodyReader {
    body: Body,
    chunk: Bytes,
}

impl AsyncRead for BodyReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.chunk.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(frame)) => self.chunk = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(body_refusal(&error)))),
            }
        }
        let n = self.chunk.len().min(buf.remaining());
        buf.put_slice(&self.chunk.split_to(n));
        Poll::Ready(Ok(()))
    }
}

/// What a body that could not be read to its end is called.
fn body_refusal(error: &(dyn Error + 'static)) -> Refusal {
    let late = chain(Some(error)).filter_map(|e| e.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::TimedOut);
    if late {
        Refusal::new(Code::TimedOut, "the body of the request stopped coming")
    } else {
        Refusal::new(Code::PathTruncated, "the body of the request ended before its declared length")
    }
}

/// The rest of the path, by the names in the route; a mismatch is [`Code::NotFound`].
#[derive(Clone, Copy, Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let taken = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        taken
            .map(|p| Self(p.0))
            .map_err(|e| ApiError(Refusal::new(Code::NotFound, "the address names nothing of the kind that is here").because(e)))
    }
}

/// The query of the address; a mismatch is [`Code::Malformed`].
#[derive(Clone, Copy, Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let taken = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        taken
            .map(|q| Self(q.0))
            .map_err(|e| ApiError(Refusal::new(Code::Malformed, "the query is not of the form that is wanted").because(e)))
    }
}

/// The bearer token (RFC 6750 §2.1) of the request; [`Code::Unauthenticated`] when there is none. It does not show in Debug.
pub struct Bearer(pub zeroize::Zeroizing<String>);

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bearer(…)")
    }
}

impl<S: Sync> FromRequestParts<S> for Bearer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let value = parts.headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let (scheme, token) = value.and_then(|v| v.split_once(' ')).unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
            return Err(ApiError(Refusal::new(Code::Unauthenticated, "the request carries no bearer token")));
        }
        Ok(Self(zeroize::Zeroizing::new(token.trim().to_owned())))
    }
}

/// A request's body that fails with [`io::ErrorKind::TimedOut`] when nothing of it comes for `limit` while it is waited for.
pub(crate) struct PacedBody<B> {
    body: B,
    limit: Duration,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<B> PacedBody<B> {
    pub(crate) fn new(body: B, limit: Duration) -> Self {
        Self { body, limit, alarm: None }
    }
}

impl<B> HttpBody for PacedBody<B>
where
    B: HttpBody + Unpin,
    B::Error: Into<axum::BoxError>,
{
    type Data = B::Data;
    type Error = axum::BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, axum::BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.alarm = None;
            return Poll::Ready(frame.map(|f| f.map_err(Into::into)));
        }
        let limit = self.limit;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        ready!(alarm.as_mut().poll(cx));
        Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Collects a client's answer within `max` bytes.
pub(crate) async fn collect(body: hyper::body::Incoming, max: usize) -> chipbound_wire::Result<Bytes> {
    match http_body_util::Limited::new(body, max).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Refusal::new(Code::TooLarge, format!("the server's answer is longer than {max} bytes")))
        }
        Err(error) => Err(Refusal::new(Code::PathTruncated, "the server's answer was cut").because(error)),
    }
}
