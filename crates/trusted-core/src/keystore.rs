//! Where the processor's keys live (source \[32\]-\[36\]): one trait, and the store of the class `software`.
//!
//! The HPKE key schedule stays above the store: it is asked for signatures and shared secrets only, so that a chip can take
//! its place.

use crate::held::{Held, Keep, leaving_nothing, on_the_heap};
use aws_lc_rs::rand::SystemRandom as SigningRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use chipbound_sealing::{Decapsulate, SealingKeyPair, at_rest};
use chipbound_wire::certificate::SealingKey;
use chipbound_wire::signature::{Sign, p256_spki};
use chipbound_wire::suite::{Class, Kem};
use chipbound_wire::{Code, Digest, Random, Refusal, Result};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Generations of sealing keys at most: the newest is certified, the older ones only open.
const MAX_GENERATIONS: usize = 256;

/// Generations that are kept in any case: a delivery may run while the keys are rotated.
const KEPT_ANYWAY: usize = 2;

/// Under which the software store is sealed.
const CONTEXT: &str = "chipbound/1 processor keys";

/// A store of keys that never leave it (source \[36\]). It signs with the processor's identity key.
pub trait KeyStore: Sign {
    /// The class of the store, as it is certified.
    fn class(&self) -> Class;

    /// The newest sealing keys, to be certified: at most one of each mechanism.
    fn sealing_keys(&self) -> Vec<SealingKey>;

    /// Everything that can open a wrap, the newest generation of sealing keys first.
    fn generations(&self) -> Vec<&dyn Decapsulate>;

    /// The generation whose public halves are these: what a certificate names. None when the store holds no such keys.
    fn generation_of(&self, keys: &[SealingKey]) -> Option<&dyn Decapsulate>;
}

/// Keys in a sealed file: protected at rest and from other users, not from root.
///
/// Its secrets lie in one place, [`Held`]; a key is made of them for each use and erased after it.
pub struct SoftwareKeyStore {
    spki: Vec<u8>,
    /// CBOR: \[identity in PKCS#8, \[generation, …\]\], a generation being the pairs as `SealingKeyPair::serialize` writes them.
    secrets: Arc<Held>,
    /// Where the identity key lies in them.
    identity: Range<usize>,
    generations: Vec<Generation>,
}

/// Sealing keys that were made together, one of each mechanism.
struct Generation {
    secrets: Arc<Held>,
    /// The public halves, and where the pairs lie in the secrets.
    keys: Vec<(SealingKey, Range<usize>)>,
}

impl Generation {
    fn get(&self, kem: Kem) -> Option<&(SealingKey, Range<usize>)> {
        self.keys.iter().find(|(key, _)| key.kem == kem)
    }

    fn publics(&self) -> Vec<SealingKey> {
        self.keys.iter().map(|(key, _)| key.clone()).collect()
    }

    fn pairs(&self) -> Vec<&[u8]> {
        self.keys.iter().map(|(_, at)| &bytes(&self.secrets)[at.clone()]).collect()
    }
}

fn bytes(held: &Held) -> &[u8] {
    held.as_ref().as_ref()
}

impl Decapsulate for Generation {
    fn public(&self, kem: Kem) -> Option<Vec<u8>> {
        Some(self.get(kem)?.0.public.to_vec())
    }

    fn decapsulate(&self, kem: Kem, enc: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let none = || Refusal::new(Code::NotSupported, format!("this key store has no key for {kem}"));
        let (_, at) = self.get(kem).ok_or_else(none)?;
        leaving_nothing(|| SealingKeyPair::deserialize(&bytes(&self.secrets)[at.clone()])?.decapsulate(kem, enc))
    }
}

/// An identity key in PKCS#8 (RFC 5208), P-256.
#[must_use]
pub fn generate_identity() -> Zeroizing<Vec<u8>> {
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SigningRandom::new())
        .expect("generating a P-256 key fails only without randomness");
    Zeroizing::new(document.as_ref().to_vec())
}

impl SoftwareKeyStore {
    /// New keys: the identity key `pkcs8` of [`generate_identity`] and a first generation of sealing keys.
    pub fn generate(pkcs8: Zeroizing<Vec<u8>>, random: &mut dyn Random) -> Result<Self> {
        let pairs = leaving_nothing(|| fresh_pairs(random));
        Self::of(on_the_heap(encode(&pkcs8, &[pairs.iter().map(|pair| &pair[..]).collect()])))
    }

    /// The same store with its secrets in other memory. What held them before is zeroed.
    ///
    /// Refuses as `keep` does.
    pub fn kept_in(self, keep: Keep<'_>) -> Result<Self> {
        let secrets = Arc::new(keep(bytes(&self.secrets))?);
        let generations = self.generations.into_iter().map(|g| Generation { secrets: Arc::clone(&secrets), ..g }).collect();
        Ok(Self { secrets, generations, ..self })
    }

