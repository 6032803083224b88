//! Whatever is changed in a package is refused by name (A9, A10, A15).

use crate::common::{Sealed, documents, keys, seal, seal_by, seal_with};
use crate::programs::{build, random};
use chipbound_sealing::{CHUNK_STEP, ContentKey, Layout, OnePass, Opener, Package, PackageReader, PageKeys, ReadAt, Sealer, plain_digest};
use chipbound_wire::limits::{MAX_CHUNK, PAGE, TAG};
use chipbound_wire::messages::Chunk;
use chipbound_wire::suite::{Aead, Format, Profile};
use chipbound_wire::{Code, Digest, Refusal, Result, SystemRandom};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// What opening and what reading the whole package say to a changed package.
fn refusals(sealed: &Sealed, word_of: &Sealed) -> [Code; 2] {
    let opened = sealed.open().expect_err("opening").code;
    let file = sealed.file();
    let package = || Package::read(&file);
    let read = package().and_then(|package| PackageReader::new(&file, package, &sealed.keys, &word_of.seal()));
    let read = read.expect_err("reading").code;
    let at_once = package().and_then(|package| OnePass::new(&file, package, &sealed.keys, &word_of.seal())).and_then(OnePass::settle);
    assert_eq!(at_once.expect_err("in one pass").code, read);
    [opened, read]
}

fn data(chunks: usize) -> Vec<u8> {
    (0..chunks * CHUNK_STEP).map(|i| (i / 7 % 256) as u8).collect()
}

#[test]
fn a_flipped_bit_in_any_page_or_tag_is_refused() {
    for plain in [data(5), build("altered-pages", &[])] {
        let good = seal(&plain, Aead::Aes256Gcm);
        let places = good.layout.sealed().iter().flat_map(|r| [r.offset, r.offset + r.len / 2, r.offset + r.len - 1]);
        for at in places.collect::<Vec<_>>() {
            let mut bad = good.clone();
            bad.body[at as usize] ^= 0x10;
            assert_eq!(refusals(&bad, &good), [Code::PageAltered; 2], "byte {at}");
        }
        for at in [0, good.tags.len() / 2, good.tags.len() - 1] {
            let mut bad = good.clone();
            bad.tags[at] ^= 1;
            assert_eq!(refusals(&bad, &good), [Code::PageAltered; 2], "tag byte {at}");
        }
    }
}

#[test]
fn swapped_pages_are_refused_even_with_their_tags() {
    let program = build("altered-swap", &["-static"]);
    for (plain, unit) in [(data(5), CHUNK_STEP), (program, PAGE)] {
        let good = seal(&plain, Aead::ChaCha20Poly1305);
        let range = good.layout.sealed()[0];
        let first = range.offset.next_multiple_of(unit as u64) as usize;
        let ordinal = first / unit - range.offset as usize / unit;
        let mut bad = good.clone();
        let (a, b) = bad.body[first..first + 2 * unit].split_at_mut(unit);
        a.swap_with_slice(b);
        let (a, b) = bad.tags[ordinal * TAG..(ordinal + 2) * TAG].split_at_mut(TAG);
        a.swap_with_slice(b);
        assert_eq!(refusals(&bad, &good), [Code::PageAltered; 2]);
    }
}

#[test]
fn a_duplicated_page_is_refused() {
    let good = seal(&data(5), Aead::Aes256Gcm);
    let mut bad = good.clone();
    bad.body.copy_within(0..CHUNK_STEP, CHUNK_STEP);
    bad.tags.copy_within(0..TAG, TAG);
    assert_eq!(refusals(&bad, &good), [Code::PageAltered; 2]);
}

#[test]
fn a_body_cut_or_extended_is_refused() {
    let good = seal(&data(5), Aead::Aes256Gcm);
    for size in [0, CHUNK_STEP, 4 * CHUNK_STEP] {
        let mut bad = good.clone();
        bad.body.truncate(size);
        assert_eq!(refusals(&bad, &good), [Code::PackageTruncated; 2], "{size}");
    }
    let mut bad = good.clone();
    bad.body.extend([0; CHUNK_STEP]);
    assert_eq!(refusals(&bad, &good), [Code::PackageTruncated; 2]);
    let file = good.file();
    for cut in [1, 31, 32, 33, file.len() / 2, file.len()] {
        assert_eq!(Package::read(&&file[..file.len() - cut]).expect_err("cut").code, Code::NotAPackage, "{cut}");
    }
}

