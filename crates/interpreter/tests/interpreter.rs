//! The interpreter as the kernel starts it. Executed by its own name it takes itself for the package, which shows its whole way.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use chipbound_interpreter::direct::CANNOT_EXECUTE;
use chipbound_interpreter::{INTERPRETER, slot};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::{JoinHandle, spawn};

const READY: &[u8] = &[0, 0, 0, 3, 0x82, 5, 0x80];
const BUSY: &[u8] = b"\0\0\0\x11\x82\x08\x81\xa2\x00\x64busy\x01\x65later";

/// The interpreter in a folder, asking the socket there.
fn written(folder: &Path) -> (PathBuf, PathBuf) {
    let (program, socket) = (folder.join("app"), folder.join("sock"));
    let mut bytes = vec![0; INTERPRETER.len()];
    slot::write(INTERPRETER, socket.as_os_str().as_encoded_bytes(), &mut bytes).unwrap();
    // Written by another process: a file that a test holds open for writing while another test forks cannot be executed.
    let mut writer =
        Command::new("dd").arg(format!("of={}", program.display())).arg("status=none").stdin(std::process::Stdio::piped()).spawn();
    let writer = writer.as_mut().unwrap();
    writer.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(writer.wait().unwrap().success());
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    (program, socket)
}

/// A processor that reads one request and answers with these bytes; the request's CBOR.
fn answering(socket: &Path, answer: &'static [u8]) -> JoinHandle<Vec<u8>> {
    let listener = UnixListener::bind(socket).unwrap();
    spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut length = [0; 4];
        client.read_exact(&mut length).unwrap();
        let mut request = vec![0; u32::from_be_bytes(length) as usize];
        client.read_exact(&mut request).unwrap();
        client.write_all(answer).unwrap();
        request
    })
}

fn said(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(i32::from(CANNOT_EXECUTE)), "{output:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn without_a_processor_it_says_so_and_ends_with_126() {
    let folder = tempfile::tempdir().unwrap();
    let (program, socket) = written(folder.path());
    let said = said(&Command::new(&program).output().unwrap());
    assert!(said.starts_with("chipbound: ") && said.contains(&*program.to_string_lossy()), "{said}");
    assert!(said.contains(&format!("none serves {}: is it running?", socket.display())), "{said}");
}

#[test]
fn a_refusal_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let (program, socket) = written(folder.path());
    let processor = answering(&socket, BUSY);
    let said = said(&Command::new(&program).output().unwrap());
    assert_eq!(said, format!("chipbound: error[busy]: later\nwhat to do: chipbound verify {}\n", program.display()));
    let request = processor.join().unwrap();
    assert!(request.starts_with(&[0x82, 5, 0x83, 0x59]));
    let own = [0xf6, 0x82, 0x1a, 0, 0, 0, 4, 0x1a, 0, 0, 0, 3]; // The connection and the package.
    assert!(request.ends_with(&[program.as_os_str().as_encoded_bytes(), &own].concat()), "{request:?}");
}

/// What the processor says in its first answer it does not do: nobody is attached at the second exec.
#[test]
fn a_processor_that_lets_go_before_the_exec_makes_no_loop() {
    let folder = tempfile::tempdir().unwrap();
    let (program, socket) = written(folder.path());
    let processor = answering(&socket, READY);
    let said = said(&Command::new(&program).arg0("another name").args(["-a", ""]).env("KEPT", "yes").output().unwrap());
    assert!(said.contains("the processor let it go before it was started"), "{said}");
    processor.join().unwrap();
}

#[test]
fn an_answer_that_ends_early_or_is_unknown_is_no_start() {
    for answer in [&b""[..], b"\0\0", b"\0\0\0\x05\x82", b"\0\0\0\x03\x82\x04\x80", b"\xff\xff\xff\xff"] {
        let folder = tempfile::tempdir().unwrap();
        let (program, socket) = written(folder.path());
        let processor = answering(&socket, answer);
        let said = said(&Command::new(&program).output().unwrap());
        assert!(said.contains("does not answer any more") || said.contains("does not know"), "{answer:?}: {said}");
        processor.join().unwrap();
    }
}

#[test]
fn it_runs_with_closed_streams_a_small_stack_and_few_descriptors() {
    let folder = tempfile::tempdir().unwrap();
    let (program, socket) = written(folder.path());
    let processor = answering(&socket, BUSY);
    let script = "exec <&- >&-; ulimit -s 32; ulimit -n 2; exec \"$0\"";
    let output = Command::new("sh").args(["-c", script]).arg(&program).output().unwrap();
    assert!(said(&output).contains("error[busy]"), "{output:?}");
    processor.join().unwrap();
}

#[test]
fn a_slot_takes_one_good_path_and_nothing_else() {
    let mut room = vec![0; INTERPRETER.len()];
    assert!(slot::write(INTERPRETER, b"/run/sock", &mut room).is_some());
    let once = room.clone();
    assert!(slot::write(&once, b"/run/other", &mut room).is_none(), "it was written to already");
    for bad in [&b""[..], b"a\0b", &[b'a'; 108]] {
        assert!(slot::write(INTERPRETER, bad, &mut room).is_none(), "{bad:?}");
    }
    assert!(slot::write(b"no slot at all", b"/run/sock", &mut [0; 14]).is_none());
    let twice = [INTERPRETER, INTERPRETER].concat();
    assert!(slot::write(&twice, b"/run/sock", &mut vec![0; twice.len()]).is_none());
}
