//! How every part of the command speaks: one JSON object a line with `--json`, in every verb; what cannot be written is no success; a
//! reader that goes away is no error.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound_wire::Code;
use common::{CHIPBOUND, PASSWORD, World, good, json_lines};
use serde_json::Value;
use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Stdio};

/// The results of a verb, each an object on a line of its own; what else it said is JSON, too.
fn objects(world: &World, arguments: &[&str]) -> Vec<Value> {
    let output = good(world.ada(&[&["--json"], arguments].concat()));
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(said.lines().all(|line| serde_json::from_str::<Value>(line).is_ok_and(|v| v.is_object())), "{arguments:?}: {said}");
    let objects = json_lines(&output);
    assert!(objects.iter().all(Value::is_object), "{arguments:?}: {objects:?}");
    objects
}

#[test]
fn with_json_every_verb_of_operators_prints_one_object_a_line() {
    let world = World::start("", 1);
    world.publish(Path::new("/bin/ls"), "ls", "1", &[]);
    world.buy("ls", &[]);
    let path = |name: &str| world.folder.path().join(name).to_str().unwrap().to_owned();
    let (server, authority) = (path("server/server.toml"), path("authority/authority.toml"));
    std::fs::write(world.work("password"), PASSWORD).unwrap();
    std::fs::set_permissions(world.work("password"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let account = |verb: &str, more: &[&str]| objects(&world, &[&["account", verb, "--config", &server], more].concat());

    let added = account("add", &["--user", "bob", "--password-file", "password"]);
    assert_eq!((added.len(), &added[0]["user"], &added[0]["role"]), (1, &"bob".into(), &"customer".into()));
    let deposited = account("deposit", &["--user", "bob", "--amount", "5 EUR"]);
    assert_eq!(deposited[0]["available"]["minor"], 500);
    assert!(deposited[0]["key"].as_str().is_some_and(|key| !key.is_empty()), "for whoever repeats it");
    assert_eq!(account("payout", &["--user", "bob", "--amount", "1 EUR"])[0]["paid_out"]["minor"], 100);
    let statement = account("statement", &["--user", "bob"]);
    let changes: i64 =
        statement.iter().filter(|line| line["change"]["book"] == "funds").map(|line| line["change"]["minor"].as_i64().unwrap()).sum();
    assert_eq!(changes, 400, "{statement:?}");
    let listed = account("list", &[]);
    let ada = listed.iter().find(|line| line["user"] == "ada").unwrap();
    assert_eq!(ada["balances"][0]["available"]["minor"], 9000, "{listed:?}");
    assert!(listed.iter().any(|line| line["user"] == "acme" && line["books"][0]["minor"] == 1000), "{listed:?}");
    let order = objects(&world, &["receipts"])[0]["order"].as_str().unwrap().to_owned();
    assert_eq!(account("refund", &["--order", &order])[0]["refunded"]["minor"], 1000);

    let voucher = objects(&world, &["authority", "voucher", "--config", &authority, "--role", "server", "--name", "second"]);
    assert!(voucher[0]["voucher"].as_str().unwrap().starts_with("cbv1-") && voucher[0]["name"] == "second");
    let known = objects(&world, &["authority", "list", "--config", &authority]);
    assert!(known.iter().any(|line| line["voucher"] == "server" && line["state"] == "open"), "{known:?}");
    let vendor = known.iter().find(|line| line["certificate"] == "vendor").unwrap();
    let revoked = objects(&world, &["authority", "revoke", "--config", &authority, "--serial", vendor["serial"].as_str().unwrap()]);
    assert_eq!((revoked[0]["withdrawn"] == vendor["serial"], revoked.len()), (true, 1));
    let init = ["server", "init", "--dir", "second", "--authority", &world.daemons.authority_url, "--voucher"];
    let made = objects(&world, &[&init[..], &[voucher[0]["voucher"].as_str().unwrap()]].concat());
    assert_eq!((&made[0]["server"], &made[0]["configuration"]), (&"second".into(), &"second/server.toml".into()));
    assert_eq!(objects(&world, &["authority", "init", "--dir", "third"])[0]["configuration"], "third/authority.toml");
    let processor = objects(&world, &["processor", "init", "--dir", "fourth"]);
    assert!(processor[0]["socket"].as_str().unwrap().ends_with("processor.sock"), "{processor:?}");

    let saved = objects(&world, &["server", "backup", "--config", &server, "saved"]);
    assert!(saved[0]["rows"].as_u64().unwrap() > 10 && saved[0]["blobs"] == 1, "{saved:?}");
    let kek = path("server/kek");
    let restored = objects(&world, &["server", "restore", "--config", "second/server.toml", "--kek", &kek, "saved"]);
    assert_eq!(restored[0]["rows"], saved[0]["rows"]);
    assert_eq!(objects(&world, &["server", "audit", "--config", &server])[0]["clean"], true);
    assert!(objects(&world, &["server", "openapi"])[0]["openapi"].as_str().unwrap().starts_with("3.1"));
}

#[test]
fn what_cannot_be_written_is_no_success_and_a_reader_that_goes_away_is_no_error() {
    let world = World::start("", 1);
    let path = |name: &str| world.folder.path().join(name).to_str().unwrap().to_owned();
    let (server, authority) = (path("server/server.toml"), path("authority/authority.toml"));
    let verbs: [&[&str]; 5] = [
        &["balance"],
        &["account", "list", "--config", &server],
        &["authority", "list", "--config", &authority],
        &["server", "journal", "--config", &server],
        &["processor", "init", "--dir", "another"],
    ];
    for verb in verbs {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = world.ada(verb).stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(74), "{verb:?}: {said}");
        assert!(said.contains(&format!("error[{}]", Code::DiskFull)) && !said.contains("panicked"), "{verb:?}: {said}");
    }
    for verb in &verbs[..4] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = world.ada(verb).stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{verb:?}: {output:?}");
    }
    let help = Command::new(CHIPBOUND).arg("--help").stdout(OpenOptions::new().write(true).open("/dev/full").unwrap()).output().unwrap();
    assert!(!String::from_utf8_lossy(&help.stderr).contains("panicked"), "{help:?}");
}
