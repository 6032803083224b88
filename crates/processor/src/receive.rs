//! The processor's part of one delivery (source \[43\]-\[52\], Fig. 5; steps 1003-1011), top to bottom.
//!
//! [`receive`] goes from the second path to the acknowledgement, [`Held::release`] from the release token to the package. In
//! between the client settles the charge (step 1009); nothing that lies on the disk meanwhile opens anything.

use crate::intake::{self, Intake};
use crate::processor::Processor;
use crate::spool::{Goods, SpoolFile};
use crate::vault::Enrolment;
use chipbound_sealing::package::ending;
use chipbound_sealing::{BodyReader, Layout, PageKeys, SessionKey, open_session, seal_manifest};
use chipbound_session::path::Path;
use chipbound_session::processor::{Acknowledged, Capabilities, Receiving, begin};
use chipbound_session::{Context, Delivery};
use chipbound_trusted_core::{Delivery as Gated, KeyStore, Memory, Record, Release, Step, release};
use chipbound_wire::bounded::Bytes;
use chipbound_wire::certificate::Certified;
use chipbound_wire::documents::{Manifest, PackageDocuments};
use chipbound_wire::messages::Kind;
use chipbound_wire::suite::{Aead, Format, Kem, KeyMode, Suite};
use chipbound_wire::{Code, Digest, Refusal, Result, SystemRandom, Time};
use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

/// For so long a delivery waits for an earlier one of its order, whose client has just gone away, to come to its end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Told how a delivery goes; may refuse, which ends it.
pub type Progress<'a> = &'a mut dyn FnMut(Word) -> Result<()>;

/// A word on a delivery. All numbers are bytes of its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// It goes on where an earlier one was cut short.
    GoesOn {
        /// What is here already.
        kept: u64,
        /// The whole body.
        total: u64,
    },
    /// So much of what was kept has been opened again.
    Checked {
        /// Opened.
        done: u64,
        /// To be opened.
        kept: u64,
    },
    /// So much is here.
    Received {
        /// Here, what was kept included.
        done: u64,
        /// The whole body.
        total: u64,
    },
}

/// A delivery that was received, compared, recorded and acknowledged, and that waits for its release token.
#[derive(Debug)]
pub struct Held {
    spool: SpoolFile,
    /// Documents, seal and the signed acknowledgement.
    pub acknowledged: Acknowledged,
}

/// Steps 1003 to 1008 over `stream`, whose other end the client relays to the server, or which the processor dialled itself.
/// `confirmation` is the signed order confirmation that the client, whose user is `uid`, agreed to.
///
/// On any refusal the server hears its reason. What came of a large delivery that was only cut short waits in the spool, and the
/// next one of the same order goes on there; of others nothing is left.
pub fn receive<S: Read + Write>(stream: S, confirmation: &[u8], uid: u32, us: &Processor, progress: Progress<'_>) -> Result<Held> {
    let enrolment = us.vault.enrolment()?;
    // 1003: the second path: TLS 1.3 between this processor and the server, both with certificates of the authority.
    let mut path = Path::connect(stream, &us.path_config(&enrolment)?)?;
    let held = match converse(&mut path, (confirmation, uid), us, &enrolment, progress) {
        Ok(held) => held,
        Err(refusal) => {
            path.abort(&refusal);
            return Err(refusal);
        }
    };
    // 1012: the second path is closed by both. Everything is received, compared and signed by now; a server that only forgets its
    // manners takes nothing away from that.
    match path.close() {
        Err(e) if matches!(e.code, Code::PathTruncated | Code::TimedOut) => {
            tracing::warn!(reason = %e, "the second path did not end cleanly")
        }
        other => other?,
    }
    Ok(held)
}

