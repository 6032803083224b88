//! Whatever ends in the middle, nothing is charged twice, nothing half-written is left, and the same command goes on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound_wire::Code;
use common::{World, good, json_lines, noise, refused};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// Large enough that a delivery takes many looks.
const LARGE: usize = 96 << 20;

fn world() -> World {
    let world = World::start("", 1);
    noise(&world.folder.path().join("large"), LARGE);
    world.publish(&world.folder.path().join("large"), "large", "1", &["--open-to-file"]);
    world
}

/// Begins a purchase and returns when its price is held and the package's temporary file is there: the delivery is under way.
fn begin(world: &World) -> Child {
    let mut child = world.ada(&["buy", "large"]).stderr(Stdio::piped()).spawn().unwrap();
    while world.balance().1 == "0.00 EUR" || !world.names().iter().any(|n| n.ends_with(".part")) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it began");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

fn kill(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
}

/// The same command brings the package, for one charge and one receipt.
fn goes_on(world: &World) {
    good(world.ada(&["buy", "large"]));
    assert_eq!((world.balance(), world.receipts()), (("90.00 EUR".into(), "0.00 EUR".into()), 1));
    good(world.ada(&["open", "large", "-o", "opened"]));
    let same = std::fs::read(world.work("opened")).unwrap() == std::fs::read(world.folder.path().join("large")).unwrap();
    assert!(same, "the package holds what was published");
}

#[test]
fn ctrl_c_in_the_middle_leaves_nothing_half_written_and_the_same_command_goes_on() {
    let world = world();
    for signal in [Signal::INT, Signal::TERM] {
        let child = begin(&world);
        kill(&child, signal);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{said}");
        assert!(said.contains("error[cancelled]: ") && said.contains("what to do: Run the same command again to go on."), "{said}");
        assert!(world.names().is_empty(), "{:?}", world.names());
        assert_eq!((world.balance(), world.receipts()), (("90.00 EUR".into(), "10.00 EUR".into()), 0), "held, not taken");
    }
    goes_on(&world);
    assert_eq!(world.names(), ["large", "opened"]);
}

#[test]
fn a_killed_client_goes_on_with_the_same_order() {
    let world = world();
    let mut child = begin(&world);
    kill(&child, Signal::KILL);
    child.wait().unwrap();
    assert_eq!(world.receipts(), 0);
    goes_on(&world);
}

#[test]
fn two_at_the_same_purchase_do_not_buy_twice() {
    let world = world();
    let first = begin(&world);
    refused(world.ada(&["buy", "large"]), Code::Busy);
    assert!(first.wait_with_output().unwrap().status.success());
    assert_eq!((world.balance().0.as_str(), world.receipts()), ("90.00 EUR", 1));
}

#[test]
fn a_processor_that_is_killed_in_the_middle_is_named_and_delivers_after_its_restart() {
    let mut world = world();
    let child = begin(&world);
    world.daemons.daemons[2].kill();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("error[processor_unreachable]"), "{said}");
    assert!(world.names().is_empty(), "{:?}", world.names());
    let config = world.folder.path().join("processor-1/processor.toml");
    let arguments = ["processor".as_ref(), "run".as_ref(), "--config".as_ref(), config.as_os_str()];
    let log = world.folder.path().join("again.log");
    let start = chipbound::demo::world::Daemon::start(Path::new(common::CHIPBOUND), &arguments, &log);
    let (daemon, _) = world.runtime.block_on(start).unwrap();
    world.daemons.daemons.push(daemon);
    goes_on(&world);
}

/// A file system of a given size, for root alone.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, size: u64) -> Option<Self> {
        std::fs::create_dir(&at).unwrap();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        match mount("tmpfs", &at, "tmpfs", MountFlags::empty(), options.as_c_str()) {
            Ok(()) => Some(Self(at)),
            Err(e) => {
                println!("not run here: mounting a small file system needs root ({e})");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_is_found_out_before_the_charge_and_another_folder_gets_the_same_order() {
    let world = world();
    let Some(small) = Small::mount(world.work("small"), 1 << 20) else { return };
    refused(world.ada(&["buy", "large", "-o", "small/large"]), Code::DiskFull);
    assert_eq!(std::fs::read_dir(&small.0).unwrap().count(), 0, "nothing half-written is left");
    assert_eq!((world.balance(), world.receipts()), (("90.00 EUR".into(), "10.00 EUR".into()), 0), "held, not taken");
    good(world.ada(&["buy", "large", "-o", "large"]));
    assert_eq!((world.balance(), world.receipts()), (("90.00 EUR".into(), "0.00 EUR".into()), 1));
}

#[test]
fn a_disk_that_fills_after_the_charge_costs_nothing_more_the_receipt_fetches_the_package() {
    let world = World::start("", 1);
    noise(&world.work("data"), 512 << 10);
    world.publish(&world.work("data"), "data", "1", &["--open-to-file"]);
    // Room for the body, which is set aside before the charge, and for no documents after it.
    let Some(small) = Small::mount(world.work("small"), 512 << 10) else { return };
    refused(world.ada(&["buy", "data", "-o", "small/data"]), Code::DiskFull);
    assert_eq!(std::fs::read_dir(&small.0).unwrap().count(), 0, "nothing half-written is left");
    assert_eq!((world.balance(), world.receipts()), (("90.00 EUR".into(), "0.00 EUR".into()), 1), "charged, with a receipt");
    let steps = json_lines(&good(world.ada(&["--json", "buy", "data", "-o", "here"])));
    assert!(steps.iter().any(|l| l["text"].as_str().is_some_and(|t| t.contains("no charge"))), "{steps:?}");
    assert_eq!((world.balance().0.as_str(), world.receipts()), ("90.00 EUR", 1));
    assert_eq!(good(world.ada(&["open", "here", "-o", "-"])).stdout, std::fs::read(world.work("data")).unwrap());
}
