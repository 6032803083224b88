//! Requests and refusals over a real connection.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::routing::{get, post, put};
use chipbound_transport::extract::{Bearer, Json, Octets, Path, Query, Upload};
use chipbound_transport::problem::PROBLEM_JSON;
use chipbound_transport::{ApiError, Problem, ServeLimits, refusal_of};
use chipbound_wire::{Code, Digest, Refusal, limits};
use common::{Running, Site};
use http::Method;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Order {
    program: String,
    count: u32,
}

fn app() -> Router {
    Router::new()
        .route("/order", post(async |Json(order): Json<Order>| Json(Order { count: order.count + 1, ..order })))
        .route("/octets", post(async |Octets(bytes): Octets| bytes))
        .route("/peer", get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| Json(peer)))
        .route("/who", get(async |bearer: Bearer| Json(bearer.0.to_string())))
        .route("/number/{n}", get(async |Path(n): Path<u8>| Json(n)))
        .route("/query", get(async |Query(order): Query<Order>| Json(order)))
        .route("/axum", get(async |axum::extract::Query(order): axum::extract::Query<Order>| Json(order)))
        .route(
            "/broken",
            get(async || Err::<(), _>(ApiError(Refusal::new(Code::Database, "secret-table is gone").because("secret-cause")))),
        )
        .route("/slow-down", get(async || Err::<(), _>(ApiError(Refusal::new(Code::RateLimited, "five log-ins a minute")))))
        .route(
            "/news",
            get(async || (http::StatusCode::CONFLICT, [(http::header::CONTENT_TYPE, PROBLEM_JSON)], serde_json::to_vec(&news()).unwrap())),
        )
        .route("/big", get(async || vec![0_u8; 4096]))
        .route("/upload", put(upload))
}

fn news() -> Problem {
    let mut problem = Problem::of(&Refusal::new(Code::Conflict, "from \x1b[31mtomorrow"));
    problem.code = "not_known_yet".to_owned();
    problem
}

async fn upload(upload: Upload) -> Result<Json<(u64, u64, Digest)>, ApiError> {
    if upload.len() > 1 << 30 {
        return Err(ApiError(Refusal::new(Code::TooLarge, "more than 1 GiB")));
    }
    let (len, mut reader) = (upload.len(), upload.into_reader());
    let (mut seen, mut digest, mut buf) = (0, Digest([0; 32]), vec![0; 64 * 1024]);
    loop {
        let n = reader.read(&mut buf).await.map_err(|e| refusal_of("the upload", e))?;
        if n == 0 {
            return Ok(Json((len, seen, digest)));
        }
        fold(&mut digest, seen, &buf[..n]);
        seen += n as u64;
    }
}

/// Folds bytes from `offset` on into 32, so that a lost, doubled or moved byte shows however the stream is cut.
fn fold(digest: &mut Digest, offset: u64, bytes: &[u8]) {
    (offset..).zip(bytes).for_each(|(i, b)| digest.0[(i % 32) as usize] ^= b.wrapping_mul(((i / 32) as u8) | 1));
}

async fn start() -> Running {
    Site::new().start(app(), ServeLimits::default()).await
}

async fn get_refused(running: &Running, path: &str) -> Refusal {
    running.client().get_bytes(path, None, 1024).await.unwrap_err()
}

#[tokio::test]
async fn json_goes_there_and_back_on_one_connection() {
    let running = start().await;
    let client = running.client();
    let mut peers = Vec::new();
    for count in 0..3 {
        let order = Order { program: "p".to_owned(), count };
        assert_eq!(client.post_json::<_, Order>("/order", None, &[("idempotency-key", "k")], &order).await.unwrap().count, count + 1);
        assert_eq!(client.post_cbor("/octets", vec![0xa0; 70]).await.unwrap(), vec![0xa0; 70]);
        peers.push(client.get_json::<SocketAddr>("/peer", None).await.unwrap());
        assert_eq!(client.get_bytes("/nowhere", None, 10).await.unwrap_err().code, Code::NotFound);
    }
    assert!(peers[0].ip().is_loopback() && peers.iter().all(|p| *p == peers[0]), "{peers:?}");
}

#[tokio::test]
async fn the_bearer_token_arrives_and_its_absence_is_named() {
    let running = start().await;
    assert_eq!(running.client().get_json::<String>("/who", Some("t0ken")).await.unwrap(), "t0ken");
    assert_eq!(get_refused(&running, "/who").await.code, Code::Unauthenticated);
    assert_eq!(running.client().get_json::<String>("/who", Some("a\nb")).await.unwrap_err().code, Code::Malformed);
}

