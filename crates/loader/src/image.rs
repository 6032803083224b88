//! The memory image of one program: all its segments as they were before encryption, in a sealed memfd.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fchmod, fcntl_add_seals, ftruncate, memfd_create, open};
use rustix::mm::ProtFlags;
use zeroize::Zeroizing;

use crate::elf::{PAGE, Program, Segment, page_floor};
use crate::error::{LoadError, system};
use crate::interpreter::{Interpreter, LastInterpreter};
use crate::sys::WritablePart;
use crate::workshop::{Memory, Work, Workshop};

/// How many bytes are taken from the source at once. No step crosses a multiple of it in the program's file.
pub const STEP: usize = 64 * 1024;

/// Bytes of an image for each thread that helps to fill it: for fewer, waking one takes longer than it saves.
const PER_HELPER: usize = 256 * 1024;
/// How often an image may hold the program's file: segments may overlap a little, but nobody gets memory without end for a small file.
const MAX_COPIES: u64 = 2;

/// Gives the bytes of the original program, already verified; the loader never sees a key.
pub trait PageSource: Send + Sync {
    /// The length of the original program, bytes.
    fn len(&self) -> u64;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` with the bytes from `offset` on. The loader asks from several threads at once where the program is large, for at most
    /// [`STEP`] bytes, and only for what lies below [`len`](Self::len).
    ///
    /// # Errors
    /// Anything that keeps the source from giving verified bytes; the build stops with [`LoadError::Source`].
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// The memory image of one program, made once per build and shared by all its processes.
///
/// It holds, page for page, what the kernel would have mapped of the original file: every `PT_LOAD` with the bytes of the file
/// around it up to the page borders, and zeros where the segment goes on beyond its part of the file. The memfd is sealed against
/// writing and against any change of size, so that no process it is handed to can change what the next one gets.
pub struct Image {
    memory: File,
    /// The mapping through which it was filled, until [`Image::tidy`].
    filled: Mutex<Vec<WritablePart>>,
    bytes: u64,
    program: Program,
    parts: Vec<Part>,
    interpreter: LastInterpreter,
}

/// The pages of one segment inside the memfd.
#[derive(Debug)]
pub(crate) struct Part {
    /// First address, before the load bias.
    pub(crate) address: u64,
    pub(crate) length: u64,
    /// Where it lies in the memfd.
    pub(crate) at: u64,
    pub(crate) protection: ProtFlags,
}

/// Pages of a segment that nobody writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First address, before the load bias, a multiple of 4096.
    pub address: u64,
    /// Bytes, a multiple of 4096.
    pub length: u64,
    /// Where it lies in the memory file, a multiple of 4096.
    pub at: u64,
    /// Whether it is code.
    pub executable: bool,
}

impl Image {
    /// Reads every segment of the program into a memfd of its own and seals it; large programs are read by the threads of the shop too.
    /// What the source says of the program may be wrong: then so is the image, and nothing else. The source is let go of before this
    /// returns.
    ///
    /// # Errors
    /// [`LoadError::Unsupported`] if the program is not one the loader follows, [`LoadError::Source`] if the source fails,
    /// [`LoadError::System`] if the kernel gives no memory file.
    pub fn build(source: Arc<dyn PageSource>, shop: &Workshop) -> Result<Self, LoadError> {
        Self::of(Program::parse(source.len(), &|offset, buf| source.read_at(offset, buf))?, source, shop)
    }

    /// The same for a shared library, which dynamic linkers load: [`Image::pieces`] says what of it is to be mapped over.
    ///
    /// # Errors
    /// As [`Image::build`].
    pub fn build_library(source: Arc<dyn PageSource>, shop: &Workshop) -> Result<Self, LoadError> {
        Self::of(Program::parse_library(source.len(), &|offset, buf| source.read_at(offset, buf))?, source, shop)
    }

    fn of(program: Program, source: Arc<dyn PageSource>, shop: &Workshop) -> Result<Self, LoadError> {
        let mut parts = Vec::with_capacity(program.segments.len());
        let mut bytes = 0;
        for segment in program.segments.iter().filter(|s| s.in_file > 0) {
            let length = segment.file_end() - segment.start();
            parts.push(Part { address: segment.start(), length, at: bytes, protection: protection(segment) });
            bytes += length;
        }
        if bytes > MAX_COPIES * source.len() + 2 * PAGE * parts.len() as u64 {
            return Err(LoadError::Unsupported("its segments take the same bytes of its file again and again".into()));
        }
        let memory = shop.memory(bytes).map_err(system("the kernel gives no memory file (memfd_create)"))?;
        let filled = program.segments.iter().filter(|s| s.in_file > 0).zip(&parts);
        let steps: Vec<_> = filled.flat_map(|(segment, part)| steps(source.len(), segment, part)).collect();
        let (memory, filled) = fill(memory, bytes, source, steps, shop)?;
        let filled = Mutex::new(seal_but_for_us(&memory, filled)?);
        Ok(Self { memory, filled, bytes, program, parts, interpreter: LastInterpreter::default() })
    }

    /// Takes down the mapping through which the memory was filled, which takes as long as to fill it. To be called when nobody waits;
    /// nobody but this process could write before.
    pub fn tidy(&self) {
        let filled = std::mem::take(&mut *self.filled.lock().unwrap_or_else(PoisonError::into_inner));
        if !filled.is_empty() {
            drop(filled);
            let _ = seal(&self.memory); // Refused where a process that has the file has sealed it for good: nobody can map it for writing.
        }
    }

    /// The size of the memory file, bytes: the program's own memory, shared by all its processes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.bytes
    }

    /// The segments that nobody writes to, in ascending order. What a dynamic linker relocates lies in none of them, unless its code has to be.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> {
        let only_read = self.parts.iter().filter(|part| !part.protection.contains(ProtFlags::WRITE));
        only_read.map(|part| Piece {
            address: part.address,
            length: part.length,
            at: part.at,
            executable: part.protection.contains(ProtFlags::EXEC),
        })
    }

    /// The sealed memory file: whoever has it can read and map it, and nobody can change it.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.descriptor()
    }

    /// Fills `buf` with the program's bytes from `offset` of its file on, where they are part of what is loaded, and says whether they are.
    ///
    /// # Errors
    /// Whatever reading the memory file fails with.
    pub fn read_loaded(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        let held = self.program.segments.iter().filter(|s| s.in_file > 0).zip(&self.parts);
        let end = offset.saturating_add(buf.len() as u64);
        match held.into_iter().find(|(segment, _)| segment.offset <= offset && end <= segment.offset + segment.in_file) {
            Some((segment, part)) => self.memory.read_exact_at(buf, part.at + (offset - page_floor(segment.offset))).map(|()| true),
            None => Ok(false),
        }
    }

    /// The dynamic linker that the program names, if it names one.
    #[must_use]
    pub fn interpreter(&self) -> Option<&Path> {
        self.program.interpreter.as_deref()
    }

    /// The whole program in a memory file that can be executed and not read (mode 0111), for [`Mapping::MemfdExec`](crate::Mapping). Holds
    /// what is loaded; what else the file had, such as symbols for debuggers, is zero. The descriptor can do nothing but be executed
    /// (`O_PATH`). Whoever owns the file or has `CAP_DAC_OVERRIDE` gets at its bytes.
    ///
    /// # Errors
    /// [`LoadError::Unsupported`] if the ELF header is no part of what is loaded, [`LoadError::System`] if the kernel gives no such file:
    /// [`Mapping::obstacle`](crate::Mapping::obstacle) says why.
    pub fn executable(&self) -> Result<OwnedFd, LoadError> {
        if !self.program.segments.iter().any(|s| page_floor(s.offset) == 0 && s.in_file > 0) {
            return Err(LoadError::Unsupported("its ELF header is not part of a segment".into()));
        }
        let file = create_executable().map_err(system("the kernel gives no memory file that can be executed"))?;
        let end = self.program.segments.iter().map(|s| s.offset + s.in_file).max().unwrap_or(0);
        ftruncate(&file, end).map_err(system("the memory file cannot be given its size"))?;
        let mut buf = Zeroizing::new(vec![0; STEP]);
        for (segment, part) in self.program.segments.iter().filter(|s| s.in_file > 0).zip(&self.parts) {
            let begin = page_floor(segment.offset);
            let length = segment.offset + segment.in_file - begin;
            copy(&self.memory, part.at, &file, begin, length, &mut buf).map_err(system("the memory file cannot be filled"))?;
        }
        fchmod(&file, Mode::XUSR | Mode::XGRP | Mode::XOTH).map_err(system("the memory file cannot be given its mode"))?;
        seal(&file)?;
        // Nobody executes what somebody holds open for writing, so only this descriptor stays.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(system("the memory file cannot be opened again"))
    }

    pub(crate) fn program(&self) -> &Program {
        &self.program
    }

    /// The dynamic linker that stands at its path now.
    pub(crate) fn found_interpreter(&self, path: &Path) -> Result<Arc<Interpreter>, LoadError> {
        self.interpreter.at(path)
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("bytes", &self.bytes).field("interpreter", &self.interpreter()).finish_non_exhaustive()
    }
}

/// `MFD_NOEXEC_SEAL` keeps the file itself from being executed (mapping it stays possible) and is what `vm.memfd_noexec` may
/// demand; kernels before 6.3 do not know it.
pub(crate) fn create_memory() -> io::Result<File> {
    create(MemfdFlags::NOEXEC_SEAL)
}

/// A memory file that may be executed, which `vm.memfd_noexec` = 2 forbids.
pub(crate) fn create_executable() -> io::Result<File> {
    create(MemfdFlags::EXEC)
}

/// Kernels before 6.3 do not know either wish and give files of mode 0777.
fn create(wish: MemfdFlags) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create("chipbound", flags | wish) {
        Err(rustix::io::Errno::INVAL) => memfd_create("chipbound", flags),
        other => other,
    };
    Ok(File::from(fd?))
}

pub(crate) fn protection(segment: &Segment) -> ProtFlags {
    let mut protection = ProtFlags::empty();
    protection.set(ProtFlags::READ, segment.read);
    protection.set(ProtFlags::WRITE, segment.write);
    protection.set(ProtFlags::EXEC, segment.execute);
    protection
}

/// Some bytes of the program, and where they go in the memfd.
#[derive(Clone, Copy, Debug)]
struct Step {
    offset: u64,
    length: usize,
    at: u64,
}

/// The bytes of one segment that are copied, in pieces of at most [`STEP`]. What the file has no bytes for, and what lies behind a segment
/// that goes on in memory, stays zero.
fn steps(len: u64, segment: &Segment, part: &Part) -> impl Iterator<Item = Step> {
    let begin = page_floor(segment.offset);
    let file_end = segment.offset + segment.in_file;
    let end = if segment.in_memory > segment.in_file { file_end } else { file_end.next_multiple_of(PAGE).min(len) };
    let borders = (begin.next_multiple_of(STEP as u64)..end).step_by(STEP);
    let begins = std::iter::once(begin).chain(borders.clone().filter(move |border| *border > begin));
    let ends = borders.filter(move |border| *border > begin).chain([end]);
    begins.zip(ends).map(move |(from, to)| Step { offset: from, length: (to - from) as usize, at: part.at + (from - begin) })
}

/// Has the source give all steps, on as many threads as it is worth: into the file's own pages where they are mapped already, which costs
/// no copy, and else to a buffer that is written, which costs far less than to map them now.
fn fill(
    memory: Memory,
    end: u64,
    source: Arc<dyn PageSource>,
    steps: Vec<Step>,
    shop: &Workshop,
) -> Result<(File, Vec<WritablePart>), LoadError> {
    let helpers = steps.iter().map(|step| step.length).sum::<usize>() / PER_HELPER;
    let Memory { file, pages } = memory;
    let places = steps.iter().map(|step| (step.at, step.length));
    let mapped = pages.map(|pages| pages.parts(end, places)).unwrap_or_default();
    let mapped = mapped.into_iter().map(|part| part.map(Mutex::new)).collect();
    let (next, done, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), OnceLock::new());
    let filling = Arc::new(Filling { file, mapped, source, steps, next, done, failed });
    shop.together(helpers, &(Arc::clone(&filling) as Arc<dyn Work>));
    let Filling { file, mapped, steps, done, failed, .. } = Arc::into_inner(filling).expect("nobody has the work any more");
    if let Some(error) = failed.into_inner() {
        return Err(error);
    }
    assert_eq!(done.into_inner(), steps.len(), "a thread that fills does not panic");
    let mapped = mapped.into_iter().flatten().map(|part| part.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok((file, mapped.collect()))
}

/// A memory file that is being filled.
struct Filling {
    file: File,
    /// For each step the pages that it fills, where they are mapped; empty where none are.
    mapped: Vec<Option<Mutex<WritablePart>>>,
    source: Arc<dyn PageSource>,
    steps: Vec<Step>,
    /// The first step that nobody began.
    next: AtomicUsize,
    /// Steps that are done.
    done: AtomicUsize,
    /// What went wrong first.
    failed: OnceLock<LoadError>,
}

impl Work for Filling {
    fn take_part(&self) {
        let mut buf = Zeroizing::new(Vec::new());
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(step) = self.steps.get(number) else { return };
            let mapped = self.mapped.get(number).and_then(Option::as_ref);
            match self.do_one(step, mapped, &mut buf) {
                Ok(()) => self.done.fetch_add(1, Ordering::Relaxed),
                Err(error) => {
                    let _ = self.failed.set(error); // Or another thread's stands there.
                    self.next.fetch_max(self.steps.len(), Ordering::Relaxed) // The others stop too.
                }
            };
        }
    }
}

impl Filling {
    fn do_one(&self, step: &Step, mapped: Option<&Mutex<WritablePart>>, buf: &mut Vec<u8>) -> Result<(), LoadError> {
        if let Some(part) = mapped {
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            return self.source.read_at(step.offset, part.bytes()).map_err(LoadError::Source);
        }
        buf.resize(STEP, 0); // Once.
        let bytes = &mut buf[..step.length];
        self.source.read_at(step.offset, bytes).map_err(LoadError::Source)?;
        self.file.write_all_at(bytes, step.at).map_err(system("the memory file cannot be filled"))
    }
}

/// Copies bytes from one file to another.
fn copy(from: &File, at: u64, to: &File, offset: u64, length: u64, buf: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < length {
        let step = buf.len().min(usize::try_from(length - done).unwrap_or(usize::MAX));
        from.read_exact_at(&mut buf[..step], at + done)?;
        to.write_all_at(&buf[..step], offset + done)?;
        done += step as u64;
    }
    Ok(())
}

/// Nobody writes to it any more; the kernel gives that seal only where nobody maps the file for writing.
fn seal(memory: &File) -> Result<(), LoadError> {
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(memory, seals).map_err(system("the memory file cannot be sealed"))
}

/// The same where it is mapped here: others can neither write nor map it for writing, whatever they do (`F_SEAL_FUTURE_WRITE`, Linux 5.1).
/// Returns what [`Image::tidy`] takes down.
fn seal_but_for_us(memory: &File, mapped: Vec<WritablePart>) -> Result<Vec<WritablePart>, LoadError> {
    let seals = SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::GROW;
    if !mapped.is_empty() && fcntl_add_seals(memory, seals).is_ok() {
        return Ok(mapped);
    }
    drop(mapped);
    seal(memory).map(|()| Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(File);

    impl PageSource for Echo {
        fn len(&self) -> u64 {
            self.0.metadata().unwrap().len()
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            assert!(buf.len() <= STEP && offset + buf.len() as u64 <= self.len(), "asks for more than it promised");
            self.0.read_exact_at(buf, offset)
        }
    }

    fn built(program: &Path) -> Image {
        Image::build(Arc::new(Echo(File::open(program).unwrap())), &Workshop::default()).unwrap()
    }

    #[test]
    fn a_built_image_cannot_be_changed() {
        let image = built(Path::new("/bin/ls"));
        image.memory.write_all_at(b"x", 0).unwrap_err();
        image.memory.set_len(image.bytes + 1).unwrap_err();
        image.memory.set_len(0).unwrap_err();
        fcntl_add_seals(&image.memory, SealFlags::empty()).unwrap_err();
    }

    #[test]
    fn an_image_whose_mapping_is_still_there_cannot_be_changed_by_others_either() {
        use std::os::fd::AsFd;
        let shop = Workshop::default();
        shop.restock();
        let large_enough = Path::new("/usr/bin/git"); // Of half the memory that waits.
        let image = Image::build(Arc::new(Echo(File::open(large_enough).unwrap())), &shop).unwrap();
        let (first, mapped) = (image.memory.metadata().unwrap().len(), image.filled.lock().unwrap().len());
        assert!(mapped > 0);
        for tidied in [false, true] {
            image.memory.write_all_at(b"x", 0).unwrap_err();
            image.memory.set_len(first + 1).unwrap_err();
            image.memory.set_len(0).unwrap_err();
            crate::sys::WritablePages::of(image.memory.as_fd(), 4096).unwrap_err();
            assert_eq!(fcntl_add_seals(&image.memory, SealFlags::empty()).is_err(), tidied);
            image.tidy();
        }
    }

    #[test]
    fn an_image_holds_the_bytes_of_the_file_page_by_page() {
        let program = std::env::current_exe().unwrap();
        let shop = Workshop::default();
        shop.staff(2, || true).unwrap();
        shop.restock();
        let image = Image::build(Arc::new(Echo(File::open(&program).unwrap())), &shop).unwrap();
        let file = std::fs::read(&program).unwrap();
        for (segment, part) in image.program.segments.iter().zip(&image.parts) {
            let mut held = vec![0; usize::try_from(part.length).unwrap()];
            image.memory.read_exact_at(&mut held, part.at).unwrap();
            let begin = usize::try_from(page_floor(segment.offset)).unwrap();
            let end = usize::try_from(segment.offset + segment.in_file).unwrap();
            assert!(held[..end - begin] == file[begin..end]);
            if segment.in_memory > segment.in_file {
                assert!(held[end - begin..].iter().all(|&byte| byte == 0), "what lies behind the file's part is zero");
            }
        }
        assert_eq!(image.memory(), image.parts.iter().map(|part| part.length).sum());
    }

    #[test]
    fn what_is_loaded_can_be_read_where_it_lies_in_the_file() {
        let program = std::env::current_exe().unwrap();
        let (image, file) = (built(&program), std::fs::read(&program).unwrap());
        for segment in &image.program.segments {
            let (from, to) = (segment.offset as usize, (segment.offset + segment.in_file) as usize);
            let mut held = vec![0; to - from];
            assert!(image.read_loaded(segment.offset, &mut held).unwrap() && held == file[from..to]);
            assert!(!image.read_loaded(segment.offset + 1, &mut held).unwrap(), "not all of it is loaded");
        }
        assert!(!image.read_loaded(u64::MAX, &mut [0]).unwrap());
    }

    #[test]
    fn a_source_that_fails_stops_the_build() {
        struct Failing(Echo);
        impl PageSource for Failing {
            fn len(&self) -> u64 {
                self.0.len()
            }
            fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
                if offset > 64 * 1024 { Err(io::ErrorKind::InvalidData.into()) } else { self.0.read_at(offset, buf) }
            }
        }
        let source = Arc::new(Failing(Echo(File::open("/bin/ls").unwrap())));
        let error = Image::build(source, &Workshop::default()).unwrap_err();
        assert!(matches!(error, LoadError::Source(_)), "{error:?}");
    }
}
