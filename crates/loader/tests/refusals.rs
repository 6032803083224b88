//! What is not the verified program does not run, and says why.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use chipbound_loader::{Image, LoadError, NOT_STARTED, Tracer, Workshop};
use common::{Case, Client, DEADLINE, FileSource, full_fifo, identity, seal, text};
use object::elf::{PT_GNU_STACK, PT_INTERP, PT_LOAD};
use rustix::process::{Resource, Rlimit, prlimit};

const E_ENTRY: usize = 24;
const E_PHNUM: usize = 56;

/// Where the first program header of this type begins that also passes a test of its flags.
fn header(bytes: &[u8], kind: u32, flags: impl Fn(u32) -> bool) -> usize {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let table = u64::from_le_bytes(bytes[32..40].try_into().unwrap()) as usize;
    (table..).step_by(56).find(|&at| word(at) == kind && flags(word(at + 4))).unwrap()
}

fn turned_away(output: &Output, message: &str) {
    assert_eq!(text(&output.stdout), "", "nothing of the program ran");
    assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(NOT_STARTED));
}

/// Starts an altered package and returns what the loader and the user see.
fn altered(change: impl FnOnce(&Case, &mut Vec<u8>)) -> (LoadError, Output) {
    let case = Case::of("/bin/echo");
    let mut bytes = fs::read(&case.original).unwrap();
    seal(&mut bytes);
    change(&case, &mut bytes);
    case.write(&bytes);
    let client = Client::spawn(&case, &["unheard"], "");
    let error = client.start(&case.image()).unwrap_err();
    (error, client.output())
}

fn mismatch(change: impl FnOnce(&Case, &mut Vec<u8>)) {
    let (error, output) = altered(change);
    assert!(matches!(error, LoadError::ProcessMismatch(_)), "{error:?}");
    turned_away(&output, "chipbound: the process is not the verified program");
}

#[test]
fn a_package_without_help_stops_before_an_encrypted_byte_runs() {
    for program in ["/bin/echo", "/usr/bin/perl", "/bin/sh"] {
        let case = Case::of(fs::canonicalize(program).unwrap());
        case.seal();
        let output = case.plain(&["-c", "echo unheard"]);
        assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("", Some(128 + 11)), "{program}");
    }
}

#[test]
fn another_interpreter_is_refused() {
    // Under /tmp, for its path must fit where the real one stands.
    let dir = tempfile::Builder::new().prefix("l").tempdir_in("/tmp").unwrap();
    mismatch(|_, bytes| {
        let other = dir.path().join("l");
        fs::copy("/lib64/ld-linux-x86-64.so.2", &other).unwrap();
        let at = header(bytes, PT_INTERP, |_| true);
        let offset = u64::from_le_bytes(bytes[at + 8..at + 16].try_into().unwrap()) as usize;
        let size = u64::from_le_bytes(bytes[at + 32..at + 40].try_into().unwrap()) as usize;
        let mut path = other.to_str().unwrap().as_bytes().to_vec();
        path.resize(size, 0);
        assert_eq!(path[size - 1], 0, "the path of the other interpreter fits");
        bytes[offset..offset + size].copy_from_slice(&path);
    });
}

#[test]
fn no_interpreter_is_refused() {
    mismatch(|_, bytes| {
        let at = header(bytes, PT_INTERP, |_| true);
        bytes[at..at + 4].fill(0);
    });
}

#[test]
fn another_entry_point_is_refused() {
    mismatch(|_, bytes| bytes[E_ENTRY] ^= 0x40);
}

#[test]
fn fewer_program_headers_are_refused() {
    mismatch(|_, bytes| bytes[E_PHNUM] -= 1);
}

#[test]
fn a_larger_segment_is_refused() {
    mismatch(|_, bytes| {
        let at = header(bytes, PT_LOAD, |flags| flags & 2 != 0);
        bytes[at + 42] += 1;
    });
}

#[test]
fn other_protections_are_refused() {
    mismatch(|_, bytes| {
        let at = header(bytes, PT_LOAD, |flags| flags == 4);
        bytes[at + 4] = 6;
    });
    mismatch(|_, bytes| {
        let at = header(bytes, PT_LOAD, |flags| flags == 4);
        bytes[at + 4] = 5;
    });
}

#[test]
fn an_executable_stack_that_the_program_does_not_ask_for_is_refused() {
    mismatch(|_, bytes| {
        let at = header(bytes, PT_GNU_STACK, |flags| flags == 6);
        bytes[at + 4] = 7;
    });
}

#[test]
fn bytes_that_the_kernel_does_not_read_do_not_count() {
    let case = Case::of("/bin/echo");
    let mut bytes = fs::read(&case.original).unwrap();
    seal(&mut bytes);
    let at = header(&bytes, PT_LOAD, |flags| flags & 2 != 0);
    let offset = u64::from_le_bytes(bytes[at + 8..at + 16].try_into().unwrap()) as usize;
    let size = u64::from_le_bytes(bytes[at + 32..at + 40].try_into().unwrap()) as usize;
    bytes[offset..offset + size].fill(0xcc);
    case.write(&bytes);
    let output = case.helped(&["from", "the", "image"]);
    assert_eq!(text(&output.stdout), "from the image\n", "the data segment came from the image, not from the file");
}