#[tokio::test]
async fn routes_methods_and_bad_requests_are_refused_as_problems() {
    let running = start().await;
    let client = running.client();
    let ask = async |method: Method, path: &str, kind: &str, body: &[u8]| {
        client.request(method, path, None, &[], kind, body.to_vec(), 1 << 20).await.unwrap_err()
    };
    assert_eq!(get_refused(&running, "/nowhere").await.code, Code::NotFound);
    assert_eq!(ask(Method::DELETE, "/order", "", b"").await.code, Code::MethodNotAllowed);
    assert_eq!(ask(Method::POST, "/order", "text/plain", b"{}").await.code, Code::Malformed);
    assert_eq!(ask(Method::POST, "/octets", "", &vec![0; limits::MAX_JSON + 1]).await.code, Code::TooLarge);
    assert_eq!(get_refused(&running, "/number/300").await.code, Code::NotFound);
    assert_eq!(get_refused(&running, "/query?program=p").await.code, Code::Malformed);
    assert_eq!(get_refused(&running, "/axum?program=p").await.code, Code::Malformed, "rejections of axum's own too");

    let wrong_type = ask(Method::POST, "/order", "application/json", br#"{"program":"p","count":"hunter2"}"#).await;
    assert_eq!(wrong_type.code, Code::Malformed);
    assert!(!wrong_type.detail.contains("hunter2"), "what was sent is not repeated: {wrong_type}");
    let missing = ask(Method::POST, "/order", "application/json; charset=utf-8", br#"{"program":"p"}"#).await;
    assert!(missing.detail.contains("count is missing"), "{missing}");
    assert!(ask(Method::POST, "/order", "application/json", b"{").await.detail.contains("no JSON"));
}

#[tokio::test]
async fn a_problem_has_the_form_of_rfc_9457() {
    let running = start().await;
    let answer = raw(&running, b"GET /slow-down HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 429"), "{head}");
    assert!(head.contains(PROBLEM_JSON) && head.contains("retry-after: 5"), "{head}");
    let problem: Problem = serde_json::from_str(body).unwrap();
    assert_eq!(problem, Problem::of(&Refusal::new(Code::RateLimited, "five log-ins a minute")));
    assert_eq!(
        (problem.status, problem.title.as_str(), problem.kind.as_str()),
        (429, "rate limited", "urn:chipbound:problem:rate_limited")
    );
    let answer = raw(&running, b"GET /who HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("www-authenticate: Bearer"), "{answer}");
    let answer = raw(&running, b"DELETE /order HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("allow: POST"), "{answer}");
}

#[tokio::test]
async fn a_fault_of_the_server_is_told_without_its_reason() {
    let refusal = get_refused(&start().await, "/broken").await;
    assert_eq!(refusal.code, Code::Database);
    assert!(!refusal.to_string().contains("secret"), "{refusal}");
}

#[tokio::test]
async fn a_code_from_a_newer_server_is_kept_as_text_fit_for_a_terminal() {
    let refusal = get_refused(&start().await, "/news").await;
    assert_eq!(refusal.code, Code::PeerRefused);
    assert!(refusal.detail.contains("not_known_yet") && refusal.detail.contains("tomorrow"), "{refusal}");
    assert!(!refusal.detail.contains('\x1b'));
}

#[tokio::test]
async fn an_answer_beyond_the_cap_is_not_read() {
    let running = start().await;
    assert_eq!(get_refused(&running, "/big").await.code, Code::TooLarge);
    assert_eq!(running.client().get_bytes("/big", None, 4096).await.unwrap().len(), 4096);
}

#[tokio::test]
async fn a_stream_is_put_whole_and_a_short_one_is_an_error() {
    let running = start().await;
    let client = running.client();
    let bytes: Vec<u8> = (0..1_000_003_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut sent = Digest([0; 32]);
    fold(&mut sent, 0, &bytes);
    let put: (u64, u64, Digest) = client.put_stream("/upload", None, &[], bytes.len() as u64, std::io::Cursor::new(bytes)).await.unwrap();
    assert_eq!(put, (1_000_003, 1_000_003, sent));
    let empty: (u64, u64, Digest) = client.put_stream("/upload", None, &[], 0, tokio::io::empty()).await.unwrap();
    assert_eq!((empty.0, empty.1), (0, 0));
    let short = client.put_stream::<(u64, u64, Digest)>("/upload", None, &[], 100, &b"fifty"[..]).await.unwrap_err();
    assert_eq!(short.code, Code::Io, "{short}");
    assert!(short.detail.contains("95 bytes before"), "{short}");
}

/// A source that must not be read.
struct Untouched;

impl AsyncRead for Untouched {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        panic!("the upload began before the server wanted it");
    }
}

#[tokio::test]
async fn a_refused_upload_costs_no_upload() {
    let running = start().await;
    let refusal = running.client().put_stream::<()>("/upload", None, &[], 1 << 40, Untouched).await.unwrap_err();
    assert_eq!(refusal.code, Code::TooLarge);
    assert_eq!(refusal.detail, "more than 1 GiB");
}

#[tokio::test]
async fn a_connection_that_the_server_closed_at_rest_is_replaced() {
    let limits = ServeLimits { header_timeout: std::time::Duration::from_millis(20), ..ServeLimits::default() };
    let running = Site::new().start(app(), limits).await;
    let client = running.client();
    let first: SocketAddr = client.get_json("/peer", None).await.unwrap();
    while client.get_json::<SocketAddr>("/peer", None).await.unwrap() == first {
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    }
}

/// Sends bytes over TLS and reads until the end.
async fn raw(running: &Running, request: &[u8]) -> String {
    let tcp = tokio::net::TcpStream::connect(running.addr).await.unwrap();
    let config = chipbound_transport::client_config(&running.trust).unwrap();
    let mut tls = tokio_rustls::TlsConnector::from(config).connect(running.addr.ip().into(), tcp).await.unwrap();
    tls.write_all(request).await.unwrap();
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_client_that_is_closed_says_so_to_the_server() {
    let site = Site::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let acceptor = tokio_rustls::TlsAcceptor::from(site.tls());
    let server = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut tls = acceptor.accept(tcp).await.unwrap();
        let _ = tls.read(&mut [0; 4096]).await.unwrap();
        tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
        tls.read(&mut [0; 1]).await
    });
    let client = chipbound_transport::Client::new(&url, chipbound_transport::ServerTrust::Root(site.root)).unwrap();
    assert_eq!(client.get_bytes("/", None, 10).await.unwrap(), "{}");
    client.close().await;
    assert_eq!(server.await.unwrap().unwrap(), 0, "an end without close_notify would be an error");
}
