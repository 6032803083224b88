//! Certificates (RFC 5280, source \[33\]-\[35\]): the strict profile, and the verifier that alone can make a [`Certified`].
//!
//! A leaf is an X.509 v3 certificate over a P-256 key that signs and does nothing else (key usage digitalSignature), with
//! exactly one extended key usage, its [`Role`]; no name in it decides anything but the subject, which joins the keys of one
//! server. A processor's leaf carries its sealing keys and the class of its key store in one extension
//! ([`SEALING_KEYS_OID`]).

mod known;

use crate::bounded::{Bytes, List, decode};
use crate::error::{Code, Refusal, Result};
use crate::ids::{Digest, KeyId, Time};
use crate::limits::{MAX_CERTIFICATE, MAX_CHAIN, MAX_CHOICES, MAX_KEM_BYTES, MAX_REVOCATION_LIST};
pub use crate::suite::Role;
use crate::suite::{Class, Kem};
use known::KnownSignatures;
use minicbor::{Decode, Encode};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use std::sync::Arc;
use std::time::Duration;
use webpki::{BorrowedCertRevocationList, CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList};
use webpki::{RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The arc of the project's object identifiers, below the enterprise number that RFC 5612 sets aside for documentation;
/// who ships certificates outside their own installation puts their own number here.
pub const ARC: [u64; 8] = [1, 3, 6, 1, 4, 1, 32473, 1_126_355];

/// The extension with the sealing keys: [`ARC`].2; its value is [`SealingKeys`] in CBOR.
pub const SEALING_KEYS_OID: [u64; 9] = [1, 3, 6, 1, 4, 1, 32473, 1_126_355, 2];

impl Role {
    /// The object identifier of the role's extended key usage: [`ARC`].1.n.
    #[must_use]
    pub fn oid(self) -> [u64; 10] {
        [1, 3, 6, 1, 4, 1, 32473, 1_126_355, 1, u64::from(self.number())]
    }

    /// The contents octets of [`Role::oid`] in DER.
    fn oid_der(self) -> &'static [u8] {
        macro_rules! under_arc {
            ($n:literal) => {
                &[0x2b, 6, 1, 4, 1, 0x81, 0xfd, 0x59, 0xc4, 0xdf, 0x53, 1, $n]
            };
        }
        match self {
            Self::Processor => under_arc!(1),
            Self::ServerSecondPath => under_arc!(2),
            Self::ServerStatement => under_arc!(3),
            Self::ServerReceipt => under_arc!(4),
            Self::Vendor => under_arc!(5),
        }
    }
}

/// One sealing key: what a KEM wraps to.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(array)]
pub struct SealingKey {
    /// The mechanism.
    #[n(0)]
    pub kem: Kem,
    /// The public key as RFC 9180 serialises it: 1216 bytes for X-Wing, 65 for P-256.
    #[n(1)]
    pub public: Bytes<MAX_KEM_BYTES>,
}

/// The sealing keys of a processor and the class of key store that holds them.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(array)]
pub struct SealingKeys {
    /// The class, as the authority saw it at enrolment.
    #[n(0)]
    pub class: Class,
    /// The keys, at least one, at most one for each KEM.
    #[n(1)]
    pub keys: List<SealingKey, MAX_CHOICES>,
}

impl SealingKeys {
    /// The key for that mechanism.
    #[must_use]
    pub fn get(&self, kem: Kem) -> Option<&[u8]> {
        self.keys.iter().find(|k| k.kem == kem).map(|k| &*k.public)
    }
}

/// A certificate chain as it travels: leaf first, then the issuing certificate, the root left out.
pub type Chain = List<Bytes<MAX_CERTIFICATE>, MAX_CHAIN>;

/// A certificate whose chain, time, revocation, profile and role were verified. Only [`Trust::verify`] makes one.
#[derive(Clone, Debug)]
pub struct Certified {
    role: Role,
    key_id: KeyId,
    spki: Vec<u8>,
    subject: String,
    serial: Vec<u8>,
    not_before: Time,
    not_after: Time,
    sealing: Option<SealingKeys>,
}

