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
