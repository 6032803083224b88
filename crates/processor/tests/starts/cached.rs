//! What the processor keeps opened, with real programs: shared by files and orders of one build, bounded, dropped when it should be,
//! and never taken from a program that runs.

use crate::client::{Client, Daemon, receive};
use crate::own_user::package;
use crate::starting::{output, starter};
use crate::world::{Lies, Shipment, World, now, serve};
use chipbound_testkit::documents;
use chipbound_wire::control::{Line, Request, Response};
use chipbound_wire::documents::Manifest;
use chipbound_wire::random::fresh;
use chipbound_wire::signed::read_claims;
use chipbound_wire::{OrderId, ProgramId, SystemRandom};
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// How often the daemon opened a build.
fn opened(daemon: &Daemon) -> usize {
    daemon.log().matches("opened program=").count()
}

/// Starts the package, which must print `x`; how often the daemon had opened anything by then.
fn starts(daemon: &Daemon, package: &Path) -> usize {
    let started = output(&mut starter(&daemon.socket, package, &["x"]), b"");
    assert_eq!((started.status.code(), &started.stdout[..]), (Some(0), &b"x\n"[..]), "{started:?}");
    opened(daemon)
}

/// A program that prints its argument: `/bin/echo`, in so many packages of different builds.
fn builds(world: &World, count: usize) -> Vec<PathBuf> {
    (0..count).map(|_| package(world, "/bin/echo", |_| {})).collect()
}

/// Sets a line of `[limits]`.
fn limit(world: &World, line: &str, value: u64) {
    let path = world.folder.path().join("processor/processor.toml");
    let text = fs::read_to_string(&path).expect("the configuration");
    let old = text.lines().find(|l| l.starts_with(&format!("{line} = "))).expect("a limit of the template").to_owned();
    fs::write(&path, text.replace(&old, &format!("{line} = {value}"))).expect("written");
}

/// Another order of the same release: the vendor's manifest is the same to the byte, everything else is new.
fn ordered_again(world: &World, shipment: &Shipment) -> Shipment {
    let manifest: Manifest = read_claims(&shipment.manifest).expect("the vendor's manifest");
    let mut confirmation = documents::confirmation(&manifest, &shipment.manifest, world.id(), now());
    confirmation.order = OrderId(fresh(&mut SystemRandom));
    Shipment { order: confirmation.order, confirmation: world.statement.sign(&confirmation), ..shipment.clone() }
}

fn written(world: &World, name: &str, bytes: &[u8]) -> PathBuf {
    let path = world.folder.path().join(name);
    fs::write(&path, bytes).expect("written");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("mode");
    path
}

pub(crate) fn copies_and_orders_of_one_build_are_verified_each_and_opened_once() {
    let world = World::new();
    let shipment = world.ship(&fs::read("/bin/echo").expect("a program of every Debian"), |_| {});
    let (first, second) = (world.package(&shipment), world.package(&ordered_again(&world, &shipment)));
    assert_ne!(first, second, "two orders have nothing in common on the disk");
    let files = [written(&world, "one", &first), written(&world, "copy", &first), written(&world, "order", &second)];
    let mut altered = second.clone();
    altered[second.len() / 2] ^= 1;
    let altered = written(&world, "altered", &altered);
    let daemon = Daemon::of(&world);
    for _ in 0..2 {
        for file in &files {
            assert_eq!(starts(&daemon, file), 1, "{}", file.display());
        }
        // That the build is there does not help a file that is not it.
        let refused = output(&mut starter(&daemon.socket, &altered, &["x"]), b"");
        assert_eq!((refused.status.code(), &refused.stdout[..]), (Some(126), &b""[..]), "{refused:?}");
    }
}

pub(crate) fn the_least_recently_used_build_goes_first_and_bytes_are_bounded() {
    let world = World::new();
    let programs = builds(&world, 3);
    limit(&world, "cache_entries", 2);
    let daemon = Daemon::of(&world);
    let order = [(0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4), (2, 5), (1, 5)];
    for (step, (program, so_far)) in order.into_iter().enumerate() {
        assert_eq!(starts(&daemon, &programs[program]), so_far, "step {step}");
    }
    assert!(daemon.stop().success());
    limit(&world, "cache_bytes", 1000);
    let daemon = Daemon::of(&world);
    for so_far in 1..=3 {
        assert_eq!(starts(&daemon, &programs[0]), so_far, "what is larger than the cache runs and is not kept");
    }
}

