//! Seals and opens a body as a stream of chunks, with the memory of one chunk.

use crate::cipher::Cipher;
use crate::keys::PageKeys;
use crate::layout::{Layout, Piece};
use crate::read_at::ReadAt;
use chipbound_wire::limits::{MAX_CHUNK, TAG};
use chipbound_wire::messages::Chunk;
use chipbound_wire::{Code, Digest, Refusal, Result};
use std::fmt;
use zeroize::Zeroize;

/// What the seal says about the bytes of a package.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Roots {
    /// BLAKE3 of the body.
    pub body_root: Digest,
    /// Bytes of the body.
    pub body_size: u64,
    /// BLAKE3 of the table: the layout in CBOR, then all tags.
    pub table_root: Digest,
    /// Bytes of the table.
    pub table_size: u64,
}

/// What a body opened to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// What was received, to be compared with the seal.
    pub roots: Roots,
    /// BLAKE3 of the restored plaintext, to be compared with the vendor's manifest.
    pub plain_root: Digest,
    /// Bytes of the plaintext.
    pub plain_size: u64,
}

/// The plain digest of the package that `plain`, the plaintext, will become: over the layout and every unsealed byte of the
/// body, with the patches made. Refuses a file that is not the layout's.
pub fn plain_digest(plain: &dyn ReadAt, layout: &Layout) -> Result<Digest> {
    if plain.size() != layout.body_size() {
        return Err(changed("its size"));
    }
    let mut hasher = PlainHasher::new(&layout.encode());
    let mut buf = vec![0; MAX_CHUNK];
    let mut at = 0;
    for range in layout.sealed().iter().map(|r| (r.offset, r.end())).chain([(layout.body_size(), layout.body_size())]) {
        while at < range.0 {
            let len = (range.0 - at).min(MAX_CHUNK as u64) as usize;
            plain.read_exact_at(&mut buf[..len], at).map_err(|e| Refusal::io("reading a program", e))?;
            patch(layout, at, &mut buf[..len])?;
            hasher.0.update(&buf[..len]);
            at += len as u64;
        }
        at = range.1;
    }
    Ok(hasher.finish())
}

/// Seals one body. Where any call fails, what was made so far is discarded, never continued.
pub struct Sealer {
    layout: Layout,
    cipher: Cipher,
    claimed: Digest,
    at: u64,
    failed: bool,
    body: Box<blake3::Hasher>,
    table: Table,
    plain: PlainHasher,
}

impl Sealer {
    /// Starts an encryption with keys that were derived for it alone; [`Code::TermsMismatch`] where they are of another format.
    pub fn new(layout: &Layout, keys: &PageKeys) -> Result<Self> {
        check_format(layout, keys)?;
        let encoded = layout.encode();
        Ok(Self {
            cipher: keys.cipher(),
            claimed: keys.plain_digest(),
            at: 0,
            failed: false,
            body: Box::new(blake3::Hasher::new()),
            table: Table::new(&encoded),
            plain: PlainHasher::new(&encoded),
            layout: layout.clone(),
        })
    }

    /// Takes the next bytes of the plaintext and makes them body bytes in place; adds the tags of all units in them to `tags`.
    /// At most [`MAX_CHUNK`] bytes, a multiple of 64 KiB except at the end. Refuses a file that changed since its layout was
    /// made.
    pub fn seal_chunk(&mut self, bytes: &mut [u8], tags: &mut Vec<u8>) -> Result<()> {
        let start = self.at;
        let end = self.layout.chunk_end(start, bytes.len())?;
        if std::mem::replace(&mut self.failed, true) {
            return Err(after_failure());
        }
        patch(&self.layout, start, bytes)?;
        let before = tags.len();
        tags.reserve(self.layout.tags_ending_in(start, bytes.len()) * TAG);
        for piece in self.layout.pieces(start, end) {
            let bytes = &mut bytes[piece.within(start)];
            match piece.unit {
                Some(ordinal) => tags.extend(self.cipher.seal(ordinal, &piece.aad(ordinal), bytes)),
                None => self.plain.update(bytes),
            }
        }
        self.body.update(bytes);
        self.table.update(&tags[before..]);
        self.at = end;
        self.failed = false;
        Ok(())
    }

