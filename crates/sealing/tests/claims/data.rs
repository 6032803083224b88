//! Packages of data (source \[63\]): what was sealed opens to the same bytes, and to nothing else.

use crate::common::seal;
use chipbound_sealing::{DataReader, Package, PackageReader, PageKeys, ReadAt};
use chipbound_wire::Code;
use chipbound_wire::documents::Seal;
use chipbound_wire::suite::{Aead, Format};
use std::cell::RefCell;

const SIZES: [usize; 8] = [0, 1, 15, 65_535, 65_536, 65_537, 262_144, 700_001];

#[test]
fn data_of_any_size_opens_to_the_same_bytes_with_both_ciphers() {
    for aead in [Aead::Aes256Gcm, Aead::ChaCha20Poly1305] {
        for size in SIZES {
            let plain: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let sealed = seal(&plain, aead);
            assert_eq!(sealed.layout.format(), Format::Data);
            assert_eq!(sealed.layout.units(), size.div_ceil(65_536) as u64);
            let (opened, word) = sealed.open().expect("opens");
            assert_eq!(opened, plain);
            assert_eq!(word.plain_root.0, *blake3::hash(&plain).as_bytes());
            assert_eq!((word.roots, word.plain_size), (sealed.roots, size as u64));
        }
    }
}

#[test]
fn a_package_reader_gives_any_part_of_the_plaintext() {
    for size in SIZES {
        let plain: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let sealed = seal(&plain, Aead::Aes256Gcm);
        let file = sealed.file();
        let package = Package::read(&file).expect("a package");
        let lazy = DataReader::new(&file, package.clone(), &sealed.keys, &sealed.seal()).expect("verified");
        let reader = PackageReader::new(&file, package, &sealed.keys, &sealed.seal()).expect("verified");
        for (start, end) in [(0, size), (size / 3, size), (size / 2, size / 2 + 1), (65_000.min(size), 66_000.min(size))] {
            let mut part = vec![0; end.min(size) - start];
            reader.read_exact_at(&mut part, start as u64).expect("read");
            assert_eq!(part, plain[start..end.min(size)]);
            part.fill(0);
            lazy.read_exact_at(&mut part, start as u64).expect("read");
            assert_eq!(part, plain[start..end.min(size)]);
        }
        assert!(lazy.read_exact_at(&mut [0], size as u64).is_err());
        assert!(reader.read_exact_at(&mut [0], size as u64).is_err());
    }
}

/// A file that remembers which of its bytes were read.
struct Watched(Vec<u8>, RefCell<Vec<(u64, usize)>>);

impl ReadAt for Watched {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.1.borrow_mut().push((offset, buf.len()));
        self.0.read_exact_at(buf, offset)
    }
}

#[test]
fn a_data_reader_reads_the_chunks_that_are_wanted_and_nothing_else() {
    let plain: Vec<u8> = (0..2_000_000_u32).map(|i| (i % 251) as u8).collect();
    let sealed = seal(&plain, Aead::Aes256Gcm);
    let file = Watched(sealed.file(), RefCell::default());
    let package = Package::read(&file).expect("a package");
    file.1.borrow_mut().clear();
    let reader = DataReader::new(&file, package, &sealed.keys, &sealed.seal()).expect("the table is good");
    assert_eq!(*file.1.borrow(), [], "nothing is read before it is wanted");
    let mut part = vec![0; 70_000];
    reader.read_exact_at(&mut part, 1_000_000).expect("read");
    assert_eq!(part, plain[1_000_000..1_070_000]);
    assert_eq!(*file.1.borrow(), [(15 << 16, 1 << 16), (16 << 16, 1 << 16)]);
    reader.read_exact_at(&mut [], 5).expect("nothing of nothing");
    assert_eq!(reader.memory(), 2_000_000_u64.div_ceil(1 << 16) * 16);
}

#[test]
fn a_data_reader_gives_no_byte_of_an_altered_chunk_and_every_byte_of_the_others() {
    let plain: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
    let sealed = seal(&plain, Aead::ChaCha20Poly1305);
    let mut file = sealed.file();
    let package = Package::read(&file).expect("a package");
    file[70_000] ^= 1;
    file.copy_within((3 << 16)..(3 << 16) + 65_536, 2 << 16); // Another chunk of the same package in this one's place.
    let reader = DataReader::new(&file, package, &sealed.keys, &sealed.seal()).expect("the table is good");
    for (chunk, good) in [(0, true), (1, false), (2, false), (3, true), (4, true)] {
        let mut byte = [7; 9];
        let read = reader.read(&mut byte, (chunk << 16) + 5);
        match good {
            true => assert_eq!(read.map(|()| byte.to_vec()).expect("read"), plain[((chunk << 16) + 5) as usize..][..9]),
            false => assert_eq!((read.expect_err("altered").code, byte), (Code::PageAltered, [0; 9]), "{chunk}"),
        }
    }
    let mut across = vec![7; 100_000];
    assert_eq!(reader.read(&mut across, 0).expect_err("altered").code, Code::PageAltered);
    assert!(across.iter().all(|b| *b == 0), "not even the good chunk before it");
}

#[test]
fn a_data_reader_refuses_another_table_other_keys_and_programs() {
    let plain = vec![7; 300_000];
    let (sealed, other) = (seal(&plain, Aead::Aes256Gcm), seal(&plain, Aead::Aes256Gcm));
    let file = sealed.file();
    let package = Package::read(&file).expect("a package");
    let code =
        |package: &Package, keys: &PageKeys, seal: Seal| DataReader::new(&file, package.clone(), keys, &seal).expect_err("refused").code;
    for tag in 0..package.tags.len() {
        let mut bad = package.clone();
        bad.tags[tag] ^= 0x40;
        assert_eq!(code(&bad, &sealed.keys, sealed.seal()), Code::PageAltered, "{tag}");
    }
    let shorter = seal(&plain[1..], Aead::Aes256Gcm);
    assert_eq!(code(&package, &sealed.keys, Seal { plain_digest: sealed.seal().plain_digest, ..shorter.seal() }), Code::PackageTruncated);
    assert_eq!(code(&package, &shorter.keys, sealed.seal()), Code::SealMismatch);
    assert_eq!(code(&package, &sealed.keys, other.seal()), Code::PageAltered, "another encryption of the same data");
    let reader = DataReader::new(&file, package, &other.keys, &sealed.seal()).expect("keys show when they are used");
    assert_eq!(reader.read(&mut [0], 0).expect_err("other keys").code, Code::PageAltered);
    let program = seal(&std::fs::read("/bin/ls").expect("a program of every Debian"), Aead::Aes256Gcm);
    let file = program.file();
    let package = Package::read(&file).expect("a package");
    assert_eq!(DataReader::new(&file, package, &program.keys, &program.seal()).expect_err("a program").code, Code::UnsupportedProgram);
}
