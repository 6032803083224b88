//! The file of a package: the body, then what a plain ELF file does not have: `layout ‖ tags ‖ documents ‖ footer`. The footer
//! is eight bytes of magic and three lengths of eight bytes, big endian: layout, tags, documents. On the disk of the machine that it
//! was delivered to, a [`StartRecord`] may follow.

use crate::layout::Layout;
use crate::read_at::ReadAt;
use crate::start::{Delivered, StartRecord};
use chipbound_wire::bounded::{decode, encode};
use chipbound_wire::documents::PackageDocuments;
use chipbound_wire::limits::{MAX_DOCUMENT, MAX_LAYOUT};
use chipbound_wire::{Code, Digest, Refusal, Result};

/// What a package ends with, before the three lengths.
pub const MAGIC: [u8; 8] = *b"CBPKG\0\0\x01";
/// Bytes of the footer.
pub const FOOTER: usize = 32;
/// Bytes of the documents of a package in CBOR.
pub const MAX_DOCUMENTS: usize = 5 * MAX_DOCUMENT;

/// What follows the body of a package, read and checked for form alone: nothing here is authentic before the documents were
/// verified and [`crate::PackageReader::new`] compared the rest with the seal.
#[derive(Clone, Debug)]
pub struct Package {
    /// Which bytes are sealed.
    pub layout: Layout,
    /// The tags of all units, in order.
    pub tags: Vec<u8>,
    /// Terms, wrap, seal, token and sealed manifest.
    pub documents: PackageDocuments,
    /// What was changed when the package was put on this disk, if anything: it is undone in all that is read and verified.
    pub start: Option<StartRecord>,
}

impl Package {
    /// Reads the end of a package: [`Code::NotAPackage`] where no package ends, [`Code::PackageTruncated`] where its parts do not
    /// fill the file, [`Code::PlainPartsAltered`] where it has a start record that does not fit. Takes memory for the tags, 1/256 of a program's and 1/4096 of data's size.
    pub fn read(file: &dyn ReadAt) -> Result<Self> {
        let start = StartRecord::read(file)?;
        let file: &dyn ReadAt = &Delivered::new(file, start.as_ref());
        let [layout_len, tags_len, documents_len] = read_footer(file)?;
        if layout_len > MAX_LAYOUT as u64 || documents_len > MAX_DOCUMENTS as u64 {
            return Err(Refusal::new(Code::TooLarge, "the package's layout or documents are larger than their limits"));
        }
        let truncated = || Refusal::new(Code::PackageTruncated, "the parts of the package do not fill its file");
        let appended = (layout_len + documents_len + FOOTER as u64).checked_add(tags_len).ok_or_else(truncated)?;
        let body_size = file.size().checked_sub(appended).ok_or_else(truncated)?;

        let layout = Layout::decode(&read(file, body_size, layout_len)?).map_err(|e| truncated().because(e))?;
        if layout.body_size() != body_size || layout.tags_size() != tags_len {
            return Err(truncated());
        }
        let tags = read(file, body_size + layout_len, tags_len)?;
        let documents = decode(&read(file, body_size + layout_len + tags_len, documents_len)?)?;
        Ok(Self { layout, tags, documents, start })
    }

    /// BLAKE3 over the table, the layout and the tags, as the seal names it.
    #[must_use]
    pub fn table_root(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        Digest(*hasher.update(&self.layout.encode()).update(&self.tags).finalize().as_bytes())
    }

    /// Bytes of the table.
    #[must_use]
    pub fn table_size(&self) -> u64 {
        self.layout.encode().len() as u64 + self.tags.len() as u64
    }
}

/// All that is appended to a body of that layout. [`ending`] spares the copy of many tags.
#[must_use]
pub fn trailer(layout: &Layout, tags: &[u8], documents: &PackageDocuments) -> Vec<u8> {
    [layout.encode().as_slice(), tags, &ending(layout, documents)].concat()
}

/// What is appended after body, [`Layout::encode`] and tags: the documents and the footer.
#[must_use]
pub fn ending(layout: &Layout, documents: &PackageDocuments) -> Vec<u8> {
    let mut bytes = encode(documents);
    let documents_len = bytes.len() as u64;
    bytes.extend(MAGIC);
    for len in [layout.encode().len() as u64, layout.tags_size(), documents_len] {
        bytes.extend(len.to_be_bytes());
    }
    bytes
}

fn read_footer(file: &dyn ReadAt) -> Result<[u64; 3]> {
    let not = || Refusal::new(Code::NotAPackage, "the file does not end like a package: it is none, or was cut");
    let at = file.size().checked_sub(FOOTER as u64).ok_or_else(not)?;
    let footer = read(file, at, FOOTER as u64)?;
    let lengths = footer.strip_prefix(&MAGIC).ok_or_else(not)?;
    Ok(std::array::from_fn(|i| u64::from_be_bytes(std::array::from_fn(|j| lengths[8 * i + j]))))
}

/// Bytes whose number was checked against the file's size or a limit.
pub(crate) fn read(file: &dyn ReadAt, offset: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, offset).map_err(|e| Refusal::io("reading a package", e))?;
    Ok(bytes)
}
