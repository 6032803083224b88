//! Opening a package file that was released here (steps 1011 and later; source \[53\]).

use crate::gate::{Delivery, Released, release};
use crate::keystore::KeyStore;
use crate::state::{Memory, Record, Settled};
use chipbound_sealing::{DataReader, OnePass, Package, PackageReader, PageKeys, ReadAt, StartRecord, open_manifest};
use chipbound_wire::bounded::encode;
use chipbound_wire::certificate::Trust;
use chipbound_wire::documents::{Manifest, PackageDocuments, ReleaseToken, Seal, Terms};
use chipbound_wire::signed::{Verified, read_claims, verify_document};
use chipbound_wire::{Code, Digest, OrderId, Random, Refusal, Result, Time};

/// A package that may be opened here, and its verified plaintext.
pub struct OpenedPackage<F> {
    /// The vendor's manifest.
    pub manifest: Verified<Manifest>,
    /// The order it was bought with.
    pub order: OrderId,
    /// How the kernel starts it directly on this disk, if at all.
    pub start: Option<StartRecord>,
    /// The plaintext: every byte was verified, and either stays in memory or is verified again against what was seen first whenever it
    /// is read.
    pub plaintext: PackageReader<F>,
}

/// A package that may be opened here, its documents verified and its body not yet.
pub struct UnsettledPackage<F> {
    /// The vendor's manifest.
    pub manifest: Verified<Manifest>,
    /// The plaintext: of use once [`Self::settle`] has said that it is the package's.
    pub plaintext: OnePass<F>,
}

impl<F: ReadAt + Sync> UnsettledPackage<F> {
    /// Reads what was not read yet, and compares the body with its seal and what is sealed of it with the vendor's profile. Refuses as
    /// [`open_package`] does: then nothing that was read is the package's.
    pub fn settle(self) -> Result<(Verified<Manifest>, PackageReader<F>)> {
        let Self { manifest, plaintext } = self;
        let profile = plaintext.layout().check_profile(manifest.profile, &plaintext);
        let plaintext = plaintext.settle()?; // What is wrong with the bytes comes before what was made of them.
        profile?;
        Ok((manifest, plaintext))
    }
}

/// A package of data that may be opened here, and its plaintext.
pub struct OpenedData<F> {
    /// The vendor's manifest.
    pub manifest: Verified<Manifest>,
    /// The plaintext: what is read of it is verified then.
    pub plaintext: DataReader<F>,
}

/// Opens the package in `file`: it must be bound to this processor, recorded and released in `memory`, its documents those
/// of the record, and every byte of it the one that the seal names. With `at_once` a body of at most [`chipbound_sealing::AT_ONCE`] bytes is taken into memory
/// for that, so that reading its plaintext is no second pass over the file; without it never.
///
/// Certificates are verified at the times of the record, against `root` without its revocation list: what was bought and
/// compared stays openable when a certificate of its server or vendor has run out.
///
/// Refuses with [`Code::NotAPackage`], [`Code::ProcessorMismatch`], [`Code::OrderRetired`], [`Code::NotReceived`], [`Code::NotReleased`],
/// [`Code::TokenMismatch`], [`Code::SealMismatch`], [`Code::WrapInvalid`], [`Code::PageAltered`], [`Code::PlainPartsAltered`],
/// [`Code::PackageTruncated`], [`Code::ManifestMismatch`], [`Code::ProfileMismatch`], [`Code::ClassRefused`], [`Code::SequenceTooOld`].
pub fn open_package<F: ReadAt>(file: F, memory: &dyn Memory, keys: &dyn KeyStore, root: &Trust, at_once: bool) -> Result<OpenedPackage<F>> {
    let Allowed { package, keys, seal, manifest, order } = allow(&file, memory, keys, root)?;
    let start = package.start.clone();
    let reader = if at_once { PackageReader::at_once } else { PackageReader::new };
    let plaintext = reader(file, package, &keys, &seal)?;
    plaintext.layout().check_profile(manifest.profile, &plaintext)?;
    Ok(OpenedPackage { manifest, order, start, plaintext })
}

/// Opens the package in `file` as [`open_package`] does, but reads and compares its body once, while it is used. Refuses as
/// [`open_package`] does, what is wrong with the body when the plaintext is read or settled.
pub fn open_in_one_pass<F: ReadAt + Sync>(file: F, memory: &dyn Memory, keys: &dyn KeyStore, root: &Trust) -> Result<UnsettledPackage<F>> {
    let Allowed { package, keys, seal, manifest, .. } = allow(&file, memory, keys, root)?;
    let plaintext = OnePass::new(file, package, &keys, &seal)?;
    Ok(UnsettledPackage { manifest, plaintext })
}

