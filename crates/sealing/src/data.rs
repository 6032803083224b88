//! Reads the plaintext of a package of data range by range, without a first pass over it: what is read is verified when it is
//! read, and nothing else is.

use crate::cipher::Cipher;
use crate::keys::PageKeys;
use crate::layout::Layout;
use crate::package::Package;
use crate::pages::{PlainHasher, open_unit};
use crate::read_at::ReadAt;
use crate::start::Delivered;
use chipbound_wire::documents::Seal;
use chipbound_wire::limits::{DATA_CHUNK, TAG};
use chipbound_wire::suite::Format;
use chipbound_wire::{Code, Refusal, Result};
use std::fmt;
use std::io;
use zeroize::Zeroizing;

/// The plaintext of a package of data whose table of tags was compared with its seal, and whose chunks are opened one by one.
///
/// Each chunk has its tag in the table, its number is the nonce, and offset and length are authenticated with it: what comes out
/// of an AEAD operation is what was sealed there. The BLAKE3 root over the ciphertext, which [`crate::PackageReader`] compares, adds
/// only this: an AEAD's tag does not bind somebody who knows the content key, and so can make another ciphertext for one tag.
pub struct DataReader<F> {
    file: Delivered<F>,
    layout: Layout,
    tags: Vec<u8>,
    cipher: Cipher,
}

impl<F: ReadAt> DataReader<F> {
    /// Compares the table with the verified `seal`, whatever the size of the body, of which nothing is read:
    /// [`Code::PackageTruncated`], [`Code::PageAltered`]; [`Code::SealMismatch`] where the keys are of another plain digest,
    /// [`Code::UnsupportedProgram`] where the package holds a program.
    pub fn new(file: F, package: Package, keys: &PageKeys, seal: &Seal) -> Result<Self> {
        if package.layout.format() != Format::Data {
            return Err(Refusal::new(Code::UnsupportedProgram, "the package holds a program, no data"));
        }
        let plain = PlainHasher::new(&package.layout.encode()).finish();
        if keys.plain_digest() != seal.plain_digest || plain != seal.plain_digest || keys.format() != Format::Data {
            return Err(Refusal::new(Code::SealMismatch, "the keys are not those of the sealed package"));
        }
        if package.layout.sealed_bytes() != package.layout.body_size() {
            return Err(Refusal::new(Code::SealMismatch, "the package of data has bytes that are not sealed"));
        }
        if package.layout.body_size() != seal.body_size || package.table_size() != seal.table_size {
            return Err(Refusal::new(Code::PackageTruncated, "the package is not as long as its seal says"));
        }
        if package.table_root() != seal.table_root {
            return Err(Refusal::new(Code::PageAltered, "the tags are not those that were sealed"));
        }
        let file = Delivered::new(file, package.start.as_ref());
        Ok(Self { file, layout: package.layout, tags: package.tags, cipher: keys.cipher() })
    }

    /// Bytes of memory that the table takes: 16 for every 64 KiB.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.tags.len() as u64
    }

    /// Fills `buf` with the plaintext at `offset`. Reads whole chunks of 64 KiB and opens each before a byte of it is given out:
    /// [`Code::PageAltered`], and `buf` is all zeros. [`Code::Io`] beyond the end.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.layout.body_size());
        let end = end.ok_or_else(|| Refusal::io("reading a package", io::ErrorKind::UnexpectedEof.into()))?;
        if buf.is_empty() {
            return Ok(());
        }
        self.fill(buf, offset, end).inspect_err(|_| buf.fill(0))
    }

    fn fill(&self, buf: &mut [u8], offset: u64, end: u64) -> Result<()> {
        let (mut sealed, mut whole) = (Vec::new(), Zeroizing::new(Vec::new()));
        let first = offset - offset % DATA_CHUNK as u64;
        let upto = end.next_multiple_of(DATA_CHUNK as u64).min(self.layout.body_size());
        for piece in self.layout.pieces(first, upto) {
            let ordinal = piece.unit.expect("new found all of the body sealed");
            sealed.resize(piece.len, 0);
            self.file.read_exact_at(&mut sealed, piece.offset).map_err(|e| Refusal::io("reading a package", e))?;
            let tag = &self.tags[ordinal as usize * TAG..][..TAG];
            let (from, to) = (piece.offset.max(offset), (piece.offset + piece.len as u64).min(end));
            let wanted = &mut buf[(from - offset) as usize..(to - offset) as usize];
            if wanted.len() == piece.len {
                open_unit(&self.cipher, &piece, ordinal, &sealed, tag, wanted)?;
            } else {
                whole.resize(piece.len, 0);
                open_unit(&self.cipher, &piece, ordinal, &sealed, tag, &mut whole)?;
                wanted.copy_from_slice(&whole[(from - piece.offset) as usize..(to - piece.offset) as usize]);
            }
        }
        Ok(())
    }
}

impl<F: ReadAt> ReadAt for DataReader<F> {
    fn size(&self) -> u64 {
        self.layout.body_size()
    }
    /// As [`DataReader::read`]; the refusal is the error's inner value.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(buf, offset).map_err(|refusal| io::Error::new(io::ErrorKind::InvalidData, refusal))
    }
}

impl<F> fmt::Debug for DataReader<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataReader({} bytes)", self.layout.body_size())
    }
}
