//! A vendor, a server's end of the second path that can lie, and a processor, in memory and a temporary folder.

use chipbound_authority::issuing::{Leaf, Validity};
use chipbound_processor::config::Config;
use chipbound_processor::processor::Processor;
use chipbound_processor::receive::{Held, receive};
use chipbound_processor::vault::Vault;
use chipbound_sealing::package::trailer;
use chipbound_sealing::{
    ContentKey, DirectWrap, Layout, PageKeys, ReleaseSecret, Sealer, plain_digest, seal_manifest, seal_release, wrap_common, wrap_session,
};
use chipbound_session::path::Path;
use chipbound_session::server::{self, Consignment, Policy, Purpose};
use chipbound_session::tls::{DefaultTimeProvider, Identity, SharedTrust, server_config};
use chipbound_session::{Context, Roots};
use chipbound_testkit::{Holder, Pki, Wanted, documents};
use chipbound_trusted_core::{KeyStore, Record, Release, Step};
use chipbound_wire::bounded::{Bytes, List, encode};
use chipbound_wire::certificate::{Chain, Role, SealingKeys, Trust};
use chipbound_wire::documents::{Manifest, PackageDocuments, ReleaseToken, Seal, Terms, Wrap};
use chipbound_wire::enrolment::Issued;
use chipbound_wire::limits::MAX_CHUNK;
use chipbound_wire::messages::{Chunk, Kind};
use chipbound_wire::signature::Sign;
use chipbound_wire::signed::verify_document;
use chipbound_wire::suite::{Aead, Class, Format, Kem, KeyMode, Profile, Suite};
use chipbound_wire::{Digest, KeyId, OrderId, Refusal, Result, SystemRandom, Time};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use tempfile::TempDir;

/// The suites that the server of the tests asks for.
pub(crate) const X_WING: Suite = Suite { kem: Kem::XWing, aead: Aead::Aes256Gcm };

pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) pki: Pki,
    pub(crate) vendor: Holder,
    pub(crate) second_path: Holder,
    pub(crate) statement: Holder,
    pub(crate) us: Processor,
}

pub(crate) fn now() -> Time {
    chipbound_host::now()
}

/// A server's key: all of one server's certificates have its subject.
pub(crate) fn server_key(pki: &Pki, role: Role, subject: &str) -> Holder {
    pki.holder_of(&Wanted { subject: subject.to_owned(), ..Wanted::role(role) })
}

/// A new installation in `folder`, not enrolled.
pub(crate) fn install(folder: &std::path::Path) -> Config {
    chipbound_host::files::create_private_folder(folder).expect("folder");
    let path = folder.join("processor.toml");
    std::fs::write(&path, Config::template(false)).expect("configuration");
    let config = Config::load(&path).expect("the template");
    Vault::create(&config.state).expect("keys");
    config
}

/// What an authority with `pki` would issue for the keys in `vault`.
pub(crate) fn certify(pki: &Pki, vault: &Vault, until: Time) -> Issued {
    let keys = vault.keys();
    let sealing = SealingKeys { class: Class::Software, keys: List::new(keys.sealing_keys()).expect("few") };
    let validity = Validity { not_before: Time(now().0 - 60), not_after: until };
    let leaf = Leaf { role: Role::Processor, subject: "processor", spki: keys.spki(), validity, sealing: Some(&sealing) };
    let certificate = pki.issuer().leaf(&leaf, &mut SystemRandom).expect("a certificate");
    let chain = [certificate, pki.issuing().to_vec()].map(|c| Bytes::new(c).expect("within its limit"));
    Issued {
        chain: Chain::new(chain.to_vec()).expect("two"),
        root: Bytes::new(pki.root().to_vec()).expect("within its limit"),
        revocations: Bytes::new(pki.revocations(&[])).expect("within its limit"),
    }
}

