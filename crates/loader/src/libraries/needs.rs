//! What an ELF file asks its dynamic linker for (gABI chapter 5, "Dynamic Section").

use std::path::PathBuf;

use object::LittleEndian as LE;
use object::elf::{
    DT_AUXILIARY, DT_FILTER, DT_NEEDED, DT_NULL, DT_RPATH, DT_RUNPATH, DT_STRSZ, DT_STRTAB, Dyn64, PT_DYNAMIC, PT_INTERP, PT_LOAD,
    ProgramHeader64,
};

use crate::elf::{ReadAt, file_header, interpreter, program_headers, unsupported};
use crate::error::LoadError;

/// Audit libraries that an object names itself (`linux/elf.h` has them not; glibc's `elf.h` does).
const DT_AUDIT: u32 = 0x6fff_fefc;
const DT_DEPAUDIT: u32 = 0x6fff_fefb;
/// The longest dynamic section, bytes.
const MAX_DYNAMIC: u64 = 1 << 20;
/// The longest table of strings, bytes.
const MAX_STRINGS: u64 = 64 << 20;
/// The longest of its strings that matters here, bytes.
const MAX_STRING: u64 = 4096;

/// Libraries and where to look for them, as they stand in the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Needs {
    pub(super) interpreter: Option<PathBuf>,
    /// Names, or paths where they contain a slash.
    pub(super) libraries: Vec<Vec<u8>>,
    /// `DT_RUNPATH`, at its colons.
    pub(super) run_path: Vec<Vec<u8>>,
    /// `DT_RPATH`, at its colons.
    pub(super) old_path: Vec<Vec<u8>>,
}

impl Needs {
    /// Reads them from a file of `len` bytes.
    ///
    /// # Errors
    /// [`LoadError::Unsupported`] for what is no ELF file of this machine, or cannot be followed; [`LoadError::Source`] if `read` fails.
    pub(super) fn read(len: u64, read: &ReadAt<'_>) -> Result<Self, LoadError> {
        let header = file_header(len, read)?;
        let table = program_headers(&header, len, read)?;
        let mut needs = Self::default();
        if let Some(named) = table.iter().find(|h| h.p_type.get(LE) == PT_INTERP) {
            needs.interpreter = Some(interpreter(named, len, read)?);
        }
        let Some(dynamic) = table.iter().find(|h| h.p_type.get(LE) == PT_DYNAMIC) else { return Ok(needs) };
        let size = dynamic.p_filesz.get(LE);
        if size > MAX_DYNAMIC || dynamic.p_offset.get(LE).checked_add(size).is_none_or(|end| end > len) {
            return Err(unsupported("its dynamic section lies outside the file"));
        }
        let mut bytes = vec![0; size as usize];
        read(dynamic.p_offset.get(LE), &mut bytes).map_err(LoadError::Source)?;
        let (entries, _) = object::pod::slice_from_bytes::<Dyn64<LE>>(&bytes, bytes.len() / size_of::<Dyn64<LE>>())
            .map_err(|()| unsupported("its dynamic section is cut off"))?;
        let entries: Vec<(u32, u64)> = entries
            .iter()
            .map(|entry| (u32::try_from(entry.d_tag.get(LE)).unwrap_or(u32::MAX), entry.d_val.get(LE)))
            .take_while(|(tag, _)| *tag != DT_NULL)
            .collect();
        needs.take(&entries, &Strings::of(&entries, &table, len, read)?)?;
        Ok(needs)
    }

    fn take(&mut self, entries: &[(u32, u64)], strings: &Strings<'_>) -> Result<(), LoadError> {
        for &(tag, value) in entries {
            match tag {
                DT_NEEDED | DT_AUXILIARY | DT_FILTER => self.libraries.push(strings.at(value)?),
                DT_AUDIT | DT_DEPAUDIT => self.libraries.extend(entries_of(&strings.at(value)?)),
                DT_RUNPATH => self.run_path = entries_of(&strings.at(value)?),
                DT_RPATH => self.old_path = entries_of(&strings.at(value)?),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The parts between colons. An empty one means the folder in which the program is started, and stays.
fn entries_of(list: &[u8]) -> Vec<Vec<u8>> {
    if list.is_empty() { Vec::new() } else { list.split(|&byte| byte == b':').map(<[u8]>::to_vec).collect() }
}

/// The table of strings, read where it is needed.
struct Strings<'a> {
    read: &'a ReadAt<'a>,
    offset: u64,
    size: u64,
}

impl<'a> Strings<'a> {
    fn of(entries: &[(u32, u64)], table: &[ProgramHeader64<LE>], len: u64, read: &'a ReadAt<'a>) -> Result<Self, LoadError> {
        let last = |tag| entries.iter().rev().find(|(t, _)| *t == tag).map_or(0, |(_, value)| *value);
        let (address, size) = (last(DT_STRTAB), last(DT_STRSZ));
        let inside = |h: &&ProgramHeader64<LE>| {
            let (start, length) = (h.p_vaddr.get(LE), h.p_filesz.get(LE));
            h.p_type.get(LE) == PT_LOAD && address >= start && address - start < length && size <= length - (address - start)
        };
        let offset = table.iter().find(inside).and_then(|h| h.p_offset.get(LE).checked_add(address - h.p_vaddr.get(LE)));
        match offset.filter(|offset| offset.checked_add(size).is_some_and(|end| end <= len)) {
            Some(offset) if size <= MAX_STRINGS => Ok(Self { read, offset, size }),
            _ => Err(unsupported("the names in its dynamic section lie outside the file")),
        }
    }

    fn at(&self, place: u64) -> Result<Vec<u8>, LoadError> {
        let none = || unsupported("a name in its dynamic section lies outside the file");
        let most = self.size.checked_sub(place).ok_or_else(none)?.min(MAX_STRING);
        let mut text = vec![0; most as usize];
        (self.read)(self.offset + place, &mut text).map_err(LoadError::Source)?;
        text.truncate(text.iter().position(|&byte| byte == 0).ok_or_else(none)?);
        Ok(text)
    }
}
