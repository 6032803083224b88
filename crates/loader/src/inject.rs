//! System calls made in a stopped process, on its behalf.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::Pid;

use crate::error::{LoadError, system};
use crate::sys::arch::{RED_ZONE, Registers, SYSCALL};
use crate::sys::{read_memory, set_signal_mask, signal_mask, write_memory};
use crate::trace::Traced;

/// The most that is looked at of a vDSO, bytes.
const MAX_VDSO: usize = 16 * 1024;
/// Errors of system calls are the results from here to -1.
const LAST_ERRNO: i64 = -4095;
/// Every signal; the kernel leaves SIGKILL and SIGSTOP open.
const ALL_SIGNALS: u64 = u64::MAX;

/// The memory of a process at its exec stop.
///
/// A processor of the same ordinary user loses its access the moment the process becomes non-dumpable, but not a descriptor that it
/// opened before. A processor of another user may not open that file, but its `CAP_SYS_PTRACE` carries process_vm_readv throughout.
#[derive(Debug)]
pub(crate) struct Memory {
    pid: Pid,
    file: Option<File>,
}

impl Memory {
    pub(crate) fn open(traced: &Traced) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(traced.proc_path("mem")).ok();
        Self { pid: traced.pid(), file }
    }

    pub(crate) fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), LoadError> {
        match &self.file {
            Some(file) => file.read_exact_at(buf, address),
            None => read_memory(self.pid, address, buf),
        }
        .map_err(system("the memory of the process cannot be read"))
    }

    pub(crate) fn write(&self, address: u64, buf: &[u8]) -> Result<(), LoadError> {
        match &self.file {
            Some(file) => file.write_all_at(buf, address),
            None => write_memory(self.pid, address, buf),
        }
        .map_err(system("the memory of the process cannot be written"))
    }
}

/// What a call in the process came back with instead of success.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The kernel refused it.
    Refused(io::Error),
    /// The process is not where it should be.
    Lost(LoadError),
}

impl CallError {
    /// Any failure of this call as an error of the start.
    pub(crate) fn of(self, call: &'static str) -> LoadError {
        match self {
            Self::Refused(error) => LoadError::Injection { call, detail: error.to_string() },
            Self::Lost(error) => error,
        }
    }
}

/// Makes system calls in a stopped process with the system call instruction of its vDSO, so that no code is changed. All signals
/// that can be blocked wait meanwhile, and are the program's own again afterwards.
#[derive(Debug)]
pub(crate) struct Injector {
    gadget: u64,
    before: Registers,
    mask: u64,
    held_stop: bool,
}

impl Injector {
    /// Finds the instruction and blocks the signals.
    pub(crate) fn begin(traced: &Traced, memory: &Memory, maps: &str, before: Registers) -> Result<Self, LoadError> {
        let gadget = find_gadget(memory, maps)?;
        let mask = signal_mask(traced.pid()).map_err(system("the signal mask of the process cannot be read"))?;
        set_signal_mask(traced.pid(), ALL_SIGNALS).map_err(system("the signals of the process cannot be blocked"))?;
        Ok(Self { gadget, before, mask, held_stop: false })
    }

    /// An address range of `size` bytes below the stack that the program does not use yet, aligned to 64 bytes.
    pub(crate) fn scratch(&self, size: usize) -> u64 {
        self.before.stack().saturating_sub(RED_ZONE + size as u64) & !63
    }

    /// Makes one system call and returns its result.
    pub(crate) fn call(&mut self, traced: &mut Traced, number: i64, arguments: [u64; 6]) -> Result<u64, CallError> {
        let lost = |error| CallError::Lost(LoadError::System { what: "the registers of the process cannot be changed", source: error });
        self.before.calling(self.gadget, number, arguments).set(traced.pid()).map_err(lost)?;
        for _ in ["entry", "exit"] {
            self.held_stop |= traced.run_to_syscall_stop().map_err(CallError::Lost)?;
        }
        let after = Registers::of(traced.pid()).map_err(lost)?;
        if after.instruction() != self.gadget + SYSCALL.len() as u64 {
            return Err(CallError::Lost(LoadError::ProcessMismatch("it went on elsewhere".into())));
        }
        match after.result() {
            error @ LAST_ERRNO..=-1 => Err(CallError::Refused(io::Error::from_raw_os_error(-(error as i32)))),
            result => Ok(result.cast_unsigned()),
        }
    }

    /// Gives registers and signal mask back and lets the process go.
    pub(crate) fn finish(self, traced: &mut Traced) -> Result<(), LoadError> {
        self.before.set(traced.pid()).map_err(system("the registers of the process cannot be given back"))?;
        set_signal_mask(traced.pid(), self.mask).map_err(system("the signal mask of the process cannot be given back"))?;
        traced.detach(if self.held_stop { libc::SIGSTOP } else { 0 })
    }
}

fn find_gadget(memory: &Memory, maps: &str) -> Result<u64, LoadError> {
    let none = || LoadError::Unsupported("this kernel gives its processes no vDSO with a system call".into());
    let line = maps.lines().find(|line| line.ends_with(" [vdso]")).ok_or_else(none)?;
    let (start, end) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).ok_or_else(none)?;
    let number = |text| u64::from_str_radix(text, 16).map_err(|_| none());
    let (start, end) = (number(start)?, number(end)?);
    // All processes have the same vDSO, so the place found last is looked at first.
    static LAST: AtomicU64 = AtomicU64::new(0);
    let last = start + LAST.load(Ordering::Relaxed);
    let mut found = [0; SYSCALL.len()];
    if last < end && memory.read(last, &mut found).is_ok() && found == SYSCALL {
        return Ok(last);
    }
    let mut code = vec![0; usize::try_from(end.saturating_sub(start)).unwrap_or(0).min(MAX_VDSO)];
    memory.read(start, &mut code)?;
    let at = code.windows(SYSCALL.len()).position(|bytes| bytes == SYSCALL).ok_or_else(none)?;
    LAST.store(at as u64, Ordering::Relaxed);
    Ok(start + at as u64)
}