impl Certified {
    /// The role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }
    /// The id of the certified key.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        self.key_id
    }
    /// The certified key, SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }
    /// The subject's common name.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }
    /// The serial number, big endian.
    #[must_use]
    pub fn serial(&self) -> &[u8] {
        &self.serial
    }
    /// First and last second of validity.
    #[must_use]
    pub fn validity(&self) -> (Time, Time) {
        (self.not_before, self.not_after)
    }
    /// The sealing keys; every certificate of [`Role::Processor`] has them.
    #[must_use]
    pub fn sealing(&self) -> Option<&SealingKeys> {
        self.sealing.as_ref()
    }
}

/// Signatures that were found good, each by a digest of key, message and signature.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct GoodSignatures {
    /// Those of certificates.
    #[n(0)]
    certificates: Vec<Digest>,
    /// Those of documents.
    #[n(1)]
    documents: Vec<Digest>,
}

/// What a verifier trusts: one root, and the revocation list it was given, if any.
pub struct Trust {
    root: CertificateDer<'static>,
    revocations: Option<CertRevocationList<'static>>,
    known: Arc<KnownSignatures>,
    /// Those of documents, of which there are many more.
    documents: Arc<KnownSignatures>,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trust({}, revocations: {})", Digest::of(&self.root), self.revocations.is_some())
    }
}

impl Trust {
    /// Trusts the root certificate `root` (DER). Not a certificate: [`Code::CertificateProfile`].
    pub fn new(root: &[u8]) -> Result<Self> {
        let root = CertificateDer::from(root.to_vec());
        anchor(&root)?;
        Ok(Self { root, revocations: None, known: Arc::default(), documents: Arc::default() })
    }

    /// The same with a revocation list (DER); its age is checked whenever a certificate is, its signature once. With a list, a
    /// list past its next update refuses everything with [`Code::RevocationListStale`].
    pub fn with_revocations(&self, list: &[u8]) -> Result<Self> {
        if list.len() > MAX_REVOCATION_LIST {
            return Err(Refusal::new(Code::TooLarge, "the revocation list is larger than its limit"));
        }
        BorrowedCertRevocationList::from_der(list)
            .and_then(|_| OwnedCertRevocationList::from_der(list))
            .map(|list| Self {
                revocations: Some(list.into()),
                root: self.root.clone(),
                known: self.known.clone(),
                documents: self.documents.clone(),
            })
            .map_err(|e| Refusal::new(Code::Malformed, format!("not a revocation list: {e}")).because(e))
    }

    /// The same root without its revocation list, and what this one knows of signatures. It notes the good ones that it is asked for
    /// from now on: [`Self::noted`].
    #[must_use]
    pub fn noting(&self) -> Self {
        let (known, documents) = (Arc::new(self.known.noting()), Arc::new(self.documents.noting()));
        Self { root: self.root.clone(), revocations: None, known, documents }
    }

    /// The signatures that were asked for and found good since [`Self::noting`].
    #[must_use]
    pub fn noted(&self) -> GoodSignatures {
        GoodSignatures { certificates: self.known.noted(), documents: self.documents.noted() }
    }

    /// Takes signatures for good that a verifier found good before. Whether one is does not change with time; what does, validity,
    /// revocation and role, is looked at in any case. The caller guarantees that nobody else could write them since.
    pub fn know(&self, good: &GoodSignatures) {
        self.known.know(&good.certificates);
        self.documents.know(&good.documents);
    }

    /// The root certificate in DER.
    #[must_use]
    pub fn root(&self) -> &[u8] {
        &self.root
    }