#[test]
fn a_package_with_bytes_dropped_before_its_end_is_refused() {
    let file = seal(&data(2), Aead::Aes256Gcm).file();
    for at in [0, CHUNK_STEP, file.len() - 200] {
        let dropped = [&file[..at], &file[at + 16..]].concat();
        assert_eq!(Package::read(&dropped).expect_err("dropped").code, Code::PackageTruncated, "{at}");
    }
}

#[test]
fn chunks_out_of_order_are_refused_and_so_is_all_that_follows() {
    let sealed = seal(&data(12), Aead::Aes256Gcm);
    let chunk = |at: usize| Chunk {
        offset: (at * MAX_CHUNK) as u64,
        tags: &sealed.tags[at * 4 * TAG..][..4 * TAG],
        bytes: &sealed.body[at * MAX_CHUNK..][..MAX_CHUNK],
    };
    let tries: [&[usize]; 4] = [&[1], &[0, 0], &[0, 2], &[0, 1, 2, 2]];
    for order in tries {
        let mut opener = Opener::new(sealed.layout.clone(), &sealed.keys).expect("an opener");
        let mut plain = vec![7; 3];
        let (last, before) = order.split_last().expect("some");
        for at in before {
            opener.open_chunk(&chunk(*at), &mut plain).expect("in order");
        }
        let refused = opener.open_chunk(&chunk(*last), &mut plain).expect_err("out of order");
        assert!([Code::PageAltered, Code::PackageTruncated].contains(&refused.code), "{refused}");
        assert!(plain.is_empty());
        assert!(opener.open_chunk(&chunk(before.len() % 3), &mut plain).is_err(), "after a refusal");
        assert!(opener.finish().is_err());
    }
}

#[test]
fn chunks_of_a_wrong_size_or_with_tags_too_few_or_too_many_are_refused() {
    let sealed = seal(&data(12), Aead::Aes256Gcm);
    let open = |len: usize, tags: usize| {
        let mut opener = Opener::new(sealed.layout.clone(), &sealed.keys).expect("an opener");
        let chunk = Chunk { offset: 0, tags: &sealed.tags[..tags * TAG], bytes: &sealed.body[..len] };
        opener.open_chunk(&chunk, &mut Vec::new()).map_err(|e| e.code)
    };
    assert_eq!(open(MAX_CHUNK, 4), Ok(()));
    assert_eq!(open(CHUNK_STEP, 1), Ok(()));
    assert_eq!(open(MAX_CHUNK, 3), Err(Code::PageAltered));
    assert_eq!(open(MAX_CHUNK, 5), Err(Code::PageAltered));
    assert_eq!(open(MAX_CHUNK - 1, 3), Err(Code::Malformed));
    assert_eq!(open(MAX_CHUNK + CHUNK_STEP, 5), Err(Code::Malformed));
    assert_eq!(open(0, 0), Err(Code::PackageTruncated));
}

