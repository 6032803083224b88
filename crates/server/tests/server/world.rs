//! One server in this process, its public key infrastructure, and what its users do.

use crate::processor::{Delivered, Processor};
use chipbound_auditor::Report;
use chipbound_host::Kek;
use chipbound_server::config::Policy;
use chipbound_server::keys::{ServerKeys, SharedKeys};
use chipbound_server::log_key::LogSigner;
use chipbound_server::payment::CardPayments;
use chipbound_server::storage::{Accounts, Books, Journal, Location, fresh_key};
use chipbound_server::{Parts, Server, accounts, api, blobs::Blobs, line};
use chipbound_session::tls::{Identity, SharedTrust};
use chipbound_testkit::postgres::Cluster;
use chipbound_testkit::{Holder, Pki, Wanted, documents};
use chipbound_transport::tls::ALPN_HTTP1;
use chipbound_transport::{Client, ServeLimits, ServerTrust, Timeouts, serve, server_config};
use chipbound_wire::api::*;
use chipbound_wire::bounded::Text;
use chipbound_wire::certificate::Role;
use chipbound_wire::documents::Manifest;
use chipbound_wire::suite::{Format, KeyMode, Profile};
use chipbound_wire::tlog::origin_of;
use chipbound_wire::{Amount, Code, Digest, KeyId, OrderId, ProgramId, Result, Time};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};

pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) pki: Pki,
    pub(crate) server: Arc<Server<Books>>,
    pub(crate) repository: Books,
    pub(crate) keys: SharedKeys,
    pub(crate) trust: SharedTrust,
    pub(crate) client: Arc<Client>,
    pub(crate) line: SocketAddr,
    pub(crate) vendor: Holder,
    clock: Arc<AtomicU64>,
    _stop: oneshot::Sender<()>,
    _serving: JoinHandle<Result<()>>,
    _line: JoinHandle<()>,
}

pub(crate) fn eur(minor: u64) -> Amount {
    Amount { minor, currency: "EUR".parse().unwrap() }
}

pub(crate) fn code<T>(outcome: Result<T>) -> Code {
    match outcome {
        Ok(_) => panic!("it was not refused"),
        Err(refusal) => refusal.code,
    }
}

/// Bytes that no cipher would take for zeros.
pub(crate) fn sample(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i * 31 % 251) as u8).collect()
}

/// A server's key of `role`; certificates join the keys of one server by their subject.
pub(crate) fn server_identity(pki: &Pki, role: Role, subject: &str) -> Identity {
    let holder = pki.holder_of(&Wanted { subject: subject.to_owned(), ..Wanted::role(role) });
    Identity { key: Arc::new(holder.key), chain: holder.chain }
}

