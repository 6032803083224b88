//! An authority on a real port of the loopback, and applicants.

use chipbound_authority::authority::Authority;
use chipbound_authority::command::new_voucher;
use chipbound_authority::config::{Config, FILE, Span};
use chipbound_authority::store::Kind;
use chipbound_authority::{http, installation};
use chipbound_host::{FileKey, now, signing_request};
use chipbound_sealing::{SealingKeyPair, open_possession};
use chipbound_transport::enrolment::{Application, Enrolled, enroll, renew};
use chipbound_wire::certificate::Role;
use chipbound_wire::documents::Wrap;
use chipbound_wire::enrolment::Voucher;
use chipbound_wire::signature::Sign;
use chipbound_wire::suite::{Class, Kem};
use chipbound_wire::{Result, SystemRandom};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A running authority; the folder goes when it is dropped.
pub(crate) struct Running {
    pub(crate) url: String,
    pub(crate) authority: Arc<Authority>,
    folder: TempDir,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<()>>,
}

impl Running {
    /// A new authority.
    pub(crate) async fn new() -> Self {
        Self::with(|template| template).await
    }

    /// A new authority whose configuration was changed before it started.
    pub(crate) async fn with(change: impl FnOnce(String) -> String) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("authority");
        let listen = "127.0.0.1:0".parse().expect("an address");
        installation::create(&path, listen, "test", now()).await.expect("an installation");
        let config = path.join(FILE);
        let text = std::fs::read_to_string(&config).expect("the configuration");
        std::fs::write(&config, change(text)).expect("written");
        Self::start(folder).await
    }

    async fn start(folder: TempDir) -> Self {
        let config = Config::load(&folder.path().join("authority").join(FILE)).expect("a configuration");
        let listener = TcpListener::bind(config.listen).await.expect("a port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        let authority = Arc::new(Authority::open(config).await.expect("an authority"));
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(http::run(authority.clone(), listener, async { drop(stopped.await) }));
        Self { url, authority, folder, stop, served }
    }

    /// Stops it and starts it again on what lies on the disk.
    pub(crate) async fn restart(self) -> Self {
        let Self { authority, folder, stop, served, .. } = self;
        stop.send(()).expect("it runs");
        served.await.expect("no panic").expect("a clean end");
        authority.store().close().await;
        drop(authority);
        Self::start(folder).await
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.authority.config().folder
    }

    /// A voucher, as the verb makes it beside the running authority.
    pub(crate) async fn voucher(&self, kind: Kind) -> Voucher {
        let made = new_voucher(self.authority.config(), kind, None, Span(3600), now()).await;
        made.expect("a voucher").0
    }
}

/// Somebody with keys who wants a certificate.
pub(crate) struct Applicant {
    pub(crate) key: Arc<FileKey>,
    pub(crate) sealing: Vec<SealingKeyPair>,
    pub(crate) role: Role,
}

impl Applicant {
    pub(crate) fn new(role: Role) -> Self {
        let kems: &[Kem] = if role == Role::Processor { Kem::ALL } else { &[] };
        let sealing = kems.iter().map(|k| SealingKeyPair::generate(*k, &mut SystemRandom)).collect();
        Self { key: Arc::new(FileKey::generate().expect("a key").0), sealing, role }
    }

    pub(crate) fn application(&self) -> Application {
        let key: Arc<dyn Sign> = self.key.clone();
        Application {
            role: self.role,
            class: (self.role == Role::Processor).then_some(Class::Software),
            request: signing_request(key).expect("a request"),
            sealing_keys: self.sealing.iter().map(SealingKeyPair::sealing_key).collect(),
        }
    }

    pub(crate) fn answer(&self, wrap: &Wrap, session: &[u8; 16]) -> Result<[u8; 32]> {
        let pair = self.sealing.iter().find(|s| s.kem() == wrap.kem).expect("one of our keys was challenged");
        open_possession(pair, session, wrap)
    }

    pub(crate) async fn enroll(&self, at: &Running, voucher: &Voucher) -> Result<Enrolled> {
        enroll(&at.url, voucher, &self.application(), |w, s| self.answer(w, s), now()).await
    }

    pub(crate) async fn renew(&self, at: &Running, old: &Enrolled) -> Result<Enrolled> {
        renew(&at.url, &old.root, &old.chain, &*self.key, &self.application(), |w, s| self.answer(w, s), now()).await
    }
}
