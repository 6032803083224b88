//! Key wraps: HPKE (RFC 9180) with HKDF-SHA256 and AES-256-GCM, over X-Wing or DHKEM(P-256). Info names purpose and suite, the
//! AAD names the place, so that no wrap serves anywhere else (A11).
//!
//! | wrap | mode | info | AAD | seals |
//! |---|---|---|---|---|
//! | main, direct | PSK | `chipbound/1 wrap`, suite, key mode | terms | the key commitment; the content key is exported |
//! | main, common | PSK | `chipbound/1 wrap`, suite, key mode | terms | the content key |
//! | session | base | `chipbound/1 session wrap`, suite | terms | the content key |
//! | release | base | `chipbound/1 release` | order, terms, processor | the release secret |
//! | possession | base | `chipbound/1 possession` | the enrolment's session | a challenge |
//!
//! `terms` stands for the digest of the signed terms. PSK: the release secret (32 bytes), its id the order.

use crate::gate::ReleaseSecret;
use crate::kem::{Decapsulate, SessionKey};
use crate::keys::ContentKey;
use chipbound_wire::bounded::Bytes;
use chipbound_wire::certificate::SealingKey;
use chipbound_wire::documents::{ReleaseToken, Terms, Wrap};
use chipbound_wire::random::Random;
use chipbound_wire::suite::{Kem, KeyMode, Suite};
use chipbound_wire::{Code, Digest, KeyId, OrderId, Refusal, Result};
use hpke::aead::{AeadCtxR, AeadCtxS, AesGcm256};
use hpke::kdf::{HkdfSha256, Kdf};
use hpke::kem::{DhP256HkdfSha256, SharedSecret, XWing};
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable, HpkeError, Kem as HpkeKem, OpModeR, OpModeS, PskBundle, Serializable, setup_sender_with_rng};
use std::convert::Infallible;
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The main wrap of direct mode while the terms are being signed: they name a commitment to the key that it exports.
pub struct DirectWrap {
    kem: Kem,
    enc: Vec<u8>,
    context: Box<Sender>,
}

impl DirectWrap {
    /// Encapsulates to the processor's certified key `public` and exports the content key (source claim 4);
    /// [`Code::WrapInvalid`] where `public` is no key of the suite's mechanism.
    pub fn begin(
        public: &[u8],
        suite: Suite,
        release: &ReleaseSecret,
        order: &OrderId,
        random: &mut dyn Random,
    ) -> Result<(Self, ContentKey)> {
        let info = wrap_info(suite, KeyMode::Direct);
        let (enc, context) = Sender::set_up(suite.kem, public, &info, Some((release, order)), random)?;
        let mut exported = Zeroizing::new([0; 32]);
        context.export(CONTENT_KEY, exported.as_mut_slice())?;
        Ok((Self { kem: suite.kem, enc, context: Box::new(context) }, ContentKey::from_bytes(exported.as_slice())?))
    }

    /// Seals the commitment to the key, which the terms name, under the terms.
    pub fn finish(mut self, terms: &Digest, commitment: &Digest) -> Result<Wrap> {
        let ciphertext = self.context.seal(&commitment.0, &terms.0)?;
        wrap(self.kem, self.enc, ciphertext)
    }
}

impl fmt::Debug for DirectWrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DirectWrap({}, ..)", self.kem)
    }
}

/// The main wrap of common mode (source claim 5): the release's content key, to the processor's certified key `public`;
/// [`Code::WrapInvalid`] where that is no key of the suite's mechanism.
pub fn wrap_common(
    public: &[u8],
    suite: Suite,
    release: &ReleaseSecret,
    order: &OrderId,
    terms: &Digest,
    content: &ContentKey,
    random: &mut dyn Random,
) -> Result<Wrap> {
    let info = wrap_info(suite, KeyMode::Common);
    seal_to(suite.kem, public, &info, Some((release, order)), &terms.0, content.bytes(), random)
}

