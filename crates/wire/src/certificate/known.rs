//! Signatures that were found good before. The same few certificates come with every document, the same manifest with every
//! delivery, an acknowledgement on both paths; and whether a signature is good does not change with time. Validity, revocation and
//! role are looked at every time.

use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};
use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use webpki::aws_lc_rs::ECDSA_P256_SHA256;

/// Signatures that are remembered at once, 32 bytes each; when there are more, all are forgotten.
const MAX_KNOWN: usize = 4096;

/// Makes each verification once. Bad signatures are not remembered.
#[derive(Default)]
pub(super) struct KnownSignatures(Mutex<HashSet<[u8; 32]>>);

impl KnownSignatures {
    fn known(&self) -> MutexGuard<'_, HashSet<[u8; 32]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        if self.known().contains(&name) {
            return Ok(());
        }
        verify()?;
        let mut known = self.known();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(name);
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
fn name(public_key: &[u8], message: &[u8], signature: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in [public_key, message, signature] {
        hasher.update(&(part.len() as u64).to_be_bytes()).update(part);
    }
    *hasher.finalize().as_bytes()
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
    fn no_more_than_the_limit_is_remembered() {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key");
        let signature = key.sign(&SystemRandom::new(), b"message").expect("a signature");
        let known = KnownSignatures::default();
        known.known().extend((0..MAX_KNOWN).map(|n| name(&n.to_be_bytes(), b"", b"")));
        known.verify_signature(key.public_key().as_ref(), b"message", signature.as_ref()).expect("good");
        assert_eq!(known.known().len(), 1);
    }
}
