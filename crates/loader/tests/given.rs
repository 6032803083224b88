//! Files that a program finds open when it starts.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::fd::OwnedFd;

use chipbound_loader::{Given, LoadError};
use common::{Case, Client, text};
use rustix::fs::{Mode, OFlags, open};

/// A shell that reads its descriptors 7 and 9, says which descriptors it has, and what a program that it executes finds of them.
const READS: &str = "read a <&7; read b <&9; echo $a $b; cd /proc/$$/fd; echo *; exec cat /proc/self/fd/7";

#[test]
fn given_files_are_open_under_their_numbers_and_in_nothing_else() {
    let case = Case::of("/bin/sh");
    std::fs::write(case.dir.path().join("seven"), b"first\n").unwrap();
    std::fs::write(case.dir.path().join("nine"), b"second\n").unwrap();
    let folder = case.dir.path().display();
    let plain = Client::spawn(&case, &["-c", READS], &format!("exec 7<{folder}/seven 9<{folder}/nine;"));
    plain.go();
    let plain = text(&plain.output().stdout);
    let as_plain: Vec<_> = plain.lines().take(2).collect();
    case.seal();
    for one_by_one in [false, true] {
        // The client holds 7 already: it is replaced.
        let client = Client::spawn(&case, &["-c", READS], "exec 7</dev/null 9</dev/null;");
        let mut process = client.at_exec().unwrap();
        if one_by_one {
            process.one_by_one();
        }
        let folder = open(case.dir.path(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        process.give(Given { number: 9, file: folder, name: Some(b"nine".to_vec()) });
        let file: OwnedFd = File::open(case.dir.path().join("seven")).unwrap().into();
        process.give(Given { number: 7, file, name: None });
        process.complete(&case.image()).unwrap();
        let output = client.output();
        let said = text(&output.stdout);
        assert_eq!(said.lines().collect::<Vec<_>>(), as_plain, "what it executes has them no more: {}", text(&output.stderr));
    }
}

#[test]
fn a_file_that_cannot_be_given_ends_the_start() {
    let case = Case::of("/bin/echo");
    case.seal();
    let missing = |name: &str, number| {
        let client = Client::spawn(&case, &["ran"], "ulimit -n 64;");
        let mut process = client.at_exec().unwrap();
        let folder = open(case.dir.path(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        process.give(Given { number, file: folder, name: Some(name.into()) });
        let error = process.complete(&case.image()).unwrap_err();
        let output = client.output();
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(chipbound_loader::NOT_STARTED), String::new()), "{error}");
        error
    };
    assert!(matches!(missing("nothing", 7), LoadError::Injection { call: "openat", .. }));
    assert!(matches!(missing("original", 64), LoadError::Injection { call: "dup3", .. }), "beyond what the process may have open");
}
