//! The processor's end, as values: [`begin`] → [`AwaitingServer`] → [`Authenticated`] → [`Offered`] → [`Receiving`] →
//! [`Compared`] → [`Acknowledged`].

use crate::{Channel, Context, Delivery, Roots, exchange};
use chipbound_wire::bounded::{List, encode};
use chipbound_wire::certificate::{Certified, SealingKey};
use chipbound_wire::documents::{
    Acknowledgement, Confirmation, ExchangeFacts, Kept, Manifest, Offer, ProcessorExchange, Seal, ServerExchange, Terms,
};
use chipbound_wire::limits::{MAX_CHOICES, MAX_PROGRAM};
use chipbound_wire::messages::{Hello, Kind, Start, payload, read_payload};
use chipbound_wire::random::{Random, fresh};
use chipbound_wire::signed::{Verified, verify_document};
use chipbound_wire::suite::{Class, Format, KeyMode, Suite};
use chipbound_wire::{Code, Digest, Refusal, Result};

/// What this processor can process (source \[61\]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Suites it can open; each needs a certified sealing key of its KEM.
    pub suites: Vec<Suite>,
    /// Formats it can open.
    pub formats: Vec<Format>,
    /// Key modes it can open.
    pub key_modes: Vec<KeyMode>,
    /// The largest plaintext it can take, in bytes.
    pub max_plain_size: u64,
    /// The class of its key store, as certified.
    pub class: Class,
}

/// What was measured while the body was received and opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// Roots and sizes over body and table as received.
    pub roots: Roots,
    /// BLAKE3 root over the opened plaintext.
    pub plain_root: Digest,
    /// Bytes of the opened plaintext.
    pub plain_size: u64,
}

/// Step 1004: begins the exchange over `channel` for the order of `confirmation`, the signed document that the client agreed
/// to. `session_key` is a sealing key that lives in memory for this session only. Gives the payload of [`Kind::Hello`].
///
/// Refuses a confirmation that does not verify, is for another processor ([`Code::ProcessorMismatch`]) or comes from another
/// server than the one at the other end ([`Code::StatementKeyMismatch`]).
pub fn begin(
    channel: &Channel,
    confirmation: &[u8],
    session_key: SealingKey,
    capabilities: Capabilities,
    context: &Context<'_>,
    random: &mut dyn Random,
) -> Result<(AwaitingServer, Vec<u8>)> {
    let confirmation = verify_document::<Confirmation>(confirmation, context.trust, context.now)?;
    if confirmation.processor != context.signer.key.key_id() {
        return Err(Refusal::new(Code::ProcessorMismatch, "the order confirmation is for another processor"));
    }
    check_server(confirmation.signer(), &channel.peer)?;
    exchange::check_session_key(&session_key)?;
    let hello = Hello { order: confirmation.order, challenge: Digest(fresh(random)), session_key };
    let bytes = payload(Kind::Hello, &hello)?;
    Ok((AwaitingServer { channel: channel.clone(), confirmation, capabilities, hello }, bytes))
}

/// The statement key belongs to the server at the other end: certificates join the keys of one server by their subject.
fn check_server(statement: &Certified, peer: &Certified) -> Result<()> {
    if statement.subject() == peer.subject() {
        return Ok(());
    }
    let detail = format!("{:?} signed, but {:?} is at the other end", statement.subject(), peer.subject());
    Err(Refusal::new(Code::StatementKeyMismatch, detail))
}

/// The hello went out; the server's half of the exchange is awaited.
#[derive(Debug)]
pub struct AwaitingServer {
    channel: Channel,
    confirmation: Verified<Confirmation>,
    capabilities: Capabilities,
    hello: Hello,
}

