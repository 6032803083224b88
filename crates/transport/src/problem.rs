//! Refusals as problem details (RFC 9457), both ways.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use chipbound_wire::{Code, Refusal, limits};
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Method, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use std::error::Error;

/// The media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// Seconds that a client is told to wait, where the refusal says none, when there were too many requests and when all places are taken.
const RETRY_RATE_LIMITED: u64 = 5;
const RETRY_BUSY: u64 = 1;

/// A refusal as it travels on the first path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:chipbound:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What exactly, for people; no secrets.
    #[serde(default)]
    pub detail: String,
    /// The stable code, see [`Code`].
    pub code: String,
    /// What to do next, for people.
    #[serde(default)]
    pub advice: String,
}

impl Problem {
    /// The problem that tells a peer of `refusal`: what went wrong inside this machine is named only in its own log.
    #[must_use]
    pub fn of(refusal: &Refusal) -> Self {
        let code = refusal.code;
        let detail = if is_internal(code) { "the server could not do this; its log says why".to_owned() } else { refusal.detail.clone() };
        Self {
            kind: format!("urn:chipbound:problem:{code}"),
            title: code.as_str().replace('_', " "),
            status: code.status(),
            detail,
            code: code.as_str().to_owned(),
            advice: code.advice().to_owned(),
        }
    }

    /// The refusal that a peer's problem means; a code that this version does not know becomes [`Code::PeerRefused`]. Texts
    /// are cut to [`limits::MAX_TEXT`] bytes and freed of control characters, since they end on somebody's terminal.
    #[must_use]
    pub fn into_refusal(self) -> Refusal {
        match Code::parse(&self.code) {
            Some(code) => Refusal::new(code, printable(&self.detail)),
            None => Refusal::new(Code::PeerRefused, printable(&format!("{}: {} {}", self.code, self.detail, self.advice))),
        }
    }

    /// The refusal in the body of an answer with an error's status, also when the body is no problem at all.
    #[must_use]
    pub(crate) fn refusal_in(status: StatusCode, body: &[u8]) -> Refusal {
        match serde_json::from_slice::<Self>(body) {
            Ok(problem) => problem.into_refusal(),
            Err(error) => Refusal::new(code_of(status), format!("the server answered {status} without saying why")).because(error),
        }
    }
}

/// Faults of this machine, of which a peer learns no more than that there is one.
fn is_internal(code: Code) -> bool {
    use Code as C;
    matches!(
        code,
        C::Internal
            | C::Io
            | C::Database
            | C::DatabaseUnavailable
            | C::DiskFull
            | C::Unsealable
            | C::InsecurePermissions
            | C::ConfigInvalid
            | C::StartFailed
    )
}

fn printable(text: &str) -> String {
    let mut out: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    out.truncate(out.floor_char_boundary(limits::MAX_TEXT));
    out
}

/// A refusal as the answer of a handler: `async fn handler(…) -> Result<Json<T>, ApiError>`.
///
/// `rate_limited`, `busy` and `database_unavailable` carry `Retry-After`: the refusal's own, where it has one.
#[derive(Debug)]
pub struct ApiError(pub Refusal);

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let refusal = self.0;
        if is_internal(refusal.code) {
            tracing::error!(code = %refusal.code, detail = refusal.detail, cause = causes(&refusal), "a request failed");
        } else {
            tracing::info!(code = %refusal.code, detail = refusal.detail, cause = causes(&refusal), "a request was refused");
        }
        let status = StatusCode::from_u16(refusal.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&Problem::of(&refusal)).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        let retry_after = |usual: u64| HeaderValue::from(refusal.retry_after.unwrap_or(usual));
        match refusal.code {
            Code::RateLimited => drop(headers.insert(RETRY_AFTER, retry_after(RETRY_RATE_LIMITED))),
            Code::Busy | Code::DatabaseUnavailable => drop(headers.insert(RETRY_AFTER, retry_after(RETRY_BUSY))),
            _ if status == StatusCode::UNAUTHORIZED => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            _ => {}
        }
        response
    }
}

fn causes(refusal: &Refusal) -> String {
    chain(refusal.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// An error and those underneath it.
pub(crate) fn chain<'e>(error: Option<&'e (dyn Error + 'static)>) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(error, |&e| e.source())
}

/// `app` with the answers that every listener of ours gives: bodies limited, unknown routes and methods and every rejection
/// as problem details. [`serve`](crate::serve()) does this itself; a test without sockets calls it.
pub fn complete(app: Router) -> Router {
    app.fallback(async |uri: Uri| ApiError(Refusal::new(Code::NotFound, format!("nothing is at {}", printable(uri.path())))))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            ApiError(Refusal::new(Code::MethodNotAllowed, format!("{} cannot be had with {method}", printable(uri.path()))))
        })
        .layer(DefaultBodyLimit::max(limits::MAX_JSON))
        .layer(map_response(as_problem))
}

/// Gives an error that came without a problem (an extractor of axum's own) the form of one.
async fn as_problem(response: Response) -> Response {
    let status = response.status();
    let is_problem = response.headers().get(CONTENT_TYPE).is_some_and(|t| t == PROBLEM_JSON);
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    ApiError(Refusal::new(code_of(status), format!("the request cannot be taken as it is: {status}"))).into_response()
}

/// The code for a status that came without one.
fn code_of(status: StatusCode) -> Code {
    match status {
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::Forbidden,
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE | StatusCode::URI_TOO_LONG => Code::TooLarge,
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => Code::TimedOut,
        StatusCode::TOO_MANY_REQUESTS => Code::RateLimited,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY => Code::Busy,
        other if other.is_server_error() => Code::Internal,
        _ => Code::Malformed,
    }
}
