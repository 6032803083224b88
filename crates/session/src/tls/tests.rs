//! What a peer of another make could try in the handshake.

use super::*;
use chipbound_testkit::{Holder, Pki};
use rustls::client::ClientSessionMemoryCache;
use rustls::{Connection, HandshakeKind};
use std::time::Duration;

const NOW: Time = Time(1_800_000_000);

#[derive(Debug)]
struct Standing;

impl TimeProvider for Standing {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(NOW.0)))
    }
}

fn ends() -> (ProcessorConfig, ServerConfig) {
    let pki = Pki::new(NOW);
    let trust = SharedTrust::new(pki.trust());
    let identity = |holder: &Holder| Identity { key: Arc::new(holder.key.clone()), chain: holder.chain.clone() };
    let processor = identity(&pki.holder(Role::Processor));
    let server = identity(&pki.holder(Role::ServerSecondPath));
    let processor = processor_config(&processor, trust.clone(), Arc::new(Standing)).expect("its own key");
    (processor, server_config(&server, trust, Arc::new(Standing)).expect("its own key"))
}

/// Moves bytes between the two until neither has more, or one fails; what each end came to.
fn shake(client: &mut Connection, server: &mut Connection) -> [std::result::Result<(), rustls::Error>; 2] {
    fn step(from: &mut Connection, to: &mut Connection) -> (bool, std::result::Result<(), rustls::Error>) {
        let mut bytes = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut bytes).expect("memory");
        }
        let (mut rest, moved) = (bytes.as_slice(), !bytes.is_empty());
        while !rest.is_empty() {
            to.read_tls(&mut rest).expect("memory");
            if let Err(error) = to.process_new_packets() {
                return (moved, Err(error));
            }
        }
        (moved, Ok(()))
    }
    let mut outcome = [Ok(()), Ok(())];
    loop {
        let (forth, at_server) = step(client, server);
        let (back, at_client) = step(server, client);
        outcome = match outcome {
            [Ok(()), Ok(())] => [at_client, at_server],
            [Ok(()), failed] => [at_client, failed],
            [failed, Ok(())] => [failed, at_server],
            both => both,
        };
        if !forth && !back {
            return outcome;
        }
    }
}

fn client(config: &Arc<ClientConfig>) -> Connection {
    let name = ServerName::try_from("second-path.invalid").expect("well formed");
    ClientConnection::new(Arc::clone(config), name).expect("a client").into()
}

fn server(config: &ServerConfig) -> (Connection, Arc<Verdict>) {
    let (connection, verdict) = config.connection().expect("a server");
    (connection.into(), verdict)
}

/// The processor's own configuration, bent.
fn bent(processor: &ProcessorConfig, bend: impl FnOnce(&mut ClientConfig)) -> Arc<ClientConfig> {
    let (mut config, _) = processor.config().expect("a configuration");
    bend(&mut config);
    Arc::new(config)
}

