//! Everything under one user, as in development: nothing is promised against that user, and everything must work.

use crate::client::{Daemon, until};
use crate::starting::{output, starter, starter_of};
use crate::world::{World, processor, sample};
use chipbound_wire::documents::Manifest;
use chipbound_wire::suite::LoaderVariables;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Packages `program` under its own name; the daemon must not run yet.
pub(crate) fn package(world: &World, program: &str, change: impl FnOnce(&mut Manifest)) -> PathBuf {
    let plain = fs::read(program).expect("a program of every Debian");
    let folder = tempfile::Builder::new().prefix("package").tempdir_in(world.folder.path()).expect("folder").keep();
    let path = folder.join(Path::new(program).file_name().expect("a name"));
    fs::write(&path, world.package(&world.ship(&plain, change))).expect("written");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("mode");
    path
}

fn message(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn a_package_behaves_as_its_plain_program() {
    let cases: [(&str, &[&str], &[u8]); 8] = [
        ("/bin/sh", &["-c", "echo out; echo err >&2; cat; exit 7"], b"given"),
        ("/bin/sh", &["-c", "kill -TERM $$"], b""),
        ("/bin/cat", &[], &[0, 1, 2, 255]),
        ("/bin/cat", &["/nonexistent"], b""),
        ("/bin/ls", &["-ld", "/usr"], b""),
        ("/usr/bin/env", &["-i", "A=b", "env"], b""),
        ("/usr/bin/git", &["--version"], b""),
        (
            "/usr/bin/python3",
            &["-c", "import sys, threading; t = threading.Thread(target=print, args=(sys.argv[1:],)); t.start(); t.join()", "a"],
            b"",
        ),
    ];
    let world = World::new();
    let there = |program: &str| {
        let there = Path::new(program).exists();
        if !there {
            println!("{program}: not run here, it is not installed");
        }
        there
    };
    let packages: Vec<_> = cases.iter().filter(|c| there(c.0)).map(|c| (c, package(&world, c.0, |_| {}))).collect();
    let daemon = Daemon::of(&world);
    for ((program, arguments, input), package) in packages {
        let plain = output(Command::new(program).args(*arguments), input);
        // Twice: opened now, and from the cache.
        for round in 0..2 {
            let started = output(&mut starter(&daemon.socket, &package, arguments), input);
            let same = |a: &Output, b: &Output| (a.status, &a.stdout) == (b.status, &b.stdout);
            assert!(same(&started, &plain), "{program} {arguments:?} {round}: {started:?} instead of {plain:?}");
            let errors = message(&started).replace(&*package.to_string_lossy(), program);
            assert_eq!(errors, message(&plain), "{program} {arguments:?} {round}");
        }
    }
}

pub(crate) fn without_the_processor_not_one_sealed_byte_runs() {
    let world = World::new();
    let package = package(&world, "/bin/echo", |_| {});
    let alone = output(Command::new(&package).arg("x"), b"");
    assert_eq!((alone.status.signal(), &alone.stdout[..]), (Some(11), &b""[..]), "{alone:?}");
}

pub(crate) fn twenty_starts_of_one_build_at_once_all_succeed() {
    let world = World::new();
    let package = package(&world, "/bin/echo", |_| {});
    let daemon = Daemon::of(&world);
    std::thread::scope(|scope| {
        let starts: Vec<_> = (0..20)
            .map(|i| {
                scope.spawn({
                    let (d, p) = (&daemon, &package);
                    move || output(&mut starter(&d.socket, p, &[&i.to_string()]), b"")
                })
            })
            .collect();
        for (i, start) in starts.into_iter().enumerate() {
            let started = start.join().expect("ended");
            assert_eq!((started.status.code(), started.stdout), (Some(0), format!("{i}\n").into_bytes()));
        }
    });
}

pub(crate) fn an_altered_package_or_another_processors_is_refused_before_exec() {
    let world = World::new();
    let good = package(&world, "/bin/echo", |_| {});
    let other = processor(&world.pki, &world.folder.path().join("other"));
    drop(other);
    let daemon = Daemon::of(&world);
    let elsewhere = Daemon::start(&world.folder.path().join("other"));
    let refused = |daemon: &Daemon, path: &Path, code: &str| {
        let started = output(&mut starter(&daemon.socket, path, &["x"]), b"");
        assert_eq!((started.status.code(), &started.stdout[..]), (Some(126), &b""[..]), "{started:?}");
        assert!(message(&started).contains(code), "{} instead of {code}", message(&started));
    };
    refused(&elsewhere, &good, "processor_mismatch");
    assert!(output(&mut starter(&daemon.socket, &good, &["x"]), b"").status.success());
    // The same file, changed after it was opened and kept: another time of change, so it is verified again.
    let mut bytes = fs::read(&good).expect("the package");
    let sealed = bytes.len() / 2;
    bytes[24] ^= 1; // The entry point.
    fs::write(&good, &bytes).expect("altered");
    refused(&daemon, &good, "plain_parts_altered");
    bytes[24] ^= 1;
    bytes[sealed] ^= 1;
    fs::write(&good, &bytes).expect("altered");
    refused(&daemon, &good, "_altered");
    bytes[sealed] ^= 1;
    fs::write(&good, &bytes[..bytes.len() - 1]).expect("cut");
    refused(&daemon, &good, "not_a_package");
    fs::write(&good, &bytes).expect("restored");
    assert!(output(&mut starter(&daemon.socket, &good, &["x"]), b"").status.success());
    refused(&daemon, Path::new("/bin/echo"), "not_a_package");
}

pub(crate) fn another_file_in_place_of_the_verified_one_ends_with_126() {
    let world = World::new();
    let (good, other) = (package(&world, "/bin/echo", |_| {}), package(&world, "/bin/echo", |_| {}));
    let daemon = Daemon::of(&world);
    let own = std::env::current_exe().expect("this binary");
    for executed in [&other, Path::new("/bin/echo")] {
        let started = output(&mut starter_of(&own, &daemon.socket, &good, executed, "0", &["x"]), b"");
        assert_eq!((started.status.code(), &started.stdout[..]), (Some(126), &b""[..]), "{started:?}");
        assert!(message(&started).contains("process_mismatch"), "{}", message(&started));
    }
    until("the daemon says so too", || daemon.log().contains("process_mismatch"));
}

pub(crate) fn loader_variables_are_gone_or_stay_as_the_vendor_wants() {
    let world = World::new();
    let forbidding = package(&world, "/usr/bin/env", |_| {});
    let allowing = package(&world, "/usr/bin/env", |m| m.loader_variables = LoaderVariables::Allow);
    let daemon = Daemon::of(&world);
    for (package, stays) in [(forbidding, false), (allowing, true)] {
        let mut command = starter(&daemon.socket, &package, &[]);
        // For the client itself the library is missing, which ld.so says and goes on.
        let started = output(command.env("LD_PRELOAD", "/nonexistent/spy.so").env("OTHER", "stays"), b"");
        let environment = String::from_utf8_lossy(&started.stdout).into_owned();
        assert!(started.status.success() && environment.contains("OTHER=stays\n"), "{started:?}");
        assert_eq!(environment.contains("LD_PRELOAD"), stays, "{environment}");
        assert_eq!(message(&started).matches("spy.so").count(), 1 + usize::from(stays), "{}", message(&started));
    }
}

pub(crate) fn a_version_that_its_vendor_withdrew_is_refused_although_it_was_opened_before() {
    let mut world = World::new();
    let old = package(&world, "/bin/echo", |_| {});
    let start = |world: &World| {
        let daemon = Daemon::of(world);
        output(&mut starter(&daemon.socket, &old, &["x"]), b"")
    };
    assert!(start(&world).status.success());
    world.restart(); // The daemon's own steps are in its file.
    let new = package(&world, "/bin/echo", |m| (m.sequence, m.minimum_sequence) = (2, 2));
    let refused = start(&world);
    assert_eq!(refused.status.code(), Some(126));
    assert!(message(&refused).contains("sequence_too_old"), "{}", message(&refused));
    let daemon = Daemon::of(&world);
    assert!(output(&mut starter(&daemon.socket, &new, &["x"]), b"").status.success());
}

pub(crate) fn data_is_not_run_and_programs_are_not_opened_to_files() {
    let world = World::new();
    let path = world.folder.path().join("data");
    fs::write(&path, world.package(&world.ship(&sample(1000), |_| {}))).expect("written");
    let daemon = Daemon::of(&world);
    let started = output(&mut starter(&daemon.socket, &path, &[]), b"");
    assert_eq!(started.status.code(), Some(126));
    assert!(message(&started).contains("unsupported_program"), "{}", message(&started));
}

pub(crate) fn a_client_in_another_mount_or_user_namespace_is_refused() {
    let world = World::new();
    let package = package(&world, "/bin/echo", |_| {});
    let daemon = Daemon::of(&world);
    let own = std::env::current_exe().expect("this binary");
    for namespace in ["--mount", "--user"] {
        let able = Command::new("unshare").args([namespace, "/bin/true"]).output().is_ok_and(|o| o.status.success());
        if !able {
            println!("unshare {namespace}: not run here, this user may not make one");
            continue;
        }
        let starter = starter_of(&own, &daemon.socket, &package, &package, "0", &["x"]);
        let started = output(Command::new("unshare").arg(namespace).arg(starter.get_program()).args(starter.get_args()), b"");
        assert_eq!((started.status.code(), &started.stdout[..]), (Some(126), &b""[..]), "{started:?}");
        assert!(message(&started).contains("foreign_namespace"), "{}", message(&started));
    }
}

pub(crate) fn a_client_that_does_not_exec_in_time_is_let_go() {
    let world = World::new();
    let package = package(&world, "/bin/echo", |_| {});
    let configuration = world.folder.path().join("processor/processor.toml");
    let toml = fs::read_to_string(&configuration).expect("the configuration").replace("start_seconds = 30", "start_seconds = 1");
    fs::write(&configuration, toml).expect("written");
    let daemon = Daemon::of(&world);
    let own = std::env::current_exe().expect("this binary");
    // Let go, it runs on, and executes the package too late: without the processor that ends at its first instruction.
    let late = output(&mut starter_of(&own, &daemon.socket, &package, &package, "3", &["x"]), b"");
    assert_eq!((late.status.signal(), &late.stdout[..]), (Some(11), &b""[..]), "{late:?}");
    assert!(daemon.log().contains("timed_out"));
    assert!(output(&mut starter(&daemon.socket, &package, &["x"]), b"").status.success(), "others are served");
}
