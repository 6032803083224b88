//! Data for programs (source \[63\]): `chipbound run --with` gives a program the plaintext of a package of data, in ranges, and gives
//! it to nobody else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound_wire::Code;
use common::{World, good, noise, refused};
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Much more than a program reads of it at once.
const SIZE: usize = 64 << 20;

/// A world with the program `reader`, and `model`, data of so many bytes that may not be opened to a file.
fn world(size: usize) -> (World, Vec<u8>) {
    let world = World::start("", 1);
    let folder = world.folder.path();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data_for_programs/reader.c");
    good(Command::new("cc").args(["-O1", "-w", "-o"]).arg(folder.join("plain-reader")).arg(source));
    world.publish(&folder.join("plain-reader"), "reader", "1", &[]);
    let plain = noise(&folder.join("plain-model"), size);
    world.publish(&folder.join("plain-model"), "model", "1", &[]);
    world.buy("reader", &[]);
    world.buy("model", &[]);
    (world, plain)
}

/// The command that starts `reader` with `model` and these arguments.
fn reader(world: &World, arguments: &[&str]) -> Command {
    world.ada(&[&["run", "--with", "MODEL=./model", "./reader", "MODEL"], arguments].concat())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A number that the kernel tells about the daemon; None where it tells nobody but root.
fn of_daemon(world: &World, file: &str, line: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{}/{file}", world.daemons.daemons[2].pid())).ok()?;
    text.lines().find_map(|l| l.strip_prefix(line)?.split_whitespace().next()?.parse().ok())
}

/// Whether the daemon serves data as it is read; else it is in memory, and there is nothing to see of ranges.
fn served(world: &World) -> bool {
    let log = fs::read_to_string(world.daemons.daemons[2].log()).unwrap();
    let served = log.contains("data for programs is served as it is read");
    if !served {
        println!("data is opened in memory here: {}", log.lines().find(|l| l.contains("opened in memory")).unwrap_or("?"));
    }
    served
}

#[test]
fn a_program_reads_seeks_and_maps_its_data_under_the_path_in_its_environment() {
    let (world, plain) = world(1_000_001);
    let about = said(&good(reader(&world, &["about"])));
    assert_eq!(about, "1000001 bytes, regular 1, end 1000001, closed on exec 1, reading only 1, written 0 0\n");
    for way in ["range", "map"] {
        let ranges = [(0, 10), (1 << 16, 70_000), (4096, 1), (15 << 16, 1_000_001 - (15 << 16)), (0, 1_000_001)];
        let words: Vec<String> = ranges.iter().flat_map(|(offset, length)| [offset.to_string(), length.to_string()]).collect();
        let words: Vec<&str> = [way].into_iter().chain(words.iter().map(String::as_str)).collect();
        let expected: Vec<u8> = ranges.iter().flat_map(|(offset, length)| &plain[*offset..offset + length]).copied().collect();
        assert!(good(reader(&world, &words)).stdout == expected, "{way}");
    }
    assert!(good(reader(&world, &["range"])).stdout.is_empty());
    refused(world.ada(&["open", "model", "-o", "-"]), Code::UseForbidden);
}

#[test]
fn several_packages_of_data_come_together_and_bad_ones_start_nothing() {
    let (world, plain) = world(100_000);
    let other = noise(&world.folder.path().join("plain-other"), 5000);
    world.publish(&world.folder.path().join("plain-other"), "other", "1", &[]);
    world.buy("other", &[]);
    let both = ["run", "--with", "MODEL=model", "--with", "OTHER=other", "./reader"];
    let second = good(world.ada(&[&both[..], &["OTHER", "range", "0", "5000"]].concat()));
    assert!(second.stdout == other);
    let first = good(world.ada(&[&both[..], &["MODEL", "map", "0", "100000"]].concat()));
    assert!(first.stdout == plain);
    let with = |package: &str| world.ada(&["run", "--with", package, "./reader", "A", "about"]);
    refused(with("A=./reader"), Code::UnsupportedProgram);
    let second = refused(world.ada(&["run", "--with", "A=./model", "--with", "B=./reader", "./reader"]), Code::UnsupportedProgram);
    assert!(second.contains("package 2 of data: "), "{second}");
    refused(with("A=../plain-model"), Code::NotAPackage);
    refused(with("A=./missing"), Code::Io);
    let usage = world.ada(&["run", "--with", "A", "./reader"]).output().unwrap();
    assert!(usage.status.code() == Some(2) && said(&usage).contains("NAME=PACKAGE"), "{usage:?}");
}

#[test]
fn large_data_is_ready_at_once_and_never_held_whole() {
    let (world, plain) = world(SIZE);
    if !served(&world) {
        return;
    }
    let before = of_daemon(&world, "io", "rchar:");
    let peak = of_daemon(&world, "status", "VmHWM:");
    let output = good(reader(&world, &["range", "50000000", "1000"]));
    assert!(output.stdout == plain[50_000_000..50_001_000]);
    if let (Some(before), Some(after)) = (before, of_daemon(&world, "io", "rchar:")) {
        assert!(after - before < 4 << 20, "{} bytes were read for a thousand", after - before);
    }
    let output = good(reader(&world, &["map", "0", &SIZE.to_string()]));
    assert!(output.stdout == plain);
    let (peak, after) = (peak.unwrap(), of_daemon(&world, "status", "VmHWM:").unwrap());
    assert!(after < peak + 32 * 1024, "the daemon grew from {peak} to {after} KiB");
}

#[test]
fn an_altered_chunk_is_an_error_where_it_is_read_and_nowhere_else() {
    let (world, plain) = world(1_000_000);
    if !served(&world) {
        return;
    }
    let mut package = fs::read(world.work("model")).unwrap();
    package[500_000] ^= 1;
    fs::write(world.work("model"), package).unwrap();
    let chunk = 500_000_usize >> 16 << 16;
    // Where nothing is read ahead over the altered chunk.
    let good_end = plain.len() - 100;
    let output = good(reader(&world, &["range", "0", "1000", &good_end.to_string(), "100"]));
    assert!(output.stdout == [&plain[..1000], &plain[good_end..]].concat());
    let bad = reader(&world, &["range", &chunk.to_string(), "1"]).output().unwrap();
    assert_eq!((bad.status.code(), &*said(&bad)), (Some(5), "pread: Input/output error\n"));
    let log = fs::read_to_string(world.daemons.daemons[2].log()).unwrap();
    assert!(log.contains("page_altered"), "{log}");
}

#[test]
fn when_the_daemon_is_killed_reads_fail_and_the_program_goes_on() {
    let (mut world, _) = world(16 << 20);
    let served = served(&world);
    let mut command = reader(&world, &["wait", "9000000"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    world.daemons.daemons[2].kill();
    child.stdin.take().unwrap().write_all(b"on\n").unwrap();
    let output = child.wait_with_output().unwrap();
    // What was opened in memory stays.
    assert_eq!(output.status.code(), Some(if served { 5 } else { 0 }), "{}", said(&output));
}
