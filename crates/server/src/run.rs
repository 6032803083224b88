//! Runs the daemon.

use crate::api;
use crate::blobs::{Blobs, Entered};
use crate::config::{Config, TlsFiles};
use crate::init::TLS_KEY;
use crate::keys::{ServerKeys, SharedKeys, key_file_context};
use crate::line::serve_line;
use crate::rotation::in_use;
use crate::server::{Clock, Parts, Server};
use crate::standing::{Standing, load_trust};
use crate::storage::{Books, Location};
use chipbound_host::files::{read, read_private};
use chipbound_host::process::ServiceManager;
use chipbound_host::{Kek, now};
use chipbound_session::tls::SharedTrust;
use chipbound_transport::tls::ALPN_HTTP1;
use chipbound_transport::{serve, server_config};
use chipbound_wire::{Code, Refusal, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, timeout};
use zeroize::Zeroizing;

/// How often orders that ran out are looked for.
const EXPIRY: Duration = Duration::from_secs(5);
/// How long deliveries may go on after the shutdown began.
const GRACE: Duration = Duration::from_secs(10);
/// Far above any real chain or key in PEM.
const MAX_PEM: usize = 256 * 1024;

/// Runs the server of this configuration until SIGTERM or SIGINT. Prints `ready https://ADDRESS`, and ` line ADDRESS` where there
/// is one, once it serves.
pub async fn run(config: Config) -> Result<()> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| Refusal::io("cannot wait for SIGTERM", e))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| Refusal::io("cannot wait for SIGINT", e))?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    serve_until(config, shutdown, |addresses| {
        let line = addresses.line.map(|line| format!(" line {line}")).unwrap_or_default();
        ServiceManager::find()?.ready(&format!("https://{}{line}", addresses.first_path))
    })
    .await
}

/// Where a server listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The first path.
    pub first_path: SocketAddr,
    /// The second path on a line of its own.
    pub line: Option<SocketAddr>,
}

/// Serves until `shutdown` resolves; calls `ready` once the listeners are there.
pub async fn serve_until(config: Config, shutdown: impl Future<Output = ()>, ready: impl FnOnce(Addresses) -> Result<()>) -> Result<()> {
    let _in_use = in_use(&config.keys())?;
    let (server, standing, _entered) = open(&config).await?;
    let repository = server.repository.clone();
    let tls = match &config.tls {
        Some(files) => public_tls(&config.folder, files)?,
        None => own_tls(&config.folder, &config.keys(), &server.kek)?,
    };
    let (first_path, address) = bind(config.listen).await?;
    let line = match config.line {
        Some(line) => Some(bind(line).await?),
        None => None,
    };
    if let Some((_, line)) = &line {
        server.set_line(config.line_address.clone().unwrap_or_else(|| line.to_string()));
    }
    ready(Addresses { first_path: address, line: line.as_ref().map(|l| l.1) })?;

    let mut tasks = tokio::task::JoinSet::new();
    if let Some((listener, _)) = line {
        tasks.spawn(serve_line(server.clone(), listener));
    }
    tasks.spawn(keep_standing(standing, Duration::from_secs(config.authority.refresh_seconds)));
    tasks.spawn(keep_expiring(server.clone()));
    tasks.spawn(keep_paying(server.clone()));
    serve(first_path, tls, api::router(server.clone()), config.admission.limits(), shutdown).await?;
    tasks.shutdown().await;
    let all = u32::try_from(config.policy.deliveries).unwrap_or(u32::MAX);
    if timeout(GRACE, server.places.all_free(all)).await.is_err() {
        tracing::warn!("deliveries were still under way when the time of grace ended");
    }
    repository.close().await;
    Ok(())
}

/// Opens what is on the disk, and gives back what a killed server left.
async fn open(config: &Config) -> Result<(Arc<Server<Books>>, Standing, Entered)> {
    let kek = Kek::load(&config.kek())?;
    let keys = SharedKeys::new(ServerKeys::load(&config.keys(), &kek)?);
    let trust = SharedTrust::new(load_trust(&config.keys())?);
    let clock: Clock = Arc::new(now);
    let standing = Standing {
        authority: config.authority.url.clone(),
        folder: config.keys(),
        keys: keys.clone(),
        trust: trust.clone(),
        clock: clock.clone(),
    };
    let repository = existing_books(config).await?;
    let blobs = Blobs::open(&config.blobs())?;
    let cards = config.payment.open(&config.folder)?;
    let server = Server::new(Parts { repository, blobs, keys, trust, kek, policy: config.policy.clone(), clock, cards })?;
    let (entered, removed) = server.tidy().await?;
    // Where a card provider is to be asked, whose answers may take their time, `keep_paying` does it at once.
    let recovered = if config.payment.cards.is_none() { server.recover().await? } else { 0 };
    let expired = server.expire().await?;
    tracing::info!(removed, recovered, expired, "opened");
    Ok((server, standing, entered))
}

/// The books of a server that `init` made. A file of books that is not there is [`Code::Database`]: new ones in its place would know
/// nobody.
pub(crate) async fn existing_books(config: &Config) -> Result<Books> {
    let location = config.database()?;
    if let Location::File(path) = &location
        && !path.exists()
    {
        let detail = format!("there is no database {}: `init` made it; bring it back, or restore a backup", path.display());
        return Err(Refusal::new(Code::Database, detail));
    }
    Books::open(&location).await
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let failed = |e| Refusal::io(format_args!("cannot listen on {address}"), e);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

async fn keep_standing(standing: Standing, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        standing.keep().await;
    }
}

async fn keep_expiring(server: Arc<Server<Books>>) {
    let mut ticks = interval(EXPIRY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match server.expire().await {
            Ok(0) => {}
            Ok(orders) => tracing::info!(orders, "orders ran out; their holds were given back"),
            Err(refusal) => tracing::error!(%refusal, "orders that ran out could not be looked for"),
        }
    }
}

/// Asks the card provider about payments that nobody comes back for; the first time at once.
async fn keep_paying(server: Arc<Server<Books>>) {
    let mut ticks = interval(EXPIRY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(refusal) = server.recover().await {
            tracing::error!(%refusal, "orders that wait for their capture could not be looked for");
        }
        match server.look_after_payments().await {
            Ok(0) => {}
            Ok(payments) => tracing::info!(payments, "card payments came to an end"),
            Err(refusal) => tracing::error!(%refusal, "card payments could not be looked after"),
        }
    }
}

/// The first path's TLS by certificates of a public authority.
fn public_tls(folder: &Path, files: &TlsFiles) -> Result<Arc<rustls::ServerConfig>> {
    let key = Zeroizing::new(read_private(&folder.join(&files.key), MAX_PEM)?);
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|e| Refusal::new(Code::ConfigInvalid, format!("{} holds no private key in PEM", files.key.display())).because(e))?;
    server_config(certificates(&folder.join(&files.certificate))?, key, &[ALPN_HTTP1])
}

/// The first path's TLS by the certificate that `init` made.
pub(crate) fn own_tls(folder: &Path, keys: &Path, kek: &Kek) -> Result<Arc<rustls::ServerConfig>> {
    let key = kek.load_sealed(&keys.join(TLS_KEY), &key_file_context(TLS_KEY))?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.to_vec()));
    server_config(certificates(&folder.join("tls.pem"))?, key, &[ALPN_HTTP1])
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read(path, MAX_PEM)?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<std::result::Result<Vec<_>, _>>();
    chain.map_err(|e| Refusal::new(Code::ConfigInvalid, format!("{} is not a chain in PEM", path.display())).because(e))
}
