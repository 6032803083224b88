//! The system calls that have no safe wrapper, each behind a function that is safe to call. All unsafe code of the loader.
#![expect(unsafe_code, reason = "ptrace, waitpid with __WALL, process_vm_readv and interval timers exist only in libc")]

mod alarm;
#[cfg(target_arch = "aarch64")]
#[path = "aarch64.rs"]
pub(crate) mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
pub(crate) mod arch;
mod memory;

use std::io;

use rustix::process::Pid;

pub(crate) use alarm::Alarm;
pub(crate) use memory::{LockedPages, WritablePages, WritablePart, listed_as, read_memory, try_anonymous_code, try_mapping, write_memory};

/// Size of the kernel's signal set, bytes, as PTRACE_GETSIGMASK wants it.
const SIGNAL_SET: usize = 8;

/// Why a traced process stopped, or that it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It ended: exit code, or minus the signal.
    Ended(i32),
    /// At the entry or the exit of a system call.
    Syscall,
    /// In execve, its new program in place.
    Exec,
    /// A signal is about to be delivered.
    Signal(i32),
    /// It and its threads were stopped by this signal (job control).
    Group(i32),
    /// It stopped because it was interrupted or is to go on.
    Trap,
}

/// Makes one ptrace request.
///
/// # Safety
/// `data` must be what the request asks for; if that is an address, it must be valid for what the request does with it.
unsafe fn ptrace(request: libc::c_uint, pid: Pid, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: the caller vouches for `data`; `address` is a number or zero for every request used here.
    let result = unsafe { libc::ptrace(request, pid.as_raw_nonzero().get(), address, data) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The bytes from one symbol of this program to another.
///
/// # Safety
/// Both lie in one section that can be read and never changes, `begin` not behind `end`.
unsafe fn code_between(begin: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: the caller vouches for both symbols, so everything between them is initialised and lives as long as the program.
    unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) }
}

/// Writes one word of a stopped process, whatever the protection of its page; a page of a file or of the kernel is copied first.
pub(crate) fn poke(pid: Pid, address: u64, word: u64) -> io::Result<()> {
    // SAFETY: PTRACE_POKEDATA takes the word itself as data, no address of ours.
    unsafe { ptrace(libc::PTRACE_POKEDATA, pid, address as usize, word as usize) }
}

/// Begins to trace a process: stop at exec, tell system calls from signals, kill it if this thread ends.
pub(crate) fn seize(pid: Pid) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD;
    // SAFETY: PTRACE_SEIZE takes flags as data, no address.
    unsafe { ptrace(libc::PTRACE_SEIZE, pid, 0, options as usize) }
}

/// Whether the request itself is refused, whomever it is about: asked for a process that cannot exist.
pub(crate) fn ptrace_is_forbidden() -> bool {
    // SAFETY: PTRACE_SEIZE takes flags as data, no address.
    let asked = unsafe { ptrace(libc::PTRACE_SEIZE, Pid::from_raw(i32::MAX).expect("positive"), 0, 0) };
    asked.is_err_and(|error| error.raw_os_error() != Some(libc::ESRCH))
}

/// Lets a stopped process go on, with a signal (0: none).
pub(crate) fn resume(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: PTRACE_CONT takes a signal number as data, no address.
    unsafe { ptrace(libc::PTRACE_CONT, pid, 0, signal as usize) }
}

/// Lets a stopped process go on to the next entry or exit of a system call.
pub(crate) fn resume_to_syscall(pid: Pid) -> io::Result<()> {
    // SAFETY: PTRACE_SYSCALL takes a signal number as data, no address.
    unsafe { ptrace(libc::PTRACE_SYSCALL, pid, 0, 0) }
}

/// Leaves a process in its group stop, but goes on listening.
pub(crate) fn listen(pid: Pid) -> io::Result<()> {
    // SAFETY: PTRACE_LISTEN takes no data.
    unsafe { ptrace(libc::PTRACE_LISTEN, pid, 0, 0) }
}

/// Asks a running process to stop.
pub(crate) fn interrupt(pid: Pid) -> io::Result<()> {
    // SAFETY: PTRACE_INTERRUPT takes no data.
    unsafe { ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0) }
}

/// Ends the tracing of a stopped process, which goes on with a signal (0: none).
pub(crate) fn detach(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: PTRACE_DETACH takes a signal number as data, no address.
    unsafe { ptrace(libc::PTRACE_DETACH, pid, 0, signal as usize) }
}

/// The signals that a stopped process blocks, one bit each.
pub(crate) fn signal_mask(pid: Pid) -> io::Result<u64> {
    let mut mask = 0_u64;
    // SAFETY: PTRACE_GETSIGMASK writes SIGNAL_SET = 8 bytes to the data pointer, which points to a u64 that outlives the call.
    unsafe { ptrace(libc::PTRACE_GETSIGMASK, pid, SIGNAL_SET, (&raw mut mask).addr()) }?;
    Ok(mask)
}

/// Sets the signals that a stopped process blocks. SIGKILL and SIGSTOP stay open whatever the mask says.
pub(crate) fn set_signal_mask(pid: Pid, mask: u64) -> io::Result<()> {
    // SAFETY: PTRACE_SETSIGMASK reads SIGNAL_SET = 8 bytes from the data pointer, which points to a u64 that outlives the call.
    unsafe { ptrace(libc::PTRACE_SETSIGMASK, pid, SIGNAL_SET, (&raw const mask).addr()) }
}

/// Waits until a traced process stops or ends. A signal to this thread ends the wait with `Interrupted`.
pub(crate) fn wait(pid: Pid) -> io::Result<Stop> {
    wait_with(pid, 0).map(|stop| stop.expect("without WNOHANG waitpid returns a state"))
}

/// Whether a traced process has stopped or ended.
pub(crate) fn poll(pid: Pid) -> io::Result<Option<Stop>> {
    wait_with(pid, libc::WNOHANG)
}

fn wait_with(pid: Pid, flags: i32) -> io::Result<Option<Stop>> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    match unsafe { libc::waitpid(pid.as_raw_nonzero().get(), &raw mut status, libc::__WALL | flags) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        _ => Ok(Some(decode(status))),
    }
}

/// Reads a wait status as ptrace(2) describes it under "Stopped states".
fn decode(status: i32) -> Stop {
    if libc::WIFEXITED(status) {
        return Stop::Ended(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        return Stop::Ended(-libc::WTERMSIG(status));
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        libc::PTRACE_EVENT_EXEC => Stop::Exec,
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Trap,
        libc::PTRACE_EVENT_STOP => Stop::Group(signal),
        _ if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        _ => Stop::Signal(signal),
    }
}