    /// Makes a new generation of sealing keys the newest. Older ones are dropped when `needed` says of the digest of
    /// none of their public halves that a package needs it; the newest two stay in any case. The secrets lie in ordinary memory
    /// afterwards.
    pub fn rotate(&mut self, needed: impl Fn(&Digest) -> bool, random: &mut dyn Random) {
        let pairs = leaving_nothing(|| fresh_pairs(random));
        let mut generations: Vec<Vec<&[u8]>> = vec![pairs.iter().map(|pair| &pair[..]).collect()];
        for (index, generation) in self.generations.iter().enumerate() {
            let kept = index + 1 < KEPT_ANYWAY || generation.publics().iter().any(|key| needed(&Digest::of(&key.public)));
            if kept && generations.len() < MAX_GENERATIONS {
                generations.push(generation.pairs());
            }
        }
        let encoded = encode(&bytes(&self.secrets)[self.identity.clone()], &generations);
        *self = Self::of(on_the_heap(encoded)).expect("what was encoded just now is in the form of this version");
    }

    /// The store, sealed for a file of mode 0600.
    #[must_use]
    pub fn to_sealed(&self, kek: &[u8; 32], random: &mut dyn Random) -> Vec<u8> {
        at_rest::seal(kek, CONTEXT, bytes(&self.secrets), random)
    }

    /// Opens what [`Self::to_sealed`] made; [`Code::Unsealable`] otherwise.
    pub fn from_sealed(kek: &[u8; 32], sealed: &[u8]) -> Result<Self> {
        Self::of(on_the_heap(at_rest::open(kek, CONTEXT, sealed)?))
    }
}

impl Sign for SoftwareKeyStore {
    fn spki(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64]> {
        let identity = identity_of(&bytes(&self.secrets)[self.identity.clone()])?;
        let signature =
            identity.sign(&SigningRandom::new(), message).map_err(|_| Refusal::new(Code::Internal, "the identity key does not sign"))?;
        Ok(signature.as_ref().try_into().expect("a fixed P-256 signature has 64 bytes"))
    }
}

impl KeyStore for SoftwareKeyStore {
    fn class(&self) -> Class {
        Class::Software
    }

    fn sealing_keys(&self) -> Vec<SealingKey> {
        self.generations.first().map(Generation::publics).unwrap_or_default()
    }

    fn generations(&self) -> Vec<&dyn Decapsulate> {
        self.generations.iter().map(|g| g as &dyn Decapsulate).collect()
    }

    fn generation_of(&self, keys: &[SealingKey]) -> Option<&dyn Decapsulate> {
        let generation = self.generations.iter().find(|g| !keys.is_empty() && keys.iter().all(|k| g.publics().contains(k)))?;
        Some(generation)
    }
}

impl fmt::Debug for SoftwareKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SoftwareKeyStore({}, {} generations)", self.key_id(), self.generations.len())
    }
}

impl SoftwareKeyStore {
    /// Reads what [`encode`] wrote; [`Code::Unsealable`] for anything else.
    fn of(secrets: Held) -> Result<Self> {
        let secrets = Arc::new(secrets);
        let bad = |_| Refusal::new(Code::Unsealable, "the key store is not in the form of this version");
        let mut d = minicbor::Decoder::new(bytes(&secrets));
        d.array().map_err(bad)?;
        let identity = place_of_bytes(&mut d).map_err(bad)?;
        let count = d.array().map_err(bad)?.unwrap_or(0).min(MAX_GENERATIONS as u64);
        let mut generations = Vec::new();
        for _ in 0..count {
            let mut keys = Vec::new();
            for _ in 0..d.array().map_err(bad)?.unwrap_or(0) {
                let at = place_of_bytes(&mut d).map_err(bad)?;
                let pair = &bytes(&secrets)[at.clone()];
                keys.push((leaving_nothing(|| SealingKeyPair::deserialize(pair).map(|pair| pair.sealing_key()))?, at));
            }
            generations.push(Generation { secrets: Arc::clone(&secrets), keys });
        }
        let spki = leaving_nothing(|| {
            let pair = identity_of(&bytes(&secrets)[identity.clone()])?;
            let point: &[u8; 65] = pair.public_key().as_ref().try_into().expect("an uncompressed P-256 point has 65 bytes");
            Ok(p256_spki(point))
        })?;
        Ok(Self { spki, secrets, identity, generations })
    }
}

fn identity_of(pkcs8: &[u8]) -> Result<EcdsaKeyPair> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8)
        .map_err(|_| Refusal::new(Code::Unsealable, "the identity key is not a P-256 key in PKCS#8"))
}

/// Sealing keys of each mechanism, as they are stored.
fn fresh_pairs(random: &mut dyn Random) -> Vec<Zeroizing<Vec<u8>>> {
    Kem::ALL.iter().map(|kem| SealingKeyPair::generate(*kem, random).serialize()).collect()
}

