//! Reads the plaintext of a package at any offset, with nothing in memory but tags and hashes.

use crate::blocks::{BLOCK, Blocks};
use crate::cipher::Cipher;
use crate::keys::PageKeys;
use crate::layout::{Layout, Piece};
use crate::package::Package;
use crate::pages::{PlainHasher, open_unit, plain_parts_altered, unpatch};
use crate::read_at::ReadAt;
use crate::start::Delivered;
use chipbound_wire::documents::Seal;
use chipbound_wire::limits::{DATA_CHUNK, MAX_CHUNK, TAG};
use chipbound_wire::{Code, Refusal, Result};
use std::fmt;
use std::io;
use zeroize::Zeroizing;

/// The plaintext of a package whose every byte was compared with its seal. Later reads compare again what they use, with a value
/// of each 64 KiB that the first pass kept: a byte that changed in between is refused (A15).
pub struct PackageReader<F> {
    file: Delivered<F>,
    layout: Layout,
    tags: Vec<u8>,
    cipher: Cipher,
    blocks: Blocks,
}

impl<F: ReadAt> PackageReader<F> {
    /// Reads the whole body once and compares it and the table with the verified `seal`: [`Code::PackageTruncated`],
    /// [`Code::PlainPartsAltered`], [`Code::PageAltered`]; [`Code::SealMismatch`] where the keys are of another plain digest. No
    /// byte is opened.
    pub fn new(file: F, package: Package, keys: &PageKeys, seal: &Seal) -> Result<Self> {
        if keys.plain_digest() != seal.plain_digest || keys.format() != package.layout.format() {
            return Err(Refusal::new(Code::SealMismatch, "the keys are not those of the sealed package"));
        }
        if package.layout.body_size() != seal.body_size || package.table_size() != seal.table_size {
            return Err(Refusal::new(Code::PackageTruncated, "the package is not as long as its seal says"));
        }
        let file = Delivered::new(file, package.start.as_ref());
        let blocks = check_body(&file, &package.layout, seal)?;
        if package.table_root() != seal.table_root {
            return Err(Refusal::new(Code::PageAltered, "the tags are not those that were sealed"));
        }
        Ok(Self { file, layout: package.layout, tags: package.tags, cipher: keys.cipher(), blocks })
    }

    /// Which bytes are sealed in the file.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Fills `buf` with the plaintext at `offset`. [`Code::PageAltered`] where the file changed since the first pass,
    /// [`Code::Io`] beyond the end.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.layout.body_size());
        let end = end.ok_or_else(|| Refusal::io("reading a package", io::ErrorKind::UnexpectedEof.into()))?;
        let mut block = Vec::new();
        let mut at = offset;
        while at < end {
            let base = at - at % BLOCK as u64;
            let upto = end.min(base + BLOCK as u64);
            self.load(base, &mut block)?;
            let part = &mut buf[(at - offset) as usize..(upto - offset) as usize];
            self.open(&block, base, at, part).inspect_err(|_| part.fill(0))?;
            at = upto;
        }
        Ok(())
    }

    /// Reads a block and compares it with the first pass.
    fn load(&self, base: u64, block: &mut Vec<u8>) -> Result<()> {
        block.resize((self.layout.body_size() - base).min(BLOCK as u64) as usize, 0);
        self.file.read_exact_at(block, base).map_err(|e| Refusal::io("reading a package", e))?;
        if !self.blocks.matches(base, block) {
            return Err(Refusal::new(Code::PageAltered, format!("the 64 KiB at offset {base} changed while the package was in use")));
        }
        Ok(())
    }

    /// Opens the part of `block`, which begins at `base`, that begins at `start` and fills `out`.
    fn open(&self, block: &[u8], base: u64, start: u64, out: &mut [u8]) -> Result<()> {
        let end = start + out.len() as u64;
        let mut whole = Zeroizing::new(Vec::new());
        for piece in self.layout.pieces(base, base + block.len() as u64) {
            let (from, to) = (piece.offset.max(start), (piece.offset + piece.len as u64).min(end));
            if from >= to {
                continue;
            }
            let wanted = &mut out[(from - start) as usize..(to - start) as usize];
            match piece.unit {
                None => wanted.copy_from_slice(&block[(from - base) as usize..(to - base) as usize]),
                Some(ordinal) if wanted.len() == piece.len => self.open_piece(&piece, ordinal, &block[piece.within(base)], wanted)?,
                Some(ordinal) => {
                    whole.resize(piece.len, 0);
                    self.open_piece(&piece, ordinal, &block[piece.within(base)], &mut whole)?;
                    wanted.copy_from_slice(&whole[(from - piece.offset) as usize..(to - piece.offset) as usize]);
                }
            }
        }
        unpatch(&self.layout, start, out)
    }

    fn open_piece(&self, piece: &Piece, ordinal: u64, sealed: &[u8], plain: &mut [u8]) -> Result<()> {
        let tag = &self.tags[ordinal as usize * TAG..][..TAG];
        open_unit(&self.cipher, piece, ordinal, sealed, tag, plain)
    }
}

impl<F: ReadAt> ReadAt for PackageReader<F> {
    fn size(&self) -> u64 {
        self.layout.body_size()
    }
    /// As [`PackageReader::read`]; the refusal is the error's inner value.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(buf, offset).map_err(|refusal| io::Error::new(io::ErrorKind::InvalidData, refusal))
    }
}

impl<F> fmt::Debug for PackageReader<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackageReader({} bytes)", self.layout.body_size())
    }
}

/// The first pass: compares every byte of the body with the seal and keeps a value of each block.
fn check_body(file: &dyn ReadAt, layout: &Layout, seal: &Seal) -> Result<Blocks> {
    let mut blocks = Blocks::new(layout.body_size());
    let mut plain = PlainHasher::new(&layout.encode());
    let mut buf = vec![0; MAX_CHUNK];
    let mut at = 0;
    while at < layout.body_size() {
        let end = layout.body_size().min(at + MAX_CHUNK as u64);
        let chunk = &mut buf[..(end - at) as usize];
        file.read_exact_at(chunk, at).map_err(|e| Refusal::io("reading a package", e))?;
        blocks.update(chunk);
        for piece in layout.pieces(at, end).filter(|piece| piece.unit.is_none()) {
            plain.update(&chunk[piece.within(at)]);
        }
        at = end;
    }
    if plain.finish() != seal.plain_digest {
        return Err(plain_parts_altered());
    }
    if blocks.root() != seal.body_root {
        return Err(Refusal::new(Code::PageAltered, "a sealed page is not the one that was sealed"));
    }
    Ok(blocks)
}

const _: () = assert!(BLOCK.is_multiple_of(DATA_CHUNK) && MAX_CHUNK.is_multiple_of(BLOCK));
