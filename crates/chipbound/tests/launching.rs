//! The front of the command: `run` before a runtime has started. Its processor here is a socket that answers what a test wants, and
//! its package is any program: who attaches is not the matter.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use chipbound_interpreter::frame::{Answer, Begun, MAX_ANSWER, answer, library_request, run_head};
use chipbound_wire::Digest;
use chipbound_wire::bounded::{List, Text, decode, encode};
use chipbound_wire::control::{Piece, Request, Response};
use chipbound_wire::limits::MAX_PIECES;
use chipbound_wire::messages::Abort;
use object::read::elf::{FileHeader, ProgramHeader};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::spawn;

const CHIPBOUND: &str = env!("CARGO_BIN_EXE_chipbound");

/// A processor that says Ready to everybody; the paths that it was asked for end up in the file beside its socket.
fn ready(folder: &Path) -> PathBuf {
    answering(folder, |_| Response::Ready)
}

/// The same with other answers, by how many there were before.
fn answering(folder: &Path, answer: impl Fn(usize) -> Response + Send + 'static) -> PathBuf {
    let (socket, asked) = (folder.join("sock"), folder.join("asked"));
    let listener = UnixListener::bind(&socket).unwrap();
    spawn(move || {
        for (before, client) in listener.incoming().enumerate() {
            let mut client = client.unwrap();
            let mut length = [0; 4];
            client.read_exact(&mut length).unwrap();
            let mut request = vec![0; u32::from_be_bytes(length) as usize];
            client.read_exact(&mut request).unwrap();
            let Ok(Request::Run { path, .. }) = decode(&request) else { panic!("{request:?}") };
            let mut file = std::fs::File::options().create(true).append(true).open(&asked).unwrap();
            file.write_all(&[&path, &b"\n"[..]].concat()).unwrap();
            client.write_all(&framed(&answer(before))).unwrap();
            let _ = client.read(&mut [0]);
        }
    });
    socket
}

fn framed(response: &Response) -> Vec<u8> {
    let body = encode(response);
    [&u32::try_from(body.len()).unwrap().to_be_bytes(), body.as_slice()].concat()
}

/// What a shell's line prints that ends in `exec "$@"`, with the words put before a program: plain, or `chipbound run`.
fn through(line: &str, before: &[&OsStr], program: &[&str]) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-c", line, "sh"]).args(before).args(program).output().unwrap()
}

#[test]
fn the_launchers_frames_are_those_of_the_codec() {
    let path = b"/opt/app";
    let one = [4].as_slice();
    let tails = [(None, None), (Some(Begun::new(4, None)), Some(one)), (Some(Begun::new(4, Some(70_000))), Some(&[4, 70_000]))];
    for (tail, own) in tails {
        let tail = tail.as_ref().map_or(&[][..], Begun::bytes);
        let frame = [run_head(path.len(), tail).unwrap().as_slice(), path, tail].concat();
        assert_eq!(frame[..4], u32::try_from(frame.len() - 4).unwrap().to_be_bytes());
        let Ok(Request::Run { path: decoded, how: None, begun, with: None }) = decode(&frame[4..]) else { panic!("{frame:?}") };
        assert_eq!((&*decoded, begun.as_deref()), (&path[..], own));
    }
    assert_eq!(answer(&encode(&Response::Ready)), Answer::Ready);
    for detail in [String::new(), "short".into(), "d".repeat(200), "d".repeat(900)] {
        let abort = Abort { code: Text::cut("busy"), detail: Text::cut(&detail) };
        let expected = Answer::Refused(b"busy", abort.detail.as_bytes());
        assert_eq!(answer(&encode(&Response::Refused { abort: abort.clone() })), expected);
    }
    assert_eq!(answer(&encode(&Response::Done)), Answer::Other);
}

