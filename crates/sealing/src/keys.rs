//! Content keys, and the page keys that are derived from them.

use crate::cipher::Cipher;
use crate::kdf;
use crate::secret::Secret;
use chipbound_wire::documents::Terms;
use chipbound_wire::random::Random;
use chipbound_wire::suite::{Aead, Format};
use chipbound_wire::{Code, Digest, Refusal, Result};
use std::fmt;
use subtle::ConstantTimeEq;

/// The key of a release or of one delivery (Kx, source \[61\]\[62\]), 32 bytes. Nothing is encrypted with it; keys are derived
/// from it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContentKey(Secret);

impl ContentKey {
    /// Draws a new one, for common mode.
    #[must_use]
    pub fn generate(random: &mut dyn Random) -> Self {
        Self(Secret::generate(random))
    }

    /// Takes exactly 32 bytes; anything else is [`Code::Malformed`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Secret::from_slice(bytes).map(Self)
    }

    /// The bytes, for storing them sealed.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        self.0.bytes()
    }
}

/// What pages of one encryption are sealed with: HKDF-SHA256 of the content key, salted with the package id, over plain digest,
/// AEAD and format. A page therefore opens in its own program, with its own plain parts, and nowhere else (A9, A10).
#[derive(Clone)]
pub struct PageKeys {
    key: Secret,
    commitment: Digest,
    plain_digest: Digest,
    aead: Aead,
    format: Format,
}

impl PageKeys {
    /// Derives them. `package_id` is drawn fresh for each encryption and never used for another.
    #[must_use]
    pub fn derive(content: &ContentKey, package_id: &Digest, plain_digest: &Digest, aead: Aead, format: Format) -> Self {
        let info: [&[u8]; 4] = [b"chipbound/1 pages", &plain_digest.0, &[aead.number()], &[format.number()]];
        let okm = kdf::derive::<64>(content.bytes(), &package_id.0, &info);
        let (key, commitment) = okm.split_at(32);
        Self {
            key: Secret::from_slice(key).expect("half of 64 bytes"),
            commitment: Digest(commitment.try_into().expect("half of 64 bytes")),
            plain_digest: *plain_digest,
            aead,
            format,
        }
    }

    /// Derives what `terms` say and checks it against the commitment to the key there; [`Code::WrapInvalid`] if the wrap gave
    /// another key, or the plain digest is another.
    pub fn of_terms(content: &ContentKey, terms: &Terms, plain_digest: &Digest) -> Result<Self> {
        let keys = Self::derive(content, &terms.package_id, plain_digest, terms.suite.aead, terms.format);
        if !bool::from(keys.commitment.0.ct_eq(&terms.key_commitment.0)) {
            return Err(Refusal::new(Code::WrapInvalid, "the wrapped key is not the one that the terms commit to"));
        }
        Ok(keys)
    }

    /// The commitment to the key that the terms name.
    #[must_use]
    pub fn commitment(&self) -> Digest {
        self.commitment
    }
    /// The plain digest that was derived from.
    #[must_use]
    pub fn plain_digest(&self) -> Digest {
        self.plain_digest
    }
    /// The format that was derived from.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    pub(crate) fn cipher(&self) -> Cipher {
        Cipher::new(self.aead, self.key.bytes())
    }
}

impl fmt::Debug for PageKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageKeys({}, {}, commitment {}, ..)", self.aead, self.format, self.commitment)
    }
}
