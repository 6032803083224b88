//! What is peculiar to x86-64: registers, the system call instruction, the machine's number in ELF files.

use std::io;

use rustix::process::Pid;

use super::ptrace;

/// `e_machine` of programs for this machine.
pub(crate) const MACHINE: u16 = object::elf::EM_X86_64;
/// The system call instruction, as it is looked for in the vDSO.
pub(crate) const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// What the ABI keeps free below the stack pointer, bytes.
pub(crate) const RED_ZONE: u64 = 128;

/// The registers of a stopped process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registers(libc::user_regs_struct);

impl Registers {
    /// Reads the registers of a stopped process.
    pub(crate) fn of(pid: Pid) -> io::Result<Self> {
        // SAFETY: an all-zero user_regs_struct is a valid value of this struct of integers.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        // SAFETY: PTRACE_GETREGS writes one user_regs_struct to the data pointer, which points to one that outlives the call.
        unsafe { ptrace(libc::PTRACE_GETREGS, pid, 0, (&raw mut registers).addr()) }?;
        Ok(Self(registers))
    }

    /// Gives the registers to a stopped process.
    pub(crate) fn set(&self, pid: Pid) -> io::Result<()> {
        // SAFETY: PTRACE_SETREGS reads one user_regs_struct from the data pointer, which points to one that outlives the call.
        unsafe { ptrace(libc::PTRACE_SETREGS, pid, 0, (&raw const self.0).addr()) }
    }

    /// The address of the next instruction.
    pub(crate) fn instruction(&self) -> u64 {
        self.0.rip
    }

    /// The stack pointer.
    pub(crate) fn stack(&self) -> u64 {
        self.0.rsp
    }

    /// What a system call returned; -4095 to -1 are errors.
    pub(crate) fn result(&self) -> i64 {
        self.0.rax.cast_signed()
    }

    /// These registers, but about to make a system call with the instruction at `gadget`.
    pub(crate) fn calling(&self, gadget: u64, number: i64, arguments: [u64; 6]) -> Self {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        // orig_rax = -1: the kernel must not take the stop for an interrupted call that it should restart.
        let orig_rax = u64::MAX;
        Self(libc::user_regs_struct { rip: gadget, rax: number.cast_unsigned(), orig_rax, rdi, rsi, rdx, r10, r8, r9, ..self.0 })
    }
}