pub(crate) fn server_keys(pki: &Pki, subject: &str) -> ServerKeys {
    let identity = |role| server_identity(pki, role, subject);
    let receipt = identity(Role::ServerReceipt);
    let (log, _) = LogSigner::generate(&receipt, &origin_of(pki.root(), subject), chipbound_host::now()).unwrap();
    ServerKeys { second_path: identity(Role::ServerSecondPath), statement: identity(Role::ServerStatement), receipt, log: Arc::new(log) }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Policy::default()).await
    }

    /// A server with the customers ann (10 EUR) and bob (10 EUR), the vendors vera and vito, the operator olga and
    /// the auditor otto.
    pub(crate) async fn with(policy: Policy) -> Self {
        Self::at(None, policy, None).await
    }

    /// The same with its books on a PostgreSQL server.
    pub(crate) async fn on_postgres() -> Self {
        Self::on_postgres_with(Policy::default()).await
    }

    pub(crate) async fn on_postgres_with(policy: Policy) -> Self {
        Self::on(Cluster::shared(), policy).await
    }

    pub(crate) async fn on(cluster: &Cluster, policy: Policy) -> Self {
        let url = cluster.url(&cluster.create_database()).parse().unwrap();
        Self::at(Some(Location::Postgres(Box::new(url), 4)), policy, None).await
    }

    /// A server that takes the cards of this provider.
    pub(crate) async fn with_cards(cards: CardPayments) -> Self {
        Self::at(None, Policy::default(), Some(cards)).await
    }

    async fn at(location: Option<Location>, policy: Policy, cards: Option<CardPayments>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(AtomicU64::new(chipbound_host::now().0));
        let pki = Pki::new(Time(clock.load(Ordering::Relaxed)));
        let trust = SharedTrust::new(pki.trust().with_revocations(&pki.revocations(&[])).unwrap());
        let keys = SharedKeys::new(server_keys(&pki, "shop"));
        let location = location.unwrap_or_else(|| Location::File(folder.path().join("server.db")));
        let repository = Books::open(&location).await.unwrap();
        for (user, role) in [
            ("ann", AccountRole::Customer),
            ("bob", AccountRole::Customer),
            ("vera", AccountRole::Vendor),
            ("vito", AccountRole::Vendor),
            ("olga", AccountRole::Operator),
            ("otto", AccountRole::Auditor),
        ] {
            repository.add_account(&accounts::new_account(user, role, &password(user), Time(0)).unwrap()).await.unwrap();
            if role == AccountRole::Customer {
                repository.deposit(user, eur(1000), "opening", Time(0)).await.unwrap();
            }
        }
        let ticking = clock.clone();
        let server = Server::new(Parts {
            repository: repository.clone(),
            blobs: Blobs::open(&folder.path().join("blobs")).unwrap(),
            keys: keys.clone(),
            trust: trust.clone(),
            kek: Kek::create(&folder.path().join("kek")).unwrap(),
            policy,
            clock: Arc::new(move || Time(ticking.load(Ordering::Relaxed))),
            cards,
        })
        .unwrap();

        let (tls, root) = private_tls();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async { drop(stopped.await) };
        let serving = tokio::spawn(serve(listener, tls, api::router(server.clone()), ServeLimits::default(), stopped));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let line = listener.local_addr().unwrap();
        server.set_line(line.to_string());
        let line_task = tokio::spawn(line::serve_line(server.clone(), listener));
        let client = Arc::new(Client::new(&format!("https://{address}"), root).unwrap());
        let vendor = pki.holder(Role::Vendor);
        Self { folder, pki, server, repository, keys, trust, client, line, vendor, clock, _stop: stop, _serving: serving, _line: line_task }
    }

    pub(crate) fn now(&self) -> Time {
        Time(self.clock.load(Ordering::Relaxed))
    }

    /// Lets time pass; the authority keeps its revocation list fresh meanwhile.
    pub(crate) fn pass(&self, seconds: u64) {
        self.clock.fetch_add(seconds, Ordering::Relaxed);
        let fresh = self.pki.revocations_until(&[], self.now().after(3600));
        self.trust.replace(self.pki.trust().with_revocations(&fresh).unwrap());
    }

    /// The journal as it stands, line by line.
    pub(crate) async fn journal(&self) -> Vec<u8> {
        self.repository.journal(self.now(), Vec::new()).await.unwrap()
    }

    /// The independent auditor has nothing to say against the books.
    pub(crate) async fn audit(&self) -> Report {
        let report = chipbound_auditor::audit(self.journal().await.as_slice(), &self.pki.trust()).unwrap();
        assert!(report.is_clean(), "{}", report.text());
        report
    }

    pub(crate) async fn log_in(&self, user: &str) -> User<'_> {
        let request = LogIn { user: user.to_owned(), password: password(user) };
        let session: Session = self.client.post_json("/v1/sessions", None, &[], &request).await.unwrap();
        User { world: self, token: session.token }
    }

    /// A manifest of the vendor's program `name` over `plain`, as data in both key modes.
    pub(crate) fn manifest(&self, name: &str, version: &str, sequence: u64, plain: &[u8]) -> Manifest {
        Manifest {
            program: ProgramId::new(&self.vendor.id(), name).unwrap(),
            version: Text::new(version).unwrap(),
            sequence,
            ..documents::manifest(&self.vendor.id(), plain)
        }
    }

    /// Publishes `plain` as data, version 1.0 of `name`, for 2.50 EUR.
    pub(crate) async fn publish(&self, name: &str, plain: &[u8]) -> Published {
        let vera = self.log_in("vera").await;
        vera.publish(&self.vendor.sign(&self.manifest(name, "1.0", 1, plain)), eur(250), plain).await.unwrap()
    }

    /// Publishes an ELF program in the format of its own.
    pub(crate) async fn publish_elf(&self, name: &str, plain: &[u8]) -> Published {
        let vera = self.log_in("vera").await;
        let manifest = Manifest { format: Format::ElfX8664, profile: Profile::Code, ..self.manifest(name, "1.0", 1, plain) };
        vera.publish(&self.vendor.sign(&manifest), eur(250), plain).await.unwrap()
    }
}

pub(crate) fn password(user: &str) -> String {
    format!("correct horse {user}")
}

fn private_tls() -> (Arc<rustls::ServerConfig>, ServerTrust) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let der = certificate.der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    (server_config(vec![der.clone()], key, &[ALPN_HTTP1]).unwrap(), ServerTrust::Root(der))
}

/// Somebody who is logged in.
pub(crate) struct User<'w> {
    pub(crate) world: &'w World,
    pub(crate) token: String,
}

