//! Measures one core: `cargo run --release -p chipbound-sealing --example throughput`.

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use chipbound_sealing::{
    CHUNK_STEP, ContentKey, Decapsulate, Layout, Opener, Package, PackageReader, PageKeys, ReadAt, ReleaseSecret, Sealer, SealingKeyPair,
    open_wrap, plain_digest, wrap_common,
};
use chipbound_wire::bounded::Bytes;
use chipbound_wire::documents::{PackageDocuments, Seal, Terms, Wrap};
use chipbound_wire::limits::{MAX_CHUNK, TAG};
use chipbound_wire::messages::Chunk;
use chipbound_wire::suite::{Aead, Format, Kem, KeyMode, Profile, Suite};
use chipbound_wire::{AccountId, Digest, KeyId, OrderId, Result, SystemRandom};
use std::hint::black_box;
use std::time::{Duration, Instant};

const SIZE: usize = 256 << 20;

fn main() -> Result<()> {
    bare();
    for aead in Aead::ALL {
        body("data", *aead, &Layout::data(SIZE as u64)?, &mut vec![0x5a; SIZE])?;
        let mut program = program();
        let layout = Layout::of(Profile::Code, &program)?;
        body("program", *aead, &layout, &mut program)?;
    }
    Kem::ALL.iter().try_for_each(|kem| wraps(*kem))
}

/// The best of five runs, in MB/s.
fn best(bytes: usize, mut run: impl FnMut() -> Duration) -> f64 {
    let fastest = (0..5).map(|_| run()).min().expect("five runs");
    bytes as f64 / fastest.as_secs_f64() / 1e6
}

/// The AEADs and BLAKE3 alone.
fn bare() {
    let mut bytes = vec![0x5a; 64 << 20];
    for (name, algorithm) in [("aes-256-gcm", &AES_256_GCM), ("chacha20-poly1305", &CHACHA20_POLY1305)] {
        let key = LessSafeKey::new(UnboundKey::new(algorithm, &[1; 32]).expect("32 bytes"));
        for block in [4096, CHUNK_STEP] {
            let speed = best(bytes.len(), || {
                let start = Instant::now();
                for part in bytes.chunks_mut(block) {
                    let nonce = Nonce::assume_unique_for_key([0; 12]);
                    let _ = black_box(key.seal_in_place_separate_tag(nonce, Aad::empty(), part).expect("short"));
                }
                start.elapsed()
            });
            println!("bare {name:18} {block:6} byte blocks {speed:7.0} MB/s");
        }
    }
    let speed = best(bytes.len(), || {
        let start = Instant::now();
        let mut hasher = blake3::Hasher::new();
        for part in bytes.chunks(MAX_CHUNK) {
            hasher.update(part);
        }
        let _ = black_box(hasher.finalize());
        start.elapsed()
    });
    println!("bare blake3 in chunks of 256 KiB        {speed:7.0} MB/s");
}

/// A program of 256 MiB with one executable segment over three quarters of it.
fn program() -> Vec<u8> {
    let mut bytes = vec![0x5a; SIZE];
    let (start, len, address) = (0x10_0000_u64, SIZE as u64 / 4 * 3, 0x40_0000_u64);
    bytes[..64].fill(0);
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let mut put = |at: usize, value: u64, len: usize| bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    for (at, value, len) in [(16, 2, 2), (18, 62, 2), (20, 1, 4), (24, address, 8), (32, 64, 8), (52, 64, 2), (54, 56, 2), (56, 1, 2)] {
        put(at, value, len); // type, machine, version, entry, program headers: offset, header sizes, count
    }
    for (at, value, len) in
        [(0, 1, 4), (4, 5, 4), (8, start, 8), (16, address, 8), (24, address, 8), (32, len, 8), (40, len, 8), (48, 4096, 8)]
    {
        put(64 + at, value, len); // PT_LOAD, R|X, offset, addresses, sizes, alignment
    }
    bytes
}