/// Opens the package of data in `file` to be read in ranges: as [`open_package`], but no byte of the body is read before it is
/// wanted, and then it is verified by its tag.
///
/// Refuses as [`open_package`] does, and a program with [`Code::UnsupportedProgram`].
pub fn open_data<F: ReadAt>(file: F, memory: &dyn Memory, keys: &dyn KeyStore, root: &Trust) -> Result<OpenedData<F>> {
    let Allowed { package, keys, seal, manifest, .. } = allow(&file, memory, keys, root)?;
    let plaintext = DataReader::new(file, package, &keys, &seal)?;
    Ok(OpenedData { manifest, plaintext })
}

/// A package that may be opened here, before its bytes were looked at.
struct Allowed {
    package: Package,
    keys: PageKeys,
    seal: Verified<Seal>,
    manifest: Verified<Manifest>,
    order: OrderId,
}

fn allow(file: &dyn ReadAt, memory: &dyn Memory, keys: &dyn KeyStore, root: &Trust) -> Result<Allowed> {
    // What the file alleges, and whether it concerns this processor at all.
    let package = Package::read(file)?;
    let documents = package.documents.clone();
    let claims: Terms = read_claims(&documents.terms)?;
    if claims.processor != keys.key_id() {
        let detail = format!("the package is bound to processor {}, this one is {}", claims.processor, keys.key_id());
        return Err(Refusal::new(Code::ProcessorMismatch, detail));
    }
    memory.check_order(&claims.order)?;
    // Step 1008 was here, for exactly this seal.
    let record = &memory.record(&Digest::of(&documents.seal))?;
    if let Some(settled) = record.release.as_ref().and_then(|release| release.settled.as_ref()) {
        root.know(&settled.signatures);
    }
    let (terms, seal) = verify_statements(&documents, record, root)?;
    // Step 1010 was here, with exactly this token.
    let granted = record
        .release
        .as_ref()
        .ok_or_else(|| Refusal::new(Code::NotReleased, "the package was compared here but no release token came for it"))?;
    if granted.token != Digest::of(&documents.token) {
        return Err(Refusal::new(Code::TokenMismatch, "the package holds another release token than the one that released it"));
    }
    let secrets = &memory.secrets(record)?;
    let delivery = Delivery { record, terms: &terms, wrap: &documents.wrap, plain_digest: &seal.plain_digest, secrets };
    let released = release(&documents.token, delivery, keys, root, granted.at)?;
    // The keys, and what the vendor says.
    let page_keys = PageKeys::of_terms(released.content_key(), &terms, &seal.plain_digest)?;
    let manifest = read_manifest(&documents, &terms, &released, record, root)?;
    check_policy(&manifest, memory, keys)?;
    Ok(Allowed { package, keys: page_keys, seal, manifest, order: terms.order })
}

/// What openings of a package that was just released, at the time `at`, need not do again: the public-key work of the release, done or
/// known by now. `manifest` are the signed bytes of the vendor's. Refuses as [`open_package`] would.
pub fn settle(
    released: &Released,
    (documents, manifest): (&PackageDocuments, &[u8]),
    (record, at): (&Record, Time),
    root: &Trust,
    kek: &[u8; 32],
    random: &mut dyn Random,
) -> Result<Settled> {
    let noting = root.noting();
    verify_statements(documents, record, &noting)?;
    verify_document::<ReleaseToken>(&documents.token, &noting, at)?;
    verify_document::<Manifest>(manifest, &noting, record.at)?;
    Settled::of(&record.seal, noting.noted(), &released.secrets, kek, random)
}

/// Terms, wrap and seal are those of the record, and belong together.
fn verify_statements(documents: &PackageDocuments, record: &Record, root: &Trust) -> Result<(Verified<Terms>, Verified<Seal>)> {
    let seal: Verified<Seal> = verify_document(&documents.seal, root, record.at)?;
    if Digest::of(&documents.terms) != seal.terms || seal.terms != record.terms {
        return Err(Refusal::new(Code::SealMismatch, "the package's terms are not those that its seal names"));
    }
    if Digest::of(&encode(&documents.wrap)) != seal.wrap {
        return Err(Refusal::new(Code::SealMismatch, "the package's key wrap is not the one that its seal names"));
    }
    let terms: Verified<Terms> = verify_document(&documents.terms, root, record.at)?;
    Ok((terms, seal))
}

/// The vendor's manifest, which travels encrypted in the package.
fn read_manifest(
    documents: &PackageDocuments,
    terms: &Verified<Terms>,
    released: &Released,
    record: &Record,
    root: &Trust,
) -> Result<Verified<Manifest>> {
    let bytes = open_manifest(released.content_key(), terms, &documents.sealed_manifest)?;
    verify_document(&bytes, root, record.at)
}

/// What the vendor allows here.
fn check_policy(manifest: &Verified<Manifest>, memory: &dyn Memory, keys: &dyn KeyStore) -> Result<()> {
    if !manifest.classes.contains(&keys.class()) {
        let detail = format!("{} may not be opened with a key store of class {}", manifest.program, keys.class());
        return Err(Refusal::new(Code::ClassRefused, detail));
    }
    memory.check_sequence(manifest)
}
