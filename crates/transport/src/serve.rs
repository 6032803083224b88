//! The accept loop: TLS, then HTTP/1.1 with upgrades, within limits (attack A16; design §8 law 4).
//!
//! It is our own and not `axum::serve` because the tunnel of the second path needs the type of the TLS stream, and because
//! strangers must be turned away before a handshake is spent on them.

use crate::admission::{Admission, Admitted};
use crate::deadline::Watched;
use crate::extract::PacedBody;
use crate::problem;
use crate::tunnel::{Line, ServerTls};
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use chipbound_wire::{Code, Refusal, Result};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tracing::{Instrument, info_span};

/// Bytes that one read of the socket may bring: two TLS records.
const READ_AHEAD: usize = 32 * 1024;
/// Bytes of plaintext that HTTP buffers for a connection.
const HTTP_BUFFER: usize = 64 * 1024;
/// Header fields of one request.
const MAX_HEADERS: usize = 64;
/// How long the loop rests when the system has no file descriptor for it.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// How long close_notify may take on a connection that is given up.
const FAREWELL: Duration = Duration::from_secs(1);

/// The limits of one listener. A peer is an IPv4 address or an IPv6 /64.
#[derive(Clone, Debug)]
pub struct ServeLimits {
    /// Connections at once, tunnels included.
    pub connections: usize,
    /// Connections of one peer at once.
    pub connections_per_peer: usize,
    /// New connections a second that get a handshake, in the long run.
    pub handshakes_per_second: u32,
    /// New connections that may come at once.
    pub handshake_burst: u32,
    /// The same for one peer, in the long run.
    pub peer_handshakes_per_second: u32,
    /// The same for one peer, at once.
    pub peer_handshake_burst: u32,
    /// Bytes of a request's head, at least 8 KiB.
    pub max_header: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long a request's head may take, and how long a connection may rest between requests.
    pub header_timeout: Duration,
    /// How long a request's body may bring nothing.
    pub body_timeout: Duration,
    /// How long a peer may take nothing of what is written.
    pub write_timeout: Duration,
    /// How long requests and tunnels in flight may go on after the shutdown began.
    pub grace: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_peer: 128,
            handshakes_per_second: 500,
            handshake_burst: 1000,
            peer_handshakes_per_second: 100,
            peer_handshake_burst: 300,
            max_header: 16 * 1024,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(10),
        }
    }
}

impl ServeLimits {
    fn check(&self) -> Result<()> {
        let counts = [self.handshakes_per_second, self.handshake_burst, self.peer_handshakes_per_second, self.peer_handshake_burst];
        if self.connections == 0 || self.connections_per_peer == 0 || counts.contains(&0) || self.max_header < 8 * 1024 {
            return Err(Refusal::new(Code::ConfigInvalid, "a limit of the listener is zero, or max_header is below 8192 bytes"));
        }
        Ok(())
    }
}

/// Serves `app` on `listener` until `shutdown` resolves, then lets what is in flight finish for the time of grace.
///
/// Handlers find the peer's address as `axum::extract::ConnectInfo<SocketAddr>` and the way to a tunnel as
/// [`Upgrade`](crate::Upgrade). Bodies are limited to [`limits::MAX_JSON`](chipbound_wire::limits::MAX_JSON) for every
/// extractor of [`extract`](crate::extract) unless the route lifts it with `axum::extract::DefaultBodyLimit`. Unknown
/// routes and methods, and rejections of any extractor, are answered as problem details.
///
/// # Errors
/// [`Code::ConfigInvalid`] when a limit makes no sense; nothing else ends the loop.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    app: Router,
    limits: ServeLimits,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    limits.check()?;
    let door = Admission::new(&limits, Instant::now());
    let (stop, stopped) = watch::channel(false);
    let shared = Arc::new(Shared { tls: TlsAcceptor::from(tls), app: problem::complete(app), limits });
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => note_panic(ended),
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => match door.admit(peer.ip(), Instant::now()) {
                    Some(place) => drop(connections.spawn(connection(shared.clone(), tcp, peer, place, stopped.clone()))),
                    None => tracing::debug!(%peer, "turned away at the limit of connections or handshakes"),
                },
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    sleep(ACCEPT_REST).await;
                }
            },
        }
    }
    drop(listener);
    stop.send_replace(true);
    if timeout(shared.limits.grace, door.empty()).await.is_err() {
        tracing::warn!(open = door.open(), "connections were still open when the time of grace ended");
    }
    connections.shutdown().await;
    Ok(())
}

struct Shared {
    tls: TlsAcceptor,
    app: Router,
    limits: ServeLimits,
}

fn note_panic(ended: std::result::Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a handler panicked; its connection was closed");
    }
}

async fn connection(shared: Arc<Shared>, tcp: TcpStream, peer: SocketAddr, place: Admitted, stopped: watch::Receiver<bool>) {
    match handshake(&shared, tcp).await {
        Ok(tls) => speak_http(&shared, tls, peer, place, stopped).await,
        Err(error) => tracing::debug!(%peer, %error, "no TLS connection came about"),
    }
}

async fn handshake(shared: &Shared, tcp: TcpStream) -> std::io::Result<ServerTls> {
    tcp.set_nodelay(true)?;
    let line: Line = BufReader::with_capacity(READ_AHEAD, tcp);
    timeout(shared.limits.handshake_timeout, shared.tls.accept(line)).await.unwrap_or_else(|late| Err(late.into()))
}

async fn speak_http(shared: &Shared, tls: ServerTls, peer: SocketAddr, place: Admitted, mut stopped: watch::Receiver<bool>) {
    let limits = &shared.limits;
    let service = service_fn(|request: http::Request<Incoming>| {
        let mut request = request.map(|body| Body::new(PacedBody::new(body, limits.body_timeout)));
        request.extensions_mut().insert(ConnectInfo(peer));
        shared.app.clone().oneshot(request).instrument(info_span!("request", %peer))
    });
    let io = TokioIo::new(Watched::new(tls, limits.write_timeout, Some(place)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size(limits.max_header)
        .max_buf_size(HTTP_BUFFER.max(limits.max_header))
        .max_headers(MAX_HEADERS);
    let mut conversation = http.serve_connection(io, service).with_upgrades();
    let outcome = tokio::select! {
        outcome = &mut conversation => outcome,
        () = async { drop(stopped.wait_for(|stop| *stop).await) } => {
            std::pin::Pin::new(&mut conversation).graceful_shutdown();
            (&mut conversation).await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%peer, %error, "an HTTP connection ended early");
        if let Some(parts) = conversation.into_parts() {
            // hyper only drops what it gives up, a connection that rested too long for one; TLS ends with close_notify.
            let _ = timeout(FAREWELL, parts.io.into_inner().shutdown()).await;
        }
    }
}
