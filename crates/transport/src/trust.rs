//! The verifier behind [`ServerTrust::Pinned`](crate::ServerTrust), and what a failed handshake is called.

use chipbound_wire::{Code, Digest, Refusal};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, RootCertStore, SignatureScheme};
use std::io;
use std::sync::Arc;

/// Accepts a server whose chain contains the pinned certificate and verifies under it.
#[derive(Debug)]
pub(crate) struct PinnedVerifier {
    pin: Digest,
    provider: Arc<CryptoProvider>,
}

impl PinnedVerifier {
    pub(crate) fn new(pin: Digest, provider: Arc<CryptoProvider>) -> Self {
        Self { pin, provider }
    }
}

/// The certificate of `chain` whose digest is `pin`.
pub(crate) fn pinned_in<'a, 'c>(pin: &Digest, chain: impl IntoIterator<Item = &'a CertificateDer<'c>>) -> Option<&'a CertificateDer<'c>>
where
    'c: 'a,
{
    chain.into_iter().find(|der| Digest::of(der) == *pin)
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let anchor = pinned_in(&self.pin, std::iter::once(end_entity).chain(intermediates)).ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(anchor.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| Error::General(e.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    /// Never reached: TLS 1.2 is neither offered nor compiled in.
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerMisbehaved::SelectedTls12UsingTls13VersionExtension.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What a client's failed handshake with `address` is called.
pub(crate) fn handshake_refusal(address: &str, error: io::Error) -> Refusal {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let (code, detail) = match tls {
        Some(Error::InvalidCertificate(reason)) => certificate_refusal(address, reason),
        Some(Error::InvalidMessage(_)) => (Code::ServerUnreachable, format!("what answers at {address} does not speak TLS")),
        Some(Error::AlertReceived(AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure) | Error::PeerIncompatible(_)) => {
            (Code::ServerUnreachable, format!("the server at {address} does not speak TLS 1.3 as it is needed here"))
        }
        Some(other) => (Code::ServerUnreachable, format!("the TLS handshake with {address} failed: {other}")),
        None => match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                (Code::Busy, format!("the server at {address} closed the connection before TLS was up: it takes no more for now"))
            }
            _ => (Code::ServerUnreachable, format!("the TLS handshake with {address} failed: {error}")),
        },
    };
    Refusal::new(code, detail).because(error)
}

fn certificate_refusal(address: &str, reason: &CertificateError) -> (Code, String) {
    use CertificateError as E;
    match reason {
        E::Expired | E::ExpiredContext { .. } => {
            (Code::CertificateExpired, format!("the TLS certificate of {address} is past its validity"))
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            (Code::CertificateNotYetValid, format!("the TLS certificate of {address} is not valid yet"))
        }
        E::Revoked => (Code::CertificateRevoked, format!("the TLS certificate of {address} was revoked")),
        // A bad signature is what a foreign root of the same name looks like.
        E::UnknownIssuer | E::BadSignature => {
            (Code::ServerUntrusted, format!("the TLS certificate of {address} is not under the root that is trusted here"))
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            (Code::ServerUntrusted, format!("the TLS certificate of {address} is for another name: {reason}"))
        }
        other => (Code::ServerUntrusted, format!("the TLS certificate of {address} does not verify: {other}")),
    }
}