impl User<'_> {
    pub(crate) async fn post<T: serde::de::DeserializeOwned>(&self, path: &str, body: &impl serde::Serialize) -> Result<T> {
        self.world.client.post_json(path, Some(&self.token), &[], body).await
    }

    pub(crate) async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.world.client.get_json(path, Some(&self.token)).await
    }

    pub(crate) async fn publish(&self, manifest: &[u8], price: Amount, plain: &[u8]) -> Result<Published> {
        let new = NewRelease { manifest: Base64(manifest.to_vec()), price };
        let upload: Upload = self.post("/v1/releases", &new).await?;
        self.upload(&upload.upload, plain).await
    }

    pub(crate) async fn upload(&self, upload: &str, plain: &[u8]) -> Result<Published> {
        let source = std::io::Cursor::new(plain.to_vec());
        let path = format!("/v1/releases/{upload}");
        self.world.client.put_stream(&path, Some(&self.token), &[], plain.len() as u64, source).await
    }

    pub(crate) async fn money(&self) -> (u64, u64) {
        let account: Account = self.get("/v1/account").await.unwrap();
        let balance = account.balances[0];
        (balance.available.minor, balance.held.minor)
    }

    pub(crate) async fn place(&self, key: &str, order: &NewOrder) -> Result<Order> {
        self.world.client.post_json("/v1/orders", Some(&self.token), &[(IDEMPOTENCY_HEADER, key)], order).await
    }

    pub(crate) async fn agree(&self, order: &Order) -> Result<Order> {
        let agreement = Agreement { confirmation: Digest::of(&order.confirmation.0), payment: Payment::Prepaid };
        self.post(&format!("/v1/orders/{}/agreement", order.order), &agreement).await
    }

    /// Orders and agrees.
    pub(crate) async fn buy(&self, program: &str, processor: KeyId, key_mode: KeyMode) -> Order {
        let new = NewOrder { program: program.to_owned(), version: None, processor, key_mode: Some(key_mode), again: true };
        let key = format!("{program} {processor} {key_mode} {}", rand_text());
        let order = self.place(&key.replace(' ', "-"), &new).await.unwrap();
        self.agree(&order).await.unwrap()
    }

    pub(crate) async fn ticket(&self, order: OrderId) -> Result<Ticket> {
        self.post(&format!("/v1/orders/{order}/tickets"), &()).await
    }

    /// A delivery through the tunnel.
    pub(crate) async fn receive(&self, order: &Order, processor: &Arc<Processor>) -> Result<Delivered> {
        let ticket = self.ticket(order.order).await?.ticket;
        self.receive_with(ticket, order, processor).await
    }

    pub(crate) async fn receive_with(&self, ticket: Digest, order: &Order, processor: &Arc<Processor>) -> Result<Delivered> {
        let ticket = ticket.to_string();
        let raw = self.world.client.upgrade("/v1/second-path", Some(&self.token), &[(TICKET_HEADER, &ticket)]).await?;
        let mut stream = raw.into_blocking(Timeouts::default())?;
        let (processor, confirmation, now) = (processor.clone(), order.confirmation.0.clone(), self.world.now());
        spawn_blocking(move || {
            let received = processor.receive(&mut stream, &confirmation, now)?;
            stream.finish()?;
            Ok(received)
        })
        .await
        .unwrap()
    }

    /// A delivery on the line of its own.
    pub(crate) async fn receive_on_line(&self, order: &Order, processor: &Arc<Processor>) -> Result<Delivered> {
        let ticket = self.ticket(order.order).await?;
        let address: SocketAddr = ticket.line.unwrap().parse().unwrap();
        let (processor, confirmation, now) = (processor.clone(), order.confirmation.0.clone(), self.world.now());
        spawn_blocking(move || processor.receive(dial(address, &ticket.ticket), &confirmation, now)).await.unwrap()
    }

    pub(crate) async fn acknowledge(&self, order: OrderId, acknowledgement: &[u8]) -> Result<Settled> {
        let body = Acknowledge { acknowledgement: Base64(acknowledgement.to_vec()) };
        self.post(&format!("/v1/orders/{order}/acknowledgement"), &body).await
    }

    pub(crate) async fn redownload(&self, receipt: &[u8]) -> Result<Order> {
        self.post("/v1/redownloads", &Redownload { receipt: Base64(receipt.to_vec()) }).await
    }
}

/// Connects to the line and shows the ticket.
pub(crate) fn dial(address: SocketAddr, ticket: &Digest) -> TcpStream {
    let mut tcp = TcpStream::connect(address).unwrap();
    tcp.write_all(LINE_MAGIC).unwrap();
    tcp.write_all(&ticket.0).unwrap();
    tcp
}

/// Everything until the other side closes.
pub(crate) fn read_out(mut stream: impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all); // A reset is an end as well.
    all
}

fn rand_text() -> String {
    chipbound_wire::Hex(&chipbound_wire::random::fresh::<8>(&mut chipbound_wire::SystemRandom)).to_string()
}

impl World {
    /// Deliveries that could begin now.
    pub(crate) fn free_places(&self) -> usize {
        self.server.free_places()
    }

    pub(crate) async fn repository_deposit(&self, user: &str, minor: u64) {
        self.repository.deposit(user, eur(minor), &fresh_key(), self.now()).await.unwrap();
    }
}
