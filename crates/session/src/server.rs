//! The server's end, as values: [`begin`] → [`AwaitingHello`] → [`AwaitingProcessor`] → [`Authenticated`] → [`Negotiating`] →
//! [`Sending`] → [`AwaitingAcknowledgement`].

use crate::{Channel, Context, Roots, exchange};
use chipbound_wire::bounded::{Bytes, encode};
use chipbound_wire::certificate::{SealingKey, Trust};
use chipbound_wire::documents::{
    Acknowledgement, ExchangeFacts, Kept, Manifest, Offer, ProcessorExchange, Seal, ServerExchange, Terms, Wrap,
};
use chipbound_wire::messages::{Hello, Kind, Start, payload, read_payload};
use chipbound_wire::random::{Random, fresh};
use chipbound_wire::signed::{Signer, Verified, verify_document};
use chipbound_wire::suite::{Format, KeyMode, Suite};
use chipbound_wire::{Code, Digest, KeyId, OrderId, Refusal, Result, Time};

/// What the connection was opened for, as the ticket or the tunnel's request said on the first path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Purpose {
    /// The order to deliver.
    pub order: OrderId,
    /// The identity key of the processor that the order is for.
    pub processor: KeyId,
    /// The statement key that signs, or signed, the terms of this order and will sign the seal (A30).
    pub statement_key: KeyId,
}

/// Step 1003 is done: awaits the processor's hello. Refuses another processor than the order's with
/// [`Code::ProcessorMismatch`].
pub fn begin(channel: &Channel, purpose: Purpose) -> Result<AwaitingHello> {
    if channel.peer.key_id() != purpose.processor {
        return Err(Refusal::new(Code::ProcessorMismatch, "the order is for another processor"));
    }
    Ok(AwaitingHello { channel: channel.clone(), purpose })
}

/// The hello is awaited.
#[derive(Debug)]
pub struct AwaitingHello {
    channel: Channel,
    purpose: Purpose,
}

impl AwaitingHello {
    /// Steps 1004 and 1005: takes the payload of [`Kind::Hello`], gives that of [`Kind::ServerExchange`]. Refuses another
    /// order ([`Code::OrderMismatch`]).
    pub fn hello(self, message: &[u8], context: &Context<'_>, random: &mut dyn Random) -> Result<(AwaitingProcessor, Vec<u8>)> {
        let hello: Hello = read_payload(message)?;
        if hello.order != self.purpose.order {
            let detail = format!("the processor comes for order {}, not {}", hello.order, self.purpose.order);
            return Err(Refusal::new(Code::OrderMismatch, detail));
        }
        exchange::check_session_key(&hello.session_key)?;
        let facts = ExchangeFacts {
            processor_challenge: hello.challenge,
            server_challenge: Digest(fresh(random)),
            processor: self.channel.peer.key_id(),
            server: context.signer.key.key_id(),
            statement_key: self.purpose.statement_key,
            session_key: hello.session_key,
            order: self.purpose.order,
            exporter: self.channel.exporter,
        };
        let ours = context.signer.sign(&ServerExchange { facts: facts.clone() })?;
        Ok((AwaitingProcessor { channel: self.channel, facts }, ours))
    }
}

/// Our half of the exchange went out; the processor's is awaited.
#[derive(Debug)]
pub struct AwaitingProcessor {
    channel: Channel,
    facts: ExchangeFacts,
}

impl AwaitingProcessor {
    /// Step 1006: takes the payload of [`Kind::ProcessorExchange`]; the next message is [`Kind::AskCapabilities`], empty.
    ///
    /// Refuses an exchange about another connection, challenge or session key ([`Code::ExchangeMismatch`]), other keys
    /// ([`Code::IdentityMismatch`]) or another order ([`Code::OrderMismatch`]).
    pub fn processor_exchange(self, message: &[u8], context: &Context<'_>) -> Result<Authenticated> {
        let theirs = verify_document::<ProcessorExchange>(message, context.trust, context.now)?;
        exchange::check_signer(theirs.signer().key_id(), self.channel.peer.key_id())?;
        exchange::check(&theirs.facts, &self.facts)?;
        let exchange = exchange::digest(&self.facts);
        Ok(Authenticated { session: Session { channel: self.channel, facts: self.facts, exchange } })
    }
}

