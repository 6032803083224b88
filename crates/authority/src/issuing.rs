//! Making certificates and revocation lists (RFC 5280) of the profile that `chipbound_wire::certificate` verifies. Time, keys
//! and randomness are arguments; nothing here reads or writes anything.
//!
//! A root (path length 1) certifies issuing authorities (path length 0), which certify leaves. The issuing certificate carries
//! the usage of every role and serverAuth, because a usage counts only where every certificate of the path allows it.

use chipbound_wire::bounded::encode;
use chipbound_wire::certificate::{Role, SEALING_KEYS_OID, SealingKeys};
use chipbound_wire::limits::{MAX_CERTIFICATE, MAX_NAME, MAX_REVOCATION_LIST};
use chipbound_wire::random::fresh;
use chipbound_wire::signature::{Sign, p256_point, to_der};
use chipbound_wire::{Code, Random, Refusal, Result, Time};
use rcgen::{BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DnType, ExtendedKeyUsagePurpose};
use rcgen::{IsCa, KeyUsagePurpose, RevokedCertParams, SerialNumber};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The first and the last second at which a certificate or a revocation list counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// First second.
    pub not_before: Time,
    /// Last second.
    pub not_after: Time,
}

/// What a leaf certificate shall say.
pub struct Leaf<'a> {
    /// Its one role.
    pub role: Role,
    /// The common name, 1 to [`MAX_NAME`] bytes.
    pub subject: &'a str,
    /// The key to be certified, a P-256 SubjectPublicKeyInfo in DER.
    pub spki: &'a [u8],
    /// When it counts.
    pub validity: Validity,
    /// The sealing keys: present for a processor and for nobody else.
    pub sealing: Option<&'a SealingKeys>,
}

/// A certificate that was withdrawn.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Withdrawn {
    /// Its serial number, big endian, at most 20 bytes.
    pub serial: Vec<u8>,
    /// When it was withdrawn.
    pub at: Time,
}

/// Makes a root certificate in DER for `key`: self-signed, path length 1.
pub fn root(key: &dyn Sign, name: &str, validity: Validity, random: &mut dyn Random) -> Result<Vec<u8>> {
    let params = authority_params(name, validity, 1, random)?;
    let certificate = params.self_signed(&Key::new(key)?).map_err(cannot_issue)?;
    bounded(certificate.der().to_vec())
}

/// A certificate with its key, able to issue.
pub struct Issuer<'a> {
    inner: rcgen::Issuer<'static, Key<'a>>,
}

impl std::fmt::Debug for Issuer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Issuer")
    }
}

impl<'a> Issuer<'a> {
    /// Joins a certificate of an authority (DER) with its key. [`Code::Unsealable`] if the key is not the certified one.
    pub fn new(certificate: &[u8], key: &'a dyn Sign) -> Result<Self> {
        let bad = |why: String| Refusal::new(Code::CertificateProfile, format!("not a certificate of an authority: {why}"));
        let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|e| bad(e.to_string()))?;
        if !rest.is_empty() || !parsed.is_ca() {
            return Err(bad("it may not issue".to_owned()));
        }
        if parsed.public_key().raw != key.spki() {
            return Err(Refusal::new(Code::Unsealable, "the authority's key is not the one in its certificate"));
        }
        let der = certificate.to_vec().into();
        let inner = rcgen::Issuer::from_ca_cert_der(&der, Key::new(key)?).map_err(|e| bad(e.to_string()))?;
        Ok(Self { inner })
    }

    /// Certifies an issuing authority (path length 0); only a root does that. `spki` is its P-256 key.
    pub fn issuing(&self, spki: &[u8], name: &str, validity: Validity, random: &mut dyn Random) -> Result<Vec<u8>> {
        let mut params = authority_params(name, validity, 0, random)?;
        params.extended_key_usages = Role::ALL.iter().map(|r| usage(*r)).collect();
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        self.certify(&params, spki)
    }

    /// Issues a leaf of a role.
    pub fn leaf(&self, leaf: &Leaf<'_>, random: &mut dyn Random) -> Result<Vec<u8>> {
        if (leaf.role == Role::Processor) != leaf.sealing.is_some() {
            return Err(Refusal::new(Code::CertificateProfile, "a processor is certified with sealing keys, nobody else is"));
        }
        self.certify(&leaf_params(leaf, random)?, leaf.spki)
    }

    /// Issues a certificate for a TLS server under `names` (DNS names or addresses); it has no role.
    pub fn tls_leaf(&self, spki: &[u8], names: &[String], validity: Validity, random: &mut dyn Random) -> Result<Vec<u8>> {
        let first = names.first().ok_or_else(|| Refusal::new(Code::ConfigInvalid, "a TLS server needs at least one name"))?;
        let mut params = CertificateParams::new(names)
            .map_err(|e| Refusal::new(Code::ConfigInvalid, format!("a name of the TLS server is no DNS name or address: {e}")))?;
        common(&mut params, first, validity, random)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.certify(&params, spki)
    }

    /// Issues revocation list `number` (rising with each list), in DER. `validity` is thisUpdate and nextUpdate.
    pub fn revocations(&self, number: u64, withdrawn: &[Withdrawn], validity: Validity) -> Result<Vec<u8>> {
        let revoked = |w: &Withdrawn| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&w.serial),
            revocation_time: date(w.at),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date(validity.not_before),
            next_update: date(validity.not_after),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: withdrawn.iter().map(revoked).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.inner).map_err(cannot_issue)?.der().to_vec();
        if list.len() > MAX_REVOCATION_LIST {
            return Err(Refusal::new(Code::TooLarge, "the revocation list is larger than its limit"));
        }
        Ok(list)
    }

    /// Signs `params` for the P-256 key `spki` as they are. [`Self::leaf`] and its sisters keep to the profile; this does
    /// not, so that tests can forge what a verifier must refuse.
    pub fn certify(&self, params: &CertificateParams, spki: &[u8]) -> Result<Vec<u8>> {
        let public = PublicPoint(p256_point(spki)?);
        let certificate = params.signed_by(&public, &self.inner).map_err(cannot_issue)?;
        bounded(certificate.der().to_vec())
    }
}

