//! Reads the plaintext of a package at any offset, with nothing in memory but tags and hashes, or with the whole small package.

use crate::blocks::{BLOCK, Blocks, Seen};
use crate::cipher::Cipher;
use crate::keys::PageKeys;
use crate::layout::{Layout, Piece};
use crate::package::{Package, read};
use crate::pages::{PlainHasher, open_unit, open_unit_in_place, plain_parts_altered, unpatch};
use crate::read_at::ReadAt;
use crate::start::Delivered;
use chipbound_wire::documents::Seal;
use chipbound_wire::limits::{DATA_CHUNK, MAX_CHUNK, TAG};
use chipbound_wire::{Code, Refusal, Result};
use std::borrow::Cow;
use std::fmt;
use std::io;
use std::sync::OnceLock;
use zeroize::Zeroizing;

/// The plaintext of a package whose every byte was compared with its seal. Later reads compare again what they use, with a value
/// of each 64 KiB that the first pass kept: a byte that changed in between is refused (A15). Where the first pass took the package into
/// memory, what changed in between has no effect.
pub struct PackageReader<F> {
    sealed: Sealed<F>,
    blocks: Blocks,
    /// The body's beginning, or all of it, where it was taken into memory: what was compared is what is opened.
    kept: Vec<u8>,
}

/// The largest body that [`PackageReader::at_once`] takes into memory, bytes.
pub const AT_ONCE: u64 = 32 << 20;

impl<F: ReadAt> PackageReader<F> {
    /// As [`Self::new`], but takes a body of at most [`AT_ONCE`] bytes into memory while it compares it: later reads cost neither a read
    /// of the file nor a hash. Larger ones are opened as [`Self::new`] does.
    pub fn at_once(file: F, package: Package, keys: &PageKeys, seal: &Seal) -> Result<Self> {
        let kept = (seal.body_size <= AT_ONCE).then(|| vec![0; seal.body_size as usize]);
        Self::with(file, package, keys, seal, kept)
    }

    /// Reads the whole body once and compares it and the table with the verified `seal`: [`Code::PackageTruncated`],
    /// [`Code::PlainPartsAltered`], [`Code::PageAltered`]; [`Code::SealMismatch`] where the keys are of another plain digest. No
    /// byte is opened.
    pub fn new(file: F, package: Package, keys: &PageKeys, seal: &Seal) -> Result<Self> {
        Self::with(file, package, keys, seal, None)
    }

    fn with(file: F, package: Package, keys: &PageKeys, seal: &Seal, mut kept: Option<Vec<u8>>) -> Result<Self> {
        let sealed = Sealed::new(file, package, keys, seal)?;
        let blocks = check_body(&sealed.file, &sealed.layout, seal, kept.as_deref_mut())?;
        Ok(Self { sealed, blocks, kept: kept.unwrap_or_default() })
    }

    /// Which bytes are sealed in the file.
    pub fn layout(&self) -> &Layout {
        &self.sealed.layout
    }

    /// Fills `buf` with the plaintext at `offset`. [`Code::PageAltered`] where the file changed since the first pass,
    /// [`Code::Io`] beyond the end.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.sealed.read(buf, offset, |base| match self.kept.get(base as usize..).filter(|kept| !kept.is_empty()) {
            Some(kept) => Ok(Cow::Borrowed(&kept[..kept.len().min(BLOCK)])),
            None => {
                let block = self.sealed.load(base)?;
                if self.blocks.matches(base, &block) { Ok(Cow::Owned(block)) } else { Err(changed(base)) }
            }
        })
    }
}

/// The plaintext of a package whose table was compared with its seal, and whose body is being compared with it while it is read.
///
/// Every sealed page that comes out fits its tag, and so the content key. That the whole body is the one that was sealed is known only
/// once [`Self::settle`] has said so: until then what was read may be kept, and nothing may be done with it that cannot be taken back.
pub struct OnePass<F> {
    sealed: Sealed<F>,
    seal: Seal,
    /// For each block the value that it had when it was read first.
    seen: Seen,
    /// The first block, once it was read: a program's headers lie there, which are read bit by bit.
    first: OnceLock<Vec<u8>>,
}

impl<F: ReadAt + Sync> OnePass<F> {
    /// Compares the table with the verified `seal`; no byte of the body is read. Refuses as [`PackageReader::new`] does.
    pub fn new(file: F, package: Package, keys: &PageKeys, seal: &Seal) -> Result<Self> {
        let sealed = Sealed::new(file, package, keys, seal)?;
        let seen = Seen::new(sealed.layout.body_size());
        Ok(Self { sealed, seal: seal.clone(), seen, first: OnceLock::new() })
    }

    /// Which bytes are sealed in the file.
    pub fn layout(&self) -> &Layout {
        &self.sealed.layout
    }

