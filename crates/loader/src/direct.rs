//! A process that the kernel began in our interpreter: somebody executed a package that names it, or `chipbound run` did. At its exec
//! stop the interpreter has done all that it is there for, and what the program's own headers say takes its place: the dynamic
//! linker they name, mapped from this side's own descriptor as the kernel would have mapped it, or nothing in a static program.
//!
//! What the kernel keeps about the process is brought to the same: AT_BASE on the stack (musl's start code relocates itself by it), the
//! saved auxiliary vector, and where code and data lie (`/proc/PID/auxv`, VmExe). The latter needs `PR_SET_MM_MAP`, which a kernel
//! without checkpoints does not have; then it stays as it is.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::mm::ProtFlags;

use crate::elf::{ADDRESS_END, Program, Segment};
use crate::error::LoadError;
use crate::exec::Identity;
use crate::image::{Image, protection};
use crate::interpreter::Interpreter;
use crate::layout::{mismatch, taken};
use crate::script::Argument;
use crate::stack::FreshStack;

/// Size of the kernel's `struct prctl_mm_map`, bytes.
pub(crate) const MAP_SIZE: usize = 104;
/// What stands for "leave the executable as it is" in it.
const NO_FILE: u32 = u32::MAX;

/// The interpreter that packages on this machine name, as it stood at its path when it was opened.
#[derive(Debug)]
pub struct OwnInterpreter {
    path: PathBuf,
    file: Interpreter,
}

impl OwnInterpreter {
    /// Opens it. A file that stands at the path later is another one, and starts nothing.
    ///
    /// # Errors
    /// [`LoadError::Unsupported`] where it is no interpreter, [`LoadError::System`] where it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let file = Interpreter::open(path)?;
        if !file.program.movable {
            return Err(LoadError::Unsupported("an interpreter that many programs name must be movable".into()));
        }
        Ok(Self { path: path.to_owned(), file })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which file it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.file.stat.into()
    }

    pub(crate) fn file(&self) -> &Interpreter {
        &self.file
    }
}

