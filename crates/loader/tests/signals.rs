//! Signals during a start are the program's own.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::os::unix::process::ExitStatusExt;

use chipbound_loader::{LoadError, Pid, Tracer};
use common::{Case, Client, DEADLINE, text};
use rustix::process::{Signal, kill_process};

fn echo() -> Case {
    let case = Case::of("/bin/echo");
    case.seal();
    case
}

/// Waits until the process is in a state of /proc/PID/stat.
fn wait_for_state(pid: Pid, wanted: char) {
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
        if stat.rsplit_once(") ").unwrap().1.starts_with(wanted) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

#[test]
fn a_signal_at_the_exec_stop_reaches_the_program() {
    let case = echo();
    let client = Client::spawn(&case, &["unheard"], "");
    let at = client.at_exec().unwrap();
    kill_process(client.pid, Signal::TERM).unwrap();
    at.complete(&case.image()).unwrap();
    let output = client.output();
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("", Some(128 + 15)));
}

#[test]
fn an_ignored_signal_stays_ignored() {
    let case = echo();
    let client = Client::spawn(&case, &["heard"], "trap '' USR1 TRAP;");
    let at = client.at_exec().unwrap();
    kill_process(client.pid, Signal::USR1).unwrap();
    kill_process(client.pid, Signal::TRAP).unwrap();
    at.complete(&case.image()).unwrap();
    let output = client.output();
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("heard\n", Some(0)));
}

#[test]
fn job_control_at_the_exec_stop_stops_the_program_afterwards() {
    for signal in [Signal::STOP, Signal::TSTP] {
        let case = echo();
        let client = Client::spawn(&case, &["continued"], "");
        let at = client.at_exec().unwrap();
        kill_process(client.pid, signal).unwrap();
        at.complete(&case.image()).unwrap();
        // SIGTSTP does not stop an orphaned process group, which this may be.
        if signal == Signal::STOP {
            wait_for_state(client.pid, 'T');
        }
        kill_process(client.pid, Signal::CONT).unwrap();
        assert_eq!(text(&client.output().stdout), "continued\n");
    }
}

#[test]
fn job_control_before_the_exec_is_the_clients_own() {
    let case = echo();
    let client = Client::spawn(&case, &["after"], "");
    let tracer = Tracer::seize(client.pid).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            kill_process(client.pid, Signal::STOP).unwrap();
            wait_for_state(client.pid, 't');
            kill_process(client.pid, Signal::CONT).unwrap();
            wait_for_state(client.pid, 'S');
            client.go();
        });
        tracer.await_exec(DEADLINE).unwrap().complete(&case.image()).unwrap();
    });
    assert_eq!(text(&client.output().stdout), "after\n");
}

#[test]
fn a_process_killed_at_the_exec_stop_ends_the_start() {
    let case = echo();
    let client = Client::spawn(&case, &["unheard"], "");
    let at = client.at_exec().unwrap();
    kill_process(client.pid, Signal::KILL).unwrap();
    let error = at.complete(&case.image()).unwrap_err();
    assert!(matches!(error, LoadError::ClientEnded { .. } | LoadError::System { .. }), "{error:?}");
    let output = client.output();
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("", Some(128 + 9)));
}

#[test]
fn a_client_that_dies_ends_the_start() {
    let case = echo();
    let client = Client::spawn(&case, &["unheard"], "");
    let tracer = Tracer::seize(client.pid).unwrap();
    kill_process(client.pid, Signal::KILL).unwrap();
    let error = tracer.await_exec(DEADLINE).unwrap_err();
    assert!(matches!(error, LoadError::ClientEnded { status: -9 }), "{error:?}");
    assert_eq!(client.output().status.into_raw() >> 8, 128 + 9);
}