    /// Fills `buf` with the plaintext at `offset`. [`Code::PageAltered`] where a page does not fit its tag or a block is not what it was
    /// when it was read before, [`Code::Io`] beyond the end. Whole blocks are opened in `buf` itself; where that is refused, it holds zeros.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if !buf.is_empty() && buf.len() as u64 == self.sealed.block_size(offset) && self.first.get().is_none_or(|_| offset > 0) {
            return self.read_block(buf, offset).inspect_err(|_| buf.fill(0));
        }
        self.sealed.read(buf, offset, |base| match self.first.get().filter(|_| base == 0) {
            Some(first) => Ok(Cow::Borrowed(first)),
            None => {
                let block = self.sealed.load(base)?;
                if !self.seen.take(base, &block) {
                    return Err(changed(base));
                }
                Ok(if base == 0 { Cow::Borrowed(self.first.get_or_init(|| block)) } else { Cow::Owned(block) })
            }
        })
    }

    /// The same for the block that begins at `base`. What `buf` holds after a refusal is of no use.
    fn read_block(&self, buf: &mut [u8], base: u64) -> Result<()> {
        self.sealed.load_to(buf, base)?;
        if !self.seen.take(base, buf) {
            return Err(changed(base));
        }
        self.sealed.open_in_place(buf, base)
    }

    /// Reads what was not read yet and compares the whole body with the seal. Refuses as [`PackageReader::new`] does: then nothing that was
    /// read is the package's.
    pub fn settle(self) -> Result<PackageReader<F>> {
        let Self { sealed, seal, seen, first } = self;
        let blocks = seen.complete(|base| sealed.load(base))?;
        // The plain digest is a function of the body and the layout, and the seal was compared with both when it was recorded.
        if blocks.root() != seal.body_root {
            check_body(&sealed.file, &sealed.layout, &seal, None)?; // Says which part it is.
            return Err(Refusal::new(Code::PageAltered, "the package changed while it was opened"));
        }
        Ok(PackageReader { sealed, blocks, kept: first.into_inner().unwrap_or_default() })
    }
}

impl<F: ReadAt + Sync> ReadAt for OnePass<F> {
    fn size(&self) -> u64 {
        self.sealed.layout.body_size()
    }
    /// As [`OnePass::read`]; the refusal is the error's inner value.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(buf, offset).map_err(|refusal| io::Error::new(io::ErrorKind::InvalidData, refusal))
    }
}

impl<F> fmt::Debug for OnePass<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OnePass({} bytes)", self.sealed.layout.body_size())
    }
}

/// The plaintext of a body that was delivered, opened and compared whole a moment ago, to be read in places once more.
pub struct BodyReader<F>(Sealed<F>);

impl<F: ReadAt> BodyReader<F> {
    /// Reads the body in `file`, and behind it its table: the layout, which is `layout`, and the tags. What is sealed is verified by its tag
    /// when it is read; what is plain comes as it lies in the file.
    pub fn new(file: F, layout: &Layout, keys: &PageKeys) -> Result<Self> {
        let tags = read(&file, layout.body_size() + layout.encode().len() as u64, layout.tags_size())?;
        Ok(Self(Sealed { file: Delivered::new(file, None), layout: layout.clone(), tags, cipher: keys.cipher() }))
    }
}

impl<F: ReadAt> ReadAt for BodyReader<F> {
    fn size(&self) -> u64 {
        self.0.layout.body_size()
    }
    /// [`Code::PageAltered`] where a page does not fit its tag; the refusal is the error's inner value.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.0.read(buf, offset, |base| self.0.load(base).map(Cow::Owned));
        read.map_err(|refusal| io::Error::new(io::ErrorKind::InvalidData, refusal))
    }
}

impl<F> fmt::Debug for BodyReader<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BodyReader({} bytes)", self.0.layout.body_size())
    }
}

/// A body and what opens it, its table compared with the seal.
struct Sealed<F> {
    file: Delivered<F>,
    layout: Layout,
    tags: Vec<u8>,
    cipher: Cipher,
}

impl<F: ReadAt> Sealed<F> {
    fn new(file: F, package: Package, keys: &PageKeys, seal: &Seal) -> Result<Self> {
        if keys.plain_digest() != seal.plain_digest || keys.format() != package.layout.format() {
            return Err(Refusal::new(Code::SealMismatch, "the keys are not those of the sealed package"));
        }
        if package.layout.body_size() != seal.body_size || package.table_size() != seal.table_size {
            return Err(Refusal::new(Code::PackageTruncated, "the package is not as long as its seal says"));
        }
        let file = Delivered::new(file, package.start.as_ref());
        if package.table_root() != seal.table_root {
            check_body(&file, &package.layout, seal, None)?; // Says whether it is the layout.
            return Err(Refusal::new(Code::PageAltered, "the tags are not those that were sealed"));
        }
        Ok(Self { file, layout: package.layout, tags: package.tags, cipher: keys.cipher() })
    }

