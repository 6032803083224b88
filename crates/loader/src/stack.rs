//! The stack as the kernel leaves it at an exec: arguments, environment, auxiliary vector (System V ABI, figure 3.9).

use crate::elf::{PAGE, page_floor};
use crate::error::LoadError;
use crate::inject::Memory;
use crate::layout::mismatch;

/// Beginnings of the environment variables by which their owner changes what code runs in a program, or what its C library takes for
/// its own data without a check: all that the dynamic linkers of glibc and musl read begins with `LD_`; tunables; conversion modules
/// (code); locales and message catalogues (tables of offsets, formats of printf); the log of allocations (addresses).
///
/// Those of glibc's `unsecvars.h` that are left (`TMPDIR`, `TZDIR`, `HOSTALIASES`, `LOCALDOMAIN`, `RES_OPTIONS`, `RESOLV_HOST_CONF`, `NIS_PATH`,
/// `GETCONF_DIR`) name files and options that are read as anybody's.
pub const LOADER_VARIABLES: &[&str] = &["LD_", "GLIBC_TUNABLES=", "GCONV_PATH=", "LOCPATH=", "MUSL_LOCPATH=", "NLSPATH=", "MALLOC_TRACE="];

/// How far arguments, environment and auxiliary vector can reach, bytes: `ARG_MAX` is at most 6 MiB.
const MAX_STACK: u64 = 8 << 20;
/// The most auxiliary entries; kernels write about twenty.
const MAX_AUXILIARY: usize = 64;
/// How much of a variable is looked at, bytes; no name that is dropped is longer.
const NAME: usize = 32;
/// Bytes of a word of the stack.
const WORD: u64 = 8;

/// What lies on the stack of a process that has not run yet.
#[derive(Debug)]
pub(crate) struct FreshStack {
    /// Where the pointers to the environment begin.
    at: u64,
    environment: Vec<u64>,
    auxiliary: Vec<(u64, u64)>,
}

impl FreshStack {
    /// Reads upwards from the stack pointer: number of arguments, arguments, null, environment, null, auxiliary pairs.
    pub(crate) fn read(memory: &Memory, pointer: u64) -> Result<Self, LoadError> {
        if !pointer.is_multiple_of(8) {
            return Err(mismatch("its stack pointer is odd"));
        }
        let mut words = Words { memory, next: pointer, end: pointer.saturating_add(MAX_STACK), buf: Vec::new(), at: 0 };
        let arguments = words.take()?;
        for _ in 0..=arguments {
            words.take()?;
        }
        let mut stack = Self { at: words.position(), environment: Vec::new(), auxiliary: Vec::new() };
        loop {
            match words.take()? {
                0 => break,
                variable => stack.environment.push(variable),
            }
        }
        while stack.auxiliary.len() < MAX_AUXILIARY {
            match (words.take()?, words.take()?) {
                (libc::AT_NULL, _) => return Ok(stack),
                entry => stack.auxiliary.push(entry),
            }
        }
        Err(mismatch("its auxiliary vector has no end"))
    }

    /// The value of an auxiliary entry; the kernel leaves none out that is asked for here, so absent is 0.
    pub(crate) fn auxiliary(&self, kind: u64) -> u64 {
        self.auxiliary.iter().find(|(key, _)| *key == kind).map_or(0, |(_, value)| *value)
    }

    /// Where the value of an auxiliary entry lies.
    pub(crate) fn auxiliary_at(&self, kind: u64) -> Option<u64> {
        let index = self.auxiliary.iter().position(|(key, _)| *key == kind)? as u64;
        Some(self.auxiliary_range().0 + index * 2 * WORD + WORD)
    }

    /// Where the auxiliary vector lies, and its length with its end, bytes.
    pub(crate) fn auxiliary_range(&self) -> (u64, u64) {
        (self.at + (self.environment.len() as u64 + 1) * WORD, (self.auxiliary.len() as u64 + 1) * 2 * WORD)
    }

    /// Takes the variables that begin like one of `names` out as if they had never been set, and returns how many there were. The auxiliary vector moves
    /// down behind the shorter environment, where dynamic linkers look for it.
    pub(crate) fn drop_variables(&self, memory: &Memory, names: &[&str]) -> Result<usize, LoadError> {
        let mut kept = Vec::with_capacity(self.environment.len());
        let mut strings = Strings { memory, page: None, bytes: Vec::new() };
        for &variable in &self.environment {
            if !begins_like(&mut strings, variable, names)? {
                kept.push(variable);
            }
        }
        let dropped = self.environment.len() - kept.len();
        if dropped == 0 {
            return Ok(0);
        }
        let mut words = kept;
        words.push(0);
        words.extend(self.auxiliary.iter().flat_map(|&(key, value)| [key, value]));
        words.extend([libc::AT_NULL, 0]);
        words.extend(std::iter::repeat_n(0, dropped));
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write(self.at, &bytes)?;
        Ok(dropped)
    }
}

/// Whether the variable at an address begins like one of the names.
fn begins_like(strings: &mut Strings<'_>, variable: u64, names: &[&str]) -> Result<bool, LoadError> {
    let mut name = [0; NAME];
    strings.read(variable, &mut name)?;
    Ok(names.iter().any(|start| name.starts_with(start.as_bytes())))
}

/// The strings of a stack, of which the page that was read last is kept: most of them lie side by side.
struct Strings<'a> {
    memory: &'a Memory,
    page: Option<u64>,
    bytes: Vec<u8>,
}

impl Strings<'_> {
    /// Fills `name` with what lies at an address, up to a NUL; nothing is read behind that one, for the last variable may end with the
    /// stack.
    fn read(&mut self, address: u64, name: &mut [u8]) -> Result<(), LoadError> {
        let mut address = address;
        for byte in name {
            let page = page_floor(address);
            if self.page != Some(page) {
                self.page = None;
                self.bytes.resize(PAGE as usize, 0);
                self.memory.read(page, &mut self.bytes)?;
                self.page = Some(page);
            }
            *byte = self.bytes[(address - page) as usize];
            if *byte == 0 {
                break;
            }
            address = address.saturating_add(1);
        }
        Ok(())
    }
}

/// Reads a stack upwards, word by word, a page at a time, for the stack ends at the border of one.
struct Words<'a> {
    memory: &'a Memory,
    next: u64,
    end: u64,
    buf: Vec<u8>,
    at: usize,
}

impl Words<'_> {
    fn take(&mut self) -> Result<u64, LoadError> {
        if self.at == self.buf.len() {
            self.refill()?;
        }
        let word = self.buf[self.at..self.at + 8].try_into().expect("refill reads whole words");
        self.at += 8;
        Ok(u64::from_le_bytes(word))
    }

    /// The address of the word that is taken next.
    fn position(&self) -> u64 {
        self.next - (self.buf.len() - self.at) as u64
    }

    fn refill(&mut self) -> Result<(), LoadError> {
        if self.next >= self.end {
            return Err(mismatch("its stack has no end"));
        }
        let step = PAGE - self.next % PAGE;
        self.buf.resize(step as usize, 0);
        self.memory.read(self.next, &mut self.buf)?;
        self.next += step;
        self.at = 0;
        Ok(())
    }
}
