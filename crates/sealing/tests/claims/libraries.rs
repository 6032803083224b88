//! Packages of shared libraries: placed, they have plain code of the machine called before anything else, and are still the delivered
//! packages to every reader; libraries of which something would run before that are refused.

use crate::common::{Sealed, seal};
use crate::programs::readelf;
use chipbound_sealing::{Layout, LibraryPlace, Package, PackageReader, ReadAt, StartRecord, is_library};
use chipbound_wire::suite::{Aead, Format, Profile};
use chipbound_wire::{Code, Result};
use object::LittleEndian as LE;
use object::elf::{DT_INIT, Dyn64, FileHeader64, PF_R, PF_X, PT_DYNAMIC, PT_GNU_PROPERTY, PT_GNU_RELRO, PT_LOAD, PT_NOTE, ProgramHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use std::process::Command;

/// A stub is any bytes to a reader.
const STUB: &[u8] = &[0xc3; 300];
const ENTRY: u64 = 8;

/// How a library can be linked.
const BUILDS: [(&str, &[&str]); 7] = [
    ("usual", &[]),
    ("one-segment", &["-Wl,-z,noseparate-code"]),
    ("stripped", &["-s", "-Wl,--hash-style=sysv"]),
    ("now", &["-Wl,-z,now"]),
    ("no-note", &["-Wl,--build-id=none", "-Wl,-z,nognustack", "-fcf-protection=none", "-nostartfiles"]),
    ("no-init", &["-nostartfiles"]),
    ("no-init-no-room", &["-nostartfiles", "-Wl,--spare-dynamic-tags=1"]),
];

const SOURCE: &str = r#"
#include <stdlib.h>
static int numbers[64] = {3, 1, 2};
static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
int (*pointer)(const void *, const void *) = compare;
__attribute__((constructor)) static void early(void) { numbers[3] = 9; }
int exported(int n) { qsort(numbers, 64, sizeof *numbers, pointer); return numbers[63] + n; }
#ifdef RESOLVER
static int one(void) { return 1; }
static void *resolve(void) { return one; }
LINKAGE int chosen(void) __attribute__((ifunc("resolve")));
int call(void) { return chosen(); }
#endif
"#;

fn library(options: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, to) = (folder.path().join("library.c"), folder.path().join("library.so"));
    std::fs::write(&source, SOURCE).expect("written");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-Wl,-soname,library.so", "-o"]).arg(&to).arg(&source).args(options);
    let output = compiler.output().expect("a C compiler");
    assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(&to).expect("built")
}

/// A delivered package with the record in it.
fn placed(delivered: &[u8]) -> Vec<u8> {
    let record = StartRecord::plan_library(&delivered, STUB, ENTRY).expect("a plan").expect("a library");
    let mut file = delivered.to_vec();
    for (offset, bytes) in record.writes() {
        let end = offset as usize + bytes.len();
        file.resize(file.len().max(end), 0);
        file[offset as usize..end].copy_from_slice(&bytes);
    }
    file
}

fn opened(sealed: &Sealed, file: &[u8]) -> Result<Vec<u8>> {
    let package = Package::read(&file)?;
    let reader = PackageReader::new(file, package, &sealed.keys, &sealed.seal())?;
    let mut plain = vec![0; reader.size() as usize];
    reader.read(&mut plain, 0)?;
    Ok(plain)
}

fn headers(file: &[u8]) -> Vec<ProgramHeader64<LE>> {
    FileHeader64::<LE>::parse(file).expect("ELF").program_headers(LE, file).expect("headers").to_vec()
}

/// Where DT_INIT leads.
fn init(file: &[u8]) -> Option<u64> {
    let dynamic = headers(file).into_iter().find(|h| h.p_type(LE) == PT_DYNAMIC).expect("a dynamic section");
    let entries: &[Dyn64<LE>] = dynamic.dynamic(LE, file).expect("a dynamic section").expect("a dynamic section");
    entries.iter().find(|d| d.d_tag(LE) == u64::from(DT_INIT)).map(|d| d.d_val(LE))
}

/// What the stub of the library of that name has to make read-only.
fn relro(file: &[u8], name: &str) -> Option<(u64, u64)> {
    let header = headers(file).into_iter().find(|h| h.p_type(LE) == PT_GNU_RELRO).expect("a part that is read-only later");
    (name == "no-note").then(|| (header.p_vaddr(LE), header.p_memsz(LE)))
}