/// Sealer, opener and reader over one body.
fn body(what: &str, aead: Aead, layout: &Layout, bytes: &mut [u8]) -> Result<()> {
    let start = Instant::now();
    let digest = plain_digest(&&*bytes, layout)?;
    let digested = SIZE as f64 / start.elapsed().as_secs_f64() / 1e6;
    let keys = PageKeys::derive(&ContentKey::generate(&mut SystemRandom), &Digest([1; 32]), &digest, aead, layout.format());
    let mut tags = Vec::with_capacity(layout.tags_size() as usize);
    let plain = bytes.to_vec();
    let mut roots = None;
    let sealed = best(SIZE, || {
        bytes.copy_from_slice(&plain);
        tags.clear();
        let start = Instant::now();
        let mut sealer = Sealer::new(layout, &keys).expect("of one format");
        bytes.chunks_mut(MAX_CHUNK).for_each(|chunk| sealer.seal_chunk(chunk, &mut tags).expect("sealed"));
        roots = Some(sealer.finish().expect("whole"));
        start.elapsed()
    });
    let roots = roots.expect("sealed five times");
    let mut out = Vec::new();
    let opened = best(SIZE, || {
        let start = Instant::now();
        let mut opener = Opener::new(layout.clone(), &keys).expect("of one format");
        let mut rest = tags.as_slice();
        for (at, chunk) in bytes.chunks(MAX_CHUNK).enumerate() {
            let offset = (at * MAX_CHUNK) as u64;
            let (tags, later) = rest.split_at(layout.tags_ending_in(offset, chunk.len()) * TAG);
            opener.open_chunk(&Chunk { offset, tags, bytes: chunk }, &mut out).expect("opened");
            rest = later;
        }
        assert_eq!(opener.finish().expect("whole").roots, roots);
        start.elapsed()
    });

    let file = [&*bytes, &chipbound_sealing::package::trailer(layout, &tags, &documents())].concat();
    let zero = Digest([0; 32]);
    let seal = Seal {
        terms: zero,
        wrap: zero,
        session_wrap: zero,
        exchange: zero,
        plain_digest: digest,
        body_root: roots.body_root,
        body_size: roots.body_size,
        table_root: roots.table_root,
        table_size: roots.table_size,
    };
    let start = Instant::now();
    let reader = PackageReader::new(&file, Package::read(&file)?, &keys, &seal)?;
    let verified = SIZE as f64 / start.elapsed().as_secs_f64() / 1e6;
    let mut part = vec![0; MAX_CHUNK];
    let read = best(SIZE, || {
        let start = Instant::now();
        (0..SIZE).step_by(MAX_CHUNK).for_each(|at| reader.read_exact_at(&mut part, at as u64).expect("read"));
        start.elapsed()
    });
    println!(
        "{what:8}{:18} digest {digested:6.0}, seal {sealed:6.0}, open {opened:6.0}, verify {verified:6.0}, read {read:6.0} MB/s",
        aead.as_str()
    );
    Ok(())
}

fn documents() -> PackageDocuments {
    PackageDocuments {
        terms: Bytes::default(),
        wrap: Wrap { kem: Kem::XWing, enc: Bytes::default(), ciphertext: Bytes::default() },
        seal: Bytes::default(),
        token: Bytes::default(),
        sealed_manifest: Bytes::default(),
    }
}

/// Key generation, wrap and unwrap.
fn wraps(kem: Kem) -> Result<()> {
    let each = |what: &str, run: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        let start = Instant::now();
        (0..500).try_for_each(|_| run())?;
        println!("{:12}{what:8} {:6.0} µs", kem.as_str(), start.elapsed().as_secs_f64() * 1e6 / 500.0);
        Ok(())
    };
    let random = &mut SystemRandom;
    let pair = SealingKeyPair::generate(kem, random);
    let public = pair.public(kem).expect("its own mechanism");
    let (release, content) = (ReleaseSecret::generate(random), ContentKey::generate(random));
    let zero = Digest([0; 32]);
    let terms = Terms {
        order: OrderId([0; 16]),
        account: AccountId([0; 16]),
        processor: KeyId([0; 32]),
        manifest: zero,
        suite: Suite { kem, aead: Aead::Aes256Gcm },
        format: Format::Data,
        key_mode: KeyMode::Common,
        package_id: zero,
        release_commitment: zero,
        key_commitment: zero,
    };
    let make = || wrap_common(&public, terms.suite, &release, &terms.order, &zero, &content, &mut SystemRandom);
    let wrap = make()?;
    each("generate", &mut || {
        let _ = black_box(SealingKeyPair::generate(kem, &mut SystemRandom));
        Ok(())
    })?;
    each("wrap", &mut || make().map(|wrap| drop(black_box(wrap))))?;
    each("unwrap", &mut || open_wrap(&pair, &wrap, &terms, &zero, &release).map(|key| drop(black_box(key))))
}
