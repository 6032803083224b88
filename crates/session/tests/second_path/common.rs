//! One little world with everybody in it, and both roles told top to bottom over any stream, with a place to tamper.

use chipbound_session::path::Path;
use chipbound_session::tls::{Identity, SharedTrust, TimeProvider, processor_config, server_config};
use chipbound_session::{Channel, Context, Roots, processor, server};
use chipbound_testkit::documents::{SUITE, confirmation, manifest, terms};
use chipbound_testkit::pki::idle_sealing_keys;
use chipbound_testkit::{Holder, Pki, Wanted};
use chipbound_wire::bounded::Bytes;
use chipbound_wire::certificate::{Role, SealingKey};
use chipbound_wire::documents::{Acknowledgement, Confirmation, Manifest, Terms, Wrap};
use chipbound_wire::messages::{Chunk, Kind};
use chipbound_wire::signed::{Document, Verified, read_claims};
use chipbound_wire::suite::{Aead, Class, Format, Kem, KeyMode, Suite};
use chipbound_wire::{Code, Digest, Random, Refusal, Result, SystemRandom, Time};
use rustls::pki_types::UnixTime;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const NOW: Time = Time(1_800_000_000);
pub(crate) const SERVER: &str = "shop.example";
pub(crate) const P256: Suite = Suite { kem: Kem::DhkemP256, aead: Aead::ChaCha20Poly1305 };
pub(crate) const PLAINTEXT: &[u8] = b"what the vendor sells";
const LAYOUT: &[u8] = b"a layout";
const TAGS: [u8; 16] = [7; 16];

/// A clock that stands.
#[derive(Debug)]
pub(crate) struct Standing(pub(crate) Time);

impl TimeProvider for Standing {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.0)))
    }
}

/// Everybody, and what they agreed.
pub(crate) struct World {
    pub(crate) pki: Pki,
    pub(crate) processor: Holder,
    pub(crate) server: Holder,
    pub(crate) statement: Holder,
    pub(crate) vendor: Holder,
    pub(crate) manifest: Manifest,
    pub(crate) signed_manifest: Vec<u8>,
    pub(crate) confirmation: Confirmation,
    pub(crate) terms: Terms,
    pub(crate) session_key: SealingKey,
    pub(crate) capabilities: processor::Capabilities,
    pub(crate) policy: server::Policy,
    pub(crate) processor_trust: SharedTrust,
    pub(crate) server_trust: SharedTrust,
}

/// A certificate of the world's one server.
pub(crate) fn of_server(role: Role) -> Wanted {
    Wanted { subject: SERVER.to_owned(), ..Wanted::role(role) }
}

/// A sealing key of the right length that nobody holds.
pub(crate) fn x_wing() -> SealingKey {
    let mut public = vec![0; 1216];
    SystemRandom.fill(&mut public);
    SealingKey { kem: Kem::XWing, public: Bytes::new(public).unwrap() }
}

/// Opaque bytes of a wrap's shape.
pub(crate) fn wrap(kem: Kem, byte: u8) -> Wrap {
    Wrap { kem, enc: Bytes::new(vec![byte; 65]).unwrap(), ciphertext: Bytes::new(vec![byte; 48]).unwrap() }
}

impl World {
    pub(crate) fn new() -> Self {
        let pki = Pki::new(NOW);
        let processor = pki.processor(vec![x_wing(), idle_sealing_keys().keys[0].clone()]);
        let vendor = pki.holder(Role::Vendor);
        let manifest = manifest(&vendor.id(), PLAINTEXT);
        let signed_manifest = vendor.sign(&manifest);
        let confirmation = confirmation(&manifest, &signed_manifest, processor.id(), NOW);
        Self {
            server: pki.holder_of(&of_server(Role::ServerSecondPath)),
            statement: pki.holder_of(&of_server(Role::ServerStatement)),
            terms: terms(&confirmation, Format::Data),
            session_key: x_wing(),
            capabilities: processor::Capabilities {
                suites: vec![P256, SUITE],
                formats: vec![Format::Data, Format::ElfX8664],
                key_modes: vec![KeyMode::Common, KeyMode::Direct],
                max_plain_size: 1 << 30,
                class: Class::Software,
            },
            policy: server::Policy { suites: vec![SUITE, P256], key_modes: vec![KeyMode::Direct, KeyMode::Common] },
            processor_trust: SharedTrust::new(pki.trust()),
            server_trust: SharedTrust::new(pki.trust()),
            pki,
            processor,
            vendor,
            manifest,
            signed_manifest,
            confirmation,
        }
    }

    /// The vendor signs what `change` makes of the manifest; confirmation and terms follow.
    pub(crate) fn change_manifest(&mut self, change: impl FnOnce(&mut Manifest)) {
        change(&mut self.manifest);
        self.signed_manifest = self.vendor.sign(&self.manifest);
        self.confirmation.manifest = Digest::of(&self.signed_manifest);
        self.terms.manifest = self.confirmation.manifest;
    }