    /// Ends the encryption. Refuses where bytes are missing or the plain parts are not those that the keys were derived from.
    pub fn finish(self) -> Result<Roots> {
        if self.failed || self.at != self.layout.body_size() {
            return Err(Refusal::new(Code::PackageTruncated, "the program ended before its layout"));
        }
        if self.plain.finish() != self.claimed {
            return Err(changed("a plain part"));
        }
        Ok(roots(&self.layout, &self.body, &self.table))
    }
}

/// Opens one body, in order. Nothing of a unit leaves before its tag was checked; all of it counts only once [`Self::finish`]
/// has returned and its roots were compared with the seal.
pub struct Opener {
    layout: Layout,
    cipher: Cipher,
    claimed: Digest,
    at: u64,
    failed: bool,
    body: Box<blake3::Hasher>,
    table: Table,
    plain: PlainHasher,
    opened: Box<blake3::Hasher>,
}

impl Opener {
    /// Starts opening with keys that were derived from the plain digest that the server claims; [`Code::TermsMismatch`] where
    /// they are of another format.
    pub fn new(layout: Layout, keys: &PageKeys) -> Result<Self> {
        check_format(&layout, keys)?;
        let encoded = layout.encode();
        Ok(Self {
            cipher: keys.cipher(),
            claimed: keys.plain_digest(),
            at: 0,
            failed: false,
            body: Box::new(blake3::Hasher::new()),
            table: Table::new(&encoded),
            plain: PlainHasher::new(&encoded),
            opened: Box::new(blake3::Hasher::new()),
            layout,
        })
    }

    /// Opens the next chunk. `plain` then holds its plaintext, patches undone, and nothing else; after a refusal it is empty,
    /// and every further call refuses. [`Code::PageAltered`], [`Code::PlainPartsAltered`], [`Code::PackageTruncated`].
    pub fn open_chunk(&mut self, chunk: &Chunk<'_>, plain: &mut Vec<u8>) -> Result<()> {
        if std::mem::replace(&mut self.failed, true) {
            plain.zeroize();
            return Err(after_failure());
        }
        let opened = self.open_into(chunk, plain);
        match opened {
            Ok(()) => self.failed = false,
            Err(_) => plain.zeroize(),
        }
        opened
    }

    fn open_into(&mut self, chunk: &Chunk<'_>, plain: &mut Vec<u8>) -> Result<()> {
        if chunk.offset != self.at {
            return Err(Refusal::new(Code::PageAltered, format!("a chunk of offset {} where {} follows", chunk.offset, self.at)));
        }
        let end = self.layout.chunk_end(self.at, chunk.bytes.len())?;
        if chunk.tags.len() != self.layout.tags_ending_in(self.at, chunk.bytes.len()) * TAG {
            return Err(Refusal::new(Code::PageAltered, format!("the chunk at {} has tags too few or too many", self.at)));
        }
        plain.resize(chunk.bytes.len(), 0);
        let mut tags = chunk.tags.chunks_exact(TAG);
        for piece in self.layout.pieces(self.at, end) {
            let (sealed, plain) = (&chunk.bytes[piece.within(self.at)], &mut plain[piece.within(self.at)]);
            match piece.unit {
                Some(ordinal) => open_unit(&self.cipher, &piece, ordinal, sealed, tags.next().unwrap_or_default(), plain)?,
                None => {
                    self.plain.update(sealed);
                    plain.copy_from_slice(sealed);
                }
            }
        }
        unpatch(&self.layout, self.at, plain)?;
        self.body.update(chunk.bytes);
        self.table.update(chunk.tags);
        self.opened.update(plain);
        self.at = end;
        Ok(())
    }

    /// Ends opening: [`Code::PackageTruncated`] where bytes are missing, [`Code::PlainPartsAltered`] where the plain parts are not
    /// those of the claimed digest.
    pub fn finish(self) -> Result<Opened> {
        if self.failed {
            return Err(after_failure());
        }
        if self.at != self.layout.body_size() {
            let detail = format!("the body ended after {} of {} bytes", self.at, self.layout.body_size());
            return Err(Refusal::new(Code::PackageTruncated, detail));
        }
        if self.plain.finish() != self.claimed {
            return Err(plain_parts_altered());
        }
        Ok(Opened {
            roots: roots(&self.layout, &self.body, &self.table),
            plain_root: Digest(*self.opened.finalize().as_bytes()),
            plain_size: self.layout.body_size(),
        })
    }
}

