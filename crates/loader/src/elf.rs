//! What the kernel reads of an ELF file when it starts it, parsed and checked (gABI chapter 5, `fs/binfmt_elf.c`).

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use object::LittleEndian as LE;
use object::elf::{
    ELFCLASS64, ELFDATA2LSB, ELFMAG, ET_DYN, ET_EXEC, FileHeader64, PF_R, PF_W, PF_X, PT_GNU_STACK, PT_INTERP, PT_LOAD, ProgramHeader64,
};

use crate::error::LoadError;
use crate::sys::arch;

/// The page size that segments are laid out by, bytes.
pub(crate) const PAGE: u64 = 4096;
/// The most program headers a program may have; the kernel itself stops at 64 KiB of them.
const MAX_PROGRAM_HEADERS: u16 = 1024;
/// The longest path of an interpreter, its closing NUL included, bytes (`PATH_MAX`).
const MAX_INTERPRETER: u64 = 4096;
/// Above the highest address that a program of 47 address bits can have.
pub(crate) const ADDRESS_END: u64 = 1 << 47;

/// Bytes at an offset of the file; shorter files are an error.
pub(crate) type ReadAt<'a> = dyn Fn(u64, &mut [u8]) -> io::Result<()> + 'a;

/// Rounds down to the start of a page.
pub(crate) fn page_floor(address: u64) -> u64 {
    address & !(PAGE - 1)
}

/// Rounds up to the start of a page. Callers keep `address` far below 2^64.
pub(crate) fn page_ceil(address: u64) -> u64 {
    page_floor(address + PAGE - 1)
}

/// One `PT_LOAD`, checked: offsets and addresses congruent, inside the file, below [`ADDRESS_END`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) address: u64,
    pub(crate) offset: u64,
    pub(crate) in_file: u64,
    pub(crate) in_memory: u64,
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) execute: bool,
}

impl Segment {
    /// First address of the pages that the file gives.
    pub(crate) fn start(&self) -> u64 {
        page_floor(self.address)
    }

    /// End of the pages that the file gives.
    pub(crate) fn file_end(&self) -> u64 {
        if self.in_file == 0 { self.start() } else { page_ceil(self.address + self.in_file) }
    }

    /// End of all its pages.
    pub(crate) fn end(&self) -> u64 {
        page_ceil(self.address + self.in_memory)
    }
}

/// What the kernel reads of an ELF file.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// `ET_DYN`: the kernel chooses where it lies.
    pub(crate) movable: bool,
    pub(crate) entry: u64,
    /// Address of the program headers in memory, before the load bias; zero where no segment brings them.
    pub(crate) headers: u64,
    pub(crate) header_count: u16,
    /// In ascending order, no two in one page.
    pub(crate) segments: Vec<Segment>,
    pub(crate) interpreter: Option<PathBuf>,
    /// Whether it asks for a stack that can be executed; kernels differ where it does not say.
    pub(crate) executable_stack: Option<bool>,
}

impl Program {
    /// Parses the headers of a file of `len` bytes.
    ///
    /// # Errors
    /// [`LoadError::Unsupported`] names the first thing that the loader does not follow; [`LoadError::Source`] if `read` fails.
    pub(crate) fn parse(len: u64, read: &ReadAt<'_>) -> Result<Self, LoadError> {
        let program = Self::parse_library(len, read)?;
        let entry = program.entry;
        if !program.segments.iter().any(|s| s.execute && entry >= s.address && entry - s.address < s.in_file) {
            return Err(unsupported("its entry point lies in no executable segment"));
        }
        Ok(program)
    }

    /// The same for a library, which begins nowhere.
    pub(crate) fn parse_library(len: u64, read: &ReadAt<'_>) -> Result<Self, LoadError> {
        let header = file_header(len, read)?;
        let count = header.e_phnum.get(LE);
        let table = program_headers(&header, len, read)?;
        let segments = table.iter().filter(|h| h.p_type.get(LE) == PT_LOAD).map(|h| segment(h, len)).collect::<Result<Vec<_>, _>>()?;
        check_order(&segments)?;
        let interpreter = match table.iter().find(|h| h.p_type.get(LE) == PT_INTERP) {
            Some(named) => Some(interpreter(named, len, read)?),
            None => None,
        };
        let entry = header.e_entry.get(LE);
        let executable_stack = table.iter().rfind(|h| h.p_type.get(LE) == PT_GNU_STACK).map(|h| h.p_flags.get(LE) & PF_X != 0);
        let table_len = u64::from(count) * size_of::<ProgramHeader64<LE>>() as u64;
        let headers = headers_address(header.e_phoff.get(LE), table_len, &segments)?;
        Ok(Self { movable: header.e_type.get(LE) == ET_DYN, entry, headers, header_count: count, segments, interpreter, executable_stack })
    }
}

pub(crate) fn unsupported(what: &str) -> LoadError {
    LoadError::Unsupported(what.into())
}

pub(crate) fn file_header(len: u64, read: &ReadAt<'_>) -> Result<FileHeader64<LE>, LoadError> {
    let mut bytes = [0; size_of::<FileHeader64<LE>>()];
    if len < bytes.len() as u64 {
        return Err(unsupported("it is shorter than an ELF header"));
    }
    read(0, &mut bytes).map_err(LoadError::Source)?;
    let (header, _) = object::pod::from_bytes::<FileHeader64<LE>>(&bytes).map_err(|()| unsupported("no ELF header"))?;
    let ident = &header.e_ident;
    if ident.magic != ELFMAG || ident.class != ELFCLASS64 || ident.data != ELFDATA2LSB {
        return Err(unsupported("it is not a little-endian ELF file of 64 bits"));
    }
    if header.e_machine.get(LE) != arch::MACHINE {
        return Err(unsupported("it is made for another kind of machine"));
    }
    if !matches!(header.e_type.get(LE), ET_EXEC | ET_DYN) {
        return Err(unsupported("it is not an executable ELF file"));
    }
    Ok(*header)
}