    pub(crate) fn purpose(&self) -> server::Purpose {
        server::Purpose { order: self.terms.order, processor: self.terms.processor, statement_key: self.statement.id() }
    }

    pub(crate) fn consignment(&self, terms: &Terms, session_key: &SealingKey) -> server::Consignment {
        server::Consignment {
            terms: self.statement.sign(terms),
            manifest: self.signed_manifest.clone(),
            wrap: wrap(terms.suite.kem, 1),
            session_wrap: wrap(session_key.kem, 2),
            layout: LAYOUT.to_vec(),
            plain_digest: Digest::of(LAYOUT),
            from: 0,
        }
    }

    /// What each end would believe after an honest handshake.
    pub(crate) fn channels(&self) -> (Channel, Channel) {
        let exporter = Digest([5; 32]);
        let trust = self.pki.trust();
        let server = trust.verify(&self.server.chain, Role::ServerSecondPath, NOW).unwrap();
        let processor = trust.verify(&self.processor.chain, Role::Processor, NOW).unwrap();
        (Channel { peer: server, exporter }, Channel { peer: processor, exporter })
    }
}

pub(crate) fn identity(holder: &Holder) -> Identity {
    Identity { key: Arc::new(holder.key.clone()), chain: holder.chain.clone() }
}

/// Roots over this body, with the layout and tags of this world.
pub(crate) fn roots(body: &[u8]) -> Roots {
    Roots {
        body_root: Digest::of(body),
        body_size: body.len() as u64,
        table_root: Digest::of(&[LAYOUT, &TAGS].concat()),
        table_size: (LAYOUT.len() + TAGS.len()) as u64,
    }
}

/// What becomes of a message on its way out of an end.
pub(crate) type Tamper<'a> = &'a (dyn Fn(Kind, Vec<u8>) -> Vec<u8> + Sync);

/// Nothing.
pub(crate) fn honest(_: Kind, message: Vec<u8>) -> Vec<u8> {
    message
}

/// The processor's role, steps 1003-1008 and 1012.
pub(crate) fn processor_role<S: Read + Write>(world: &World, stream: S, tamper: Tamper<'_>) -> Result<processor::Acknowledged> {
    let config = processor_config(&identity(&world.processor), world.processor_trust.clone(), Arc::new(Standing(NOW)))?;
    let mut path = Path::connect(stream, &config)?;
    match processor_steps(world, &mut path, tamper) {
        Ok(done) => path.close().map(|()| done),
        Err(refusal) => {
            path.abort(&refusal);
            Err(refusal)
        }
    }
}

fn processor_steps<S: Read + Write>(world: &World, path: &mut Path<S>, tamper: Tamper<'_>) -> Result<processor::Acknowledged> {
    let trust = world.processor_trust.get();
    let signer = world.processor.signer();
    let context = Context { trust: &trust, now: NOW, signer: &signer };
    let confirmation = world.statement.sign(&world.confirmation);
    let (state, hello) = processor::begin(
        path.channel(),
        &confirmation,
        world.session_key.clone(),
        world.capabilities.clone(),
        &context,
        &mut SystemRandom,
    )?;
    path.send(Kind::Hello, &tamper(Kind::Hello, hello))?;
    let (state, exchange) = state.server_exchange(path.expect(Kind::ServerExchange)?, &context)?;
    path.send(Kind::ProcessorExchange, &tamper(Kind::ProcessorExchange, exchange))?;
    let (state, offer) = state.asked(path.expect(Kind::AskCapabilities)?, None, &context)?;
    path.send(Kind::Offer, &tamper(Kind::Offer, offer))?;
    let state = state.start(path.expect(Kind::Start)?, &context)?;
    let body = Chunk::parse(path.expect(Kind::Chunk)?)?.bytes.to_vec();
    let received = processor::Received { roots: roots(&body), plain_root: Digest::of(&body), plain_size: body.len() as u64 };
    let state = state.seal(path.expect(Kind::Seal)?, &received, &context)?;
    let (done, acknowledgement) = state.acknowledge(&context)?;
    path.send(Kind::Acknowledgement, &tamper(Kind::Acknowledgement, acknowledgement))?;
    Ok(done)
}

/// The server's role, steps 1003-1008 and 1012.
pub(crate) fn server_role<S: Read + Write>(world: &World, stream: S, tamper: Tamper<'_>) -> Result<Verified<Acknowledgement>> {
    let config = server_config(&identity(&world.server), world.server_trust.clone(), Arc::new(Standing(NOW)))?;
    let mut path = Path::accept(stream, &config)?;
    match server_steps(world, &mut path, tamper) {
        Ok(done) => path.close().map(|()| done),
        Err(refusal) => {
            path.abort(&refusal);
            Err(refusal)
        }
    }
}

