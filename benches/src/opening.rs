//! How fast sealed pages are opened on one core, against the AEAD alone on the same bytes in the same run.

use crate::stats::{Series, Table, at_least};
use crate::{Options, Outcome};
use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use chipbound_sealing::{AT_ONCE, ContentKey, Layout, Package, PackageReader, PageKeys, ReadAt, Sealer, package, plain_digest};
use chipbound_wire::bounded::Bytes;
use chipbound_wire::documents::{PackageDocuments, Seal, Wrap};
use chipbound_wire::limits::{MAX_CHUNK, TAG};
use chipbound_wire::suite::{Aead, Kem, Profile};
use chipbound_wire::{Digest, SystemRandom};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

/// What opening pages may be of the bare AEAD.
const TARGET: f64 = 0.6;
/// Bytes of a page, which is one AEAD operation.
const PAGE: usize = 4096;
/// Bytes that are opened at once, as the loader does.
const STEP: usize = 256 * 1024;

/// Measures and prints.
pub(crate) fn measure(options: &Options) -> Outcome<()> {
    let rounds = options.rounds().unwrap_or(if options.quick { 3 } else { 21 });
    let size = usize::try_from(AT_ONCE)?;
    println!("## Opening pages of a program of {} MiB on one core, {rounds} interleaved rounds, MB/s\n", size >> 20);
    let mut table =
        Table::new(&["AEAD", "alone, 4 KiB blocks", "opened", "opened into a memory file", "opened, compared again", "opened over alone"]);
    let mut ratios = Vec::new();
    for aead in Aead::ALL {
        let sealed = Sealed::new(*aead, size)?;
        let kept = PackageReader::at_once(&sealed.file, Package::read(&sealed.file)?, &sealed.keys, &sealed.seal)?;
        let again = PackageReader::new(&sealed.file, Package::read(&sealed.file)?, &sealed.keys, &sealed.seal)?;
        let mut bare = Bare::new(*aead, sealed.pages.len());
        let memory = File::from(memfd_create("bench", MemfdFlags::CLOEXEC)?);
        let mut columns = [const { Vec::new() }; 4];
        for round in 0..=rounds {
            let speeds = [
                speed(&sealed, || bare.open()),
                speed(&sealed, || open(&kept, &sealed, |_, _| Ok(()))),
                speed(&sealed, || open(&kept, &sealed, |at, bytes| Ok(memory.write_all_at(bytes, at)?))),
                speed(&sealed, || open(&again, &sealed, |_, _| Ok(()))),
            ];
            // The first round fills caches.
            for (column, speed) in columns.iter_mut().zip(speeds).filter(|_| round > 0) {
                column.push(speed?);
            }
        }
        let [alone, opened, into, compared] = columns.map(Series::from_iter);
        table.row([aead.as_str().to_owned(), alone.show(0), opened.show(0), into.show(0), compared.show(0), opened.over(&alone).show(2)]);
        ratios.push((aead, opened.median() / alone.median()));
    }
    table.print();
    println!(
        "As `chipbound open` does it: packages of at most {} MiB are opened from memory, larger ones are compared again. A start hashes and opens a program in one pass: see start-up.\n",
        size >> 20
    );
    for (aead, ratio) in ratios {
        at_least(aead.as_str(), ratio, TARGET);
    }
    println!();
    Ok(())
}

/// Milliseconds that nothing but BLAKE3 over `body` and the AEAD over `sealed` bytes in pages of 4 KiB take, both in memory, on all cores
/// together where there is work for them.
pub(crate) fn bare(body: &[u8], sealed: usize, rounds: usize) -> Outcome<Series> {
    let cores = if body.len() < ONE_CORE { 1 } else { thread::available_parallelism()?.get() };
    let mut parts: Vec<_> = (0..cores).map(|_| Bare::new(Aead::Aes256Gcm, sealed / cores)).collect();
    let each = body.len().div_ceil(cores).max(1);
    let once = |_| {
        let begun = Instant::now();
        thread::scope(|scope| {
            let work = |(pages, bytes): (&mut Bare, &[u8])| {
                black_box(blake3::hash(bytes));
                pages.open().map_err(|error| error.to_string())
            };
            let mut parts = parts.iter_mut().zip(body.chunks(each));
            let own = parts.next();
            let others: Vec<_> = parts.map(|part| scope.spawn(move || work(part))).collect();
            let own = own.map_or(Ok(()), work);
            others.into_iter().fold(own, |sum, other| sum.and(other.join().expect("a bare thread does not panic")))
        })?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    };
    (0..rounds).map(once).collect::<Outcome<Vec<_>>>().map(Series::from_iter)
}