pub(crate) fn program_headers(header: &FileHeader64<LE>, len: u64, read: &ReadAt<'_>) -> Result<Vec<ProgramHeader64<LE>>, LoadError> {
    let count = header.e_phnum.get(LE);
    let size = size_of::<ProgramHeader64<LE>>();
    if count == 0 || count > MAX_PROGRAM_HEADERS || usize::from(header.e_phentsize.get(LE)) != size {
        return Err(unsupported("its table of program headers has an unknown shape"));
    }
    let mut bytes = vec![0; usize::from(count) * size];
    let end = header.e_phoff.get(LE).checked_add(bytes.len() as u64);
    if end.is_none_or(|end| end > len) {
        return Err(unsupported("its program headers lie outside the file"));
    }
    read(header.e_phoff.get(LE), &mut bytes).map_err(LoadError::Source)?;
    let (table, _) =
        object::pod::slice_from_bytes(&bytes, usize::from(count)).map_err(|()| unsupported("its program headers are cut off"))?;
    Ok(table.to_vec())
}

fn segment(header: &ProgramHeader64<LE>, len: u64) -> Result<Segment, LoadError> {
    let flags = header.p_flags.get(LE);
    let segment = Segment {
        address: header.p_vaddr.get(LE),
        offset: header.p_offset.get(LE),
        in_file: header.p_filesz.get(LE),
        in_memory: header.p_memsz.get(LE),
        read: flags & PF_R != 0,
        write: flags & PF_W != 0,
        execute: flags & PF_X != 0,
    };
    if segment.in_file > segment.in_memory || segment.in_memory > ADDRESS_END || segment.address > ADDRESS_END - segment.in_memory {
        return Err(unsupported("a segment is larger in the file than in memory, or outside the address space"));
    }
    if segment.offset.checked_add(segment.in_file).is_none_or(|end| end > len) {
        return Err(unsupported("a segment lies outside the file"));
    }
    if segment.address % PAGE != segment.offset % PAGE {
        return Err(unsupported("a segment is not aligned to pages"));
    }
    Ok(segment)
}

fn check_order(segments: &[Segment]) -> Result<(), LoadError> {
    if segments.is_empty() {
        return Err(unsupported("it has nothing to load"));
    }
    if segments.windows(2).any(|pair| pair[1].start() < pair[0].end()) {
        return Err(unsupported("two segments share a page or are out of order"));
    }
    Ok(())
}

pub(crate) fn interpreter(header: &ProgramHeader64<LE>, len: u64, read: &ReadAt<'_>) -> Result<PathBuf, LoadError> {
    let (offset, size) = (header.p_offset.get(LE), header.p_filesz.get(LE));
    if !(2..=MAX_INTERPRETER).contains(&size) || offset.checked_add(size).is_none_or(|end| end > len) {
        return Err(unsupported("the path of its interpreter lies outside the file"));
    }
    let mut path = vec![0; size as usize];
    read(offset, &mut path).map_err(LoadError::Source)?;
    if path.last() != Some(&0) || path[0] != b'/' {
        return Err(unsupported("its interpreter has no absolute path"));
    }
    let end = path.iter().position(|&byte| byte == 0).expect("the last byte is NUL");
    path.truncate(end);
    Ok(PathBuf::from(std::ffi::OsString::from_vec(path)))
}

/// Where the kernel tells the program that its headers are: nowhere, which it says by a zero, where no segment brings them
/// (`ld -N`).
fn headers_address(offset: u64, size: u64, segments: &[Segment]) -> Result<u64, LoadError> {
    match segments.iter().find(|s| offset >= s.offset && offset - s.offset < s.in_file) {
        Some(s) if offset - s.offset + size <= s.in_file => Ok(offset - s.offset + s.address),
        Some(_) => Err(unsupported("its program headers are only in part in a segment")),
        None => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Program, LoadError> {
        Program::parse(bytes.len() as u64, &|offset, buf| {
            let start = usize::try_from(offset).unwrap();
            buf.copy_from_slice(bytes.get(start..start + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    #[test]
    fn a_real_program_is_read_as_it_is() {
        let program = parse(&std::fs::read("/bin/ls").unwrap()).unwrap();
        assert!(program.movable && program.segments.iter().filter(|s| s.execute).count() == 1);
        assert!(program.interpreter.unwrap().starts_with("/lib64"));
    }

    /// Every byte of all headers, each set to values that break sums and comparisons.
    #[test]
    fn no_header_makes_the_parser_panic_or_reach_outside_the_file() {
        let original = std::fs::read("/bin/ls").unwrap();
        let mut refused = 0;
        for at in 0..64 + 14 * size_of::<ProgramHeader64<LE>>() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = original.clone();
                bytes[at] = value;
                match parse(&bytes) {
                    Ok(program) => assert!(program.segments.iter().all(|s| s.offset + s.in_file <= bytes.len() as u64)),
                    Err(_) => refused += 1,
                }
            }
        }
        assert!(refused > 100, "{refused} changes were refused");
    }

    #[test]
    fn every_cut_is_refused_or_read_within_its_end() {
        let original = std::fs::read("/bin/ls").unwrap();
        for len in (0..2000).chain([original.len() / 2, original.len() - 4096]) {
            if let Ok(program) = parse(&original[..len]) {
                assert!(program.segments.iter().all(|s| s.offset + s.in_file <= len as u64));
            }
        }
    }
}