impl AwaitingServer {
    /// Steps 1005 and 1006: takes the payload of [`Kind::ServerExchange`], gives that of [`Kind::ProcessorExchange`].
    ///
    /// Refuses an exchange about another connection or challenge ([`Code::ExchangeMismatch`]), other keys
    /// ([`Code::IdentityMismatch`]) or another order ([`Code::OrderMismatch`]).
    pub fn server_exchange(self, message: &[u8], context: &Context<'_>) -> Result<(Authenticated, Vec<u8>)> {
        let theirs = verify_document::<ServerExchange>(message, context.trust, context.now)?;
        exchange::check_signer(theirs.signer().key_id(), self.channel.peer.key_id())?;
        let facts = ExchangeFacts {
            processor_challenge: self.hello.challenge,
            server_challenge: theirs.facts.server_challenge,
            processor: context.signer.key.key_id(),
            server: self.channel.peer.key_id(),
            statement_key: theirs.facts.statement_key,
            session_key: self.hello.session_key,
            order: self.hello.order,
            exporter: self.channel.exporter,
        };
        exchange::check(&theirs.facts, &facts)?;
        if facts.server_challenge == facts.processor_challenge {
            return Err(Refusal::new(Code::ExchangeMismatch, "the server sent our own challenge back"));
        }
        let exchange = exchange::digest(&facts);
        let ours = context.signer.sign(&ProcessorExchange { facts: facts.clone() })?;
        let session = Session { server: self.channel.peer, confirmation: self.confirmation, facts, exchange };
        Ok((Authenticated { session, capabilities: self.capabilities }, ours))
    }
}

/// What the exchange settled.
#[derive(Debug)]
struct Session {
    server: Certified,
    confirmation: Verified<Confirmation>,
    facts: ExchangeFacts,
    exchange: Digest,
}

impl Session {
    /// Whether the key that the exchange named signed this statement, and it is the peer's (A30).
    fn check_statement(&self, signer: &Certified) -> Result<()> {
        if signer.key_id() != self.facts.statement_key {
            return Err(Refusal::new(Code::StatementKeyMismatch, "signed by another statement key than the exchange named"));
        }
        check_server(signer, &self.server)
    }
}

/// Both ends are authenticated; the question of what we can process is awaited.
#[derive(Debug)]
pub struct Authenticated {
    session: Session,
    capabilities: Capabilities,
}

impl Authenticated {
    /// The order that is delivered.
    #[must_use]
    pub fn confirmation(&self) -> &Verified<Confirmation> {
        &self.session.confirmation
    }

    /// Row S22: takes the (empty) payload of [`Kind::AskCapabilities`], gives that of [`Kind::Offer`]. `kept` is what is still here
    /// of an earlier delivery of the order.
    pub fn asked(self, message: &[u8], kept: Option<Kept>, context: &Context<'_>) -> Result<(Offered, Vec<u8>)> {
        if !message.is_empty() {
            return Err(Refusal::new(Code::Malformed, "a question with a payload"));
        }
        let Capabilities { suites, formats, key_modes, max_plain_size, class } = self.capabilities;
        let offer = Offer {
            exchange: self.session.exchange,
            suites: List::<_, MAX_CHOICES>::new(suites)?,
            formats: List::new(formats)?,
            key_modes: List::new(key_modes)?,
            max_plain_size,
            kept,
        };
        let bytes = context.signer.sign(&offer)?;
        Ok((Offered { session: self.session, offer, class }, bytes))
    }
}

/// The offer went out; terms and wraps are awaited.
#[derive(Debug)]
pub struct Offered {
    session: Session,
    offer: Offer,
    class: Class,
}

