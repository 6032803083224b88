//! Makes the launcher's programs: linked without libc, start files or relocations, so that the kernel alone starts them wherever
//! they come to lie.

use object::elf::{self, FileHeader64, SectionHeader64};
use object::read::elf::{FileHeader, ProgramHeader, Rela, SectionHeader};
use object::{Endianness, FileKind};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `call [rip + …]` and `addr32 call …`, of the same length.
const CALL_THROUGH: [u8; 2] = [0xff, 0x15];
const CALL: [u8; 2] = [0x67, 0xe8];
/// `jmp [rip + …]` and `nop; jmp …`.
const JUMP_THROUGH: [u8; 2] = [0xff, 0x25];
const JUMP: [u8; 2] = [0x90, 0xe9];
/// `mov register, [rip + …]` and `lea register, [rip + …]`: their first bytes; the register stands in the next.
const MOV: u8 = 0x8b;
const LEA: u8 = 0x8d;

fn main() {
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=CHIPBOUND_DYNAMIC_LINKER={}", dynamic_linker());
    build("interpreter", "_start");
    for name in ["front", "library"] {
        let program = build(name, name);
        let (image, entry) = image(name, &std::fs::read(&program).expect("just linked"));
        // The compiler does not look for changes in a file that an assembler includes: another image has another name.
        let digest = image.iter().fold(0xcbf2_9ce4_8422_2325, |h: u64, byte| (h ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        let path = program.with_extension(format!("{digest:016x}"));
        std::fs::write(&path, image).expect("the build's own folder takes a file");
        let name = name.to_uppercase();
        println!("cargo:rustc-env=CHIPBOUND_{name}_IMAGE={}", path.display());
        println!("cargo:rustc-env=CHIPBOUND_{name}_ENTRY={entry}");
    }
}

/// Compiles a root file in `src` as a program.
fn build(name: &str, entry: &str) -> PathBuf {
    let into = Path::new(&variable("OUT_DIR")).join(name);
    let mut compiler = Command::new(variable("RUSTC"));
    compiler.arg(format!("src/{name}.rs")).arg("-o").arg(&into).args(["--edition", "2024", "--crate-type", "bin"]);
    compiler.args(["--crate-name", &format!("chipbound_{name}"), "--target", &variable("TARGET")]);
    compiler.args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "lto=fat", "-C", "codegen-units=1", "-C", "strip=symbols"]);
    compiler.env("CHIPBOUND_DYNAMIC_LINKER", dynamic_linker());
    compiler.args(["-C", "relocation-model=pic", "-C", "target-feature=-crt-static", "-C", "force-unwind-tables=no"]);
    for argument in
        ["-nostdlib", "-nostartfiles", "-static-pie", "-Wl,--no-dynamic-linker,--build-id=none,-z,noexecstack,-z,noseparate-code"]
    {
        compiler.args(["-C", &format!("link-arg={argument}")]);
    }
    compiler.args(["-C", &format!("link-arg=-Wl,-e,{entry}")]);
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        compiler.args(["-C", &format!("linker={linker}")]);
    }
    // The user's own flags are for programs with a runtime (sanitizers, coverage, profiles).
    compiler.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let status = compiler.status().expect("the compiler starts");
    assert!(status.success(), "{name} does not compile: {status}");
    let mut program = std::fs::read(&into).expect("just linked");
    call_directly(name, &mut program);
    std::fs::write(&into, program).expect("just linked");
    into
}

/// Makes calls through the table of addresses direct ones, as a linker may do itself (x86-64 ABI, B.2): the compiler's calls of memcpy
/// and its like go through that table, and nobody is there to fill it when these programs begin. Anything else that would have to be
/// relocated ends the build.
fn call_directly(name: &str, program: &mut [u8]) {
    assert!(matches!(FileKind::parse(&*program), Ok(FileKind::Elf64)), "{name} is no ELF file");
    let header = FileHeader64::<Endianness>::parse(&*program).expect("an ELF file");
    let endian = header.endian().expect("an ELF file");
    assert_eq!(header.e_type(endian), elf::ET_DYN, "{name} asks for a place of its own");
    let segments = header.program_headers(endian, &*program).expect("program headers");
    assert!(segments.iter().all(|s| s.p_type(endian) != elf::PT_INTERP), "{name} has an interpreter itself");
    let code = segments.iter().find(|s| s.p_type(endian) == elf::PT_LOAD && s.p_flags(endian) & elf::PF_X != 0).expect("code");
    let (code_at, code_in_file) = (code.p_vaddr(endian), code.p_offset(endian) as usize);
    let code = code_in_file..code_in_file + code.p_filesz(endian) as usize;
    for (slot, target) in relocations(name, program) {
        for at in code.start + 2..code.end - 3 {
            let next = code_at + (at - code_in_file) as u64 + 4;
            let distance = i32::from_le_bytes(program[at..at + 4].try_into().expect("four bytes"));
            if next.wrapping_add_signed(distance.into()) != slot {
                continue;
            }
            let direct = match [program[at - 2], program[at - 1]] {
                CALL_THROUGH => CALL,
                JUMP_THROUGH => JUMP,
                [MOV, register] => [LEA, register],
                other => panic!("{name} uses an address that nobody relocates: {other:x?}"),
            };
            let distance = i32::try_from(target.cast_signed() - next.cast_signed()).expect("a small program");
            program[at - 2..at].copy_from_slice(&direct);
            program[at..at + 4].copy_from_slice(&distance.to_le_bytes());
        }
    }
}