/// What rcgen needs to know for a leaf of the profile: one usage, not an authority, signs only, random serial.
pub fn leaf_params(leaf: &Leaf<'_>, random: &mut dyn Random) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    common(&mut params, leaf.subject, leaf.validity, random)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage(leaf.role)];
    if let Some(sealing) = leaf.sealing {
        params.custom_extensions = vec![CustomExtension::from_oid_content(&SEALING_KEYS_OID, encode(sealing))];
    }
    Ok(params)
}

fn authority_params(name: &str, validity: Validity, path_length: u8, random: &mut dyn Random) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    common(&mut params, name, validity, random)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn common(params: &mut CertificateParams, name: &str, validity: Validity, random: &mut dyn Random) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Refusal::new(Code::Malformed, format!("a subject has 1 to {MAX_NAME} bytes without control characters")));
    }
    if validity.not_after < validity.not_before {
        return Err(Refusal::new(Code::ConfigInvalid, "a certificate would end before it begins"));
    }
    params.not_before = date(validity.not_before);
    params.not_after = date(validity.not_after);
    params.serial_number = Some(SerialNumber::from_slice(&serial(random)));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    Ok(())
}

/// 16 random bytes that DER writes as they are: positive, the first byte not zero.
fn serial(random: &mut dyn Random) -> [u8; 16] {
    let mut serial = fresh::<16>(random);
    serial[0] = (serial[0] & 0x7f) | 0x40;
    serial
}

fn usage(role: Role) -> ExtendedKeyUsagePurpose {
    ExtendedKeyUsagePurpose::Other(role.oid().to_vec())
}

/// 9999-12-31 23:59:59, the last second that a certificate can name (RFC 5280 §4.1.2.5).
const LAST_SECOND: u64 = 253_402_300_799;

pub(crate) fn date(at: Time) -> OffsetDateTime {
    let seconds = i64::try_from(at.0.min(LAST_SECOND)).expect("the last second fits");
    OffsetDateTime::from_unix_timestamp(seconds).expect("within the years 1970 to 9999")
}

fn bounded(certificate: Vec<u8>) -> Result<Vec<u8>> {
    if certificate.len() > MAX_CERTIFICATE {
        return Err(Refusal::new(
            Code::TooLarge,
            format!("a certificate of {} bytes where {MAX_CERTIFICATE} are allowed", certificate.len()),
        ));
    }
    Ok(certificate)
}

fn cannot_issue(error: rcgen::Error) -> Refusal {
    Refusal::new(Code::Internal, format!("the certificate cannot be issued: {error}")).because(error)
}

/// A signing key as rcgen wants it.
struct Key<'a> {
    key: &'a dyn Sign,
    point: [u8; 65],
}

impl<'a> Key<'a> {
    fn new(key: &'a dyn Sign) -> Result<Self> {
        Ok(Self { key, point: p256_point(key.spki())? })
    }
}

impl rcgen::PublicKeyData for Key<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Key<'_> {
    fn sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, rcgen::Error> {
        self.key.sign(message).map(|fixed| to_der(&fixed)).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// A public key as rcgen wants it.
struct PublicPoint([u8; 65]);

impl rcgen::PublicKeyData for PublicPoint {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}
