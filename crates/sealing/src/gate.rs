//! The gate of step 1010: a secret of the order that travels in the release token, and without which the key wrap does not
//! open.

use crate::secret::Secret;
use chipbound_wire::random::Random;
use chipbound_wire::{Code, Digest, Refusal, Result};
use subtle::ConstantTimeEq;

/// The release secret of one order, 32 bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReleaseSecret(Secret);

impl ReleaseSecret {
    /// Draws a new one.
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

    /// The commitment that the terms name: BLAKE3 in its key derivation mode, so that the value is of no other use.
    #[must_use]
    pub fn commitment(&self) -> Digest {
        Digest(blake3::derive_key("chipbound/1 release commitment", self.bytes()))
    }

    /// Whether this is the secret that the terms commit to; [`Code::TokenMismatch`] if not.
    pub fn check(&self, commitment: &Digest) -> Result<()> {
        if bool::from(self.commitment().0.ct_eq(&commitment.0)) {
            Ok(())
        } else {
            Err(Refusal::new(Code::TokenMismatch, "the token's secret is not the one of these terms"))
        }
    }
}
