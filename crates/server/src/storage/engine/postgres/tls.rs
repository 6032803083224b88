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

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{ClientConnection, ServerConfig, ServerConnection};
    use std::io::{Read, Write};
    use std::path::Path;

    /// A database server's certificate for `db.example`, which is its own root, in a file; and its side of a handshake.
    fn server(folder: &Path) -> (String, Arc<ServerConfig>) {
        let made = rcgen::generate_simple_self_signed(["db.example".to_owned()]).expect("a certificate");
        let file = folder.join("root.pem");
        std::fs::write(&file, made.cert.pem()).expect("written");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("its certificate");
        (file.display().to_string(), Arc::new(config))
    }

    /// Whether a client of that mode takes the server, as the host of that name.
    fn takes(mode: PgSslMode, roots: Option<&str>, name: &'static str, server: &Arc<ServerConfig>) -> bool {
        let config = config(mode, &Files { roots: roots.map(str::to_owned), ..Files::default() }).expect("a configuration");
        let name = ServerName::try_from(name).expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut server = ServerConnection::new(server.clone()).expect("a server");
        fn pass(from: &mut impl FnMut(&mut dyn Write), to: &mut impl FnMut(&mut dyn Read) -> std::result::Result<(), Error>) -> bool {
            let mut sent = Vec::new();
            from(&mut sent);
            let mut rest = sent.as_slice();
            while !rest.is_empty() {
                if to(&mut rest).is_err() {
                    return false;
                }
            }
            true
        }
        while client.is_handshaking() || server.is_handshaking() {
            let mut to_server = |out: &mut dyn Write| while client.wants_write() && client.write_tls(out).is_ok() {};
            let taken = pass(&mut to_server, &mut |bytes: &mut dyn Read| {
                server.read_tls(&mut &mut *bytes).expect("from memory");
                server.process_new_packets().map(drop)
            });
            let mut to_client = |out: &mut dyn Write| while server.wants_write() && server.write_tls(out).is_ok() {};
            let answered = pass(&mut to_client, &mut |bytes: &mut dyn Read| {
                client.read_tls(&mut &mut *bytes).expect("from memory");
                client.process_new_packets().map(drop)
            });
            if !(taken && answered) {
                return false;
            }
        }
        true
    }

    #[test]
    fn each_mode_verifies_what_it_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let (root, server) = server(folder.path());
        let root = Some(root.as_str());
        for (mode, roots, name, taken) in [
            (PgSslMode::VerifyFull, root, "db.example", true),
            (PgSslMode::VerifyFull, root, "other.example", false),
            (PgSslMode::VerifyFull, None, "db.example", false),
            (PgSslMode::VerifyCa, root, "other.example", true),
            (PgSslMode::VerifyCa, None, "db.example", false),
            (PgSslMode::Require, None, "other.example", true),
        ] {
            assert_eq!(takes(mode, roots, name, &server), taken, "{mode:?} {name}, the root is known: {}", roots.is_some());
        }
    }

    #[test]
    fn files_that_do_not_serve_are_refused() {
        let missing = || Some("/nowhere/at-all.pem".to_owned());
        for files in [
            Files { roots: missing(), ..Files::default() },
            Files { certificate: missing(), ..Files::default() },
            Files { certificate: missing(), key: missing(), ..Files::default() },
        ] {
            assert_eq!(config(PgSslMode::VerifyFull, &files).expect_err("refused").code, Code::ConfigInvalid);
        }
    }
}
