//! The daemon as its operator runs it: `init` with a real authority's voucher, `account`, `run`, a kill, a restart.

use crate::processor::Processor;
use crate::world::{code, eur, sample};
use chipbound_authority::authority::Authority;
use chipbound_authority::command::new_voucher;
use chipbound_authority::config::{Config as AuthorityConfig, Span};
use chipbound_authority::store::{Kind, Target};
use chipbound_host::{now, signing_request};
use chipbound_sealing::{SealingKeyPair, open_possession};
use chipbound_server::config::Config;
use chipbound_server::init::{Wishes, init};
use chipbound_server::keys::{ROLES, ServerKeys, SharedKeys};
use chipbound_server::standing::{Standing, load_trust};
use chipbound_session::tls::SharedTrust;
use chipbound_testkit::{Holder, MemoryKey, documents};
use chipbound_transport::enrolment::{Application, enroll};
use chipbound_transport::{Client, ServerTrust, Timeouts};
use chipbound_wire::api::*;
use chipbound_wire::certificate::{Role, Trust};
use chipbound_wire::enrolment::Voucher;
use chipbound_wire::suite::{Class, Kem, KeyMode};
use chipbound_wire::{Code, Digest, KeyId, Result, SystemRandom, Time};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, spawn_blocking};

/// An authority in this process.
struct RealAuthority {
    config: AuthorityConfig,
    authority: Arc<Authority>,
    url: String,
    _serving: JoinHandle<Result<()>>,
}

impl RealAuthority {
    /// Server certificates last an hour, its revocation lists a day.
    async fn start(folder: &Path) -> Self {
        let listen = "127.0.0.1:0".parse().unwrap();
        let made = chipbound_authority::installation::create(folder, listen, "test", now()).await.unwrap();
        let text = std::fs::read_to_string(&made.paths.config).unwrap();
        std::fs::write(&made.paths.config, text.replace("server = \"90d\"", "server = \"1h\"")).unwrap();
        let config = AuthorityConfig::load(&made.paths.config).unwrap();
        let authority = Arc::new(Authority::open(config.clone()).await.unwrap());
        let listener = TcpListener::bind(listen).await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(chipbound_authority::http::run(authority.clone(), listener, std::future::pending()));
        Self { config, authority, url, _serving: serving }
    }

    async fn voucher(&self, kind: Kind) -> Voucher {
        new_voucher(&self.config, kind, None, Span(3600), now()).await.unwrap().0
    }

    /// Enrolls a key of that role, as a vendor's command or a processor's daemon would.
    async fn enroll(&self, role: Role, pairs: &[SealingKeyPair]) -> Holder {
        let key = MemoryKey::generate();
        let kind = if role == Role::Vendor { Kind::Vendor } else { Kind::Processor };
        let application = Application {
            role,
            class: (role == Role::Processor).then_some(Class::Software),
            request: signing_request(Arc::new(key.clone())).unwrap(),
            sealing_keys: pairs.iter().map(SealingKeyPair::sealing_key).collect(),
        };
        let answer = |wrap: &_, session: &_| open_possession(&pairs[0], session, wrap);
        let enrolled = enroll(&self.url, &self.voucher(kind).await, &application, answer, now()).await.unwrap();
        Holder { key, chain: enrolled.chain, serial: enrolled.certified.serial().to_vec() }
    }
}

/// The daemon as a child process, killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    first_path: String,
    pub(crate) line: String,
}

impl Daemon {
    /// Starts the server of that configuration.
    pub(crate) async fn start_with(config: &Path, log: &Path) -> Self {
        let config = config.to_owned();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        spawn_blocking(move || Self::start(&config, &log)).await.unwrap()
    }

    fn start(config: &Path, log: &std::fs::File) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_chipbound-server"))
            .args(["run", "--config"])
            .arg(config)
            .env("RUST_LOG", "trace")
            .stdout(Stdio::piped())
            .stderr(log.try_clone().unwrap())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let words: Vec<_> = ready.split_whitespace().map(str::to_owned).collect();
        let ["ready", first_path, "line", line] = [&words[0], &words[1], &words[2], &words[3]].map(String::as_str) else {
            panic!("{ready:?}");
        };
        Self { child, first_path: first_path.to_owned(), line: line.to_owned() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn terminate(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a verb of the operator's; its standard output.
pub(crate) fn operator(arguments: &[&str], input: &str) -> std::result::Result<String, (Option<i32>, String)> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_chipbound-server"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()); // A verb that refuses may not read it.
    let output = child.wait_with_output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err((output.status.code(), String::from_utf8(output.stderr).unwrap())),
    }
}

pub(crate) struct Installation {
    folder: tempfile::TempDir,
    authority: RealAuthority,
    pub(crate) config: PathBuf,
}

impl Installation {
    /// An authority, and a server made by the operator's own verbs, with the accounts ann (20 EUR) and vera.
    pub(crate) async fn new() -> Self {
        Self::new_on(None).await
    }

