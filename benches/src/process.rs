//! The programs under measurement: started, timed, watched through /proc, and ended by their own process ids alone.

use crate::{Outcome, failed};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a daemon may take to say that it is ready, or to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Clock ticks a second in /proc/PID/stat; fixed by the kernel's interface on x86-64.
const TICKS: f64 = 100.0;

/// Our children that still run, for whoever is interrupted.
static RUNNING: Mutex<Vec<i32>> = Mutex::new(Vec::new());

/// Asks every child that still runs to end.
pub(crate) fn end_children() {
    for pid in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        if let Some(pid) = Pid::from_raw(*pid) {
            let _ = kill_process(pid, Signal::TERM); // It may have ended by itself.
        }
    }
}

fn remember(child: &Child) {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).push(pid_of(child));
}

fn forget(child: &Child) {
    let pid = pid_of(child);
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).retain(|p| *p != pid);
}

fn pid_of(child: &Child) -> i32 {
    i32::try_from(child.id()).expect("process ids are positive and below 2^22")
}

/// CPU seconds, user and system, that the process and its threads have used so far; steps of 10 ms.
pub(crate) fn cpu_seconds(pid: i32) -> Outcome<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may hold anything; the fields after it count from the state.
    let fields: Vec<&str> = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok()).ok_or_else(|| failed("/proc/PID/stat does not read"));
    Ok((ticks(11)? + ticks(12)?) as f64 / TICKS)
}

/// A program that ran to its end.
#[derive(Debug)]
pub(crate) struct Ended {
    /// From its start to its end.
    pub(crate) wall: Duration,
    /// CPU seconds of it and of the children it waited for.
    pub(crate) cpu: f64,
}

/// Runs a command to its end, which must be a good one; stdout goes nowhere, stderr is kept for the failure.
pub(crate) fn run(command: &mut Command) -> Outcome<Ended> {
    run_watched(command, |_| ())
}

/// The same; `started` is told the process id.
pub(crate) fn run_watched(command: &mut Command, started: impl FnOnce(i32)) -> Outcome<Ended> {
    let errors = tempfile::tempfile()?;
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.try_clone()?).spawn()?;
    remember(&child);
    started(pid_of(&child));
    let ended = wait(&mut child, begun);
    forget(&child);
    let (status, ended) = ended?;
    check(command, status, errors)?;
    Ok(ended)
}

/// The same; `line` is told each line of stdout and when it came, counted from the start.
pub(crate) fn run_told(command: &mut Command, mut line: impl FnMut(&str, Duration)) -> Outcome<Ended> {
    let errors = tempfile::tempfile()?;
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors.try_clone()?).spawn()?;
    remember(&child);
    if let Some(stdout) = child.stdout.take() {
        for text in BufReader::new(stdout).lines() {
            line(&text?, begun.elapsed());
        }
    }
    let ended = wait(&mut child, begun);
    forget(&child);
    let (status, ended) = ended?;
    check(command, status, errors)?;
    Ok(ended)
}

/// Waits for the end of a child and reads its CPU time before it is reaped.
fn wait(child: &mut Child, begun: Instant) -> Outcome<(ExitStatus, Ended)> {
    let pid = Pid::from_child(child);
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
    let wall = begun.elapsed();
    let cpu = cpu_seconds(pid.as_raw_nonzero().get())?;
    Ok((child.wait()?, Ended { wall, cpu }))
}

fn check(command: &Command, status: ExitStatus, errors: File) -> Outcome<()> {
    if status.success() {
        return Ok(());
    }
    let said = read_back(errors)?;
    Err(failed(format!("{} {:?} ended with {status}: {said}", command.get_program().display(), command.get_args().collect::<Vec<_>>())))
}

fn read_back(mut file: File) -> Outcome<String> {
    use std::io::{Read, Seek};
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// What a command wrote to stdout, trimmed; its end must be a good one.
pub(crate) fn output(command: &mut Command) -> Outcome<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!(
            "{} {:?} ended with {}: {}",
            command.get_program().display(),
            command.get_args().collect::<Vec<_>>(),
            output.status,
            said.trim()
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A daemon of ours: asked to end when it is dropped, and killed when it does not.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    /// Kept open, so that the daemon can go on writing.
    _stdout: Option<ChildStdout>,
}

impl Daemon {
    /// Starts it and waits for its line that begins with `ready`; `log` takes its stderr.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Outcome<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(log)?).spawn()?;
        remember(&child);
        let mut daemon = Self { child, _stdout: None };
        let mut stdout = daemon.child.stdout.take().ok_or_else(|| failed("a daemon without stdout"))?;
        let line = first_line(&mut stdout)?;
        daemon._stdout = Some(stdout);
        if line.starts_with("ready") {
            return Ok(daemon);
        }
        let said = fs::read_to_string(log).unwrap_or_default();
        Err(failed(format!(
            "{} {:?} did not become ready: {said}",
            command.get_program().display(),
            command.get_args().collect::<Vec<_>>()
        )))
    }

    /// Starts one that says nothing when it is ready; `ready` is asked until it is.
    pub(crate) fn start_silent(command: &mut Command, log: &Path, ready: impl Fn() -> bool) -> Outcome<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(log)?).spawn()?;
        remember(&child);
        let daemon = Self { child, _stdout: None };
        let begun = Instant::now();
        while !ready() {
            if begun.elapsed() > PATIENCE {
                let said = fs::read_to_string(log).unwrap_or_default();
                return Err(failed(format!("{} did not become ready: {said}", command.get_program().display())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(daemon)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        pid_of(&self.child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > PATIENCE {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        forget(&self.child);
    }
}

/// The first line that comes within [`PATIENCE`]; empty if none does.
fn first_line(stdout: &mut ChildStdout) -> Outcome<String> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::io::Read;
    let begun = Instant::now();
    let mut line = Vec::new();
    while let Some(left) = PATIENCE.checked_sub(begun.elapsed()) {
        let timeout = Timespec::try_from(left)?;
        let ready = poll(&mut [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::IN)], Some(&timeout))?;
        let mut byte = [0];
        if ready == 0 || stdout.read(&mut byte)? == 0 {
            break;
        }
        if byte == *b"\n" {
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
        line.push(byte[0]);
    }
    Ok(String::new())
}
