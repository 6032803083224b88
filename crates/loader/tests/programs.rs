//! Real programs run under the loader as they run plainly.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::Case;

fn installed(program: &str, args: &[&str]) {
    if !Path::new(program).exists() {
        println!("{program}: not run here, it is not installed");
        return;
    }
    Case::of(std::fs::canonicalize(program).unwrap()).same(args);
}

#[test]
fn ls_runs_as_plain() {
    installed("/bin/ls", &["-la", "/usr"]);
}

#[test]
fn a_failing_ls_fails_as_plain() {
    installed("/bin/ls", &["/no/such/folder"]);
}

#[test]
fn python_runs_as_plain() {
    installed("/usr/bin/python3", &["-c", "import json,threading,sys; print(json.dumps(sorted(sys.flags))); sys.exit(7)"]);
}

#[test]
fn git_runs_as_plain() {
    installed("/usr/bin/git", &["--version"]);
    installed("/usr/local/bin/git", &["--version"]);
}

#[test]
fn a_shell_and_its_children_run_as_plain() {
    installed("/bin/sh", &["-c", "echo $(ls -d / | tr / x); exit 3"]);
    installed("/bin/bash", &["-c", "set -o pipefail; echo hello | tr a-z A-Z; kill -TERM $$"]);
}

#[test]
fn perl_runs_as_plain() {
    installed("/usr/bin/perl", &["-e", "print join(',', map { $_ ** 2 } 1..9), qq{\\n}"]);
}

#[test]
fn openssl_runs_as_plain() {
    installed("/usr/bin/openssl", &["version", "-v"]);
}

#[test]
fn busybox_runs_as_plain() {
    installed("/bin/busybox", &["echo", "one", "two"]);
}