#[test]
fn the_key_agreement_is_post_quantum_and_the_protocol_ours() {
    let (processor, accepting) = ends();
    let mut client = client(&bent(&processor, |_| {}));
    let (mut server, verdict) = server(&accepting);
    assert_eq!(shake(&mut client, &mut server), [Ok(()), Ok(())]);
    for end in [&client, &server] {
        let group = end.negotiated_key_exchange_group().expect("agreed").name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        assert_eq!(end.alpn_protocol(), Some(ALPN));
        assert_eq!(end.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
    assert_eq!(verdict.peer().expect("certified").role(), Role::Processor);
}

#[test]
fn no_session_is_resumed_and_no_early_data_taken_whatever_the_client_wants() {
    let (processor, accepting) = ends();
    let eager = bent(&processor, |config| {
        config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(8)));
        config.enable_early_data = true;
    });
    for _ in 0..3 {
        let mut client = client(&eager);
        let Connection::Client(inner) = &mut client else { unreachable!("a client") };
        assert!(inner.early_data().is_none(), "nothing to resume, so nothing to send early");
        let (mut server, verdict) = server(&accepting);
        assert_eq!(shake(&mut client, &mut server), [Ok(()), Ok(())]);
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        let Connection::Client(inner) = &client else { unreachable!("a client") };
        assert_eq!(inner.tls13_tickets_received(), 0);
        verdict.peer().expect("the certificate was looked at in this very handshake");
    }
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let (processor, accepting) = ends();
    let common = &processor.0;
    let mut config = ClientConfig::builder_with_details(Arc::clone(&common.provider), Arc::clone(&common.clock))
        .with_protocol_versions(&[&TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PeerVerifier::new(common, Role::ServerSecondPath)))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let mut client = client(&Arc::new(config));
    let (mut server, verdict) = server(&accepting);
    let [at_client, at_server] = shake(&mut client, &mut server);
    assert_eq!(verdict.explain(at_server.expect_err("no certificate")).code, Code::CertificateProfile);
    assert_eq!(alert::explain(at_client.expect_err("told so")).code, Code::CertificateProfile);
}

#[test]
fn another_protocol_is_refused() {
    let (processor, accepting) = ends();
    let mut client = client(&bent(&processor, |config| config.alpn_protocols = vec![b"h2".to_vec()]));
    let (mut server, verdict) = server(&accepting);
    let [at_client, at_server] = shake(&mut client, &mut server);
    assert_eq!(verdict.explain(at_server.expect_err("h2")).code, Code::NotSupported);
    assert_eq!(alert::explain(at_client.expect_err("told so")).code, Code::NotSupported);
}

#[test]
fn key_agreement_that_is_not_post_quantum_is_refused() {
    let (processor, accepting) = ends();
    let mut classical = processor.clone();
    classical.0.provider = Arc::new(CryptoProvider { kx_groups: vec![kx_group::X25519], ..default_provider() });
    let mut client = client(&bent(&classical, |_| {}));
    let (mut server, verdict) = server(&accepting);
    let [at_client, at_server] = shake(&mut client, &mut server);
    assert_eq!(verdict.explain(at_server.expect_err("X25519 alone")).code, Code::NothingInCommon);
    assert_eq!(alert::explain(at_client.expect_err("told so")).code, Code::NothingInCommon);
}

#[test]
fn a_key_store_that_fails_to_sign_is_named_by_its_own_refusal() {
    struct Broken(Holder);
    impl Sign for Broken {
        fn spki(&self) -> &[u8] {
            self.0.key.spki()
        }
        fn sign(&self, _message: &[u8]) -> Result<[u8; 64]> {
            Err(Refusal::new(Code::Unsealable, "the key file was changed"))
        }
    }
    let pki = Pki::new(NOW);
    let (processor, _) = ends();
    let holder = pki.holder(Role::ServerSecondPath);
    let identity = Identity { chain: holder.chain.clone(), key: Arc::new(Broken(holder)) };
    let accepting = server_config(&identity, SharedTrust::new(pki.trust()), Arc::new(Standing)).expect("its own key");
    let mut client = client(&bent(&processor, |_| {}));
    let (mut server, verdict) = server(&accepting);
    let [_, at_server] = shake(&mut client, &mut server);
    assert_eq!(verdict.explain(at_server.expect_err("no signature")).code, Code::Unsealable);
}

#[test]
fn every_certificate_code_has_an_alert_of_its_own() {
    let codes = [
        Code::CertificateProfile,
        Code::CertificateRole,
        Code::CertificateRevoked,
        Code::CertificateExpired,
        Code::CertificateNotYetValid,
        Code::CertificateForeign,
        Code::RevocationListStale,
    ];
    for code in codes {
        let sent = rustls::AlertDescription::from(alert::certificate_error(code));
        assert_eq!(alert::explain(rustls::Error::AlertReceived(sent)).code, code);
    }
}
