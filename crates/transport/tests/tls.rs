//! Which TLS is spoken, and whom a client trusts.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use axum::Router;
use axum::routing::get;
use chipbound_transport::extract::Json;
use chipbound_transport::tls::{ALPN_HTTP1, client_config};
use chipbound_transport::{Client, ServeLimits, ServerTrust, server_config};
use chipbound_wire::{Code, Digest, Refusal};
use common::Site;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{NamedGroup, ProtocolVersion};
use std::process::{Command, Stdio};

fn app() -> Router {
    Router::new().route("/hello", get(async || Json("hello")))
}

async fn refused(client: &Client) -> Refusal {
    client.get_json::<String>("/hello", None).await.unwrap_err()
}

#[tokio::test]
async fn tls_1_3_with_the_hybrid_group_is_what_is_negotiated() {
    let site = Site::new();
    let running = site.start(app(), ServeLimits::default()).await;
    let tcp = tokio::net::TcpStream::connect(running.addr).await.unwrap();
    let name = ServerName::from(running.addr.ip());
    let tls = tokio_rustls::TlsConnector::from(client_config(&running.trust).unwrap()).connect(name, tcp).await.unwrap();
    let connection = tls.get_ref().1;
    assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(connection.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(connection.alpn_protocol(), Some(ALPN_HTTP1));
    assert_eq!(connection.handshake_kind(), Some(rustls::HandshakeKind::Full));
}

#[tokio::test]
async fn a_client_that_speaks_only_tls_1_2_is_refused() {
    let running = Site::new().start(app(), ServeLimits::default()).await;
    let connect = |version: &'static str| {
        let addr = running.addr.to_string();
        tokio::task::spawn_blocking(move || {
            let mut openssl = Command::new("openssl");
            openssl.args(["s_client", "-connect", &addr, version]).stdin(Stdio::null()).output().ok()
        })
    };
    let Some(old) = connect("-tls1_2").await.unwrap() else {
        eprintln!("not run here: there is no openssl");
        return;
    };
    assert!(!old.status.success());
    assert!(String::from_utf8_lossy(&old.stderr).contains("protocol version"), "{}", String::from_utf8_lossy(&old.stderr));
    assert!(connect("-tls1_3").await.unwrap().unwrap().status.success(), "and the same client is served with TLS 1.3");
}

#[tokio::test]
async fn a_server_under_another_root_is_not_trusted() {
    let running = Site::new().start(app(), ServeLimits::default()).await;
    for trust in [ServerTrust::Root(Site::new().root), ServerTrust::WebPki, ServerTrust::Pinned(Digest([7; 32]))] {
        let client = Client::new(&running.url(), trust).unwrap();
        let refusal = refused(&client).await;
        assert_eq!(refusal.code, Code::ServerUntrusted, "{refusal}");
        assert!(refusal.detail.contains("not under the root"), "{refusal}");
        assert!(client.pinned_root().is_none());
    }
}

#[tokio::test]
async fn a_pinned_root_is_trusted_and_handed_out_after_the_handshake() {
    let site = Site::new();
    let running = site.start(app(), ServeLimits::default()).await;
    let client = Client::new(&running.url(), ServerTrust::Pinned(Digest::of(&site.root))).unwrap();
    assert!(client.pinned_root().is_none());
    assert_eq!(client.get_json::<String>("/hello", None).await.unwrap(), "hello");
    assert_eq!(client.pinned_root(), Some(site.root.clone()));
}

#[tokio::test]
async fn a_pin_does_not_replace_the_chain_the_name_or_the_validity() {
    let (site, other) = (Site::new(), Site::new());
    // The server sends the pinned root, but its leaf is not under it.
    let key = KeyPair::generate().unwrap();
    let stray = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let chain = vec![stray.der().clone(), other.root.clone()];
    let tls = server_config(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap(), &[ALPN_HTTP1]).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(chipbound_transport::serve(listener, tls, app(), ServeLimits::default(), std::future::pending()));
    let client = Client::new(&url, ServerTrust::Pinned(Digest::of(&other.root))).unwrap();
    assert_eq!(refused(&client).await.code, Code::ServerUntrusted);
    server.abort();

    let running = site.start(app(), ServeLimits::default()).await;
    let by_name = format!("https://localhost:{}", running.addr.port());
    let misnamed = refused(&Client::new(&by_name, ServerTrust::Pinned(Digest::of(&site.root))).unwrap()).await;
    assert_eq!(misnamed.code, Code::ServerUntrusted);
    assert!(misnamed.detail.contains("another name"), "{misnamed}");
}