/// Opens the main wrap, in the mode that the terms name. `digest` is that of the signed terms. [`Code::WrapInvalid`] for another
/// processor, order, terms, suite, mode or release secret; the content key still has to pass
/// [`crate::PageKeys::of_terms`].
pub fn open_wrap(store: &dyn Decapsulate, wrap: &Wrap, terms: &Terms, digest: &Digest, release: &ReleaseSecret) -> Result<ContentKey> {
    if wrap.kem != terms.suite.kem {
        return Err(invalid());
    }
    let info = wrap_info(terms.suite, terms.key_mode);
    let mut context = Receiver::set_up(store, wrap, &info, Some((release, &terms.order)))?;
    let opened = context.open(&wrap.ciphertext, &digest.0)?;
    match terms.key_mode {
        KeyMode::Common => ContentKey::from_bytes(&opened).map_err(|_| invalid()),
        KeyMode::Direct if bool::from(opened.as_slice().ct_eq(terms.key_commitment.as_ref())) => {
            let mut exported = Zeroizing::new([0; 32]);
            context.export(CONTENT_KEY, exported.as_mut_slice())?;
            ContentKey::from_bytes(exported.as_slice())
        }
        KeyMode::Direct => Err(invalid()),
    }
}

/// Wraps the content key to the session's key, for the comparison of step 1008; the session's mechanism may be another than the
/// suite's.
pub fn wrap_session(to: &SealingKey, suite: Suite, terms: &Digest, content: &ContentKey, random: &mut dyn Random) -> Result<Wrap> {
    seal_to(to.kem, &to.public, &session_info(suite), None, &terms.0, content.bytes(), random)
}

/// Opens what [`wrap_session`] made; [`Code::WrapInvalid`] for another session, suite or terms.
pub fn open_session(session: &SessionKey, wrap: &Wrap, suite: Suite, terms: &Digest) -> Result<ContentKey> {
    let opened = open_from(session, wrap, &session_info(suite), &terms.0)?;
    ContentKey::from_bytes(&opened).map_err(|_| invalid())
}

/// Seals the release secret into the release token of step 1009, to the processor's certified key `public` of mechanism `kem`.
pub fn seal_release(
    public: &[u8],
    kem: Kem,
    order: &OrderId,
    terms: &Digest,
    processor: &KeyId,
    release: &ReleaseSecret,
    random: &mut dyn Random,
) -> Result<Wrap> {
    seal_to(kem, public, RELEASE, None, &release_aad(order, terms, processor), release.bytes(), random)
}

/// Opens the release token; [`Code::TokenMismatch`] for another processor, order or terms than those it was made for. The secret
/// still has to pass [`ReleaseSecret::check`].
pub fn open_release(store: &dyn Decapsulate, token: &ReleaseToken) -> Result<ReleaseSecret> {
    let aad = release_aad(&token.order, &token.terms, &token.processor);
    open_from(store, &token.release, RELEASE, &aad)
        .and_then(|secret| ReleaseSecret::from_bytes(&secret))
        .map_err(|e| Refusal::new(Code::TokenMismatch, "the release token does not open here").because(e))
}

/// Seals an enrolment's challenge to a key whose holder shall prove that it can open; `session` names the enrolment.
pub fn seal_possession(to: &SealingKey, session: &[u8; 16], challenge: &[u8; 32], random: &mut dyn Random) -> Result<Wrap> {
    seal_to(to.kem, &to.public, POSSESSION, None, session, challenge, random)
}

/// Opens an enrolment's challenge.
pub fn open_possession(store: &dyn Decapsulate, session: &[u8; 16], wrap: &Wrap) -> Result<[u8; 32]> {
    let opened = open_from(store, wrap, POSSESSION, session)?;
    opened.as_slice().try_into().map_err(|_| invalid())
}

/// What a main wrap is bound to besides the terms.
fn wrap_info(suite: Suite, mode: KeyMode) -> Vec<u8> {
    [b"chipbound/1 wrap".as_slice(), &suite.bytes(), &[mode.number()]].concat()
}

fn session_info(suite: Suite) -> Vec<u8> {
    [b"chipbound/1 session wrap".as_slice(), &suite.bytes()].concat()
}

fn release_aad(order: &OrderId, terms: &Digest, processor: &KeyId) -> Vec<u8> {
    [order.0.as_slice(), &terms.0, &processor.0].concat()
}

/// A release secret and the order that names it, as HPKE's psk and psk_id (RFC 9180 §5.1.2).
type Psk<'a> = (&'a ReleaseSecret, &'a OrderId);

