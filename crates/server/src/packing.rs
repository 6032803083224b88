//! Seals a release for one delivery (step 1007; source \[49\]\[61\]): key wraps and terms first, then the body in chunks, in
//! the memory of a few chunks. A delivery that was cut short gets the terms, the wrap and the ciphertext that it had.

use crate::blobs::Kind;
use crate::keys::ServerKeys;
use crate::parcel::{Contents, KEPT_FROM, Parcel};
use crate::server::Server;
use crate::settling::RELEASE_SECRET;
use crate::storage::{CommonPackage, Repository, StoredOrder, StoredParcel, StoredRelease};
use chipbound_sealing::{ContentKey, DirectWrap, Layout, PageKeys, ReadAt, ReleaseSecret, Sealer, wrap_common, wrap_session};
use chipbound_session::Roots;
use chipbound_session::server::{Choice, Consignment};
use chipbound_wire::bounded::{decode, encode};
use chipbound_wire::certificate::SealingKey;
use chipbound_wire::documents::{Kept, Terms, Wrap};
use chipbound_wire::limits::MAX_CHUNK;
use chipbound_wire::messages::Chunk;
use chipbound_wire::random::fresh;
use chipbound_wire::signed::{read_claims, verify_document};
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Code, Digest, Hex, OrderId, Refusal, Result, SystemRandom};
use std::fs::File;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;

/// Chunks that are sealed while others are being sent; a body of no more is sealed and sent by one thread.
const AHEAD: usize = 3;

/// A plaintext, and what it is sealed with.
pub(crate) struct Plain {
    pub(crate) file: File,
    pub(crate) layout: Layout,
    pub(crate) keys: PageKeys,
}

/// Everything that a parcel depends on.
pub(crate) struct Packing<'a, R> {
    pub(crate) server: &'a Server<R>,
    pub(crate) keys: &'a ServerKeys,
    pub(crate) runtime: &'a Handle,
    pub(crate) order: &'a StoredOrder,
    pub(crate) release: &'a StoredRelease,
    pub(crate) choice: Choice,
    /// The processor's certified sealing key.
    pub(crate) sealing_key: &'a [u8],
    /// The session's sealing key.
    pub(crate) session_key: &'a SealingKey,
}

