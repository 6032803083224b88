//! Seals a release for one delivery (step 1007; source \[49\]\[61\]): key wraps and terms first, then the body in chunks, in
//! the memory of a few chunks.

use crate::blobs::Kind;
use crate::keys::ServerKeys;
use crate::server::Server;
use crate::storage::{CommonPackage, Repository, StoredOrder, StoredRelease};
use chipbound_sealing::{ContentKey, DirectWrap, Layout, PageKeys, ReadAt, ReleaseSecret, Sealer, wrap_common, wrap_session};
use chipbound_session::Roots;
use chipbound_session::server::{Choice, Consignment};
use chipbound_wire::certificate::SealingKey;
use chipbound_wire::documents::{Terms, Wrap};
use chipbound_wire::limits::{MAX_CHUNK, TAG};
use chipbound_wire::messages::Chunk;
use chipbound_wire::random::fresh;
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Code, Digest, Hex, Refusal, Result, SystemRandom};
use std::fs::File;
use std::io::Read;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;

/// Chunks that are sealed while others are being sent; a body of no more is sealed and sent by one thread.
const AHEAD: usize = 3;

/// What goes to one processor for one order.
pub(crate) struct Parcel {
    /// What the second path sends before the chunks.
    pub(crate) consignment: Consignment,
    /// What the release token will carry.
    pub(crate) release_secret: ReleaseSecret,
    /// The chunks.
    pub(crate) contents: Contents,
}

/// The body of a package: sealed as it goes out, or ciphertext that was made before.
pub(crate) enum Contents {
    Direct { plain: File, layout: Layout, keys: PageKeys },
    Common { sealed: File, layout: Layout, roots: Roots },
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
            KeyMode::Direct => self.direct(layout, release_secret),
            KeyMode::Common => self.common(layout, release_secret),
        }
    }

    /// Source \[49\], claim 4: the content key comes out of the encapsulation to this processor's key, fresh each time.
    fn direct(&self, layout: Layout, release_secret: ReleaseSecret) -> Result<Parcel> {
        let (suite, order) = (self.choice.suite, &self.order.order);
        let (wrap, content) = DirectWrap::begin(self.sealing_key, suite, &release_secret, order, &mut SystemRandom)?;
        let package_id = Digest(fresh(&mut SystemRandom));
        let keys = PageKeys::derive(&content, &package_id, &self.release.plain_digest, suite.aead, layout.format());
        let terms = self.sign_terms(package_id, &release_secret, &keys)?;
        let wrap = wrap.finish(&Digest::of(&terms), &keys.commitment())?;
        let consignment = self.consignment(terms, wrap, &content, &layout)?;
        let plain = self.runtime.block_on(self.server.blobs.read(&self.release.blob))?;
        Ok(Parcel { consignment, release_secret, contents: Contents::Direct { plain, layout, keys } })
    }

    /// Source \[61\]\[62\], claim 5: the release has one content key for each AEAD, wrapped to each processor.
    fn common(&self, layout: Layout, release_secret: ReleaseSecret) -> Result<Parcel> {
        let (suite, order) = (self.choice.suite, &self.order.order);
        let (package, content) = self.common_package(&layout)?;
        let keys = PageKeys::derive(&content, &package.package_id, &self.release.plain_digest, suite.aead, layout.format());
        let terms = self.sign_terms(package.package_id, &release_secret, &keys)?;
        let wrap = wrap_common(self.sealing_key, suite, &release_secret, order, &Digest::of(&terms), &content, &mut SystemRandom)?;
        let consignment = self.consignment(terms, wrap, &content, &layout)?;
        let sealed = self.runtime.block_on(self.server.blobs.read(&package.blob))?;
        let CommonPackage { body_root, body_size, table_root, table_size, .. } = package;
        let roots = Roots { body_root, body_size, table_root, table_size };
        Ok(Parcel { consignment, release_secret, contents: Contents::Common { sealed, layout, roots } })
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

    fn consignment(&self, terms: Vec<u8>, wrap: Wrap, content: &ContentKey, layout: &Layout) -> Result<Consignment> {
        let session_wrap = wrap_session(self.session_key, self.choice.suite, &Digest::of(&terms), content, &mut SystemRandom)?;
        Ok(Consignment {
            terms,
            manifest: self.release.signed_manifest.clone(),
            wrap,
            session_wrap,
            layout: layout.encode(),
            plain_digest: self.release.plain_digest,
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
        let content = server.kek.open(&content_key_context(&package), &package.content_key)?;
        Ok((package, ContentKey::from_bytes(&content)?))
    }

    fn make_common_package(&self, layout: &Layout) -> Result<CommonPackage> {
        let (server, aead) = (self.server, self.choice.suite.aead);
        let content = ContentKey::generate(&mut SystemRandom);
        let package_id = Digest(fresh(&mut SystemRandom));
        let keys = PageKeys::derive(&content, &package_id, &self.release.plain_digest, aead, layout.format());
        let blob = Kind::Common.new_name();
        let plain = self.runtime.block_on(server.blobs.read(&self.release.blob))?;
        let mut writing = self.runtime.block_on(server.blobs.begin(&blob))?;
        let roots = seal_all(&plain, layout, &keys, |chunk| {
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
        package.content_key = server.kek.seal(&content_key_context(&package), content.bytes());
        let kept = self.runtime.block_on(server.repository.keep_common_package(&package))?;
        if kept != package {
            self.runtime.block_on(server.blobs.remove(&package.blob))?; // Another instance was faster.
        }
        Ok(kept)
    }
}

/// What a content key is sealed as, at rest: it opens for its own package only.
fn content_key_context(package: &CommonPackage) -> String {
    format!("content key {}", Hex(&package.package_id.0))
}

impl Contents {
    /// Gives `send` every chunk in order; the roots over all of them.
    pub(crate) fn send(self, send: impl FnMut(&Chunk<'_>) -> Result<()>) -> Result<Roots> {
        match self {
            Self::Direct { plain, layout, keys } => seal_all(&plain, &layout, &keys, send),
            Self::Common { sealed, layout, roots } => send_sealed(sealed, &layout, send).map(|()| roots),
        }
    }
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
        let roots = self.sealer.finish()?;
        let chipbound_sealing::Roots { body_root, body_size, table_root, table_size } = roots;
        Ok(Roots { body_root, body_size, table_root, table_size })
    }
}

/// Seals everything and gives it to `send`; a large body on a second thread, so that sealing and sending go side by side.
fn seal_all(plain: &File, layout: &Layout, keys: &PageKeys, mut send: impl FnMut(&Chunk<'_>) -> Result<()>) -> Result<Roots> {
    let mut sealing = Sealing::new(plain, layout, keys)?;
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

/// Sends common ciphertext: for each chunk its tags, then its bytes, as they were written.
fn send_sealed(mut sealed: File, layout: &Layout, mut send: impl FnMut(&Chunk<'_>) -> Result<()>) -> Result<()> {
    let mut buffer = Vec::new();
    let mut offset = 0;
    while offset < layout.body_size() {
        let len = (layout.body_size() - offset).min(MAX_CHUNK as u64) as usize;
        let tags = layout.tags_ending_in(offset, len) * TAG;
        buffer.resize(tags + len, 0);
        sealed.read_exact(&mut buffer).map_err(|e| Refusal::io("reading common ciphertext", e))?;
        send(&Chunk { offset, tags: &buffer[..tags], bytes: &buffer[tags..] })?;
        offset += len as u64;
    }
    Ok(())
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