fn converse<S: Read + Write>(
    path: &mut Path<S>,
    (confirmation, uid): (&[u8], u32),
    us: &Processor,
    enrolment: &Enrolment,
    progress: Progress<'_>,
) -> Result<Held> {
    let identity = us.identity(enrolment);
    let (signer, trust) = (identity.signer(), enrolment.trust.get());
    let context = || Context { trust: &trust, now: us.now(), signer: &signer };

    // 1004: our challenge Rc, the order, and a sealing key that lives in this session's memory only.
    let session_key = SessionKey::generate(Kem::XWing, &mut SystemRandom);
    let capabilities = capabilities(us, enrolment);
    let (state, hello) = begin(path.channel(), confirmation, session_key.sealing_key(), capabilities, &context(), &mut SystemRandom)?;
    path.send(Kind::Hello, &hello)?;

    // 1005, 1006: both ends sign the same facts about this connection.
    let (state, ours) = state.server_exchange(path.expect(Kind::ServerExchange)?, &context())?;
    path.send(Kind::ProcessorExchange, &ours)?;

    // S22: what can you process? The answer is signed as a whole. It says too what an earlier delivery left here.
    let agreed = state.confirmation();
    let (until, place) = (agreed.expires_at, us.spool.place(agreed.order, PATIENCE));
    let title = format!("{} {}", agreed.program.name(), &*agreed.version);
    let (state, offer) = state.asked(path.expect(Kind::AskCapabilities)?, place.kept(), &context())?;
    path.send(Kind::Offer, &offer)?;

    // 1007: terms, manifest and wraps first.
    let receiving = state.start(path.expect(Kind::Start)?, &context())?;
    us.vault.check_sequence(&receiving.delivery().manifest)?;
    let layout = Layout::decode(&receiving.delivery().layout)?;
    check_layout(&layout, &receiving)?;

    // The session wrap gives the key for the comparison; the main wrap stays shut until the token comes.
    let keys = open_for_comparison(receiving.delivery(), session_key)?;

    // 1007: E[Prog], opened in memory and hashed while its ciphertext goes to the spool. Then the seal.
    let spool = match receiving.from() {
        0 => {
            if let Some(kept) = place.kept() {
                tracing::info!(order = %receiving.confirmation().order, bytes = kept.bytes, "the server begins anew: what was kept goes");
            }
            let goods = Goods { terms: receiving.delivery().terms.digest(), size: layout.body_size(), until, uid, title };
            us.spool.begin(place, goods, us.now())?
        }
        kept => {
            progress(Word::GoesOn { kept, total: layout.body_size() })?;
            place.go_on()?
        }
    };
    let Intake { spool, kept, received, seal } = intake::take_body(path, layout.clone(), &keys, spool, progress)?;
    let compared = match receiving.seal(&seal, &received, &context()) {
        Ok(compared) => compared,
        Err(refusal) => return Err(intake::give_up(spool, kept, refusal)),
    };
    if let Err(refusal) = check_profile(&spool, &layout, &keys, &compared.delivery().manifest) {
        return Err(intake::give_up(spool, kept, refusal));
    }
    drop(keys);

    // 1008: what was compared is remembered before it is acknowledged: only recorded seals are ever opened.
    let delivery = compared.delivery();
    let certified = enrolment.certified.sealing().and_then(|s| s.get(delivery.terms.suite.kem)).unwrap_or_default();
    let record = Record::of(&delivery.terms, compared.seal(), certified, common_time(delivery, us.now()));
    us.remember(Step::compared(record, &delivery.manifest))?;
    let (acknowledged, message) = compared.acknowledge(&context())?;
    path.send(Kind::Acknowledgement, &message)?;
    Ok(Held { spool, acknowledged })
}

impl Held {
    /// The package is on the client's disk: nothing of it stays here.
    pub fn taken(self) {
        self.spool.discard();
    }

