//! Signatures that were found good before. The same few certificates come with every document, the same manifest with every
//! delivery, an acknowledgement on both paths; and whether a signature is good does not change with time. Validity, revocation and
//! role are looked at every time.

use crate::ids::Digest;
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};
use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use webpki::aws_lc_rs::ECDSA_P256_SHA256;

/// Signatures that are remembered at once, 32 bytes each; when there are more, all are forgotten.
const MAX_KNOWN: usize = 4096;

/// Makes each verification once. Bad signatures are not remembered.
#[derive(Default)]
pub(super) struct KnownSignatures {
    good: Arc<Mutex<HashSet<Digest>>>,
    /// Those that were asked for and found good, where that is noted.
    noted: Option<Mutex<Vec<Digest>>>,
}

impl KnownSignatures {
    /// The same signatures; those that are asked for here are noted.
    pub(super) fn noting(&self) -> Self {
        Self { good: Arc::clone(&self.good), noted: Some(Mutex::default()) }
    }

    /// What was asked for and found good, each once; nothing where it is not noted.
    pub(super) fn noted(&self) -> Vec<Digest> {
        self.noted.as_ref().map(|noted| noted.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap_or_default()
    }

    /// Takes names that [`Self::noted`] gave.
    pub(super) fn know(&self, names: &[Digest]) {
        names.iter().for_each(|name| self.remember(*name));
    }

    fn remember(&self, name: Digest) {
        let mut known = self.known();
        if known.len() >= MAX_KNOWN && !known.contains(&name) {
            known.clear();
        }
        known.insert(name);
    }

    fn note(&self, name: Digest) {
        if let Some(noted) = &self.noted {
            let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
            if !noted.contains(&name) {
                noted.push(name);
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.good.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `verify` unless it was called for these three before and found them good.
    pub(super) fn once<E>(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
        verify: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let name = name(public_key, message, signature);
        let known = self.known().contains(&name);
        if !known {
            verify()?;
            self.remember(name);
        }
        self.note(name);
        Ok(())
    }
}

/// ECDSA with P-256 and SHA-256, as chains are verified by it.
impl SignatureVerificationAlgorithm for KnownSignatures {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        self.once(public_key, message, signature, || ECDSA_P256_SHA256.verify_signature(public_key, message, signature))
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        ECDSA_P256_SHA256.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        ECDSA_P256_SHA256.signature_alg_id()
    }
}

impl fmt::Debug for KnownSignatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KnownSignatures({})", self.known().len())
    }
}

/// One name for exactly these three: BLAKE3 over them, each after its length.
fn name(public_key: &[u8], message: &[u8], signature: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for part in [public_key, message, signature] {
        hasher.update(&(part.len() as u64).to_be_bytes()).update(part);
    }
    Digest(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

    #[test]
    fn a_known_signature_is_good_for_its_own_key_and_message_alone() {
        let pair = || EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key");
        let (key, other) = (pair(), pair());
        let signature = key.sign(&SystemRandom::new(), b"message").expect("a signature");
        let (public, known) = (key.public_key().as_ref(), KnownSignatures::default());
        for _ in 0..2 {
            known.verify_signature(public, b"message", signature.as_ref()).expect("good, and good again");
            let bad = [
                known.verify_signature(other.public_key().as_ref(), b"message", signature.as_ref()),
                known.verify_signature(public, b"massage", signature.as_ref()),
                known.verify_signature(public, b"message", &signature.as_ref()[1..]),
            ];
            assert!(bad.iter().all(Result::is_err));
        }
        assert_eq!(known.known().len(), 1, "nothing but the good one is remembered");
    }

    #[test]
    fn what_was_noted_here_is_known_there_and_nothing_else() {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key");
        let [first, second] = [b"first", b"other"].map(|message| key.sign(&SystemRandom::new(), message).expect("a signature"));
        let (public, here) = (key.public_key().as_ref(), KnownSignatures::default());
        here.verify_signature(public, b"first", first.as_ref()).expect("good");
        let noting = here.noting();
        assert!(noting.noted().is_empty());
        for _ in 0..2 {
            noting.verify_signature(public, b"first", first.as_ref()).expect("known to both");
            assert!(noting.verify_signature(public, b"first", second.as_ref()).is_err());
        }
        assert_eq!(noting.noted().len(), 1);
        let there = KnownSignatures::default();
        there.know(&noting.noted());
        let never = || Err("asked");
        there.once(public, b"first", first.as_ref(), never).expect("known");
        assert_eq!(there.once(public, b"other", second.as_ref(), never), Err("asked"));
    }

    #[test]
    fn no_more_than_the_limit_is_remembered() {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key");
        let signature = key.sign(&SystemRandom::new(), b"message").expect("a signature");
        let known = KnownSignatures::default();
        known.known().extend((0..MAX_KNOWN).map(|n| name(&n.to_be_bytes(), b"", b"")));
        known.verify_signature(key.public_key().as_ref(), b"message", signature.as_ref()).expect("good");
        assert_eq!(known.known().len(), 1);
    }
}
