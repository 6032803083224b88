//! The raw stream after an upgrade: bytes both ways, its end said with close_notify.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use axum::Router;
use axum::response::Response;
use axum::routing::get;
use chipbound_transport::{ApiError, BlockingTls, ClientRaw, RawStream, ServeLimits, Timeouts, Upgrade, client_config, refusal_of};
use chipbound_wire::{Code, Refusal, Result};
use common::{Running, Site};
use std::io::{IoSlice, Read, Write};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// A listener whose `/tunnel` hands its streams to the test.
async fn start() -> (Running, mpsc::UnboundedReceiver<Result<RawStream>>) {
    let (streams, taken) = mpsc::unbounded_channel();
    let tunnel = move |upgrade: Upgrade| {
        let streams = streams.clone();
        async move {
            let (response, stream) = upgrade.accept();
            tokio::spawn(async move { drop(streams.send(stream.await)) });
            response
        }
    };
    let refused = async |_: Upgrade| Err::<Response, _>(ApiError(Refusal::new(Code::TicketInvalid, "used already")));
    let app = Router::new().route("/tunnel", get(tunnel)).route("/refused", get(refused)).route("/plain", get(async || "plain"));
    (Site::new().start(app, ServeLimits::default()).await, taken)
}

async fn pair() -> (Running, RawStream, ClientRaw) {
    let (running, mut streams) = start().await;
    let client = running.client().upgrade("/tunnel", Some("token"), &[("x-order", "1")]).await.unwrap();
    let server = streams.recv().await.unwrap().unwrap();
    (running, server, client)
}

fn blocking(stream: RawStream) -> BlockingTls {
    stream.into_blocking(Timeouts::default()).unwrap()
}

/// Runs a blocking role beside the test.
async fn on_thread<T: Send + 'static>(role: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(role).await.unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[tokio::test]
async fn bytes_go_both_ways_and_both_ends_part_with_close_notify() {
    let (_running, mut server, mut client) = pair().await;
    client.write_all(b"offer").await.unwrap();
    server.write_all(b"terms").await.unwrap();
    let (mut there, mut back) = ([0; 5], [0; 5]);
    server.read_exact(&mut there).await.unwrap();
    client.read_exact(&mut back).await.unwrap();
    assert_eq!((&there, &back), (b"offer", b"terms"));
    let (one, other) = tokio::join!(server.finish(), client.finish());
    one.unwrap();
    other.unwrap();
}

