//! What is peculiar to AArch64: registers, the system call instruction, the stub of a script, the machine's number in ELF files.

use std::io;

use rustix::process::Pid;

use super::{code_between, ptrace};

/// `e_machine` of programs for this machine.
pub(crate) const MACHINE: u16 = object::elf::EM_AARCH64;
/// The system call instruction (`svc #0`), as it is looked for in the vDSO.
pub(crate) const SYSCALL: [u8; 4] = [0x01, 0x00, 0x00, 0xd4];
/// What lies below the stack pointer and is left alone, bytes; this ABI asks for none.
pub(crate) const RED_ZONE: u64 = 128;
/// `NT_PRSTATUS`: the general registers.
const GENERAL: usize = 1;
/// `NT_PRFPREG`: the floating-point and vector registers, `struct user_fpsimd_state`, bytes.
const FLOATS: usize = 2;
const FLOATS_SIZE: usize = 528;

// x19: the record. A system call destroys x0 only. The offsets are those of `script`'s records. The kernel leaves the instruction
// pointer at a trap; the stub's end is one instruction behind it.
std::arch::global_asm!(
    ".pushsection .rodata.chipbound_stub, \"a\", @progbits",
    ".balign 4",
    ".globl chipbound_stub_begin, chipbound_stub_end",
    ".hidden chipbound_stub_begin, chipbound_stub_end",
    "chipbound_stub_begin:",
    "2:  ldr x8, [x19]",
    "    tbnz x8, #63, 4f",
    "    ldr x0, [x19, #8]",
    "    ldr x0, [x0]",
    "    ldr x1, [x19, #16]",
    "    ldr x1, [x1]",
    "    ldr x2, [x19, #24]",
    "    ldr x2, [x2]",
    "    ldr x3, [x19, #32]",
    "    ldr x3, [x3]",
    "    ldr x4, [x19, #40]",
    "    ldr x4, [x4]",
    "    ldr x5, [x19, #48]",
    "    ldr x5, [x5]",
    "    svc #0",
    "    str x0, [x19, #64]",
    "    cmn x0, #4095",
    "    b.lo 3f",
    "    ldr x9, [x19, #56]",
    "    cbz x9, 4f",
    "3:  add x19, x19, #{record}",
    "    b 2b",
    "4:  brk #0",
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
        let mut place = libc::iovec { iov_base: (&raw mut registers).cast(), iov_len: size_of_val(&registers) };
        // SAFETY: PTRACE_GETREGSET writes at most `iov_len` bytes to `iov_base`, which is a struct of that size; both outlive the call.
        unsafe { ptrace(libc::PTRACE_GETREGSET, pid, GENERAL, (&raw mut place).addr()) }?;
        Ok(Self(registers))
    }

    /// Gives the registers to a stopped process.
    pub(crate) fn set(&self, pid: Pid) -> io::Result<()> {
        let place = libc::iovec { iov_base: (&raw const self.0).cast_mut().cast(), iov_len: size_of_val(&self.0) };
        // SAFETY: PTRACE_SETREGSET only reads `iov_len` bytes from `iov_base`, which is a struct of that size; both outlive the call.
        unsafe { ptrace(libc::PTRACE_SETREGSET, pid, GENERAL, (&raw const place).addr()) }
    }

    /// These registers with the result of a successful execve, which the kernel writes last.
    pub(crate) fn after_exec(mut self) -> Self {
        self.0.regs[0] = 0;
        self
    }

    /// The registers as the kernel leaves them at an exec: about to go on at this address, with this stack, and everything else as nobody
    /// used it.
    pub(crate) fn at_entry(self, instruction: u64, stack: u64) -> Self {
        Self(libc::user_regs_struct { regs: [0; 31], sp: stack, pc: instruction, pstate: 0 })
    }

    /// The address of the next instruction.
    pub(crate) fn instruction(&self) -> u64 {
        self.0.pc
    }

    /// These registers, but about to go on at this address.
    pub(crate) fn going_on_at(mut self, address: u64) -> Self {
        self.0.pc = address;
        self
    }

    /// The stack pointer.
    pub(crate) fn stack(&self) -> u64 {
        self.0.sp
    }

    /// What a system call returned; -4095 to -1 are errors.
    pub(crate) fn result(&self) -> i64 {
        self.0.regs[0].cast_signed()
    }

    /// These registers, but about to make a system call with the instruction at `gadget`.
    pub(crate) fn calling(&self, gadget: u64, number: i64, arguments: [u64; 6]) -> Self {
        let mut registers = self.0;
        registers.pc = gadget;
        registers.regs[..6].copy_from_slice(&arguments);
        registers.regs[8] = number.cast_unsigned();
        Self(registers)
    }

    /// These registers, but about to run the stub at `stub` over the table at `table`.
    pub(crate) fn running(&self, stub: u64, table: u64) -> Self {
        let mut registers = self.0;
        registers.pc = stub;
        registers.regs[19] = table;
        Self(registers)
    }

    /// Where in the table the stub at `stub` stands, if it has trapped.
    pub(crate) fn stopped_at(&self, stub: u64) -> Option<u64> {
        let trap = stub + (self::stub().len() - SYSCALL.len()) as u64;
        (self.0.pc == trap).then_some(self.0.regs[19])
    }
}

/// Brings the floating-point and vector registers of a stopped process to what they are in a new program: zero.
pub(crate) fn reset_floats(pid: Pid) -> io::Result<()> {
    let zeros = [0_u8; FLOATS_SIZE];
    let place = libc::iovec { iov_base: (&raw const zeros).cast_mut().cast(), iov_len: FLOATS_SIZE };
    // SAFETY: PTRACE_SETREGSET only reads `iov_len` bytes from `iov_base`, which is an array of that size; both outlive the call.
    unsafe { ptrace(libc::PTRACE_SETREGSET, pid, FLOATS, (&raw const place).addr()) }
}
