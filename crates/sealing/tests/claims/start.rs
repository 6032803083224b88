//! The start record: a placed package names an interpreter and is still the delivered one to every reader; whatever else is
//! changed in its name is refused (A10).

use crate::common::{Sealed, seal};
use crate::programs::{build, readelf};
use chipbound_sealing::{Package, PackageReader, ReadAt, StartRecord};
use chipbound_wire::limits::MAX_INTERPRETER;
use chipbound_wire::suite::Aead;
use chipbound_wire::{Code, Result};
use object::LittleEndian as LE;
use object::elf::{FileHeader64, PT_GNU_PROPERTY, PT_INTERP, PT_NOTE, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};

const INTERPRETER: &[u8] = b"/opt/chipbound/interpreter";

/// A delivered package with the record in it.
fn placed(delivered: &[u8], interpreter: &[u8]) -> Vec<u8> {
    let record = StartRecord::plan(&delivered, interpreter).expect("a plan").expect("a header to spare");
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

#[test]
fn the_kernel_reads_the_appended_name_and_every_reader_the_delivered_bytes() {
    for options in [&[] as &[&str], &["-no-pie"], &["-static"], &["-static-pie"]] {
        let plain = build("start", options);
        let sealed = seal(&plain, Aead::Aes256Gcm);
        let file = placed(&sealed.file(), INTERPRETER);
        assert!(opened(&sealed, &file).expect("opens") == plain, "{options:?}");
        // What load_elf_binary does: the first PT_INTERP, its bytes by their offset in the file.
        let headers = headers(&file);
        let named = headers.iter().find(|h| h.p_type(LE) == PT_INTERP).expect("PT_INTERP");
        let at = named.p_offset(LE) as usize;
        assert_eq!(&file[at..at + named.p_filesz(LE) as usize], [INTERPRETER, &[0]].concat(), "{options:?}");
        let shown = readelf(&["-d", "-l", "--wide"], "start", &file);
        assert!(shown.contains("[Requesting program interpreter: /opt/chipbound/interpreter]"), "{shown}");
    }
}

#[test]
fn tools_read_the_dynamic_section_as_before() {
    let plain = build("start-dynamic", &[]);
    let delivered = seal(&plain, Aead::Aes256Gcm).file();
    let shown = readelf(&["-d", "--wide"], "same", &placed(&delivered, INTERPRETER));
    assert!(shown.contains("NEEDED") && shown == readelf(&["-d", "--wide"], "same", &delivered), "{shown}");
}

#[test]
fn undone_it_is_byte_for_byte_the_delivered_package() {
    let delivered = seal(&build("start-undone", &["-static"]), Aead::Aes256Gcm).file();
    let mut file = placed(&delivered, INTERPRETER);
    let record = Package::read(&file).expect("a package").start.expect("a record");
    assert_eq!(record.interpreter(), Some(INTERPRETER));
    assert_eq!(record.delivered(), delivered.len() as u64);
    file.truncate(delivered.len());
    for (offset, bytes) in record.undo() {
        file[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
    }
    assert!(file == delivered);
    assert!(Package::read(&file).expect("a package").start.is_none());
}

#[test]
fn a_static_program_spends_a_note_and_a_dynamic_one_its_own_name() {
    let kind = |options: &[&str]| {
        let delivered = seal(&build("start-spent", options), Aead::Aes256Gcm).file();
        let (before, after) = (headers(&delivered), headers(&placed(&delivered, INTERPRETER)));
        let changed: Vec<_> = (0..before.len()).filter(|i| before[*i].p_offset(LE) != after[*i].p_offset(LE)).collect();
        assert_eq!(changed.len(), 1, "one header changes");
        before[changed[0]].p_type(LE)
    };
    assert_eq!(kind(&[]), PT_INTERP);
    let spent = kind(&["-static"]);
    assert!(spent == PT_GNU_PROPERTY || spent == PT_NOTE, "{spent:x}");
}

#[test]
fn data_and_paths_that_are_none_get_no_record() {
    let data = seal(&[7; 100_000], Aead::Aes256Gcm).file();
    assert_eq!(StartRecord::plan(&data, INTERPRETER).expect("no program"), None);
    let program = seal(&build("start-paths", &[]), Aead::Aes256Gcm).file();
    for path in [&b""[..], b"relative", b"/with\0nul", &[b'/'; MAX_INTERPRETER + 1]] {
        assert_eq!(StartRecord::plan(&program, path).expect_err("no path").code, Code::ConfigInvalid);
    }
    assert!(StartRecord::plan(&program, &[b'/'; MAX_INTERPRETER]).expect("longest").is_some());
}

/// The interpreter's header pointed anywhere else than at the appended path, or its other fields changed.
#[test]
fn an_edited_interpreter_header_is_refused() {
    let sealed = seal(&build("start-edited", &[]), Aead::Aes256Gcm);
    let good = placed(&sealed.file(), INTERPRETER);
    let record = Package::read(&good).expect("a package").start.expect("a record");
    let (at, header) = record.writes().remove(0);
    for byte in 0..header.len() {
        let mut bad = good.clone();
        bad[at as usize + byte] ^= 1;
        assert_eq!(opened(&sealed, &bad).expect_err("edited").code, Code::PlainPartsAltered, "byte {byte}");
    }
}

/// Every byte of the record, its originals included, and of all other plain parts counts.
#[test]
fn a_record_with_any_other_byte_is_refused() {
    let sealed = seal(&build("start-record", &[]), Aead::Aes256Gcm);
    let delivered = sealed.file();
    let good = placed(&delivered, INTERPRETER);
    for at in delivered.len()..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        let in_path = at < delivered.len() + INTERPRETER.len();
        match opened(&sealed, &bad) {
            // Another path of the same length: a well-formed record, which the processor compares with its own interpreter.
            Ok(_) if in_path && at > delivered.len() => {
                let named = Package::read(&bad).expect("a package").start.expect("a record");
                assert_ne!(named.interpreter(), Some(INTERPRETER));
            }
            Ok(_) => panic!("byte {} of the record counts for nothing", at - delivered.len()),
            Err(refusal) => assert!(
                [Code::PlainPartsAltered, Code::PackageTruncated, Code::NotAPackage].contains(&refusal.code),
                "byte {}: {refusal}",
                at - delivered.len()
            ),
        }
    }
    for at in [0x18, 0x40] {
        let mut bad = good.clone();
        bad[at] ^= 1; // The entry point, and the first program header.
        assert!(opened(&sealed, &bad).is_err(), "byte {at}");
    }
}

/// A record in the right form that would undo what somebody else changed: the reader makes its own and compares.
#[test]
fn a_record_for_another_place_is_refused() {
    let sealed = seal(&build("start-place", &[]), Aead::Aes256Gcm);
    let delivered = sealed.file();
    let record = StartRecord::plan(&delivered, INTERPRETER).expect("a plan").expect("a header");
    let (offset, original) = record.undo().remove(0);
    let hostile = |offset: u64, original: &[u8], changed: &[u8], size: u64| {
        let mut file = delivered.clone();
        file[offset as usize..offset as usize + changed.len()].copy_from_slice(changed);
        let mut form = minicbor::Encoder::new(Vec::new());
        form.map(2).expect("cbor").u8(0).expect("cbor").u64(size).expect("cbor").u8(1).expect("cbor").array(1).expect("cbor");
        form.array(2).expect("cbor").u64(offset).expect("cbor").bytes(original).expect("cbor");
        let form = form.into_writer();
        let length = (form.len() as u64).to_be_bytes();
        [&*file, INTERPRETER, &[0], &*form, b"CBSTART\x01", &length].concat()
    };
    let size = delivered.len() as u64;
    let (_, named) = record.writes().remove(0);
    assert!(opened(&sealed, &hostile(offset, &original, &named, size)).is_ok(), "the form is right");
    // The entry point of the ELF header; the next program header; beyond the end; another end of the delivered package.
    let entry = &delivered[0x18..0x20];
    let next = &delivered[offset as usize + 56..offset as usize + 112];
    for bad in [
        hostile(0x18, entry, &[0x41; 8], size),
        hostile(offset + 56, next, &named, size),
        hostile(offset, &original, &named, size - 1),
        hostile(offset, &original, &named, size + 1000),
        hostile(offset, &original, &original, size),
        hostile(offset, &[], &named, size),
    ] {
        let refusal = opened(&sealed, &bad).expect_err("another place");
        assert!([Code::PlainPartsAltered, Code::PackageTruncated, Code::NotAPackage].contains(&refusal.code), "{refusal}");
    }
}

#[test]
fn no_end_of_a_file_makes_a_reader_take_more_than_it_says() {
    for length in [0, 1, 1024, 1025, 1 << 40, u64::MAX] {
        for before in [0, 10, 2000] {
            let file = [vec![0xa2; before], b"CBSTART\x01".to_vec(), length.to_be_bytes().to_vec()].concat();
            assert_eq!(Package::read(&file).expect_err("no record").code, Code::PlainPartsAltered, "{length} {before}");
        }
    }
}

#[test]
fn a_record_is_the_one_of_the_contract() {
    let contract = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/chipbound.cddl")).expect("the contract");
    let contract = format!("checked = start-record\n{contract}");
    let delivered = seal(&build("start-contract", &[]), Aead::Aes256Gcm).file();
    let (_, appended) = StartRecord::plan(&delivered, INTERPRETER).expect("a plan").expect("a header").writes().remove(1);
    let record = &appended[INTERPRETER.len() + 1..appended.len() - 16];
    cddl::validate_cbor_from_slice(&contract, record, None).expect("the record");
    assert!(cddl::validate_cbor_from_slice(&contract, &[0xa1, 0x00, 0x01], None).is_err(), "a record without its places");
}