#[test]
fn every_class_of_plain_part_is_refused_when_changed() {
    let plain = build("altered-plain", &["-Wl,-rpath,/nowhere", "-rdynamic"]);
    let good = seal(&plain, Aead::Aes256Gcm);
    let section = |name: &str| {
        let output = crate::programs::readelf(&["-SW"], "altered-section", &plain);
        let line = output.lines().find(|l| l.split_whitespace().any(|w| w == name)).unwrap_or_else(|| panic!("{name} in {output}"));
        let after = line.split(name).nth(1).expect("fields after the name");
        usize::from_str_radix(after.split_whitespace().nth(2).expect("an offset"), 16).expect("hexadecimal")
    };
    let places = [
        ("entry point", 24),
        ("segment flags", 64 + 4),
        ("segment address", 64 + 16),
        ("interpreter", section(".interp") + 3),
        ("dynamic section", section(".dynamic") + 8),
        ("RPATH", section(".dynstr") + 5),
        ("symbol", section(".dynsym") + 24 + 8),
        ("relocation", section(".rela.dyn") + 16),
        ("data", section(".data") + 1),
        ("init array", section(".init_array") + 1),
        ("GOT", section(".got") + 1),
        ("read-only data", section(".rodata") + 1),
        ("note", section(".note.gnu.build-id") + 17),
        ("section header", plain.len() - 40),
    ];
    for (what, at) in places {
        let mut bad = good.clone();
        bad.body[at] ^= 4;
        assert_eq!(refusals(&bad, &good), [Code::PlainPartsAltered; 2], "{what} at {at}");
    }
    for patch in good.layout.patches() {
        let mut bad = good.clone();
        bad.body[patch.offset as usize] = patch.original;
        assert_eq!(refusals(&bad, &good), [Code::PlainPartsAltered; 2], "execute flag given back");
    }
}

#[test]
fn another_layout_over_the_same_body_is_refused() {
    let plain = build("altered-layout", &[]);
    let good = seal(&plain, Aead::Aes256Gcm);
    // The CBOR of the layout with the original byte of its one patch changed from R|X to R|W|X.
    let mut encoded = good.layout.encode();
    assert_eq!(encoded.last(), Some(&5));
    *encoded.last_mut().expect("not empty") = 7;
    let mut bad = good.clone();
    bad.layout = Layout::decode(&encoded).expect("of the right form");
    assert_eq!(refusals(&bad, &good), [Code::PlainPartsAltered; 2]);
}

#[test]
fn an_altered_constant_is_refused() {
    let plain = build("altered-constant", &[]);
    let good = seal_by(&plain, Layout::of(Profile::CodeAndConstants, &plain).expect("a layout"), Aead::Aes256Gcm);
    let text = plain.windows(5).position(|window| window == b"%d %s").expect("the program's constant");
    let mut bad = good.clone();
    bad.body[text] ^= 1;
    assert_eq!(refusals(&bad, &good), [Code::PageAltered; 2]);
}

#[test]
fn a_page_moved_to_another_program_is_refused() {
    let (mut one, two) = (seal(&data(2), Aead::Aes256Gcm), seal(&data(2), Aead::Aes256Gcm));
    one.body[..CHUNK_STEP].copy_from_slice(&two.body[..CHUNK_STEP]);
    one.tags[..TAG].copy_from_slice(&two.tags[..TAG]);
    assert_eq!(one.open().expect_err("moved").code, Code::PageAltered);
}

#[test]
fn pages_open_only_with_their_content_key_package_id_plain_digest_cipher_and_format() {
    let plain = build("altered-keys", &[]);
    let layout = Layout::detect(&plain).expect("a layout");
    let digest = plain_digest(&plain, &layout).expect("digest");
    let (content, id) = (ContentKey::generate(&mut SystemRandom), Digest([1; 32]));
    let derive = |content: &ContentKey, id, digest, aead, format| PageKeys::derive(content, id, digest, aead, format);
    let good = derive(&content, &id, &digest, Aead::Aes256Gcm, Format::ElfX8664);
    let sealed = seal_with(&plain, layout, good.clone());
    sealed.open().expect("with its own keys");
    let other = Digest([2; 32]);
    for keys in [
        derive(&ContentKey::generate(&mut SystemRandom), &id, &digest, Aead::Aes256Gcm, Format::ElfX8664),
        derive(&content, &other, &digest, Aead::Aes256Gcm, Format::ElfX8664),
        derive(&content, &id, &other, Aead::Aes256Gcm, Format::ElfX8664),
        derive(&content, &id, &digest, Aead::ChaCha20Poly1305, Format::ElfX8664),
    ] {
        assert_ne!(keys.commitment(), good.commitment());
        assert_eq!(Sealed { keys, ..sealed.clone() }.open().expect_err("other keys").code, Code::PageAltered);
    }
    let data = derive(&content, &id, &digest, Aead::Aes256Gcm, Format::Data);
    assert_ne!(data.commitment(), good.commitment());
    assert_eq!(Sealed { keys: data, ..sealed }.open().expect_err("another format").code, Code::TermsMismatch);
}

