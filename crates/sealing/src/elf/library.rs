//! Shared libraries: which can be sealed, and how one is made to have its code opened before anything of it runs.
//!
//! A dynamic linker calls `DT_INIT` of a library before everything else in it (generic ABI, chapter 5, "Initialization and
//! Termination Functions"). A placed library has that lead to a few pages of plain code in a segment of its own, which has the
//! processor open the rest and goes on to where `DT_INIT` led.

use super::tables::symbols;
use super::{Elf, Range, bytes, many, table, unsupported};
use crate::read_at::ReadAt;
use chipbound_wire::limits::MAX_PIECES;
use chipbound_wire::{Code, Result};
use object::elf::{
    DF_TEXTREL, DT_FLAGS, DT_INIT, DT_JMPREL, DT_NULL, DT_PLTRELSZ, DT_RELA, DT_RELACOUNT, DT_RELASZ, DT_TEXTREL, Dyn64, ET_DYN, PF_R,
    PF_W, PF_X, PT_DYNAMIC, PT_GNU_PROPERTY, PT_GNU_RELRO, PT_INTERP, PT_LOAD, PT_NOTE, PT_NULL, ProgramHeader64, R_X86_64_IRELATIVE,
    Rela64, STT_GNU_IFUNC,
};
use object::pod::bytes_of;
use object::{LittleEndian as LE, U32, U64};

/// Bytes of a page, by which segments are mapped.
const PAGE: u64 = 4096;
/// Headers that a library can spare: dynamic linkers need none of them to run its code. What the last one has them do, the stub does.
const SPARE: [u32; 4] = [PT_NULL, PT_GNU_PROPERTY, PT_NOTE, PT_GNU_RELRO];
/// Bytes of an entry of the dynamic section.
const ENTRY: u64 = size_of::<Dyn64<LE>>() as u64;

/// What has to be changed in a library so that its dynamic linker maps a piece of the file and calls it first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Hook {
    /// Where the piece lies in memory, before the load bias.
    pub(crate) address: u64,
    /// Where `DT_INIT` leads, before the load bias; none where the library has no such function.
    pub(crate) init: Option<u64>,
    /// Address and length of what is only read once it is relocated, before the load bias, where the header that says so is spent.
    pub(crate) read_only: Option<(u64, u64)>,
    header: (u64, ProgramHeader64Bytes),
    dynamic: (u64, [u8; ENTRY as usize]),
}

type ProgramHeader64Bytes = [u8; size_of::<ProgramHeader64<LE>>()];

/// A changed place, what was there, and what stands there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Changed {
    pub(crate) offset: u64,
    pub(crate) original: Vec<u8>,
    pub(crate) placed: Vec<u8>,
}

impl Hook {
    /// The changes that map `len` bytes at `offset` of the file, a multiple of [`PAGE`], and call the byte at `entry` of them.
    pub(crate) fn changes(&self, offset: u64, len: u64, entry: u64) -> [Changed; 2] {
        let word = |value| U64::new(LE, value);
        let header = ProgramHeader64 {
            p_type: U32::new(LE, PT_LOAD),
            p_flags: U32::new(LE, PF_R | PF_X),
            p_offset: word(offset),
            p_vaddr: word(self.address),
            p_paddr: word(self.address),
            p_filesz: word(len),
            p_memsz: word(len),
            p_align: word(PAGE),
        };
        let init = Dyn64 { d_tag: word(DT_INIT.into()), d_val: word(self.address + entry) };
        let changed =
            |at: u64, original: &[u8], placed: &[u8]| Changed { offset: at, original: original.to_vec(), placed: placed.to_vec() };
        [changed(self.header.0, &self.header.1, bytes_of(&header)), changed(self.dynamic.0, &self.dynamic.1, bytes_of(&init))]
    }
}

/// The way into a library; `None` for what is none. [`Code::UnsupportedProgram`] where there is no way.
pub(crate) fn hook(file: &dyn ReadAt) -> Result<Option<Hook>> {
    let elf = Elf::read(file)?;
    if elf.is_library()? { elf.hook().map(Some) } else { Ok(None) }
}

/// Whether a program or its package is a shared library: what programs load and nobody runs. False for what is no ELF file of the usual
/// form; fails only where reading fails.
pub fn is_library(file: &dyn ReadAt) -> Result<bool> {
    match Elf::read(file).and_then(|elf| elf.is_library()) {
        Err(refusal) if refusal.code == Code::UnsupportedProgram => Ok(false),
        other => other,
    }
}

