//! A client of the first path: one HTTPS origin, one connection that is kept for the next request.

use crate::client_body::{Outgoing, Progress, Streamed};
use crate::deadline::Watched;
use crate::extract::collect;
use crate::origin::Origin;
use crate::problem::{Problem, chain};
use crate::tls::{ServerTrust, client_config};
use crate::trust::{handshake_refusal, pinned_in};
use crate::tunnel::{ClientRaw, ClientTls};
use crate::upgrade::{PROTOCOL, asks_for_tunnel};
use bytes::Bytes;
use chipbound_wire::{Code, Refusal, Result, limits};
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderName, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, BufReader};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;

/// Bytes of an answer that is not a document of known size.
pub const MAX_ANSWER: usize = 1024 * 1024;
/// Bytes that one read of the socket may bring: a tunnel carries bulk.
const READ_AHEAD: usize = 128 * 1024;

/// How long a connection may rest and still be used again: well below a server's own limit, which would cut a request.
const MAX_REST: Duration = Duration::from_secs(10);

/// How long a client waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientTimeouts {
    /// For TCP and TLS to be up.
    pub connect: Duration,
    /// For the answer, counted from the last byte of the request that went out; and for the answer's body.
    pub answer: Duration,
}

impl Default for ClientTimeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), answer: Duration::from_secs(60) }
    }
}

/// A client of one HTTPS server. Requests one after another use one connection; requests at once use one each.
///
/// # Errors of every request
/// A problem that the server answers becomes the refusal with its code. Besides: [`Code::ServerUnreachable`] with the
/// address, [`Code::ServerUntrusted`] or a certificate code, [`Code::Busy`] when the server takes no more connections,
/// [`Code::TimedOut`], [`Code::PathTruncated`] when the connection was cut: whether the server acted on the request is then
/// not known, and only a request that bears repeating should be repeated.
pub struct Client {
    origin: Origin,
    trust: ServerTrust,
    tls: Arc<ClientConfig>,
    timeouts: ClientTimeouts,
    idle: Mutex<Option<Link>>,
    pinned: OnceLock<CertificateDer<'static>>,
}

/// A connection and the task that drives it. Dropped in the middle of a request, the connection is cut, so that nothing of
/// an abandoned body goes on being sent; dropped at rest, it says close_notify.
struct Link {
    sender: SendRequest<Outgoing>,
    task: Option<JoinHandle<()>>,
    /// Since when it rests; none in the middle of a request.
    rests: Option<Instant>,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(task) = self.task.take()
            && self.rests.is_none()
        {
            task.abort();
        }
    }
}

/// The parts of a request that differ.
struct Ask<'a> {
    method: Method,
    path: &'a str,
    bearer: Option<&'a str>,
    headers: &'a [(&'a str, &'a str)],
}

impl Client {
    /// A client of the server at `base_url`, `https://host` or `https://host:port`. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] when the address is not of this form or the trusted root is no certificate.
    pub fn new(base_url: &str, trust: ServerTrust) -> Result<Self> {
        let origin = Origin::parse(base_url)?;
        let tls = client_config(&trust)?;
        Ok(Self { origin, trust, tls, timeouts: ClientTimeouts::default(), idle: Mutex::new(None), pinned: OnceLock::new() })
    }

    /// The same with other patience.
    #[must_use]
    pub fn with_timeouts(mut self, timeouts: ClientTimeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// `host:port` of the server.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.origin.address
    }