/// What the exchange settled.
#[derive(Debug)]
struct Session {
    channel: Channel,
    facts: ExchangeFacts,
    exchange: Digest,
}

/// Both ends are authenticated; the question went out and the offer is awaited.
#[derive(Debug)]
pub struct Authenticated {
    session: Session,
}

impl Authenticated {
    /// Row S22: takes the payload of [`Kind::Offer`]. Refuses an offer of another session ([`Code::ExchangeMismatch`]) or
    /// another processor ([`Code::IdentityMismatch`]).
    pub fn offer(self, message: &[u8], context: &Context<'_>) -> Result<Negotiating> {
        let offer = verify_document::<Offer>(message, context.trust, context.now)?;
        exchange::check_signer(offer.signer().key_id(), self.session.channel.peer.key_id())?;
        if offer.exchange != self.session.exchange {
            return Err(Refusal::new(Code::ExchangeMismatch, "the offer is of another session"));
        }
        Ok(Negotiating { session: self.session, offer })
    }
}

/// What the operator allows, best first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Suites, best first.
    pub suites: Vec<Suite>,
    /// Key modes, best first.
    pub key_modes: Vec<KeyMode>,
}

/// What was chosen, as the terms will name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The suite.
    pub suite: Suite,
    /// The format.
    pub format: Format,
    /// The key mode.
    pub key_mode: KeyMode,
}

/// What goes before the chunks. Terms and main wrap are those of the first delivery when an order is delivered again.
#[derive(Clone, Debug)]
pub struct Consignment {
    /// The signed terms.
    pub terms: Vec<u8>,
    /// The vendor's signed manifest.
    pub manifest: Vec<u8>,
    /// The main wrap.
    pub wrap: Wrap,
    /// The wrap to [`Negotiating::session_key`].
    pub session_wrap: Wrap,
    /// The layout of the package in CBOR.
    pub layout: Vec<u8>,
    /// The plain digest of the body.
    pub plain_digest: Digest,
    /// Bytes of the body that are not sent: none, or what [`Negotiating::kept`] says of these terms.
    pub from: u64,
}

/// The offer is here; the caller chooses, makes terms and wraps, and starts.
#[derive(Debug)]
pub struct Negotiating {
    session: Session,
    offer: Verified<Offer>,
}

impl Negotiating {
    /// What the processor says it can process.
    #[must_use]
    pub fn offer(&self) -> &Verified<Offer> {
        &self.offer
    }

    /// What the processor kept of an earlier delivery of this order.
    #[must_use]
    pub fn kept(&self) -> Option<Kept> {
        self.offer.kept
    }

    /// The session's sealing key, for the session wrap.
    #[must_use]
    pub fn session_key(&self) -> &SealingKey {
        &self.session.facts.session_key
    }

    /// The processor's certified sealing key for the suite, for the main wrap and the release token.
    pub fn sealing_key(&self, suite: Suite) -> Result<&[u8]> {
        let keys = self.session.channel.peer.sealing();
        keys.and_then(|keys| keys.get(suite.kem))
            .ok_or_else(|| Refusal::new(Code::NothingInCommon, format!("the processor has no certified key for {}", suite.kem)))
    }

    /// Chooses the first suite and key mode of `policy` that the processor offers and has a certified key for, that the
    /// vendor's `manifest` allows. Refuses with [`Code::NothingInCommon`], [`Code::ClassRefused`] where the vendor does not
    /// admit the processor's class, or [`Code::TooLarge`].
    pub fn choose(&self, policy: &Policy, manifest: &Manifest) -> Result<Choice> {
        let suites = policy.suites.iter().copied();
        let suite = suites
            .filter(|suite| self.offer.suites.contains(suite))
            .find(|suite| self.sealing_key(*suite).is_ok())
            .ok_or_else(|| nothing_in_common("suite"))?;
        let mut key_modes = policy.key_modes.iter().copied();
        let key_mode = key_modes
            .find(|mode| self.offer.key_modes.contains(mode) && manifest.key_modes.contains(mode))
            .ok_or_else(|| nothing_in_common("key mode"))?;
        let choice = Choice { suite, format: manifest.format, key_mode };
        self.check_choice(&choice, manifest)?;
        Ok(choice)
    }