impl Elf<'_> {
    /// Position-independent and no program: it names no interpreter, does not say that it is one, and does not stand on its own. A library
    /// that names an interpreter, as C libraries do, counts as a program.
    pub(super) fn is_library(&self) -> Result<bool> {
        let movable = self.header.e_type.get(LE) == ET_DYN;
        Ok(movable && self.of_type(PT_INTERP).next().is_none() && !self.is_standalone()?)
    }

    /// A library whose code can be put in its place after the dynamic linker has relocated it and before any of it is called.
    pub(super) fn check_library(&self) -> Result<()> {
        let flags = |s: &ProgramHeader64<LE>| s.p_flags.get(LE);
        if !self.of_type(PT_LOAD).any(|s| flags(s) & PF_X != 0) {
            return Err(unsupported("it is a shared library without code"));
        }
        if self.of_type(PT_LOAD).any(|s| flags(s) & (PF_W | PF_X) == PF_W | PF_X) {
            return Err(unsupported("it is a shared library whose code can be written to (link it without -N)"));
        }
        if self.of_type(PT_LOAD).filter(|s| flags(s) & PF_W == 0).count() > MAX_PIECES {
            return Err(unsupported("it is a shared library of more segments than any has"));
        }
        let dynamic = self.dynamic()?;
        let value = |tag: u32| dynamic.iter().find(|d| d.0 == u64::from(tag)).map(|d| d.1);
        if value(DT_TEXTREL).is_some() || value(DT_FLAGS).is_some_and(|flags| flags & u64::from(DF_TEXTREL) != 0) {
            return Err(unsupported("it is a shared library whose code has to be relocated (compile it with -fPIC)"));
        }
        if self.has_resolvers(&value)? {
            let why = "it is a shared library with functions that are chosen when it is loaded (IFUNC): they would run before their code is opened";
            return Err(unsupported(why));
        }
        self.hook().map(drop)
    }

    /// Whether the dynamic linker calls code of the library to relocate it.
    fn has_resolvers(&self, value: &dyn Fn(u32) -> Option<u64>) -> Result<bool> {
        if symbols(self)?.iter().any(|s| s.st_info & 0xf == STT_GNU_IFUNC) {
            return Ok(true);
        }
        for (place, size) in [(DT_RELA, DT_RELASZ), (DT_JMPREL, DT_PLTRELSZ)] {
            let Some((at, size)) = value(place).and_then(|address| self.offset_of(address)).zip(value(size)) else { continue };
            let relocations: Vec<Rela64<LE>> =
                many(&bytes(self.file, Range { offset: at, len: size })?, size as usize / size_of::<Rela64<LE>>())?;
            if relocations.iter().any(|r| r.r_type(LE, false) == R_X86_64_IRELATIVE) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn hook(&self) -> Result<Hook> {
        let header = self
            .spare_header()
            .ok_or_else(|| unsupported("it is a shared library with no program header to spare (link it with --build-id)"))?;
        let (at, entry, init) = self
            .init_entry()?
            .ok_or_else(|| unsupported("it is a shared library with no room for an initialization function (DT_INIT)"))?;
        let end = self.of_type(PT_LOAD).filter_map(|s| s.p_vaddr.get(LE).checked_add(s.p_memsz.get(LE))).max();
        let address = end.and_then(|end| end.checked_next_multiple_of(PAGE)).filter(|address| *address < 1 << 47);
        let address = address.ok_or_else(|| unsupported("it is a shared library outside the address space"))?;
        let bytes = |header: &ProgramHeader64<LE>| bytes_of(header).try_into().expect("a header has the size of a header");
        let header_at = self.header.e_phoff.get(LE) + (header * size_of::<ProgramHeader64<LE>>()) as u64; // In the file: it was read.
        let entry = bytes_of(&entry).try_into().expect("an entry has the size of an entry");
        let spent = &self.segments[header];
        let relro = spent.p_type.get(LE) == PT_GNU_RELRO;
        let read_only = relro.then(|| (spent.p_vaddr.get(LE), spent.p_memsz.get(LE)));
        Ok(Hook { address, init, read_only, header: (header_at, bytes(spent)), dynamic: (at, entry) })
    }

    /// The number of a header that can become the last PT_LOAD: those ascend by address.
    fn spare_header(&self) -> Option<usize> {
        let kind = |s: &ProgramHeader64<LE>| s.p_type.get(LE);
        let after = self.segments.iter().rposition(|s| kind(s) == PT_LOAD)?;
        SPARE.iter().find_map(|spare| self.segments.iter().skip(after).position(|s| kind(s) == *spare)).map(|at| after + at)
    }

    /// The entry of the dynamic section that becomes DT_INIT, where it lies, and where it leads now: DT_INIT itself; else an entry
    /// behind the last one, if another follows it; else the number of relative relocations, a hint that linkers do without.
    #[expect(clippy::type_complexity, reason = "three things about one entry, used once")]
    fn init_entry(&self) -> Result<Option<(u64, Dyn64<LE>, Option<u64>)>> {
        let Some(segment) = self.of_type(PT_DYNAMIC).next() else { return Ok(None) };
        let count = (segment.p_filesz.get(LE) / ENTRY).min(super::MAX_DYNAMIC) as usize;
        let start = segment.p_offset.get(LE);
        let entries: Vec<Dyn64<LE>> = many(&bytes(self.file, table(start, count, ENTRY as usize))?, count)?;
        let end = entries.iter().position(|d| d.d_tag.get(LE) == u64::from(DT_NULL)).unwrap_or(count);
        let of_tag = |tag: u32| entries[..end].iter().position(|d| d.d_tag.get(LE) == u64::from(tag));
        let spare = (end + 1 < count && entries[end + 1].d_tag.get(LE) == u64::from(DT_NULL)).then_some(end);
        let Some(index) = of_tag(DT_INIT).or(spare).or_else(|| of_tag(DT_RELACOUNT)) else { return Ok(None) };
        let init = (of_tag(DT_INIT) == Some(index)).then(|| entries[index].d_val.get(LE)).filter(|init| *init != 0);
        Ok(Some((start + index as u64 * ENTRY, entries[index], init)))
    }
}