impl<R: Repository> Packing<'_, R> {
    /// Makes the parcel: a release secret, the content key in its mode, terms, wraps.
    pub(crate) fn parcel(&self) -> Result<Parcel> {
        let layout = Layout::decode(&self.release.layout)?;
        let release_secret = ReleaseSecret::generate(&mut SystemRandom);
        match self.choice.key_mode {
            KeyMode::Direct => self.direct(layout, &release_secret),
            KeyMode::Common => self.common(layout, &release_secret),
        }
    }

    /// Source \[49\], claim 4: the content key comes out of the encapsulation to this processor's key, fresh each time.
    fn direct(&self, layout: Layout, release_secret: &ReleaseSecret) -> Result<Parcel> {
        let (suite, order) = (self.choice.suite, &self.order.order);
        let (wrap, content) = DirectWrap::begin(self.sealing_key, suite, release_secret, order, &mut SystemRandom)?;
        let package_id = Digest(fresh(&mut SystemRandom));
        let keys = PageKeys::derive(&content, &package_id, &self.release.plain_digest, suite.aead, layout.format());
        let terms = self.sign_terms(package_id, release_secret, &keys)?;
        let wrap = wrap.finish(&Digest::of(&terms), &keys.commitment())?;
        let mut stored = self.stored(terms, &wrap, &content, release_secret);
        let consignment = self.consignment(&stored, wrap, &content, &layout, 0)?;
        let plain = Plain { file: self.runtime.block_on(self.server.blobs.read(&self.release.blob))?, layout, keys };
        let contents = match self.room_for(&plain.layout)? {
            Some((name, file)) => {
                stored.blob = Some(name);
                Contents::Ahead(plain, file)
            }
            None => Contents::Sealed(plain),
        };
        Ok(Parcel { consignment, stored, contents })
    }

    /// A blob for the ciphertext of a body that is worth it and that there is room for.
    fn room_for(&self, layout: &Layout) -> Result<Option<(String, File)>> {
        let size = layout.body_size();
        if size < KEPT_FROM || size > self.server.policy.kept_bytes {
            return Ok(None);
        }
        let name = Kind::Order.new_name();
        match self.server.blobs.create(&name, size + layout.tags_size()) {
            Ok(file) => Ok(Some((name, file))),
            Err(refusal) if refusal.code == Code::DiskFull => {
                tracing::warn!(order = %self.order.order, %refusal, "a delivery that is cut short will begin anew");
                Ok(None)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Source \[61\]\[62\], claim 5: the release has one content key for each AEAD, wrapped to each processor.
    fn common(&self, layout: Layout, release_secret: &ReleaseSecret) -> Result<Parcel> {
        let (suite, order) = (self.choice.suite, &self.order.order);
        let (package, content) = self.common_package(&layout)?;
        let keys = PageKeys::derive(&content, &package.package_id, &self.release.plain_digest, suite.aead, layout.format());
        let terms = self.sign_terms(package.package_id, release_secret, &keys)?;
        let wrap = wrap_common(self.sealing_key, suite, release_secret, order, &Digest::of(&terms), &content, &mut SystemRandom)?;
        let stored = StoredParcel { roots: package.roots(), ..self.stored(terms, &wrap, &content, release_secret) };
        let consignment = self.consignment(&stored, wrap, &content, &layout, 0)?;
        let sealed = Some(self.runtime.block_on(self.server.blobs.read(&package.blob))?);
        Ok(Parcel { consignment, contents: Contents::Ready { sealed, layout, from: 0, roots: stored.roots }, stored })
    }

    /// The parcel of an earlier delivery that was cut short, to go on where the processor says that it stopped. None where terms, keys
    /// or ciphertext of that time are not here or do not hold any more: then the delivery begins anew.
    pub(crate) fn again(&self, kept: Kept) -> Result<Option<Parcel>> {
        let layout = Layout::decode(&self.release.layout)?;
        let whole = kept.bytes == layout.body_size();
        if kept.bytes == 0 || !whole && (kept.bytes > layout.body_size() || !kept.bytes.is_multiple_of(MAX_CHUNK as u64)) {
            return Ok(None);
        }
        let found = self.runtime.block_on(self.server.repository.parcel(self.order.order, kept.terms))?;
        let Some(stored) = found.filter(|stored| self.holds(stored)) else { return Ok(None) };
        let content = ContentKey::from_bytes(&self.server.kek.open(&parcel_key_context(&stored.order), &stored.content_key)?)?;
        let sealed = match (whole, &stored.blob) {
            (true, _) => None,
            (false, Some(blob)) => match self.runtime.block_on(self.server.blobs.read(blob)) {
                Ok(file) => Some(file),
                Err(refusal) => {
                    tracing::warn!(order = %stored.order, %refusal, "what was sealed of a delivery is not there: it begins anew");
                    return Ok(None);
                }
            },
            (false, None) => match self.common_ciphertext(&stored)? {
                Some(file) => Some(file),
                None => return Ok(None),
            },
        };
        let consignment = self.consignment(&stored, decode(&stored.wrap)?, &content, &layout, kept.bytes)?;
        Ok(Some(Parcel { consignment, contents: Contents::Ready { sealed, layout, from: kept.bytes, roots: stored.roots }, stored }))
    }

    /// Whether terms of an earlier delivery would be made the same way now: this processor with this sealing key, this server's statement key.
    fn holds(&self, stored: &StoredParcel) -> bool {
        let now = self.server.now();
        let Ok(terms) = verify_document::<Terms>(&stored.terms, &self.server.trust.get(), now) else { return false };
        stored.sealing_key == self.sealing_key
            && terms.signer().key_id() == self.keys.statement.key.key_id()
            && terms.processor == self.order.processor
            && terms.manifest == self.order.manifest
            && (terms.suite, terms.key_mode) == (self.choice.suite, self.choice.key_mode)
    }

    /// The ciphertext of the release, if it is the one that these terms are about.
    fn common_ciphertext(&self, stored: &StoredParcel) -> Result<Option<File>> {
        let terms: Terms = read_claims(&stored.terms)?;
        let package = self.runtime.block_on(self.server.repository.common_package(terms.manifest, terms.suite.aead))?;
        match package.filter(|package| terms.key_mode == KeyMode::Common && package.package_id == terms.package_id) {
            Some(package) => self.runtime.block_on(self.server.blobs.read(&package.blob)).map(Some),
            None => Ok(None),
        }
    }

    fn stored(&self, terms: Vec<u8>, wrap: &Wrap, content: &ContentKey, release_secret: &ReleaseSecret) -> StoredParcel {
        let kek = &self.server.kek;
        StoredParcel {
            order: self.order.order,
            terms,
            wrap: encode(wrap),
            kem: self.choice.suite.kem,
            sealing_key: self.sealing_key.to_vec(),
            release_secret: kek.seal(RELEASE_SECRET, release_secret.bytes()),
            content_key: kek.seal(&parcel_key_context(&self.order.order), content.bytes()),
            blob: None,
            roots: Roots { body_root: Digest([0; 32]), body_size: 0, table_root: Digest([0; 32]), table_size: 0 },
            until: self.server.now().after(self.server.policy.order_seconds),
        }
    }

    fn sign_terms(&self, package_id: Digest, release_secret: &ReleaseSecret, keys: &PageKeys) -> Result<Vec<u8>> {
        self.keys.statement.signer().sign(&Terms {
            order: self.order.order,
            account: self.order.account,
            processor: self.order.processor,
            manifest: self.order.manifest,
            suite: self.choice.suite,
            format: self.choice.format,
            key_mode: self.choice.key_mode,
            package_id,
            release_commitment: release_secret.commitment(),
            key_commitment: keys.commitment(),
        })
    }

    fn consignment(&self, stored: &StoredParcel, wrap: Wrap, content: &ContentKey, layout: &Layout, from: u64) -> Result<Consignment> {
        let terms = Digest::of(&stored.terms);
        Ok(Consignment {
            terms: stored.terms.clone(),
            manifest: self.release.signed_manifest.clone(),
            wrap,
            session_wrap: wrap_session(self.session_key, self.choice.suite, &terms, content, &mut SystemRandom)?,
            layout: layout.encode(),
            plain_digest: self.release.plain_digest,
            from,
        })
    }

    /// The release's common package, made now if nobody needed it before. Whoever comes while it is being made waits.
    fn common_package(&self, layout: &Layout) -> Result<(CommonPackage, ContentKey)> {
        let (server, manifest, aead) = (self.server, self.release.manifest, self.choice.suite.aead);
        let making = server.making.of((manifest, aead));
        let _alone = making.lock().unwrap_or_else(PoisonError::into_inner);
        let package = match self.runtime.block_on(server.repository.common_package(manifest, aead))? {
            Some(package) => package,
            None => self.make_common_package(layout)?,
        };
        let content = server.kek.open(&content_key_context(&package.package_id), &package.content_key)?;
        Ok((package, ContentKey::from_bytes(&content)?))
    }

    fn make_common_package(&self, layout: &Layout) -> Result<CommonPackage> {
        let (server, aead) = (self.server, self.choice.suite.aead);
        let content = ContentKey::generate(&mut SystemRandom);
        let package_id = Digest(fresh(&mut SystemRandom));
        let keys = PageKeys::derive(&content, &package_id, &self.release.plain_digest, aead, layout.format());
        let blob = Kind::Common.new_name();
        let plain = Plain { file: self.runtime.block_on(server.blobs.read(&self.release.blob))?, layout: layout.clone(), keys };
        let mut writing = self.runtime.block_on(server.blobs.begin(&blob))?;
        let roots = seal_all(&plain, |chunk| {
            self.runtime.block_on(async {
                writing.put(chunk.tags).await?;
                writing.put(chunk.bytes).await
            })
        })?;
        self.runtime.block_on(writing.finish())?;
        let mut package = CommonPackage {
            manifest: self.release.manifest,
            aead,
            package_id,
            content_key: Vec::new(),
            blob,
            body_root: roots.body_root,
            body_size: roots.body_size,
            table_root: roots.table_root,
            table_size: roots.table_size,
        };
        package.content_key = server.kek.seal(&content_key_context(&package.package_id), content.bytes());
        let kept = self.runtime.block_on(server.repository.keep_common_package(&package))?;
        if kept != package {
            self.runtime.block_on(server.blobs.remove(&package.blob))?; // Another instance was faster.
        }
        Ok(kept)
    }
}

/// What a content key is sealed as, at rest: it opens for its own package only.
pub(crate) fn content_key_context(package_id: &Digest) -> String {
    format!("content key {}", Hex(&package_id.0))
}

/// What the content key of one order's parcel is sealed as, at rest.
pub(crate) fn parcel_key_context(order: &OrderId) -> String {
    format!("content key of order {order}")
}

/// As the second path names them.
pub(crate) fn roots(sealed: chipbound_sealing::Roots) -> Roots {
    let chipbound_sealing::Roots { body_root, body_size, table_root, table_size } = sealed;
    Roots { body_root, body_size, table_root, table_size }
}

/// A chunk's buffers, used again and again.
#[derive(Default)]
struct Buffers {
    offset: u64,
    bytes: Vec<u8>,
    tags: Vec<u8>,
}

impl Buffers {
    fn chunk(&self) -> Chunk<'_> {
        Chunk { offset: self.offset, tags: &self.tags, bytes: &self.bytes }
    }
}

/// Seals a plaintext chunk by chunk.
struct Sealing<'a> {
    plain: &'a File,
    size: u64,
    at: u64,
    sealer: Sealer,
}