    /// Whether terms with this choice can be delivered to this processor: for the first delivery what [`Self::choose`] chose,
    /// for a later one what the stored terms say. Refuses as [`Self::choose`] does.
    pub fn check_choice(&self, choice: &Choice, manifest: &Manifest) -> Result<()> {
        if !self.offer.suites.contains(&choice.suite) {
            return Err(nothing_in_common("suite"));
        }
        self.sealing_key(choice.suite)?;
        if !self.offer.formats.contains(&choice.format) || choice.format != manifest.format {
            return Err(nothing_in_common("format"));
        }
        if !self.offer.key_modes.contains(&choice.key_mode) || !manifest.key_modes.contains(&choice.key_mode) {
            return Err(nothing_in_common("key mode"));
        }
        let class = self.session.channel.peer.sealing().map(|keys| keys.class);
        if !class.is_some_and(|class| manifest.classes.contains(&class)) {
            return Err(Refusal::new(Code::ClassRefused, "the vendor does not release this program to the processor's class"));
        }
        if manifest.plain_size > self.offer.max_plain_size {
            let detail = format!("the program has {} bytes, the processor takes {}", manifest.plain_size, self.offer.max_plain_size);
            return Err(Refusal::new(Code::TooLarge, detail));
        }
        Ok(())
    }

    /// Step 1007, first part: gives the payload of [`Kind::Start`]. What the processor would refuse is refused here already:
    /// terms of another order or processor ([`Code::TermsMismatch`]), by another key than was announced
    /// ([`Code::StatementKeyMismatch`]), about another manifest ([`Code::ManifestMismatch`]), or not offered
    /// ([`Code::NothingInCommon`], [`Code::OfferAltered`]).
    pub fn start(self, consignment: Consignment, context: &Context<'_>) -> Result<(Sending, Vec<u8>)> {
        let terms = verify_document::<Terms>(&consignment.terms, context.trust, context.now)?;
        let manifest = verify_document::<Manifest>(&consignment.manifest, context.trust, context.now)?;
        let facts = &self.session.facts;
        if terms.signer().key_id() != facts.statement_key {
            return Err(Refusal::new(Code::StatementKeyMismatch, "the terms were signed by another key than was announced"));
        }
        if terms.order != facts.order || terms.processor != facts.processor {
            return Err(Refusal::new(Code::TermsMismatch, "the terms are of another order or processor"));
        }
        if manifest.digest() != terms.manifest {
            return Err(Refusal::new(Code::ManifestMismatch, "the terms name another manifest"));
        }
        self.check_choice(&Choice { suite: terms.suite, format: terms.format, key_mode: terms.key_mode }, &manifest)?;
        let from = Some(consignment.from).filter(|from| *from > 0);
        if from.is_some_and(|bytes| self.offer.kept != Some(Kept { terms: terms.digest(), bytes })) {
            return Err(Refusal::new(Code::OfferAltered, "the processor did not offer to go on there"));
        }
        let Consignment { terms: signed, manifest, wrap, session_wrap, layout, plain_digest, .. } = consignment;
        let digests = [Digest::of(&encode(&wrap)), Digest::of(&encode(&session_wrap))];
        let (signed, manifest, layout) = (Bytes::new(signed)?, Bytes::new(manifest)?, Bytes::new(layout)?);
        let start = Start { terms: signed, manifest, wrap, session_wrap, layout, plain_digest, from };
        let bytes = payload(Kind::Start, &start)?;
        Ok((Sending { session: self.session, terms, wraps: digests, plain_digest }, bytes))
    }
}