/// A shell that has said that it runs, and goes on once it is told to.
struct Running(Child);

impl Running {
    fn start(daemon: &Daemon, shell: &Path) -> Self {
        let script = "echo up; read word; test $word = on && printf '%s %s\\n' still here; exit 4";
        let mut command = starter(&daemon.socket, shell, &["-c", script]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawned");
        let mut up = [0; 3];
        child.stdout.as_mut().expect("piped").read_exact(&mut up).expect("it runs");
        Self(child)
    }

    /// Code that it has not touched so far still runs.
    fn goes_on(mut self) {
        self.0.stdin.take().expect("piped").write_all(b"on\n").expect("it reads");
        let output = self.0.wait_with_output().expect("ended");
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(4), &b"still here\n"[..]));
    }
}

pub(crate) fn eviction_forgetting_and_the_daemons_end_disturb_no_running_program() {
    let world = World::new();
    let (shell, other) = (package(&world, "/bin/sh", |_| {}), builds(&world, 1).remove(0));
    limit(&world, "cache_entries", 1);
    let daemon = Daemon::of(&world);
    let evicted = Running::start(&daemon, &shell);
    assert_eq!(starts(&daemon, &other), 2, "the only place is taken by another program");
    evicted.goes_on();
    let forgotten = Running::start(&daemon, &shell);
    assert_eq!(forget(&daemon, None).0, 1);
    forgotten.goes_on();
    let left = [Running::start(&daemon, &shell), Running::start(&daemon, &shell)];
    assert!(daemon.stop().success());
    left.into_iter().for_each(Running::goes_on);
    let daemon = Daemon::of(&world);
    let left = Running::start(&daemon, &shell);
    daemon.kill();
    left.goes_on();
}

/// Has the daemon forget; builds and bytes.
fn forget(daemon: &Daemon, program: Option<ProgramId>) -> (u64, u64) {
    let mut client = daemon.client();
    client.ask(&Request::Forget { program }, &[]);
    match client.answer().expect("forgotten") {
        Response::Forgotten { builds, bytes } => (builds, bytes),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn what_the_operator_has_forgotten_is_opened_anew() {
    let world = World::new();
    let name = |name: &str| ProgramId::new(&world.vendor.id(), name).expect("a good name");
    let named = |program: ProgramId| package(&world, "/bin/echo", |m| m.program = program);
    let (one, two) = (named(name("one")), named(name("two")));
    let daemon = Daemon::of(&world);
    starts(&daemon, &one);
    assert_eq!(starts(&daemon, &two), 2);
    let (builds, bytes) = forget(&daemon, Some(name("one")));
    assert!(builds == 1 && bytes > 10_000, "{builds} {bytes}");
    assert_eq!(starts(&daemon, &two), 2);
    assert_eq!(starts(&daemon, &one), 3);
    assert_eq!(forget(&daemon, None).0, 2);
    assert_eq!(forget(&daemon, None), (0, 0));
}

pub(crate) fn a_build_that_a_later_manifest_withdraws_is_dropped_at_once_and_runs_on_where_it_runs() {
    let world = World::new();
    let old = package(&world, "/bin/sh", |_| {});
    let daemon = Daemon::of(&world);
    let running = Running::start(&daemon, &old);
    assert_eq!(opened(&daemon), 1);
    let shipment = world.ship(&fs::read("/bin/sh").expect("a shell"), |m| (m.sequence, m.minimum_sequence) = (2, 2));
    let _client = delivered(&daemon, &world, &shipment);
    assert!(daemon.log().contains("withdrawn by its vendor"), "{}", daemon.log());
    assert_eq!(forget(&daemon, None), (0, 0), "it is not kept any more");
    let refused = output(&mut starter(&daemon.socket, &old, &["-c", "echo x"]), b"");
    assert_eq!((refused.status.code(), &refused.stdout[..]), (Some(126), &b""[..]), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("sequence_too_old"), "{refused:?}");
    running.goes_on();
}

/// A delivery through the daemon, up to the acknowledgement.
fn delivered(daemon: &Daemon, world: &World, shipment: &Shipment) -> Client {
    let mut client = daemon.client();
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    client.ask(&receive(&shipment.confirmation, Line::Tunnel), &[ours.as_fd()]);
    drop(ours);
    serve(theirs, world, shipment, &Lies::default()).expect("delivered");
    client.answer().expect("received");
    client
}
