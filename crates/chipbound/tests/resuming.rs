//! A large package that was cut short goes on where it stopped, whichever program was killed; what came twice is counted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound::demo::world::Daemon;
use chipbound_wire::Code;
use common::{CHIPBOUND, PROCESSOR, SERVER, World, good, json_lines, noise, refused};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// The package, and a rate that leaves time to end somebody in the middle.
const SIZE: usize = 48 << 20;
const RATE: &str = "8M";
/// So much is there before anybody is ended.
const LEAST: u64 = SIZE as u64 / 8;
/// One chunk, which is all that may come twice, and what TLS, tags and the exchange add to the rest.
const WINDOW: u64 = 256 << 10;
const OVERHEAD: u64 = SIZE as u64 / 50 + (64 << 10);

fn world(processors: usize) -> World {
    let world = World::start("", processors);
    noise(&world.folder.path().join("large"), SIZE);
    world.publish(&world.folder.path().join("large"), "large", "1", &["--open-to-file"]);
    world
}

/// Begins a delivery, or goes on with one, and returns when some more MiB of it lie in the spool.
fn begin(world: &World, arguments: &[&str]) -> Child {
    let before = waiting(world).0;
    let mut command = world.ada(arguments);
    let mut child = command.args(["--limit-rate", RATE]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while waiting(world).0 < before + LEAST {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it began");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn spool(world: &World) -> PathBuf {
    world.folder.path().join("processor-1/spool")
}

/// Bytes that the spool says are done, of all deliveries, and its files. Read from the disk, so that it is known also while nobody serves.
fn waiting(world: &World) -> (u64, usize) {
    let mut done = 0;
    let entries: Vec<_> = std::fs::read_dir(spool(world)).unwrap().map(|e| e.unwrap().path()).collect();
    for path in entries.iter().filter(|p| p.extension().is_some_and(|e| e == "progress")) {
        let bytes = std::fs::read(path).unwrap_or_default();
        done += bytes.get(40..48).map_or(0, |n| u64::from_be_bytes(n.try_into().unwrap()));
    }
    (done, entries.len())
}

fn kill(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
}

/// The steps of a delivery that went on: bytes that were there, bytes that were relayed.
fn went_on(steps: &[Value]) -> (u64, u64) {
    let number = |name: &str| steps.iter().filter(|s| s["step"] == 1007).find_map(|s| s[name].as_u64());
    (number("kept").expect("it went on"), number("relayed").expect("a tunnel"))
}

/// The same command brings what is missing and no more, for one charge and one receipt.
fn goes_on(world: &World, arguments: &[&str]) {
    let (there, _) = waiting(world);
    assert!(there >= LEAST, "{there} bytes are kept");
    let steps = json_lines(&good(world.ada(arguments).arg("--json")));
    let (kept, relayed) = went_on(&steps);
    assert_eq!(kept, there, "it goes on where the processor says that it stopped");
    assert!(kept + relayed <= SIZE as u64 + WINDOW + OVERHEAD, "{kept} were there and {relayed} came");
    assert_eq!((world.balance(), world.receipts()), (("90.00 EUR".into(), "0.00 EUR".into()), 1));
    assert_eq!(waiting(world), (0, 0), "nothing stays in the spool");
    let left: Vec<_> = world.names().into_iter().filter(|name| name.ends_with(".part")).collect();
    assert_eq!(left, Vec::<String>::new(), "nothing stays beside the package");
    same(world, "large");
}

fn same(world: &World, package: &str) {
    good(world.ada(&["open", package, "-o", "opened"]));
    let same = std::fs::read(world.work("opened")).unwrap() == std::fs::read(world.folder.path().join("large")).unwrap();
    assert!(same, "the package holds what was published");
    std::fs::remove_file(world.work("opened")).unwrap();
}

/// Waits until nobody writes the spool any more.
fn settled(world: &World) -> u64 {
    let (mut before, mut same) = (u64::MAX, 0);
    loop {
        let (now, _) = waiting(world);
        same = if now == before { same + 1 } else { 0 };
        if same == 5 {
            return now;
        }
        before = now;
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn restart(world: &mut World, daemon: usize, arguments: &[&str], config: &str) {
    let config = world.folder.path().join(config);
    let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).chain([config.as_os_str()]).collect();
    let log = world.folder.path().join("again.log");
    let (started, _) = world.runtime.block_on(Daemon::start(Path::new(CHIPBOUND), &arguments, &log)).unwrap();
    world.daemons.daemons[daemon] = started;
}

#[test]
fn a_killed_client_goes_on_where_it_stopped_in_both_key_modes() {
    for mode in ["direct", "common"] {
        let world = world(1);
        let buy = ["buy", "large", "--key-mode", mode];
        let mut child = begin(&world, &buy);
        kill(&child, Signal::KILL);
        child.wait().unwrap();
        settled(&world);
        goes_on(&world, &buy);
    }
}

#[test]
fn a_killed_processor_goes_on_where_it_stopped() {
    let mut world = world(1);
    let child = begin(&world, &["buy", "large"]);
    world.daemons.daemons[PROCESSOR].kill();
    let output = child.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("error[processor_unreachable]"));
    restart(&mut world, PROCESSOR, &["processor", "run", "--config"], "processor-1/processor.toml");
    goes_on(&world, &["buy", "large"]);
}

#[test]
fn a_killed_server_goes_on_where_it_stopped() {
    for mode in ["direct", "common"] {
        let mut world = world(1);
        let child = begin(&world, &["buy", "large", "--key-mode", mode]);
        let kept = |line: &str| line.contains("goes on where it stops");
        world.awaits(SERVER, 0, kept, "what it takes to go on is on the server's disk");
        let blobs = world.folder.path().join("server/blobs/order");
        world.daemons.daemons[SERVER].kill();
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        settled(&world);
        // On the port that it had, as an installation with a name of its own.
        let config = world.folder.path().join("server/server.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        let address = world.daemons.server_url.trim_start_matches("https://");
        std::fs::write(&config, text.replacen("listen = \"127.0.0.1:0\"", &format!("listen = \"{address}\""), 1)).unwrap();
        restart(&mut world, SERVER, &["server", "run", "--config"], "server/server.toml");
        goes_on(&world, &["buy", "large", "--key-mode", mode]);
        assert_eq!(std::fs::read_dir(&blobs).unwrap().count(), 0, "no ciphertext is kept once the processor has it");
    }
}

#[test]
fn ctrl_c_pauses_and_says_how_to_go_on() {
    let world = world(1);
    for signal in [Signal::INT, Signal::TERM] {
        let child = begin(&world, &["buy", "large"]);
        kill(&child, signal);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{said}");
        assert!(said.contains("error[cancelled]: paused") && said.contains("what to do: Run the same command again to go on."), "{said}");
        assert!(world.names().is_empty(), "{:?}", world.names());
        settled(&world);
    }
    let listed = json_lines(&good(world.ada(&["--json", "downloads"])));
    let (done, _) = waiting(&world);
    assert_eq!((listed.len(), listed[0]["program"].as_str(), listed[0]["done"].as_u64()), (1, Some("large 1"), Some(done)));
    assert_eq!(listed[0]["bytes"].as_u64(), Some(SIZE as u64));
    assert!(json_lines(&good(world.as_user("acme", &["--json", "downloads"]))).len() == 1, "they are the user's of this machine");
    goes_on(&world, &["buy", "large"]);
    assert!(good(world.ada(&["--json", "downloads"])).stdout.is_empty());
}

#[test]
fn a_kept_part_that_was_damaged_is_thrown_away_by_name_and_the_delivery_begins_anew() {
    let world = world(1);
    let mut child = begin(&world, &["buy", "large"]);
    kill(&child, Signal::KILL);
    child.wait().unwrap();
    settled(&world);
    let kept =
        std::fs::read_dir(spool(&world)).unwrap().map(|e| e.unwrap().path()).find(|p| p.extension().is_some_and(|e| e == "delivery"));
    let kept = kept.unwrap();
    let mut bytes = std::fs::read(&kept).unwrap();
    bytes[1_000_000] ^= 1;
    std::fs::write(&kept, bytes).unwrap();
    let steps = json_lines(&good(world.ada(&["--json", "buy", "large"])));
    assert!(steps.iter().any(|s| s["text"].as_str().is_some_and(|t| t.contains("beginning anew"))), "{steps:?}");
    world.awaits(PROCESSOR, 0, |line| line.contains("kept_part_altered"), "the damage");
    assert_eq!((world.balance(), world.receipts()), (("90.00 EUR".into(), "0.00 EUR".into()), 1));
    same(&world, "large");
}

#[test]
fn what_waits_is_given_up_when_its_user_says_so_and_a_redownload_pauses_and_goes_on_as_a_purchase_does() {
    let world = world(1);
    good(world.ada(&["buy", "large"]));
    let again = ["redownload", "1", "-o", "again"];
    let mut child = begin(&world, &again);
    kill(&child, Signal::KILL);
    child.wait().unwrap();
    let there = settled(&world);
    let steps = json_lines(&good(world.ada(&again).arg("--json")));
    assert_eq!(went_on(&steps).0, there);
    same(&world, "again");
    let mut child = begin(&world, &["redownload", "1", "-o", "more"]);
    kill(&child, Signal::KILL);
    child.wait().unwrap();
    settled(&world);
    let order = json_lines(&good(world.ada(&["--json", "downloads"])))[0]["order"].as_str().unwrap().to_owned();
    good(world.ada(&["downloads", "--give-up", &order]));
    assert_eq!(waiting(&world), (0, 0));
    refused(world.ada(&["downloads", "--give-up", &order]), Code::UnknownOrder);
    assert_eq!(world.receipts(), 1);
}

/// Publishes files of so many bytes under these names.
fn publish(world: &World, names: &[&str], size: usize) {
    for name in names {
        noise(&world.folder.path().join(name), size);
        world.publish(&world.folder.path().join(name), name, "1", &["--open-to-file"]);
    }
}

#[test]
fn of_several_programs_at_once_one_that_fails_stops_no_other_and_each_is_named() {
    let world = World::start("", 1);
    publish(&world, &["one", "two", "three"], 3 << 20);
    refused(world.ada(&["buy", "one", "two", "one"]), Code::Conflict);
    assert_eq!((world.names().len(), world.receipts()), (0, 0));
    let output = world.ada(&["buy", "one", "nothing", "two", "three", "--jobs", "3"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(i32::from(Code::UnknownProgram.fault().exit_code())), "{said}");
    assert!(said.contains("nothing: error[unknown_program]") && said.contains("1 of 4 programs did not come: nothing"), "{said}");
    for name in ["one", "two", "three"] {
        assert!(said.contains(&format!("1002  {name}: order ")) && said.contains(&format!("1011  {name}: ")), "{said}");
    }
    assert_eq!((world.names(), world.receipts()), (["one", "three", "two"].map(str::to_owned).to_vec(), 3));
    assert_eq!(world.balance(), ("70.00 EUR".to_owned(), "0.00 EUR".to_owned()));
}

#[test]
fn several_at_once_pause_together_and_the_same_command_goes_on_with_each() {
    let world = World::start("", 1);
    let names = ["one", "two", "three"];
    publish(&world, &names, SIZE / 2);
    let buy = [&["buy"], &names[..]].concat();
    let mut child = begin(&world, &buy);
    kill(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    settled(&world);
    assert_eq!(world.balance(), ("70.00 EUR".to_owned(), "30.00 EUR".to_owned()), "all three are held, nothing is taken");
    let steps = json_lines(&good(world.ada(&buy).arg("--json")));
    assert!(steps.iter().any(|s| s["kept"].as_u64().is_some_and(|kept| kept > 0)), "none went on where it stopped");
    assert!(steps.iter().filter(|s| s["step"] == 1011).all(|s| names.contains(&s["wish"].as_str().unwrap())));
    assert_eq!((world.names().len(), world.receipts(), waiting(&world)), (3, 3, (0, 0)));
    assert_eq!(world.balance(), ("70.00 EUR".to_owned(), "0.00 EUR".to_owned()));
}

#[test]
fn several_packages_come_by_one_command_and_by_two_at_once() {
    let world = World::start("", 1);
    publish(&world, &["one", "two", "three", "four"], 3 << 20);
    refused(world.ada(&["buy", "one", "two", "-o", "both"]), Code::ConfigInvalid);
    good(world.ada(&["buy", "one", "two"]));
    let slowly = |name| world.ada(&["buy", name, "--limit-rate", "2M"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let both = ["three", "four"].map(slowly);
    assert!(both.map(|child| child.wait_with_output().unwrap().status.success()) == [true, true]);
    assert_eq!((world.names(), world.receipts()), (["four", "one", "three", "two"].map(str::to_owned).to_vec(), 4));
    assert_eq!(world.balance().0, "60.00 EUR");
}
