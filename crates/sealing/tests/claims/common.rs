//! What the tests share: sealing and opening whole bodies, and a complete package around them.

use chipbound_sealing::package::trailer;
use chipbound_sealing::{ContentKey, Layout, Opened, Opener, PageKeys, Roots, Sealer, plain_digest};
use chipbound_wire::bounded::Bytes;
use chipbound_wire::documents::{PackageDocuments, Seal, Wrap};
use chipbound_wire::limits::MAX_CHUNK;
use chipbound_wire::messages::Chunk;
use chipbound_wire::suite::{Aead, Kem};
use chipbound_wire::{Digest, Result, SystemRandom, random::fresh};

/// A sealed body with all that belongs to it.
#[derive(Clone)]
pub(crate) struct Sealed {
    pub(crate) layout: Layout,
    pub(crate) keys: PageKeys,
    pub(crate) body: Vec<u8>,
    pub(crate) tags: Vec<u8>,
    pub(crate) roots: Roots,
}

pub(crate) fn seal(plain: &[u8], aead: Aead) -> Sealed {
    seal_by(plain, Layout::detect(&plain).expect("a layout"), aead)
}

/// Sealed by this layout, with keys of its own.
pub(crate) fn seal_by(plain: &[u8], layout: Layout, aead: Aead) -> Sealed {
    let keys = keys(&layout, plain, aead);
    seal_with(plain, layout, keys)
}

pub(crate) fn keys(layout: &Layout, plain: &[u8], aead: Aead) -> PageKeys {
    let digest = plain_digest(&plain, layout).expect("plain digest");
    let package_id = Digest(fresh(&mut SystemRandom));
    PageKeys::derive(&ContentKey::generate(&mut SystemRandom), &package_id, &digest, aead, layout.format())
}

pub(crate) fn seal_with(plain: &[u8], layout: Layout, keys: PageKeys) -> Sealed {
    let mut sealer = Sealer::new(&layout, &keys).expect("a sealer");
    let (mut body, mut tags) = (plain.to_vec(), Vec::new());
    for chunk in body.chunks_mut(MAX_CHUNK) {
        sealer.seal_chunk(chunk, &mut tags).expect("sealed");
    }
    let roots = sealer.finish().expect("roots");
    Sealed { layout, keys, body, tags, roots }
}

impl Sealed {
    pub(crate) fn open(&self) -> Result<(Vec<u8>, Opened)> {
        let mut opener = Opener::new(self.layout.clone(), &self.keys)?;
        let (mut opened, mut plain, mut tags) = (Vec::new(), Vec::new(), self.tags.as_slice());
        for (at, bytes) in self.body.chunks(MAX_CHUNK).enumerate() {
            let offset = (at * MAX_CHUNK) as u64;
            let count = (self.layout.tags_ending_in(offset, bytes.len()) * 16).min(tags.len());
            let (now, later) = tags.split_at(count);
            opener.open_chunk(&Chunk { offset, tags: now, bytes }, &mut plain)?;
            opened.extend_from_slice(&plain);
            tags = later;
        }
        Ok((opened, opener.finish()?))
    }

    /// The seal's word on the bytes; everything else in it is of no interest here.
    pub(crate) fn seal(&self) -> Seal {
        let none = Digest([0; 32]);
        Seal {
            terms: none,
            wrap: none,
            session_wrap: none,
            exchange: none,
            plain_digest: self.keys.plain_digest(),
            body_root: self.roots.body_root,
            body_size: self.roots.body_size,
            table_root: self.roots.table_root,
            table_size: self.roots.table_size,
        }
    }

    /// The file of a package, with documents of the right form.
    pub(crate) fn file(&self) -> Vec<u8> {
        [self.body.as_slice(), &trailer(&self.layout, &self.tags, &documents())].concat()
    }
}

pub(crate) fn documents() -> PackageDocuments {
    let bytes = |text: &str| Bytes::new(text.as_bytes().to_vec()).expect("short");
    PackageDocuments {
        terms: bytes("terms"),
        wrap: Wrap { kem: Kem::XWing, enc: Bytes::new(vec![1; 1120]).expect("short"), ciphertext: Bytes::new(vec![2; 48]).expect("short") },
        seal: bytes("seal"),
        token: bytes("token"),
        sealed_manifest: bytes("manifest"),
    }
}
