//! The release gate (steps 1010-1011; source \[51\]\[52\]): what a token opens. The gate is cryptography: without the release secret in
//! the token the main wrap does not open, whatever lies on the disk.

use crate::keystore::KeyStore;
use crate::state::Record;
use chipbound_sealing::{ContentKey, Decapsulate, PageKeys, open_release, open_wrap};
use chipbound_wire::certificate::Trust;
use chipbound_wire::documents::{ReleaseToken, Terms, Wrap};
use chipbound_wire::signed::{Verified, verify_document};
use chipbound_wire::suite::Kem;
use chipbound_wire::{Code, Digest, KeyId, Refusal, Result, Time};
use std::cell::RefCell;
use std::fmt;
use zeroize::Zeroizing;

/// A delivery whose gate a token opened.
pub struct Released {
    pub(crate) token: Verified<ReleaseToken>,
    pub(crate) content_key: ContentKey,
    pub(crate) secrets: SharedSecrets,
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
    /// What decapsulation of its token and its wrap gave before, if that is known.
    pub secrets: &'a SharedSecrets,
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
    let (content_key, secrets) = open(&token, delivery, keys)?;
    Ok(Released { token, content_key, secrets })
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
fn open(token: &ReleaseToken, delivery: Delivery<'_>, keys: &dyn KeyStore) -> Result<(ContentKey, SharedSecrets)> {
    let terms_digest = delivery.terms.digest();
    let generations = keys.generations();
    let mut secrets = SharedSecrets::default();
    let secret = first_that_opens(&generations, delivery.secrets, &mut secrets, |store| {
        let secret = open_release(store, token)?;
        secret.check(&delivery.terms.release_commitment)?;
        Ok(secret)
    })?;
    let content_key = first_that_opens(&generations, delivery.secrets, &mut secrets, |store| {
        let key = open_wrap(store, delivery.wrap, delivery.terms, &terms_digest, &secret)?;
        PageKeys::of_terms(&key, delivery.terms, delivery.plain_digest)?;
        Ok(key)
    })?;
    Ok((content_key, secrets))
}

/// The first answer that is not a refusal; the newest generation's refusal when there is none. Adds the shared secrets that it took to
/// `taken`.
fn first_that_opens<T>(
    generations: &[&dyn Decapsulate],
    known: &SharedSecrets,
    taken: &mut SharedSecrets,
    open: impl Fn(&dyn Decapsulate) -> Result<T>,
) -> Result<T> {
    let mut refusal = None;
    for (number, store) in std::iter::once(known as &dyn Decapsulate).chain(generations.iter().copied()).enumerate() {
        let noting = Noting { store, noted: RefCell::default() };
        match open(&noting) {
            Ok(opened) => {
                taken.0.append(&mut noting.noted.into_inner().0);
                return Ok(opened);
            }
            Err(e) if number > 0 => refusal = refusal.or(Some(e)),
            Err(_) => {} // It was not known.
        }
    }
    Err(refusal.unwrap_or_else(|| Refusal::new(Code::WrapInvalid, "this key store holds no sealing keys")))
}

/// Shared secrets, each by the digest of the encapsulated key that it came from. Decapsulation gives the same secret each time, so that
/// who knows it need not do that again; what the secret opens is checked as ever.
#[derive(Default)]
pub struct SharedSecrets(Vec<(Digest, Zeroizing<Vec<u8>>)>);

impl SharedSecrets {
    /// The secrets in one piece.
    pub(crate) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(self.0.len() * ENTRY));
        for (name, secret) in self.0.iter().filter(|(_, secret)| secret.len() == SECRET) {
            bytes.extend(name.0);
            bytes.extend(&**secret);
        }
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let entry = |entry: &[u8]| {
            let (name, secret) = entry.split_first_chunk()?;
            Some((Digest(*name), Zeroizing::new(secret.to_vec())))
        };
        Self(bytes.chunks_exact(ENTRY).filter_map(entry).collect())
    }
}

impl Decapsulate for SharedSecrets {
    fn public(&self, _: Kem) -> Option<Vec<u8>> {
        None
    }

    fn decapsulate(&self, kem: Kem, enc: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let name = name_of(kem, enc);
        let found = self.0.iter().find(|(known, _)| *known == name).map(|(_, secret)| secret.clone());
        found.ok_or_else(|| Refusal::new(Code::WrapInvalid, "the shared secret is not known"))
    }
}

impl fmt::Debug for SharedSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedSecrets({})", self.0.len())
    }
}

/// A store whose shared secrets are noted.
struct Noting<'a> {
    store: &'a dyn Decapsulate,
    noted: RefCell<SharedSecrets>,
}

impl Decapsulate for Noting<'_> {
    fn public(&self, kem: Kem) -> Option<Vec<u8>> {
        self.store.public(kem)
    }

    fn decapsulate(&self, kem: Kem, enc: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let secret = self.store.decapsulate(kem, enc)?;
        self.noted.borrow_mut().0.push((name_of(kem, enc), secret.clone()));
        Ok(secret)
    }
}

fn name_of(kem: Kem, enc: &[u8]) -> Digest {
    Digest::of(&[&[kem.number()], enc].concat())
}

/// Bytes of a shared secret of either mechanism.
const SECRET: usize = 32;
/// Bytes of a secret and its name.
const ENTRY: usize = 32 + SECRET;
