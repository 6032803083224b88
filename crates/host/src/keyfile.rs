//! Sealed key files (source \[36\]): what is on the disk is sealed under a key-encryption key of its own file.
//!
//! This protects keys in backups and copies that lack the key-encryption key, and by mode 0600 from other users; it does
//! not protect them from root, nor from whoever takes both files.

use crate::files::{PRIVATE, read_private, read_private_exactly, write_new};
use aws_lc_rs::rand::SystemRandom as Generator;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use chipbound_sealing::at_rest;
use chipbound_wire::signature::{Sign, p256_spki, to_der};
use chipbound_wire::{Code, Random, Refusal, Result, SystemRandom};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Sealed files are small: keys and records.
const MAX_SEALED: usize = 64 * 1024 * 1024;

/// A key-encryption key, 32 bytes, from a file of its own (mode 0600).
pub struct Kek(Held);

/// Memory that holds secret bytes.
pub type Held = Box<dyn AsRef<[u8]> + Send + Sync + UnwindSafe + RefUnwindSafe>;

/// Ordinary memory, zeroed at its end.
struct Heap(Zeroizing<[u8; 32]>);

impl AsRef<[u8]> for Heap {
    fn as_ref(&self) -> &[u8] {
        &*self.0
    }
}

impl std::fmt::Debug for Kek {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kek(secret)")
    }
}

impl Kek {
    /// Makes a fresh one and its file, which must not be there yet.
    pub fn create(path: &Path) -> Result<Self> {
        let mut key = Box::new(Heap(Zeroizing::new([0; 32])));
        SystemRandom.fill(&mut *key.0);
        write_new(path, &*key.0, PRIVATE)?;
        Ok(Self(key))
    }

    /// Reads it from its file.
    pub fn load(path: &Path) -> Result<Self> {
        let mut key = Box::new(Heap(Zeroizing::new([0; 32])));
        if !read_private_exactly(path, &mut *key.0)? {
            return Err(Refusal::new(Code::Unsealable, format!("{} is not a key-encryption key of 32 bytes", path.display())));
        }
        Ok(Self(key))
    }

    /// The same key in other memory; what held it before is zeroed. Refuses as `keep` does.
    pub fn kept_in(self, keep: impl FnOnce(&[u8]) -> Result<Held>) -> Result<Self> {
        let kept = Self(keep((*self.0).as_ref())?);
        Ok(kept)
    }

    /// The bytes, for [`at_rest`].
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        (*self.0).as_ref().try_into().expect("a key is made of 32 bytes, and memory keeps them")
    }

    /// Seals `bytes` for the purpose that `context` names.
    #[must_use]
    pub fn seal(&self, context: &str, bytes: &[u8]) -> Vec<u8> {
        at_rest::seal(self.bytes(), context, bytes, &mut SystemRandom)
    }

    /// Opens what [`Self::seal`] made for the same purpose; anything else is [`Code::Unsealable`].
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        at_rest::open(self.bytes(), context, sealed)
    }

    /// Writes `bytes` sealed to `path`, durably, replacing what is there.
    pub fn store(&self, path: &Path, context: &str, bytes: &[u8]) -> Result<()> {
        crate::files::write_durably(path, &self.seal(context, bytes), PRIVATE)
    }

    /// Reads what [`Self::store`] wrote.
    pub fn load_sealed(&self, path: &Path, context: &str) -> Result<Zeroizing<Vec<u8>>> {
        self.open(context, &read_private(path, MAX_SEALED)?).map_err(|e| Refusal::new(e.code, format!("{}: {}", path.display(), e.detail)))
    }
}

/// A P-256 signing key from a sealed file.
pub struct FileKey {
    pair: EcdsaKeyPair,
    spki: Vec<u8>,
}

impl std::fmt::Debug for FileKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileKey({})", self.key_id())
    }
}

impl FileKey {
    /// Generates a key and writes it sealed to `path`, which must not be there yet. `context` names the key's purpose.
    pub fn create(path: &Path, kek: &Kek, context: &str) -> Result<Self> {
        let (key, pkcs8) = Self::generate()?;
        write_new(path, &kek.seal(context, &pkcs8), PRIVATE)?;
        Ok(key)
    }

    /// Reads the key that [`Self::create`] wrote for the same purpose.
    pub fn load(path: &Path, kek: &Kek, context: &str) -> Result<Self> {
        Self::from_pkcs8(&kek.load_sealed(path, context)?)
    }

    /// Generates a key: itself and its PKCS#8 form (RFC 5958), for whoever stores it sealed elsewhere.
    pub fn generate() -> Result<(Self, Zeroizing<Vec<u8>>)> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &Generator::new())
            .map_err(|_| Refusal::new(Code::Internal, "a key cannot be generated"))?;
        let pkcs8 = Zeroizing::new(document.as_ref().to_vec());
        Ok((Self::from_pkcs8(&pkcs8)?, pkcs8))
    }

    /// The key in this PKCS#8 form.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self> {
        let bad = || Refusal::new(Code::Unsealable, "the sealed file holds no P-256 key");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).map_err(|_| bad())?;
        let point: &[u8; 65] = pair.public_key().as_ref().try_into().map_err(|_| bad())?;
        let spki = p256_spki(point);
        Ok(Self { pair, spki })
    }
}

impl Sign for FileKey {
    fn spki(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64]> {
        let failed = || Refusal::new(Code::Internal, "the key cannot sign");
        let signature = self.pair.sign(&Generator::new(), message).map_err(|_| failed())?;
        signature.as_ref().try_into().map_err(|_| failed())
    }
}

/// Any signing key as rcgen wants it.
pub struct RcgenKey(pub Arc<dyn Sign>);

impl rcgen::PublicKeyData for RcgenKey {
    fn der_bytes(&self) -> &[u8] {
        // rcgen wraps the point itself; the SubjectPublicKeyInfo of P-256 ends with its 65 bytes.
        &self.0.spki()[self.0.spki().len() - 65..]
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for RcgenKey {
    fn sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message).map(|s| to_der(&s)).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// A certificate signing request (PKCS#10, RFC 2986) by `key`, in DER: the proof of possession at enrolment. Its subject is
/// empty, since the authority ignores it.
pub fn signing_request(key: Arc<dyn Sign>) -> Result<Vec<u8>> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(&RcgenKey(key));
    let request = request.map_err(|e| Refusal::new(Code::Internal, format!("a signing request cannot be made: {e}")).because(e))?;
    Ok(request.der().to_vec())
}
