//! The two AEADs, in place, with the tag apart.

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use chipbound_wire::limits::TAG;
use chipbound_wire::suite::Aead;

/// One key of one AEAD.
pub(crate) struct Cipher(LessSafeKey);

/// The tag did not fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TagMismatch;

/// The nonce (96 bits) that is the number of the operation under its key, big endian.
fn nonce(ordinal: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&ordinal.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl Cipher {
    pub(crate) fn new(aead: Aead, key: &[u8; 32]) -> Self {
        let algorithm = match aead {
            Aead::Aes256Gcm => &AES_256_GCM,
            Aead::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        Self(LessSafeKey::new(UnboundKey::new(algorithm, key).expect("both AEADs take keys of 32 bytes")))
    }

    /// Encrypts `bytes` in place. The caller must use each `ordinal` once under this key.
    pub(crate) fn seal(&self, ordinal: u64, aad: &[u8], bytes: &mut [u8]) -> [u8; TAG] {
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(ordinal), Aad::from(aad), bytes)
            .expect("units are far below the AEADs' limit on length");
        tag.as_ref().try_into().expect("both AEADs have tags of 16 bytes")
    }

    /// Decrypts `sealed` into `plain`, of the same length; where the tag does not fit, `plain` is all zeros.
    pub(crate) fn open(&self, ordinal: u64, aad: &[u8], sealed: &[u8], tag: &[u8], plain: &mut [u8]) -> Result<(), TagMismatch> {
        self.0.open_separate_gather(nonce(ordinal), Aad::from(aad), sealed, tag, plain).map_err(|_| {
            plain.fill(0);
            TagMismatch
        })
    }

    /// Decrypts `bytes` in place; where the tag does not fit, they are all zeros.
    pub(crate) fn open_in_place(&self, ordinal: u64, aad: &[u8], bytes: &mut [u8], tag: &[u8]) -> Result<(), TagMismatch> {
        self.0.open_in_place_separate_tag(nonce(ordinal), Aad::from(aad), tag, bytes).map(drop).map_err(|_| {
            bytes.fill(0);
            TagMismatch
        })
    }
}