#[test]
fn the_frames_of_a_librarys_stub_are_those_of_the_codec() {
    let frame = library_request(0x7f12_3456_7890);
    assert_eq!(frame[..4], u32::try_from(frame.len() - 4).unwrap().to_be_bytes());
    assert_eq!(decode::<Request>(&frame[4..]).unwrap(), Request::Library { address: 0x7f12_3456_7890 });
    assert_eq!(answer(&encode(&Response::Knock { name: Digest([7; 32]) })), Answer::Knock(&[7; 32]));
    let of = |n: u64| Piece { address: n << 12, length: 4096, at: (n * 7) << 20, executable: n.is_multiple_of(2) };
    for count in [0, 1, MAX_PIECES as u64] {
        let pieces = List::new((0..count).map(of).collect()).unwrap();
        let body = encode(&Response::Library { pieces: pieces.clone() });
        assert!(body.len() <= MAX_ANSWER / 2, "the stub has that much room");
        let Answer::Library(read) = answer(&body) else { panic!("{body:?}") };
        let read: Vec<_> =
            read.map(|p| Piece { address: p.address as u64, length: p.length as u64, at: p.at as u64, executable: p.executable }).collect();
        assert_eq!(read, pieces.to_vec());
    }
}

/// Rust's runtime would set SIGPIPE and open /dev/null for closed streams before the program's exec.
#[test]
fn signals_and_closed_streams_reach_the_program_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let socket = ready(folder.path());
    let run = [CHIPBOUND.as_ref(), "run".as_ref(), "--processor".as_ref(), socket.as_os_str()];
    for (line, program) in [
        ("exec \"$@\"", &["/bin/grep", "-E", "^(Sig|Shd)(Blk|Ign|Cgt)|^NoNewPrivs", "/proc/self/status"][..]),
        ("trap '' PIPE HUP; exec \"$@\"", &["/bin/grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]),
        ("exec env --ignore-signal=PIPE --block-signal=USR1 \"$@\"", &["/bin/grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]),
        ("exec \"$@\" <&-", &["/bin/ls", "/proc/self/fd"]),
        ("exec \"$@\" 2>&- <&-", &["/bin/ls", "/proc/self/fd"]),
        ("exec \"$@\" 7</dev/null", &["/bin/ls", "/proc/self/fd"]),
        ("ulimit -s 64; exec \"$@\"", &["/bin/cat", "/proc/self/limits"]),
    ] {
        let (plain, started) = (through(line, &[], program), through(line, &run, program));
        assert!(plain.status.success() && !plain.stdout.is_empty(), "{line}: {plain:?}");
        assert_eq!(started, plain, "{line}");
    }
}

#[test]
fn the_processor_is_found_as_the_ordinary_command_finds_it() {
    let folder = tempfile::tempdir().unwrap();
    let socket = ready(folder.path());
    let home = folder.path().join("home");
    for sub in ["", ".config/chipbound", "chipbound"] {
        std::fs::create_dir_all(home.join(sub)).unwrap();
        std::fs::write(home.join(sub).join("processor"), socket.as_os_str().as_encoded_bytes()).unwrap();
    }
    let run = |set: &[(&str, &Path)], options: &[&OsStr]| {
        let mut command = Command::new(CHIPBOUND);
        for name in ["CHIPBOUND_HOME", "CHIPBOUND_PROCESSOR", "XDG_CONFIG_HOME", "HOME"] {
            command.env_remove(name);
        }
        command.envs(set.iter().copied()).arg("run").args(options).args(["--", "/bin/echo", "started"]).output().unwrap()
    };
    let nowhere = folder.path().join("nowhere");
    for (set, options) in [
        (&[("CHIPBOUND_PROCESSOR", &*socket), ("HOME", &nowhere)][..], &[][..]),
        (&[("CHIPBOUND_HOME", &home), ("HOME", &nowhere)], &[]),
        (&[("CHIPBOUND_HOME", Path::new("")), ("XDG_CONFIG_HOME", &home)], &[]),
        (&[("HOME", &home)], &[]),
        (&[("HOME", &nowhere), ("CHIPBOUND_PROCESSOR", &nowhere)], &["--processor".as_ref(), socket.as_os_str()]),
        (&[("HOME", &nowhere)], &["--home".as_ref(), home.as_os_str()]),
    ] {
        let output = run(set, options);
        assert_eq!(output.stdout, b"started\n", "{set:?} {options:?}: {output:?}");
    }
    let output = run(&[("HOME", &nowhere), ("CHIPBOUND_PROCESSOR", &nowhere)], &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(126) && said.contains("error[processor_unreachable]"), "{output:?}");
}

#[test]
fn the_package_is_found_as_the_ordinary_command_finds_it() {
    let folder = tempfile::tempdir().unwrap();
    let socket = ready(folder.path());
    std::os::unix::fs::symlink("/bin/echo", folder.path().join("here")).unwrap();
    std::fs::write(folder.path().join("not-executable"), "#!/bin/sh\n").unwrap();
    let run = |name: &str| {
        let mut command = Command::new(CHIPBOUND);
        command.current_dir(folder.path()).env("PATH", "/nonexistent::/usr/bin:/bin");
        command.args(["run", "--processor"]).arg(&socket).args([name, "started"]).output().unwrap()
    };
    for name in ["here", "./here", "echo", "/bin/echo"] {
        let output = run(name);
        assert_eq!(output.stdout, b"started\n", "{name}: {output:?}");
    }
    let asked = std::fs::read_to_string(folder.path().join("asked")).unwrap();
    let whole = folder.path().canonicalize().unwrap();
    for line in asked.lines() {
        assert!(Path::new(line).is_absolute() && Path::new(line).exists(), "{line}");
    }
    assert!(asked.contains(&*whole.to_string_lossy()) && asked.ends_with("/bin/echo\n"), "{asked}");
    for (name, code, text) in
        [("absent", 127, "error[not_found]"), ("not-executable", 126, "error[start_failed]"), ("./", 126, "error[not_a_package]")]
    {
        let output = run(name);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(text), "{name}: {output:?}");
    }
}

#[test]
fn the_command_names_no_dynamic_linker_and_still_has_one() {
    let program = std::fs::read(CHIPBOUND).unwrap();
    let header = object::elf::FileHeader64::<object::Endianness>::parse(&*program).unwrap();
    let endian = header.endian().unwrap();
    let interpreter = header.program_headers(endian, &*program).unwrap().iter().find_map(|s| s.interpreter(endian, &*program).unwrap());
    assert_eq!(interpreter, None);
    let listed = Command::new(CHIPBOUND).arg("--version").env("LD_TRACE_LOADED_OBJECTS", "1").output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("libc.so.6") && listed.contains("ld-linux"), "{listed}");
}

#[test]
fn a_refused_start_asks_once_and_says_what_was_answered() {
    let folder = tempfile::tempdir().unwrap();
    let refusals = [("order_refunded", "the first answer"), ("busy", "the second answer"), ("not_released", &"long ".repeat(300))];
    let refusals = refusals.map(|(code, detail)| Abort { code: Text::cut(code), detail: Text::cut(detail) });
    let socket = answering(folder.path(), move |before| Response::Refused { abort: refusals[before.min(2)].clone() });
    let run = |options: &[&str]| {
        let mut command = Command::new(CHIPBOUND);
        let output = command.args(["run", "--processor"]).arg(&socket).args(options).arg("/bin/true").output().unwrap();
        assert_eq!(output.status.code(), Some(126), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let asked = || std::fs::read_to_string(folder.path().join("asked")).unwrap().lines().count();
    let said = run(&[]);
    assert!(said.starts_with("error[order_refunded]: the first answer\nwhat to do: "), "{said}");
    assert_eq!(asked(), 1);
    // What the front does not know is asked for by the ordinary command alone.
    assert!(run(&["--explain"]).contains("error[busy]: the second answer"));
    assert_eq!(asked(), 2);
    let said = run(&[]);
    assert!(said.contains(&"long ".repeat(150)), "{said}");
}

#[test]
fn a_start_that_the_front_has_no_way_for_is_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |code: &str, detail: &str| Response::Refused { abort: Abort { code: Text::cut(code), detail: Text::cut(detail) } };
    let socket = answering(folder.path(), move |before| match before {
        0 => refused("trace_refused", "the client cannot execute a memory file"),
        _ => refused("busy", "to the ordinary command"),
    });
    let output = Command::new(CHIPBOUND).args(["run", "--processor"]).arg(&socket).arg("/bin/true").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error[busy]: to the ordinary command"), "{output:?}");
}