/// A processor in `folder`, enrolled under `pki`.
pub(crate) fn processor(pki: &Pki, folder: &std::path::Path) -> Processor {
    let us = Processor::open(install(folder)).expect("a processor");
    us.vault.enroll("https://authority.invalid", certify(pki, &us.vault, now().after(3600))).expect("enrolled");
    us
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let pki = Pki::new(now());
        let us = processor(&pki, &folder.path().join("processor"));
        Self {
            vendor: pki.holder(Role::Vendor),
            second_path: server_key(&pki, Role::ServerSecondPath, "shop"),
            statement: server_key(&pki, Role::ServerStatement, "shop"),
            folder,
            pki,
            us,
        }
    }

    pub(crate) fn id(&self) -> KeyId {
        self.us.vault.keys().key_id()
    }

    /// The same installation, as after a restart of the daemon.
    pub(crate) fn restart(&mut self) {
        self.us = Processor::open(self.us.config.clone()).expect("opens again");
    }

    pub(crate) fn spool(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.us.config.spool).expect("the spool");
        entries.map(|e| e.expect("entry").path()).collect()
    }
}

/// One order and everything the server sends for it.
#[derive(Clone, Debug)]
pub(crate) struct Shipment {
    pub(crate) order: OrderId,
    pub(crate) manifest: Vec<u8>,
    pub(crate) confirmation: Vec<u8>,
    pub(crate) plaintext: Vec<u8>,
    pub(crate) format: Format,
    pub(crate) profile: Profile,
    pub(crate) key_mode: KeyMode,
    pub(crate) suite: Suite,
    pub(crate) secret: ReleaseSecret,
    /// The common key of the release.
    pub(crate) common: ContentKey,
}

impl World {
    /// An order of `plaintext` by this processor; `change` edits the vendor's manifest before it is signed.
    pub(crate) fn ship(&self, plaintext: &[u8], change: impl FnOnce(&mut Manifest)) -> Shipment {
        let mut manifest = documents::manifest(&self.vendor.id(), plaintext);
        let layout = Layout::detect(&plaintext).expect("a layout");
        manifest.format = layout.format();
        if layout.format() == Format::ElfX8664 {
            manifest.profile = Profile::Code;
        }
        change(&mut manifest);
        let signed = self.vendor.sign(&manifest);
        let mut confirmation = documents::confirmation(&manifest, &signed, self.id(), now());
        confirmation.order = OrderId(chipbound_wire::random::fresh(&mut SystemRandom));
        Shipment {
            order: confirmation.order,
            confirmation: self.statement.sign(&confirmation),
            manifest: signed,
            plaintext: plaintext.to_vec(),
            format: layout.format(),
            profile: manifest.profile,
            key_mode: KeyMode::Direct,
            suite: X_WING,
            secret: ReleaseSecret::generate(&mut SystemRandom),
            common: ContentKey::generate(&mut SystemRandom),
        }
    }
}

/// A chunk on its way.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) offset: u64,
    pub(crate) tags: Vec<u8>,
    pub(crate) bytes: Vec<u8>,
}

/// Where the server lies; nowhere by default.
pub(crate) struct Lies {
    pub(crate) chunks: fn(Vec<Sent>) -> Vec<Sent>,
    pub(crate) session_key: Option<ContentKey>,
    pub(crate) seal: fn(Vec<u8>) -> Vec<u8>,
    pub(crate) roots: fn(&mut Roots),
    pub(crate) layout: Option<Vec<u8>>,
    /// Seals by another layout than the profile's.
    pub(crate) sealed_by: Option<Layout>,
    /// Seals this in place of what the vendor signed.
    pub(crate) program: Option<Vec<u8>>,
    /// Goes away before the seal.
    pub(crate) hang_up: bool,
    /// Goes away without a word after so many chunks.
    pub(crate) cut_after: Option<usize>,
    /// What was sealed before; goes on with it where the processor offers to.
    pub(crate) prepared: Option<Arc<Prepared>>,
}

/// One encryption of a shipment, to be sent more than once.
pub(crate) struct Prepared {
    sealed: Sealed,
    pub(crate) chunks: Vec<Sent>,
    roots: Roots,
}

impl Default for Lies {
    fn default() -> Self {
        Self {
            chunks: |c| c,
            session_key: None,
            seal: |s| s,
            roots: |_| {},
            layout: None,
            sealed_by: None,
            program: None,
            hang_up: false,
            cut_after: None,
            prepared: None,
        }
    }
}

