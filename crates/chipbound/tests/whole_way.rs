//! The main job by hand: publish, buy, run, receipts, with each way, key mode and suite.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound_wire::Code;
use common::{World, flipped, good, json_lines, noise, refused};
use std::path::Path;

#[test]
fn a_program_arrives_by_both_lines_in_both_key_modes_and_runs_like_the_plain_one() {
    let world = World::start("", 1);
    let plain = good(std::process::Command::new("/bin/ls").arg("--version"));
    let ways: [(&str, &[&str]); 4] = [
        ("tunnel-direct", &["--key-mode", "direct"]),
        ("line-direct", &["--key-mode", "direct", "--own-line"]),
        ("tunnel-common", &["--key-mode", "common"]),
        ("line-common", &["--key-mode", "common", "--own-line"]),
    ];
    for (number, (name, more)) in ways.into_iter().enumerate() {
        world.publish(Path::new("/bin/ls"), name, "1", &[]);
        let bought = json_lines(&good(world.ada(&["--json", "buy", name]).args(more)));
        let steps: Vec<_> = bought.iter().filter_map(|l| l["step"].as_u64()).collect();
        assert_eq!(steps, [1001, 1002, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012], "{name}");
        let chosen = bought.last().unwrap()["chosen"].as_str().unwrap().to_owned();
        assert!(chosen.starts_with("x-wing+aes-256-gcm") && chosen.contains(more[1]), "{name}: {chosen}");
        assert_eq!(world.balance(), (format!("{}.00 EUR", 90 - 10 * number), "0.00 EUR".into()), "{name}");
        let package = world.work(name);
        let run = good(world.ada(&["run", package.to_str().unwrap(), "--version"]));
        // The first line names the program as it was called.
        assert_eq!(run.stdout, plain.stdout, "{name}");
        assert!(run.stderr.is_empty());
    }
    assert_eq!(world.names(), ["line-common", "line-direct", "tunnel-common", "tunnel-direct"], "nothing half-written");
}

#[test]
fn the_servers_policy_chooses_suite_and_key_mode() {
    let policy = "suites = [\"dhkem-p256+chacha20-poly1305\"]\nkey_mode = \"common\"\n";
    let world = World::start(policy, 1);
    world.publish(Path::new("/bin/ls"), "ls", "1", &[]);
    let bought = json_lines(&good(world.ada(&["--json", "buy", "ls"])));
    let chosen = bought.last().unwrap()["chosen"].as_str().unwrap().to_owned();
    assert!(chosen.contains("dhkem-p256+chacha20-poly1305") && chosen.contains("common"), "{chosen}");
    good(world.ada(&["run", "./ls", "--version"]));
}

#[test]
fn data_is_opened_where_its_vendor_allows_it_and_leaves_nothing_where_not() {
    let world = World::start("", 1);
    let bytes = noise(&world.work("songs.src"), 300_001);
    world.publish(&world.work("songs.src"), "songs", "1", &["--open-to-file"]);
    world.publish(&world.work("songs.src"), "secret-songs", "1", &["--format", "data"]);
    std::fs::remove_file(world.work("songs.src")).unwrap();
    world.buy("songs", &[]);
    world.buy("secret-songs", &[]);
    assert!(std::fs::read(world.work("songs")).unwrap().windows(32).all(|w| w != &bytes[1000..1032]), "sealed on the disk");

    good(world.ada(&["open", "songs", "-o", "songs.out"]));
    assert!(std::fs::read(world.work("songs.out")).unwrap() == bytes);
    assert!(good(world.ada(&["open", "songs", "-o", "-"])).stdout == bytes, "stdout holds the data and nothing else");

    refused(world.ada(&["open", "secret-songs", "-o", "out"]), Code::UseForbidden);
    flipped(&world.work("songs"), &world.work("damaged"), 150_000);
    refused(world.ada(&["open", "damaged", "-o", "out"]), Code::PageAltered);
    refused(world.ada(&["run", "./songs"]), Code::UnsupportedProgram);
    assert_eq!(world.names(), ["damaged", "secret-songs", "songs", "songs.out"], "no half-opened file is left");
}

