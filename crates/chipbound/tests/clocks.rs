//! Clocks that are set forward and back in the middle of purchases: of the server, the processor and the client. What a wrong clock
//! forbids is refused by name, holds are given back, and once the clock is right the purchase ends, charged once.
//!
//! The programs ask the C library for the time (std's `SystemTime`), which answers without a system call; so a library that is loaded
//! before it adds the seconds that stand in a file.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound_wire::Code;
use common::{CHIPBOUND, SERVER, World, audited, good, noise, script};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

const HOUR: i64 = 3600;
const YEAR: i64 = 365 * 24 * HOUR;
/// Orders run out after half an hour.
const POLICY: &str = "order_seconds = 1800\n";
/// Says which clock a process follows.
const FOLLOWS: &str = "CHIPBOUND_TEST_CLOCK";

const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *step;
static int (*true_time)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CHIPBOUND_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *at = file < 0 ? MAP_FAILED : mmap(0, sizeof *step, PROT_READ, MAP_SHARED, file, 0);
    if (at == MAP_FAILED) abort();
    close(file);
    true_time = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    step = at;
}

int clock_gettime(clockid_t clock, struct timespec *to) {
    int failed = true_time ? true_time(clock, to) : (int)syscall(SYS_clock_gettime, clock, to);
    if (!failed && clock == CLOCK_REALTIME && step) to->tv_sec += *step;
    return failed;
}
"#;

/// One clock for everybody of a role; in a folder of their own.
struct Clocks(TempDir);

impl Clocks {
    fn new() -> Self {
        let clocks = Self(tempfile::Builder::new().prefix("chipbound-clocks-").tempdir().unwrap());
        let source = clocks.path("clock.c");
        fs::write(&source, CLOCK).unwrap();
        good(Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).args([clocks.path("clock.so"), source]));
        for role in ["authority", "server", "processor", "client"] {
            fs::write(clocks.path(role), 0i64.to_ne_bytes()).unwrap();
        }
        let (folder, library) = (clocks.0.path().display(), clocks.path("clock.so"));
        let follow = format!("export {FOLLOWS}={folder}/$1 LD_PRELOAD={}", library.display());
        let text = format!("#!/bin/sh\ncase \"$1\" in authority|server|processor) {follow} ;; esac\nexec {CHIPBOUND} \"$@\"");
        script(&clocks.path("chipbound"), &text);
        clocks
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// From now on the clocks of that role are so many seconds ahead.
    fn set(&self, role: &str, seconds: i64) {
        File::options().write(true).open(self.path(role)).unwrap().write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }

    fn world(&self) -> World {
        let world = World::start_by(&self.path("chipbound"), POLICY, 1);
        noise(&world.folder.path().join("data"), 1 << 20);
        world.publish(&world.folder.path().join("data"), "data", "1", &["--open-to-file"]);
        world
    }

    /// The command as ada, by the client's clock.
    fn ada(&self, world: &World, arguments: &[&str]) -> Command {
        let mut command = world.ada(arguments);
        command.env(FOLLOWS, self.path("client")).env("LD_PRELOAD", self.path("clock.so"));
        command
    }

