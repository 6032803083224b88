//! Who gets at a started process, and with which rights the loader works. As root these tests act as two ordinary users.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use chipbound_loader::{Image, LoadError, Pid, Tracer, Workshop, allow_tracer};
use common::{Case, Client, DEADLINE, FileSource, full_fifo, install, text};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{getuid, test_kill_process};

const ROLE: &str = "CHIPBOUND_LOADER_TEST_ROLE";
/// Uids and gids that nobody has.
const PROCESSOR: u32 = 64_321;
const CUSTOMER: u32 = 65_432;

/// A command that runs as an ordinary user with at most one capability.
fn as_user(user: u32, capability: Option<&str>) -> Command {
    let user = user.to_string();
    let caps = capability.map_or("-all".to_owned(), |name| format!("-all,+{name}"));
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--no-new-privs"]);
    command.arg(format!("--inh-caps={caps}")).arg(format!("--ambient-caps={caps}")).arg(format!("--bounding-set={caps}"));
    command
}

/// This test program where every user can execute it.
fn own_copy(dir: &Path) -> PathBuf {
    let copy = dir.join("test");
    install(&env::current_exe().unwrap(), &copy);
    copy
}

fn role_passed(test: &str, output: &Output) {
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{test}: {said}");
}

fn fifo(case: &Case) -> PathBuf {
    let fifo = case.dir.path().join("input");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
    fs::set_permissions(&fifo, fs::Permissions::from_mode(0o666)).unwrap();
    fifo
}

#[test]
fn a_started_process_is_closed_to_its_own_user() {
    if getuid().is_root() && env::var_os(ROLE).is_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = as_user(CUSTOMER, None);
        command.arg(own_copy(dir.path())).args(["--exact", "a_started_process_is_closed_to_its_own_user"]);
        role_passed("as an ordinary user", &command.env(ROLE, "user").current_dir("/").output().unwrap());
        return;
    }
    assert!(!getuid().is_root());
    let case = Case::of("/bin/cat");
    case.seal();
    let input = fifo(&case);
    let client = Client::spawn(&case, &[input.to_str().unwrap()], "");
    client.start(&case.image()).unwrap();
    for name in ["mem", "maps", "exe", "environ"] {
        let path = format!("/proc/{}/{name}", client.pid.as_raw_nonzero());
        assert_eq!(File::open(&path).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied, "{path}");
    }
    let second = Tracer::seize(client.pid).map(drop);
    assert!(matches!(second, Err(LoadError::TraceRefused(_))), "{second:?}");
    fs::write(&input, "still itself\n").unwrap();
    assert_eq!(text(&client.output().stdout), "still itself\n");
}

/// Runs the tracing side as the processor's own user with `CAP_SYS_PTRACE` and nothing else.
fn processor_of_its_own_user(way: &str) -> Option<(Output, Pid)> {
    if !getuid().is_root() {
        println!("not run here: only root can act as two users");
        return None;
    }
    let case = Case::of("/bin/cat");
    case.seal();
    for (file, mode) in [(&case.original, 0o640), (&case.path, 0o751)] {
        chown(file, Some(0), Some(PROCESSOR)).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    }
    let input = fifo(&case);
    let mut parent = as_user(CUSTOMER, None);
    parent.args(["sh", "-c", r#"sh -c "$@"; exit $?"#, "parent"]);
    let full = full_fifo(&case.dir.path().join("full"));
    let before = if way == "stuck" { format!("exec 2>{};", case.dir.path().join("full").display()) } else { String::new() };
    let client = Client::spawn_under(parent, &case, &case.path, &[input.to_str().unwrap()], &before);
    let mut tracer = as_user(PROCESSOR, Some("sys_ptrace"));
    tracer.arg(own_copy(case.dir.path())).args(["--exact", "the_processor_of_another_user", "--nocapture"]);
    tracer.env(ROLE, way).env("PID", client.pid.as_raw_nonzero().to_string()).env("ORIGINAL", &case.original);
    tracer.env("WORD", client.word()).current_dir("/");
    role_passed(way, &tracer.output().unwrap());
    let pid = client.pid;
    if way == "complete" {
        for name in ["mem", "maps", "exe"] {
            let path = format!("/proc/{}/{name}", pid.as_raw_nonzero());
            let tried = as_user(CUSTOMER, None).args(["sh", "-c", &format!("exec 3<{path}")]).output().unwrap();
            assert!(!tried.status.success() && text(&tried.stderr).contains("Permission denied"), "{path}: {}", text(&tried.stderr));
        }
        fs::write(&input, "started by another user\n").unwrap();
    }
    let output = client.output();
    drop(full);
    Some((output, pid))
}

/// The tracing side of the tests below; by itself it has nothing to do.
#[test]
fn the_processor_of_another_user() {
    let Some(way) = env::var_os(ROLE) else { return };
    let status = fs::read_to_string("/proc/self/status").unwrap();
    assert!(status.contains("CapEff:\t0000000000080000"), "CAP_SYS_PTRACE and nothing else: {status}");
    let pid = Pid::from_raw(env::var("PID").unwrap().parse().unwrap()).unwrap();
    let image = Image::build(Arc::new(FileSource(File::open(env::var("ORIGINAL").unwrap()).unwrap())), &Workshop::default()).unwrap();
    let tracer = Tracer::seize(pid).unwrap();
    fs::write(env::var("WORD").unwrap(), "go\n").unwrap();
    let at = tracer.await_exec(if way == "stuck" { Duration::from_millis(500) } else { DEADLINE }).unwrap();
    match way.to_str().unwrap() {
        "complete" => drop(at.complete(&image).unwrap()),
        "refuse" => at.refuse("not this one\n", 126).unwrap(),
        "drop" => drop(at),
        "stuck" => drop(at.refuse("nobody reads this\n", 126).unwrap_err()),
        other => panic!("{other}"),
    }
}

#[test]
fn a_processor_with_only_cap_sys_ptrace_starts_a_program_of_another_user_that_he_cannot_read() {
    if let Some((output, _)) = processor_of_its_own_user("complete") {
        assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("started by another user\n", Some(0)));
    }
}

#[test]
fn a_processor_with_only_cap_sys_ptrace_turns_a_program_of_another_user_away() {
    if let Some((output, _)) = processor_of_its_own_user("refuse") {
        assert_eq!((text(&output.stderr).as_str(), output.status.code()), ("not this one\n", Some(126)));
    }
}

#[test]
fn a_processor_without_cap_kill_leaves_no_process_of_another_user_behind() {
    for way in ["drop", "stuck"] {
        if let Some((output, pid)) = processor_of_its_own_user(way) {
            assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("", Some(128 + 9)), "{way}");
            test_kill_process(pid).unwrap_err();
        }
    }
}

