//! A processor in memory: the session's states, the opener, and keys that nobody keeps.

use chipbound_sealing::{ContentKey, Layout, Opener, PageKeys, SealingKeyPair, SessionKey, open_release, open_session, open_wrap};
use chipbound_session::path::Path;
use chipbound_session::processor::{Capabilities, Received, begin};
use chipbound_session::tls::{Identity, SharedTrust, TimeProvider, processor_config};
use chipbound_session::{Context, Roots};
use chipbound_testkit::{Holder, Pki};
use chipbound_wire::certificate::Trust;
use chipbound_wire::documents::{ReleaseToken, Terms, Wrap};
use chipbound_wire::messages::{Chunk, Kind};
use chipbound_wire::signed::{Verified, verify_document};
use chipbound_wire::suite::{Aead, Class, Format, Kem, KeyMode, Suite};
use chipbound_wire::{Code, KeyId, Refusal, Result, SystemRandom, Time};
use rustls::pki_types::UnixTime;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

pub(crate) struct Processor {
    pub(crate) holder: Holder,
    pub(crate) pairs: Vec<SealingKeyPair>,
    pub(crate) trust: Trust,
    pub(crate) capabilities: Capabilities,
}

/// What a processor has after step 1008.
pub(crate) struct Delivered {
    pub(crate) acknowledgement: Vec<u8>,
    pub(crate) terms: Verified<Terms>,
    pub(crate) wrap: Wrap,
    pub(crate) plain: Vec<u8>,
    pub(crate) body: Vec<u8>,
    pub(crate) content: ContentKey,
}

impl Processor {
    /// Certified with a key for each of both mechanisms.
    pub(crate) fn new(pki: &Pki) -> Arc<Self> {
        let pairs =
            vec![SealingKeyPair::generate(Kem::XWing, &mut SystemRandom), SealingKeyPair::generate(Kem::DhkemP256, &mut SystemRandom)];
        let holder = pki.processor(pairs.iter().map(SealingKeyPair::sealing_key).collect());
        Arc::new(Self::of(holder, pairs, pki.trust()))
    }

    pub(crate) fn of(holder: Holder, pairs: Vec<SealingKeyPair>, trust: Trust) -> Self {
        let all = |kem| [Aead::Aes256Gcm, Aead::ChaCha20Poly1305].map(|aead| Suite { kem, aead });
        let capabilities = Capabilities {
            suites: [all(Kem::DhkemP256), all(Kem::XWing)].concat(),
            formats: Format::ALL.to_vec(),
            key_modes: KeyMode::ALL.to_vec(),
            max_plain_size: 1 << 40,
            class: Class::Software,
        };
        Self { holder, pairs, trust, capabilities }
    }

    pub(crate) fn id(&self) -> KeyId {
        self.holder.id()
    }

    /// The same processor, saying that it can do only this.
    pub(crate) fn only(pki: &Pki, change: impl FnOnce(&mut Capabilities)) -> Arc<Self> {
        let pairs =
            vec![SealingKeyPair::generate(Kem::XWing, &mut SystemRandom), SealingKeyPair::generate(Kem::DhkemP256, &mut SystemRandom)];
        let holder = pki.processor(pairs.iter().map(SealingKeyPair::sealing_key).collect());
        let mut processor = Self::of(holder, pairs, pki.trust());
        change(&mut processor.capabilities);
        Arc::new(processor)
    }

    /// Steps 1003 to 1008, keeping everything in memory.
    pub(crate) fn receive<S: Read + Write>(&self, stream: S, confirmation: &[u8], now: Time) -> Result<Delivered> {
        let mut plain = Vec::new();
        let mut body = Vec::new();
        let mut delivered = self.receive_into(stream, confirmation, now, |sealed, opened| {
            body.extend_from_slice(sealed);
            plain.extend_from_slice(opened);
        })?;
        (delivered.plain, delivered.body) = (plain, body);
        Ok(delivered)
    }

