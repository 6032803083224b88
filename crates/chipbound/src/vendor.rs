//! The vendor's identity: a signing key that the authority certified, kept in one folder.

use chipbound_host::files::{create_new_installation, read, write_durably};
use chipbound_host::keyfile::{FileKey, Kek, signing_request};
use chipbound_host::process::now;
use chipbound_transport::enrolment::{Application, Enrolled, enroll, renew};
use chipbound_wire::bounded::{Bytes, List, decode, encode};
use chipbound_wire::certificate::{Certified, Chain, Role, Trust};
use chipbound_wire::documents::Wrap;
use chipbound_wire::enrolment::Voucher;
use chipbound_wire::limits::{MAX_CERTIFICATE, MAX_CHAIN};
use chipbound_wire::signature::Sign;
use chipbound_wire::{Code, Digest, Refusal, Result, Time};
use minicbor::{Decode, Encode};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the key file's seal is for.
const KEY_CONTEXT: &str = "vendor key";
/// A certificate is renewed in the last third of its validity.
const RENEW_IN_LAST: u64 = 3;

/// What the authority issued, as it is kept.
#[derive(Clone, Debug, Encode, Decode)]
#[cbor(map)]
struct Certificate {
    /// `https://host:port` of the authority, where it is renewed.
    #[n(0)]
    authority: String,
    #[n(1)]
    chain: Chain,
    #[n(2)]
    root: Bytes<MAX_CERTIFICATE>,
}

/// A vendor's key and certificate.
pub struct Identity {
    folder: PathBuf,
    key: Arc<FileKey>,
    authority: String,
    chain: Vec<Vec<u8>>,
    root: Vec<u8>,
}

impl Identity {
    /// Generates a key in a new folder and has it certified with a voucher. Where an earlier try left a key without a
    /// certificate, it goes on with that key; a folder that holds anything else is [`Code::Conflict`].
    pub async fn enroll(folder: &Path, authority: &str, voucher: &str) -> Result<Self> {
        let voucher: Voucher = voucher.parse()?;
        let key = Arc::new(match folder.join("vendor.key").exists() && !folder.join("certificate.cbor").exists() {
            true => load_key(folder)?,
            false => {
                create_new_installation(folder)?;
                FileKey::create(&folder.join("vendor.key"), &Kek::create(&folder.join("kek"))?, KEY_CONTEXT)?
            }
        });
        let application = Application::plain(Role::Vendor, signing_request(key.clone())?);
        let enrolled = enroll(authority, &voucher, &application, no_sealing_keys, now()).await?;
        Self::certified_as(folder, key, authority.to_owned(), enrolled)
    }

    /// Reads what [`Self::enroll`] wrote; [`Code::NotEnrolled`] when nothing is there.
    pub fn load(folder: &Path) -> Result<Self> {
        let certificate = folder.join("certificate.cbor");
        if !certificate.exists() {
            let detail = format!("there is no vendor's identity in {}: chipbound vendor init", folder.display());
            return Err(Refusal::new(Code::NotEnrolled, detail));
        }
        let Certificate { authority, chain, root } = decode(&read(&certificate, (MAX_CHAIN + 2) * MAX_CERTIFICATE)?)?;
        let chain = chain.into_vec().into_iter().map(Bytes::into_vec).collect();
        Ok(Self { folder: folder.to_owned(), key: Arc::new(load_key(folder)?), authority, chain, root: root.into_vec() })
    }

    fn certified_as(folder: &Path, key: Arc<FileKey>, authority: String, enrolled: Enrolled) -> Result<Self> {
        let chain: Chain = List::new(enrolled.chain.iter().map(|c| Bytes::new(c.clone())).collect::<Result<_>>()?)?;
        let kept = Certificate { authority: authority.clone(), chain, root: Bytes::new(enrolled.root.clone())? };
        write_durably(&folder.join("certificate.cbor"), &encode(&kept), 0o644)?;
        Ok(Self { folder: folder.to_owned(), key, authority, chain: enrolled.chain, root: enrolled.root })
    }

    /// Where it is kept.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &dyn Sign {
        &*self.key
    }

    /// Its certificates in DER, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// The certificate as it counts at the time `at`.
    pub fn certified(&self, at: Time) -> Result<Certified> {
        Trust::new(&self.root)?.verify(&self.chain, Role::Vendor, at)
    }

    /// The same after renewing the certificate at its authority, if it is in the last third of its validity (source \[35\]).
    pub async fn renewed_if_due(self, at: Time) -> Result<Self> {
        let (from, until) = self.certified(at)?.validity();
        if until.0.saturating_sub(at.0) > until.0.saturating_sub(from.0) / RENEW_IN_LAST {
            return Ok(self);
        }
        let application = Application::plain(Role::Vendor, signing_request(self.key.clone())?);
        let enrolled = renew(&self.authority, &self.root, &self.chain, &*self.key, &application, no_sealing_keys, at).await?;
        Self::certified_as(&self.folder, self.key, self.authority, enrolled)
    }
}

fn load_key(folder: &Path) -> Result<FileKey> {
    FileKey::load(&folder.join("vendor.key"), &Kek::load(&folder.join("kek"))?, KEY_CONTEXT)
}

/// A vendor has no sealing keys that an authority could ask for.
fn no_sealing_keys(_: &Wrap, _: &[u8; 16]) -> Result<[u8; 32]> {
    Err(Refusal::new(Code::UnexpectedMessage, "the authority asks a vendor for sealing keys"))
}

/// BLAKE3 root and size of a plaintext.
pub fn plain_root(file: File) -> io::Result<(Digest, u64)> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok((Digest(*hasher.finalize().as_bytes()), hasher.count()))
}