/// All relocations of a program: the place and the address that belongs there. Only relative ones may be.
fn relocations(name: &str, program: &[u8]) -> Vec<(u64, u64)> {
    let header = FileHeader64::<Endianness>::parse(program).expect("an ELF file");
    let endian = header.endian().expect("an ELF file");
    let sections = header.sections(endian, program).expect("sections");
    let mut all = Vec::new();
    for section in sections.iter() {
        assert_ne!(section.sh_type(endian), elf::SHT_REL, "{name} has other relocations");
        for relocation in section.rela(endian, program).expect("sections").map(|(all, _)| all).unwrap_or_default() {
            assert_eq!(relocation.r_type(endian, false), elf::R_X86_64_RELATIVE, "{name} has other relocations");
            let place = relocation.r_offset(endian);
            let in_table = sections
                .section_by_name(endian, b".got")
                .is_some_and(|(_, got)| (got.sh_addr(endian)..got.sh_addr(endian) + got.sh_size(endian)).contains(&place));
            assert!(in_table, "{name} has an address in its data that nobody relocates");
            all.push((place, relocation.r_addend(endian).cast_unsigned()));
        }
    }
    all
}

/// The program as it lies in memory, and where it begins in it: what can be copied anywhere. Of what it would write to there is
/// nothing but the dynamic section and the table of addresses, which nobody reads.
fn image(name: &str, program: &[u8]) -> (Vec<u8>, u64) {
    let header = FileHeader64::<Endianness>::parse(program).expect("an ELF file");
    let endian = header.endian().expect("an ELF file");
    let segments = header.program_headers(endian, program).expect("program headers");
    let sections = header.sections(endian, program).expect("sections");
    let mut image = Vec::new();
    for segment in segments {
        let (address, length) = (segment.p_vaddr(endian) as usize, segment.p_filesz(endian) as usize);
        match (segment.p_type(endian), segment.p_flags(endian) & elf::PF_W) {
            (elf::PT_LOAD, 0) => {
                image.resize(image.len().max(address + length), 0);
                image[address..address + length].copy_from_slice(segment.data(endian, program).expect("a whole file"));
            }
            (elf::PT_LOAD, _) => {
                let names = |s: &SectionHeader64<Endianness>| sections.section_name(endian, s).unwrap_or_default();
                let lies_here = |s: &&SectionHeader64<Endianness>| s.sh_addr(endian) >= address as u64 && s.sh_size(endian) > 0;
                let unused: [&[u8]; 3] = [b".dynamic", b".got", b".relro_padding"];
                assert!(sections.iter().filter(lies_here).all(|s| unused.contains(&names(s))), "{name} has something to write to");
            }
            _ => {}
        }
    }
    (image, header.e_entry(endian))
}

/// The dynamic linker of the target: that of this build script where it is for the same system.
fn dynamic_linker() -> String {
    let usual = || match variable("CARGO_CFG_TARGET_ARCH").as_str() {
        "aarch64" => "/lib/ld-linux-aarch64.so.1".to_owned(),
        _ => "/lib64/ld-linux-x86-64.so.2".to_owned(),
    };
    if variable("HOST") != variable("TARGET") {
        return usual();
    }
    let program = std::fs::read("/proc/self/exe").unwrap_or_default();
    let Ok(header) = FileHeader64::<Endianness>::parse(&*program) else { return usual() };
    let endian = header.endian().expect("this very program");
    let segments = header.program_headers(endian, &*program).expect("this very program");
    let path = segments.iter().find_map(|s| s.interpreter(endian, &*program).ok().flatten());
    path.and_then(|path| String::from_utf8(path.to_vec()).ok()).unwrap_or_else(usual)
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
