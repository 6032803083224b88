//! 32 secret bytes: boxed, so that moving them leaves no copy; zeroed when dropped; compared in constant time; never shown.

use chipbound_wire::random::Random;
use chipbound_wire::{Code, Refusal, Result};
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

#[derive(Clone)]
pub(crate) struct Secret(Box<Zeroizing<[u8; 32]>>);

impl Secret {
    pub(crate) fn generate(random: &mut dyn Random) -> Self {
        let mut secret = Self(Box::new(Zeroizing::new([0; 32])));
        random.fill(secret.0.as_mut_slice());
        secret
    }

    /// Takes exactly 32 bytes; anything else is [`Code::Malformed`].
    pub(crate) fn from_slice(bytes: &[u8]) -> Result<Self> {
        let mut secret = Self(Box::new(Zeroizing::new([0; 32])));
        if bytes.len() != secret.0.len() {
            return Err(Refusal::new(Code::Malformed, "not a secret of 32 bytes"));
        }
        secret.0.copy_from_slice(bytes);
        Ok(secret)
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.bytes().ct_eq(other.bytes()).into()
    }
}
impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(..)")
    }
}
