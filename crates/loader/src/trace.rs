//! From the client to the exec stop.

use std::fs::File;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::direct::OwnInterpreter;
use crate::error::{LoadError, system};
use crate::exec::AtExec;
use crate::handover::Listener;
use crate::sys::{self, Alarm, Stop};

/// How long a process may take to stop or die after it was told to, when the deadline has passed already.
const GRACE: Duration = Duration::from_secs(2);
/// Distance of the looks during [`GRACE`].
const GRACE_STEP: Duration = Duration::from_millis(1);
/// The first exec may come only after the client has handled this many signals; more is a client that plays for time.
const MAX_STOPS: u32 = 10_000;

/// Holds a client from before its exec. Stays on the thread that made it: the kernel knows only that thread as the tracer.
///
/// Dropped before the exec, it lets the client go unharmed.
#[derive(Debug)]
pub struct Tracer {
    traced: Traced,
}

impl Tracer {
    /// Begins to trace the client, which must be waiting for that with a single thread, and goes on running.
    ///
    /// The caller knows `pid` from the client's connection (`SO_PEERCRED`) and lets the client exec only when this has succeeded:
    /// a pid that meanwhile names another process never gets that word and is let go again.
    ///
    /// # Errors
    /// [`LoadError::TraceRefused`] if the kernel forbids it, [`LoadError::ClientEnded`] if there is no such process any more.
    pub fn seize(pid: Pid) -> Result<Self, LoadError> {
        let gone = |error: io::Error| match error.raw_os_error() {
            Some(libc::ESRCH) => LoadError::ClientEnded { status: 0 },
            _ => LoadError::TraceRefused(error),
        };
        let handle = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| gone(errno.into()))?;
        sys::seize(pid).map_err(gone)?;
        Ok(Self { traced: Traced { pid, handle, alarm: None, phase: Phase::Running, own_thread: PhantomData } })
    }

    /// Waits until the client has called execve with success and stands at the end of that call, its new program in place and not
    /// one instruction of it run. Signals before that are the client's own. `deadline` counts from now to the end of the whole
    /// start, [`AtExec::complete`] and [`AtExec::refuse`] included.
    ///
    /// # Errors
    /// [`LoadError::ClientEnded`] if the client ended first (its exec failed, or it was killed), [`LoadError::TimedOut`] after the
    /// deadline: the client is then let go.
    pub fn await_exec(mut self, deadline: Duration) -> Result<AtExec, LoadError> {
        self.traced.alarm = Some(Alarm::after(deadline).map_err(system("no timer for the deadline"))?);
        let listener = Listener::bind()?;
        for _ in 0..MAX_STOPS {
            match self.traced.wait()? {
                Stop::Exec => {
                    self.traced.phase = Phase::InExec;
                    return AtExec::new(self.traced, listener, Instant::now());
                }
                Stop::Signal(signal) => self.traced.resume(signal)?,
                Stop::Group(_) => sys::listen(self.traced.pid).or_else(|error| self.traced.unless_killed(error))?,
                Stop::Trap | Stop::Syscall => self.traced.resume(0)?,
                Stop::Ended(status) => return Err(LoadError::ClientEnded { status }),
            }
        }
        Err(LoadError::TimedOut)
    }

    /// Stops a client that stands in `own`, begun there by the kernel for a package that names it, and takes it for a process at the end of
    /// that exec: its registers are set back to what they were then. `leftover` are descriptors that it has opened since.
    ///
    /// It has run since its exec, and whoever traced that has done to it what he liked: only for clients against whose user nothing is
    /// promised. The connection on which it asked must still be its own when this is called.
    ///
    /// # Errors
    /// As [`await_exec`](Self::await_exec); a client that executes something else meanwhile is killed.
    pub fn take_over(mut self, own: Arc<OwnInterpreter>, leftover: Vec<u32>, deadline: Duration) -> Result<AtExec, LoadError> {
        let since = Instant::now();
        self.traced.alarm = Some(Alarm::after(deadline).map_err(system("no timer for the deadline"))?);
        let listener = Listener::bind()?;
        sys::interrupt(self.traced.pid).or_else(|error| self.traced.unless_killed(error))?;
        for _ in 0..MAX_STOPS {
            match self.traced.wait()? {
                Stop::Trap => {
                    self.traced.phase = Phase::Stopped;
                    return AtExec::begun_in(own, leftover, self.traced, listener, since);
                }
                Stop::Signal(signal) => self.traced.resume(signal)?,
                Stop::Group(_) => sys::listen(self.traced.pid).or_else(|error| self.traced.unless_killed(error))?,
                Stop::Syscall => self.traced.resume(0)?,
                Stop::Exec => {
                    self.traced.phase = Phase::InExec;
                    return Err(LoadError::ProcessMismatch("it started another program meanwhile".into()));
                }
                Stop::Ended(status) => return Err(LoadError::ClientEnded { status }),
            }
        }
        Err(LoadError::TimedOut)
    }
}

