//! Packages of real programs (source \[49\]\[65\]): they open to the same bytes, stay ELF files, and show no executable byte.

use crate::common::seal;
use chipbound_sealing::Layout;
use chipbound_wire::suite::{Aead, Format};

/// Programs that may be on the machine.
const INSTALLED: [&str; 8] =
    ["/bin/ls", "/usr/bin/python3", "/usr/bin/git", "/usr/bin/openssl", "/bin/bash", "/usr/bin/perl", "/usr/bin/gcc", "/usr/bin/gdb"];

fn installed() -> Vec<(String, Vec<u8>)> {
    INSTALLED.iter().filter_map(|path| Some((path.to_string(), std::fs::read(path).ok()?))).collect()
}

#[test]
fn installed_programs_open_to_the_same_bytes_with_both_ciphers() {
    assert!(!installed().is_empty());
    for (path, plain) in installed() {
        for aead in [Aead::Aes256Gcm, Aead::ChaCha20Poly1305] {
            let sealed = seal(&plain, aead);
            assert_eq!(sealed.layout.format(), Format::ElfX8664, "{path}: {:?}", Layout::of(Format::ElfX8664, &plain));
            let (opened, word) = sealed.open().expect("opens");
            assert!(opened == plain, "{path}");
            assert_eq!(word.plain_root.0, *blake3::hash(&plain).as_bytes());
        }
    }
}
