//! Packages of real programs (source \[49\]\[65\]): they open to the same bytes, stay ELF files, and show no executable byte.

use crate::common::{Sealed, seal, seal_by};
use chipbound_sealing::{Layout, Package, PackageReader, ReadAt};
use chipbound_wire::Code;
use chipbound_wire::suite::{Aead, Format, Profile};
use object::LittleEndian as LE;
use object::elf::{FileHeader64, SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHT_NOBITS, SHT_PROGBITS};
use object::read::elf::FileHeader;
use std::path::PathBuf;
use std::process::Command;

/// Programs that may be on the machine.
const INSTALLED: [&str; 8] =
    ["/bin/ls", "/usr/bin/python3", "/usr/bin/git", "/usr/bin/openssl", "/bin/bash", "/usr/bin/perl", "/usr/bin/gcc", "/usr/bin/gdb"];

/// How a program can be linked.
const BUILDS: [(&str, &[&str]); 11] = [
    ("pie", &[]),
    ("no-pie", &["-no-pie"]),
    ("static", &["-static"]),
    ("static-pie", &["-static-pie"]),
    ("one-segment", &["-Wl,-z,noseparate-code"]),
    ("one-segment-static", &["-static", "-Wl,-z,noseparate-code"]),
    ("writable-text", &["-DALONE", "-nostdlib", "-static", "-Wl,-N"]),
    ("stripped", &["-s"]),
    ("sysv-hash", &["-Wl,--hash-style=sysv", "-Wl,-z,noseparate-code"]),
    ("packed-relocations", &["-Wl,-z,pack-relative-relocs", "-Wl,-z,noseparate-code"]),
    ("exports", &["-rdynamic", "-Wl,-z,noseparate-code", "-Wl,--version-script=/dev/stdin"]),
];

const SOURCE: &str = r#"
#ifdef ALONE
static int numbers[64] = {3, 1, 2};
void _start(void) { __asm__ volatile("syscall" :: "a"(231), "D"(numbers[1] - 1)); }
#else
#include <stdio.h>
#include <stdlib.h>
#ifndef TEXT
#define TEXT "%d %s\n"
#endif
static int numbers[64] = {3, 1, 2};
static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
__attribute__((constructor)) static void early(void) { numbers[3] = 9; }
int exported(int n) { qsort(numbers, 64, sizeof *numbers, compare); return numbers[63] + n; }
int main(int argc, char **argv) { printf(TEXT, exported(argc), argv[0]); return 0; }
#endif
"#;

/// Compiles the little program with these options and gives its bytes.
pub(crate) fn build(name: &str, options: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, program) = (folder.path().join(format!("{name}.c")), folder.path().join(name));
    std::fs::write(&source, SOURCE).expect("written");
    let script = folder.path().join("versions");
    std::fs::write(&script, "ONE { global: exported; };\n").expect("written");
    let options = options.iter().map(|o| o.replace("/dev/stdin", &script.display().to_string()));
    let output = Command::new("cc").arg("-o").arg(&program).arg(&source).args(options).output().expect("a C compiler");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(&program).expect("built")
}