/// Where a traced process is, as far as this side has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not yet at its exec.
    Running,
    /// In its execve, the new program in place; the kernel has its result still to write.
    InExec,
    /// At a stop after its exec.
    Stopped,
    /// Somewhere between two stops after its exec.
    Between,
    /// Ended, or let go.
    Gone,
}

/// A process under ptrace. If it is dropped after the exec, the process dies: a program is started whole or not at all.
#[derive(Debug)]
pub(crate) struct Traced {
    pid: Pid,
    handle: OwnedFd,
    alarm: Option<Alarm>,
    phase: Phase,
    own_thread: PhantomData<*const ()>,
}

impl Traced {
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// The path of a file of the process in /proc.
    pub(crate) fn proc_path(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.pid.as_raw_nonzero())
    }

    /// Whether the process stands where a system call can be made in it.
    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.phase, Phase::InExec | Phase::Stopped)
    }

    /// Lets a process leave its execve, if it is still there, so that the result of that call overwrites no register any more.
    pub(crate) fn leave_exec(&mut self) -> Result<bool, LoadError> {
        if self.phase == Phase::InExec { self.run_to_syscall_stop() } else { Ok(false) }
    }

    /// The status of a process that has ended at a stop, where only SIGKILL ends it.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        match sys::poll(self.pid) {
            Ok(Some(Stop::Ended(status))) => {
                self.phase = Phase::Gone;
                Some(status)
            }
            _ => None,
        }
    }

    /// Waits for the next stop, until the alarm.
    fn wait(&mut self) -> Result<Stop, LoadError> {
        loop {
            match sys::wait(self.pid) {
                Ok(stop) => {
                    if let Stop::Ended(_) = stop {
                        self.phase = Phase::Gone;
                    }
                    return Ok(stop);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    if self.alarm.as_ref().is_some_and(Alarm::expired) {
                        return Err(LoadError::TimedOut);
                    }
                }
                Err(error) => {
                    self.phase = Phase::Gone;
                    return Err(LoadError::System { what: "the client cannot be waited for", source: error });
                }
            }
        }
    }

    fn resume(&mut self, signal: i32) -> Result<(), LoadError> {
        sys::resume(self.pid, signal).or_else(|error| self.unless_killed(error))
    }

    /// A stopped process can be killed at any time; the next wait will tell.
    fn unless_killed(&self, error: io::Error) -> Result<(), LoadError> {
        if error.raw_os_error() == Some(libc::ESRCH) {
            return Ok(());
        }
        Err(LoadError::System { what: "the client cannot be traced any further", source: error })
    }

    /// Lets a stopped process run to the next entry or exit of a system call. Returns whether a SIGSTOP was held back on the way;
    /// every other signal is fatal here, because the caller blocks what may wait.
    pub(crate) fn run_to_syscall_stop(&mut self) -> Result<bool, LoadError> {
        self.run_to(Stop::Syscall, sys::resume_to_syscall)
    }

    /// Lets a stopped process run to the next trap instruction. Otherwise as [`run_to_syscall_stop`](Self::run_to_syscall_stop).
    pub(crate) fn run_to_trap(&mut self) -> Result<bool, LoadError> {
        self.run_to(Stop::Signal(libc::SIGTRAP), |pid| sys::resume(pid, 0))
    }

    fn run_to(&mut self, wanted: Stop, resume: impl Fn(Pid) -> io::Result<()>) -> Result<bool, LoadError> {
        let mut held = false;
        self.phase = Phase::Between;
        for _ in 0..MAX_STOPS {
            resume(self.pid).or_else(|error| self.unless_killed(error))?;
            match self.wait()? {
                stop if stop == wanted => {
                    self.phase = Phase::Stopped;
                    return Ok(held);
                }
                Stop::Signal(libc::SIGSTOP) => held = true,
                Stop::Trap | Stop::Group(_) => {}
                Stop::Ended(status) => return Err(LoadError::ClientEnded { status }),
                Stop::Signal(signal) => {
                    return Err(LoadError::Injection { call: "a system call", detail: format!("signal {signal} came up") });
                }
                Stop::Exec => return Err(LoadError::ProcessMismatch("it started another program meanwhile".into())),
                Stop::Syscall => return Err(LoadError::ProcessMismatch("it made a call of its own".into())),
            }
        }
        Err(LoadError::TimedOut)
    }

    /// Lets the process go on by itself, with a signal (0: none). One that was killed at its stop is reaped instead.
    pub(crate) fn detach(&mut self, signal: i32) -> Result<(), LoadError> {
        if sys::detach(self.pid, signal).is_err() {
            self.kill();
            return Err(LoadError::ClientEnded { status: -libc::SIGKILL });
        }
        self.phase = Phase::Gone;
        Ok(())
    }

    /// Lets a client go that has not come to its exec.
    fn let_go(&mut self) {
        if sys::interrupt(self.pid).is_err() {
            return;
        }
        match self.wait_in_grace() {
            Some(Stop::Signal(signal)) => drop(self.detach(signal)),
            Some(Stop::Exec) => {
                self.phase = Phase::Between;
                drop(sys::resume_to_syscall(self.pid));
                self.kill();
            }
            Some(Stop::Ended(_)) | None => self.phase = Phase::Gone,
            Some(Stop::Trap | Stop::Group(_) | Stop::Syscall) => drop(self.detach(0)),
        }
    }

    /// Ends the process and takes its status, so that its parent gets it. Without `CAP_KILL` a process of another user takes the
    /// signal only from its tracer, at a stop.
    pub(crate) fn kill(&mut self) {
        if self.phase == Phase::Gone {
            return;
        }
        let by_signal = pidfd_send_signal(&self.handle, Signal::KILL).is_ok();
        if !by_signal && self.phase == Phase::Between && sys::interrupt(self.pid).is_ok() {
            // The next stop is taken below.
        } else if !by_signal && self.phase == Phase::InExec {
            drop(sys::resume_to_syscall(self.pid)); // No signal can be given to it in execve.
        } else if !by_signal {
            drop(sys::resume(self.pid, libc::SIGKILL));
        }
        for _ in 0..MAX_STOPS {
            match self.wait_in_grace() {
                Some(Stop::Ended(_)) | None => break,
                Some(Stop::Trap | Stop::Group(_)) => drop(sys::resume_to_syscall(self.pid)),
                Some(_) => drop(sys::resume(self.pid, libc::SIGKILL)),
            }
        }
        self.phase = Phase::Gone;
    }

    /// The next stop, if it comes within [`GRACE`].
    fn wait_in_grace(&self) -> Option<Stop> {
        let end = Instant::now() + GRACE;
        while Instant::now() < end {
            match sys::poll(self.pid) {
                Ok(Some(stop)) => return Some(stop),
                Ok(None) => std::thread::sleep(GRACE_STEP),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        None
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        match self.phase {
            Phase::Gone => {}
            Phase::Running => self.let_go(),
            Phase::InExec | Phase::Stopped | Phase::Between => self.kill(),
        }
    }
}

/// Opens the file that the process executes by its magic link.
pub(crate) fn open_exe(traced: &Traced) -> io::Result<File> {
    File::open(traced.proc_path("exe"))
}

/// More than the maps file of most processes at their exec has, bytes: it is read at once.
const USUAL_MAPS: usize = 16 * 1024;

/// What a file below `/proc` says. The names of files and programs in it may hold anything, and are not what it is read for.
///
/// # Errors
/// Whatever opening and reading it fails with.
pub fn proc_text(path: impl AsRef<Path>) -> io::Result<String> {
    let mut bytes = Vec::with_capacity(USUAL_MAPS);
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
