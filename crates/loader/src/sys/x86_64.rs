//! What is peculiar to x86-64: registers, the system call instruction, the stub of a script, the machine's number in ELF files.

use std::io;

use rustix::process::Pid;

use super::{code_between, ptrace};

/// `e_machine` of programs for this machine.
pub(crate) const MACHINE: u16 = object::elf::EM_X86_64;
/// The system call instruction, as it is looked for in the vDSO.
pub(crate) const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// `X86_EFLAGS_IF`, all that the kernel sets in the flags of a new program.
const INTERRUPTS: u64 = 0x200;
/// Control words of the floating-point units in a new program: all exceptions masked (System V ABI, 3.4.1).
const CONTROL: (u16, u32) = (0x37f, 0x1f80);
/// What the ABI keeps free below the stack pointer, bytes.
pub(crate) const RED_ZONE: u64 = 128;

// rbx: the record. A system call destroys rax, rcx and r11 only. The offsets are those of `script`'s records.
std::arch::global_asm!(
    ".pushsection .rodata.chipbound_stub, \"a\", @progbits",
    ".globl chipbound_stub_begin, chipbound_stub_end",
    ".hidden chipbound_stub_begin, chipbound_stub_end",
    "chipbound_stub_begin:",
    "2:  mov rax, [rbx]",
    "    test rax, rax",
    "    js 4f",
    "    mov rdi, [rbx + 8]",
    "    mov rdi, [rdi]",
    "    mov rsi, [rbx + 16]",
    "    mov rsi, [rsi]",
    "    mov rdx, [rbx + 24]",
    "    mov rdx, [rdx]",
    "    mov r10, [rbx + 32]",
    "    mov r10, [r10]",
    "    mov r8, [rbx + 40]",
    "    mov r8, [r8]",
    "    mov r9, [rbx + 48]",
    "    mov r9, [r9]",
    "    syscall",
    "    mov [rbx + 64], rax",
    "    cmp rax, -4095",
    "    jb 3f",
    "    cmp qword ptr [rbx + 56], 0",
    "    je 4f",
    "3:  add rbx, {record}",
    "    jmp 2b",
    "4:  int3",
    "chipbound_stub_end:",
    ".popsection",
    record = const crate::script::RECORD_SIZE,
);

unsafe extern "C" {
    static chipbound_stub_begin: u8;
    static chipbound_stub_end: u8;
}

/// The machine code that goes through a [`Script`](crate::script::Script)'s table and traps behind the call that failed, or at the
/// end. It depends on no address, uses no stack and ends with the trap instruction.
pub(crate) fn stub() -> &'static [u8] {
    // SAFETY: both symbols are defined above, the second behind the first in one section.
    unsafe { code_between(&raw const chipbound_stub_begin, &raw const chipbound_stub_end) }
}

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

    /// These registers with the result of a successful execve, which the kernel writes last.
    pub(crate) fn after_exec(self) -> Self {
        Self(libc::user_regs_struct { rax: 0, ..self.0 })
    }

    /// The registers as the kernel leaves them at an exec: about to go on at this address, with this stack, and everything else as nobody
    /// used it.
    pub(crate) fn at_entry(self, instruction: u64, stack: u64) -> Self {
        // SAFETY: an all-zero user_regs_struct is a valid value of this struct of integers.
        let zero: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        let Self(libc::user_regs_struct { cs, ss, ds, es, fs, gs, .. }) = self;
        Self(libc::user_regs_struct {
            rip: instruction,
            rsp: stack,
            eflags: INTERRUPTS,
            orig_rax: u64::MAX,
            cs,
            ss,
            ds,
            es,
            fs,
            gs,
            ..zero
        })
    }

    /// The address of the next instruction.
    pub(crate) fn instruction(&self) -> u64 {
        self.0.rip
    }

    /// These registers, but about to go on at this address.
    pub(crate) fn going_on_at(self, address: u64) -> Self {
        Self(libc::user_regs_struct { rip: address, ..self.0 })
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

    /// These registers, but about to run the stub at `stub` over the table at `table`.
    pub(crate) fn running(&self, stub: u64, table: u64) -> Self {
        Self(libc::user_regs_struct { rip: stub, rbx: table, orig_rax: u64::MAX, ..self.0 })
    }

    /// Where in the table the stub at `stub` stands, if it has trapped.
    pub(crate) fn stopped_at(&self, stub: u64) -> Option<u64> {
        (self.0.rip == stub + self::stub().len() as u64).then_some(self.0.rbx)
    }
}

/// Brings the floating-point and vector registers of a stopped process to what they are in a new program.
pub(crate) fn reset_floats(pid: Pid) -> io::Result<()> {
    // SAFETY: an all-zero user_fpregs_struct is a valid value of this struct of integers.
    let mut fresh: libc::user_fpregs_struct = unsafe { std::mem::zeroed() };
    (fresh.cwd, fresh.mxcsr) = CONTROL;
    // SAFETY: PTRACE_SETFPREGS reads one user_fpregs_struct from the data pointer, which points to one that outlives the call.
    unsafe { ptrace(libc::PTRACE_SETFPREGS, pid, 0, (&raw const fresh).addr()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stub_makes_one_kind_of_call_and_ends_with_a_trap() {
        let code = stub();
        assert_eq!(code.windows(SYSCALL.len()).filter(|bytes| **bytes == SYSCALL).count(), 1);
        assert_eq!(code.last(), Some(&0xcc));
        assert!(code.len() <= crate::inject::MAX_STUB, "{} bytes", code.len());
    }
}