#[tokio::test]
async fn a_self_signed_certificate_is_its_own_anchor_by_root_and_by_pin() {
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap().der().clone();
    let tls = server_config(vec![leaf.clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap(), &[ALPN_HTTP1]).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(chipbound_transport::serve(listener, tls, app(), ServeLimits::default(), std::future::pending()));
    for trust in [ServerTrust::Root(leaf.clone()), ServerTrust::Pinned(Digest::of(&leaf))] {
        assert_eq!(Client::new(&url, trust).unwrap().get_json::<String>("/hello", None).await.unwrap(), "hello");
    }
    server.abort();
}

#[tokio::test]
async fn a_certificate_outside_its_validity_is_named_so() {
    let expired = Site::with(|leaf| leaf.not_after = rcgen::date_time_ymd(2001, 1, 1)).start(app(), ServeLimits::default()).await;
    assert_eq!(refused(&expired.client()).await.code, Code::CertificateExpired);
    let early = Site::with(|leaf| {
        leaf.not_before = rcgen::date_time_ymd(3001, 1, 1);
        leaf.not_after = rcgen::date_time_ymd(3002, 1, 1);
    });
    assert_eq!(refused(&early.start(app(), ServeLimits::default()).await.client()).await.code, Code::CertificateNotYetValid);
}

#[tokio::test]
async fn nobody_there_and_somebody_who_speaks_no_tls_are_unreachable_by_address() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let client = Client::new(&format!("https://{addr}"), ServerTrust::WebPki).unwrap();
    let talker = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut tcp, b"220 mail.example ESMTP\r\n").await.unwrap();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut tcp, &mut Vec::new()).await;
    });
    let wrong = refused(&client).await;
    assert_eq!(wrong.code, Code::ServerUnreachable);
    assert!(wrong.detail.contains("does not speak TLS"), "{wrong}");
    talker.await.unwrap();
    let gone = refused(&client).await;
    assert_eq!(gone.code, Code::ServerUnreachable);
    assert!(gone.detail.contains(&addr.to_string()), "{gone}");
}

#[test]
fn only_https_origins_and_real_certificates_make_a_client() {
    for bad in ["http://127.0.0.1:1", "127.0.0.1:1", "https://", "https://a@b", "https://host/path", "https://host?query", ""] {
        assert_eq!(Client::new(bad, ServerTrust::WebPki).err().unwrap().code, Code::ConfigInvalid, "{bad:?}");
    }
    assert_eq!(Client::new("https://host", ServerTrust::WebPki).unwrap().address(), "host:443");
    assert_eq!(Client::new("https://[::1]:8443/", ServerTrust::WebPki).unwrap().address(), "[::1]:8443");
    assert_eq!(Client::new("https://host", ServerTrust::Root(vec![1, 2].into())).err().unwrap().code, Code::ConfigInvalid);
    assert_eq!(ServerTrust::root_from_pem(b"no pem").unwrap_err().code, Code::ConfigInvalid);
    let site = Site::new();
    let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", base64(&site.root));
    assert_eq!(ServerTrust::root_from_pem(pem.as_bytes()).unwrap(), ServerTrust::Root(site.root));
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |n: u32| char::from(ALPHABET[(n & 63) as usize]);
    let group = |c: &[u8]| {
        let n = c.iter().fold(0, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - c.len()));
        let all: String = [18, 12, 6, 0].map(|s| digit(n >> s)).iter().collect();
        format!("{:=<4}", &all[..=c.len()])
    };
    bytes.chunks(3).map(group).collect()
}
