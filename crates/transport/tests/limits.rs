//! What a stranger can cost a listener (attack A16), and how it stops.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use axum::Router;
use axum::body::Body;
use axum::routing::{get, post, put};
use chipbound_transport::extract::{Octets, Upload};
use chipbound_transport::{ApiError, Client, ServeLimits, Upgrade, client_config, refusal_of};
use chipbound_wire::{Code, Refusal, Result};
use common::{Running, Site};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// A handler that says when it was entered and goes on when it may.
struct Gate {
    entered: Semaphore,
    open: Semaphore,
}

fn gate() -> Arc<Gate> {
    Arc::new(Gate { entered: Semaphore::new(0), open: Semaphore::new(0) })
}

fn app(gate: Arc<Gate>) -> Router {
    let tunnel = async |upgrade: Upgrade| {
        let (response, stream) = upgrade.accept();
        tokio::spawn(async move { stream.await.unwrap().read_to_end(&mut Vec::new()).await });
        response
    };
    let gated = move || async move {
        gate.entered.add_permits(1);
        drop(gate.open.acquire().await.unwrap());
    };
    Router::new()
        .route("/", get(async || "here"))
        .route("/gated", get(gated))
        .route("/tunnel", get(tunnel))
        .route("/octets", post(async |Octets(bytes): Octets| bytes))
        .route("/much", get(async || Body::from(vec![0; 64 << 20])))
        .route("/some", put(some))
}

/// Reads the first MiB and refuses.
async fn some(upload: Upload) -> std::result::Result<(), ApiError> {
    let mut first = vec![0; 1 << 20];
    upload.into_reader().read_exact(&mut first).await.map_err(|e| refusal_of("the upload", e))?;
    Err(ApiError(Refusal::new(Code::ManifestMismatch, "the first MiB is wrong already")))
}

async fn start(limits: ServeLimits) -> Running {
    Site::new().start(app(gate()), limits).await
}

async fn tls(running: &Running) -> tokio_rustls::client::TlsStream<TcpStream> {
    let tcp = TcpStream::connect(running.addr).await.unwrap();
    let config = client_config(&running.trust).unwrap();
    tokio_rustls::TlsConnector::from(config).connect(running.addr.ip().into(), tcp).await.unwrap()
}

async fn here(client: &Client) -> Result<bytes::Bytes> {
    client.get_bytes("/", None, 100).await
}

/// Asks until there is a place again.
async fn until_here(running: &Running) {
    while let Err(refusal) = here(&running.client()).await {
        assert_eq!(refusal.code, Code::Busy, "{refusal}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_handshake_and_a_head_that_do_not_come_are_cut() {
    let brief = Duration::from_millis(50);
    let running = start(ServeLimits { handshake_timeout: brief, header_timeout: brief, ..ServeLimits::default() }).await;
    let mut silent = TcpStream::connect(running.addr).await.unwrap();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    let mut slow = tls(&running).await;
    slow.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).await.unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn a_body_that_stops_coming_is_answered_and_cut() {
    let running = start(ServeLimits { body_timeout: Duration::from_millis(50), ..ServeLimits::default() }).await;
    let mut slow = tls(&running).await;
    slow.write_all(b"POST /octets HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("\"code\":\"timed_out\""), "{answer}");
}

#[tokio::test]
async fn a_peer_that_takes_nothing_loses_its_place() {
    let running = start(ServeLimits { write_timeout: Duration::from_millis(50), connections: 1, ..ServeLimits::default() }).await;
    let mut idle = tls(&running).await;
    idle.write_all(b"GET /much HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    until_here(&running).await;
    drop(idle);
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let running = start(ServeLimits::default()).await;
    let long = "x".repeat(20 * 1024);
    let refused = running.client().request(http::Method::GET, "/", None, &[("x-long", &long)], "", Vec::new(), 100).await;
    assert_eq!(refused.unwrap_err().code, Code::TooLarge);
}

#[tokio::test]
async fn connections_are_capped_tunnels_count_and_a_freed_place_is_given_again() {
    for limits in
        [ServeLimits { connections: 2, ..ServeLimits::default() }, ServeLimits { connections_per_peer: 2, ..ServeLimits::default() }]
    {
        let running = start(limits).await;
        let (first, second, third) = (running.client(), running.client(), running.client());
        here(&first).await.unwrap();
        let tunnel = second.upgrade("/tunnel", None, &[]).await.unwrap();
        let refusal = here(&third).await.unwrap_err();
        assert_eq!(refusal.code, Code::Busy, "{refusal}");
        assert!(refusal.detail.contains(&running.addr.to_string()), "{refusal}");
        here(&first).await.unwrap();
        drop(tunnel);
        until_here(&running).await;
    }
}

#[tokio::test]
async fn handshakes_are_capped_by_rate() {
    let limits = ServeLimits { handshakes_per_second: 1, handshake_burst: 3, ..ServeLimits::default() };
    let running = start(limits).await;
    let mut codes = Vec::new();
    for _ in 0..20 {
        codes.push(here(&running.client()).await.err().map(|refusal| refusal.code));
    }
    assert_eq!(codes[..3], [None, None, None]);
    assert!(codes.contains(&Some(Code::Busy)), "{codes:?}");
}

#[tokio::test]
async fn a_refusal_in_the_middle_of_an_upload_arrives() {
    let running = start(ServeLimits::default()).await;
    for _ in 0..300 {
        let endless = tokio::io::repeat(7);
        let refusal = running.client().put_stream::<()>("/some", None, &[], 1 << 40, endless).await.unwrap_err();
        assert_eq!(refusal.code, Code::ManifestMismatch, "{refusal}");
    }
}

#[tokio::test]
async fn a_shutdown_lets_what_is_in_flight_finish_and_closes_what_rests() {
    let gate = gate();
    let running = Site::new().start(app(gate.clone()), ServeLimits::default()).await;
    let (resting, busy) = (running.client(), running.client());
    here(&resting).await.unwrap();
    here(&busy).await.unwrap();
    let answer = tokio::spawn(async move { busy.get_bytes("/gated", None, 100).await });
    drop(gate.entered.acquire().await.unwrap());
    let late = running.client();
    let stopping = running.stop();
    while here(&resting).await.is_ok() {}
    assert_eq!(here(&late).await.unwrap_err().code, Code::ServerUnreachable);
    assert!(!stopping.is_finished());
    gate.open.add_permits(1);
    answer.await.unwrap().unwrap();
    stopping.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_shutdown_ends_with_the_time_of_grace() {
    let gate = gate();
    let limits = ServeLimits { grace: Duration::from_millis(50), ..ServeLimits::default() };
    let running = Site::new().start(app(gate.clone()), limits).await;
    let tunnel = running.client().upgrade("/tunnel", None, &[]).await.unwrap();
    let client = running.client();
    let hanging = tokio::spawn(async move { client.get_bytes("/gated", None, 100).await });
    drop(gate.entered.acquire().await.unwrap());
    running.stop().await.unwrap().unwrap();
    assert!(hanging.await.unwrap().is_err());
    drop(tunnel);
}

#[tokio::test]
async fn limits_that_let_nobody_in_are_refused() {
    for limits in [
        ServeLimits { connections: 0, ..ServeLimits::default() },
        ServeLimits { handshake_burst: 0, ..ServeLimits::default() },
        ServeLimits { max_header: 100, ..ServeLimits::default() },
    ] {
        let refused = start(limits).await.stop().await.unwrap().unwrap_err();
        assert_eq!(refused.code, Code::ConfigInvalid);
    }
}