    /// A purchase that is under way: its price is held, and its delivery takes seconds.
    fn begin(&self, world: &World) -> Buying {
        let mut command = self.ada(world, &["--json", "buy", "data", "--again", "--limit-rate", "200K"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        told.find(|line| line.contains("\"step\":1003")).expect("the delivery begins");
        Buying { child, told: Box::new(told) }
    }

    /// Begins a purchase, sets the clocks of a role, and finds that neither this purchase nor another try comes to its end, for these
    /// reasons; with the clocks right the same command ends it.
    fn leap(&self, world: &World, role: &str, seconds: i64, reasons: [Code; 2]) {
        let buying = self.begin(world);
        self.set(role, seconds);
        assert_eq!(code(&buying.end()), Some(reasons[0]), "{role} {seconds}: in the middle");
        let again = self.ada(world, &["--json", "buy", "data", "--again"]).output().unwrap();
        assert_eq!(code(&again), Some(reasons[1]), "{role} {seconds}: again");
        self.set(role, 0);
    }

    /// The same command, with all clocks right: one package, one charge.
    #[track_caller]
    fn ends(&self, world: &World, copies: usize) {
        good(self.ada(world, &["buy", "data", "--again"]));
        assert_eq!((world.balance(), world.receipts()), ((format!("{}.00 EUR", 100 - 10 * copies), "0.00 EUR".into()), copies));
        good(self.ada(world, &["open", "data", "-o", "opened"]));
        assert_eq!(fs::read(world.work("opened")).unwrap(), fs::read(world.folder.path().join("data")).unwrap());
        ["data", "opened"].iter().for_each(|name| fs::remove_file(world.work(name)).unwrap());
        audited(world);
    }
}

struct Buying {
    child: Child,
    told: Box<dyn Iterator<Item = String>>,
}

impl Buying {
    fn end(mut self) -> Output {
        self.told.by_ref().for_each(drop);
        self.child.wait_with_output().unwrap()
    }
}

/// The code with which it was refused; none where it was not.
fn code(output: &Output) -> Option<Code> {
    let said = String::from_utf8_lossy(&output.stderr);
    let refusal: Option<Value> = said.lines().rev().find_map(|line| serde_json::from_str(line).ok());
    assert_eq!(refusal.is_none(), output.status.success(), "{said}");
    refusal.map(|refusal| Code::parse(refusal["error"]["code"].as_str().unwrap()).unwrap())
}

#[test]
fn an_order_that_ran_out_by_a_servers_clock_is_given_back_and_the_same_command_buys_when_it_is_right() {
    let clocks = Clocks::new();
    let world = clocks.world();
    let (buying, before) = (clocks.begin(&world), world.log(SERVER).len());
    clocks.set("server", 2 * HOUR);
    world.awaits(SERVER, before, |line| line.contains("their holds were given back"), "an order that ran out");
    assert_eq!(world.balance(), ("100.00 EUR".into(), "0.00 EUR".into()));
    assert_eq!(code(&buying.end()), Some(Code::OrderExpired));
    clocks.set("server", 0);
    clocks.ends(&world, 1);
    // A purchase at a time to come, and the next one before it.
    clocks.set("server", HOUR);
    clocks.ends(&world, 2);
    clocks.set("server", 0);
    clocks.ends(&world, 3);
}

#[test]
fn a_server_that_is_a_year_off_sells_nothing_and_goes_on_when_its_clock_is_right() {
    let clocks = Clocks::new();
    let world = clocks.world();
    clocks.leap(&world, "server", -YEAR, [Code::CertificateNotYetValid, Code::CertificateNotYetValid]);
    clocks.ends(&world, 1);
    clocks.leap(&world, "server", YEAR, [Code::CertificateExpired, Code::Unauthenticated]);
    clocks.ends(&world, 2);
}

#[test]
fn a_processor_or_a_client_that_is_a_year_off_is_told_so_and_the_same_order_ends_when_its_clock_is_right() {
    let clocks = Clocks::new();
    let world = clocks.world();
    clocks.leap(&world, "processor", -YEAR, [Code::CertificateNotYetValid; 2]);
    clocks.ends(&world, 1);
    clocks.leap(&world, "processor", YEAR, [Code::CertificateExpired; 2]);
    clocks.ends(&world, 2);
    clocks.leap(&world, "client", -YEAR, [Code::CertificateNotYetValid; 2]);
    clocks.ends(&world, 3);
}

#[test]
fn a_charged_order_is_not_forgotten_by_a_client_whose_clock_is_set_forward() {
    let clocks = Clocks::new();
    let world = clocks.world();
    // Room for the body, which is set aside before the charge, and for no documents after it.
    let mut buy = Command::new("sh");
    buy.args(["-c", "ulimit -f 2052; exec \"$0\" buy data --again", CHIPBOUND]).current_dir(world.work(""));
    buy.env("CHIPBOUND_HOME", world.home("ada").path()).env("CHIPBOUND_PROCESSOR", &world.daemons.sockets[0]);
    assert!(!buy.output().unwrap().status.success());
    assert_eq!((world.balance(), world.receipts()), (("90.00 EUR".into(), "0.00 EUR".into()), 1), "charged");
    clocks.set("client", YEAR);
    let again = clocks.ada(&world, &["--json", "buy", "data", "--again"]).output().unwrap();
    assert_eq!(code(&again), Some(Code::CertificateExpired));
    clocks.set("client", 0);
    clocks.ends(&world, 1);
}