/// A system call to be made in the process.
pub(crate) type Step = (&'static str, i64, [Argument; 6]);

/// What takes the interpreter's place in one process.
#[derive(Debug)]
pub(crate) struct Replacement {
    /// First address of our interpreter, and the end.
    own: (u64, u64),
    linker: Option<Linker>,
    /// Where the program or its dynamic linker begins.
    pub(crate) begin: u64,
    /// Where the value of AT_BASE lies on the stack.
    base_at: u64,
    /// The `struct prctl_mm_map`.
    pub(crate) map: [u8; MAP_SIZE],
}

/// The dynamic linker and the load bias that it gets.
#[derive(Debug)]
struct Linker {
    file: Arc<Interpreter>,
    base: u64,
}

impl Replacement {
    /// Plans it for a process with load bias `bias` that began in our interpreter at `base`. `maps` and `stat` are its files in /proc.
    pub(crate) fn plan(
        image: &Image,
        own: &Program,
        (bias, base): (u64, u64),
        stack: &FreshStack,
        maps: &str,
        stat: &str,
    ) -> Result<Self, LoadError> {
        let own = extent(own, base);
        let program = image.program();
        let linker = match &program.interpreter {
            Some(path) => {
                let file = image.found_interpreter(path)?;
                let base = room(&file.program, own, maps)?;
                Some(Linker { file, base })
            }
            None => None,
        };
        let begin = match &linker {
            Some(linker) => linker.base + linker.file.program.entry,
            None => bias + program.entry,
        };
        let base_at = stack.auxiliary_at(libc::AT_BASE).ok_or_else(|| mismatch("its auxiliary vector names no interpreter"))?;
        let map = memory_map(program, bias, stat, stack.auxiliary_range()).ok_or_else(|| mismatch("its state is unreadable"))?;
        Ok(Self { own, linker, begin, base_at, map })
    }

    /// The dynamic linker's file, to be handed to the process.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.linker.as_ref().map(|linker| linker.file.file.as_fd())
    }

    /// The calls that put it in place; `file` is the process's descriptor of [`Replacement::file`].
    pub(crate) fn steps(&self, file: Argument) -> Vec<Step> {
        let (start, end) = self.own;
        let is = Argument::Is;
        let mut steps = vec![("munmap", libc::SYS_munmap, [is(start), is(end - start), is(0), is(0), is(0), is(0)])];
        for (segment, base) in self.segments() {
            let protection = is(u64::from(protection(segment).bits()));
            let fixed = libc::MAP_PRIVATE | libc::MAP_FIXED;
            let (start, middle, end) = (base + segment.start(), base + segment.file_end(), base + segment.end());
            if middle > start {
                let offset = is(segment.offset - (segment.address - segment.start()));
                steps.push(("mmap", libc::SYS_mmap, [is(start), is(middle - start), protection, is(fixed as u64), file, offset]));
            }
            if end > middle {
                let zeros = is(u64::from((ProtFlags::READ | ProtFlags::WRITE).bits()));
                let anonymous = is((fixed | libc::MAP_ANONYMOUS) as u64);
                steps.push(("mmap", libc::SYS_mmap, [is(middle), is(end - middle), zeros, anonymous, is(u64::MAX), is(0)]));
            }
        }
        steps
    }

    /// AT_BASE as it is to be on the stack: where it lies, and its value.
    pub(crate) fn base(&self) -> (u64, [u8; 8]) {
        (self.base_at, self.linker.as_ref().map_or(0, |linker| linker.base).to_ne_bytes())
    }

    /// The zeros with which data of the dynamic linker goes on behind its part of the file, to be written once the calls were made: where
    /// and how many.
    pub(crate) fn zeros(&self) -> impl Iterator<Item = (u64, usize)> {
        self.segments().filter(|(s, _)| s.in_memory > s.in_file && s.in_file > 0).map(|(segment, base)| {
            let end = segment.address + segment.in_file;
            (base + end, (segment.file_end() - end) as usize)
        })
    }

    /// The call after which the kernel's own books say the same; `map` is the address of [`Replacement::map`] in the process.
    /// Made after [`Replacement::base`] was written.
    pub(crate) fn books(map: u64) -> Step {
        let what = [libc::PR_SET_MM as u64, libc::PR_SET_MM_MAP as u64, map, MAP_SIZE as u64, 0, 0];
        ("prctl", libc::SYS_prctl, what.map(Argument::Is))
    }

    fn segments(&self) -> impl Iterator<Item = (&Segment, u64)> {
        self.linker.iter().flat_map(|linker| linker.file.program.segments.iter().map(|segment| (segment, linker.base)))
    }
}

/// First address and end of a file mapped with that bias.
fn extent(program: &Program, bias: u64) -> (u64, u64) {
    let (first, last) = (program.segments.first(), program.segments.last());
    (bias + first.map_or(0, Segment::start), bias + last.map_or(0, Segment::end))
}

/// The bias of a dynamic linker that takes our interpreter's place: it ends where that ended, as the kernel maps downwards; or begins
/// where it began, where the stack has no limit and the kernel maps upwards.
fn room(linker: &Program, own: (u64, u64), maps: &str) -> Result<u64, LoadError> {
    let (start, end) = extent(linker, 0);
    let size = end - start;
    let occupied: Vec<_> = taken(maps)?.into_iter().filter(|(from, to)| *to <= own.0 || *from >= own.1).collect();
    let free = |at: &u64| *at >= start && at + size <= ADDRESS_END && !occupied.iter().any(|(from, to)| *from < at + size && *to > *at);
    if !linker.movable {
        return if free(&start) { Ok(0) } else { Err(mismatch("there is no room for its dynamic linker")) }; // klibc's.
    }
    let below = own.1.checked_sub(size).filter(free);
    let found = below.or(Some(own.0).filter(free)).ok_or_else(|| mismatch("there is no room for its dynamic linker"))?;
    Ok(found - start)
}