fn nothing_in_common(what: &str) -> Refusal {
    Refusal::new(Code::NothingInCommon, format!("no {what} that the processor, the vendor and the server's policy all allow"))
}

/// The start went out; the caller sends the chunks.
#[derive(Debug)]
pub struct Sending {
    session: Session,
    terms: Verified<Terms>,
    wraps: [Digest; 2],
    plain_digest: Digest,
}

impl Sending {
    /// The terms under which the chunks are sent.
    #[must_use]
    pub fn terms(&self) -> &Verified<Terms> {
        &self.terms
    }

    /// Step 1007, last part: seals what was sent, signed by the statement key that the exchange named (any other is
    /// [`Code::StatementKeyMismatch`]). Gives the payload of [`Kind::Seal`].
    pub fn seal(self, roots: &Roots, statement: &Signer<'_>) -> Result<(AwaitingAcknowledgement, Vec<u8>)> {
        if statement.key.key_id() != self.session.facts.statement_key {
            return Err(Refusal::new(Code::StatementKeyMismatch, "the seal would be signed by another key than was announced"));
        }
        let [wrap, session_wrap] = self.wraps;
        let seal = statement.sign(&Seal {
            terms: self.terms.digest(),
            wrap,
            session_wrap,
            exchange: self.session.exchange,
            plain_digest: self.plain_digest,
            body_root: roots.body_root,
            body_size: roots.body_size,
            table_root: roots.table_root,
            table_size: roots.table_size,
        })?;
        let expected = Expected {
            order: self.terms.order,
            terms: self.terms.digest(),
            seal: Digest::of(&seal),
            processor: self.session.facts.processor,
        };
        Ok((AwaitingAcknowledgement { expected, seal: seal.clone() }, seal))
    }
}

/// Everything went out; the acknowledgement is awaited.
#[derive(Debug)]
pub struct AwaitingAcknowledgement {
    expected: Expected,
    seal: Vec<u8>,
}

impl AwaitingAcknowledgement {
    /// What the acknowledgement must name; the caller stores it before it waits.
    #[must_use]
    pub fn expected(&self) -> &Expected {
        &self.expected
    }

    /// The signed seal that was sent.
    #[must_use]
    pub fn seal(&self) -> &[u8] {
        &self.seal
    }

    /// Step 1008: takes the payload of [`Kind::Acknowledgement`]. Refuses as [`verify_acknowledgement`] does.
    pub fn acknowledgement(self, message: &[u8], context: &Context<'_>) -> Result<Verified<Acknowledgement>> {
        verify_acknowledgement(message, context.trust, context.now, &self.expected)
    }
}

/// What an acknowledgement must name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expected {
    /// The order.
    pub order: OrderId,
    /// Digest of the signed terms.
    pub terms: Digest,
    /// Digest of the signed seal.
    pub seal: Digest,
    /// The processor's identity key.
    pub processor: KeyId,
}

/// Verifies an acknowledgement wherever it came from: over the second path, or from the client on the first (step 1009).
/// Refuses a document that does not verify, and with [`Code::AcknowledgementMismatch`] one that is not about exactly this
/// delivery, so that none can be replayed (A13).
pub fn verify_acknowledgement(bytes: &[u8], trust: &Trust, now: Time, expected: &Expected) -> Result<Verified<Acknowledgement>> {
    let acknowledgement = verify_document::<Acknowledgement>(bytes, trust, now)?;
    let same = [
        ("processor", acknowledgement.signer().key_id() == expected.processor),
        ("order", acknowledgement.order == expected.order),
        ("terms", acknowledgement.terms == expected.terms),
        ("seal", acknowledgement.seal == expected.seal),
    ];
    match same.iter().find(|(_, same)| !same) {
        Some((what, _)) => {
            Err(Refusal::new(Code::AcknowledgementMismatch, format!("the acknowledgement is of another {what} than was delivered")))
        }
        None => Ok(acknowledgement),
    }
}