fn seal_to(kem: Kem, public: &[u8], info: &[u8], psk: Option<Psk<'_>>, aad: &[u8], plain: &[u8], random: &mut dyn Random) -> Result<Wrap> {
    let (enc, mut context) = Sender::set_up(kem, public, info, psk, random)?;
    let ciphertext = context.seal(plain, aad)?;
    wrap(kem, enc, ciphertext)
}

fn open_from(store: &dyn Decapsulate, wrap: &Wrap, info: &[u8], aad: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
    Receiver::set_up(store, wrap, info, None)?.open(&wrap.ciphertext, aad)
}

fn wrap(kem: Kem, enc: Vec<u8>, ciphertext: Vec<u8>) -> Result<Wrap> {
    Ok(Wrap { kem, enc: Bytes::new(enc)?, ciphertext: Bytes::new(ciphertext)? })
}

fn invalid() -> Refusal {
    Refusal::new(Code::WrapInvalid, "the key wrap does not open here")
}

fn because(error: HpkeError) -> Refusal {
    invalid().because(error)
}

type Sends<K> = AeadCtxS<AesGcm256, HkdfSha256, K>;
type Receives<K> = AeadCtxR<AesGcm256, HkdfSha256, K>;

/// HPKE's sender context of either mechanism.
enum Sender {
    XWing(Sends<XWing>),
    P256(Sends<DhP256HkdfSha256>),
}

impl Sender {
    fn set_up(kem: Kem, public: &[u8], info: &[u8], psk: Option<Psk<'_>>, random: &mut dyn Random) -> Result<(Vec<u8>, Self)> {
        fn typed<K: HpkeKem>(
            public: &[u8],
            info: &[u8],
            psk: Option<Psk<'_>>,
            random: &mut dyn Random,
        ) -> std::result::Result<(Vec<u8>, Sends<K>), HpkeError> {
            let mode = match psk {
                Some((psk, id)) => OpModeS::<K>::Psk(PskBundle::new(psk.bytes(), &id.0)?),
                None => OpModeS::Base,
            };
            let public = K::PublicKey::from_bytes(public)?;
            let (enc, context) = setup_sender_with_rng(&mode, &public, info, &mut Drawn(random))?;
            Ok((enc.to_bytes().to_vec(), context))
        }
        match kem {
            Kem::XWing => typed(public, info, psk, random).map(|(enc, context)| (enc, Self::XWing(context))),
            Kem::DhkemP256 => typed(public, info, psk, random).map(|(enc, context)| (enc, Self::P256(context))),
        }
        .map_err(because)
    }

    fn seal(&mut self, plain: &[u8], aad: &[u8]) -> Result<Vec<u8>> {
        match self {
            Self::XWing(context) => context.seal(plain, aad),
            Self::P256(context) => context.seal(plain, aad),
        }
        .map_err(because)
    }

    fn export(&self, context: &[u8], out: &mut [u8]) -> Result<()> {
        match self {
            Self::XWing(sender) => sender.export(context, out),
            Self::P256(sender) => sender.export(context, out),
        }
        .map_err(because)
    }
}

/// HPKE's receiver context of either mechanism, over a shared secret from the key store.
enum Receiver {
    XWing(Box<Receives<XWing>>),
    P256(Box<Receives<DhP256HkdfSha256>>),
}

impl Receiver {
    fn set_up(store: &dyn Decapsulate, wrap: &Wrap, info: &[u8], psk: Option<Psk<'_>>) -> Result<Self> {
        /// KeySchedule of RFC 9180 §5.1, as the crate's own receiver calls it after Decap().
        fn typed<K: HpkeKem>(secret: &[u8], info: &[u8], psk: Option<Psk<'_>>) -> std::result::Result<Box<Receives<K>>, HpkeError> {
            let mode = match psk {
                Some((psk, id)) => OpModeR::<K>::Psk(PskBundle::new(psk.bytes(), &id.0)?),
                None => OpModeR::Base,
            };
            let mut shared = SharedSecret::<K>::default();
            if secret.len() != shared.0.len() {
                return Err(HpkeError::DecapError);
            }
            shared.0.copy_from_slice(secret);
            Ok(Box::new(HkdfSha256::combine_secrets(&mode, shared, info).into()))
        }
        let secret = store.decapsulate(wrap.kem, &wrap.enc)?;
        match wrap.kem {
            Kem::XWing => typed(&secret, info, psk).map(Self::XWing),
            Kem::DhkemP256 => typed(&secret, info, psk).map(Self::P256),
        }
        .map_err(because)
    }