#[tokio::test]
async fn bytes_sent_together_with_the_request_are_the_first_of_the_tunnel() {
    for blockingly in [false, true] {
        let (running, mut streams) = start().await;
        let tcp = tokio::net::TcpStream::connect(running.addr).await.unwrap();
        let config = client_config(&running.trust).unwrap();
        let mut tls = tokio_rustls::TlsConnector::from(config).connect(running.addr.ip().into(), tcp).await.unwrap();
        let early = pattern(100_000);
        let mut request = b"GET /tunnel HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: chipbound/1\r\n\r\n".to_vec();
        request.extend_from_slice(&early);
        tls.write_all(&request).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tls.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        tls.shutdown().await.unwrap();
        let mut stream = streams.recv().await.unwrap().unwrap();
        let mut seen = Vec::new();
        if blockingly {
            seen = on_thread(move || blocking(stream).read_to_end(&mut seen).map(|_| seen)).await.unwrap();
        } else {
            stream.read_to_end(&mut seen).await.unwrap();
        }
        assert!(seen == early);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_arrives_equal_in_both_directions() {
    const BULK: usize = 64 << 20;
    let (_running, server, mut client) = pair().await;
    let role = tokio::task::spawn_blocking(move || {
        let mut path = blocking(server);
        path.write_all(&pattern(BULK)).unwrap();
        let mut seen = vec![0; BULK];
        path.read_exact(&mut seen).unwrap();
        path.finish().unwrap();
        seen == pattern(BULK)
    });
    let mut seen = vec![0; BULK];
    client.read_exact(&mut seen).await.unwrap();
    assert!(seen == pattern(BULK));
    client.write_all(&seen).await.unwrap();
    client.finish().await.unwrap();
    assert!(role.await.unwrap());
}

#[tokio::test]
async fn slices_are_written_in_order_whole_or_in_part() {
    let (_running, server, mut client) = pair().await;
    let sent = pattern(1_000_000);
    let role = tokio::task::spawn_blocking(move || {
        let (mut path, all) = (blocking(server), pattern(1_000_000));
        let mut parts = [&all[..3], &all[3..3], &all[3..200_003], &all[200_003..200_010], &all[200_010..]].map(IoSlice::new);
        let mut left = &mut parts[..];
        while !left.is_empty() {
            let n = path.write_vectored(left).unwrap();
            IoSlice::advance_slices(&mut left, n);
        }
        path.finish()
    });
    let mut seen = Vec::new();
    client.read_to_end(&mut seen).await.unwrap();
    assert!(seen == sent);
    client.finish().await.unwrap();
    role.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_end_without_close_notify_is_a_truncation_and_never_the_end() {
    let (_running, server, mut client) = pair().await;
    client.write_all(b"half a message").await.unwrap();
    drop(client);
    let outcome = on_thread(move || blocking(server).read_to_end(&mut Vec::new())).await;
    assert_eq!(refusal_of("reading", outcome.unwrap_err()).code, Code::PathTruncated);

    let (_running, server, client) = pair().await;
    drop(client);
    assert_eq!(on_thread(move || blocking(server).finish()).await.unwrap_err().code, Code::PathTruncated);

    let (_running, server, mut client) = pair().await;
    drop(server);
    assert_eq!(refusal_of("reading", client.read_u8().await.unwrap_err()).code, Code::PathTruncated);

    let (_running, mut server, client) = pair().await;
    drop(client);
    assert_eq!(refusal_of("reading", server.read_u8().await.unwrap_err()).code, Code::PathTruncated);
}

#[tokio::test]
async fn bytes_after_the_farewell_are_refused() {
    let (_running, server, mut client) = pair().await;
    client.write_all(b"one more thing").await.unwrap();
    assert_eq!(on_thread(move || blocking(server).finish()).await.unwrap_err().code, Code::UnexpectedMessage);
    let (_running, mut server, client) = pair().await;
    server.write_all(b"one more thing").await.unwrap();
    assert_eq!(client.finish().await.unwrap_err().code, Code::UnexpectedMessage);
}

#[tokio::test]
async fn a_silent_peer_is_late_and_a_peer_that_takes_nothing_too() {
    let impatient = Timeouts { read: Duration::from_millis(20), write: Duration::from_millis(20) };
    let (_running, server, client) = pair().await;
    let (read, write) = on_thread(move || {
        let mut path = server.into_blocking(impatient).unwrap();
        let read = path.read(&mut [0; 1]).unwrap_err();
        (read, std::iter::repeat_with(|| path.write_all(&[0; 1 << 20])).take(1 << 10).find_map(|w| w.err()).unwrap())
    })
    .await;
    assert_eq!(refusal_of("reading", read).code, Code::TimedOut);
    assert_eq!(refusal_of("writing", write).code, Code::TimedOut);
    drop(client);
}

#[tokio::test]
async fn what_is_no_tunnel_is_refused_by_name() {
    let (running, _streams) = start().await;
    let client = running.client();
    let code = async |path: &str| client.upgrade(path, None, &[]).await.err().unwrap().code;
    assert_eq!(code("/refused").await, Code::TicketInvalid);
    assert_eq!(code("/plain").await, Code::UnexpectedMessage);
    assert_eq!(code("/nowhere").await, Code::NotFound);
    let no_upgrade = client.get_bytes("/tunnel", None, 10).await.unwrap_err();
    assert_eq!(no_upgrade.code, Code::UnexpectedMessage);
    assert!(no_upgrade.detail.contains("chipbound/1"), "{no_upgrade}");
}

#[tokio::test]
async fn a_client_end_can_block_too_and_exports_the_same_secret() {
    let (_running, server, client) = pair().await;
    let server = tokio::task::spawn_blocking(move || {
        let path = blocking(server);
        let secret = path.connection().export_keying_material([0; 32], b"EXPORTER-test", None).unwrap();
        path.finish().map(|()| secret)
    });
    let client = tokio::task::spawn_blocking(move || {
        let path = client.into_blocking(Timeouts::default()).unwrap();
        let secret = path.connection().export_keying_material([0; 32], b"EXPORTER-test", None).unwrap();
        path.finish().map(|()| secret)
    });
    assert_eq!(server.await.unwrap().unwrap(), client.await.unwrap().unwrap());
}

#[tokio::test]
async fn altered_bytes_are_an_error_behind_the_good_ones_before_them() {
    let (running, mut streams) = start().await;
    let tcp = tokio::net::TcpStream::connect(running.addr).await.unwrap();
    let config = client_config(&running.trust).unwrap();
    let mut tls = tokio_rustls::TlsConnector::from(config).connect(running.addr.ip().into(), tcp).await.unwrap();
    tls.write_all(b"GET /tunnel HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: chipbound/1\r\n\r\n").await.unwrap();
    let stream = streams.recv().await.unwrap().unwrap();
    tls.write_all(&pattern(40_000)).await.unwrap();
    tls.flush().await.unwrap();
    let forged = [&[23, 3, 3, 0, 32][..], &[9; 32]].concat();
    tls.get_mut().0.write_all(&forged).await.unwrap();
    let (seen, error) = on_thread(move || {
        let (mut path, mut seen) = (blocking(stream), Vec::new());
        let error = path.read_to_end(&mut seen).unwrap_err();
        (seen, error)
    })
    .await;
    assert!(seen == pattern(40_000));
    assert_eq!(refusal_of("reading", error).code, Code::Malformed);
}