#[test]
fn an_ordinary_user_may_not_trace_another_user() {
    if !getuid().is_root() {
        println!("not run here: only root can act as two users");
        return;
    }
    if env::var_os(ROLE).is_some() {
        return;
    }
    let case = Case::of("/bin/echo");
    let client = Client::spawn(&case, &["unharmed"], "");
    let mut tracer = as_user(PROCESSOR, None);
    tracer.arg(own_copy(case.dir.path())).args(["--exact", "the_stranger"]).env(ROLE, "stranger").current_dir("/");
    role_passed("stranger", &tracer.env("PID", client.pid.as_raw_nonzero().to_string()).output().unwrap());
    client.go();
    assert_eq!(text(&client.output().stdout), "unharmed\n");
}

/// The tracing side of the test above; by itself it has nothing to do.
#[test]
fn the_stranger() {
    let Some(pid) = env::var(ROLE).ok().filter(|role| role == "stranger").and_then(|_| env::var("PID").ok()) else { return };
    let refused = Tracer::seize(Pid::from_raw(pid.parse().unwrap()).unwrap()).map(drop);
    assert!(matches!(refused, Err(LoadError::TraceRefused(_))), "{refused:?}");
}

#[test]
fn the_process_is_not_dumpable_and_has_no_descriptor_more() {
    let source = r#"
#include <dirent.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>
int main(void) { int open = 0; for (int fd = 0; fd < 100; fd++) if (lseek(fd, 0, SEEK_CUR) != -1 || dup(fd) != -1) open++;
    printf("%d %d\n", prctl(PR_GET_DUMPABLE), open); }"#;
    let Some(case) = Case::compiled("dumpable", source, &[]) else { return };
    let plain = text(&case.plain(&[]).stdout);
    case.seal();
    let helped = text(&case.helped(&[]).stdout);
    assert!(plain.starts_with("1 ") && helped.starts_with("0 "), "{plain} {helped}");
    assert_eq!(plain[2..], helped[2..], "descriptors");
}

#[test]
fn a_process_in_another_network_namespace_is_told_so() {
    if !getuid().is_root() || !Command::new("unshare").args(["-n", "true"]).output().is_ok_and(|o| o.status.success()) {
        println!("not run here: no network namespace can be made");
        return;
    }
    let case = Case::of("/bin/echo");
    case.seal();
    let mut parent = Command::new("unshare");
    parent.args(["-n", "sh", "-c", r#"sh -c "$@"; exit $?"#, "parent"]);
    let client = Client::spawn_under(parent, &case, &case.path, &["unheard"], "");
    let error = client.start(&case.image()).unwrap_err();
    assert!(matches!(error, LoadError::OutOfReach(_)), "{error:?}");
    let output = client.output();
    assert!(text(&output.stderr).contains("another network namespace"));
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("", Some(126)));
}

#[test]
fn a_client_can_name_its_tracer() {
    let parent = rustix::process::getppid().unwrap();
    match allow_tracer(parent).unwrap() {
        true => assert!(Path::new("/proc/sys/kernel/yama").exists()),
        false => println!("not run here: this kernel has no Yama"),
    }
}

#[test]
fn a_deadline_in_the_past_lets_the_client_go() {
    let case = Case::of("/bin/echo");
    let client = Client::spawn(&case, &["unharmed"], "");
    let error = Tracer::seize(client.pid).unwrap().await_exec(Duration::ZERO).unwrap_err();
    assert!(matches!(error, LoadError::TimedOut), "{error:?}");
    client.go();
    assert_eq!(text(&client.output().stdout), "unharmed\n");
}

#[test]
fn a_program_with_more_rights_than_its_caller_is_refused() {
    let case = Case::of("/usr/bin/id");
    let as_another = |case: &Case| {
        chown(&case.path, Some(CUSTOMER), None).unwrap();
        fs::set_permissions(&case.path, fs::Permissions::from_mode(0o4755)).unwrap();
    };
    if getuid().is_root() {
        as_another(&case);
    }
    if !text(&case.plain(&[]).stdout).contains("euid") {
        println!("not run here: set-user-id programs cannot be made or do not work");
        return;
    }
    case.seal();
    as_another(&case);
    let client = Client::spawn(&case, &[], "");
    let error = client.start(&case.image()).unwrap_err();
    assert!(matches!(error, LoadError::Privileged), "{error:?}");
    let output = client.output();
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("", Some(126)));
}