    /// Steps 1010 and 1011: the token opens the gate; only then the package is made whole and given out, as a descriptor that
    /// can only read. Refuses as [`chipbound_trusted_core::release`] does; the delivery then goes on waiting.
    pub fn release(&mut self, token: &[u8], us: &Processor) -> Result<(File, u64)> {
        let enrolment = us.vault.enrolment()?;
        let keys = us.vault.keys();
        let now = us.now();
        let Acknowledged { delivery, seal, .. } = &self.acknowledged;

        // 1010: the token is the server's, about this delivery, and opens release secret and main wrap.
        let record = us.vault.record(&seal.digest())?;
        let (plain_digest, secrets) = (&seal.plain_digest, &us.vault.secrets(&record)?);
        let gated = Gated { record: &record, terms: &delivery.terms, wrap: &delivery.wrap, plain_digest, secrets };
        if record.release.as_ref().is_some_and(|r| r.token != Digest::of(token)) {
            return Err(Refusal::new(Code::TokenMismatch, "the delivery was released with another token already"));
        }
        let released = release(token, gated, &*keys, &enrolment.trust.get(), now)?;

        // 1011: the documents join the ciphertext, the manifest sealed with the content key.
        let manifest = seal_manifest(released.content_key(), &delivery.terms, delivery.manifest.bytes())?;
        let documents = PackageDocuments {
            terms: Bytes::new(delivery.terms.bytes().to_vec())?,
            wrap: delivery.wrap.clone(),
            seal: Bytes::new(seal.bytes().to_vec())?,
            token: Bytes::new(token.to_vec())?,
            sealed_manifest: Bytes::new(manifest)?,
        };
        let ending = ending(&Layout::decode(&delivery.layout)?, &documents);
        let ending_at = seal.body_size + seal.table_size;
        self.spool.write_at(&ending, ending_at)?;
        let settled = us.vault.settle(&released, (&documents, delivery.manifest.bytes()), (&record, now), &enrolment.root)?;
        let release = Release { token: Digest::of(token), at: now, settled: Some(settled) };
        us.remember(Step::Released { seal: seal.digest(), release })?;
        Ok((self.spool.reader()?, ending_at + ending.len() as u64))
    }
}

/// What this processor can process: the mechanisms of its certified sealing keys with every cipher.
fn capabilities(us: &Processor, enrolment: &Enrolment) -> Capabilities {
    let certified = enrolment.certified.sealing().map(|s| s.keys.to_vec()).unwrap_or_default();
    let suites = certified.iter().flat_map(|key| Aead::ALL.iter().map(|aead| Suite { kem: key.kem, aead: *aead }));
    Capabilities {
        suites: suites.collect(),
        formats: Format::ALL.to_vec(),
        key_modes: KeyMode::ALL.to_vec(),
        max_plain_size: us.config.limits.program_bytes,
        class: us.vault.keys().class(),
    }
}

/// A time at which all certificates of the delivery were valid: one that ran out since the terms came shall not shut the package.
fn common_time(delivery: &Delivery, now: Time) -> Time {
    let until = |certified: &Certified| certified.validity().1;
    now.min(until(delivery.terms.signer())).min(until(delivery.manifest.signer()))
}

/// The layout is of the plaintext that the manifest names.
fn check_layout(layout: &Layout, receiving: &Receiving) -> Result<()> {
    let manifest = &receiving.delivery().manifest;
    if layout.format() != manifest.format || layout.body_size() != manifest.plain_size {
        return Err(Refusal::new(Code::ManifestMismatch, "the layout is not of the program that the vendor's manifest names"));
    }
    Ok(())
}

/// What the vendor wants sealed is sealed: the server chose the layout, and the plaintext, which is the vendor's, says what it should be.
fn check_profile(spool: &SpoolFile, layout: &Layout, keys: &PageKeys, manifest: &Manifest) -> Result<()> {
    layout.check_profile(manifest.profile, &BodyReader::new(spool.reader()?, layout, keys)?)
}

/// Opens the session wrap with the session's key, which ends here, and checks the commitment to the content key.
fn open_for_comparison(delivery: &Delivery, session_key: SessionKey) -> Result<PageKeys> {
    let terms = &delivery.terms;
    let content = open_session(&session_key, &delivery.session_wrap, terms.suite, &terms.digest())?;
    PageKeys::of_terms(&content, terms, &delivery.plain_digest)
}
