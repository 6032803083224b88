//! Makes the launcher's programs: linked without libc, start files or relocations, so that the kernel alone starts them wherever
//! they come to lie.

use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, FileKind};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Size of a table of packed relative relocations (generic ABI).
const DT_RELRSZ: u32 = 35;

fn main() {
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=build.rs");
    build("interpreter");
}

/// Compiles a root file in `src` as a program.
fn build(name: &str) -> PathBuf {
    let into = Path::new(&variable("OUT_DIR")).join(name);
    let mut compiler = Command::new(variable("RUSTC"));
    compiler.arg(format!("src/{name}.rs")).arg("-o").arg(&into).args(["--edition", "2024", "--crate-type", "bin"]);
    compiler.args(["--crate-name", &format!("chipbound_{name}"), "--target", &variable("TARGET")]);
    compiler.args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "lto=fat", "-C", "codegen-units=1", "-C", "strip=symbols"]);
    compiler.args(["-C", "relocation-model=pic", "-C", "target-feature=-crt-static", "-C", "force-unwind-tables=no"]);
    for argument in
        ["-nostdlib", "-nostartfiles", "-static", "-pie", "-Wl,--no-dynamic-linker,--build-id=none,-z,noexecstack,-z,noseparate-code"]
    {
        compiler.args(["-C", &format!("link-arg={argument}")]);
    }
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        compiler.args(["-C", &format!("linker={linker}")]);
    }
    // The user's own flags are for programs with a runtime (sanitizers, coverage, profiles).
    compiler.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let status = compiler.status().expect("the compiler starts");
    assert!(status.success(), "{name} does not compile: {status}");
    check(name, &std::fs::read(&into).expect("just linked"));
    into
}

/// Nothing in it asks for a relocation: nobody is there to make one.
fn check(name: &str, program: &[u8]) {
    assert!(matches!(FileKind::parse(program), Ok(FileKind::Elf64)), "{name} is no ELF file");
    let header = FileHeader64::<Endianness>::parse(program).expect("an ELF file");
    let endian = header.endian().expect("an ELF file");
    for segment in header.program_headers(endian, program).expect("program headers") {
        assert_ne!(segment.p_type(endian), elf::PT_INTERP, "{name} has an interpreter itself");
        for entry in segment.dynamic(endian, program).expect("a dynamic section").unwrap_or_default() {
            let tag = u32::try_from(entry.d_tag(endian)).unwrap_or(0);
            let relocations = [elf::DT_RELASZ, elf::DT_RELSZ, elf::DT_PLTRELSZ, DT_RELRSZ];
            assert!(!relocations.contains(&tag) || entry.d_val(endian) == 0, "{name} has relocations");
        }
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
