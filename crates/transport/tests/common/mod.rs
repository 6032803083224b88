//! A listener on loopback with certificates made for the test.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its own part; all of it is test")]

use axum::Router;
use chipbound_transport::{Client, ServeLimits, ServerTrust, serve, server_config, tls::ALPN_HTTP1};
use chipbound_wire::Result;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A root and a leaf under it, for 127.0.0.1.
pub(crate) struct Site {
    pub(crate) root: CertificateDer<'static>,
    pub(crate) leaf: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut root = CertificateParams::new(Vec::new()).unwrap();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.distinguished_name.push(rcgen::DnType::CommonName, "test root");
        let root_key = KeyPair::generate().unwrap();
        let root_der = root.self_signed(&root_key).unwrap().der().clone();
        let mut leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        change(&mut leaf);
        let key = KeyPair::generate().unwrap();
        let leaf = leaf.signed_by(&key, &Issuer::from_params(&root, &root_key)).unwrap().der().clone();
        Self { root: root_der, leaf, key: key.serialize_der() }
    }

    pub(crate) fn tls(&self) -> std::sync::Arc<rustls::ServerConfig> {
        let key = PrivateKeyDer::try_from(self.key.clone()).unwrap();
        server_config(vec![self.leaf.clone(), self.root.clone()], key, &[ALPN_HTTP1]).unwrap()
    }

    pub(crate) async fn start(&self, app: Router, limits: ServeLimits) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(listener, self.tls(), app, limits, async { drop(stopped.await) }));
        Running { addr, trust: ServerTrust::Root(self.root.clone()), stop: Some(stop), task }
    }
}

/// A listener that runs; dropping it stops it.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) trust: ServerTrust,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<()>>,
}

impl Running {
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.addr)
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.url(), self.trust.clone()).unwrap()
    }

    /// Asks it to stop; the handle resolves when it did.
    pub(crate) fn stop(mut self) -> JoinHandle<Result<()>> {
        drop(self.stop.take());
        self.task
    }
}
