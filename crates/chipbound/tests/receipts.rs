//! Receipts and the log they are in: after server and authority are gone, across replaced keys, and with a server that rewrote its log.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound::demo::world::Daemon;
use chipbound_transport::{Client, ServerTrust};
use chipbound_wire::Code;
use common::{AUTHORITY, CHIPBOUND, PASSWORD, SERVER, World, good, json_lines, refused};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

fn server_file(world: &World, name: &str) -> PathBuf {
    world.folder.path().join("server").join(name)
}

/// Starts the stopped server again, on another port, and logs everybody in.
fn start_server(world: &mut World, users: &[&str]) {
    let config = server_file(world, "server.toml");
    let arguments = [OsStr::new("server"), OsStr::new("run"), OsStr::new("--config"), config.as_os_str()];
    let log = world.folder.path().join("server.log");
    let (daemon, ready) = world.runtime.block_on(Daemon::start(Path::new(CHIPBOUND), &arguments, &log)).unwrap();
    world.daemons.daemons[SERVER] = daemon;
    world.daemons.server_url = ready.split_whitespace().find(|word| word.starts_with("https://")).unwrap().to_owned();
    for user in users {
        world.runtime.block_on(world.daemons.log_in(user, PASSWORD)).unwrap();
    }
}

/// The order of the newest receipt that ada keeps.
fn newest_order(world: &World) -> String {
    json_lines(&good(world.ada(&["--json", "receipts", "--offline"])))[0]["order"].as_str().unwrap().to_owned()
}

/// A copy of the server's log as files: entries, tiles, checkpoint and key of a log of at most 256 entries.
fn copy_log(world: &World, size: u64, folder: &Path) {
    let root = std::fs::read(world.daemons.tls_root()).unwrap();
    let client = Client::new(&world.daemons.server_url, ServerTrust::root_from_pem(&root).unwrap()).unwrap();
    for name in ["key".to_owned(), "checkpoint".to_owned(), format!("tile/0/000.p/{size}"), format!("tile/entries/000.p/{size}")] {
        let bytes = world.runtime.block_on(client.get_bytes(&format!("/log/{name}"), None, 1 << 16)).unwrap();
        std::fs::create_dir_all(folder.join(&name).parent().unwrap()).unwrap();
        std::fs::write(folder.join(&name), bytes).unwrap();
    }
}

#[test]
fn receipts_outlive_server_authority_and_every_key_that_signed_them() {
    let mut world = World::start("seller = \"The shop\"\ntaxes = [{ name = \"VAT\", rate = 1900 }]\n", 1);
    world.publish(Path::new("/bin/ls"), "ls", "1.0", &[]);
    world.publish(Path::new("/bin/cat"), "cat", "1.0", &[]);
    world.buy("ls", &[]);
    let first = newest_order(&world);
    let config = server_file(&world, "server.toml");
    let rotate = |key: &str| world.as_user("acme", &["server", "rotate", "--config", config.to_str().unwrap(), "--key", key]);
    refused(rotate("log"), Code::Busy);

    world.daemons.daemons[SERVER].stop();
    let mut names = Vec::new();
    for key in ["receipt", "log", "statement", "second-path"] {
        let mut command = world.as_user("acme", &["server", "rotate", "--config", config.to_str().unwrap(), "--key", key]);
        names.push(String::from_utf8(good(&mut command).stdout).unwrap());
    }
    names.dedup();
    assert_eq!(names.len(), 4, "each has a new name: {names:?}");
    start_server(&mut world, &["ada", "acme"]);
    world.buy("cat", &[]);
    let second = newest_order(&world);
    assert_eq!(good(world.ada(&["run", "./cat", "/etc/hostname"])).stdout, std::fs::read("/etc/hostname").unwrap());
    good(world.ada(&["redownload", &first, "-o", "ls-again"]));

    let (url, tls_root) = (world.daemons.server_url.clone(), world.daemons.tls_root());
    let audited = good(world.ada(&["--json", "receipt", "audit-log", &url, "--tls-root", tls_root.to_str().unwrap()]));
    let audited = json_lines(&audited).remove(0);
    assert_eq!((&audited["entries"], &audited["receipts_in_place"], &audited["goes_on_from_kept"]), (&2.into(), &2.into(), &true.into()));
    copy_log(&world, 2, &world.work("log"));
    let root = world.work("root.der");
    std::fs::copy(world.folder.path().join("authority/root.der"), &root).unwrap();
    good(world.ada(&["receipt", "export", &first, "-o", "first.receipt"]));

    world.daemons.daemons[SERVER].stop();
    world.daemons.daemons[AUTHORITY].stop();
    std::fs::remove_dir_all(world.folder.path().join("server")).unwrap();
    std::fs::remove_dir_all(world.folder.path().join("authority")).unwrap();
    let verified =
        json_lines(&good(world.as_user("acme", &["--json", "receipt", "verify", "first.receipt", "--root", "root.der"]))).remove(0);
    assert_eq!((&verified["verified"], &verified["log"]["index"]), (&true.into(), &0.into()));
    let later = json_lines(&good(world.ada(&["--json", "receipt", "verify", &second]))).remove(0);
    assert_eq!((&later["verified"], &later["log"]["index"], &later["receipt"]), (&true.into(), &1.into(), &2.into()));
    assert_ne!(verified["signer"]["key"], later["signer"]["key"], "the receipt key was another one");
    let page = String::from_utf8(good(world.ada(&["receipt", "show", &first])).stdout).unwrap();
    for line in ["RECEIPT 1", "The shop", "ls 1.0", "contains VAT 19 %", "1.60 EUR", "10.00 EUR", "chipbound redownload", "genuine"] {
        assert!(page.contains(line), "{line}: {page}");
    }
    good(world.ada(&["receipt", "audit-log", "log"]));
    entries_that_are_changed_are_found(&world);
    a_receipt_without_its_own_proof_is_refused(&world, &first, &second);
}