#[test]
fn a_placed_library_has_the_stub_called_first_and_opens_to_the_same_bytes() {
    for (name, options) in BUILDS {
        let plain = library(options);
        let sealed = seal(&plain, Aead::Aes256Gcm);
        assert_eq!(sealed.layout.format(), Format::ElfX8664, "{name}");
        let delivered = sealed.file();
        assert!(is_library(&plain).expect("read") && is_library(&delivered).expect("read"), "{name}");
        let file = placed(&delivered);
        assert!(opened(&sealed, &file).expect("opens") == plain, "{name}");

        let place = StartRecord::library_place(&delivered).expect("read").expect("a library");
        assert_eq!(place, LibraryPlace { address: place.address, init: init(&plain), read_only: relro(&plain, name) }, "{name}");
        assert_eq!(init(&file), Some(place.address + ENTRY), "{name}");
        let loads: Vec<_> = headers(&file).into_iter().filter(|h| h.p_type(LE) == PT_LOAD).collect();
        assert!(loads.windows(2).all(|w| w[0].p_vaddr(LE) + w[0].p_memsz(LE) <= w[1].p_vaddr(LE)), "{name}: they ascend");
        let stub = loads.last().expect("segments");
        assert_eq!((stub.p_vaddr(LE), stub.p_flags(LE), stub.p_offset(LE) % 4096), (place.address, PF_R | PF_X, 0), "{name}");
        assert_eq!(&file[stub.p_offset(LE) as usize..][..stub.p_filesz(LE) as usize], STUB, "{name}");
        assert!(loads.iter().rev().skip(1).all(|h| h.p_flags(LE) & PF_X == 0), "{name}: no sealed byte can be executed");
        let shown = readelf(&["-d", "--wide"], "shown", &file);
        assert!(shown.contains("Library soname: [library.so]") && !shown.contains("Warning"), "{name}: {shown}");
    }
}

#[test]
fn undone_it_is_byte_for_byte_the_delivered_package() {
    for (name, options) in BUILDS {
        let delivered = seal(&library(options), Aead::Aes256Gcm).file();
        let mut file = placed(&delivered);
        let record = Package::read(&file).expect("a package").start.expect("a record");
        assert_eq!((record.interpreter(), record.delivered()), (None, delivered.len() as u64));
        file.truncate(delivered.len());
        for (offset, bytes) in record.undo() {
            file[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
        }
        assert!(file == delivered, "{name}");
    }
}

#[test]
fn a_library_never_names_an_interpreter_and_a_program_has_no_stub() {
    let delivered = seal(&library(&[]), Aead::Aes256Gcm).file();
    assert_eq!(StartRecord::plan(&delivered, b"/interpreter").expect("a plan"), None);
    let program = seal(&crate::programs::build("no-library", &[]), Aead::Aes256Gcm).file();
    assert_eq!(StartRecord::plan_library(&program, STUB, ENTRY).expect("a plan"), None);
    assert_eq!(StartRecord::library_place(&program).expect("read"), None);
    assert!(!is_library(&program).expect("read") && !is_library(&b"text".as_slice()).expect("read"));
    for (stub, entry) in [(&[][..], 0), (&[0; 64 * 1024 + 1], 0), (STUB, 300)] {
        assert_eq!(StartRecord::plan_library(&delivered, stub, entry).expect_err("no stub").code, Code::Internal);
    }
}

/// Every byte of the changed places and of the record; a byte of the stub is the machine's.
#[test]
fn a_placed_library_with_any_other_byte_is_refused() {
    let sealed = seal(&library(&[]), Aead::Aes256Gcm);
    let delivered = sealed.file();
    let good = placed(&delivered);
    let writes = Package::read(&good).expect("a package").start.expect("a record").writes();
    let stub = delivered.len().next_multiple_of(4096);
    let edits = writes[..2].iter().flat_map(|(offset, bytes)| *offset as usize..*offset as usize + bytes.len());
    for at in edits.chain(delivered.len()..good.len()) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        let result = opened(&sealed, &bad);
        if (stub..stub + STUB.len()).contains(&at) {
            assert!(result.is_ok(), "the stub is not the vendor's");
            continue;
        }
        let code = result.expect_err(&format!("byte {at} counts for nothing")).code;
        assert!([Code::PlainPartsAltered, Code::PackageTruncated, Code::NotAPackage].contains(&code), "byte {at}: {code}");
    }
}

#[test]
fn a_library_of_which_something_runs_before_its_code_is_opened_is_refused() {
    let refused = |plain: &[u8], why: &str| {
        let refusal = Layout::of(Profile::Code, &plain).expect_err(why);
        assert_eq!(refusal.code, Code::UnsupportedProgram);
        assert!(refusal.detail.contains(why), "{refusal}");
    };
    for linkage in ["-DLINKAGE=", "-DLINKAGE=static"] {
        refused(&library(&["-DRESOLVER", linkage]), "IFUNC");
    }
    refused(&library(&["-fno-pic", "-mcmodel=large", "-Wl,-z,notext"]), "-fPIC");
    refused(&library(&["-Wl,-N", "-nostdlib"]), "-N");
    // Without a header to spare: what was one is something that nobody knows.
    let mut bare = library(&[]);
    for (number, header) in headers(&bare).iter().enumerate() {
        if [PT_NOTE, PT_GNU_PROPERTY, PT_GNU_RELRO].contains(&header.p_type(LE)) {
            bare[64 + number * 56..][..4].copy_from_slice(&0x6000_0000_u32.to_le_bytes());
        }
    }
    refused(&bare, "no program header to spare");
}

#[test]
fn a_librarys_record_is_the_one_of_the_contract() {
    let contract = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/chipbound.cddl")).expect("the contract");
    let contract = format!("checked = start-record\n{contract}");
    let delivered = seal(&library(&[]), Aead::Aes256Gcm).file();
    let (offset, appended) = StartRecord::plan_library(&delivered, STUB, ENTRY).expect("a plan").expect("a library").writes().remove(2);
    let stub = (offset.next_multiple_of(4096) - offset) as usize + STUB.len();
    cddl::validate_cbor_from_slice(&contract, &appended[stub..appended.len() - 16], None).expect("the record");
}