#[test]
fn the_same_plaintext_sealed_twice_shares_no_unit() {
    let plain = vec![0; 3 * CHUNK_STEP];
    let (one, two) = (seal(&plain, Aead::Aes256Gcm), seal(&plain, Aead::Aes256Gcm));
    let units = one.body.chunks(64).chain(two.body.chunks(64));
    let distinct: std::collections::HashSet<_> = units.collect();
    assert_eq!(distinct.len(), 2 * plain.len() / 64);
}

#[test]
fn a_program_that_changes_while_it_is_sealed_is_refused() {
    let plain = build("altered-while", &[]);
    let layout = Layout::detect(&plain).expect("a layout");
    let keys = keys(&layout, &plain, Aead::Aes256Gcm);
    let seal = |changed: &[u8]| -> Result<()> {
        let mut sealer = Sealer::new(&layout, &keys)?;
        let mut body = changed.to_vec();
        body.chunks_mut(MAX_CHUNK).try_for_each(|chunk| sealer.seal_chunk(chunk, &mut Vec::new()))?;
        sealer.finish().map(|_| ())
    };
    seal(&plain).expect("unchanged");
    let mut changed = plain.clone();
    changed[9] ^= 1;
    assert_eq!(seal(&changed).expect_err("a plain byte").code, Code::Conflict);
    let flags = layout.patches()[0].offset as usize;
    changed = plain.clone();
    changed[flags] ^= 2;
    assert_eq!(seal(&changed).expect_err("flags").code, Code::Conflict);
    assert_eq!(seal(&[plain.as_slice(), &[0]].concat()).expect_err("longer").code, Code::PackageTruncated);
    assert_eq!(seal(&plain[..CHUNK_STEP.min(plain.len() - 1)]).expect_err("shorter").code, Code::Malformed);
    assert_eq!(plain_digest(&plain[1..].to_vec(), &layout).expect_err("another size").code, Code::Conflict);
}

/// A file in which a byte flips after so many reads.
struct Flips {
    bytes: Vec<u8>,
    at: u64,
    reads_before: Cell<usize>,
}

impl ReadAt for Flips {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.bytes.read_exact_at(buf, offset)?;
        let left = self.reads_before.get();
        self.reads_before.set(left.saturating_sub(1));
        if left == 0
            && let Some(byte) = self.at.checked_sub(offset).and_then(|at| buf.get_mut(at as usize))
        {
            *byte ^= 1;
        }
        Ok(())
    }
}

#[test]
fn a_byte_that_changes_between_the_first_pass_and_a_read_is_refused() {
    let plain = build("altered-later", &[]);
    let sealed = seal(&plain, Aead::Aes256Gcm);
    let page = sealed.layout.sealed()[0].offset;
    for at in [0, page, plain.len() as u64 - 1] {
        let file = sealed.file();
        let package = Package::read(&file).expect("a package");
        let passes = plain.len().div_ceil(MAX_CHUNK);
        let flips = Flips { bytes: file, at, reads_before: Cell::new(passes) };
        let reader = PackageReader::new(flips, package, &sealed.keys, &sealed.seal()).expect("the first pass is good");
        let mut byte = [0];
        let error = reader.read_exact_at(&mut byte, at).expect_err("changed");
        let refusal = error.get_ref().and_then(|e| e.downcast_ref::<Refusal>()).expect("a refusal inside");
        assert_eq!((refusal.code, byte), (Code::PageAltered, [0]));
    }
}

