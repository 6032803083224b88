//! Secrets on a disk, under a key-encryption key: a version byte, a fresh salt of 32 bytes, AES-256-GCM ciphertext and tag. The
//! key of each sealing is derived from the salt and the context, so that no nonce is ever used twice.

use crate::cipher::Cipher;
use crate::kdf;
use chipbound_wire::limits::TAG;
use chipbound_wire::random::{Random, fresh};
use chipbound_wire::suite::Aead;
use chipbound_wire::{Code, Refusal, Result};
use zeroize::Zeroizing;

/// Bytes that sealing adds.
pub const OVERHEAD: usize = 1 + SALT + TAG;

/// Seals `plaintext` under `kek` for the place and purpose that `context` names; [`open`] needs the same context.
#[must_use]
pub fn seal(kek: &[u8; 32], context: &str, plaintext: &[u8], random: &mut dyn Random) -> Vec<u8> {
    let salt: [u8; SALT] = fresh(random);
    let mut sealed = Vec::with_capacity(plaintext.len() + OVERHEAD);
    sealed.push(VERSION);
    sealed.extend(salt);
    sealed.extend(plaintext);
    let tag = cipher(kek, &salt, context).seal(0, &[VERSION], &mut sealed[1 + SALT..]);
    sealed.extend(tag);
    sealed
}

/// Opens what [`seal`] made. Another key or context, and any changed byte, is [`Code::Unsealable`].
pub fn open(kek: &[u8; 32], context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
    let refuse = || Refusal::new(Code::Unsealable, format!("what was sealed as {context:?} does not open"));
    let (salt, rest) = sealed.strip_prefix(&[VERSION]).and_then(|rest| rest.split_first_chunk::<SALT>()).ok_or_else(refuse)?;
    let (ciphertext, tag) = rest.split_last_chunk::<TAG>().ok_or_else(refuse)?;
    let mut plain = Zeroizing::new(vec![0; ciphertext.len()]);
    cipher(kek, salt, context).open(0, &[VERSION], ciphertext, tag, &mut plain).map_err(|_| refuse())?;
    Ok(plain)
}

fn cipher(kek: &[u8; 32], salt: &[u8; SALT], context: &str) -> Cipher {
    Cipher::new(Aead::Aes256Gcm, &kdf::derive(kek, salt, &[b"chipbound/1 at rest ", context.as_bytes()]))
}

const VERSION: u8 = 1;
const SALT: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use chipbound_wire::SystemRandom;

    #[test]
    fn a_secret_at_rest_opens_under_its_own_key_and_context_only() {
        let sealed = seal(&[7; 32], "identity key", b"secret", &mut SystemRandom);
        assert_eq!(sealed.len(), 6 + OVERHEAD);
        assert_eq!(open(&[7; 32], "identity key", &sealed).expect("its own")[..], *b"secret");
        assert_eq!(open(&[8; 32], "identity key", &sealed).expect_err("another key").code, Code::Unsealable);
        assert_eq!(open(&[7; 32], "sealing key", &sealed).expect_err("another context").code, Code::Unsealable);
    }

    #[test]
    fn any_changed_or_missing_byte_of_a_secret_at_rest_is_refused() {
        let sealed = seal(&[7; 32], "c", b"secret", &mut SystemRandom);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(open(&[7; 32], "c", &changed).expect_err("changed").code, Code::Unsealable, "{at}");
            assert_eq!(open(&[7; 32], "c", &sealed[..at]).expect_err("cut").code, Code::Unsealable, "{at}");
        }
    }

    #[test]
    fn the_same_secret_sealed_twice_looks_different() {
        let (a, b) = (seal(&[7; 32], "c", b"secret", &mut SystemRandom), seal(&[7; 32], "c", b"secret", &mut SystemRandom));
        assert_ne!(a[33..], b[33..]);
    }
}
