//! When the server's disk fails in the middle of a sale, nobody is charged for what he did not get, nothing is lost, and as soon as the
//! disk works again everything goes on. The kernel's answers are changed by strace, for the server alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{SERVER, World, audited, good};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process whose system calls fail as long as this lives.
struct Failing(Child, u32);

impl Failing {
    /// `inject` is strace's.
    fn begin(pid: u32, inject: &str) -> Self {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("inject={inject}"), "-p", &pid.to_string()]);
        let strace = command.stdin(Stdio::null()).spawn().expect("strace is installed: ./test installs it");
        let failing = Self(strace, pid);
        failing.wait_for(true);
        failing
    }

    fn wait_for(&self, traced: bool) {
        let begun = Instant::now();
        while all_traced(self.1) != Some(traced) {
            assert!(begun.elapsed() < Duration::from_secs(20), "strace does not get hold of the server, or not rid of it");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn end(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap(); // It lets go first.
        self.0.wait().unwrap();
        self.wait_for(false);
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        let _ = self.0.kill(); // A test that failed.
        let _ = self.0.wait();
    }
}

/// Whether every thread of the process is traced, or none is.
fn all_traced(pid: u32) -> Option<bool> {
    let mut traced = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().filter_map(|task| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        Some(status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0")))
    });
    let first = traced.next()?;
    traced.all(|other| other == first).then_some(first)
}

/// Buys while the server's calls fail as `inject` says, then once more without.
fn failing_in_the_middle(world: &World, program: &str, inject: &str) {
    let (receipts, before) = (world.receipts(), world.balance());
    let failing = Failing::begin(world.daemons.daemons[SERVER].pid(), inject);
    let failed = world.ada(&["--json", "buy", program, "--again"]).output().unwrap();
    assert!(!failed.status.success(), "{inject}: nothing can be sold now");
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(["database", "\"io\"", "disk_full", "busy"].iter().any(|code| said.contains(code)), "{inject}: {said}");
    failing.end();
    assert_eq!((world.receipts(), &world.balance().0), (receipts, &before.0), "{inject}: nobody paid");
    let package = world.buy(program, &["--again"]);
    assert_eq!(world.receipts(), receipts + 1, "{inject}: once");
    good(world.ada(&["run", package.to_str().unwrap(), "/"]));
    fs::remove_file(package).unwrap();
    audited(world);
}

#[test]
fn a_disk_that_is_full_or_keeps_nothing_sells_nothing_loses_nothing_and_is_gone_on_with() {
    let world = World::start("", 1);
    world.publish(Path::new("/bin/ls"), "ls", "1", &[]);
    for inject in ["fdatasync,fsync:error=EIO", "pwrite64:error=ENOSPC", "fdatasync,fsync:error=EIO:when=3+"] {
        failing_in_the_middle(&world, "ls", inject);
    }
}
