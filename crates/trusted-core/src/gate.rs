//! The release gate (steps 1010-1011; source \[51\]\[52\]): what a token opens. The gate is cryptography: without the release secret in
//! the token the main wrap does not open, whatever lies on the disk.

use crate::keystore::KeyStore;
use crate::state::Record;
use chipbound_sealing::{ContentKey, Decapsulate, PageKeys, open_release, open_wrap};
use chipbound_wire::certificate::Trust;
use chipbound_wire::documents::{ReleaseToken, Terms, Wrap};
use chipbound_wire::signed::{Verified, verify_document};
use chipbound_wire::{Code, Digest, KeyId, Refusal, Result, Time};

/// A delivery whose gate a token opened.
pub struct Released {
    pub(crate) token: Verified<ReleaseToken>,
    pub(crate) content_key: ContentKey,
}

impl Released {
    /// The verified token.
    #[must_use]
    pub fn token(&self) -> &Verified<ReleaseToken> {
        &self.token
    }

    /// The content key that the gate gave out.
    #[must_use]
    pub fn content_key(&self) -> &ContentKey {
        &self.content_key
    }
}

/// A delivery before the gate: its record and the documents that the record names.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// What was written down when the plaintext was compared.
    pub record: &'a Record,
    /// The terms.
    pub terms: &'a Verified<Terms>,
    /// The main wrap.
    pub wrap: &'a Wrap,
    /// The plain digest that the recorded seal names.
    pub plain_digest: &'a Digest,
}

/// Opens the gate of `delivery` with `token`, at the time `at` (step 1010): the token's certificate and
/// signature, that it is by the key that signed the terms and about this order, these terms and this processor; then the
/// release secret and the main wrap; then that the content key is the one that was compared.
///
/// Refuses with [`Code::TokenMismatch`], [`Code::ProcessorMismatch`],
/// [`Code::StatementKeyMismatch`], [`Code::WrapInvalid`] or a code of [`verify_document`].
pub fn release(token: &[u8], delivery: Delivery<'_>, keys: &dyn KeyStore, trust: &Trust, at: Time) -> Result<Released> {
    let token: Verified<ReleaseToken> = verify_document(token, trust, at)?;
    check_token(&token, delivery.record, keys.key_id())?;
    let content_key = open(&token, delivery, keys)?;
    Ok(Released { token, content_key })
}

/// The token is about this delivery and no other.
fn check_token(token: &Verified<ReleaseToken>, record: &Record, us: KeyId) -> Result<()> {
    if token.processor != us {
        return Err(Refusal::new(Code::ProcessorMismatch, "the release token is for another processor"));
    }
    if token.signer().key_id() != record.statement_key {
        return Err(Refusal::new(Code::StatementKeyMismatch, "the release token is signed by another key than the terms"));
    }
    if token.order != record.order {
        return Err(Refusal::new(Code::TokenMismatch, "the release token is of another order"));
    }
    if token.terms != record.terms {
        return Err(Refusal::new(Code::TokenMismatch, "the release token is of other terms"));
    }
    Ok(())
}

/// Opens the release secret, then the main wrap, and checks both commitments. A wrap names no key: every generation is tried.
fn open(token: &ReleaseToken, delivery: Delivery<'_>, keys: &dyn KeyStore) -> Result<ContentKey> {
    let terms_digest = delivery.terms.digest();
    let generations = keys.generations();
    let secret = first_that_opens(&generations, |store| {
        let secret = open_release(store, token)?;
        secret.check(&delivery.terms.release_commitment)?;
        Ok(secret)
    })?;
    first_that_opens(&generations, |store| {
        let key = open_wrap(store, delivery.wrap, delivery.terms, &terms_digest, &secret)?;
        PageKeys::of_terms(&key, delivery.terms, delivery.plain_digest)?;
        Ok(key)
    })
}

/// The first answer that is not a refusal; the newest generation's refusal when there is none.
fn first_that_opens<T>(generations: &[&dyn Decapsulate], open: impl Fn(&dyn Decapsulate) -> Result<T>) -> Result<T> {
    let mut refusal = None;
    for store in generations {
        match open(*store) {
            Ok(opened) => return Ok(opened),
            Err(e) => refusal = refusal.or(Some(e)),
        }
    }
    Err(refusal.unwrap_or_else(|| Refusal::new(Code::WrapInvalid, "this key store holds no sealing keys")))
}