#[test]
fn what_was_read_before_a_byte_changed_is_not_settled() {
    let plain = data(3);
    let sealed = seal(&plain, Aead::Aes256Gcm);
    let file = sealed.file();
    let again = |changed: bool| {
        let reads = AtomicUsize::new(0);
        let one = OnePass::new(Changing { bytes: &file, changed, reads: &reads }, Package::read(&file)?, &sealed.keys, &sealed.seal())?;
        let mut middle = vec![0; CHUNK_STEP];
        one.read(&mut middle, CHUNK_STEP as u64).expect("the first time");
        assert!(middle == plain[CHUNK_STEP..2 * CHUNK_STEP]);
        let second = one.read(&mut middle, CHUNK_STEP as u64);
        one.settle().and(second)
    };
    again(false).expect("settled");
    assert_eq!(again(true).expect_err("another block came").code, Code::PageAltered);
}

#[test]
fn a_whole_block_is_opened_where_it_lies_or_not_at_all() {
    let plain = build("altered-block", &["-static"]);
    let good = seal(&plain, Aead::Aes256Gcm);
    let sealed = good.layout.sealed()[0];
    let base = (sealed.offset as usize + CHUNK_STEP).next_multiple_of(CHUNK_STEP);
    assert!((base + CHUNK_STEP) as u64 <= sealed.end(), "a block of code alone");
    for changed in [false, true] {
        let mut file = good.file();
        file[base + CHUNK_STEP - 1] ^= u8::from(changed);
        let one = OnePass::new(&file, Package::read(&file).expect("a package"), &good.keys, &good.seal()).expect("its table is good");
        let (mut block, mut page) = (vec![1; CHUNK_STEP], vec![1; PAGE]);
        let refused = one.read(&mut block, base as u64).err().map(|refusal| refusal.code);
        assert_eq!(refused, changed.then_some(Code::PageAltered));
        assert!(if changed { block.iter().all(|byte| *byte == 0) } else { block == plain[base..base + CHUNK_STEP] });
        one.read(&mut page, base as u64).expect("the first page of the block was not changed");
        assert!(page == plain[base..base + PAGE]);
    }
}

/// A package whose second block, once it was read, is another one.
struct Changing<'a> {
    bytes: &'a [u8],
    changed: bool,
    reads: &'a AtomicUsize,
}

impl ReadAt for Changing<'_> {
    fn size(&self) -> u64 {
        self.bytes.size()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.bytes.read_exact_at(buf, offset)?;
        if offset == CHUNK_STEP as u64 && self.reads.fetch_add(1, SeqCst) > 0 && self.changed {
            buf[7] ^= 1;
        }
        Ok(())
    }
}

#[test]
fn a_byte_that_changes_after_the_package_was_taken_at_once_has_no_effect() {
    let plain = build("altered-later", &[]);
    let sealed = seal(&plain, Aead::Aes256Gcm);
    for at in [0, sealed.layout.sealed()[0].offset, plain.len() as u64 - 1] {
        let file = sealed.file();
        let package = Package::read(&file).expect("a package");
        let flips = Flips { bytes: file, at, reads_before: Cell::new(plain.len().div_ceil(MAX_CHUNK)) };
        let reader = PackageReader::at_once(flips, package, &sealed.keys, &sealed.seal()).expect("the first pass is good");
        let mut byte = [0];
        reader.read_exact_at(&mut byte, at).expect("opened");
        assert_eq!(byte[0], plain[at as usize]);
    }
    let mut file = sealed.file();
    let package = Package::read(&file).expect("a package");
    file[sealed.layout.sealed()[0].offset as usize] ^= 1;
    assert_eq!(PackageReader::at_once(&file, package, &sealed.keys, &sealed.seal()).expect_err("refused").code, Code::PageAltered);
}

#[test]
fn a_seal_about_other_keys_or_another_table_is_refused() {
    let sealed = seal(&data(1), Aead::Aes256Gcm);
    let other = seal(&vec![1; CHUNK_STEP + 1], Aead::Aes256Gcm);
    let file = sealed.file();
    let read = |seal| {
        let package = Package::read(&file).expect("a package");
        PackageReader::new(&file, package, &sealed.keys, &seal).expect_err("refused").code
    };
    assert_eq!(read(other.seal()), Code::SealMismatch);
    let zero = Digest([0; 32]);
    let mut seal = sealed.seal();
    seal.table_root = zero;
    assert_eq!(read(seal), Code::PageAltered);
    let mut seal = sealed.seal();
    seal.body_root = zero;
    assert_eq!(read(seal), Code::PageAltered);
    let mut seal = sealed.seal();
    seal.table_size += 1;
    assert_eq!(read(seal), Code::PackageTruncated);
}

