//! ECDSA with P-256 and SHA-256 (FIPS 186-5; ES256 of RFC 9053), the one signature algorithm of the documents.

use crate::error::{Code, Refusal, Result};
use crate::ids::KeyId;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

/// A key that signs. The private half stays wherever the implementation keeps it.
pub trait Sign: Send + Sync {
    /// The SubjectPublicKeyInfo of the key in DER (91 bytes for P-256).
    fn spki(&self) -> &[u8];

    /// Signs `message`; the signature is r ‖ s, 64 bytes. Fails with the key store's own refusal.
    fn sign(&self, message: &[u8]) -> Result<[u8; 64]>;

    /// The id of the key.
    fn key_id(&self) -> KeyId {
        KeyId::of_spki(self.spki())
    }
}

/// What precedes the 65 bytes of an uncompressed P-256 point in its SubjectPublicKeyInfo (RFC 5480).
const P256_SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01,
    0x07, 0x03, 0x42, 0x00,
];

/// The SubjectPublicKeyInfo of an uncompressed P-256 point of 65 bytes.
#[must_use]
pub fn p256_spki(point: &[u8; 65]) -> Vec<u8> {
    [P256_SPKI_PREFIX.as_slice(), point].concat()
}

/// The uncompressed point (65 bytes) inside a P-256 SubjectPublicKeyInfo; any other key is [`Code::CertificateProfile`].
pub fn p256_point(spki: &[u8]) -> Result<[u8; 65]> {
    spki.strip_prefix(P256_SPKI_PREFIX.as_slice())
        .and_then(|point| point.try_into().ok())
        .filter(|point: &[u8; 65]| point[0] == 4)
        .ok_or_else(|| Refusal::new(Code::CertificateProfile, "the key is not an uncompressed P-256 key"))
}

/// Checks `signature` (r ‖ s, 64 bytes) by the key in `spki` over `message`.
pub fn verify(spki: &[u8], message: &[u8], signature: &[u8]) -> Result<()> {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, p256_point(spki)?)
        .verify(message, signature)
        .map_err(|_| Refusal::new(Code::SignatureInvalid, "the signature does not verify"))
}

/// The DER form (RFC 3279) of a signature r ‖ s, as X.509 and TLS want it: at most 72 bytes.
#[must_use]
pub fn to_der(fixed: &[u8; 64]) -> Vec<u8> {
    fn integer(bytes: &[u8], out: &mut Vec<u8>) {
        let bytes = &bytes[bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len() - 1)..];
        let pad = usize::from(bytes[0] & 0x80 != 0);
        out.extend([0x02, (bytes.len() + pad) as u8]);
        out.extend(std::iter::repeat_n(0, pad));
        out.extend(bytes);
    }
    let mut body = Vec::with_capacity(70);
    integer(&fixed[..32], &mut body);
    integer(&fixed[32..], &mut body);
    [&[0x30, body.len() as u8], body.as_slice()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

    #[test]
    fn a_fixed_signature_verifies_in_its_der_form_too() {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &aws_lc_rs::rand::SystemRandom::new()).expect("key");
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).expect("key");
        let spki = p256_spki(key.public_key().as_ref().try_into().expect("65 bytes"));
        for round in 0..200u8 {
            let signature = key.sign(&aws_lc_rs::rand::SystemRandom::new(), &[round]).expect("signature");
            let fixed: [u8; 64] = signature.as_ref().try_into().expect("64 bytes");
            verify(&spki, &[round], &fixed).expect("the fixed form");
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, p256_point(&spki).expect("P-256"))
                .verify(&[round], &to_der(&fixed))
                .expect("the DER form");
            assert_eq!(verify(&spki, &[round, 0], &fixed).expect_err("another message").code, Code::SignatureInvalid);
        }
    }
}
