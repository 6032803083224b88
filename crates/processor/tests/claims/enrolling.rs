//! The daemon at a real authority on the loopback (source [33]-[35]): enrolment, renewal with nobody at the device, vouchers.

use crate::client::{Daemon, code, until};
use crate::world::install;
use chipbound_authority::authority::Authority;
use chipbound_authority::command::new_voucher;
use chipbound_authority::config::{Config, FILE, Span};
use chipbound_authority::store::Kind;
use chipbound_authority::{http, installation};
use chipbound_processor::vault::Vault;
use chipbound_trusted_core::KeyStore;
use chipbound_wire::bounded::Text;
use chipbound_wire::control::{Request, Response};
use chipbound_wire::{Code, Result, Time};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// A running authority; it ends with its runtime.
struct Running {
    runtime: Runtime,
    url: String,
    config: Config,
    _folder: TempDir,
}

impl Running {
    /// An authority whose processors' certificates last so long.
    fn start(validity: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let folder = tempfile::tempdir().expect("a folder");
        let home = folder.path().join("authority");
        let (url, config) = runtime.block_on(async {
            let listen = "127.0.0.1:0".parse().expect("an address");
            installation::create(&home, listen, "test", chipbound_host::now()).await.expect("an installation");
            let text = std::fs::read_to_string(home.join(FILE)).expect("the configuration");
            let (before, after) = text.split_once("processor = \"").expect("the validity of processors");
            let (_, after) = after.split_once('"').expect("a span");
            std::fs::write(home.join(FILE), format!("{before}processor = \"{validity}\"{after}")).expect("written");
            let config = Config::load(&home.join(FILE)).expect("a configuration");
            let listener = TcpListener::bind(config.listen).await.expect("a port");
            let url = format!("https://{}", listener.local_addr().expect("an address"));
            let authority = Arc::new(Authority::open(config.clone()).await.expect("an authority"));
            tokio::spawn(http::run(authority, listener, std::future::pending()));
            (url, config)
        });
        Self { runtime, url, config, _folder: folder }
    }

    fn voucher(&self, kind: Kind) -> String {
        let made = self.runtime.block_on(new_voucher(&self.config, kind, None, Span(3600), chipbound_host::now()));
        made.expect("a voucher").0.to_text()
    }
}

fn enroll(daemon: &Daemon, url: &str, voucher: &str) -> Result<Response> {
    let mut client = daemon.client();
    client.ask(&Request::Enroll { authority: Text::new(url)?, voucher: Text::new(voucher)? }, &[]);
    client.answer()
}

/// A processor that looks after its certificate every second.
fn installed(folder: &Path) -> PathBuf {
    let home = folder.join("processor");
    install(&home);
    let toml = std::fs::read_to_string(home.join("processor.toml")).expect("the configuration");
    std::fs::write(home.join("processor.toml"), toml.replace("every_seconds = 60", "every_seconds = 1")).expect("written");
    home
}

fn valid_until(daemon: &Daemon) -> Option<Time> {
    let mut client = daemon.client();
    client.ask(&Request::Describe, &[]);
    match client.answer().expect("a description") {
        Response::Description { valid_until, .. } => valid_until,
        other => panic!("{other:?}"),
    }
}

#[test]
fn keys_open_what_is_sealed_to_them_when_they_are_made_and_when_they_are_read_again() {
    let folder = tempfile::tempdir().expect("folder");
    let state = folder.path().join("state");
    Vault::create(&state).expect("keys").check_keys().expect("new keys");
    Vault::open(&state).expect("the same keys").check_keys().expect("from the disk");
}

#[test]
fn a_processor_enrolls_with_a_voucher_and_renews_itself_with_fresh_sealing_keys() {
    let authority = Running::start("9s");
    let folder = tempfile::tempdir().expect("folder");
    let home = installed(folder.path());
    let before = Vault::open(&home.join("state")).expect("keys").keys().sealing_keys();
    let daemon = Daemon::start(&home);
    enroll(&daemon, &authority.url, &authority.voucher(Kind::Processor)).expect("enrolled");
    let first = valid_until(&daemon).expect("certified");
    until("the certificate is renewed", || valid_until(&daemon).is_some_and(|until| until > first));
    assert!(daemon.stop().success());
    let vault = Vault::open(&home.join("state")).expect("opens");
    let enrolment = vault.enrolment().expect("enrolled");
    let certified = &enrolment.certified.sealing().expect("a processor's").keys;
    assert_ne!(certified[..], before[..], "fresh keys were certified");
    assert!(vault.keys().generation_of(certified).is_some(), "and the processor holds them");
    assert!(vault.keys().generations().len() >= 2, "the keys before go on opening");
}

/// A28: without a voucher nobody becomes a processor, and one makes one processor.
#[test]
fn a_voucher_used_made_up_of_another_role_or_another_authority_enrolls_nobody() {
    let authority = Running::start("1h");
    let folder = tempfile::tempdir().expect("folder");
    let daemon = Daemon::start(&installed(folder.path()));
    let voucher = authority.voucher(Kind::Processor);
    enroll(&daemon, &authority.url, &voucher).expect("enrolled");

    let second = tempfile::tempdir().expect("folder");
    let daemon = Daemon::start(&installed(second.path()));
    assert_eq!(code(enroll(&daemon, &authority.url, &voucher)), Code::VoucherInvalid, "used");
    let mut made_up = voucher.clone();
    made_up.replace_range(5..6, if &voucher[5..6] == "a" { "b" } else { "a" });
    assert_eq!(code(enroll(&daemon, &authority.url, &made_up)), Code::VoucherInvalid, "made up");
    let refusal = code(enroll(&daemon, &authority.url, &authority.voucher(Kind::Vendor)));
    assert!(matches!(refusal, Code::VoucherInvalid | Code::Forbidden), "{refusal}");
    let other = Running::start("1h");
    let refusal = code(enroll(&daemon, &other.url, &authority.voucher(Kind::Processor)));
    assert!(matches!(refusal, Code::ServerUntrusted | Code::CertificateForeign), "{refusal}");
    assert_eq!(valid_until(&daemon), None, "nothing came of it");
    assert_eq!(code(enroll(&daemon, "https://127.0.0.1:1", &authority.voucher(Kind::Processor))), Code::AuthorityUnreachable);
}
