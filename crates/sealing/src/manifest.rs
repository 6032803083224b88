//! The manifest that is appended to a package. It is sealed, because it names the digest of the plaintext, with which anybody
//! could test guesses.

use crate::cipher::Cipher;
use crate::kdf;
use crate::keys::ContentKey;
use chipbound_wire::documents::Terms;
use chipbound_wire::limits::TAG;
use chipbound_wire::suite::Aead;
use chipbound_wire::{Code, Digest, Refusal, Result};

/// Seals the vendor's signed manifest for a package with these terms: AES-256-GCM under a key derived from the content key, the
/// package id and the manifest's digest. The same inputs give the same bytes, and no two manifests share a key.
/// [`Code::ManifestMismatch`] where it is not the manifest that the terms name.
pub fn seal_manifest(content: &ContentKey, terms: &Terms, manifest: &[u8]) -> Result<Vec<u8>> {
    check(terms, manifest)?;
    let mut sealed = Vec::with_capacity(manifest.len() + TAG);
    sealed.extend(manifest);
    let tag = cipher(content, terms).seal(0, &[], &mut sealed);
    sealed.extend(tag);
    Ok(sealed)
}

/// Opens what [`seal_manifest`] made; [`Code::ManifestMismatch`] where it is not for these terms.
pub fn open_manifest(content: &ContentKey, terms: &Terms, sealed: &[u8]) -> Result<Vec<u8>> {
    let (ciphertext, tag) = sealed.split_last_chunk::<TAG>().ok_or_else(mismatch)?;
    let mut manifest = vec![0; ciphertext.len()];
    cipher(content, terms).open(0, &[], ciphertext, tag, &mut manifest).map_err(|_| mismatch())?;
    check(terms, &manifest)?;
    Ok(manifest)
}

fn cipher(content: &ContentKey, terms: &Terms) -> Cipher {
    let key = kdf::derive(content.bytes(), &terms.package_id.0, &[b"chipbound/1 manifest", &terms.manifest.0]);
    Cipher::new(Aead::Aes256Gcm, &key)
}

fn check(terms: &Terms, manifest: &[u8]) -> Result<()> {
    if Digest::of(manifest) == terms.manifest { Ok(()) } else { Err(mismatch()) }
}

fn mismatch() -> Refusal {
    Refusal::new(Code::ManifestMismatch, "the package's manifest is not the one of its terms")
}