    /// The same, giving each chunk away as body and plaintext.
    pub(crate) fn receive_into<S: Read + Write>(
        &self,
        stream: S,
        confirmation: &[u8],
        now: Time,
        mut each: impl FnMut(&[u8], &[u8]),
    ) -> Result<Delivered> {
        let identity = Identity { key: Arc::new(self.holder.key.clone()), chain: self.holder.chain.clone() };
        let config = processor_config(&identity, SharedTrust::new(Trust::new(self.trust.root())?), Arc::new(At(now)))?;
        let mut path = Path::connect(stream, &config)?;
        match self.converse(&mut path, confirmation, now, &mut each) {
            Ok(delivered) => path.close().map(|()| delivered),
            Err(refusal) => {
                path.abort(&refusal);
                Err(refusal)
            }
        }
    }

    fn converse<S: Read + Write>(
        &self,
        path: &mut Path<S>,
        confirmation: &[u8],
        now: Time,
        each: &mut impl FnMut(&[u8], &[u8]),
    ) -> Result<Delivered> {
        let signer = self.holder.signer();
        let context = Context { trust: &self.trust, now, signer: &signer };
        let session = SessionKey::generate(Kem::XWing, &mut SystemRandom);
        let channel = path.channel().clone();
        let (state, hello) = begin(&channel, confirmation, session.sealing_key(), self.capabilities.clone(), &context, &mut SystemRandom)?;
        path.send(Kind::Hello, &hello)?;
        let (state, ours) = state.server_exchange(path.expect(Kind::ServerExchange)?, &context)?;
        path.send(Kind::ProcessorExchange, &ours)?;
        let (state, offer) = state.asked(path.expect(Kind::AskCapabilities)?, None, &context)?;
        path.send(Kind::Offer, &offer)?;
        let state = state.start(path.expect(Kind::Start)?, &context)?;
        let delivery = state.delivery();
        let content = open_session(&session, &delivery.session_wrap, delivery.terms.suite, &delivery.terms.digest())?;
        let keys = PageKeys::of_terms(&content, &delivery.terms, &delivery.plain_digest)?;
        let mut opener = Opener::new(Layout::decode(&delivery.layout)?, &keys)?;
        let mut plain = Vec::new();
        let seal = loop {
            match path.receive()? {
                (Kind::Chunk, payload) => {
                    let chunk = Chunk::parse(payload)?;
                    opener.open_chunk(&chunk, &mut plain)?;
                    each(chunk.bytes, &plain);
                }
                (Kind::Seal, payload) => break payload.to_vec(),
                (kind, _) => return Err(Refusal::new(Code::UnexpectedMessage, format!("{kind:?}"))),
            }
        };
        let opened = opener.finish()?;
        let roots = Roots {
            body_root: opened.roots.body_root,
            body_size: opened.roots.body_size,
            table_root: opened.roots.table_root,
            table_size: opened.roots.table_size,
        };
        let received = Received { roots, plain_root: opened.plain_root, plain_size: opened.plain_size };
        let (done, acknowledgement) = state.seal(&seal, &received, &context)?.acknowledge(&context)?;
        path.send(Kind::Acknowledgement, &acknowledgement)?;
        let (terms, wrap) = (done.delivery.terms, done.delivery.wrap);
        Ok(Delivered { acknowledgement, terms, wrap, plain: Vec::new(), body: Vec::new(), content })
    }

    /// Step 1010: does the token open the main wrap, to the same content key?
    pub(crate) fn opens(&self, delivered: &Delivered, token: &[u8], now: Time) -> Result<bool> {
        let token = verify_document::<ReleaseToken>(token, &self.trust, now)?;
        if token.terms != delivered.terms.digest() {
            return Err(Refusal::new(Code::TokenMismatch, "the token of another delivery"));
        }
        let pair = self.pairs.iter().find(|p| p.kem() == delivered.wrap.kem).expect("a key of the mechanism");
        let secret = open_release(pair, &token)?;
        secret.check(&delivered.terms.release_commitment)?;
        let content = open_wrap(pair, &delivered.wrap, &delivered.terms, &delivered.terms.digest(), &secret)?;
        Ok(content == delivered.content)
    }
}

#[derive(Debug)]
struct At(Time);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.0)))
    }
}
