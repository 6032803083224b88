//! The cryptography of the first path and whom a client trusts: TLS 1.3 (RFC 8446) alone, its provider always passed
//! explicitly, hybrid post-quantum key agreement first (attack A22).

use crate::trust::PinnedVerifier;
use chipbound_wire::{Code, Digest, Refusal, Result};
use rustls::client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;

/// The ALPN name (RFC 7301) of the first path.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";

/// Whom a client takes for its server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerTrust {
    /// The public roots of Mozilla's programme, as compiled in.
    WebPki,
    /// A private root, or a self-signed certificate that is its own anchor.
    Root(CertificateDer<'static>),
    /// The chain that the server sends must contain a certificate with this BLAKE3 digest of its DER, and must verify under
    /// that certificate as its anchor. A pinned leaf must be self-signed. Enrolment vouchers carry such a digest.
    Pinned(Digest),
}

impl ServerTrust {
    /// The first certificate of a PEM file as [`ServerTrust::Root`]; [`Code::ConfigInvalid`] when there is none.
    pub fn root_from_pem(pem: &[u8]) -> Result<Self> {
        CertificateDer::from_pem_slice(pem)
            .map(|der| Self::Root(der.into_owned()))
            .map_err(|e| Refusal::new(Code::ConfigInvalid, "the TLS root holds no certificate in PEM").because(e))
    }
}

/// The cryptography of the first path: aws-lc-rs with X25519MLKEM768 before X25519 before secp256r1, and AES-256-GCM before
/// AES-128-GCM before ChaCha20-Poly1305. Nothing reads or sets the default provider of the process.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::{cipher_suite as suite, kx_group as group};
    Arc::new(CryptoProvider {
        cipher_suites: vec![suite::TLS13_AES_256_GCM_SHA384, suite::TLS13_AES_128_GCM_SHA256, suite::TLS13_CHACHA20_POLY1305_SHA256],
        kx_groups: vec![group::X25519MLKEM768, group::X25519, group::SECP256R1],
        ..aws_lc_rs::default_provider()
    })
}

/// A server's side: `chain` leaf first, with the root at its end where clients pin it; `alpn` in order of preference.
///
/// Sessions are not resumed: instances share no state, and resumption saves a server nothing worth it.
/// [`Code::ConfigInvalid`] when the key is not the leaf's or of a kind that is not supported.
pub fn server_config(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>> {
    let wrong = |e| Refusal::new(Code::ConfigInvalid, format!("the TLS certificate and key do not serve: {e}")).because(e);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(wrong)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(wrong)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// A client's side, without a certificate of its own, offering [`ALPN_HTTP1`]; [`Code::ConfigInvalid`] when the root is no
/// certificate.
pub fn client_config(trust: &ServerTrust) -> Result<Arc<ClientConfig>> {
    let wrong = |e| Refusal::new(Code::ConfigInvalid, format!("TLS cannot be set up: {e}")).because(e);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(wrong)?
        .dangerous() // The name of the builder's door; both verifiers behind it end in webpki.
        .with_custom_certificate_verifier(verifier(trust)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_HTTP1.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn verifier(trust: &ServerTrust) -> Result<Arc<dyn ServerCertVerifier>> {
    let mut roots = RootCertStore::empty();
    match trust {
        ServerTrust::WebPki => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        ServerTrust::Root(root) => roots
            .add(root.clone())
            .map_err(|e| Refusal::new(Code::ConfigInvalid, format!("the TLS root is not a certificate: {e}")).because(e))?,
        ServerTrust::Pinned(digest) => return Ok(Arc::new(PinnedVerifier::new(*digest, provider()))),
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|e| Refusal::new(Code::ConfigInvalid, "the TLS root does not serve").because(e))?;
    Ok(verifier)
}
