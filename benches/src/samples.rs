//! Files to deliver and programs to start, made on the spot from random bytes, which nothing on the way can compress.

use crate::Outcome;
use crate::process::run;
use chipbound_wire::{Random, SystemRandom};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes made and written at once.
const PIECE: usize = 1024 * 1024;

/// Writes `size` random bytes.
pub(crate) fn random_file(path: &Path, size: u64) -> Outcome<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut piece = vec![0; PIECE];
    let mut left = size;
    while left > 0 {
        let part = &mut piece[..usize::try_from(left).unwrap_or(PIECE).min(PIECE)];
        SystemRandom.fill(part);
        file.write_all(part)?;
        left -= part.len() as u64;
    }
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    Ok(())
}

/// Links a program whose executable segment has `size` bytes of filler before the code that it runs, which prints one line.
pub(crate) fn program(folder: &Path, name: &str, size: u64) -> Outcome<PathBuf> {
    let main = "#include <stdio.h>\nint far_away(void);\nint main(void) { return printf(\"%d\\n\", far_away()) < 0; }\n";
    linked(folder, name, size, main, &[])
}

/// Links a shared library whose executable segment has `size` bytes of filler before the code of `far_away`, which gives 42.
pub(crate) fn library(folder: &Path, name: &str, size: u64) -> Outcome<PathBuf> {
    linked(folder, name, size, "", &["-shared", "-fPIC"])
}

fn linked(folder: &Path, name: &str, size: u64, c: &str, more: &[&str]) -> Outcome<PathBuf> {
    let file = |suffix: &str| folder.join(format!("{name}{suffix}"));
    let (filler, assembly, source, made) = (file(".bin"), file(".s"), file(".c"), file(""));
    random_file(&filler, size)?;
    fs::write(
        &assembly,
        format!(
            ".section .note.GNU-stack,\"\",@progbits\n.section .text\n.globl far_away\n.p2align 12\n.incbin \"{}\"\n.p2align 4\nfar_away: mov $42, %eax\nret\n",
            filler.display()
        ),
    )?;
    fs::write(&source, c)?;
    run(Command::new("cc").arg("-O1").args(more).arg("-o").args([&made, &source, &assembly]))?;
    for part in [filler, assembly, source] {
        fs::remove_file(part)?;
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_program_runs_and_has_all_its_filler() {
        let folder = tempfile::tempdir().unwrap();
        let made = program(folder.path(), "made", 3 << 20).unwrap();
        assert!(made.metadata().unwrap().len() > 3 << 20);
        assert_eq!(Command::new(&made).output().unwrap().stdout, b"42\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing but the program is left");
    }
}