/// What the server knows after a delivery.
#[derive(Clone, Debug)]
pub(crate) struct Delivered {
    pub(crate) terms: Vec<u8>,
    pub(crate) wrap: Wrap,
    pub(crate) seal: Vec<u8>,
    pub(crate) acknowledgement: Vec<u8>,
}

/// The server's end over `stream`.
pub(crate) fn serve<S: Read + Write>(stream: S, world: &World, shipment: &Shipment, lies: &Lies) -> Result<Delivered> {
    let key: Arc<dyn Sign> = Arc::new(world.second_path.key.clone());
    let identity = Identity { key, chain: world.second_path.chain.clone() };
    let config = server_config(&identity, SharedTrust::new(world.pki.trust()), Arc::new(DefaultTimeProvider))?;
    let mut path = Path::accept(stream, &config)?;
    match converse(&mut path, world, shipment, lies) {
        Ok(delivered) => path.close().map(|()| delivered),
        Err(refusal) => {
            path.abort(&refusal);
            Err(refusal)
        }
    }
}

fn converse<S: Read + Write>(path: &mut Path<S>, world: &World, shipment: &Shipment, lies: &Lies) -> Result<Delivered> {
    let (trust, signer, statement) = (world.pki.trust(), world.second_path.signer(), world.statement.signer());
    let context = Context { trust: &trust, now: now(), signer: &signer };
    let processor = path.peer().key_id();
    let state = server::begin(path.channel(), Purpose { order: shipment.order, processor, statement_key: world.statement.id() })?;
    let (state, exchange) = state.hello(path.expect(Kind::Hello)?, &context, &mut SystemRandom)?;
    path.send(Kind::ServerExchange, &exchange)?;
    let state = state.processor_exchange(path.expect(Kind::ProcessorExchange)?, &context)?;
    path.send(Kind::AskCapabilities, &[])?;
    let negotiating = state.offer(path.expect(Kind::Offer)?, &context)?;
    let manifest = verify_document::<Manifest>(&shipment.manifest, &trust, now())?;
    negotiating.choose(&Policy { suites: vec![shipment.suite], key_modes: vec![shipment.key_mode] }, &manifest)?;

    let plaintext = lies.program.as_ref().unwrap_or(&shipment.plaintext);
    let layout = lies.sealed_by.clone().map_or_else(|| Layout::of(shipment.profile, plaintext), Ok)?;
    let plain = plain_digest(plaintext, &layout)?;
    let prepared = match &lies.prepared {
        Some(prepared) => Arc::clone(prepared),
        None => {
            let sealed = Sealed::prepare(world, shipment, processor, negotiating.sealing_key(shipment.suite)?, &plain)?;
            let (chunks, roots) = seal_all(plaintext, &layout, &sealed.keys)?;
            Arc::new(Prepared { sealed, chunks, roots })
        }
    };
    let sealed = &prepared.sealed;
    let session = lies.session_key.as_ref().unwrap_or(&sealed.content);
    let digest = Digest::of(&sealed.terms);
    let session_wrap = wrap_session(negotiating.session_key(), shipment.suite, &digest, session, &mut SystemRandom)?;
    let from = negotiating.kept().filter(|kept| kept.terms == digest).map_or(0, |kept| kept.bytes);
    let consignment = Consignment {
        terms: sealed.terms.clone(),
        manifest: shipment.manifest.clone(),
        wrap: sealed.wrap.clone(),
        session_wrap,
        layout: lies.layout.clone().unwrap_or_else(|| layout.encode()),
        plain_digest: plain,
        from,
    };
    let (sending, start) = negotiating.start(consignment, &context)?;
    path.send(Kind::Start, &start)?;

    let mut roots = prepared.roots;
    for (number, chunk) in (lies.chunks)(prepared.chunks.clone()).into_iter().filter(|chunk| chunk.offset >= from).enumerate() {
        if lies.cut_after == Some(number) {
            return Err(Refusal::new(chipbound_wire::Code::TimedOut, "the line is cut"));
        }
        path.send_chunk(&Chunk { offset: chunk.offset, tags: &chunk.tags, bytes: &chunk.bytes })?;
    }
    if lies.hang_up {
        return Err(Refusal::new(chipbound_wire::Code::Internal, "the server of the test goes away"));
    }
    (lies.roots)(&mut roots);
    let (awaiting, seal) = sending.seal(&roots, &statement)?;
    path.send(Kind::Seal, &(lies.seal)(seal.clone()))?;
    let acknowledgement = awaiting.acknowledgement(path.expect(Kind::Acknowledgement)?, &context)?.bytes().to_vec();
    Ok(Delivered { terms: sealed.terms.clone(), wrap: sealed.wrap.clone(), seal, acknowledgement })
}