impl Offered {
    /// Step 1007, first part: takes the payload of [`Kind::Start`].
    ///
    /// Refuses terms that were not agreed ([`Code::TermsMismatch`]) or not offered ([`Code::OfferAltered`]), that another key
    /// signed ([`Code::StatementKeyMismatch`]); a manifest that is not the vendor's or not about this ([`Code::ManifestMismatch`])
    /// or does not admit this class of key store ([`Code::ClassRefused`]); a plaintext above the offered size
    /// ([`Code::TooLarge`]); wraps of another mechanism ([`Code::WrapInvalid`]); a body that begins elsewhere than at its start or where
    /// what was kept of these very terms ends ([`Code::OfferAltered`]).
    pub fn start(self, message: &[u8], context: &Context<'_>) -> Result<Receiving> {
        let start: Start = read_payload(message)?;
        let terms = verify_document::<Terms>(&start.terms, context.trust, context.now)?;
        self.session.check_statement(terms.signer())?;
        self.check_terms(&terms)?;
        let manifest = verify_document::<Manifest>(&start.manifest, context.trust, context.now)?;
        self.check_manifest(&manifest, &terms)?;
        if start.wrap.kem != terms.suite.kem || start.session_wrap.kem != self.session.facts.session_key.kem {
            return Err(Refusal::new(Code::WrapInvalid, "a key wrap of another mechanism than was agreed"));
        }
        let from = self.check_from(start.from, &terms)?;
        let Start { wrap, session_wrap, layout, plain_digest, .. } = start;
        let delivery = Delivery { terms, manifest, wrap, session_wrap, layout: layout.into_vec(), plain_digest };
        Ok(Receiving { session: self.session, delivery, from })
    }

    /// Where the body begins.
    fn check_from(&self, from: Option<u64>, terms: &Verified<Terms>) -> Result<u64> {
        match from {
            None | Some(0) => Ok(0),
            Some(from) if self.offer.kept == Some(Kept { terms: terms.digest(), bytes: from }) => Ok(from),
            Some(from) => Err(Refusal::new(Code::OfferAltered, format!("to go on at byte {from} of these terms was never offered"))),
        }
    }

    fn check_terms(&self, terms: &Terms) -> Result<()> {
        let agreed = &self.session.confirmation;
        let differs = |what: &str| Err(Refusal::new(Code::TermsMismatch, format!("the terms name another {what} than was agreed")));
        if terms.order != agreed.order {
            return differs("order");
        }
        if terms.account != agreed.account {
            return differs("account");
        }
        if terms.processor != agreed.processor {
            return differs("processor");
        }
        if terms.manifest != agreed.manifest {
            return differs("manifest");
        }
        let altered = |what: String| Err(Refusal::new(Code::OfferAltered, format!("{what} was never offered")));
        if !self.offer.suites.contains(&terms.suite) {
            return altered(format!("the suite {}", terms.suite));
        }
        if !self.offer.formats.contains(&terms.format) {
            return altered(format!("the format {}", terms.format));
        }
        if !self.offer.key_modes.contains(&terms.key_mode) {
            return altered(format!("the key mode {}", terms.key_mode));
        }
        Ok(())
    }

    fn check_manifest(&self, manifest: &Verified<Manifest>, terms: &Terms) -> Result<()> {
        let agreed = &self.session.confirmation;
        let differs = |what: &str| Err(Refusal::new(Code::ManifestMismatch, what.to_owned()));
        if manifest.digest() != terms.manifest {
            return differs("the manifest is not the one that the terms name");
        }
        if !manifest.program.is_of(&manifest.signer().key_id()) {
            return differs("the manifest was signed by another vendor than the program's own");
        }
        if manifest.program != agreed.program || manifest.version != agreed.version {
            return differs("the manifest is of another program or version than was agreed");
        }
        if manifest.format != terms.format {
            return differs("the terms name another format than the manifest");
        }
        if !manifest.key_modes.contains(&terms.key_mode) {
            return differs("the vendor does not allow this key mode");
        }
        if !manifest.classes.contains(&self.class) {
            let detail = format!("the vendor does not release this program to the class {}", self.class);
            return Err(Refusal::new(Code::ClassRefused, detail));
        }
        if manifest.sequence < manifest.minimum_sequence {
            return Err(Refusal::new(Code::SequenceTooOld, "the manifest withdraws its own release"));
        }
        if manifest.plain_size > self.offer.max_plain_size.min(MAX_PROGRAM) {
            return Err(Refusal::new(Code::TooLarge, format!("a program of {} bytes is larger than was offered", manifest.plain_size)));
        }
        Ok(())
    }
}

/// Terms, manifest and wraps are here; the caller receives and opens the chunks.
#[derive(Debug)]
pub struct Receiving {
    session: Session,
    delivery: Delivery,
    from: u64,
}

