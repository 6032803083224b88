//! Packages of data (source \[63\]): what was sealed opens to the same bytes, and to nothing else.

use crate::common::seal;
use chipbound_sealing::{Package, PackageReader, ReadAt};
use chipbound_wire::suite::{Aead, Format};

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
        let reader = PackageReader::new(file, package, &sealed.keys, &sealed.seal()).expect("verified");
        for (start, end) in [(0, size), (size / 3, size), (size / 2, size / 2 + 1), (65_000.min(size), 66_000.min(size))] {
            let mut part = vec![0; end.min(size) - start];
            reader.read_exact_at(&mut part, start as u64).expect("read");
            assert_eq!(part, plain[start..end.min(size)]);
        }
        assert!(reader.read_exact_at(&mut [0], size as u64).is_err());
    }
}
