//! Where the processor's keys live (source \[32\]-\[36\]): one trait, and the store of the class `software`.
//!
//! The HPKE key schedule stays above the store: it is asked for signatures and shared secrets only, so that a chip can take
//! its place.

use aws_lc_rs::rand::SystemRandom as SigningRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use chipbound_sealing::{Decapsulate, SealingKeyPair, at_rest};
use chipbound_wire::certificate::SealingKey;
use chipbound_wire::signature::{Sign, p256_spki};
use chipbound_wire::suite::{Class, Kem};
use chipbound_wire::{Code, Digest, Random, Refusal, Result};
use std::fmt;
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
pub struct SoftwareKeyStore {
    identity: EcdsaKeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
    spki: Vec<u8>,
    generations: Vec<Generation>,
}

/// Sealing keys that were made together, one of each mechanism.
struct Generation {
    keys: Vec<SealingKeyPair>,
}

impl Generation {
    fn generate(random: &mut dyn Random) -> Self {
        Self { keys: Kem::ALL.iter().map(|kem| SealingKeyPair::generate(*kem, random)).collect() }
    }

    fn get(&self, kem: Kem) -> Option<&SealingKeyPair> {
        self.keys.iter().find(|k| k.kem() == kem)
    }

    fn publics(&self) -> Vec<SealingKey> {
        self.keys.iter().map(SealingKeyPair::sealing_key).collect()
    }
}

impl Decapsulate for Generation {
    fn public(&self, kem: Kem) -> Option<Vec<u8>> {
        self.get(kem)?.public(kem)
    }

    fn decapsulate(&self, kem: Kem, enc: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        self.get(kem).ok_or_else(|| Refusal::new(Code::NotSupported, format!("this key store has no key for {kem}")))?.decapsulate(kem, enc)
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
        Self::of(pkcs8, vec![Generation::generate(random)])
    }

    fn of(pkcs8: Zeroizing<Vec<u8>>, generations: Vec<Generation>) -> Result<Self> {
        let identity = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8)
            .map_err(|_| Refusal::new(Code::Unsealable, "the identity key is not a P-256 key in PKCS#8"))?;
        let point: &[u8; 65] = identity.public_key().as_ref().try_into().expect("an uncompressed P-256 point has 65 bytes");
        let spki = p256_spki(point);
        Ok(Self { identity, pkcs8, spki, generations })
    }

    /// Makes a new generation of sealing keys the newest. Older ones are dropped when `needed` says of the digest of
    /// none of their public halves that a package needs it; the newest two stay in any case.
    pub fn rotate(&mut self, needed: impl Fn(&Digest) -> bool, random: &mut dyn Random) {
        self.generations.insert(0, Generation::generate(random));
        let mut index = 0;
        self.generations.retain(|generation| {
            index += 1;
            index <= KEPT_ANYWAY || generation.publics().iter().any(|key| needed(&Digest::of(&key.public)))
        });
        self.generations.truncate(MAX_GENERATIONS);
    }

    /// The store, sealed for a file of mode 0600.
    #[must_use]
    pub fn to_sealed(&self, kek: &[u8; 32], random: &mut dyn Random) -> Vec<u8> {
        at_rest::seal(kek, CONTEXT, &self.encode(), random)
    }

    /// Opens what [`Self::to_sealed`] made; [`Code::Unsealable`] otherwise.
    pub fn from_sealed(kek: &[u8; 32], sealed: &[u8]) -> Result<Self> {
        Self::decode(&at_rest::open(kek, CONTEXT, sealed)?)
    }
}

impl Sign for SoftwareKeyStore {
    fn spki(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64]> {
        let signature = self
            .identity
            .sign(&SigningRandom::new(), message)
            .map_err(|_| Refusal::new(Code::Internal, "the identity key does not sign"))?;
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
    /// CBOR: \[identity in PKCS#8, \[generation, …\]\], a generation being the pairs as `SealingKeyPair::serialize` writes them.
    /// Written by hand so that no copy of a secret is left behind in memory.
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut plain = Zeroizing::new(Vec::with_capacity(16 * 1024));
        let mut e = minicbor::Encoder::new(&mut *plain);
        self.encode_to(&mut e).expect("encoding to memory does not fail");
        plain
    }

    fn encode_to<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
    ) -> std::result::Result<(), minicbor::encode::Error<W::Error>> {
        e.array(2)?.bytes(&self.pkcs8)?.array(self.generations.len() as u64)?;
        for generation in &self.generations {
            e.array(generation.keys.len() as u64)?;
            for key in &generation.keys {
                e.bytes(&key.serialize())?;
            }
        }
        Ok(())
    }

    fn decode(plain: &[u8]) -> Result<Self> {
        let bad = |_| Refusal::new(Code::Unsealable, "the key store is not in the form of this version");
        let mut d = minicbor::Decoder::new(plain);
        d.array().map_err(bad)?;
        let pkcs8 = Zeroizing::new(d.bytes().map_err(bad)?.to_vec());
        let count = d.array().map_err(bad)?.unwrap_or(0).min(MAX_GENERATIONS as u64);
        let mut generations = Vec::new();
        for _ in 0..count {
            let mut keys = Vec::new();
            for _ in 0..d.array().map_err(bad)?.unwrap_or(0) {
                keys.push(SealingKeyPair::deserialize(d.bytes().map_err(bad)?)?);
            }
            generations.push(Generation { keys });
        }
        Self::of(pkcs8, generations)
    }
}

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
