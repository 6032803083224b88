//! The daemon's confinement. Each attempt has a process of its own: this binary, called again with the attempt's name.

use crate::world::install;
use chipbound_processor::config::Config;
use chipbound_processor::confine::{Work, process, thread};
use rustix::process::{Pid, Signal};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ATTEMPT: &str = "CHIPBOUND_CONFINED_ATTEMPT";
const FOLDER: &str = "CHIPBOUND_CONFINED_IN";

/// Calls the test of this name again in a process of its own, with an installation in `folder`.
fn again(test: &str, attempt: &str, folder: &Path) -> Output {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["--exact", &format!("confining::{test}"), "--nocapture"]).env(ATTEMPT, attempt).env(FOLDER, folder);
    command.output().expect("it runs")
}

/// Which attempt this process is for.
fn attempt() -> Option<String> {
    std::env::var(ATTEMPT).ok()
}

/// Whether the attempts of this name all go well in processes of their own.
#[track_caller]
fn all_go_well(test: &str, attempts: &[&str]) {
    let folder = tempfile::tempdir().expect("folder");
    drop(chipbound_processor::processor::Processor::open(install(&folder.path().join("processor"))).expect("an installation"));
    for attempt in attempts {
        let output = again(test, attempt, &folder.path().join("processor"));
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{attempt}: {:?} {said}", output.status);
    }
}

fn folder() -> PathBuf {
    std::env::var_os(FOLDER).expect("an attempt has a folder").into()
}

/// Confines this process; whether its kernel has Landlock.
fn confine() -> bool {
    let config = Config::load(&folder().join("processor.toml")).expect("the configuration");
    let confinement = process(&config).expect("confined");
    assert!(confinement.calls, "every kernel that this is made for filters system calls");
    if !confinement.folders {
        println!("not run here: this kernel has no Landlock");
    }
    confinement.folders
}

/// Does something on a thread for that work.
fn on_a_thread_for(work: Work, attempt: impl FnOnce() + Send + 'static) {
    let tried = std::thread::spawn(move || {
        thread(work).expect("confined");
        attempt();
    });
    tried.join().expect("the attempts ended as they should");
}

/// The kernel said no, and not for another reason.
#[track_caller]
fn denied<T: std::fmt::Debug>(tried: impl Into<io::Result<T>>) {
    assert_eq!(tried.into().expect_err("it is forbidden").kind(), ErrorKind::PermissionDenied);
}

#[test]
fn a_call_that_no_thread_needs_ends_the_whole_process() {
    let attempts: [(&str, fn()); 5] = [
        ("a child", || drop(Command::new("/bin/true").status())),
        ("exec", || drop(Command::new("/bin/true").exec())),
        ("chroot", || rustix::process::chroot("/").unwrap_or_default()),
        ("another user", || rustix::thread::set_thread_uid(rustix::process::getuid()).unwrap_or_default()),
        ("namespaces", || {
            let ours = File::open("/proc/self/ns/mnt").expect("ours");
            rustix::thread::move_into_link_name_space(ours.as_fd(), None).unwrap_or_default();
        }),
    ];
    if let Some(chosen) = attempt() {
        confine();
        println!("confined");
        return attempts.iter().find(|(name, _)| *name == chosen).expect("an attempt").1();
    }
    let folder = tempfile::tempdir().expect("folder");
    drop(chipbound_processor::processor::Processor::open(install(&folder.path().join("processor"))).expect("an installation"));
    for (name, _) in attempts {
        let output = again("a_call_that_no_thread_needs_ends_the_whole_process", name, &folder.path().join("processor"));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("confined\n"), "{name}: {said}");
        assert_eq!(output.status.signal(), Some(Signal::SYS.as_raw()), "{name}: {said}");
    }
}

#[test]
fn a_call_on_no_list_is_refused_and_a_thread_loses_what_its_work_does_not_need() {
    const SELF: &str = "a_call_on_no_list_is_refused_and_a_thread_loses_what_its_work_does_not_need";
    let Some(chosen) = attempt() else { return all_go_well(SELF, &["anybody", "session", "start", "control"]) };
    let parent = rustix::process::getppid().expect("a parent");
    confine();
    match chosen.as_str() {
        "anybody" => {
            denied(rustix::process::kill_process(parent, Signal::TERM).map_err(io::Error::from));
            denied(fs::create_dir(folder().join("made")));
            denied(std::os::unix::fs::symlink("/etc/passwd", folder().join("link")));
            denied(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable).map_err(io::Error::from));
        }
        "session" => on_a_thread_for(Work::Session, move || {
            denied(seized(parent));
            denied(TcpListener::bind("127.0.0.1:0"));
            drop(UdpSocket::bind("127.0.0.1:0").expect("names of hosts are asked for"));
        }),
        "start" => on_a_thread_for(Work::Start, || {
            denied(UdpSocket::bind("127.0.0.1:0"));
            drop(UnixDatagram::unbound().expect("the socket of a start"));
            denied(File::create(folder().join("state/made")));
            denied(fs::remove_file(folder().join("processor.toml")));
            denied(fs::rename(folder().join("processor.toml"), folder().join("other")));
            drop(File::open(folder().join("processor.toml")).expect("packages are read"));
        }),
        _ => on_a_thread_for(Work::Control, move || {
            denied(UdpSocket::bind("127.0.0.1:0"));
            denied(UnixListener::bind(folder().join("another.sock")));
            denied(seized(parent));
        }),
    }
}

/// What the loader does first.
fn seized(process: Pid) -> io::Result<()> {
    match chipbound_loader::Tracer::seize(process) {
        Ok(_) => Ok(()),
        Err(chipbound_loader::LoadError::TraceRefused(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn only_the_processors_own_folders_can_be_written_to() {
    const SELF: &str = "only_the_processors_own_folders_can_be_written_to";
    let Some(chosen) = attempt() else { return all_go_well(SELF, &["session", "control"]) };
    let beside = folder().join("processor.toml");
    let readable = OpenOptions::new().write(true).open(&beside);
    readable.expect("before, its modes alone decide");
    if !confine() {
        return;
    }
    let work = if chosen == "session" { Work::Session } else { Work::Control };
    on_a_thread_for(work, move || {
        denied(OpenOptions::new().write(true).open(&beside));
        denied(File::create(folder().join("made")));
        if chosen == "session" {
            denied(fs::remove_file(&beside)); // The other thread may: it removes the socket, which is its neighbour.
        }
        assert!(!fs::read(&beside).expect("it is read").is_empty());
        for own in ["state", "spool"] {
            let file = folder().join(own).join("kept");
            fs::write(&file, "kept").expect("its own folder");
            fs::remove_file(&file).expect("its own folder");
        }
        if chosen == "session" {
            fs::write(folder().join("state/new"), "whole").expect("its own folder");
            fs::rename(folder().join("state/new"), folder().join("state/old")).expect("files appear whole");
            denied(fs::rename(folder().join("state/old"), folder().join("taken-out")));
            fs::remove_file(folder().join("state/old")).expect("its own folder");
        }
    });
}