impl<'a> Sealing<'a> {
    fn new(plain: &'a File, layout: &Layout, keys: &PageKeys) -> Result<Self> {
        Ok(Self { plain, size: layout.body_size(), at: 0, sealer: Sealer::new(layout, keys)? })
    }

    /// The next chunk, or false at the end.
    fn next(&mut self, buffers: &mut Buffers) -> Result<bool> {
        let len = (self.size - self.at).min(MAX_CHUNK as u64) as usize;
        if len == 0 {
            return Ok(false);
        }
        buffers.offset = self.at;
        buffers.bytes.resize(len, 0);
        buffers.tags.clear();
        self.plain.read_exact_at(&mut buffers.bytes, self.at).map_err(|e| Refusal::io("reading a program", e))?;
        self.sealer.seal_chunk(&mut buffers.bytes, &mut buffers.tags)?;
        self.at += len as u64;
        Ok(true)
    }

    fn finish(self) -> Result<Roots> {
        self.sealer.finish().map(roots)
    }
}

/// Seals everything and gives it to `send`; a large body on a second thread, so that sealing and sending go side by side.
pub(crate) fn seal_all(plain: &Plain, mut send: impl FnMut(&Chunk<'_>) -> Result<()>) -> Result<Roots> {
    let Plain { file, layout, keys } = plain;
    let mut sealing = Sealing::new(file, layout, keys)?;
    if layout.body_size() <= (AHEAD * MAX_CHUNK) as u64 {
        let mut buffers = Buffers::default();
        while sealing.next(&mut buffers)? {
            send(&buffers.chunk())?;
        }
        return sealing.finish();
    }
    let (full, sealed) = sync_channel::<Buffers>(AHEAD);
    let (give_back, empty) = sync_channel::<Buffers>(AHEAD + 2);
    std::thread::scope(|scope| {
        let sealer = std::thread::Builder::new().name("sealing".to_owned());
        let sealer = sealer.spawn_scoped(scope, move || seal_ahead(sealing, &full, &empty));
        let sealer = sealer.map_err(|e| Refusal::io("starting a thread", e))?;
        let sent = sealed.iter().try_for_each(|buffers| {
            send(&buffers.chunk())?;
            let _ = give_back.try_send(buffers); // Full: the buffer is dropped, a new one is made.
            Ok(())
        });
        drop(sealed); // Ends the sealing thread where sending failed.
        let roots = sealer.join().unwrap_or_else(|_| Err(Refusal::new(Code::Internal, "sealing failed")));
        sent.and(roots)
    })
}

fn seal_ahead(mut sealing: Sealing<'_>, full: &SyncSender<Buffers>, empty: &Receiver<Buffers>) -> Result<Roots> {
    loop {
        let mut buffers = empty.try_recv().unwrap_or_default();
        if !sealing.next(&mut buffers)? {
            return sealing.finish();
        }
        if full.send(buffers).is_err() {
            return Err(Refusal::new(Code::Cancelled, "nobody takes the chunks any more"));
        }
    }
}

/// One lock for each common package that was asked for.
#[derive(Default)]
pub(crate) struct Making(Mutex<std::collections::HashMap<PackageName, Arc<Mutex<()>>>>);

type PackageName = (Digest, chipbound_wire::suite::Aead);

impl Making {
    fn of(&self, name: PackageName) -> Arc<Mutex<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default().clone()
    }
}
