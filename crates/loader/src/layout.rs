//! What a process looks like at its exec stop, and what it must look like.

use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::{Stat, major, minor};

use crate::elf::{ADDRESS_END, Program, page_floor};
use crate::error::LoadError;
use crate::image::Image;
use crate::interpreter::Interpreter;
use crate::stack::FreshStack;
use crate::sys::listed_as;

/// The longest maps file of a process that has not run yet, bytes.
const MAX_MAPS: usize = 64 * 1024;
/// What the kernel itself puts into every process.
const KERNELS_OWN: &[&str] = &["[stack]", "[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"];

/// One mapping, as /proc/PID/maps lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    permissions: String,
    offset: u64,
    /// Device and inode as the kernel writes them; empty for anonymous memory.
    file: String,
}

/// Compares a process at its exec stop with what the verified program must look like there: begun as its headers say, or in the
/// interpreter that its package names.
pub(crate) struct Expected<'a> {
    pub(crate) image: &'a Image,
    /// `/proc/PID/exe`, opened without reading rights.
    pub(crate) exe: Stat,
    pub(crate) entry: u64,
    pub(crate) auxiliary: &'a FreshStack,
    pub(crate) maps: &'a str,
    /// The interpreter that packages on this machine name.
    pub(crate) own: Option<&'a Interpreter>,
}

/// What was found of a process that is what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its load bias.
    pub(crate) bias: u64,
    /// The load bias of our interpreter, where the kernel began in it.
    pub(crate) own: Option<u64>,
}

impl Expected<'_> {
    /// # Errors
    /// [`LoadError::ProcessMismatch`] names the first difference, [`LoadError::Privileged`] a program with more rights than its
    /// caller, [`LoadError::Unsupported`] an interpreter that cannot be read.
    pub(crate) fn check(&self, exe_file: impl FnOnce() -> Option<File>) -> Result<Found, LoadError> {
        if self.auxiliary.auxiliary(libc::AT_SECURE) != 0 {
            return Err(LoadError::Privileged);
        }
        let (bias, program) = (self.bias()?, self.image.program());
        if program.executable_stack.is_some_and(|wanted| wanted != has_executable_stack(self.maps)) {
            return Err(mismatch("its stack is executable, or is not, against the program's headers"));
        }
        let actual = parse(self.maps)?;
        let mut expected = mappings(program, bias, &file_columns(&self.exe), true);
        if !contained(&expected, &actual) {
            let listed = exe_file().and_then(|file| listed_as(file.as_fd()).ok());
            expected = mappings(program, bias, &listed.unwrap_or_else(|| file_columns(&self.exe)), true);
        }
        let base = self.auxiliary.auxiliary(libc::AT_BASE);
        if let Some(mut its) = self.own.and_then(|own| self.begun_in(own, base, &actual)) {
            expected.append(&mut its);
            compare(expected, actual)?;
            return Ok(Found { bias, own: Some(base) });
        }
        match &program.interpreter {
            Some(path) => {
                let interpreter = self.image.found_interpreter(path)?;
                let mut its = self
                    .begun_in(&interpreter, base, &actual)
                    .ok_or_else(|| mismatch("it does not begin in its interpreter; `chipbound verify` says which one the package names"))?;
                expected.append(&mut its);
            }
            None if base != 0 => return Err(mismatch("it has an interpreter that the program does not name")),
            None if self.entry != bias.wrapping_add(program.entry) => return Err(mismatch("it does not begin at its entry point")),
            None => {}
        }
        compare(expected, actual)?;
        Ok(Found { bias, own: None })
    }

    /// The mappings of an interpreter at `base`, where the process begins in it.
    fn begun_in(&self, interpreter: &Interpreter, base: u64, actual: &[Mapping]) -> Option<Vec<Mapping>> {
        // One that is linked to a fixed address has no base (klibc's).
        let at_its_place = if interpreter.program.movable { base != 0 && base < ADDRESS_END } else { base == 0 };
        if !at_its_place || self.entry != base.wrapping_add(interpreter.program.entry) {
            return None;
        }
        let its = mappings(&interpreter.program, base, &file_columns(&interpreter.stat), false);
        if contained(&its, actual) {
            return Some(its);
        }
        let its = mappings(&interpreter.program, base, &listed_as(interpreter.file.as_fd()).ok()?, false);
        contained(&its, actual).then_some(its)
    }

    fn bias(&self) -> Result<u64, LoadError> {
        let program = self.image.program();
        let bias = self.auxiliary.auxiliary(libc::AT_ENTRY).wrapping_sub(program.entry);
        let allowed = if program.movable { page_floor(bias) == bias && bias < ADDRESS_END } else { bias == 0 };
        if !allowed {
            return Err(mismatch("its entry point is another one"));
        }
        if self.auxiliary.auxiliary(libc::AT_PHDR) != bias + program.headers
            || self.auxiliary.auxiliary(libc::AT_PHNUM) != u64::from(program.header_count)
        {
            return Err(mismatch("its program headers are others"));
        }
        Ok(bias)
    }
}