/// What readelf says about a file with these bytes; the file always has the same name.
pub(crate) fn readelf(options: &[&str], name: &str, bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = executable(&folder, name, bytes);
    let output = Command::new("readelf").args(options).arg(path.file_name().expect("a name")).current_dir(&folder).output();
    let output = output.expect("readelf");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn executable(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
    path
}

/// The same program without section headers, as `strip --strip-section-headers` makes it.
fn without_sections(mut program: Vec<u8>) -> Vec<u8> {
    program[40..48].fill(0); // e_shoff
    program[58..64].fill(0); // e_shentsize, e_shnum, e_shstrndx
    program
}

fn installed() -> Vec<(String, Vec<u8>)> {
    INSTALLED.iter().filter_map(|path| Some((path.to_string(), std::fs::read(path).ok()?))).collect()
}

/// Installed programs and every build, each also without section headers.
fn programs() -> Vec<(String, Vec<u8>)> {
    let mut all = installed();
    for (name, options) in BUILDS.into_iter().chain(gold()) {
        let program = build(name, options);
        all.push((format!("{name}-no-sections"), without_sections(program.clone())));
        all.push((name.to_owned(), program));
    }
    all
}

/// One more linker, where it is installed.
fn gold() -> Option<(&'static str, &'static [&'static str])> {
    std::fs::exists("/usr/bin/ld.gold").unwrap_or(false).then_some(("gold", &["-fuse-ld=gold"]))
}

/// Every program, sealed with each profile of programs.
fn sealed_programs() -> impl Iterator<Item = (String, Vec<u8>, Profile, Sealed)> {
    programs().into_iter().flat_map(|(name, plain)| {
        [Profile::Code, Profile::CodeAndConstants].map(|profile| {
            let sealed = sealed_program(&name, &plain, profile, Aead::Aes256Gcm);
            (name.clone(), plain.clone(), profile, sealed)
        })
    })
}

fn sealed_program(name: &str, plain: &[u8], profile: Profile, aead: Aead) -> Sealed {
    let layout = Layout::of(profile, &plain).unwrap_or_else(|refusal| panic!("{name} {profile}: {refusal}"));
    assert_eq!(layout.format(), Format::ElfX8664);
    seal_by(plain, layout, aead)
}

#[test]
fn programs_of_every_kind_open_to_the_same_bytes_with_both_ciphers() {
    for (name, plain, profile, sealed) in sealed_programs() {
        let with_chacha = sealed_program(&name, &plain, profile, Aead::ChaCha20Poly1305);
        for sealed in [sealed, with_chacha] {
            let (opened, word) = sealed.open().expect("opens");
            assert!(opened == plain, "{name} {profile}");
            assert_eq!(word.plain_root.0, *blake3::hash(&plain).as_bytes());
        }
    }
}

#[test]
fn a_package_reader_gives_any_part_of_a_program() {
    for (name, plain, _, sealed) in sealed_programs() {
        let file = sealed.file();
        let reader = PackageReader::new(&file, Package::read(&file).expect("a package"), &sealed.keys, &sealed.seal()).expect("verified");
        let mut state = 1;
        for _ in 0..40 {
            let start = random(&mut state) as usize % plain.len();
            let end = (start + random(&mut state) as usize % 9000).min(plain.len());
            let mut part = vec![0; end - start];
            reader.read_exact_at(&mut part, start as u64).expect("read");
            assert!(part == plain[start..end], "{name} {start}..{end}");
        }
        let mut all = vec![0; plain.len()];
        reader.read(&mut all, 0).expect("read");
        assert!(all == plain, "{name}");
    }
}

#[test]
fn readelf_still_reads_the_headers_and_tables_of_a_package() {
    for (name, plain, profile, sealed) in sealed_programs() {
        let file = sealed.file();
        let name = name.rsplit('/').next().expect("a name");
        let options: &[&str] = if name.ends_with("no-sections") { &["-hdrnWD", "--dyn-syms"] } else { &["-hSdrVnW", "--dyn-syms"] };
        assert_eq!(readelf(options, name, &file), readelf(options, name, &plain), "{name} {profile}");
        let segments = |bytes| readelf(&["-lW"], name, bytes);
        assert_eq!(segments(&file), segments(&plain).replace("R E 0x", "R   0x").replace("RWE 0x", "RW  0x"), "{name}");
    }
}

#[test]
fn ldd_still_reads_a_package() {
    let dynamic: Vec<_> = sealed_programs().filter(|(name, ..)| !name.contains("static") && !name.contains("writable")).collect();
    assert!(dynamic.len() > 10);
    for (name, plain, profile, sealed) in dynamic {
        let file = sealed.file();
        let libraries = |bytes: &[u8]| {
            let folder = tempfile::tempdir().expect("a folder");
            let output = Command::new("ldd").arg(executable(&folder, "program", bytes)).output().expect("ldd");
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            // Addresses differ from run to run.
            text.lines().map(|l| l.split(" (0x").next().unwrap_or(l).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(libraries(&file), libraries(&plain), "{name} {profile}");
    }
}

#[test]
fn every_byte_of_every_executable_section_is_sealed() {
    for (name, plain, _, Sealed { layout, .. }) in sealed_programs().filter(|(name, ..)| !name.ends_with("no-sections")) {
        let header = FileHeader64::<LE>::parse(&*plain).expect("ELF");
        let mut bytes = 0;
        for section in header.section_headers(LE, &*plain).expect("sections") {
            let executable = section.sh_flags.get(LE) & u64::from(SHF_EXECINSTR) != 0 && section.sh_type.get(LE) != SHT_NOBITS;
            let (start, end) = (section.sh_offset.get(LE), section.sh_offset.get(LE) + section.sh_size.get(LE));
            if executable && start < end {
                assert!(layout.sealed().iter().any(|r| r.offset <= start && end <= r.end()), "{name}: {start:#x}..{end:#x}");
                bytes += end - start;
            }
        }
        assert!(bytes > 8 && bytes <= layout.sealed_bytes(), "{name}");
    }
}

#[test]
fn with_constants_every_byte_that_nobody_writes_to_is_sealed_but_tables_and_notes() {
    for (name, plain) in programs().into_iter().filter(|(name, _)| !name.ends_with("no-sections")) {
        let layout = Layout::of(Profile::CodeAndConstants, &plain).expect("a program");
        let header = FileHeader64::<LE>::parse(&*plain).expect("ELF");
        let sections = header.sections(LE, &*plain).expect("sections");
        let mut constants = 0;
        for section in sections.iter() {
            let (start, end) = (section.sh_offset.get(LE), section.sh_offset.get(LE) + section.sh_size.get(LE));
            let flags = section.sh_flags.get(LE) & u64::from(SHF_ALLOC | SHF_WRITE | SHF_EXECINSTR);
            let named = sections.section_name(LE, section).expect("a name");
            if flags == u64::from(SHF_ALLOC) && section.sh_type.get(LE) == SHT_PROGBITS && named != b".interp" && start < end {
                assert!(layout.sealed().iter().any(|r| r.offset <= start && end <= r.end()), "{name}: {start:#x}..{end:#x}");
                constants += end - start;
            }
        }
        let code = Layout::of(Profile::Code, &plain).expect("a program");
        assert!(code.patches() == layout.patches() && constants > 8, "{name}");
        assert!(code.sealed_bytes() <= layout.sealed_bytes(), "{name}");
    }
}

#[test]
fn a_constant_is_in_the_package_with_the_profile_code_and_not_with_constants() {
    let secret = b"printed as \"%d %s\"";
    for (name, options) in BUILDS.into_iter().filter(|(name, _)| *name != "writable-text") {
        let plain = build(name, &[options, &["-DTEXT=\"printed as \\\"%d %s\\\"\\n\""]].concat());
        let shows = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
        let sealed = |profile| sealed_program(name, &plain, profile, Aead::Aes256Gcm).body;
        assert!(shows(&plain) && !shows(&sealed(Profile::CodeAndConstants)), "{name}");
        let in_code = name.contains("one-segment") || options.iter().any(|option| option.contains("noseparate-code"));
        assert_eq!(shows(&sealed(Profile::Code)), !in_code, "{name}: constants in an executable segment are sealed anyway");
    }
}

#[test]
fn sealed_bytes_are_ciphertext_and_all_others_stay_but_for_the_execute_flags() {
    for (name, plain, _, sealed) in sealed_programs() {
        let (mut at, mut expected) = (0, plain.clone());
        for patch in sealed.layout.patches() {
            assert_eq!(patch.original & 1, 1);
            expected[patch.offset as usize] = patch.packaged();
        }
        assert!(!sealed.layout.patches().is_empty());
        for range in sealed.layout.sealed() {
            let range = range.offset as usize..range.end() as usize;
            assert!(sealed.body[at..range.start] == expected[at..range.start], "{name}");
            // One byte in 256 is the same by chance; 16 in a row are not.
            for (c, p) in sealed.body[range.clone()].chunks_exact(16).zip(plain[range.clone()].chunks_exact(16)) {
                assert_ne!(c, p, "{name}");
            }
            let same = sealed.body[range.clone()].iter().zip(&plain[range.clone()]).filter(|(c, p)| c == p).count();
            assert!(same < 32 + range.len() / 64, "{name}: {same} of {}", range.len());
            at = range.end;
        }
        assert!(sealed.body[at..] == expected[at..], "{name}");
    }
}

#[test]
fn a_package_started_without_a_processor_runs_no_instruction() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = sealed_program("pie", &build("static-start", &["-static"]), Profile::Code, Aead::Aes256Gcm).file();
    let output = Command::new(executable(&folder, "program", &file)).output().expect("started");
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(output.status.signal(), Some(11), "{output:?}");
    assert!(output.stdout.is_empty());
}

#[test]
fn what_is_no_supported_program_is_data_and_says_why() {
    let refused = |plain: &[u8], why: &str| {
        let refusal = Layout::of(Profile::Code, &plain).expect_err(why);
        assert_eq!(refusal.code, Code::UnsupportedProgram);
        assert!(refusal.detail.contains(why), "{refusal}");
        assert_eq!(Layout::detect(&plain).expect("data").format(), Format::Data);
    };
    let program = build("unsupported", &[]);
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = program.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    refused(b"", "no ELF file");
    refused(&program[..63], "no ELF file");
    refused(&[7; 4096], "no 64-bit little-endian");
    refused(&with(4, &[1]), "no 64-bit little-endian");
    refused(&with(18, &[183, 0]), "not for x86-64");
    refused(&with(16, &[1, 0]), "no executable");
    refused(&with(24, &[0; 8]), "no entry point");
    refused(&with(56, &[0xff, 0xff]), "too many");
    refused(&with(32, &[0xff; 8]), "beyond the file");
}

#[test]
fn hostile_headers_never_panic_and_give_sealable_layouts() {
    let mut state = 7;
    for (_, options) in BUILDS.iter().take(5) {
        let plain = build("hostile", options);
        let small = &plain[..plain.len().min(40_000)];
        for cut in (0..4096).step_by(7).chain((4096..small.len()).step_by(997)) {
            let _ = Layout::detect(&&plain[..cut]).expect("some layout");
        }
        for round in 0..3000 {
            let mut bad = plain.clone();
            let tables = [64, 1024, 4096, plain.len()];
            for _ in 0..1 + round % 4 {
                let span = tables[random(&mut state) as usize % 4];
                // The end of the file holds the section headers.
                let from = if random(&mut state).is_multiple_of(3) { plain.len() - span.min(2048) } else { 0 };
                let at = from + random(&mut state) as usize % span.min(plain.len() - from);
                bad[at] = [0, 1, 0x7f, 0x80, 0xff, random(&mut state) as u8][random(&mut state) as usize % 6];
            }
            for variant in [bad.clone(), without_sections(bad)] {
                let layout = Layout::detect(&variant).expect("some layout");
                let constants = Layout::of(Profile::CodeAndConstants, &variant);
                assert!(constants.as_ref().err().is_none_or(|refusal| refusal.code == Code::UnsupportedProgram));
                for layout in [&layout].into_iter().chain(&constants) {
                    assert_eq!(Layout::decode(&layout.encode()).expect("its own encoding"), *layout);
                }
                if round % 100 == 0 {
                    assert!(seal(&variant, Aead::Aes256Gcm).open().expect("opens").0 == variant);
                }
            }
        }
    }
}

/// A reproducible sequence (xorshift).
pub(crate) fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