fn server_steps<S: Read + Write>(world: &World, path: &mut Path<S>, tamper: Tamper<'_>) -> Result<Verified<Acknowledgement>> {
    let trust = world.server_trust.get();
    let signer = world.server.signer();
    let context = Context { trust: &trust, now: NOW, signer: &signer };
    let state = server::begin(path.channel(), world.purpose())?;
    let (state, exchange) = state.hello(path.expect(Kind::Hello)?, &context, &mut SystemRandom)?;
    path.send(Kind::ServerExchange, &tamper(Kind::ServerExchange, exchange))?;
    let state = state.processor_exchange(path.expect(Kind::ProcessorExchange)?, &context)?;
    path.send(Kind::AskCapabilities, &tamper(Kind::AskCapabilities, Vec::new()))?;
    let state = state.offer(path.expect(Kind::Offer)?, &context)?;
    let choice = state.choose(&world.policy, &world.manifest)?;
    let terms = Terms { suite: choice.suite, format: choice.format, key_mode: choice.key_mode, ..world.terms.clone() };
    let consignment = world.consignment(&terms, state.session_key());
    let (state, start) = state.start(consignment, &context)?;
    path.send(Kind::Start, &tamper(Kind::Start, start))?;
    path.send_chunk(&Chunk { offset: 0, tags: &TAGS, bytes: &tamper(Kind::Chunk, PLAINTEXT.to_vec()) })?;
    let (state, seal) = state.seal(&roots(PLAINTEXT), &world.statement.signer())?;
    path.send(Kind::Seal, &tamper(Kind::Seal, seal))?;
    state.acknowledgement(path.expect(Kind::Acknowledgement)?, &context)
}

/// A pair of streams that give up rather than hang a test.
pub(crate) fn streams() -> (UnixStream, UnixStream) {
    let (a, b) = UnixStream::pair().unwrap();
    for stream in [&a, &b] {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    }
    (a, b)
}

/// What both ends came to.
pub(crate) type Outcome = (Result<processor::Acknowledged>, Result<Verified<Acknowledgement>>);

/// Both roles against each other.
pub(crate) fn deliver(world: &World, processor_tampers: Tamper<'_>, server_tampers: Tamper<'_>) -> Outcome {
    deliver_between(world, world, processor_tampers, server_tampers)
}

/// Both roles against each other, each in a world of its own.
pub(crate) fn deliver_between(processors: &World, servers: &World, processor_tampers: Tamper<'_>, server_tampers: Tamper<'_>) -> Outcome {
    let (a, b) = streams();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| server_role(servers, b, server_tampers));
        let processor = processor_role(processors, a, processor_tampers);
        (processor, server.join().unwrap())
    })
}

/// Both ends refused, with the same code and for the same reason in words.
#[track_caller]
pub(crate) fn assert_both(outcome: Outcome, code: Code) {
    let (processor, server) = outcome;
    assert_same(&processor.expect_err("the processor refuses"), &server.expect_err("the server refuses"), code);
}

/// The refusals of both ends have this code, and one end repeats the other's words; where TLS could carry no more than an alert,
/// it says in its own what the other side meant.
#[track_caller]
pub(crate) fn assert_same(processor: &Refusal, server: &Refusal, code: Code) {
    assert_eq!((processor.code, server.code), (code, code), "at the processor: {processor}; at the server: {server}");
    let (processor, server) = (&processor.detail, &server.detail);
    assert!(!processor.is_empty() && !server.is_empty(), "{code} without a word");
    let by_alert = [processor, server].into_iter().filter(|detail| detail.starts_with("the other side says: ")).count() == 1;
    assert!(processor == server || by_alert, "at the processor: {processor}; at the server: {server}");
}

/// Handshake and one message each way between these two.
pub(crate) fn handshake(world: &World, processor: &Identity, server: &Identity) -> (Result<()>, Result<()>) {
    let client = processor_config(processor, world.processor_trust.clone(), Arc::new(Standing(NOW))).unwrap();
    let accepting = server_config(server, world.server_trust.clone(), Arc::new(Standing(NOW))).unwrap();
    let (a, b) = streams();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut path = Path::accept(b, &accepting)?;
            path.send(Kind::AskCapabilities, &[])?;
            path.expect(Kind::AskCapabilities)?;
            path.close()
        });
        let client = || {
            let mut path = Path::connect(a, &client)?;
            path.expect(Kind::AskCapabilities)?;
            path.send(Kind::AskCapabilities, &[])?;
            path.close()
        };
        (client(), server.join().unwrap())
    })
}

/// Changes one kind of message.
pub(crate) fn on(kind: Kind, change: impl Fn(Vec<u8>) -> Vec<u8> + Sync) -> impl Fn(Kind, Vec<u8>) -> Vec<u8> + Sync {
    move |sent, message| if sent == kind { change(message) } else { message }
}

/// Signs a document anew after `change`, by `signer`: what a peer does that lies in its own name.
pub(crate) fn resign<D: Document>(bytes: &[u8], signer: &Holder, change: impl FnOnce(&mut D)) -> Vec<u8> {
    let mut document = read_claims::<D>(bytes).unwrap();
    change(&mut document);
    signer.sign(&document)
}
