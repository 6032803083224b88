//! What shape a program's file has, in a few words.

use crate::list::Program;
use object::LittleEndian as LE;
use object::elf::{DT_FLAGS, DT_TEXTREL, ET_DYN, FileHeader64, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD, PT_TLS};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use std::path::Path;

/// The flag of DT_FLAGS for text relocations.
const DF_TEXTREL: u64 = 4;

/// The shape of the program's file; `?` where it cannot be read.
pub(crate) fn of(program: &Program) -> String {
    let bytes = program.file().ok().and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
    describe(&bytes).unwrap_or_else(|| "?".to_owned())
}

/// The interpreter that a program's file names, if it is one and names one.
pub(crate) fn interpreter(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let segments = FileHeader64::<LE>::parse(&*bytes).ok()?.program_headers(LE, &*bytes).ok()?;
    segments.iter().find_map(|s| s.interpreter(LE, &*bytes).ok().flatten()).map(<[u8]>::to_vec)
}

fn describe(bytes: &[u8]) -> Option<String> {
    let header = FileHeader64::<LE>::parse(bytes).ok()?;
    let segments = header.program_headers(LE, bytes).ok()?;
    let has = |kind: u32| segments.iter().any(|s| s.p_type(LE) == kind);
    let mut words = vec![match (header.e_type.get(LE) == ET_DYN, has(PT_INTERP), has(PT_DYNAMIC)) {
        (true, true, _) => "PIE",
        (true, false, _) => "static PIE",
        (false, true, _) => "fixed",
        (false, false, _) => "static",
    }];
    let sections = header.section_headers(LE, bytes).unwrap_or_default();
    let names = header.section_strings(LE, bytes, sections).unwrap_or_default();
    let named = |wanted: &[u8]| sections.iter().any(|s| names.get(s.sh_name.get(LE)) == Ok(wanted));
    for (is, word) in [
        (named(b".go.buildinfo"), "Go"),
        (has(PT_TLS), "TLS"),
        (text_relocations(bytes, segments), "text relocations"),
        (sections.is_empty(), "no sections"),
        (segments.iter().filter(|s| s.p_type(LE) == PT_LOAD).count() == 1, "one segment"),
    ] {
        if is {
            words.push(word);
        }
    }
    let code: u64 = segments.iter().filter(|s| s.p_type(LE) == PT_LOAD && s.p_flags(LE) & PF_X != 0).map(|s| s.p_filesz(LE)).sum();
    Some(format!("{}, {} KiB code", words.join(", "), code.div_ceil(1024)))
}

fn text_relocations(bytes: &[u8], segments: &[object::elf::ProgramHeader64<LE>]) -> bool {
    let entries = segments.iter().find_map(|s| s.dynamic(LE, bytes).ok().flatten()).unwrap_or_default();
    entries.iter().any(|d| {
        let (tag, value) = (d.d_tag(LE), d.d_val(LE));
        tag == u64::from(DT_TEXTREL) || (tag == u64::from(DT_FLAGS) && value & DF_TEXTREL != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_told_by_its_shape() {
        let described = describe(&std::fs::read("/bin/ls").unwrap()).unwrap();
        assert!(described.starts_with("PIE") && described.ends_with("KiB code"), "{described}");
        assert_eq!(describe(b"#!/bin/sh\n"), None);
    }
}