#[test]
fn another_program_is_known_by_its_identity_and_turned_away() {
    let case = Case::of("/bin/echo");
    case.seal();
    let client = Client::spawn_path(&case, Path::new("/bin/true"), &[], "");
    let at = client.at_exec().unwrap();
    assert_ne!(at.exe_identity().unwrap(), identity(&case.path));
    at.refuse("this is another program\n", 77).unwrap();
    let output = client.output();
    assert_eq!((text(&output.stderr).as_str(), output.status.code()), ("this is another program\n", Some(77)));
}

#[test]
fn the_right_program_is_known_by_its_identity() {
    let case = Case::of("/bin/echo");
    case.seal();
    let client = Client::spawn(&case, &["known"], "");
    let at = client.at_exec().unwrap();
    assert_eq!(at.exe_identity().unwrap(), identity(&case.path));
    assert_eq!(identity(&case.path), chipbound_loader::Identity::of(at.exe().unwrap()).unwrap());
    at.complete(&case.image()).unwrap();
    assert_eq!(text(&client.output().stdout), "known\n");
}

#[test]
fn an_image_of_another_program_is_refused() {
    let (echo, cat) = (Case::of("/bin/echo"), Case::of("/bin/cat"));
    echo.seal();
    let client = Client::spawn(&echo, &["unheard"], "");
    let error = client.start(&cat.image()).unwrap_err();
    assert!(matches!(error, LoadError::ProcessMismatch(_)), "{error:?}");
    turned_away(&client.output(), "is not the verified program");
}

#[test]
fn a_failing_exec_ends_the_start_with_the_clients_own_code() {
    let case = Case::of("/bin/echo");
    let client = Client::spawn_path(&case, Path::new("/no/such/program"), &[], "");
    let error = client.start(&case.image()).unwrap_err();
    assert!(matches!(error, LoadError::ClientEnded { status: 127 }), "{error:?}");
    assert_eq!(client.output().status.code(), Some(127));
}

#[test]
fn a_process_without_room_for_descriptors_is_told_so() {
    for room in [3, 4] {
        let case = Case::of("/bin/echo");
        case.seal();
        let client = Client::spawn(&case, &["unheard"], "");
        let at = client.at_exec().unwrap();
        prlimit(Some(client.pid), Resource::Nofile, Rlimit { current: Some(room), maximum: Some(room) }).unwrap();
        let error = at.complete(&case.image()).unwrap_err();
        assert!(matches!(error, LoadError::TooFewDescriptors), "{room}: {error:?}");
        turned_away(&client.output(), "ulimit -n");
    }
}

#[test]
fn a_client_that_does_not_exec_is_let_go() {
    let case = Case::of("/bin/echo");
    let client = Client::spawn(&case, &["unhelped"], "");
    let tracer = Tracer::seize(client.pid).unwrap();
    let error = tracer.await_exec(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, LoadError::TimedOut), "{error:?}");
    client.go();
    assert_eq!(text(&client.output().stdout), "unhelped\n", "it goes on by itself");
}

#[test]
fn a_start_that_is_given_up_leaves_no_process() {
    let case = Case::of("/bin/echo");
    case.seal();
    let client = Client::spawn(&case, &["unheard"], "");
    drop(client.at_exec().unwrap());
    let output = client.output();
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("", Some(128 + 9)));
}

#[test]
fn a_process_whose_message_nobody_reads_is_killed_at_the_deadline() {
    let case = Case::of("/bin/echo");
    case.seal();
    let full = full_fifo(&case.dir.path().join("full"));
    let client = Client::spawn(&case, &["unheard"], &format!("exec 2>{};", case.dir.path().join("full").display()));
    let tracer = Tracer::seize(client.pid).unwrap();
    client.go();
    let at = tracer.await_exec(Duration::from_millis(500)).unwrap();
    at.refuse("nobody reads this\n", 126).unwrap_err();
    assert_eq!(client.output().status.code(), Some(128 + 9));
    drop(full);
}

#[test]
fn a_process_that_is_traced_already_is_refused() {
    let case = Case::of("/bin/echo");
    let client = Client::spawn(&case, &["once"], "");
    let first = Tracer::seize(client.pid).unwrap();
    let second = std::thread::scope(|scope| scope.spawn(|| Tracer::seize(client.pid).map(drop)).join().unwrap());
    assert!(matches!(second, Err(LoadError::TraceRefused(_))), "{second:?}");
    client.go();
    drop(first.await_exec(DEADLINE).unwrap());
    client.output();
}

#[test]
fn files_that_are_no_programs_are_refused_when_the_image_is_built() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let original = fs::read("/bin/echo").unwrap();
    let mut other_machine = original.clone();
    other_machine[18] = 183;
    let mut outside = original.clone();
    let at = header(&outside, PT_LOAD, |_| true);
    outside[at + 15] = 0xff;
    for bytes in [b"#!/bin/sh\n".to_vec(), Vec::new(), original[..4096].to_vec(), other_machine, outside] {
        fs::write(&path, bytes).unwrap();
        let error = Image::build(Arc::new(FileSource(fs::File::open(&path).unwrap())), &Workshop::default()).unwrap_err();
        assert!(matches!(error, LoadError::Unsupported(_)), "{error:?}");
    }
}

#[test]
fn forty_starts_at_once_all_succeed() {
    let case = Case::of("/bin/echo");
    case.seal();
    let image = case.image();
    std::thread::scope(|scope| {
        for number in 0..40 {
            let (case, image) = (&case, &image);
            scope.spawn(move || {
                let number = number.to_string();
                let client = Client::spawn(case, &[&number], "");
                client.start(image).unwrap();
                assert_eq!(text(&client.output().stdout), format!("{number}\n"));
            });
        }
    });
}