/// Terms, wrap and keys of one encryption.
struct Sealed {
    terms: Vec<u8>,
    wrap: Wrap,
    content: ContentKey,
    keys: PageKeys,
}

impl Sealed {
    fn prepare(world: &World, shipment: &Shipment, processor: KeyId, public: &[u8], plain: &Digest) -> Result<Self> {
        let random = &mut SystemRandom;
        let Shipment { suite, key_mode, format, order, secret, .. } = shipment;
        let (direct, content) = match key_mode {
            KeyMode::Direct => {
                let (direct, content) = DirectWrap::begin(public, *suite, secret, order, random)?;
                (Some(direct), content)
            }
            KeyMode::Common => (None, shipment.common.clone()),
        };
        let package_id = Digest(chipbound_wire::random::fresh(random));
        let keys = PageKeys::derive(&content, &package_id, plain, suite.aead, *format);
        let terms = world.statement.sign(&Terms {
            order: *order,
            account: documents::ACCOUNT,
            processor,
            manifest: Digest::of(&shipment.manifest),
            suite: *suite,
            format: *format,
            key_mode: *key_mode,
            package_id,
            release_commitment: secret.commitment(),
            key_commitment: keys.commitment(),
        });
        let digest = Digest::of(&terms);
        let wrap = match direct {
            Some(direct) => direct.finish(&digest, &keys.commitment())?,
            None => wrap_common(public, *suite, secret, order, &digest, &content, random)?,
        };
        Ok(Self { terms, wrap, content, keys })
    }
}

fn seal_all(plaintext: &[u8], layout: &Layout, keys: &PageKeys) -> Result<(Vec<Sent>, Roots)> {
    let mut sealer = Sealer::new(layout, keys)?;
    let mut chunks = Vec::new();
    for (index, part) in plaintext.chunks(MAX_CHUNK).enumerate() {
        let mut chunk = Sent { offset: (index * MAX_CHUNK) as u64, tags: Vec::new(), bytes: part.to_vec() };
        sealer.seal_chunk(&mut chunk.bytes, &mut chunk.tags)?;
        chunks.push(chunk);
    }
    let chipbound_sealing::Roots { body_root, body_size, table_root, table_size } = sealer.finish()?;
    Ok((chunks, Roots { body_root, body_size, table_root, table_size }))
}