    /// The certificate that [`ServerTrust::Pinned`] named, once a request reached the server: verified as the anchor of its
    /// chain in a finished handshake. None for any other trust.
    #[must_use]
    pub fn pinned_root(&self) -> Option<CertificateDer<'static>> {
        self.pinned.get().cloned()
    }

    /// Closes the connection that is kept and waits until close_notify was sent; without it a runtime that ends at once may
    /// cut the connection instead.
    pub async fn close(self) {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let task = kept.and_then(|mut link| link.task.take()); // The sender ends here, and with it the conversation.
        if let Some(task) = task {
            let _ = timeout(self.timeouts.connect, task).await;
        }
    }

    /// GET a JSON value of at most [`MAX_ANSWER`] bytes.
    pub async fn get_json<Res: DeserializeOwned>(&self, path: &str, bearer: Option<&str>) -> Result<Res> {
        json(&self.get_bytes(path, bearer, MAX_ANSWER).await?)
    }

    /// GET an answer of at most `max` bytes.
    pub async fn get_bytes(&self, path: &str, bearer: Option<&str>, max: usize) -> Result<Bytes> {
        self.exchange(Ask { method: Method::GET, path, bearer, headers: &[] }, Bytes::new(), max).await
    }

    /// POST a JSON value, get one of at most [`MAX_ANSWER`] bytes. A `Res` of `()` takes an empty answer only as JSON `null`;
    /// routes that answer nothing are for [`Client::request`].
    pub async fn post_json<Req: Serialize + ?Sized, Res: DeserializeOwned>(
        &self,
        path: &str,
        bearer: Option<&str>,
        headers: &[(&str, &str)],
        body: &Req,
    ) -> Result<Res> {
        let body = serde_json::to_vec(body).map_err(|e| Refusal::new(Code::Internal, "a request cannot be written as JSON").because(e))?;
        json(&self.request(Method::POST, path, bearer, headers, "application/json", body, MAX_ANSWER).await?)
    }

    /// POST a CBOR document, get one of at most [`MAX_ANSWER`] bytes.
    pub async fn post_cbor(&self, path: &str, body: Vec<u8>) -> Result<Vec<u8>> {
        Ok(self.request(Method::POST, path, None, &[], "application/cbor", body, MAX_ANSWER).await?.into())
    }

    /// Any request with a whole body and an answer of at most `max` bytes.
    #[expect(clippy::too_many_arguments, reason = "each is a part of an HTTP request")]
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        bearer: Option<&str>,
        headers: &[(&str, &str)],
        content_type: &str,
        body: Vec<u8>,
        max: usize,
    ) -> Result<Bytes> {
        let mut all = vec![(CONTENT_TYPE.as_str(), content_type)];
        all.extend_from_slice(headers);
        self.exchange(Ask { method, path, bearer, headers: &all }, body.into(), max).await
    }

    /// The same to a server that is not one of ours: whatever it answers, errors included, is returned as it came, with at most `max`
    /// bytes of body. `bearer` and the fields go on the wire, `content_type` names the body.
    #[expect(clippy::too_many_arguments, reason = "each is a part of an HTTP request")]
    pub async fn request_foreign(
        &self,
        method: Method,
        path: &str,
        bearer: Option<&str>,
        headers: &[(&str, &str)],
        content_type: &str,
        body: Vec<u8>,
        max: usize,
    ) -> Result<Response<Bytes>> {
        let mut all = vec![(CONTENT_TYPE.as_str(), content_type)];
        all.extend_from_slice(headers);
        let request = self.build(&Ask { method, path, bearer, headers: &all }, Outgoing::Whole(Some(body.into())))?;
        let (link, response) = self.send(request, &Progress::begin()).await?;
        let (head, body) = response.into_parts();
        let bytes = self.body(body, max).await?;
        self.keep(link);
        Ok(Response::from_parts(head, bytes))
    }

    /// PUT exactly `len` bytes of `source`, 64 KiB in memory at a time, and get a JSON value. Nothing is sent before the
    /// server wants it (`Expect: 100-continue`), so that a refusal costs no upload. [`Code::Io`] when the source is shorter.
    pub async fn put_stream<Res: DeserializeOwned>(
        &self,
        path: &str,
        bearer: Option<&str>,
        headers: &[(&str, &str)],
        len: u64,
        source: impl AsyncRead + Send + 'static,
    ) -> Result<Res> {
        let (want, wanted) = oneshot::channel();
        let want = Mutex::new(Some(want));
        let progress = Progress::begin();
        let length = len.to_string();
        let mut all = vec![(CONTENT_TYPE.as_str(), "application/octet-stream"), (CONTENT_LENGTH.as_str(), &length)];
        if len > 0 {
            all.push((EXPECT.as_str(), "100-continue"));
        }
        all.extend_from_slice(headers);
        let body = Outgoing::Stream(Streamed::new(source, len, wanted, progress.clone()));
        let mut request = self.build(&Ask { method: Method::PUT, path, bearer, headers: &all }, body)?;
        hyper::ext::on_informational(&mut request, move |informational| {
            if informational.status() == StatusCode::CONTINUE
                && let Some(want) = want.lock().unwrap_or_else(PoisonError::into_inner).take()
            {
                let _ = want.send(());
            }
        });
        let (link, response) = self.send(request, &progress).await?;
        let bytes = self.answer(response, MAX_ANSWER).await?;
        self.keep(link); // Not after a refusal: the rest of the source would have to be sent first.
        json(&bytes)
    }

    /// Turns a connection of its own into a tunnel (`GET` with `Upgrade: chipbound/1`).
    pub async fn upgrade(&self, path: &str, bearer: Option<&str>, headers: &[(&str, &str)]) -> Result<ClientRaw> {
        let mut all = vec![(CONNECTION.as_str(), "upgrade"), (UPGRADE.as_str(), PROTOCOL)];
        all.extend_from_slice(headers);
        let request = self.build(&Ask { method: Method::GET, path, bearer, headers: &all }, Outgoing::Whole(None))?;
        let (_link, response) = self.send(request, &Progress::begin()).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS || !asks_for_tunnel(response.headers()) {
            self.answer(response, MAX_ANSWER).await?;
            return Err(Refusal::new(Code::UnexpectedMessage, format!("{} opens no tunnel at {path}", self.address())));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|e| self.cut(e))?;
        let parts = upgraded
            .downcast::<TokioIo<Watched<ClientTls>>>()
            .map_err(|_| Refusal::new(Code::Internal, "the upgraded connection is not the one that was opened"))?;
        let (tls, place) = parts.io.into_inner().into_parts();
        Ok(ClientRaw::new(parts.read_buf, tls, place))
    }

    async fn exchange(&self, ask: Ask<'_>, body: Bytes, max: usize) -> Result<Bytes> {
        let request = self.build(&ask, Outgoing::Whole(Some(body)))?;
        let (link, response) = self.send(request, &Progress::begin()).await?;
        let bytes = self.answer(response, max).await;
        if !bytes.as_ref().is_err_and(|refusal| matches!(refusal.code, Code::TooLarge | Code::TimedOut | Code::PathTruncated)) {
            self.keep(link); // Also after a refusal: its answer was read to the end.
        }
        bytes
    }

    fn build(&self, ask: &Ask<'_>, body: Outgoing) -> Result<Request<Outgoing>> {
        let wrong = |what: &str, e: http::Error| Refusal::new(Code::Malformed, format!("{what} cannot stand in a request")).because(e);
        let mut request = Request::builder().method(ask.method.clone()).uri(ask.path).header(HOST, self.origin.host.clone());
        if let Some(token) = ask.bearer {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|e| wrong("the bearer token", e.into()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        for (name, value) in ask.headers {
            let name = HeaderName::try_from(*name).map_err(|e| wrong("a header field's name", e.into()))?;
            request = request.header(name, *value);
        }
        request.body(body).map_err(|e| wrong("the address or a header field", e))
    }

    /// Sends on the kept connection, or on a new one when there is none, when it ended before it took the request, or when it
    /// ended without an answer to a GET, which bears repeating (RFC 9110 §9.2.2).
    async fn send(&self, mut request: Request<Outgoing>, progress: &Progress) -> Result<(Link, Response<Incoming>)> {
        if let Some(mut kept) = self.take_kept()
            && self.in_time(progress, kept.sender.ready()).await?.is_ok()
        {
            kept.rests = None;
            let again = repeatable(&request);
            match self.in_time(progress, kept.sender.try_send_request(request)).await? {
                Ok(response) => return Ok((kept, response)),
                Err(mut failed) => match failed.take_message().or(again) {
                    Some(unanswered) => request = unanswered,
                    None => return Err(self.cut(failed.into_error())),
                },
            }
        }
        let mut fresh = self.connect().await?;
        match self.in_time(progress, fresh.sender.send_request(request)).await? {
            Ok(response) => Ok((fresh, response)),
            Err(error) => Err(self.cut(error)),
        }
    }

    async fn in_time<T>(&self, progress: &Progress, answer: impl Future<Output = T>) -> Result<T> {
        let mut answer = std::pin::pin!(answer);
        loop {
            let last = progress.last();
            tokio::select! {
                answer = &mut answer => return Ok(answer),
                () = sleep_until(last + self.timeouts.answer) => {
                    if progress.last() == last {
                        return Err(Refusal::new(Code::TimedOut, format!("{} does not answer", self.address())));
                    }
                }
            }
        }
    }

    /// The body of a good answer, or the refusal in a bad one.
    async fn answer(&self, response: Response<Incoming>, max: usize) -> Result<Bytes> {
        let status = response.status();
        let max = if status.is_success() { max } else { limits::MAX_JSON };
        let bytes = self.body(response.into_body(), max).await?;
        if status.is_success() { Ok(bytes) } else { Err(Problem::refusal_in(status, &bytes)) }
    }

    async fn body(&self, body: Incoming, max: usize) -> Result<Bytes> {
        let late = |_| Refusal::new(Code::TimedOut, format!("the answer of {} stopped coming", self.address()));
        timeout(self.timeouts.answer, collect(body, max)).await.map_err(late)?
    }

    fn take_kept(&self) -> Option<Link> {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        kept.filter(|kept| !kept.sender.is_closed() && kept.rests.is_some_and(|since| since.elapsed() < MAX_REST))
    }

    fn keep(&self, mut link: Link) {
        link.rests = Some(Instant::now());
        if !link.sender.is_closed() {
            *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(link);
        }
    }

    async fn connect(&self) -> Result<Link> {
        let tls = timeout(self.timeouts.connect, self.handshake())
            .await
            .map_err(|e| Refusal::new(Code::ServerUnreachable, format!("{} does not answer", self.address())).because(e))??;
        let io = TokioIo::new(Watched::new(tls, self.timeouts.answer, None));
        let (sender, connection) = http1::handshake(io).await.map_err(|e| self.cut(e))?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection ended early");
            }
        });
        Ok(Link { sender, task: Some(task), rests: None })
    }

    async fn handshake(&self) -> Result<ClientTls> {
        let unreachable = |e: std::io::Error| Refusal::new(Code::ServerUnreachable, format!("{}: {e}", self.address())).because(e);
        let tcp = TcpStream::connect(&self.origin.address).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let line = BufReader::with_capacity(READ_AHEAD, tcp);
        let tls = TlsConnector::from(self.tls.clone())
            .connect(self.origin.name.clone(), line)
            .await
            .map_err(|e| handshake_refusal(self.address(), e))?;
        if let ServerTrust::Pinned(pin) = &self.trust {
            let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
            if let Some(root) = pinned_in(pin, chain) {
                let _ = self.pinned.set(root.clone().into_owned());
            }
        }
        Ok(tls)
    }

    fn cut(&self, error: hyper::Error) -> Refusal {
        let (code, what) = match error {
            ref e if e.is_timeout() => (Code::TimedOut, "takes nothing any more"),
            ref e if e.is_parse() => (Code::Malformed, "does not answer in HTTP/1.1"),
            _ => (Code::PathTruncated, "cut the connection before it answered"),
        };
        inner_refusal(&error).unwrap_or_else(|| Refusal::new(code, format!("{} {what}", self.address()))).because(error)
    }
}

/// A copy of a request that changes nothing at the server; a tunnel's uses up a ticket.
fn repeatable(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    let harmless = request.method() == Method::GET && !request.headers().contains_key(UPGRADE);
    let Outgoing::Whole(body) = request.body() else { return None };
    harmless.then(|| {
        let mut again = Request::new(Outgoing::Whole(body.clone()));
        *again.uri_mut() = request.uri().clone();
        *again.headers_mut() = request.headers().clone();
        again
    })
}

/// The refusal of our own body inside an HTTP error.
fn inner_refusal(error: &hyper::Error) -> Option<Refusal> {
    let io = chain(Some(error)).filter_map(|e| e.downcast_ref::<std::io::Error>());
    let refusal = io.filter_map(|e| e.get_ref()?.downcast_ref::<Refusal>()).next()?;
    Some(Refusal::new(refusal.code, refusal.detail.clone()))
}

fn json<Res: DeserializeOwned>(bytes: &[u8]) -> Result<Res> {
    serde_json::from_slice(bytes).map_err(|e| {
        let place = format!("the server's answer is not what this version expects (line {} column {})", e.line(), e.column());
        Refusal::new(Code::Malformed, place).because(e)
    })
}