fn entries_that_are_changed_are_found(world: &World) {
    for file in ["log/tile/entries/000.p/2", "log/tile/0/000.p/2"] {
        let genuine = std::fs::read(world.work(file)).unwrap();
        let mut changed = genuine.clone();
        *changed.last_mut().unwrap() ^= 1;
        std::fs::write(world.work(file), changed).unwrap();
        refused(world.ada(&["receipt", "audit-log", "log"]), Code::LogInconsistent);
        refused(world.as_user("acme", &["receipt", "audit-log", "log", "--root", "root.der"]), Code::LogInconsistent);
        std::fs::write(world.work(file), genuine).unwrap();
    }
}

fn a_receipt_without_its_own_proof_is_refused(world: &World, first: &str, second: &str) {
    let home = world.home("ada");
    let (first, second) = (first.parse().unwrap(), second.parse().unwrap());
    std::fs::copy(home.receipt_path(&first), world.work("alone.receipt")).unwrap();
    refused(world.ada(&["receipt", "verify", "alone.receipt"]), Code::NotInLog);
    std::fs::copy(home.proof_path(&second), world.work("alone.tlog-proof")).unwrap();
    refused(world.ada(&["receipt", "verify", "alone.receipt"]), Code::NotInLog);
    std::fs::copy(home.proof_path(&first), world.work("alone.tlog-proof")).unwrap();
    good(world.ada(&["receipt", "verify", "alone.receipt"]));
}

/// Copies the server's stopped database.
fn copy_database(from: &Path, to: &Path) {
    for name in ["server.db", "server.db-wal", "server.db-shm"] {
        let _ = std::fs::remove_file(to.join(name));
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

#[test]
fn a_server_that_rewrote_its_log_is_found_out_by_its_customer() {
    let mut world = World::start("", 1);
    world.runtime.block_on(world.daemons.account("bob", "customer", PASSWORD, Some("100 EUR"))).unwrap();
    for version in ["1", "2", "3"] {
        world.publish(Path::new("/bin/ls"), "tool", version, &[]);
    }
    world.buy("tool", &["--version", "1", "-o", "one"]);
    let (server, copy) = (server_file(&world, ""), world.folder.path().join("copy"));
    std::fs::create_dir(&copy).unwrap();
    world.daemons.daemons[SERVER].stop();
    copy_database(&server, &copy);
    start_server(&mut world, &["ada"]);
    world.buy("tool", &["--version", "2", "-o", "two"]);

    // What ada bought last never happened; somebody else has its place in the log.
    world.daemons.daemons[SERVER].stop();
    copy_database(&copy, &server);
    start_server(&mut world, &["ada", "bob"]);
    good(world.as_user("bob", &["buy", "tool", "--version", "2", "-o", "bobs"]));
    let said = refused(world.ada(&["buy", "tool", "--version", "3", "-o", "three"]), Code::LogInconsistent);
    assert!(said.contains("both checkpoints are in") && said.contains("the package is whole in"), "{said}");
    assert!(world.work("three").is_file(), "she has what she paid for");
    let evidence = world.home("ada").path().join("logs/evidence");
    assert_eq!(std::fs::read_dir(&evidence).unwrap().count(), 2);
    let (url, tls_root) = (world.daemons.server_url.clone(), world.daemons.tls_root());
    refused(world.ada(&["receipt", "audit-log", &url, "--tls-root", tls_root.to_str().unwrap()]), Code::LogInconsistent);
    good(world.as_user("bob", &["receipt", "audit-log", &url, "--tls-root", tls_root.to_str().unwrap()]));
}
