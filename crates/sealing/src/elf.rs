//! Which parts of an ELF program are sealed (source \[49\]\[65\]): the bytes of its executable segments, with constants those of all that
//! nobody writes to, without the headers and tables that tools and the dynamic linker read from the file. Every field is an allegation.

mod library;
mod start;
mod tables;

pub use library::is_library;
pub(crate) use library::{Changed, Hook, hook};
pub(crate) use start::{Named, named};

use crate::layout::{Layout, Patch, Range};
use crate::read_at::ReadAt;
use chipbound_wire::suite::Format;
use chipbound_wire::{Code, Refusal, Result};
use object::elf::{
    DF_1_PIE, DT_FLAGS_1, DT_NEEDED, DT_NULL, DT_SONAME, Dyn64, ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_X86_64, ET_DYN, ET_EXEC, EV_CURRENT,
    FileHeader64, PF_W, PF_X, PT_DYNAMIC, PT_GNU_PROPERTY, PT_INTERP, PT_LOAD, PT_NOTE, ProgramHeader64, SHF_EXECINSTR, SHT_DYNAMIC,
    SHT_DYNSYM, SHT_FINI_ARRAY, SHT_GNU_HASH, SHT_GNU_VERDEF, SHT_GNU_VERNEED, SHT_GNU_VERSYM, SHT_HASH, SHT_INIT_ARRAY, SHT_NOBITS,
    SHT_NOTE, SHT_PREINIT_ARRAY, SHT_REL, SHT_RELA, SHT_RELR, SHT_STRTAB, SHT_SYMTAB, SectionHeader64,
};
use object::{LittleEndian as LE, Pod, pod};

/// Program headers that a supported program may have.
const MAX_SEGMENTS: usize = 128;
/// Entries of the dynamic section that are looked at.
const MAX_DYNAMIC: u64 = 4096;
/// Bytes of any table that are read at once.
const MAX_TABLE: u64 = 16 * 1024 * 1024;
/// A run of zeros between two plain tables is padding, and stays plain, where it is shorter than this, in bytes.
const PADDING: u64 = 64;

/// Tables that tools and the dynamic linker read; they stay plain inside a sealed segment.
const PLAIN_SECTIONS: [u32; 16] = [
    SHT_SYMTAB,
    SHT_STRTAB,
    SHT_RELA,
    SHT_HASH,
    SHT_DYNAMIC,
    SHT_NOTE,
    SHT_REL,
    SHT_DYNSYM,
    SHT_INIT_ARRAY,
    SHT_FINI_ARRAY,
    SHT_PREINIT_ARRAY,
    SHT_RELR,
    SHT_GNU_HASH,
    SHT_GNU_VERDEF,
    SHT_GNU_VERNEED,
    SHT_GNU_VERSYM,
];

/// The layout of a program; [`Code::UnsupportedProgram`] says what it is not.
pub(crate) fn layout(file: &dyn ReadAt, constants: bool) -> Result<Layout> {
    let elf = Elf::read(file)?;
    if elf.is_library()? {
        elf.check_library()?
    } else {
        elf.check_program()?
    }
    let mut sealed = Vec::new();
    for range in subtract(&elf.sealable(constants)?, &elf.plain()?) {
        if !elf.is_padding(range)? {
            sealed.push(range);
        }
    }
    Layout::new(Format::ElfX8664, file.size(), sealed, elf.patches()).map_err(|e| unsupported(e.detail))
}

fn unsupported(why: impl std::fmt::Display) -> Refusal {
    Refusal::new(Code::UnsupportedProgram, format!("not a supported program: {why}"))
}

/// A file whose ELF header and program headers were read.
struct Elf<'a> {
    file: &'a dyn ReadAt,
    header: FileHeader64<LE>,
    segments: Vec<ProgramHeader64<LE>>,
}

impl<'a> Elf<'a> {
    fn read(file: &'a dyn ReadAt) -> Result<Self> {
        if file.size() < size_of::<FileHeader64<LE>>() as u64 {
            return Err(unsupported("it is no ELF file"));
        }
        let header = one::<FileHeader64<LE>>(&bytes(file, Range { offset: 0, len: 64 })?)?;
        let ident = header.e_ident;
        if ident.magic != ELFMAG || ident.class != ELFCLASS64 || ident.data != ELFDATA2LSB || ident.version != EV_CURRENT {
            return Err(unsupported("it is no 64-bit little-endian ELF file"));
        }
        if header.e_machine.get(LE) != EM_X86_64 {
            return Err(unsupported("it is not for x86-64"));
        }
        let count = usize::from(header.e_phnum.get(LE));
        if count > MAX_SEGMENTS || usize::from(header.e_phentsize.get(LE)) != size_of::<ProgramHeader64<LE>>() {
            return Err(unsupported("it has no program headers of the usual form, or too many"));
        }
        let table = table(header.e_phoff.get(LE), count, size_of::<ProgramHeader64<LE>>());
        let segments = many(&bytes(file, table)?, count)?;
        Ok(Self { file, header, segments })
    }

