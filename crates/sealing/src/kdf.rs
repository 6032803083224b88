//! HKDF-SHA256 (RFC 5869), the only key derivation outside HPKE.

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use zeroize::Zeroizing;

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// `N` bytes (at most 255 · 32) from the secret `ikm`, under `salt` and the concatenation of `info`. Whoever calls makes the
/// concatenation unambiguous: a purpose first, then parts of fixed length, at most the last one of any.
pub(crate) fn derive<const N: usize>(ikm: &[u8], salt: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; N]> {
    let mut out = Zeroizing::new([0; N]);
    Salt::new(HKDF_SHA256, salt)
        .extract(ikm)
        .expand(info, Length(N))
        .and_then(|okm| okm.fill(out.as_mut()))
        .expect("HKDF-SHA256 gives up to 8160 bytes");
    out
}