    /// The same with its books where `database` says, a file if it does not.
    pub(crate) async fn new_on(database: Option<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = RealAuthority::start(&folder.path().join("authority")).await;
        let shop = folder.path().join("shop").to_str().unwrap().to_owned();
        let voucher = authority.voucher(Kind::Server).await.to_text();
        let url = authority.url.clone();
        spawn_blocking(move || {
            let any = "127.0.0.1:0";
            let arguments = ["init", "--dir", &shop, "--authority", &url, "--voucher", "-", "--listen", any, "--line", any];
            let said = operator(&arguments, &voucher).unwrap();
            assert!(said.contains("chipbound server run --config"), "{said}");
            let config = format!("{shop}/server.toml");
            keep_books_in(Path::new(&config), database);
            for (user, role) in [("ann", "customer"), ("vera", "vendor")] {
                let arguments = ["account", "add", "--config", &config, "--user", user, "--role", role];
                operator(&arguments, "correct horse\n").unwrap();
            }
            operator(&["account", "deposit", "--config", &config, "--user", "ann", "--amount", "20 EUR"], "").unwrap();
            let listed = operator(&["account", "list", "--config", &config], "").unwrap();
            assert!(listed.contains("20.00 EUR available, 0.00 EUR held"), "{listed}");
            let text = std::fs::read_to_string(&config).unwrap();
            std::fs::write(&config, text.replace("# refresh_seconds = 30", "refresh_seconds = 1")).unwrap();
        })
        .await
        .unwrap();
        let config = folder.path().join("shop/server.toml");
        Self { folder, authority, config }
    }

    /// Another server of the same authority, without accounts; its configuration.
    pub(crate) async fn second(&self, database: Option<String>) -> PathBuf {
        let any = "127.0.0.1:0".parse().unwrap();
        let folder = self.folder.path().join("second");
        let wishes = Wishes { folder, authority: self.authority.url.clone(), listen: any, line: Some(any), names: Vec::new() };
        let made = init(&wishes, &self.authority.voucher(Kind::Server).await).await.unwrap();
        keep_books_in(&made.config, database);
        made.config
    }

    pub(crate) fn client(&self, daemon: &Daemon) -> Client {
        self.client_of(&self.config, daemon)
    }

    /// A client of the server of that configuration.
    pub(crate) fn client_of(&self, config: &Path, daemon: &Daemon) -> Client {
        let root = std::fs::read(config.with_file_name("tls-root.pem")).unwrap();
        Client::new(&daemon.first_path, ServerTrust::root_from_pem(&root).unwrap()).unwrap()
    }

    /// The daemon's log, everything that any part of it says.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    /// A vendor whom the authority certified.
    pub(crate) async fn vendor(&self) -> Holder {
        self.authority.enroll(Role::Vendor, &[]).await
    }

    /// The root certificate of the authority.
    pub(crate) fn root(&self) -> &[u8] {
        self.authority.authority.root()
    }

    /// A vendor of the authority's publishes `plain` as the program `tool` in vera's name.
    pub(crate) async fn publish(&self, client: &Client, plain: &[u8]) {
        let vera = log_in(client, "vera").await;
        let upload = announce(client, &vera, &self.vendor().await, plain).await;
        let (path, source) = (format!("/v1/releases/{}", upload.upload), std::io::Cursor::new(plain.to_vec()));
        client.put_stream::<Published>(&path, Some(&vera), &[], plain.len() as u64, source).await.unwrap();
    }

    /// A processor that the authority certified.
    pub(crate) async fn processor(&self) -> Arc<Processor> {
        let pairs = vec![SealingKeyPair::generate(Kem::XWing, &mut SystemRandom)];
        let holder = self.authority.enroll(Role::Processor, &pairs).await;
        let mut processor = Processor::of(holder, pairs, Trust::new(self.authority.authority.root()).unwrap());
        processor.capabilities.suites.retain(|s| s.kem == Kem::XWing);
        Arc::new(processor)
    }