    fn open(&mut self, ciphertext: &[u8], aad: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        match self {
            Self::XWing(context) => context.open(ciphertext, aad),
            Self::P256(context) => context.open(ciphertext, aad),
        }
        .map(Zeroizing::new)
        .map_err(because)
    }

    fn export(&self, context: &[u8], out: &mut [u8]) -> Result<()> {
        match self {
            Self::XWing(receiver) => receiver.export(context, out),
            Self::P256(receiver) => receiver.export(context, out),
        }
        .map_err(because)
    }
}

/// Our randomness in the form that the hpke crate takes.
struct Drawn<'a>(&'a mut dyn Random);

impl TryRng for Drawn<'_> {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> std::result::Result<u32, Infallible> {
        Ok(u32::from_le_bytes(chipbound_wire::random::fresh(self.0)))
    }
    fn try_next_u64(&mut self) -> std::result::Result<u64, Infallible> {
        Ok(u64::from_le_bytes(chipbound_wire::random::fresh(self.0)))
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> std::result::Result<(), Infallible> {
        self.0.fill(bytes);
        Ok(())
    }
}
impl TryCryptoRng for Drawn<'_> {}

/// The exporter context (RFC 9180 §5.3) of direct mode's content key.
const CONTENT_KEY: &[u8] = b"chipbound/1 content key";
const RELEASE: &[u8] = b"chipbound/1 release";
const POSSESSION: &[u8] = b"chipbound/1 possession";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kem::SealingKeyPair;
    use chipbound_wire::SystemRandom;

    #[test]
    fn a_receiver_over_a_key_stores_secret_is_the_receiver_of_rfc_9180() {
        fn compare<K: HpkeKem>(kem: Kem, psk: Option<Psk<'_>>) {
            let pair = SealingKeyPair::generate(kem, &mut SystemRandom);
            let public = pair.sealing_key().public;
            let (enc, mut sender) = Sender::set_up(kem, &public, b"info", psk, &mut SystemRandom).expect("a sender");
            let ciphertext = sender.seal(b"plain", b"aad").expect("sealed");
            let wrap = wrap(kem, enc, ciphertext).expect("short");

            let mode = match psk {
                Some((psk, id)) => OpModeR::Psk(PskBundle::new(psk.bytes(), &id.0).expect("both")),
                None => OpModeR::Base,
            };
            let private = K::PrivateKey::from_bytes(&pair.serialize()[1..]).expect("its own bytes");
            let enc = K::EncappedKey::from_bytes(&wrap.enc).expect("encapsulated");
            let mut theirs: Receives<K> = hpke::setup_receiver(&mode, &private, &enc, b"info").expect("a receiver");
            let mut ours = Receiver::set_up(&pair, &wrap, b"info", psk).expect("a receiver");
            assert_eq!(theirs.open(&wrap.ciphertext, b"aad").expect("opens"), b"plain");
            assert_eq!(**ours.open(&wrap.ciphertext, b"aad").expect("opens"), *b"plain");
            let (mut exported, mut expected, mut sent) = ([0; 32], [0; 32], [0; 32]);
            ours.export(b"context", &mut exported).expect("exported");
            theirs.export(b"context", &mut expected).expect("exported");
            sender.export(b"context", &mut sent).expect("exported");
            assert_eq!((exported, sent), (expected, expected));
        }
        let (secret, order) = (ReleaseSecret::generate(&mut SystemRandom), OrderId([3; 16]));
        for psk in [None, Some((&secret, &order))] {
            compare::<XWing>(Kem::XWing, psk);
            compare::<DhP256HkdfSha256>(Kem::DhkemP256, psk);
        }
    }

    #[test]
    fn a_key_store_that_gives_a_secret_of_another_length_is_refused() {
        struct Short;
        impl Decapsulate for Short {
            fn public(&self, _: Kem) -> Option<Vec<u8>> {
                None
            }
            fn decapsulate(&self, _: Kem, _: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
                Ok(Zeroizing::new(vec![1; 31]))
            }
        }
        let wrap = wrap(Kem::XWing, vec![0; 1120], vec![0; 48]).expect("short");
        assert_eq!(open_possession(&Short, &[0; 16], &wrap).expect_err("a short secret").code, Code::WrapInvalid);
    }
}
