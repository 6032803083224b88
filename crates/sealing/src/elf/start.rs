//! Which program header of a package names the interpreter that the kernel starts (generic ABI, chapter 5, PT_INTERP).

use super::{Elf, LE, PT_GNU_PROPERTY, PT_INTERP, PT_NOTE, ProgramHeader64, ReadAt, Result};
use object::elf::{PT_GNU_EH_FRAME, PT_GNU_RELRO};
use object::pod::bytes_of;
use object::{U32, U64};

/// Bytes of a program header.
pub(crate) const HEADER: usize = size_of::<ProgramHeader64<LE>>();

/// A program header, where it lies in the file, and what it becomes when it names an appended interpreter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Named {
    pub(crate) offset: u64,
    pub(crate) original: [u8; HEADER],
    pub(crate) placed: [u8; HEADER],
}

/// Headers that a static program can spare until the processor gives the original back: the kernel does nothing by them. The first
/// that there is is taken.
const SPARE: [u32; 4] = [PT_GNU_PROPERTY, PT_NOTE, PT_GNU_EH_FRAME, PT_GNU_RELRO];

/// The header that is to name the `len` bytes at `offset` as interpreter: the program's own PT_INTERP, and in a static program
/// a [`SPARE`] one. `None` where there is none of these. Type, offset and size in the file change; the address, by which dynamic linkers read the name, stays.
pub(crate) fn named(file: &dyn ReadAt, offset: u64, len: u64) -> Result<Option<Named>> {
    let elf = Elf::read(file)?;
    let index = |kind: u32| elf.segments.iter().position(|s| s.p_type.get(LE) == kind);
    let Some(index) = [PT_INTERP].into_iter().chain(SPARE).find_map(index) else { return Ok(None) };
    let original = elf.segments[index];
    let mut placed = original;
    placed.p_type = U32::new(LE, PT_INTERP);
    placed.p_offset = U64::new(LE, offset);
    placed.p_filesz = U64::new(LE, len);
    let bytes = |header: &ProgramHeader64<LE>| bytes_of(header).try_into().expect("a header has the size of a header");
    let at = elf.header.e_phoff.get(LE) + (index * HEADER) as u64; // The table lies in the file: it was read.
    Ok(Some(Named { offset: at, original: bytes(&original), placed: bytes(&placed) }))
}