    fn of_type(&self, kind: u32) -> impl Iterator<Item = &ProgramHeader64<LE>> {
        self.segments.iter().filter(move |s| s.p_type.get(LE) == kind)
    }

    /// A program has an entry point in an executable segment.
    fn check_program(&self) -> Result<()> {
        let entry = self.header.e_entry.get(LE);
        let enters = |s: &ProgramHeader64<LE>| {
            s.p_flags.get(LE) & PF_X != 0 && entry.checked_sub(s.p_vaddr.get(LE)).is_some_and(|at| at < s.p_filesz.get(LE))
        };
        if entry == 0 || !self.of_type(PT_LOAD).any(enters) {
            return Err(unsupported("it has no entry point in an executable segment"));
        }
        match self.header.e_type.get(LE) {
            ET_EXEC | ET_DYN => Ok(()),
            _ => Err(unsupported("it is no executable")),
        }
    }

    /// Whether a shared object is a program though it names no interpreter: it says so (DF_1_PIE), or it has an entry point and neither
    /// name nor needs.
    fn is_standalone(&self) -> Result<bool> {
        let dynamic = self.dynamic()?;
        let value = |tag: u32| dynamic.iter().find(|d| d.0 == u64::from(tag)).map(|d| d.1);
        let pie = value(DT_FLAGS_1).is_some_and(|flags| flags & u64::from(DF_1_PIE) != 0);
        Ok(pie || (self.header.e_entry.get(LE) != 0 && value(DT_SONAME).is_none() && value(DT_NEEDED).is_none()))
    }

    /// Tag and value of each entry of the dynamic section.
    fn dynamic(&self) -> Result<Vec<(u64, u64)>> {
        let Some(segment) = self.of_type(PT_DYNAMIC).next() else { return Ok(Vec::new()) };
        let count = (segment.p_filesz.get(LE) / size_of::<Dyn64<LE>>() as u64).min(MAX_DYNAMIC) as usize;
        let entries: Vec<Dyn64<LE>> = many(&bytes(self.file, table(segment.p_offset.get(LE), count, size_of::<Dyn64<LE>>()))?, count)?;
        let entries = entries.iter().map(|d| (d.d_tag.get(LE), d.d_val.get(LE)));
        Ok(entries.take_while(|d| d.0 != u64::from(DT_NULL)).collect())
    }

    /// The file ranges of the executable segments, and with `constants` of those that are not writable, in order, none of which may share
    /// bytes with another segment.
    fn sealable(&self, constants: bool) -> Result<Vec<Range>> {
        let wanted = |flags: u32| flags & PF_X != 0 || (constants && flags & PF_W == 0);
        let mut loaded = Vec::new();
        for segment in self.of_type(PT_LOAD) {
            let range = Range { offset: segment.p_offset.get(LE), len: segment.p_filesz.get(LE) };
            if !within(&range, self.file.size()) || range.len > segment.p_memsz.get(LE) {
                return Err(unsupported("a segment reaches beyond the file"));
            }
            if range.len > 0 {
                loaded.push((range, wanted(segment.p_flags.get(LE))));
            }
        }
        loaded.sort_by_key(|(range, _)| range.offset);
        if loaded.windows(2).any(|w| w[0].0.end() > w[1].0.offset) {
            return Err(unsupported("two segments share bytes of the file"));
        }
        Ok(loaded.into_iter().filter(|(_, wanted)| *wanted).map(|(range, _)| range).collect())
    }

    /// Everything that stays plain even inside a sealed segment.
    fn plain(&self) -> Result<Vec<Range>> {
        let header = &self.header;
        let mut plain =
            vec![Range { offset: 0, len: 64 }, table(header.e_phoff.get(LE), self.segments.len(), size_of::<ProgramHeader64<LE>>())];
        for kind in [PT_INTERP, PT_DYNAMIC, PT_NOTE, PT_GNU_PROPERTY] {
            plain.extend(self.of_type(kind).map(|s| Range { offset: s.p_offset.get(LE), len: s.p_filesz.get(LE) }));
        }
        let sections = self.sections()?;
        plain.push(table(header.e_shoff.get(LE), sections.len(), size_of::<SectionHeader64<LE>>()));
        plain.extend(plain_tables(&sections, tables::of_dynamic(self)?, self.file.size()));
        plain.retain(|range| range.len > 0 && within(range, self.file.size()));
        Ok(plain)
    }

    /// The section headers; none where there are none, or not of the usual form.
    fn sections(&self) -> Result<Vec<SectionHeader64<LE>>> {
        let header = &self.header;
        let count = usize::from(header.e_shnum.get(LE));
        let table = table(header.e_shoff.get(LE), count, size_of::<SectionHeader64<LE>>());
        if usize::from(header.e_shentsize.get(LE)) != size_of::<SectionHeader64<LE>>() || !within(&table, self.file.size()) {
            return Ok(Vec::new());
        }
        many(&bytes(self.file, table)?, count)
    }

