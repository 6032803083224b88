//! What lies on the disk, and the verbs as their user sees them.

use crate::common::{Applicant, Running};
use chipbound_authority::config::FILE;
use chipbound_authority::store::{Kind, Store};
use chipbound_host::now;
use chipbound_transport::enrolment::{enroll, revocations};
use chipbound_wire::certificate::{Role, Trust};
use chipbound_wire::enrolment::Voucher;
use chipbound_wire::{Code, Hex};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The object identifier id-ecPublicKey (RFC 5480), which every PKCS#8 file of a P-256 key holds.
const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];

fn files_under(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { files_under(&path, into) } else { into.push(path) }
    }
}

fn holds(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|w| w == what)
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chipbound-authority"));
    command.args(arguments).env_remove("RUST_LOG");
    command
}

fn run(arguments: &[&str]) -> Output {
    program(arguments).output().expect("the program starts")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// A started program; killed when dropped.
struct Daemon {
    child: Child,
    url: String,
}

impl Daemon {
    /// Starts it with the most talkative log, written to `log`.
    fn start(config: &str, log: &Path) -> Self {
        let stderr = fs::OpenOptions::new().append(true).create(true).open(log).expect("a log");
        let mut command = program(&["run", "--config", config]);
        let mut child = command.env("RUST_LOG", "trace").stdout(Stdio::piped()).stderr(stderr).spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let url = line.strip_prefix("ready ").and_then(|l| l.split(' ').next()).expect("the ready line").trim().to_owned();
        Self { child, url }
    }

    fn terminate(mut self) -> i32 {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        self.child.wait().expect("it ends").code().expect("it ended by itself")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_lie_sealed_and_private_and_vouchers_not_at_all() {
    let authority = Running::new().await;
    let voucher = authority.voucher(Kind::Processor).await;
    Applicant::new(Role::Processor).enroll(&authority, &voucher).await.expect("a good voucher");
    let folder = authority.folder();
    assert_eq!(fs::metadata(folder).expect("a folder").permissions().mode() & 0o777, 0o700);
    let mut files = Vec::new();
    files_under(folder, &mut files);
    let keys = files.iter().filter(|f| f.extension().is_some_and(|e| e == "key" || e == "kek"));
    assert_eq!(keys.clone().count(), 4, "root and issuing key, each with its key-encryption key");
    for key in keys {
        assert_eq!(fs::metadata(key).expect("a file").permissions().mode() & 0o777, 0o600, "{}", key.display());
        let bytes = fs::read(key).expect("readable");
        assert!(!holds(&bytes, b"PRIVATE") && !holds(&bytes, EC_PUBLIC_KEY), "{} holds a key in the clear", key.display());
    }
    for file in files {
        assert!(!holds(&fs::read(&file).expect("readable"), &voucher.secret), "{} holds the voucher", file.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_key_can_go_off_line_and_an_open_key_file_is_refused() {
    let authority = Running::new().await;
    fs::remove_dir_all(authority.folder().join("offline")).expect("removed");
    let authority = authority.restart().await;
    let voucher = authority.voucher(Kind::Vendor).await;
    Applicant::new(Role::Vendor).enroll(&authority, &voucher).await.expect("the root key is not needed");

    let key = authority.folder().join("issuing.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("changed");
    let opened = chipbound_authority::authority::Authority::open(authority.authority.config().clone()).await;
    assert_eq!(opened.expect_err("others can read the key").code, Code::InsecurePermissions);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_a_newer_version_is_refused_untouched() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.db");
    let store = Store::create(&path).await.expect("a database");
    store.close().await;
    let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}", path.display())).await.expect("it opens");
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', 1, x'00', 0)",
    )
    .execute(&pool)
    .await
    .expect("written");
    pool.close().await;
    let refusal = Store::open(&path).await.expect_err("a later version wrote it");
    assert_eq!(refusal.code, Code::Database);
    assert!(refusal.detail.contains("schema 9999"), "{refusal}");
    assert_eq!(Store::open(&folder.path().join("none.db")).await.expect_err("no database").code, Code::Database);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_verbs_lead_from_nothing_to_a_revoked_certificate() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("authority");
    let dir = dir.to_str().expect("text");
    let config = format!("{dir}/{FILE}");
    let made = stdout(&run(&["init", "--dir", dir, "--listen", "127.0.0.1:0"]));
    assert!(made.contains(&format!("chipbound authority run --config {config}")), "{made}");

    let again = run(&["init", "--dir", dir]);
    assert_eq!(again.status.code(), Some(i32::from(Code::Conflict.fault().exit_code())));
    assert!(String::from_utf8_lossy(&again.stderr).contains("error[conflict]: "));

    let daemon = Daemon::start(&config, &folder.path().join("log"));
    let output = run(&["voucher", "--config", &config, "--role", "vendor", "--name", "Acme"]);
    let text = stdout(&output);
    assert_eq!(text.lines().count(), 1, "the voucher and nothing else: {text}");
    let voucher: Voucher = text.parse().expect("a voucher");
    assert!(!String::from_utf8_lossy(&output.stderr).contains(text.trim()), "the secret is on standard output alone");

    let vendor = Applicant::new(Role::Vendor);
    let enrolled = enroll(&daemon.url, &voucher, &vendor.application(), |w, s| vendor.answer(w, s), now()).await.expect("a voucher");
    let key = enrolled.certified.key_id().to_string();
    let listed = stdout(&run(&["list", "--config", &config]));
    assert!(listed.contains("Acme") && listed.contains(&key) && listed.contains("valid"), "{listed}");

    let revoked = stdout(&run(&["revoke", "--config", &config, "--key", &key]));
    assert!(revoked.contains("withdrawn: vendor of Acme"), "{revoked}");
    let list = revocations(&daemon.url, &enrolled.root).await.expect("the running authority serves the new list");
    let trust = Trust::new(&enrolled.root).and_then(|t| t.with_revocations(&list)).expect("root and list");
    assert_eq!(trust.verify(&enrolled.chain, Role::Vendor, now()).expect_err("withdrawn").code, Code::CertificateRevoked);
    assert!(stdout(&run(&["list", "--config", &config])).contains("revoked"));
    assert_eq!(daemon.terminate(), 0);

    let log = fs::read_to_string(folder.path().join("log")).expect("a log");
    assert!(log.contains("certified by voucher") && log.contains(&key), "it says whom it certified");
    let secrets = [text.trim().to_owned(), Hex(&voucher.secret).to_string(), format!("{:?}", voucher.secret)];
    assert!(secrets.iter().all(|secret| !log.contains(secret)), "the log holds the voucher (A18)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_authority_comes_back_with_what_it_had_issued() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("authority");
    let config = dir.join(FILE).to_str().expect("text").to_owned();
    stdout(&run(&["init", "--dir", dir.to_str().expect("text"), "--listen", "127.0.0.1:0"]));
    let voucher: Voucher = stdout(&run(&["voucher", "--config", &config, "--role", "vendor"])).parse().expect("a voucher");
    let vendor = Applicant::new(Role::Vendor);
    let first = {
        let killed = Daemon::start(&config, &folder.path().join("log"));
        enroll(&killed.url, &voucher, &vendor.application(), |w, s| vendor.answer(w, s), now()).await.expect("a voucher")
    };
    let daemon = Daemon::start(&config, &folder.path().join("log"));
    let again = enroll(&daemon.url, &voucher, &vendor.application(), |w, s| vendor.answer(w, s), now()).await.expect("the same keys");
    assert_eq!(first.chain, again.chain);
    let other = Applicant::new(Role::Vendor);
    let refused = enroll(&daemon.url, &voucher, &other.application(), |w, s| other.answer(w, s), now()).await;
    assert_eq!(refused.expect_err("used").code, Code::VoucherInvalid);
}

#[test]
fn a_bad_configuration_is_named_with_its_line_and_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(FILE);
    fs::write(&path, "listen = \"127.0.0.1:0\"\nlisten_to = 1\n").expect("written");
    let output = run(&["run", "--config", path.to_str().expect("text")]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(i32::from(Code::ConfigInvalid.fault().exit_code())), "{text}");
    assert!(text.contains("error[config_invalid]: ") && text.contains(&format!("{FILE}:2: ")) && text.contains("listen_to"), "{text}");
    assert!(text.contains(Code::ConfigInvalid.advice()), "{text}");
    let missing = run(&["run", "--config", "no/such/file.toml"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no/such/file.toml"));
}