    /// Fills `buf` with the plaintext at `offset`, of the blocks that `block` gives by their offsets.
    fn read<'a>(&self, buf: &mut [u8], offset: u64, mut block: impl FnMut(u64) -> Result<Cow<'a, [u8]>>) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.layout.body_size());
        let end = end.ok_or_else(|| Refusal::io("reading a package", io::ErrorKind::UnexpectedEof.into()))?;
        let mut at = offset;
        while at < end {
            let base = at - at % BLOCK as u64;
            let upto = end.min(base + BLOCK as u64);
            let part = &mut buf[(at - offset) as usize..(upto - offset) as usize];
            self.open(&block(base)?, base, at, part).inspect_err(|_| part.fill(0))?;
            at = upto;
        }
        Ok(())
    }

    /// How long the block is that begins at `base`, bytes: nothing where none does.
    fn block_size(&self, base: u64) -> u64 {
        if base.is_multiple_of(BLOCK as u64) { self.layout.body_size().saturating_sub(base).min(BLOCK as u64) } else { 0 }
    }

    /// Reads the block at `base`.
    fn load(&self, base: u64) -> Result<Vec<u8>> {
        let mut block = vec![0; self.block_size(base) as usize];
        self.load_to(&mut block, base)?;
        Ok(block)
    }

    /// The same into memory of its size.
    fn load_to(&self, block: &mut [u8], base: u64) -> Result<()> {
        self.file.read_exact_at(block, base).map_err(|e| Refusal::io("reading a package", e))
    }

    /// Makes plaintext of a whole block, which begins at `base`.
    fn open_in_place(&self, block: &mut [u8], base: u64) -> Result<()> {
        for piece in self.layout.pieces(base, base + block.len() as u64) {
            if let Some(ordinal) = piece.unit {
                open_unit_in_place(&self.cipher, &piece, ordinal, &mut block[piece.within(base)], self.tag(ordinal))?;
            }
        }
        unpatch(&self.layout, base, block)
    }

    fn tag(&self, ordinal: u64) -> &[u8] {
        &self.tags[ordinal as usize * TAG..][..TAG]
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
        open_unit(&self.cipher, piece, ordinal, sealed, self.tag(ordinal), plain)
    }
}

impl<F: ReadAt> ReadAt for PackageReader<F> {
    fn size(&self) -> u64 {
        self.sealed.layout.body_size()
    }
    /// As [`PackageReader::read`]; the refusal is the error's inner value.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(buf, offset).map_err(|refusal| io::Error::new(io::ErrorKind::InvalidData, refusal))
    }
}

impl<F> fmt::Debug for PackageReader<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackageReader({} bytes)", self.sealed.layout.body_size())
    }
}

fn changed(base: u64) -> Refusal {
    Refusal::new(Code::PageAltered, format!("the 64 KiB at offset {base} changed while the package was in use"))
}

/// The first pass: compares every byte of the body with the seal, keeps a value of each block, and fills `kept` with the body.
fn check_body(file: &dyn ReadAt, layout: &Layout, seal: &Seal, mut kept: Option<&mut [u8]>) -> Result<Blocks> {
    let mut plain = PlainHasher::new(&layout.encode());
    let blocks = Blocks::of(layout.body_size(), |take| {
        let mut at = 0;
        while at < layout.body_size() {
            let end = layout.body_size().min(at + MAX_CHUNK as u64);
            let chunk = next_chunk(file, at, (end - at) as usize, &mut kept)?;
            for piece in layout.pieces(at, end).filter(|piece| piece.unit.is_none()) {
                plain.update(&chunk[piece.within(at)]);
            }
            take(chunk);
            at = end;
        }
        Ok(())
    })?;
    if plain.finish() != seal.plain_digest {
        return Err(plain_parts_altered());
    }
    if blocks.root() != seal.body_root {
        return Err(Refusal::new(Code::PageAltered, "a sealed page is not the one that was sealed"));
    }
    Ok(blocks)
}

/// Reads the bytes at `at` to the beginning of `kept`, which then begins behind them, or to memory of their own.
fn next_chunk<'a>(file: &dyn ReadAt, at: u64, len: usize, kept: &mut Option<&'a mut [u8]>) -> Result<Cow<'a, [u8]>> {
    let failed = |e| Refusal::io("reading a package", e);
    match kept.take() {
        Some(rest) => {
            let (chunk, rest) = rest.split_at_mut(len);
            *kept = Some(rest);
            file.read_exact_at(chunk, at).map_err(failed)?;
            Ok(Cow::Borrowed(chunk))
        }
        None => {
            let mut chunk = vec![0; len];
            file.read_exact_at(&mut chunk, at).map_err(failed)?;
            Ok(Cow::Owned(chunk))
        }
    }
}

const _: () = assert!(BLOCK.is_multiple_of(DATA_CHUNK) && MAX_CHUNK.is_multiple_of(BLOCK));