    /// Where a virtual address lies in the file.
    fn offset_of(&self, address: u64) -> Option<u64> {
        self.of_type(PT_LOAD).find_map(|s| {
            let at = address.checked_sub(s.p_vaddr.get(LE)).filter(|at| *at < s.p_filesz.get(LE))?;
            s.p_offset.get(LE).checked_add(at)
        })
    }

    fn is_padding(&self, range: Range) -> Result<bool> {
        Ok(range.len < PADDING && bytes(self.file, range)?.iter().all(|b| *b == 0))
    }

    /// The low bytes of the flags of executable segments.
    fn patches(&self) -> Vec<Patch> {
        let flags_at = std::mem::offset_of!(ProgramHeader64<LE>, p_flags) as u64;
        let executable = |s: &ProgramHeader64<LE>| s.p_type.get(LE) == PT_LOAD && s.p_flags.get(LE) & PF_X != 0;
        let all = self.segments.iter().enumerate().filter(|(_, s)| executable(s));
        all.map(|(i, s)| Patch {
            offset: self.header.e_phoff.get(LE) + (i * size_of::<ProgramHeader64<LE>>()) as u64 + flags_at,
            original: s.p_flags.get(LE).to_le_bytes()[0],
        })
        .collect()
    }
}

/// The tables of the dynamic linker, those that sections say hold no instructions, and the names of the sections; never what lies in
/// an executable section.
fn plain_tables(sections: &[SectionHeader64<LE>], dynamic: Vec<Range>, file_size: u64) -> Vec<Range> {
    let in_file = |s: &&SectionHeader64<LE>| s.sh_type.get(LE) != SHT_NOBITS;
    let range = |s: &SectionHeader64<LE>| Range { offset: s.sh_offset.get(LE), len: s.sh_size.get(LE) };
    let executable = |s: &&SectionHeader64<LE>| s.sh_flags.get(LE) & u64::from(SHF_EXECINSTR) != 0;
    let ranges = |wanted: &dyn Fn(&&SectionHeader64<LE>) -> bool| -> Vec<Range> {
        let all = sections.iter().filter(in_file).filter(wanted).map(range);
        all.filter(|r| r.len > 0 && within(r, file_size)).collect()
    };
    let mut tables = ranges(&|s| !executable(s) && PLAIN_SECTIONS.contains(&s.sh_type.get(LE)));
    tables.extend(dynamic.into_iter().filter(|r| r.len > 0 && within(r, file_size)));
    subtract(&tables, &ranges(&executable))
}

/// What remains of `from` without `without`: in order, apart.
pub(crate) fn subtract(from: &[Range], without: &[Range]) -> Vec<Range> {
    let without = merged(without);
    let mut left = Vec::new();
    for range in merged(from) {
        let mut at = range.offset;
        let first = without.partition_point(|w| w.end() <= range.offset);
        for hole in without[first..].iter().take_while(|w| w.offset < range.end()) {
            if hole.offset > at {
                left.push(Range::between(at, hole.offset));
            }
            at = hole.end();
        }
        if at < range.end() {
            left.push(Range::between(at, range.end()));
        }
    }
    left
}

/// The same bytes as ranges in order that do not touch.
fn merged(ranges: &[Range]) -> Vec<Range> {
    let mut sorted = ranges.to_vec();
    sorted.sort_by_key(|r| r.offset);
    let mut merged: Vec<Range> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.offset <= last.end() => last.len = last.end().max(range.end()) - last.offset,
            _ => merged.push(range),
        }
    }
    merged
}

/// Whether a range lies in a file of that size; one that does has an end that does not overflow.
fn within(range: &Range, size: u64) -> bool {
    range.offset.checked_add(range.len).is_some_and(|end| end <= size)
}

/// The range of a table; its length cannot overflow, because counts have 16 bits or a named limit.
fn table(offset: u64, count: usize, entry: usize) -> Range {
    Range { offset, len: (count * entry) as u64 }
}

/// Bytes of the file; [`Code::UnsupportedProgram`] where the range reaches beyond its end or is longer than any table.
fn bytes(file: &dyn ReadAt, range: Range) -> Result<Vec<u8>> {
    if !within(&range, file.size()) {
        return Err(unsupported("a table reaches beyond the file"));
    }
    if range.len > MAX_TABLE {
        return Err(unsupported("a table is longer than any should be"));
    }
    let mut buf = vec![0; range.len as usize];
    file.read_exact_at(&mut buf, range.offset).map_err(|e| Refusal::io("reading a program", e))?;
    Ok(buf)
}

fn one<T: Pod + Copy>(bytes: &[u8]) -> Result<T> {
    pod::from_bytes(bytes).map(|(value, _)| *value).map_err(|()| unsupported("a header is cut"))
}

fn many<T: Pod + Copy>(bytes: &[u8], count: usize) -> Result<Vec<T>> {
    pod::slice_from_bytes(bytes, count).map(|(values, _)| values.to_vec()).map_err(|()| unsupported("a table is cut"))
}
