//! How vendors publish, and the catalogue.

use crate::blobs::{Blobs, Kind};
use crate::pages::{Page, next};
use crate::server::Server;
use crate::storage::{PendingUpload, Principal, Repository, StoredRelease};
use chipbound_sealing::{Layout, plain_digest};
use chipbound_wire::api::{self, Catalogue, NewRelease, Published, Release};
use chipbound_wire::documents::Manifest;
use chipbound_wire::limits::MAX_PROGRAM;
use chipbound_wire::random::fresh;
use chipbound_wire::signed::{Verified, read_claims, verify_document};
use chipbound_wire::suite::{Format, Profile};
use chipbound_wire::{Amount, Code, Digest, Fault, Hex, Refusal, Result, SystemRandom};
use std::fs::File;
use tokio::io::AsyncRead;

/// Seconds for which a plaintext may follow its manifest.
const UPLOAD_SECONDS: u64 = 24 * 3600;

impl<R: Repository> Server<R> {
    /// Takes a vendor's announcement: the manifest must be signed by a certified vendor, about a program of that vendor, new in
    /// version and higher in sequence ([`Code::Conflict`]).
    pub async fn announce(&self, vendor: &Principal, new: NewRelease) -> Result<api::Upload> {
        let manifest = verify_document::<Manifest>(&new.manifest.0, &self.trust.get(), self.now())?;
        check_manifest(&manifest)?;
        if new.price.minor > Amount::MAX_MINOR {
            return Err(Refusal::new(Code::TooLarge, "the price is larger than the largest amount"));
        }
        let upload = PendingUpload {
            upload: Hex(&fresh::<16>(&mut SystemRandom)).to_string(),
            account: vendor.account,
            manifest: new.manifest.0,
            price: new.price,
            expires_at: self.now().after(UPLOAD_SECONDS),
        };
        self.repository.announce(&upload, &manifest.program, &manifest.version, manifest.sequence).await?;
        Ok(api::Upload { upload: upload.upload })
    }

    /// Takes the plaintext of `size` bytes that follows, compares it whole with the manifest ([`Code::PlaintextMismatch`]), and
    /// publishes. Killed at any instant, the release is there whole or not at all.
    pub async fn publish(&self, vendor: &Principal, upload: &str, size: u64, plaintext: impl AsyncRead + Unpin) -> Result<Published> {
        let pending = self.repository.upload(upload, vendor.account, self.now()).await?;
        let manifest: Manifest = read_claims(&pending.manifest)?;
        if size != manifest.plain_size {
            return Err(Refusal::new(Code::PlaintextMismatch, format!("{size} bytes, the manifest says {}", manifest.plain_size)));
        }
        let blob = Unpublished::new(&self.blobs);
        let written = self.blobs.write(&blob.name, plaintext).await?;
        if written.root != manifest.plain_root || written.size != manifest.plain_size {
            return Err(Refusal::new(Code::PlaintextMismatch, "the plaintext is not the one that the manifest names"));
        }
        let (layout, plain_digest) = examine(self.blobs.read(&blob.name).await?, manifest.profile).await?;
        let release = StoredRelease {
            manifest: Digest::of(&pending.manifest),
            program: manifest.program,
            version: manifest.version.to_string(),
            sequence: manifest.sequence,
            vendor: vendor.account,
            price: pending.price,
            signed_manifest: pending.manifest,
            layout: layout.encode(),
            plain_digest,
            sealed_bytes: layout.sealed_bytes(),
            blob: blob.name.clone(),
            published_at: self.now(),
        };
        self.record(upload, &release, blob).await?;
        tracing::info!(program = %release.program, version = release.version, size, "published");
        Ok(Published { sealed_bytes: release.sealed_bytes, release: described(&release)? })
    }

    /// Records a release whose plaintext is on the disk. That goes on where whoever asked goes away; and the plaintext stays wherever the
    /// release may be on record, though nobody said so: the next start removes it if it is not.
    async fn record(&self, upload: &str, release: &StoredRelease, plaintext: Unpublished) -> Result<()> {
        let (repository, upload, release) = (self.repository.clone(), upload.to_owned(), release.clone());
        let recording = tokio::spawn(async move {
            let recorded = repository.publish(&upload, &release).await;
            if !matches!(&recorded, Err(refusal) if matches!(refusal.code.fault(), Fault::Caller | Fault::Denied)) {
                plaintext.published();
            }
            recorded
        });
        recording.await.map_err(|e| Refusal::new(Code::Internal, "recording a release failed").because(e))?
    }

    /// A page of the newest releases of each program, by program id.
    pub async fn catalogue(&self, page: &Page) -> Result<Catalogue> {
        let limit = page.limit()?;
        let mut releases = self.repository.catalogue(&page.after("programs")?.unwrap_or_default(), limit + 1).await?;
        let next = next("programs", &mut releases, limit, |r| r.program.to_string());
        Ok(Catalogue { programs: releases.iter().map(described).collect::<Result<_>>()?, next })
    }
}

fn check_manifest(manifest: &Verified<Manifest>) -> Result<()> {
    let bad = |why: &str| Err(Refusal::new(Code::ManifestMismatch, format!("the manifest {why}")));
    if !manifest.program.is_of(&manifest.signer().key_id()) {
        return bad("is about a program of another vendor than its signer");
    }
    if manifest.plain_size > MAX_PROGRAM {
        return Err(Refusal::new(Code::TooLarge, "the program is larger than the limit"));
    }
    if manifest.version.is_empty() || manifest.classes.is_empty() || manifest.key_modes.is_empty() {
        return bad("names no version, no class or no key mode");
    }
    if manifest.minimum_sequence > manifest.sequence {
        return bad("forbids itself: its minimum is above its own sequence number");
    }
    match (manifest.format, manifest.profile) {
        (Format::Data, Profile::Whole) | (Format::ElfX8664, Profile::Code | Profile::CodeAndConstants) => Ok(()),
        (format, profile) => Err(Refusal::new(Code::NotSupported, format!("the profile {profile} for the format {format}"))),
    }
}

/// The layout with the vendor's profile and the plain digest of the packages that will be made.
async fn examine(file: File, profile: Profile) -> Result<(Layout, Digest)> {
    let examined = tokio::task::spawn_blocking(move || {
        let layout = Layout::of(profile, &file)?;
        let digest = plain_digest(&file, &layout)?;
        Ok((layout, digest))
    });
    examined.await.map_err(|e| Refusal::new(Code::Internal, "examining a plaintext failed").because(e))?
}

fn described(release: &StoredRelease) -> Result<Release> {
    let manifest: Manifest = read_claims(&release.signed_manifest)?;
    Ok(Release {
        program: manifest.program,
        version: release.version.clone(),
        sequence: release.sequence,
        format: manifest.format,
        size: manifest.plain_size,
        price: release.price,
        manifest: release.manifest,
        published_at: release.published_at,
    })
}

/// A plaintext that nothing refers to yet; dropped, it is removed.
struct Unpublished {
    blobs: Blobs,
    name: String,
    published: bool,
}

impl Unpublished {
    fn new(blobs: &Blobs) -> Self {
        Self { blobs: blobs.clone(), name: Kind::Plain.new_name(), published: false }
    }

    fn published(mut self) {
        self.published = true;
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        let (blobs, name) = (self.blobs.clone(), std::mem::take(&mut self.name));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(refusal) = blobs.remove(&name).await {
                    tracing::warn!(%refusal, "a plaintext that was not published could not be removed; the next start does it");
                }
            });
        }
    }
}
