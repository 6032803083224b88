//! TLS 1.3 (RFC 8446) of the second path: the processor is the client, the server is the server, both show certificates of
//! their own authority. Names and WebPKI decide nothing; [`Trust::verify`] and the role decide.
//!
//! Key agreement is hybrid post-quantum only, the ALPN is mandatory, and nothing of one session reaches another: no
//! resumption, no tickets, no early data (a resumed session would carry on a certificate that may be revoked by now).

mod alert;
#[cfg(test)]
mod tests;

use chipbound_wire::certificate::{Certified, Role, Trust};
use chipbound_wire::messages::ALPN;
use chipbound_wire::signature::{Sign, to_der};
use chipbound_wire::signed::Signer;
use chipbound_wire::{Code, Refusal, Result, Time};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
pub use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, SignatureAlgorithm, SignatureScheme};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Who one end is: its key and the certificate chain of that key (DER, leaf first, the root left out).
#[derive(Clone)]
pub struct Identity {
    /// The key.
    pub key: Arc<dyn Sign>,
    /// Its certificates.
    pub chain: Vec<Vec<u8>>,
}

impl Identity {
    /// The same as a signer of documents.
    #[must_use]
    pub fn signer(&self) -> Signer<'_> {
        Signer { key: &*self.key, chain: &self.chain }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.key.key_id())
    }
}

/// What is trusted right now. Handshakes that begin after [`SharedTrust::replace`] use the new [`Trust`]; the server puts
/// each fresh revocation list in this way.
#[derive(Clone, Debug)]
pub struct SharedTrust(Arc<RwLock<Arc<Trust>>>);

impl SharedTrust {
    /// Begins with `trust`.
    #[must_use]
    pub fn new(trust: Trust) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(trust))))
    }

    /// What is trusted now.
    #[must_use]
    pub fn get(&self) -> Arc<Trust> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on `trust` is trusted.
    pub fn replace(&self, trust: Trust) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(trust);
    }
}

/// What the processor's end of a second path needs; made once, used for every connection.
#[derive(Clone, Debug)]
pub struct ProcessorConfig(Common);

/// What the server's end of a second path needs; made once, used for every connection.
#[derive(Clone, Debug)]
pub struct ServerConfig(Common);

#[derive(Clone, Debug)]
struct Common {
    provider: Arc<CryptoProvider>,
    clock: Arc<dyn TimeProvider>,
    trust: SharedTrust,
    certified: Arc<CertifiedKey>,
}

/// The processor's end: `identity` is certified for [`Role::Processor`]. Refuses a chain that does not hold the identity's
/// key with [`Code::IdentityMismatch`].
pub fn processor_config(identity: &Identity, trust: SharedTrust, clock: Arc<dyn TimeProvider>) -> Result<ProcessorConfig> {
    common(identity, trust, clock).map(ProcessorConfig)
}

/// The server's end: `identity` is certified for [`Role::ServerSecondPath`]. Refuses as [`processor_config`] does.
pub fn server_config(identity: &Identity, trust: SharedTrust, clock: Arc<dyn TimeProvider>) -> Result<ServerConfig> {
    common(identity, trust, clock).map(ServerConfig)
}

fn common(identity: &Identity, trust: SharedTrust, clock: Arc<dyn TimeProvider>) -> Result<Common> {
    let chain = identity.chain.iter().map(|c| CertificateDer::from(c.clone())).collect();
    let certified = CertifiedKey::new(chain, Arc::new(TlsKey(Arc::clone(&identity.key))));
    certified
        .keys_match()
        .map_err(|e| Refusal::new(Code::IdentityMismatch, format!("the certificate is not one of the key: {e}")).because(e))?;
    Ok(Common { provider: provider(), clock, trust, certified: Arc::new(certified) })
}

/// The primitives, passed explicitly: TLS 1.3 suites and hybrid key agreement only.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_CHACHA20_POLY1305_SHA256],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::SECP256R1MLKEM768],
        ..default_provider()
    })
}

impl ProcessorConfig {
    /// A fresh connection and the place where the verdict on the server's certificate will stand.
    pub(crate) fn connection(&self) -> Result<(ClientConnection, Arc<Verdict>)> {
        let (config, verdict) = self.config()?;
        let nobody = ServerName::try_from("second-path.invalid").expect("the name is well formed");
        Ok((ClientConnection::new(Arc::new(config), nobody).map_err(internal)?, verdict))
    }