    /// Verifies `chain` (leaf first) for `role` at the time `at`. Refuses with one of the `certificate_*` codes.
    pub fn verify<C: AsRef<[u8]>>(&self, chain: &[C], role: Role, at: Time) -> Result<Certified> {
        let (leaf, issuers) = split(chain)?;
        let anchors = [anchor(&self.root)?];
        let end_entity = EndEntityCert::try_from(&leaf).map_err(|e| profile_error(&e))?;
        let lists: Vec<&CertRevocationList<'_>> = self.revocations.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|builder| {
            builder
                .with_depth(RevocationCheckDepth::EndEntity)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let time = UnixTime::since_unix_epoch(Duration::from_secs(at.0));
        let usage = KeyUsage::required(role.oid_der());
        end_entity
            .verify_for_usage(&[&*self.known], &anchors, &issuers, time, usage, revocation, None)
            .map_err(|e| chain_error(&e, role))?;
        read_profile(&leaf, role)
    }

    /// As [`Self::verify`] for something that was signed at the time `at`, in the past: a certificate that was revoked after
    /// that counts.
    pub(crate) fn verify_past<C: AsRef<[u8]>>(&self, chain: &[C], role: Role, at: Time) -> Result<Certified> {
        match self.verify(chain, role, at) {
            Err(revoked) if revoked.code == Code::CertificateRevoked => {
                let without =
                    Self { root: self.root.clone(), revocations: None, known: self.known.clone(), documents: self.documents.clone() };
                let certified = without.verify(chain, role, at)?;
                if self.revoked_at(certified.serial()).is_some_and(|revoked_at| revoked_at > at) { Ok(certified) } else { Err(revoked) }
            }
            outcome => outcome,
        }
    }

    /// When the certificate with this serial number was revoked, as the revocation list says.
    fn revoked_at(&self, serial: &[u8]) -> Option<Time> {
        let revoked = self.revocations.as_ref()?.find_serial(serial).ok()??;
        Some(Time(revoked.revocation_date.as_secs()))
    }

    /// Checks the signature of a document by a certified key, each once; [`Code::SignatureInvalid`].
    pub(crate) fn check_signature(&self, signer: &Certified, message: &[u8], signature: &[u8]) -> Result<()> {
        self.documents.once(&signer.spki, message, signature, || crate::signature::verify(&signer.spki, message, signature))
    }
}

fn anchor<'a>(root: &'a CertificateDer<'_>) -> Result<TrustAnchor<'a>> {
    webpki::anchor_from_trusted_cert(root)
        .map_err(|e| Refusal::new(Code::CertificateProfile, format!("the root is not a certificate: {e}")).because(e))
}

fn split<C: AsRef<[u8]>>(chain: &[C]) -> Result<(CertificateDer<'_>, Vec<CertificateDer<'_>>)> {
    if chain.len() > MAX_CHAIN || chain.iter().any(|c| c.as_ref().len() > MAX_CERTIFICATE) {
        return Err(Refusal::new(Code::TooLarge, "the certificate chain is longer than its limits"));
    }
    let mut certificates = chain.iter().map(|c| CertificateDer::from(c.as_ref()));
    let leaf = certificates.next().ok_or_else(|| Refusal::new(Code::CertificateProfile, "there is no certificate"))?;
    Ok((leaf, certificates.collect()))
}