impl World {
    /// Delivers over a pair of sockets, both ends in threads.
    pub(crate) fn deliver(&self, shipment: &Shipment, lies: &Lies) -> (Result<Held>, Result<Delivered>) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        thread::scope(|scope| {
            let server = scope.spawn(|| serve(theirs, self, shipment, lies));
            let held = receive(ours, &shipment.confirmation, 7, &self.us, &mut |_| Ok(()));
            (held, server.join().expect("the server's thread"))
        })
    }

    /// Seals a shipment once, as its server would.
    pub(crate) fn prepare(&self, shipment: &Shipment) -> Arc<Prepared> {
        let enrolment = self.us.vault.enrolment().expect("enrolled");
        let public = enrolment.certified.sealing().and_then(|s| s.get(shipment.suite.kem)).expect("a sealing key");
        let layout = Layout::of(shipment.profile, &shipment.plaintext).expect("a layout");
        let plain = plain_digest(&shipment.plaintext, &layout).expect("a digest");
        let sealed = Sealed::prepare(self, shipment, self.id(), public, &plain).expect("sealed");
        let (chunks, roots) = seal_all(&shipment.plaintext, &layout, &sealed.keys).expect("sealed");
        Arc::new(Prepared { sealed, chunks, roots })
    }

    /// The package of a shipment that was recorded and released without a delivery: a server that another version of this processor believed.
    pub(crate) fn believed(&self, shipment: &Shipment) -> Vec<u8> {
        let prepared = self.prepare(shipment);
        let Sealed { terms, wrap, content, .. } = &prepared.sealed;
        let layout = Layout::of(shipment.profile, &shipment.plaintext).expect("a layout");
        let Roots { body_root, body_size, table_root, table_size } = prepared.roots;
        let zero = Digest([0; 32]);
        let seal = self.statement.sign(&Seal {
            terms: Digest::of(terms),
            wrap: Digest::of(&encode(wrap)),
            session_wrap: zero,
            exchange: zero,
            plain_digest: plain_digest(&shipment.plaintext, &layout).expect("a digest"),
            body_root,
            body_size,
            table_root,
            table_size,
        });
        let delivered = Delivered { terms: terms.clone(), wrap: wrap.clone(), seal: seal.clone(), acknowledgement: Vec::new() };
        let token = self.token(shipment, &delivered, |_| {});
        let signed_terms = verify_document::<Terms>(terms, &self.root(), now()).expect("terms");
        let signed_seal = verify_document::<Seal>(&seal, &self.root(), now()).expect("a seal");
        let manifest = verify_document::<Manifest>(&shipment.manifest, &self.root(), now()).expect("a manifest");
        let enrolment = self.us.vault.enrolment().expect("enrolled");
        let public = enrolment.certified.sealing().and_then(|s| s.get(shipment.suite.kem)).expect("a sealing key");
        let record = Record::of(&signed_terms, &signed_seal, public, now());
        self.us.remember(Step::compared(record, &manifest)).expect("remembered");
        let release = Release { token: Digest::of(&token), at: now(), settled: None };
        self.us.remember(Step::Released { seal: signed_seal.digest(), release }).expect("remembered");
        let sealed_manifest = seal_manifest(content, &signed_terms, &shipment.manifest).expect("sealed");
        let bytes = |bytes: &[u8]| Bytes::new(bytes.to_vec()).expect("within its limit");
        let documents = PackageDocuments {
            terms: bytes(terms),
            wrap: wrap.clone(),
            seal: bytes(&seal),
            token: bytes(&token),
            sealed_manifest: Bytes::new(sealed_manifest).expect("within its limit"),
        };
        let body: Vec<u8> = prepared.chunks.iter().flat_map(|chunk| chunk.bytes.iter().copied()).collect();
        let tags: Vec<u8> = prepared.chunks.iter().flat_map(|chunk| chunk.tags.iter().copied()).collect();
        [body, trailer(&layout, &tags, &documents)].concat()
    }

    /// A delivery that goes well.
    pub(crate) fn delivered(&self, shipment: &Shipment) -> (Held, Delivered) {
        let (held, delivered) = self.deliver(shipment, &Lies::default());
        (held.expect("received"), delivered.expect("delivered"))
    }

    /// The release token of a delivery; `change` edits it before it is signed.
    pub(crate) fn token(&self, shipment: &Shipment, delivered: &Delivered, change: impl FnOnce(&mut ReleaseToken)) -> Vec<u8> {
        let enrolment = self.us.vault.enrolment().expect("enrolled");
        let public = enrolment.certified.sealing().and_then(|s| s.get(shipment.suite.kem)).expect("a sealing key").to_vec();
        let (order, terms, processor) = (shipment.order, Digest::of(&delivered.terms), self.id());
        let release = seal_release(&public, shipment.suite.kem, &order, &terms, &processor, &shipment.secret, &mut SystemRandom);
        let mut token = ReleaseToken { order, terms, processor, release: release.expect("sealed") };
        change(&mut token);
        self.statement.sign(&token)
    }

    /// The whole package, as the client would have it on its disk.
    pub(crate) fn package(&self, shipment: &Shipment) -> Vec<u8> {
        let (mut held, delivered) = self.delivered(shipment);
        let token = self.token(shipment, &delivered, |_| {});
        let (mut file, size) = held.release(&token, &self.us).expect("released");
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes).expect("read");
        assert_eq!(bytes.len() as u64, size);
        bytes
    }

    /// Trust in the root alone.
    pub(crate) fn root(&self) -> Trust {
        self.pki.trust()
    }
}

/// Bytes that differ from page to page.
pub(crate) fn sample(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}
