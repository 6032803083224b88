//! A package that runs is the program: its streams, arguments, environment, folder, exit code, signals and descriptors are those
//! that the plain program would have in its place.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound_wire::Code;
use common::{World, refused};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs a shell plain and protected, prepared alike, with `input` on stdin.
fn both(world: &World, prepare: impl Fn(&mut Command), input: &[u8]) -> (Output, Output) {
    let finish = |mut command: Command| {
        prepare(&mut command);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(input); // A program need not read.
        child.wait_with_output().unwrap()
    };
    let mut plain = Command::new("./plain/sh");
    plain.current_dir(world.work(""));
    let mut protected = Command::new(common::CHIPBOUND);
    protected.arg("run").arg("--processor").arg(&world.daemons.sockets[0]).arg("./sh").current_dir(world.work(""));
    (finish(plain), finish(protected))
}

fn world() -> World {
    let world = World::start("", 1);
    world.publish(Path::new("/bin/dash"), "sh", "1", &[]);
    world.buy("sh", &[]);
    std::fs::create_dir(world.work("plain")).unwrap();
    // Copied by a process of its own: a descriptor for writing here, passed on to another test's child, would make it "text busy".
    common::good(Command::new("cp").arg("/bin/dash").arg(world.work("plain/sh")));
    world
}

#[test]
fn streams_arguments_environment_folder_and_exit_code_are_the_programs_own() {
    let world = world();
    let scripts: [(&[&str], &[u8]); 8] = [
        (&["-c", "cat; echo out; echo err >&2; exit 7"], b"from stdin\0\xff"),
        (&["-c", "echo \"$#:$1:$2:$3\"", "name", "", "two words", "--json"], b""),
        (&["-c", "pwd; cd /; pwd"], b""),
        (&["-c", "export -p"], b""),
        (&["-c", "trap 'echo caught; exit 3' TERM; kill -TERM $$; sleep 5"], b""),
        (&["-c", "umask; ulimit -n"], b""),
        (&["-c", "ls /proc/$$/fd"], b""),
        (&["-c", "grep -E '^(SigBlk|SigIgn|SigCgt|Groups|Uid|CapEff|NoNewPrivs|Seccomp):' /proc/self/status"], b""),
    ];
    for (arguments, input) in scripts {
        let prepare = |command: &mut Command| {
            command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").env("A", "1").env("LINES", "two\nlines");
        };
        let (plain, protected) = both(&world, prepare, input);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(text(&protected.stdout), text(&plain.stdout), "{arguments:?}: {}", text(&protected.stderr));
        assert_eq!(text(&protected.stderr), text(&plain.stderr), "{arguments:?}");
        assert_eq!(protected.status, plain.status, "{arguments:?}");
    }
}

#[test]
fn a_program_that_dies_by_a_signal_dies_by_that_signal() {
    let world = world();
    for signal in ["TERM", "KILL", "PIPE", "INT", "ABRT"] {
        let (plain, protected) = both(
            &world,
            |command| {
                command.args(["-c", &format!("kill -{signal} $$")]);
            },
            b"",
        );
        assert!(plain.status.signal().is_some(), "{signal}");
        assert_eq!(protected.status, plain.status, "{signal}: {}", String::from_utf8_lossy(&protected.stderr));
    }
}

#[test]
fn many_start_at_once_and_each_is_its_own() {
    let world = world();
    let children: Vec<_> = (0..16)
        .map(|n| {
            let mut command = world.ada(&["run", "./sh", "-c"]);
            command.arg(format!("echo {n}; exit {n}")).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (n, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stdout), (Some(n as i32), format!("{n}\n").into_bytes()));
    }
}

#[test]
fn a_package_is_found_as_it_stands_or_in_the_path_and_a_missing_one_is_127() {
    let world = world();
    for name in ["sh", "./sh", world.work("sh").to_str().unwrap()] {
        assert_eq!(world.ada(&["run", name, "-c", "exit 5"]).status().unwrap().code(), Some(5), "{name}");
    }
    let elsewhere = world.ada(&["run", "sh", "-c", "exit 6"]).current_dir("/").env("PATH", world.work("")).status().unwrap();
    assert_eq!(elsewhere.code(), Some(6));
    let missing = world.ada(&["run", "./missing"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("error[not_found]: ./missing"));
}

#[test]
fn without_its_processor_a_package_does_not_start_and_running_ones_go_on() {
    let mut world = world();
    let mut running = world.ada(&["run", "./sh", "-c", "echo up; read line; echo \"$line\"; exit 4"]);
    let mut running = running.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(running.stdout.as_mut().unwrap(), &mut up).unwrap();
    world.daemons.daemons[2].stop();
    refused(world.ada(&["run", "./sh", "-c", "exit 0"]), Code::ProcessorUnreachable);
    running.stdin.take().unwrap().write_all(b"still here\n").unwrap();
    let output = running.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout), (Some(4), b"still here\n".to_vec()));
}
