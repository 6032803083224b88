//! The profile `code+constants` on the whole way: what it hides, and that unwinding reads what it hides.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound_wire::Code;
use common::plain::{built, installed, same_as_plain};
use common::{CHIPBOUND, World, good, json_lines, refused};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A constant of every program that is built here.
const SECRET: &str = "the salt is 5f1c";

fn by<'a>(compiler: &'a str, flags: &'a [&'a str]) -> impl FnOnce(&Path, &Path) -> Command + 'a {
    move |from, to| {
        let mut command = Command::new(compiler);
        command.args(flags).arg("-o").arg(to).arg(from);
        command
    }
}

fn cpp(world: &World) -> PathBuf {
    let compiler = installed("/usr/bin/g++", "g++");
    built(world, "thrower", CPP, by(compiler.to_str().unwrap(), &["-x", "c++", "-O1", "-w", "-rdynamic"]))
}

fn rust(world: &World) -> PathBuf {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    built(world, "panicker", RUST, by(&rustc, &["--edition", "2021", "-O", "-g", "--crate-name", "panicker"]))
}

fn holds(file: &Path, what: &str) -> bool {
    std::fs::read(file).unwrap().windows(what.len()).any(|window| window == what.as_bytes())
}

/// ada's package of `program` with this profile.
fn package(world: &World, program: &Path, profile: &str) -> PathBuf {
    let name = program.file_name().unwrap().to_str().unwrap();
    world.publish(program, name, profile, &["--profile", profile]);
    world.buy(name, &["--again", "-o", &format!("{name}-{profile}")]);
    world.work(&format!("{name}-{profile}"))
}

#[test]
fn strings_of_c_cpp_rust_and_go_programs_are_in_packages_of_code_and_not_of_code_and_constants() {
    let world = World::start("", 1);
    let c = built(&world, "printer", C, by("cc", &["-x", "c", "-O1"]));
    let go = installed("/usr/bin/gojq", "gojq");
    for (program, secret) in [(c, SECRET), (cpp(&world), SECRET), (rust(&world), SECRET), (go, "Go implementation of jq")] {
        let (code, constants) = (package(&world, &program, "code"), package(&world, &program, "code+constants"));
        assert!(holds(&program, secret) && holds(&code, secret), "{}", program.display());
        assert!(!holds(&constants, secret), "{}", program.display());
        for (package, profile) in [(code, "code"), (constants, "code+constants")] {
            let inspected = json_lines(&good(world.ada(&["--json", "inspect"]).arg(&package))).remove(0);
            assert_eq!(inspected["profile"], profile);
        }
    }
}

#[test]
fn exceptions_and_backtraces_go_through_sealed_unwind_tables() {
    let world = World::start("", 1);
    same_as_plain(&world, "", &cpp(&world), &[(&["caught"], b""), (&["frames"], b""), (&["uncaught"], b"")]);
    same_as_plain(&world, "", &rust(&world), &[(&["caught"], b""), (&["frames"], b""), (&["panic"], b"")]);
}

#[test]
fn a_package_with_one_altered_constant_does_not_start() {
    let world = World::start("", 1);
    let program = built(&world, "printer", C, by("cc", &["-x", "c", "-O1"]));
    let package = package(&world, &program, "code+constants");
    let started = |package: &Path| {
        let mut run = Command::new(CHIPBOUND);
        run.arg("run").arg("--processor").arg(&world.daemons.sockets[0]).arg(package);
        run
    };
    let said = good(&mut started(&package));
    assert_eq!(String::from_utf8_lossy(&said.stdout), format!("{SECRET}\n"));
    let at = std::fs::read(&program).unwrap().windows(SECRET.len()).position(|window| window == SECRET.as_bytes()).unwrap();
    let mut bytes = std::fs::read(&package).unwrap();
    bytes[at] ^= 1;
    std::fs::remove_file(&package).unwrap();
    std::fs::write(&package, bytes).unwrap();
    good(Command::new("chmod").arg("755").arg(&package));
    refused(&mut started(&package), Code::PageAltered);
}

#[test]
fn data_is_whole_and_programs_are_not() {
    let world = World::start("", 1);
    let text = world.folder.path().join("text");
    std::fs::write(&text, "some data").unwrap();
    let publish = ["publish", "--name", "text", "--version", "1", "--price", "1 EUR", "--class", "software"];
    refused(world.as_user("acme", &publish).args(["--format", "data", "--profile", "code+constants"]).arg(&text), Code::NotSupported);
    refused(world.as_user("acme", &publish).args(["--format", "elf", "--profile", "whole"]).arg(&text), Code::NotSupported);
    refused(world.as_user("acme", &publish).args(["--profile", "code+constants"]).arg(&text), Code::UnsupportedProgram);
    good(world.as_user("acme", &publish).args(["--profile", "whole"]).arg(&text));
}

const C: &str = r#"
#include <stdio.h>
int main(void) { puts("the salt is 5f1c"); return 0; }"#;

const CPP: &str = r#"
#include <cstdio>
#include <cstring>
#include <execinfo.h>
#include <stdexcept>
#include <string>
struct Ends { const char *name; ~Ends() { std::printf("%s ends\n", name); } };
static void *frames[64];
extern "C" __attribute__((noinline)) int deep(int n, bool throws) {
    Ends ends{"a frame"};
    if (n == 0 && throws) throw std::runtime_error("the salt is 5f1c");
    if (n == 0) {
        int found = backtrace(frames, 64);
        char **names = backtrace_symbols(frames, found);
        int of_ours = 0;
        for (int i = 0; i < found; i++) of_ours += std::strstr(names[i], "(deep+") != nullptr;
        std::printf("%d frames, %d of ours\n", found, of_ours);
        return found;
    }
    return deep(n - 1, throws) + 1;
}
int main(int argc, char **argv) {
    std::string how = argv[1];
    if (how == "frames") return deep(5, false);
    if (how == "uncaught") return deep(2, true);
    try { return deep(3, true); }
    catch (const std::runtime_error &e) { std::printf("caught: %s\n", e.what()); return 3; }
}"#;

const RUST: &str = r#"
extern "C" { fn backtrace(frames: *mut *mut u8, room: i32) -> i32; }
#[inline(never)]
fn deep(n: u32) -> usize {
    if n == 0 { panic!("the salt is 5f1c"); }
    std::hint::black_box(deep(n - 1)) + 1
}
#[inline(never)]
fn traced(n: u32) -> i32 {
    if n > 0 { return std::hint::black_box(traced(n - 1)) + 100; }
    let mut frames = [std::ptr::null_mut(); 64];
    unsafe { backtrace(frames.as_mut_ptr(), 64) }
}
fn main() {
    std::panic::set_hook(Box::new(|panic| eprintln!("panicked in line {}", panic.location().map_or(0, |at| at.line()))));
    match std::env::args().nth(1).as_deref() {
        Some("caught") => println!("{:?}", std::panic::catch_unwind(|| deep(4)).unwrap_err().downcast_ref::<&str>()),
        Some("frames") => println!("{}", traced(4)),
        _ => drop(deep(2)),
    }
}"#;
