//! The daemon confines itself: what a thread that somebody took over could ask the kernel for.
//!
//! [`process`] comes first, while there is one thread: no privileges are ever gained again, calls that only an intruder would make end
//! the process, and every other call that is not on the list (`confine/calls.rs`, with a reason for each) is refused with EPERM. Then
//! each thread takes from itself what its work does not need, with [`thread`]:
//!
//! | threads | work | have lost besides |
//! |---|---|---|
//! | accept | makes threads | nothing: they may become either of the next two |
//! | client, before it waits for one | takes a connection, reads what it asks for first, starts a program or opens a library in one: [`crate::run`], `library` | the network, making, renaming and removing files, executable memory |
//! | open | open pages of programs that are started for the first time | the same as they, before they wait |
//! | client that asked for anything else; renewal | deliveries, opening, enrolment | ptrace and other processes' memory; by Landlock every file but to read, except in the processor's own folders |
//! | data | answer what the kernel asks about data for programs ([`crate::data`]) | the network, ptrace, other processes' memory, opening, renaming and removing files |
//! | main | waits for signals and cleans up | the network, ptrace, other processes' memory; the same by Landlock, and it removes the socket |
//!
//! Landlock cannot take part in starts: the kernel lets a process under Landlock trace only processes under the same rules. All
//! threads share their memory, so that this hinders an intruder and does not stop one who can move from thread to thread; what holds for
//! all of them is the first line. Nothing here can be switched off. Where the kernel lacks one of both, the log says so at the start.

mod calls;
mod folders;

use crate::config::Config;
use chipbound_wire::{Code, Refusal, Result};
use folders::Folders;
use seccompiler::{BpfProgram, apply_filter};
use std::cell::Cell;
use std::fmt;
use std::sync::OnceLock;

/// What a thread is for, from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Waits for signals and cleans up at the end.
    Control,
    /// Deliveries, opening of data, enrolment and renewal.
    Session,
    /// Starts one program, or opens a library in one.
    Start,
    /// Answers what the kernel asks about data for programs.
    Data,
}

/// How far this kernel lets a process confine itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Confinement {
    /// System calls are filtered (seccomp).
    pub calls: bool,
    /// Folders are closed (Landlock).
    pub folders: bool,
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.calls, self.folders) {
            (true, true) => "system calls filtered, folders closed",
            (true, false) => "system calls filtered; this kernel has no Landlock, so that folders are closed by their modes alone",
            (false, true) => "folders closed; this kernel has no seccomp filters, so that every system call is open",
            (false, false) => "this kernel has neither seccomp filters nor Landlock: the daemon is not confined",
        })
    }
}

/// What [`thread`] applies; unset in a process that never called [`process`], such as a test in memory.
static PLAN: OnceLock<Plan> = OnceLock::new();

struct Plan {
    /// By [`Work`]; none where the kernel has no filters.
    filters: Option<[BpfProgram; 4]>,
    /// None where the kernel has no Landlock.
    folders: Option<Folders>,
}

/// Confines the whole process; its folders must be there already. Called once, by its only thread.
///
/// # Errors
/// [`Code::Internal`] if the kernel has what is asked for and refuses it nevertheless, or at a second call.
pub fn process(config: &Config) -> Result<Confinement> {
    rustix::thread::set_no_new_privs(true).map_err(|e| Refusal::io("giving up new privileges", e.into()))?;
    let folders = Folders::of(config)?;
    let confinement = Confinement { calls: close_calls()?, folders: folders.is_some() };
    let filters = confinement.calls.then(|| [Work::Control, Work::Session, Work::Start, Work::Data].map(calls::lost));
    let planned = PLAN.set(Plan { filters, folders });
    planned.map_err(|_| Refusal::new(Code::Internal, "the process is confined already"))?;
    Ok(confinement)
}

thread_local! {
    static IS_FOR: Cell<Option<Work>> = const { Cell::new(None) };
}

/// Takes from this thread, and from those that it makes, what this work does not need. Repeated, it does nothing.
///
/// # Errors
/// [`Code::Malformed`] if the thread is for another work already: a client asked for both on one connection. [`Code::Internal`] if
/// the kernel refuses; the thread must not go on then.
pub fn thread(work: Work) -> Result<()> {
    let Some(plan) = PLAN.get() else { return Ok(()) };
    match IS_FOR.get() {
        Some(before) if before == work => return Ok(()),
        Some(_) => return Err(Refusal::new(Code::Malformed, "programs are started on a connection of their own")),
        None => IS_FOR.set(Some(work)),
    }
    if let Some(folders) = &plan.folders {
        folders.close(work)?;
    }
    if let Some(filters) = &plan.filters {
        apply_filter(&filters[work as usize]).map_err(refused)?;
    }
    Ok(())
}

/// The filters of the whole process: false where the kernel has none.
fn close_calls() -> Result<bool> {
    let filters = [calls::deadly(), calls::known(), calls::absent()];
    for (number, filter) in filters.iter().enumerate() {
        match apply_filter(filter) {
            Ok(()) => {}
            Err(seccompiler::Error::Seccomp(e)) if number == 0 && matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => {
                return Ok(false);
            }
            Err(error) => return Err(refused(error)),
        }
    }
    Ok(true)
}

fn refused(error: seccompiler::Error) -> Refusal {
    Refusal::new(Code::Internal, format!("the kernel takes no filter of system calls: {error}")).because(error)
}