/// The kernel's books of the process as they would be, had it started the original: bounds of code and data as `load_elf_binary` counts
/// them; break, stack, arguments and environment as they are.
fn memory_map(program: &Program, bias: u64, stat: &str, auxiliary: (u64, u64)) -> Option<[u8; MAP_SIZE]> {
    let field = |number: usize| stat_field(stat, number);
    let code = || program.segments.iter().filter(|s| s.execute);
    let end = |s: &Segment| s.address + s.in_file;
    let bounds = [
        code().map(|s| s.address).min()?,
        code().map(end).max()?,
        program.segments.iter().map(|s| s.address).max()?,
        program.segments.iter().map(end).max()?,
    ];
    let heap = field(47)?;
    let rest = [heap, heap, field(28)?, field(48)?, field(49)?, field(50)?, field(51)?, auxiliary.0];
    let words = bounds.iter().map(|at| at + bias).chain(rest);
    let mut map = [0; MAP_SIZE];
    for (place, word) in map.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    map[96..100].copy_from_slice(&u32::try_from(auxiliary.1).ok()?.to_ne_bytes());
    map[100..].copy_from_slice(&NO_FILE.to_ne_bytes());
    Some(map)
}

/// A number in the `stat` of a process, as proc(5) numbers them: from the fourth on.
fn stat_field(stat: &str, number: usize) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(number.checked_sub(3)?).map(|field| field.parse().unwrap_or(0))
}

/// Where the stack of a process began at its exec.
pub(crate) fn first_stack(stat: &str) -> Option<u64> {
    stat_field(stat, 28)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(size: u64) -> Program {
        let segment = |address: u64, execute: bool| Segment {
            address,
            offset: address,
            in_file: 0x800,
            in_memory: 0x1800,
            read: true,
            write: !execute,
            execute,
        };
        Program {
            movable: true,
            entry: 0x100,
            headers: 64,
            header_count: 2,
            segments: vec![segment(0, true), segment(size - 0x2000, false)],
            interpreter: None,
            executable_stack: None,
        }
    }

    #[test]
    fn a_dynamic_linker_ends_where_the_interpreter_ended_or_begins_where_it_began() {
        let own = (0x7000_0000, 0x7000_2000);
        let others = "6000000-6001000 r--p 00000000 00:00 0\n70000000-70002000 r-xp 00000000 01:01 5\n70002000-70004000 r--p 00000000 00:00 0 [vvar]\n";
        assert_eq!(room(&program(0x8000), own, others).unwrap(), 0x7000_2000 - 0x8000);
        let below = "6fffe000-70000000 r--p 00000000 00:00 0\n70000000-70002000 r-xp 00000000 01:01 5\n";
        assert_eq!(room(&program(0x8000), own, below).unwrap(), 0x7000_0000);
        let both = format!("{below}70003000-70004000 r--p 00000000 00:00 0\n");
        room(&program(0x8000), own, &both).unwrap_err();
    }

    #[test]
    fn the_kernels_books_are_those_of_the_original() {
        let numbers: Vec<String> = (3..=52).map(|n| if n == 3 { "t".into() } else { (n * 16).to_string() }).collect();
        let stat = format!("77 (a) b) {}\n", numbers.join(" "));
        let map = memory_map(&program(0x8000), 0x10000, &stat, (0x9000, 336)).unwrap();
        let word = |n: usize| u64::from_ne_bytes(map[8 * n..8 * n + 8].try_into().unwrap());
        let bounds: Vec<u64> = (0..4).map(word).collect();
        assert_eq!(bounds, [0x10000, 0x10800, 0x16000, 0x16800]);
        let rest: Vec<u64> = (4..12).map(word).collect();
        assert_eq!(rest, [47 * 16, 47 * 16, 28 * 16, 48 * 16, 49 * 16, 50 * 16, 51 * 16, 0x9000]);
        assert_eq!(word(12), 336 | u64::from(NO_FILE) << 32);
        assert!(memory_map(&program(0x8000), 0, "77 (a) t 1 2", (0, 0)).is_none());
    }
}