/// Bodies below this are not worth a second thread, bytes.
const ONE_CORE: usize = 1 << 20;

/// MB/s of what opens all pages.
fn speed(sealed: &Sealed, work: impl FnOnce() -> Outcome<()>) -> Outcome<f64> {
    let begun = Instant::now();
    work()?;
    Ok(sealed.pages.len() as f64 / begun.elapsed().max(Duration::from_nanos(1)).as_secs_f64() / 1e6)
}

/// Opens all sealed pages, a step at a time, and gives each step away.
fn open<F: ReadAt>(reader: &PackageReader<F>, sealed: &Sealed, mut give: impl FnMut(u64, &[u8]) -> Outcome<()>) -> Outcome<()> {
    let mut buf = vec![0; STEP];
    for at in sealed.pages.clone().step_by(STEP) {
        let step = &mut buf[..STEP.min(sealed.pages.end - at)];
        reader.read(step, at as u64)?;
        give((at - sealed.pages.start) as u64, black_box(step))?;
    }
    Ok(())
}

/// Blocks with their tags under one key.
struct Bare {
    key: LessSafeKey,
    blocks: Vec<u8>,
    tags: Vec<Vec<u8>>,
    plain: Vec<u8>,
}

impl Bare {
    fn new(aead: Aead, size: usize) -> Self {
        let algorithm = match aead {
            Aead::Aes256Gcm => &AES_256_GCM,
            Aead::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, &[1; 32]).expect("both AEADs take keys of 32 bytes"));
        let mut blocks = vec![0x5a; size];
        let seal = |(number, block): (usize, &mut [u8])| {
            let tag = key.seal_in_place_separate_tag(nonce(number), Aad::empty(), block).expect("blocks are short");
            tag.as_ref().to_vec()
        };
        let tags = blocks.chunks_mut(PAGE).enumerate().map(seal).collect();
        Self { key, blocks, tags, plain: vec![0; STEP] }
    }

    fn open(&mut self) -> Outcome<()> {
        for (number, (block, tag)) in self.blocks.chunks(PAGE).zip(&self.tags).enumerate() {
            // Into a buffer of the size that pages are opened to, so that both write to the same caches.
            let plain = &mut self.plain[number * PAGE % STEP..][..block.len()];
            self.key.open_separate_gather(nonce(number), Aad::empty(), block, tag, plain).map_err(|_| crate::failed("a bare block"))?;
            black_box(plain);
        }
        Ok(())
    }
}

fn nonce(number: usize) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&(number as u64).to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// A sealed program in memory.
struct Sealed {
    file: Vec<u8>,
    keys: PageKeys,
    seal: Seal,
    /// Where its sealed pages lie.
    pages: std::ops::Range<usize>,
}

impl Sealed {
    /// A program of `size` bytes with one executable segment behind its first page.
    fn new(aead: Aead, size: usize) -> Outcome<Self> {
        let mut bytes = headers(size);
        let layout = Layout::of(Profile::Code, &bytes)?;
        let digest = plain_digest(&bytes, &layout)?;
        let keys = PageKeys::derive(&ContentKey::generate(&mut SystemRandom), &Digest([1; 32]), &digest, aead, layout.format());
        let mut tags = Vec::new();
        let mut sealer = Sealer::new(&layout, &keys)?;
        bytes.chunks_mut(MAX_CHUNK).try_for_each(|chunk| sealer.seal_chunk(chunk, &mut tags))?;
        let roots = sealer.finish()?;
        assert_eq!(tags.len() / TAG, (size - PAGE) / PAGE, "every page but the first is sealed");
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
        let file = [bytes, package::trailer(&layout, &tags, &documents())].concat();
        Ok(Self { file, keys, seal, pages: PAGE..size })
    }
}

/// An ELF program: type, machine, version, entry, program headers, and one `PT_LOAD` that may be executed.
fn headers(size: usize) -> Vec<u8> {
    let mut bytes = vec![0x5a; size];
    let (start, len, address) = (PAGE as u64, (size - PAGE) as u64, 0x40_1000_u64);
    bytes[..PAGE].fill(0);
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let mut put = |at: usize, value: u64, len: usize| bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    for (at, value, len) in [(16, 2, 2), (18, 62, 2), (20, 1, 4), (24, address, 8), (32, 64, 8), (52, 64, 2), (54, 56, 2), (56, 1, 2)] {
        put(at, value, len);
    }
    for (at, value, len) in
        [(0, 1, 4), (4, 5, 4), (8, start, 8), (16, address, 8), (24, address, 8), (32, len, 8), (40, len, 8), (48, 4096, 8)]
    {
        put(64 + at, value, len);
    }
    bytes
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
