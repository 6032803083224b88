//! The demo keeps its word, and cleans up after itself.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{CHIPBOUND, json_lines};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

fn alive(pid: &Value) -> bool {
    test_kill_process(Pid::from_raw(pid.as_i64().unwrap() as i32).unwrap()).is_ok()
}

#[test]
fn every_step_is_told_every_promise_held_and_nothing_is_left() {
    let temporary = tempfile::tempdir().unwrap();
    let output = Command::new(CHIPBOUND).args(["demo", "--json"]).env("TMPDIR", temporary.path()).output().unwrap();
    let told = json_lines(&output);
    assert!(output.status.success(), "{told:#?}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.iter().all(|l| l.get("step").is_some() && l.get("text").is_some()), "each object has its step");
    let steps: Vec<_> = told.iter().filter_map(|l| l["step"].as_u64()).collect();
    assert_eq!(steps, [1001, 1002, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012]);
    let promises: Vec<_> = told.iter().filter(|l| l["step"] == "promise").collect();
    assert!(promises.len() >= 8 && promises.iter().all(|p| p["held"] == true), "{promises:#?}");
    let runs: Vec<_> = told.iter().filter(|l| l["step"] == "run").map(|l| l["stdout"].as_str().unwrap()).collect();
    assert!(runs.len() == 3 && !runs[0].is_empty() && runs.iter().all(|out| *out == runs[0]), "{runs:?}");
    let balance = told.iter().find(|l| l["step"] == "balance").unwrap();
    assert_eq!((balance["before"].as_str(), balance["after"].as_str()), (Some("100.00 EUR"), Some("87.50 EUR")));
    assert!(told.iter().filter(|l| l["step"] == "party").all(|l| !alive(&l["pid"])), "the daemons have ended");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "the folder is gone");
}

#[test]
fn another_program_with_its_arguments_is_shown_to_people_and_kept_where_told() {
    let folder = tempfile::tempdir().unwrap();
    let keep = folder.path().join("kept");
    let mut command = Command::new(CHIPBOUND);
    command.args(["demo", "--program", "/bin/dash", "--keep"]).arg(&keep).args(["--", "-c", "echo said by dash; exit 3"]);
    let output = command.env("TMPDIR", folder.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("| said by dash") && text.contains("exit 3") && !text.contains('\x1b'), "{text}");
    assert!(keep.join("bought/dash").is_file() && keep.join("server.log").is_file());
}

#[test]
fn ctrl_c_ends_the_daemons_and_removes_the_folder() {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = Command::new(CHIPBOUND);
    command.args(["demo", "--json"]).env("TMPDIR", temporary.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let parties: Vec<Value> = lines.by_ref().take(4).map(|l| serde_json::from_str(&l.unwrap()).unwrap()).collect();
    assert!(parties.iter().all(|p| p["step"] == "party" && alive(&p["pid"])), "{parties:?}");
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::INT).unwrap();
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("\"cancelled\""), "{said}");
    assert!(parties.iter().all(|p| !alive(&p["pid"])), "the daemons have ended");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "the folder is gone");
}

#[test]
fn a_program_that_is_no_elf_file_is_refused_by_name() {
    let output = Command::new(CHIPBOUND).args(["demo", "--program", "/etc/passwd"]).output().unwrap();
    assert!(Path::new("/etc/passwd").exists() && !output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("error[unsupported_program]"));
}