    pub(crate) async fn start(&self) -> Daemon {
        Daemon::start_with(&self.config, &self.log()).await
    }
}

fn keep_books_in(config: &Path, database: Option<String>) {
    let Some(url) = database else { return };
    let text = std::fs::read_to_string(config).unwrap();
    std::fs::write(config, text.replace("# url = \"sqlite:server.db\"", &format!("url = \"{url}\""))).unwrap();
}

pub(crate) async fn log_in(client: &Client, user: &str) -> String {
    let request = LogIn { user: user.to_owned(), password: "correct horse".to_owned() };
    client.post_json::<_, Session>("/v1/sessions", None, &[], &request).await.unwrap().token
}

async fn announce(client: &Client, token: &str, vendor: &Holder, plain: &[u8]) -> Upload {
    let manifest = documents::manifest(&vendor.id(), plain);
    let signed = vendor.sign(&manifest);
    client.post_json("/v1/releases", Some(token), &[], &NewRelease { manifest: Base64(signed), price: eur(250) }).await.unwrap()
}

pub(crate) async fn buy(client: &Client, token: &str, processor: KeyId, key_mode: Option<KeyMode>) -> Order {
    let order = place(client, token, processor, key_mode).await;
    buy_by(client, token, &order, Payment::Prepaid).await.unwrap()
}

/// An order that is not agreed to yet.
pub(crate) async fn place(client: &Client, token: &str, processor: KeyId, key_mode: Option<KeyMode>) -> Order {
    let new = NewOrder { program: "tool".to_owned(), version: None, processor, key_mode, again: true };
    let key = Digest(chipbound_wire::random::fresh(&mut SystemRandom)).to_string();
    client.post_json("/v1/orders", Some(token), &[(IDEMPOTENCY_HEADER, &key)], &new).await.unwrap()
}

/// Agrees to an order.
pub(crate) async fn buy_by(client: &Client, token: &str, order: &Order, payment: Payment) -> Result<Order> {
    let agreement = Agreement { confirmation: Digest::of(&order.confirmation.0), payment };
    client.post_json(&format!("/v1/orders/{}/agreement", order.order), Some(token), &[], &agreement).await
}

pub(crate) async fn receive(client: &Client, token: &str, order: &Order, processor: &Arc<Processor>) -> Result<Vec<u8>> {
    let ticket: Ticket = client.post_json(&format!("/v1/orders/{}/tickets", order.order), Some(token), &[], &()).await?;
    let ticket = ticket.ticket.to_string();
    let raw = client.upgrade("/v1/second-path", Some(token), &[(TICKET_HEADER, &ticket)]).await?;
    let mut stream = raw.into_blocking(Timeouts::default())?;
    let (processor, confirmation) = (processor.clone(), order.confirmation.0.clone());
    spawn_blocking(move || {
        let delivered = processor.receive(&mut stream, &confirmation, now())?;
        stream.finish()?;
        Ok(delivered.acknowledgement)
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_made_by_its_verbs_sells_survives_a_kill_and_heeds_a_revocation() {
    let installation = Installation::new().await;
    let authority = &installation.authority;
    let plain = sample(200_000);
    let vendor = installation.vendor().await;
    let daemon = installation.start().await;
    assert_ne!(daemon.line, daemon.first_path);
    let client = installation.client(&daemon);

    // Killed in the middle of a publication: nothing of it is there, and it can be done again.
    let vera = log_in(&client, "vera").await;
    let upload = announce(&client, &vera, &vendor, &plain).await;
    let (source, mut rest) = tokio::io::duplex(64 * 1024);
    let path = format!("/v1/releases/{}", upload.upload);
    let uploading = {
        let (client, path, vera, size) = (installation.client(&daemon), path.clone(), vera.clone(), plain.len() as u64);
        tokio::spawn(async move { client.put_stream::<Published>(&path, Some(&vera), &[], size, source).await.is_err() })
    };
    tokio::io::AsyncWriteExt::write_all(&mut rest, &plain[..150_000]).await.unwrap();
    drop(daemon);
    drop(rest);
    assert!(uploading.await.unwrap(), "the upload broke off");
    let daemon = installation.start().await;
    let client = installation.client(&daemon);
    assert_eq!(std::fs::read_dir(installation.folder.path().join("shop/blobs/plain")).unwrap().count(), 0);
    let source = std::io::Cursor::new(plain.clone());
    client.put_stream::<Published>(&path, Some(&vera), &[], plain.len() as u64, source).await.expect("once more, whole");

    // A sale, killed between acknowledgement and the answer's use: the repeat returns the same bytes.
    let ann = log_in(&client, "ann").await;
    let processor = installation.processor().await;
    let order = buy(&client, &ann, processor.id(), None).await;
    let acknowledge = Acknowledge { acknowledgement: Base64(receive(&client, &ann, &order, &processor).await.unwrap()) };
    let settle = format!("/v1/orders/{}/acknowledgement", order.order);
    let settled: Settled = client.post_json(&settle, Some(&ann), &[], &acknowledge).await.unwrap();
    drop(daemon);
    let daemon = installation.start().await;
    let client = installation.client(&daemon);
    let again: Settled = client.post_json(&settle, Some(&ann), &[], &acknowledge).await.unwrap();
    assert_eq!(again, settled);

    // The authority withdraws the processor: the server learns it by itself, and the next delivery is refused by name.
    let order = buy(&client, &ann, processor.id(), None).await;
    receive(&client, &ann, &order, &processor).await.expect("not yet");
    authority.authority.store().revoke(&Target::Key(processor.id()), now()).await.unwrap();
    let refused = loop {
        match receive(&client, &ann, &order, &processor).await {
            Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            Err(refusal) => break refusal.code,
        }
    };
    assert_eq!(refused, Code::CertificateRevoked);
    assert_eq!(spawn_blocking(move || daemon.terminate()).await.unwrap(), Some(0), "SIGTERM ends it cleanly");

    // Not one secret is in the log, although everything is logged.
    let log = std::fs::read(installation.log()).unwrap();
    assert!(log.windows(7).any(|w| w == b"settled"), "there is a log");
    for (what, secret) in [("the password", "correct horse"), ("a bearer token", ann.as_str()), ("another bearer token", vera.as_str())] {
        assert!(!log.windows(secret.len()).any(|w| w == secret.as_bytes()), "{what} is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_lie_sealed_in_private_files_and_core_dumps_are_off() {
    let installation = Installation::new().await;
    let daemon = installation.start().await;
    let shop = installation.folder.path().join("shop");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for file in ["kek", "server.db", "keys/server-statement.key", "keys/server-receipt.key", "keys/server-second-path.key", "keys/tls.key"]
    {
        assert_eq!(mode(&shop.join(file)), 0o600, "{file}");
    }
    for folder in ["", "keys", "blobs", "blobs/plain", "blobs/common"] {
        assert_eq!(mode(&shop.join(folder)), 0o700, "{folder}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.child.id())).unwrap();
    let cores = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert_eq!(cores.split_whitespace().nth(4), Some("0"), "{cores}");
    let config = Config::load(&installation.config).unwrap();
    let kek = chipbound_host::Kek::load(&config.kek()).unwrap();
    std::fs::set_permissions(config.kek(), std::fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(chipbound_host::Kek::load(&config.kek()).unwrap_err().code, Code::InsecurePermissions);
    std::fs::set_permissions(config.kek(), std::fs::Permissions::from_mode(0o600)).unwrap();
    let key = shop.join("keys/server-receipt.key");
    std::fs::copy(shop.join("keys/server-statement.key"), &key).unwrap();
    assert_eq!(code(ServerKeys::load(&config.keys(), &kek)), Code::Unsealable, "a key in the place of another");
}

#[tokio::test(flavor = "multi_thread")]
async fn init_refuses_a_folder_with_something_in_it_and_a_used_voucher_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let authority = RealAuthority::start(&folder.path().join("authority")).await;
    let wishes = |name: &str| Wishes {
        folder: folder.path().join(name),
        authority: authority.url.clone(),
        listen: "127.0.0.1:0".parse().unwrap(),
        line: None,
        names: Vec::new(),
    };
    std::fs::create_dir(folder.path().join("full")).unwrap();
    std::fs::write(folder.path().join("full/precious"), "x").unwrap();
    let voucher = authority.voucher(Kind::Server).await;
    assert_eq!(code(init(&wishes("full"), &voucher).await), Code::Conflict);
    assert_eq!(std::fs::read_dir(folder.path().join("full")).unwrap().count(), 1);
    init(&wishes("first"), &voucher).await.expect("the voucher was not used up by that");
    assert_eq!(code(init(&wishes("second"), &voucher).await), Code::VoucherInvalid);
    assert_eq!(std::fs::read_dir(folder.path().join("second")).unwrap().count(), 0);
    let vendors = authority.voucher(Kind::Vendor).await;
    assert_eq!(code(init(&wishes("second"), &vendors).await), Code::VoucherInvalid, "a voucher for another role");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_on_line_before_they_run_out() {
    let folder = tempfile::tempdir().unwrap();
    let authority = RealAuthority::start(&folder.path().join("authority")).await;
    let shop = folder.path().join("shop");
    let wishes = Wishes {
        folder: shop.clone(),
        authority: authority.url.clone(),
        listen: "127.0.0.1:0".parse().unwrap(),
        line: None,
        names: Vec::new(),
    };
    let made = init(&wishes, &authority.voucher(Kind::Server).await).await.unwrap();
    let config = Config::load(&made.config).unwrap();
    let kek = chipbound_host::Kek::load(&config.kek()).unwrap();
    let keys = SharedKeys::new(ServerKeys::load(&config.keys(), &kek).unwrap());
    let before = keys.get();
    let standing = |ahead: u64| Standing {
        authority: authority.url.clone(),
        folder: config.keys(),
        keys: keys.clone(),
        trust: SharedTrust::new(load_trust(&config.keys()).unwrap()),
        clock: Arc::new(move || Time(now().0 + ahead)),
    };
    for role in ROLES {
        assert!(!standing(600).renew_if_due(role).await.unwrap(), "{role}: not in the first two thirds of its hour");
        assert!(standing(45 * 60).renew_if_due(role).await.unwrap(), "{role}: in the last third");
    }
    let loaded = ServerKeys::load(&config.keys(), &kek).unwrap();
    for role in ROLES {
        let (old, new, kept) = (before.get(role).unwrap(), keys.get(), loaded.get(role).unwrap());
        let new = new.get(role).unwrap();
        assert_eq!(old.key.key_id(), new.key.key_id(), "{role}: the same key");
        assert!(old.chain != new.chain && new.chain == kept.chain, "{role}: another certificate, kept on the disk");
        Trust::new(authority.authority.root()).unwrap().verify(&new.chain, role, now()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_list_of_somebody_else_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let authority = RealAuthority::start(&folder.path().join("authority")).await;
    let other = RealAuthority::start(&folder.path().join("other")).await;
    let keys = folder.path().join("keys");
    std::fs::create_dir(&keys).unwrap();
    let wishes = Wishes {
        folder: folder.path().join("shop"),
        authority: authority.url.clone(),
        listen: "127.0.0.1:0".parse().unwrap(),
        line: None,
        names: Vec::new(),
    };
    let made = init(&wishes, &authority.voucher(Kind::Server).await).await.unwrap();
    let config = Config::load(&made.config).unwrap();
    let kek = chipbound_host::Kek::load(&config.kek()).unwrap();
    let standing = |url: &str| Standing {
        authority: url.to_owned(),
        folder: config.keys(),
        keys: SharedKeys::new(ServerKeys::load(&config.keys(), &kek).unwrap()),
        trust: SharedTrust::new(load_trust(&config.keys()).unwrap()),
        clock: Arc::new(now),
    };
    standing(&authority.url).refresh_revocations().await.expect("its own authority's");
    assert!(standing(&other.url).refresh_revocations().await.is_err(), "another authority at that address");
}

#[test]
fn mistakes_of_the_operator_end_with_the_code_and_the_advice() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("server.toml");
    std::fs::write(&config, "listen = \"127.0.0.1:0\"\nallow_everything = true\n").unwrap();
    let (exit, said) = operator(&["run", "--config", config.to_str().unwrap()], "").unwrap_err();
    assert_eq!(exit, Some(65));
    assert!(said.contains("config_invalid") && said.contains("server.toml:2") && said.contains("Mend the line"), "{said}");
    let (exit, said) = operator(&["init", "--dir", "x", "--authority", "https://127.0.0.1:1", "--voucher", "nonsense"], "").unwrap_err();
    assert_eq!(exit, Some(77));
    assert!(said.contains("voucher_invalid"), "{said}");
}
