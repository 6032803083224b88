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
    use super::super::link::Server;
    use super::*;
    use crate::storage::{Books, Location};
    use chipbound_testkit::postgres::Cluster;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    use sqlx::postgres::PgConnectOptions;
    use std::path::Path;

    /// Who may come in, and how: nobody without TLS, one user by a password, one by a certificate.
    const RULES: &str = "local all all trust\n\
                         hostssl all careful 127.0.0.1/32 scram-sha-256\n\
                         hostssl all certified 127.0.0.1/32 cert\n";

    /// A root's certificate, the server's for `localhost`, and the certified user's, with their keys, in that folder.
    fn certificates_in(folder: &Path) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a root");
        std::fs::write(folder.join("clients.pem"), root.pem()).expect("written");
        for (file, name, common_name) in [("server", Some("localhost"), "a server"), ("certified", None, "certified")] {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(name.map(str::to_owned).into_iter().collect::<Vec<_>>()).expect("a name");
            params.distinguished_name.push(DnType::CommonName, common_name);
            let certificate = params.signed_by(&key, &root).expect("signed");
            std::fs::write(folder.join(format!("{file}.pem")), certificate.pem()).expect("written");
            chipbound_host::files::write_new(&folder.join(format!("{file}.key")), key.serialize_pem().as_bytes(), 0o600).expect("written");
        }
        std::fs::write(folder.join("pg_hba.conf"), RULES).expect("written");
    }

    /// How a URL fares: with the library that brings the database to its form, and with ours. Where it is taken, TLS is in use.
    async fn fares(cluster: &Cluster, database: &str, who: &str, host: &str, options: &str) -> Option<Code> {
        let url = format!("postgres://{who}@{host}:{}/{database}?{options}", cluster.port());
        let parsed: PgConnectOptions = url.parse().expect("a URL");
        let own = Server::new(&parsed).unwrap_or_else(|refusal| panic!("{url}: {refusal}")).connect().await;
        if own.is_ok() {
            let secured =
                "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'chipbound-server'";
            assert_eq!(cluster.sql(database, secured).as_deref(), Ok("t"), "{url}");
        }
        let books = Books::open(&Location::Postgres(Box::new(parsed), 1)).await.map(drop).map_err(|refusal| refusal.code).err();
        assert_eq!(own.is_err(), books.is_some(), "{url}");
        books
    }

    #[tokio::test]
    async fn a_real_server_is_taken_in_each_mode_for_what_the_mode_verifies_and_takes_us_by_password_or_certificate() {
        let cluster = Cluster::start_with_tls(certificates_in);
        let database = cluster.create_database();
        cluster.sql(&database, "CREATE USER careful SUPERUSER PASSWORD 'p%40 ü'; CREATE USER certified SUPERUSER").expect("users");
        let elsewhere = tempfile::tempdir().expect("a folder");
        certificates_in(elsewhere.path());
        let file = |folder: &Path, name: &str| folder.join(name).display().to_string();
        let root = format!("sslrootcert={}", file(cluster.folder(), "clients.pem"));
        let other_root = format!("sslrootcert={}", file(elsewhere.path(), "clients.pem"));
        let known =
            format!("{root}&sslcert={}&sslkey={}", file(cluster.folder(), "certified.pem"), file(cluster.folder(), "certified.key"));
        let unknown =
            format!("{root}&sslcert={}&sslkey={}", file(elsewhere.path(), "certified.pem"), file(elsewhere.path(), "certified.key"));

        let careful = "careful:p%2540%20%C3%BC"; // Whose password holds what looks like an encoded character.
        let refused = Some(Code::DatabaseUnavailable);
        let by_the_server = Some(Code::ConfigInvalid);
        for (who, host, mode, files, expected) in [
            (careful, "localhost", "verify-full", &root, None),
            (careful, "127.0.0.1", "verify-full", &root, refused), // Another name than the certificate's.
            (careful, "127.0.0.1", "verify-ca", &root, None),
            (careful, "localhost", "verify-ca", &other_root, refused),
            (careful, "localhost", "verify-full", &other_root, refused),
            (careful, "127.0.0.1", "require", &String::new(), None),
            (careful, "127.0.0.1", "prefer", &String::new(), None),
            (careful, "127.0.0.1", "disable", &String::new(), by_the_server),
            ("careful:wrong", "localhost", "verify-full", &root, by_the_server),
            ("certified", "localhost", "verify-full", &known, None),
            ("certified", "localhost", "verify-full", &root, by_the_server),
            ("certified", "localhost", "verify-full", &unknown, refused),
        ] {
            let fared = fares(&cluster, &database, who, host, &format!("sslmode={mode}&{files}")).await;
            assert_eq!(fared, expected, "{who} {host} {mode} {files}");
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
