//! TLS to the database server, as the URL's options ask for it: `sslmode`, `sslrootcert`, `sslcert`, `sslkey`.

use chipbound_wire::{Code, Refusal, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sqlx::postgres::PgSslMode;
use std::sync::Arc;

/// Files that the URL names.
#[derive(Default)]
pub(super) struct Files {
    /// More roots than the public ones: certificates in PEM.
    pub(super) roots: Option<String>,
    /// Our certificate in PEM.
    pub(super) certificate: Option<String>,
    /// Its key in PEM.
    pub(super) key: Option<String>,
}

/// How a connection is secured. [`Code::ConfigInvalid`] where a file does not serve.
pub(super) fn config(mode: PgSslMode, files: &Files) -> Result<ClientConfig> {
    let wrong = |e: &dyn std::fmt::Display| Refusal::new(Code::ConfigInvalid, format!("TLS to the database: {e}"));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for root in certificates(files.roots.as_deref()).map_err(|e| wrong(&e))? {
        roots.add(root).map_err(|e| wrong(&e))?;
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().map_err(|e| wrong(&e))?;
    let verifier =
        Verifier { inner, chain: matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull), name: matches!(mode, PgSslMode::VerifyFull) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(&e))?
        .dangerous() // The name of the builder's door: what is not verified, the URL asked for (as libpq's modes do).
        .with_custom_certificate_verifier(Arc::new(verifier));
    match (&files.certificate, &files.key) {
        (None, None) => Ok(config.with_no_client_auth()),
        (Some(certificate), Some(key)) => {
            let chain = certificates(Some(certificate)).map_err(|e| wrong(&e))?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(&e))?;
            config.with_client_auth_cert(chain, key).map_err(|e| wrong(&e))
        }
        _ => Err(wrong(&"sslcert and sslkey are given together")),
    }
}

fn certificates(file: Option<&str>) -> std::result::Result<Vec<CertificateDer<'static>>, rustls::pki_types::pem::Error> {
    file.map_or(Ok(Vec::new()), |file| CertificateDer::pem_file_iter(file)?.collect())
}

/// Verifies what the mode asks for: nothing (`prefer`, `require`), the chain (`verify-ca`), or also the host's name (`verify-full`). That
/// the server holds the key of the certificate that it shows is verified in any mode.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    chain: bool,
    name: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, Error> {
        if !self.chain {
            return Ok(ServerCertVerified::assertion());
        }
        match self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }))
                if !self.name =>
            {
                Ok(ServerCertVerified::assertion()) // The chain was verified before the name.
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