#[test]
fn receipts_are_listed_shown_and_verified_without_the_server() {
    let mut world = World::start("", 1);
    world.publish(Path::new("/bin/ls"), "ls", "1.0", &[]);
    world.buy("ls", &["--max-price", "10 EUR"]);
    std::fs::remove_dir_all(world.home("ada").path().join("receipts")).unwrap();
    let listed = json_lines(&good(world.ada(&["--json", "receipts"])));
    let order = listed[0]["order"].as_str().unwrap().to_owned();
    let kept = listed[0]["path"].as_str().unwrap().to_owned();
    assert_eq!((listed.len(), listed[0]["version"].as_str()), (1, Some("1.0")), "a lost receipt is fetched again");

    world.daemons.daemons[1].stop();
    world.daemons.daemons[0].stop();
    let verified = good(world.ada(&["receipt", "verify", &order]));
    let text = String::from_utf8(verified.stdout).unwrap();
    assert!(text.contains("the receipt is genuine") && text.contains("10.00 EUR"), "{text}");
    let root = world.folder.path().join("authority/root.der");
    good(world.ada(&["receipt", "verify", &kept, "--root", root.to_str().unwrap()]));
    let shown = json_lines(&good(world.ada(&["--json", "receipt", "show", &kept]))).remove(0);
    assert_eq!(shown["verified"], true);
    good(world.ada(&["receipts", "--offline"]));

    let size = std::fs::metadata(&kept).unwrap().len() as usize;
    flipped(Path::new(&kept), &world.work("altered"), size - 1);
    refused(world.ada(&["receipt", "verify", "altered"]), Code::SignatureInvalid);
    let shown = json_lines(&good(world.ada(&["--json", "receipt", "show", "altered"]))).remove(0);
    assert_eq!(shown["verified"], false);
    refused(world.as_user("acme", &["receipt", "verify", &kept]), Code::CertificateForeign);
    refused(world.ada(&["receipt", "verify", "00112233445566778899aabbccddeeff"]), Code::UnknownOrder);
    refused(world.ada(&["balance"]), Code::ServerUnreachable);
}

#[test]
fn the_catalogue_names_the_newest_release_and_an_older_one_can_still_be_bought() {
    let world = World::start("", 1);
    world.publish(Path::new("/bin/ls"), "tool", "1", &[]);
    world.publish(Path::new("/bin/cat"), "tool", "2", &[]);
    let listed = json_lines(&good(world.ada(&["--json", "catalogue"])));
    assert_eq!((listed.len(), listed[0]["version"].as_str(), listed[0]["sequence"].as_u64()), (1, Some("2"), Some(2)));
    world.buy("tool", &["-o", "newest"]);
    world.buy("tool", &["--version", "1", "-o", "older"]);
    assert_eq!(good(world.ada(&["run", "./newest", "/etc/hostname"])).stdout, std::fs::read("/etc/hostname").unwrap());
    let version = good(world.ada(&["run", "./older", "--version"])).stdout;
    assert!(String::from_utf8(version).unwrap().starts_with("ls "));
    let inspected = good(world.ada(&["inspect", "older"]));
    assert!(String::from_utf8(inspected.stdout).unwrap().contains("can be opened by this processor"));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let world = World::start("", 1);
    let config = world.folder.path().join("server/server.toml");
    let list = ["account", "list", "--config", config.to_str().unwrap()];
    for arguments in [&["catalogue"][..], &["balance"], &["--json", "balance"], &["processor", "show"], &["receipts"], &list] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = world.ada(arguments).stdout(writer).stderr(std::process::Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{arguments:?}: {:?} {said}", output.status);
    }
}
