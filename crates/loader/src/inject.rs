//! System calls made in a stopped process, on its behalf: one by one, or as a script that runs in it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::Pid;

use crate::error::{LoadError, system};
use crate::layout::kernels_own;
use crate::script::{RECORD_SIZE, Results, Script, TABLE_SIZE, is_error};
use crate::sys::arch::{RED_ZONE, Registers, SYSCALL, stub};
use crate::sys::{poke, read_memory, set_signal_mask, signal_mask, write_memory};
use crate::trace::Traced;

/// The most that is looked at of a vDSO, bytes.
const MAX_VDSO: usize = 16 * 1024;
/// Errors of system calls are the results from here to -1.
pub(crate) const LAST_ERRNO: i64 = -4095;
/// The most machine code that is placed in a process, bytes: whole words.
pub(crate) const MAX_STUB: usize = 128;
const WORD: usize = 8;
/// Size of the kernel's `struct sigaction`, bytes, and what its first word says of a signal that is ignored.
const SIGACTION: usize = 32;
const IGNORED: u64 = 1;
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

    /// The eight bytes at an address.
    pub(crate) fn word(&self, address: u64) -> Result<u64, LoadError> {
        let mut word = [0; WORD];
        self.read(address, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }

    /// Writes machine code in the place of other code, on a page of the process's own.
    fn write_code(&self, address: u64, code: &[u8; MAX_STUB]) -> io::Result<()> {
        if self.file.as_ref().is_some_and(|file| file.write_all_at(code, address).is_ok()) {
            return Ok(());
        }
        // Kernels can be told to protect code from /proc/PID/mem (proc_mem.force_override); the debugger's own request goes on working.
        for (at, word) in (address..).step_by(WORD).zip(code.chunks_exact(WORD)) {
            poke(self.pid, at, u64::from_ne_bytes(word.try_into().expect("whole words")))?;
        }
        Ok(())
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

/// Machine code of ours that lies in the vDSO of a process for the time of the start.
#[derive(Debug)]
struct Stub {
    at: u64,
    before: [u8; MAX_STUB],
}

/// Makes system calls in a stopped process. All signals that can be blocked wait meanwhile, and are the program's own again
/// afterwards.
///
/// Scripts run by a [`stub`] that takes the place of the first bytes of the process's vDSO until the end of the start: the page is
/// copied for this process, as it is for a debugger's breakpoint. Single calls, and scripts where that is not possible, use the system
/// call instruction of the vDSO itself.
#[derive(Debug)]
pub(crate) struct Injector {
    vdso: Vdso,
    stub: Option<Stub>,
    before: Registers,
    mask: u64,
    held_stop: bool,
    trapped: bool,
    /// What the process did on SIGTRAP, as the kernel keeps it, where it differs from what a trap leaves.
    on_trap: Option<[u8; SIGACTION]>,
}

impl Injector {
    /// Finds the vDSO, blocks the signals and places the stub, unless all calls are to be made one by one.
    pub(crate) fn begin(traced: &Traced, memory: &Memory, maps: &str, before: Registers, one_by_one: bool) -> Result<Self, LoadError> {
        let vdso = Vdso::of(maps)?;
        let mask = signal_mask(traced.pid()).map_err(system("the signal mask of the process cannot be read"))?;
        block_signals(traced)?;
        let stub = if one_by_one { None } else { Stub::place(memory, vdso.start) };
        Ok(Self { vdso, stub, before, mask, held_stop: false, trapped: false, on_trap: None })
    }

    /// An address range of `size` bytes below the stack that the program does not use yet, aligned to 64 bytes. The table of a script
    /// lies below it.
    pub(crate) fn scratch(&self, size: usize) -> u64 {
        self.before.stack().saturating_sub(RED_ZONE + size as u64) & !63
    }

    /// Makes the calls of a script. `area` is the address of the [`scratch`](Self::scratch) range; the [`TABLE_SIZE`] bytes below it are
    /// overwritten. The results are those of the calls up to the first that the kernel refused.
    pub(crate) fn run(&mut self, traced: &mut Traced, memory: &Memory, script: &Script, area: u64) -> Result<Results, LoadError> {
        let Some(stub) = &self.stub else {
            return script.one_by_one(memory, |number, arguments| self.make(traced, memory, number, arguments));
        };
        let at = stub.at;
        let table = area - TABLE_SIZE as u64;
        let mut bytes = script.table(table);
        memory.write(table, &bytes)?;
        self.before.running(at, table).set(traced.pid()).map_err(lost_registers)?;
        if std::mem::replace(&mut self.trapped, true) {
            // The last trap opened its signal (force_sig); what others sent of it goes on waiting.
            block_signals(traced)?;
        }
        self.held_stop |= traced.run_to_trap()?;
        let after = Registers::of(traced.pid()).map_err(lost_registers)?;
        let elsewhere = || LoadError::ProcessMismatch("it went on elsewhere".into());
        let stopped_at = after.stopped_at(at).ok_or_else(elsewhere)?;
        let made = usize::try_from(stopped_at.wrapping_sub(table)).map_err(|_| elsewhere())? / RECORD_SIZE;
        if made > script.len() {
            return Err(elsewhere());
        }
        memory.read(table, &mut bytes)?;
        // The record that a refusal left the stub at has been made too.
        Ok(Script::results(&bytes, (made + 1).min(script.len())))
    }

    /// Makes one system call and returns its result.
    pub(crate) fn call(&mut self, traced: &mut Traced, memory: &Memory, number: i64, arguments: [u64; 6]) -> Result<u64, CallError> {
        match self.make(traced, memory, number, arguments).map_err(CallError::Lost)? {
            error if is_error(error) => Err(CallError::Refused(io::Error::from_raw_os_error(-(error as i32)))),
            result => Ok(result.cast_unsigned()),
        }
    }

    fn make(&mut self, traced: &mut Traced, memory: &Memory, number: i64, arguments: [u64; 6]) -> Result<i64, LoadError> {
        let gadget = self.vdso.gadget(memory)?;
        self.held_stop |= traced.leave_exec()?;
        self.before.calling(gadget, number, arguments).set(traced.pid()).map_err(lost_registers)?;
        for _ in ["entry", "exit"] {
            self.held_stop |= traced.run_to_syscall_stop()?;
        }
        let after = Registers::of(traced.pid()).map_err(lost_registers)?;
        if after.instruction() != gadget + SYSCALL.len() as u64 {
            return Err(LoadError::ProcessMismatch("it went on elsewhere".into()));
        }
        Ok(after.result())
    }

    /// Lets the process go on at this address in the end, instead of where it stopped.
    pub(crate) fn go_on_at(&mut self, address: u64) {
        self.before = self.before.going_on_at(address);
    }

    /// Keeps what the process does on SIGTRAP, which the trap at the end of a script resets.
    pub(crate) fn keep_trap(&mut self, action: [u8; SIGACTION]) {
        let handler = u64::from_ne_bytes(action[..WORD].try_into().expect("the first word"));
        self.on_trap = (self.stub.is_some() && handler == IGNORED).then_some(action);
    }

    /// Gives code, registers and signals back and lets the process go.
    pub(crate) fn finish(mut self, traced: &mut Traced, memory: &Memory, area: u64) -> Result<(), LoadError> {
        if let Some(stub) = self.stub.take() {
            memory.write_code(stub.at, &stub.before).map_err(system("the code of the process cannot be given back"))?;
        }
        if let Some(action) = self.on_trap {
            block_signals(traced)?;
            self.restore_trap(traced, memory, area, &action)?;
        }
        self.before.set(traced.pid()).map_err(system("the registers of the process cannot be given back"))?;
        set_signal_mask(traced.pid(), self.mask).map_err(system("the signal mask of the process cannot be given back"))?;
        traced.detach(if self.held_stop { libc::SIGSTOP } else { 0 })
    }

    fn restore_trap(&mut self, traced: &mut Traced, memory: &Memory, area: u64, action: &[u8; SIGACTION]) -> Result<(), LoadError> {
        let mut below = [0; SIGACTION];
        memory.read(area, &mut below)?;
        memory.write(area, action)?;
        let arguments = [libc::SIGTRAP as u64, area, 0, WORD as u64, 0, 0];
        self.call(traced, memory, libc::SYS_rt_sigaction, arguments).map_err(|error| error.of("rt_sigaction"))?;
        memory.write(area, &below)
    }
}

impl Stub {
    /// Writes the stub over the beginning of the vDSO, its ELF header. `None` where the kernel forbids it.
    fn place(memory: &Memory, at: u64) -> Option<Self> {
        let mut code = [0; MAX_STUB];
        code[..stub().len()].copy_from_slice(stub());
        let mut before = [0; MAX_STUB];
        memory.read(at, &mut before).ok()?;
        memory.write_code(at, &code).ok().map(|()| Self { at, before })
    }
}

fn block_signals(traced: &Traced) -> Result<(), LoadError> {
    set_signal_mask(traced.pid(), ALL_SIGNALS).map_err(system("the signals of the process cannot be blocked"))
}

fn lost_registers(error: io::Error) -> LoadError {
    LoadError::System { what: "the registers of the process cannot be changed", source: error }
}

/// Where the kernel's own code lies in a process.
#[derive(Clone, Copy, Debug)]
struct Vdso {
    start: u64,
    end: u64,
}

impl Vdso {
    fn of(maps: &str) -> Result<Self, LoadError> {
        let line = kernels_own(maps, "[vdso]").ok_or_else(no_vdso)?;
        let (start, end) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).ok_or_else(no_vdso)?;
        let number = |text| u64::from_str_radix(text, 16).map_err(|_| no_vdso());
        Ok(Self { start: number(start)?, end: number(end)? })
    }

    /// The address of a system call instruction.
    fn gadget(&self, memory: &Memory) -> Result<u64, LoadError> {
        // All processes have the same vDSO, so the place found last is looked at first.
        static LAST: AtomicU64 = AtomicU64::new(0);
        let last = self.start + LAST.load(Ordering::Relaxed);
        let mut found = [0; SYSCALL.len()];
        if last < self.end && memory.read(last, &mut found).is_ok() && found == SYSCALL {
            return Ok(last);
        }
        let mut code = vec![0; usize::try_from(self.end.saturating_sub(self.start)).unwrap_or(0).min(MAX_VDSO)];
        memory.read(self.start, &mut code)?;
        // Behind what a stub covers.
        let covered = MAX_STUB.min(code.len());
        let at = code[covered..].windows(SYSCALL.len()).position(|bytes| bytes == SYSCALL).ok_or_else(no_vdso)? + covered;
        LAST.store(at as u64, Ordering::Relaxed);
        Ok(self.start + at as u64)
    }
}

fn no_vdso() -> LoadError {
    LoadError::Unsupported("this kernel gives its processes no vDSO with a system call".into())
}