    fn config(&self) -> Result<(ClientConfig, Arc<Verdict>)> {
        let verifier = PeerVerifier::new(&self.0, Role::ServerSecondPath);
        let verdict = Arc::clone(&verifier.verdict);
        let mut config = ClientConfig::builder_with_details(Arc::clone(&self.0.provider), Arc::clone(&self.0.clock))
            .with_protocol_versions(&[&TLS13])
            .map_err(internal)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.0.certified))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false;
        Ok((config, verdict))
    }
}

impl ServerConfig {
    /// A fresh connection and the place where the verdict on the processor's certificate will stand.
    pub(crate) fn connection(&self) -> Result<(rustls::ServerConnection, Arc<Verdict>)> {
        let verifier = PeerVerifier::new(&self.0, Role::Processor);
        let verdict = Arc::clone(&verifier.verdict);
        let mut config = rustls::ServerConfig::builder_with_details(Arc::clone(&self.0.provider), Arc::clone(&self.0.clock))
            .with_protocol_versions(&[&TLS13])
            .map_err(internal)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.0.certified))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok((rustls::ServerConnection::new(Arc::new(config)).map_err(internal)?, verdict))
    }
}

fn internal(error: rustls::Error) -> Refusal {
    Refusal::new(Code::Internal, format!("TLS cannot be set up: {error}")).because(error)
}

/// The verdict on the peer's certificate in one connection. TLS would reduce it to an alert; here the whole [`Refusal`] is
/// kept, or the [`Certified`] that only verification makes.
#[derive(Debug, Default)]
pub(crate) struct Verdict(Mutex<Option<Result<Certified>>>);

impl Verdict {
    fn put(&self, verdict: Result<Certified>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
    }

    fn take(&self) -> Option<Result<Certified>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The peer, after the handshake.
    pub(crate) fn peer(&self) -> Result<Certified> {
        self.take().unwrap_or_else(|| Err(Refusal::new(Code::CertificateProfile, "the other side showed no certificate")))
    }

    /// What the failure `error` of this connection means: the verdict, where that was the reason.
    pub(crate) fn explain(&self, error: rustls::Error) -> Refusal {
        match self.take() {
            Some(Err(refusal)) => refusal,
            _ => alert::explain(error),
        }
    }
}

/// Verifies the peer of one connection.
#[derive(Debug)]
struct PeerVerifier {
    trust: Arc<Trust>,
    role: Role,
    verdict: Arc<Verdict>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    fn new(common: &Common, role: Role) -> Self {
        let algorithms = common.provider.signature_verification_algorithms;
        Self { trust: common.trust.get(), role, verdict: Arc::default(), algorithms }
    }

    fn verify(&self, leaf: &CertificateDer<'_>, issuers: &[CertificateDer<'_>], now: UnixTime) -> std::result::Result<(), rustls::Error> {
        let chain: Vec<&[u8]> = std::iter::once(leaf).chain(issuers).map(AsRef::as_ref).collect();
        let verdict = self.trust.verify(&chain, self.role, Time(now.as_secs()));
        let outcome = verdict.as_ref().map(|_| ()).map_err(|refusal| alert::certificate_error(refusal.code).into());
        self.verdict.put(verdict);
        outcome
    }

    fn verify_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }
}

/// The one scheme of the second path.
const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

/// TLS 1.2 is not spoken here.
fn no_tls12() -> rustls::Error {
    rustls::PeerIncompatible::Tls12NotOfferedOrEnabled.into()
}

/// What both verifiers say of signatures in the handshake.
macro_rules! signatures_of_ours {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
            Err(no_tls12())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
            self.verify_signature(message, cert, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SCHEME]
        }
    };
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    signatures_of_ours!();
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> std::result::Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    signatures_of_ours!();
}

/// A key of ours as rustls wants one; the private half stays in its key store.
struct TlsKey(Arc<dyn Sign>);

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsKey({})", self.0.key_id())
    }
}

impl rustls::sign::SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        offered.contains(&SCHEME).then(|| Box::new(Self(Arc::clone(&self.0))) as Box<dyn rustls::sign::Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.0.spki()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl rustls::sign::Signer for TlsKey {
    fn sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, rustls::Error> {
        let signature = self.0.sign(message).map_err(|refusal| rustls::Error::Other(rustls::OtherError(Arc::new(refusal))))?;
        Ok(to_der(&signature))
    }

    fn scheme(&self) -> SignatureScheme {
        SCHEME
    }
}