impl Receiving {
    /// Bytes of the body that do not come: the caller kept them, and opens them before the chunks.
    #[must_use]
    pub fn from(&self) -> u64 {
        self.from
    }

    /// What the caller needs to open the session wrap and the chunks.
    #[must_use]
    pub fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    /// What the client agreed to.
    #[must_use]
    pub fn confirmation(&self) -> &Verified<Confirmation> {
        &self.session.confirmation
    }

    /// Step 1007, last part: takes the payload of [`Kind::Seal`] and what was measured while receiving and opening.
    ///
    /// Refuses a seal that is not about these terms, wraps, session or bytes ([`Code::SealMismatch`]), and a plaintext that
    /// is not the vendor's ([`Code::PlaintextMismatch`]).
    pub fn seal(self, message: &[u8], received: &Received, context: &Context<'_>) -> Result<Compared> {
        let seal = verify_document::<Seal>(message, context.trust, context.now)?;
        self.session.check_statement(seal.signer())?;
        self.check_seal(&seal, &received.roots)?;
        let manifest = &self.delivery.manifest;
        if received.plain_root != manifest.plain_root || received.plain_size != manifest.plain_size {
            return Err(Refusal::new(Code::PlaintextMismatch, "the opened program is not the one that the vendor signed"));
        }
        Ok(Compared { confirmation: self.session.confirmation, delivery: self.delivery, seal })
    }

    fn check_seal(&self, seal: &Seal, roots: &Roots) -> Result<()> {
        let delivery = &self.delivery;
        let same = [
            ("terms", seal.terms == delivery.terms.digest()),
            ("wrap", seal.wrap == Digest::of(&encode(&delivery.wrap))),
            ("session wrap", seal.session_wrap == Digest::of(&encode(&delivery.session_wrap))),
            ("exchange", seal.exchange == self.session.exchange),
            ("plain digest", seal.plain_digest == delivery.plain_digest),
            ("body", seal.body_root == roots.body_root),
            ("body size", seal.body_size == roots.body_size),
            ("table", seal.table_root == roots.table_root),
            ("table size", seal.table_size == roots.table_size),
        ];
        match same.iter().find(|(_, same)| !same) {
            Some((what, _)) => Err(Refusal::new(Code::SealMismatch, format!("the seal names another {what} than was received"))),
            None => Ok(()),
        }
    }
}

/// Received, opened and compared whole. The caller records this durably before it acknowledges.
#[derive(Debug)]
pub struct Compared {
    confirmation: Verified<Confirmation>,
    delivery: Delivery,
    seal: Verified<Seal>,
}

impl Compared {
    /// What was delivered.
    #[must_use]
    pub fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    /// The seal over it.
    #[must_use]
    pub fn seal(&self) -> &Verified<Seal> {
        &self.seal
    }

    /// What the client agreed to.
    #[must_use]
    pub fn confirmation(&self) -> &Verified<Confirmation> {
        &self.confirmation
    }

    /// Step 1008: gives the payload of [`Kind::Acknowledgement`].
    pub fn acknowledge(self, context: &Context<'_>) -> Result<(Acknowledged, Vec<u8>)> {
        let acknowledgement = context.signer.sign(&Acknowledgement {
            order: self.delivery.terms.order,
            terms: self.delivery.terms.digest(),
            seal: self.seal.digest(),
            at: context.now,
        })?;
        let bytes = acknowledgement.clone();
        let Self { confirmation, delivery, seal } = self;
        Ok((Acknowledged { confirmation, delivery, seal, acknowledgement }, bytes))
    }
}

/// The end: everything that the processor and the client keep of the delivery.
#[derive(Debug)]
pub struct Acknowledged {
    /// What the client agreed to.
    pub confirmation: Verified<Confirmation>,
    /// What was delivered.
    pub delivery: Delivery,
    /// The seal over it.
    pub seal: Verified<Seal>,
    /// The signed acknowledgement, which the client passes on to the server as well.
    pub acknowledgement: Vec<u8>,
}