/// Reads what the profile says of a leaf whose chain was verified.
fn read_profile(der: &CertificateDer<'_>, role: Role) -> Result<Certified> {
    let bad = |why: &str| Refusal::new(Code::CertificateProfile, why.to_owned());
    let (rest, leaf) = X509Certificate::from_der(der).map_err(|e| bad(&format!("not a certificate: {e}")))?;
    if !rest.is_empty() {
        return Err(bad("bytes follow the certificate"));
    }
    let usages = leaf.extended_key_usage().ok().flatten().ok_or_else(|| bad("no extended key usage"))?.value;
    let others = usages.any || usages.server_auth || usages.client_auth || usages.code_signing || usages.email_protection;
    if usages.other.len() != 1 || others || usages.time_stamping || usages.ocsp_signing {
        return Err(bad("more than one extended key usage"));
    }
    let spki = leaf.public_key().raw.to_vec();
    crate::signature::p256_point(&spki)?;
    let subject = leaf.subject().iter_common_name().next().and_then(|n| n.as_str().ok()).ok_or_else(|| bad("no common name"))?;
    let signs_only = leaf.key_usage().ok().flatten().is_some_and(|u| u.value.flags == DIGITAL_SIGNATURE);
    if !signs_only {
        return Err(bad("its key usage is not digitalSignature alone"));
    }
    let sealing = read_sealing_keys(&leaf)?;
    if (role == Role::Processor) != sealing.is_some() {
        return Err(bad("sealing keys belong in a processor's certificate and nowhere else"));
    }
    let seconds = |t: x509_parser::time::ASN1Time| Time(u64::try_from(t.timestamp()).unwrap_or(0));
    Ok(Certified {
        role,
        key_id: KeyId::of_spki(&spki),
        subject: subject.to_owned(),
        serial: leaf.raw_serial().to_vec(),
        not_before: seconds(leaf.validity().not_before),
        not_after: seconds(leaf.validity().not_after),
        spki,
        sealing,
    })
}

/// The key usage bit digitalSignature as x509-parser numbers it (RFC 5280 §4.2.1.3).
const DIGITAL_SIGNATURE: u16 = 1;

/// The sealing keys of a leaf, if it has the extension: once, readable, at most one key for each mechanism.
fn read_sealing_keys(leaf: &X509Certificate<'_>) -> Result<Option<SealingKeys>> {
    let bad = |why: &str| Refusal::new(Code::CertificateProfile, why.to_owned());
    let mut extensions = leaf.extensions().iter().filter(|e| e.oid.iter().is_some_and(|i| i.eq(SEALING_KEYS_OID)));
    let Some(extension) = extensions.next() else { return Ok(None) };
    if extensions.next().is_some() {
        return Err(bad("it names its sealing keys twice"));
    }
    let sealing = decode::<SealingKeys>(extension.value)?;
    let doubled = |(at, key): (usize, &SealingKey)| sealing.keys[..at].iter().any(|k| k.kem == key.kem);
    if sealing.keys.is_empty() || sealing.keys.iter().enumerate().any(doubled) {
        return Err(bad("it has no sealing key, or two for one mechanism"));
    }
    Ok(Some(sealing))
}

fn profile_error(error: &webpki::Error) -> Refusal {
    Refusal::new(Code::CertificateProfile, format!("not a certificate of the profile: {error}")).because(error.clone())
}

fn chain_error(error: &webpki::Error, role: Role) -> Refusal {
    use webpki::Error as E;
    let (code, detail) = match error {
        E::CertExpired { time, not_after } => {
            (Code::CertificateExpired, format!("the {role} certificate ran out at {}, now is {}", not_after.as_secs(), time.as_secs()))
        }
        E::CertNotValidYet { time, not_before } => (
            Code::CertificateNotYetValid,
            format!("the {role} certificate is valid from {}, now is {}", not_before.as_secs(), time.as_secs()),
        ),
        E::CertRevoked => (Code::CertificateRevoked, format!("the {role} certificate was revoked by the authority")),
        E::CrlExpired { .. } => (Code::RevocationListStale, "the revocation list is past its next update".to_owned()),
        E::UnknownRevocationStatus => (Code::RevocationListStale, format!("no revocation list speaks for the {role} certificate")),
        E::UnknownIssuer | E::InvalidSignatureForPublicKey | E::InvalidCrlSignatureForPublicKey => {
            (Code::CertificateForeign, format!("the {role} certificate was not issued under the trusted authority"))
        }
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => {
            (Code::CertificateRole, format!("the certificate is not one of the role {role}"))
        }
        other => (Code::CertificateProfile, format!("the {role} certificate is outside the profile: {other}")),
    };
    Refusal::new(code, detail).because(error.clone())
}