/// What the kernel maps of a file (`elf_map`, `set_brk`). In a package no segment is executable.
fn mappings(program: &Program, bias: u64, file: &str, sealed: bool) -> Vec<Mapping> {
    let mut mappings = Vec::new();
    for segment in &program.segments {
        let letter = |set: bool, letter: char| if set { letter } else { '-' };
        let permissions: String =
            [letter(segment.read, 'r'), letter(segment.write, 'w'), letter(segment.execute && !sealed, 'x'), 'p'].iter().collect();
        let (start, middle, end) = (bias + segment.start(), bias + segment.file_end(), bias + segment.end());
        if middle > start {
            mappings.push(Mapping { start, end: middle, permissions, offset: page_floor(segment.offset), file: file.into() });
        }
        if end > middle {
            mappings.push(Mapping { start: middle, end, permissions: "rw-p".into(), offset: 0, file: String::new() });
        }
    }
    mappings
}

fn has_executable_stack(maps: &str) -> bool {
    kernels_own(maps, "[stack]").and_then(|line| line.split_ascii_whitespace().nth(1)).is_some_and(|permissions| permissions.contains('x'))
}

/// The line of a mapping that the kernel calls so, and not of a file whose name ends so.
pub(crate) fn kernels_own<'a>(maps: &'a str, name: &str) -> Option<&'a str> {
    maps.lines().find(|line| line.split_ascii_whitespace().skip(4).eq(["0", name]))
}

fn contained(expected: &[Mapping], actual: &[Mapping]) -> bool {
    expected.iter().filter(|e| !e.file.is_empty()).all(|e| actual.iter().any(|a| a.file == e.file))
}

fn compare(mut expected: Vec<Mapping>, mut actual: Vec<Mapping>) -> Result<(), LoadError> {
    merge(&mut expected);
    merge(&mut actual);
    let differs = actual.iter().find(|a| !expected.contains(a)).or_else(|| expected.iter().find(|e| !actual.contains(e)));
    match differs {
        None => Ok(()),
        Some(mapping) => Err(mismatch(&format!(
            "its memory from {:x} to {:x} ({}) is not what the program's headers say",
            mapping.start, mapping.end, mapping.permissions
        ))),
    }
}

/// Joins neighbours as the kernel does, so that both lists are cut alike.
fn merge(mappings: &mut Vec<Mapping>) {
    mappings.sort_by_key(|m| m.start);
    mappings.dedup_by(|next, last| {
        let follows = next.start == last.end && next.permissions == last.permissions && next.file == last.file;
        let joined = follows && (next.file.is_empty() || next.offset == last.offset + (last.end - last.start));
        if joined {
            last.end = next.end;
        }
        joined
    });
}

/// Begin and end of everything that lies in a process, the kernel's own mappings included.
pub(crate) fn taken(maps: &str) -> Result<Vec<(u64, u64)>, LoadError> {
    let range = |line: &str| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    };
    maps.lines().map(|line| range(line).ok_or_else(|| mismatch("its maps are unreadable"))).collect()
}

fn parse(maps: &str) -> Result<Vec<Mapping>, LoadError> {
    if maps.len() > MAX_MAPS {
        return Err(mismatch("it has too many mappings"));
    }
    let parsed = maps.lines().map(|line| parse_line(line).ok_or_else(|| mismatch("its maps are unreadable")));
    let own = |m: &Result<Option<Mapping>, LoadError>| !matches!(m, Ok(None));
    parsed.filter(own).map(|m| m.map(|m| m.expect("kernel mappings were filtered out"))).collect()
}

/// Reads one line of /proc/PID/maps; the inner `None` is a mapping of the kernel's own.
#[expect(clippy::option_option, reason = "unreadable and to be skipped are two things")]
fn parse_line(line: &str) -> Option<Option<Mapping>> {
    let mut columns = line.split_ascii_whitespace();
    let (start, end) = columns.next()?.split_once('-')?;
    let permissions = columns.next()?.to_owned();
    let offset = u64::from_str_radix(columns.next()?, 16).ok()?;
    let (device, inode) = (columns.next()?, columns.next()?);
    let name = columns.next().unwrap_or_default();
    if inode == "0" && KERNELS_OWN.contains(&name) {
        return Some(None);
    }
    let file = match (inode, name) {
        ("0", "" | "[heap]") => String::new(),
        _ => format!("{device} {inode}"),
    };
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(Some(Mapping { start: number(start)?, end: number(end)?, permissions, offset, file }))
}

/// Device and inode as /proc/PID/maps writes them.
fn file_columns(stat: &Stat) -> String {
    format!("{:02x}:{:02x} {}", major(stat.st_dev), minor(stat.st_dev), stat.st_ino)
}

pub(crate) fn mismatch(what: &str) -> LoadError {
    LoadError::ProcessMismatch(what.into())
}