#[test]
fn hostile_ends_of_packages_never_panic_and_never_pass_the_seal() {
    let plain = build("altered-ends", &["-Wl,-z,noseparate-code"]);
    let good = seal(&plain, Aead::Aes256Gcm);
    let (file, word) = (good.file(), good.seal());
    let table_end = file.len() - 32 - chipbound_wire::bounded::encode(&documents()).len();
    let mut state = 3;
    for round in 0..4000 {
        let mut bad = file.clone();
        let (from, to) = match round % 4 {
            0 => (good.body.len(), table_end),
            1 => (file.len() - 24, file.len()),
            _ => (good.body.len(), good.body.len() + good.layout.encode().len()),
        };
        let at = from + random(&mut state) as usize % (to - from);
        bad[at] ^= 1 << (random(&mut state) % 8);
        let read = Package::read(&bad).and_then(|package| PackageReader::new(&bad, package, &good.keys, &word));
        assert!(read.is_err(), "byte {at}");
    }
}

#[test]
fn layouts_that_could_mislead_are_refused() {
    let page = PAGE as u64;
    // A map of format, body size, sealed ranges and patches, in CBOR.
    let layout = |format: u8, size: u64, ranges: &[(u64, u64)], patches: &[(u64, u8)]| {
        let mut bytes = vec![0xa4, 0, format, 1, 0x1b];
        bytes.extend(size.to_be_bytes());
        bytes.extend([2, 0x80 + ranges.len() as u8]);
        for (offset, len) in ranges {
            bytes.extend([&[0x82, 0x1b], offset.to_be_bytes().as_slice(), &[0x1b], &len.to_be_bytes()].concat());
        }
        bytes.extend([3, 0x80 + patches.len() as u8]);
        for (offset, original) in patches {
            bytes.extend([&[0x82, 0x1b], offset.to_be_bytes().as_slice(), &[*original]].concat());
        }
        let refused = Layout::decode(&bytes).expect_err("misleading");
        (refused.code, refused.detail)
    };
    // A good one fails only for its encoding, which is not the shortest.
    let shortest = "the layout is not in its shortest encoding";
    assert_eq!(layout(2, 9 * page, &[(page, page)], &[(68, 5)]), (Code::Malformed, shortest.to_owned()));
    for (format, ranges, patches) in [
        (2, vec![], vec![]),
        (2, vec![(page, 0)], vec![]),
        (2, vec![(8 * page, 2 * page)], vec![]),
        (2, vec![(page, u64::MAX)], vec![]),
        (2, vec![(2 * page, page), (page, page)], vec![]),
        (2, vec![(page, 2 * page), (2 * page, page)], vec![]),
        (2, vec![(0, 4), (8, 4), (16, 4), (24, 4)], vec![]),
        (2, vec![(page, page)], vec![(page, 5)]),
        (2, vec![(page, page)], vec![(68, 4)]),
        (2, vec![(page, page)], vec![(68, 5), (68, 5)]),
        (2, vec![(page, page)], vec![(9 * page, 5)]),
        (1, vec![(0, page)], vec![]),
        (1, vec![(0, page), (page, 8 * page)], vec![]),
        (1, vec![(0, 9 * page)], vec![(68, 5)]),
    ] {
        let (code, detail) = layout(format, 9 * page, &ranges, &patches);
        assert!(code == Code::Malformed && detail != shortest, "{ranges:?} {patches:?}: {detail}");
    }
    assert_eq!(layout(1, 1 << 41, &[(0, 1 << 41)], &[]).0, Code::TooLarge);
    assert_eq!(Layout::decode(&vec![0; 70_000]).expect_err("too long").code, Code::TooLarge);
}