/// Opens one unit; [`Code::PageAltered`] names its offset.
pub(crate) fn open_unit(cipher: &Cipher, piece: &Piece, ordinal: u64, sealed: &[u8], tag: &[u8], plain: &mut [u8]) -> Result<()> {
    cipher.open(ordinal, &piece.aad(ordinal), sealed, tag, plain).map_err(|_| does_not_open(piece))
}

/// The same where it lies.
pub(crate) fn open_unit_in_place(cipher: &Cipher, piece: &Piece, ordinal: u64, bytes: &mut [u8], tag: &[u8]) -> Result<()> {
    cipher.open_in_place(ordinal, &piece.aad(ordinal), bytes, tag).map_err(|_| does_not_open(piece))
}

fn does_not_open(piece: &Piece) -> Refusal {
    Refusal::new(Code::PageAltered, format!("the {} bytes at offset {} do not open", piece.len, piece.offset))
}

/// Makes the patches in bytes of the plaintext that begin at `start`.
fn patch(layout: &Layout, start: u64, bytes: &mut [u8]) -> Result<()> {
    for patch in layout.patches_in(start, start + bytes.len() as u64) {
        let byte = &mut bytes[(patch.offset - start) as usize];
        if *byte != patch.original {
            return Err(changed("the flags of a segment"));
        }
        *byte = patch.packaged();
    }
    Ok(())
}

/// Undoes the patches in body bytes that begin at `start`.
pub(crate) fn unpatch(layout: &Layout, start: u64, bytes: &mut [u8]) -> Result<()> {
    for patch in layout.patches_in(start, start + bytes.len() as u64) {
        let byte = &mut bytes[(patch.offset - start) as usize];
        if *byte != patch.packaged() {
            return Err(plain_parts_altered());
        }
        *byte = patch.original;
    }
    Ok(())
}

/// BLAKE3 over what a package does not seal: a domain, the layout, and the unsealed bytes of the body in order.
pub(crate) struct PlainHasher(Box<blake3::Hasher>);

impl PlainHasher {
    pub(crate) fn new(layout: &[u8]) -> Self {
        let mut hasher = Box::new(blake3::Hasher::new());
        hasher.update(b"chipbound/1 plain digest").update(layout);
        Self(hasher)
    }
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    pub(crate) fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

/// BLAKE3 over the table.
struct Table(Box<blake3::Hasher>);

impl Table {
    fn new(layout: &[u8]) -> Self {
        let mut hasher = Box::new(blake3::Hasher::new());
        hasher.update(layout);
        Self(hasher)
    }
    fn update(&mut self, tags: &[u8]) {
        self.0.update(tags);
    }
}

fn roots(layout: &Layout, body: &blake3::Hasher, table: &Table) -> Roots {
    Roots {
        body_root: Digest(*body.finalize().as_bytes()),
        body_size: layout.body_size(),
        table_root: Digest(*table.0.finalize().as_bytes()),
        table_size: table.0.count(),
    }
}

fn check_format(layout: &Layout, keys: &PageKeys) -> Result<()> {
    if layout.format() != keys.format() {
        let detail = format!("a layout of {} where the terms say {}", layout.format(), keys.format());
        return Err(Refusal::new(Code::TermsMismatch, detail));
    }
    Ok(())
}

fn changed(what: &str) -> Refusal {
    Refusal::new(Code::Conflict, format!("the program changed while it was being sealed: {what}"))
}

pub(crate) fn plain_parts_altered() -> Refusal {
    Refusal::new(Code::PlainPartsAltered, "a byte outside the sealed pages is not the one that was sealed")
}

fn after_failure() -> Refusal {
    Refusal::new(Code::PageAltered, "an earlier chunk was refused")
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer(at {} of {})", self.at, self.layout.body_size())
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opener(at {} of {})", self.at, self.layout.body_size())
    }
}
