//! What people mistype or misunderstand: the command says what is wrong, in the words of what they did, and does nothing else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound_wire::Code;
use common::{World, good, json_lines, noise, refused};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs a command whose command line is wrong; returns what it said.
fn misused(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
    assert!(said.starts_with("error: ") && output.stdout.is_empty(), "{said}");
    said
}

#[test]
fn a_wrong_command_line_ends_with_2_and_names_what_is_wrong_without_codes() {
    let folder = tempfile::tempdir().unwrap();
    let says = |line: &[&str], wanted: &str| {
        let mut command = Command::new(common::CHIPBOUND);
        command.args(line).current_dir(folder.path()).env("CHIPBOUND_HOME", folder.path().join("home")).stdin(Stdio::null());
        let said = misused(command);
        assert!(said.contains(wanted) && !said.contains("malformed:") && !said.contains("not_supported:"), "{line:?}: {said}");
    };
    says(&["run", "--bogus", "./app"], "unexpected argument '--bogus' found before the package");
    says(&["run", "--with", "LD_PRELOAD=./data", "./app"], "LD_PRELOAD is the dynamic linker's own");
    says(&["buy", "perl", "--max-price", "5"], "the currency is missing");
    says(&["cancel", "zz"], "not an order id");
    let publish = |more: &[&'static str]| [&["publish", "./app", "--version", "1", "--class", "software"], more].concat();
    says(&publish(&["--name", "app", "--price", "1 euro"]), "is not a currency code");
    says(&publish(&["--name", "app", "--price", "-1 EUR"]), "-1 EUR");
    says(&publish(&["--name", "My App", "--price", "1 EUR"]), "1 to 64 characters of a-z 0-9");
    says(&publish(&["--name", "app", "--price", "1 EUR", "--profile", "all"]), "is no protection profile");
    let named = |version: &'static str, more: &[&'static str]| {
        [&["publish", "./app", "--name", "app", "--price", "1 EUR", "--class", "software", "--version", version], more].concat()
    };
    says(&named("", &[]), "a version has a name");
    says(&named("1\x1b[31m", &[]), "a text holds control characters");
    says(&named("1", &["--reader", "no such"]), "1 to 64 characters of a-z 0-9");
    let deposit = ["account", "deposit", "--config", "server.toml", "--user", "ann", "--amount", "-5 EUR"];
    says(&deposit, "is not an amount");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn an_init_that_fails_leaves_nothing_and_is_given_again_as_it_should_have_been() {
    let folder = tempfile::tempdir().unwrap();
    let long = "x".repeat(300);
    let init = |more: &[&str]| {
        let mut command = Command::new(common::CHIPBOUND);
        command.args(["authority", "init", "--dir", "authority"]).args(more).current_dir(folder.path());
        command
    };
    refused(init(&["--name", &long]), Code::Malformed);
    assert_eq!(std::fs::read_dir(folder.path().join("authority")).unwrap().count(), 0);
    good(init(&[]));
    let kept = std::fs::read(folder.path().join("authority/root.der")).unwrap();
    refused(init(&[]), Code::Conflict);
    assert_eq!(std::fs::read(folder.path().join("authority/root.der")).unwrap(), kept, "what is there stays");
}

#[test]
fn the_file_that_is_no_package_is_named_and_data_is_told_from_programs() {
    let world = World::start("", 1);
    noise(&world.work("plain"), 70_000);
    world.publish(&world.work("plain"), "data", "1", &[]);
    world.publish(&world.work("plain"), "open", "1", &["--open-to-file"]);
    world.publish(Path::new("/bin/ls"), "ls", "1", &[]);
    refused(
        world.as_user("acme", &["publish", "/tmp", "--name", "x", "--version", "1", "--price", "1 EUR", "--class", "software"]),
        Code::UnsupportedProgram,
    );
    for name in ["data", "open", "ls"] {
        world.buy(name, &[]);
    }
    let said = refused(world.ada(&["run", "--with", "D=./plain", "./ls"]), Code::NotAPackage);
    assert!(said.contains("./plain: "), "{said}");
    let said = refused(world.ada(&["run", "--with", "D=./open", "./plain"]), Code::NotAPackage);
    assert!(said.contains("./plain: "), "{said}");
    let said = refused(world.ada(&["open", "data", "-o", "out"]), Code::UseForbidden);
    assert!(said.contains("given to programs (chipbound run --with)"), "{said}");
    let said = refused(world.ada(&["open", "ls", "-o", "out"]), Code::UseForbidden);
    assert!(said.contains("may be run"), "{said}");
    let said = String::from_utf8(good(world.ada(&["verify", "data"])).stdout).unwrap();
    assert!(said.contains("data: nothing starts it") && !said.contains("direct start"), "{said}");
    let said = refused(world.ada(&["receipt", "show", "plain"]), Code::WrongDocument);
    assert!(said.contains("plain is no receipt"), "{said}");

    // Nobody waits for the other end of a pipe.
    good(Command::new("mkfifo").arg(world.work("pipe")));
    for line in [
        "run ./pipe",
        "run --with D=./pipe ./ls",
        "verify ./pipe",
        "inspect ./pipe",
        "install ./pipe",
        "open ./pipe -o out",
        "uninstall pipe --bin .",
    ] {
        refused(world.ada(&line.split(' ').collect::<Vec<_>>()), Code::NotAPackage);
    }
    assert!(json_lines(&good(world.ada(&["--json", "list", "--bin", "."]))).iter().all(|found| found["name"] != "pipe"));

    // A reader that goes away is no error, here as elsewhere.
    let line = r#"(chipbound open open -o -; echo "exit $?" >&2) | head -c 3 > /dev/null"#;
    let mut shell = world.ada(&[]);
    shell = {
        let mut sh = Command::new("sh");
        sh.args(["-c", &line.replace("chipbound ", &format!("{} ", common::CHIPBOUND))]).current_dir(world.work(""));
        sh.envs(shell.get_envs().filter_map(|(name, value)| Some((name, value?))));
        sh
    };
    assert_eq!(String::from_utf8(good(shell).stderr).unwrap(), "exit 0\n");
}

#[test]
fn a_log_in_is_at_one_server_however_its_address_ends_and_its_tls_root_serves_the_audit_of_the_log() {
    let world = World::start("", 1);
    let (url, root) = (world.daemons.server_url.clone(), world.daemons.tls_root());
    std::fs::write(world.work("password"), common::PASSWORD).unwrap();
    let with_slash = format!("{url}/");
    let login = good(world.ada(&["--json", "login", &with_slash, "--user", "ada", "--password-file", "password", "--tls-root"]).arg(&root));
    assert_eq!(json_lines(&login)[0]["server"], url.as_str());
    world.publish(Path::new("/bin/ls"), "ls", "1", &[]);
    world.buy("ls", &[]);
    for address in [&url, &with_slash] {
        good(world.ada(&["receipt", "audit-log", address]));
    }
    refused(world.as_user("nobody", &["receipt", "audit-log", &url]), Code::ServerUntrusted);
}

#[test]
fn options_that_say_nothing_of_a_file_or_forbid_it_are_refused_and_a_pipe_is_not_waited_for() {
    let world = World::start("", 1);
    noise(&world.work("plain"), 1000);
    let publish = |file: &str, more: &[&str]| {
        let line = ["publish", file, "--name", "x", "--version", "1", "--price", "1 EUR", "--class", "software"];
        world.as_user("acme", &[&line, more].concat())
    };
    let plain = world.work("plain");
    let data = plain.to_str().unwrap();
    for (file, more, wanted) in [
        ("/bin/ls", &["--open-to-file"] as &[&str], "--open-to-file is for data"),
        ("/bin/ls", &["--reader", "x"], "--reader is for data and libraries"),
        ("/bin/ls", &["--minimum-sequence", "2"], "--minimum-sequence 2 is above this release's own place, 1"),
        (data, &["--loader-variables", "allow"], "--loader-variables is for programs"),
    ] {
        let said = refused(publish(file, more), Code::ConfigInvalid);
        assert!(said.contains(wanted), "{said}");
    }
    let pipe = world.work("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    refused(publish(pipe.to_str().unwrap(), &[]), Code::UnsupportedProgram);
    assert!(good(world.ada(&["--json", "catalogue"])).stdout.is_empty(), "nothing was published");
}

#[test]
fn the_operator_is_told_what_to_mend_in_what_was_typed() {
    let world = World::start("", 1);
    let config = world.folder.path().join("server/server.toml");
    let account = |line: &[&str]| {
        let mut command = world.ada(&["account"]);
        command.args(line).arg("--config").arg(&config).stdin(Stdio::null());
        command
    };
    let said = refused(account(&["add", "--user", "bob"]), Code::ConfigInvalid);
    assert!(said.contains("a password has 8 to 1024 bytes"), "{said}");
    let said = refused(account(&["statement", "--user", "ada", "--from", "2026-12-01", "--until", "2026-11-01"]), Code::ConfigInvalid);
    assert!(said.contains("would end before it begins"), "{said}");
}

#[test]
fn a_vendor_sees_what_was_earned_and_a_receipt_is_shown_under_the_root_that_is_named() {
    let world = World::start("", 1);
    world.publish(Path::new("/bin/ls"), "ls", "1", &[]);
    let balance = || String::from_utf8(good(world.as_user("acme", &["balance"])).stdout).unwrap();
    assert_eq!(balance(), "no money yet\n");
    world.buy("ls", &[]);
    assert!(balance().ends_with(" EUR earned and not paid out\n"), "{}", balance());

    good(world.ada(&["receipt", "export", "1", "-o", "exported"]));
    let (exported, root) = (world.work("exported"), world.folder.path().join("authority/root.der"));
    let show = |more: &[&str]| {
        let shown = good(world.as_user("nobody", &[&["receipt", "show", exported.to_str().unwrap()], more].concat()));
        String::from_utf8(shown.stdout).unwrap()
    };
    assert!(
        show(&[]).contains("NOT VERIFIED: certificate_foreign: no authority is known here: pass its root certificate with --root FILE")
    );
    assert!(show(&["--root", root.to_str().unwrap()]).contains("this copy   genuine"));
    let said = refused(world.ada(&["receipt", "verify", "/etc/passwd"]), Code::WrongDocument);
    assert!(said.contains("/etc/passwd is no receipt"), "{said}");
}

#[test]
fn a_server_whose_database_is_gone_or_another_one_does_not_start_and_keeps_its_programs() {
    let world = World::start("", 1);
    world.publish(Path::new("/bin/ls"), "ls", "1", &[]);
    let copy = world.work("copy");
    assert!(Command::new("cp").arg("-a").arg(world.folder.path().join("server")).arg(&copy).status().unwrap().success());
    for beside in ["server.db", "server.db-wal", "server.db-shm"] {
        let _ = std::fs::remove_file(copy.join(beside)); // The last two come and go.
    }
    let programs = || std::fs::read_dir(copy.join("blobs/plain")).unwrap().count();
    let run = || {
        let mut command = world.ada(&["server", "run", "--config"]);
        command.arg(copy.join("server.toml")).stdin(Stdio::null());
        refused(command, Code::Database)
    };
    let said = run();
    assert!(said.contains("there is no database") && programs() == 1, "{said}");
    std::fs::write(copy.join("server.db"), "").unwrap();
    let said = run();
    assert!(said.contains("the database is empty, and programs lie in") && programs() == 1, "{said}");
}