/// Where the next byte string lies.
fn place_of_bytes(d: &mut minicbor::Decoder<'_>) -> std::result::Result<Range<usize>, minicbor::decode::Error> {
    let length = d.bytes()?.len();
    Ok(d.position() - length..d.position())
}

/// The secrets in one piece; in memory that never grows, so that no copy of a secret is left behind.
fn encode(identity: &[u8], generations: &[Vec<&[u8]>]) -> Zeroizing<Vec<u8>> {
    let size: usize = identity.len() + generations.iter().flatten().map(|pair| pair.len() + HEADS).sum::<usize>();
    let mut plain = Zeroizing::new(Vec::with_capacity(size + HEADS * (generations.len() + 3)));
    encode_to(&mut minicbor::Encoder::new(&mut *plain), identity, generations).expect("encoding to memory does not fail");
    plain
}

fn encode_to<W: minicbor::encode::Write>(
    e: &mut minicbor::Encoder<W>,
    identity: &[u8],
    generations: &[Vec<&[u8]>],
) -> std::result::Result<(), minicbor::encode::Error<W::Error>> {
    e.array(2)?.bytes(identity)?.array(generations.len() as u64)?;
    for generation in generations {
        e.array(generation.len() as u64)?;
        for pair in generation {
            e.bytes(pair)?;
        }
    }
    Ok(())
}

/// Bytes of the longest CBOR head.
const HEADS: usize = 9;

#[cfg(test)]
mod tests {
    use super::*;
    use chipbound_sealing::{open_possession, seal_possession};
    use chipbound_wire::SystemRandom;
    use chipbound_wire::signature::verify;

    fn store() -> SoftwareKeyStore {
        SoftwareKeyStore::generate(generate_identity(), &mut SystemRandom).expect("a store")
    }

    #[test]
    fn a_store_opened_again_signs_and_opens_as_before() {
        let store = store();
        let sealed = store.to_sealed(&[7; 32], &mut SystemRandom);
        let again = SoftwareKeyStore::from_sealed(&[7; 32], &sealed).expect("opens");
        assert_eq!((again.key_id(), again.sealing_keys()), (store.key_id(), store.sealing_keys()));
        verify(store.spki(), b"message", &again.sign(b"message").expect("signed")).expect("verifies");
        for key in store.sealing_keys() {
            let wrap = seal_possession(&key, &[1; 16], &[2; 32], &mut SystemRandom).expect("sealed");
            assert_eq!(open_possession(again.generations()[0], &[1; 16], &wrap).expect("opens"), [2; 32]);
        }
    }

    #[test]
    fn a_store_in_other_memory_and_one_rotated_there_sign_and_open_as_before() {
        let keep: Keep<'_> = &|secret| Ok(Box::new(secret.to_vec()));
        let before = store();
        let publics = before.sealing_keys();
        let mut store = before.kept_in(keep).expect("kept");
        store.rotate(|_| false, &mut SystemRandom);
        let store = store.kept_in(keep).expect("kept");
        verify(store.spki(), b"message", &store.sign(b"message").expect("signed")).expect("verifies");
        for key in publics.iter().chain(&store.sealing_keys()) {
            let wrap = seal_possession(key, &[1; 16], &[2; 32], &mut SystemRandom).expect("sealed");
            let holder =
                store.generations().into_iter().find(|g| g.public(key.kem).as_deref() == Some(&key.public[..])).expect("its holder");
            assert_eq!(open_possession(holder, &[1; 16], &wrap).expect("opens"), [2; 32]);
        }
        let refused = store.kept_in(&|_| Err(Refusal::new(Code::Io, "no memory")));
        assert_eq!(refused.expect_err("as its memory does").code, Code::Io);
    }

    #[test]
    fn a_store_opens_under_its_own_key_only_and_shows_no_secret() {
        let store = store();
        let sealed = store.to_sealed(&[7; 32], &mut SystemRandom);
        assert_eq!(SoftwareKeyStore::from_sealed(&[8; 32], &sealed).expect_err("another key").code, Code::Unsealable);
        for at in (0..sealed.len()).step_by(11) {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(SoftwareKeyStore::from_sealed(&[7; 32], &changed).expect_err("changed").code, Code::Unsealable, "{at}");
        }
        assert_eq!(format!("{store:?}"), format!("SoftwareKeyStore({}, 1 generations)", store.key_id()));
    }

    #[test]
    fn a_rotation_certifies_new_keys_and_keeps_the_old_ones_that_are_needed() {
        let mut store = store();
        let first = store.sealing_keys();
        let needed = Digest::of(&first[0].public);
        for _ in 0..5 {
            store.rotate(|key| *key == needed, &mut SystemRandom);
        }
        assert_eq!(store.generations().len(), 3, "the newest, the one before, and the one that a package needs");
        assert_ne!(store.sealing_keys(), first);
        assert!(store.generation_of(&first).is_some());
        store.rotate(|_| false, &mut SystemRandom);
        assert!(store.generation_of(&first).is_none() && store.generation_of(&[]).is_none());
    }
}
