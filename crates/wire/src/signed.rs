//! Signed documents: COSE_Sign1 (RFC 9052) over CBOR, with the signer's certificate chain in the protected header (x5chain,
//! RFC 9360). A document is kept and passed on as the bytes that were signed, never encoded again.

use crate::bounded::{decode, encode};
use crate::certificate::{Certified, Role, Trust};
use crate::error::{Code, Refusal, Result};
use crate::ids::{Digest, Time};
use crate::limits::{MAX_CHAIN, MAX_DOCUMENT};
use crate::signature::Sign;
use coset::cbor::value::Value;
use coset::iana::{Algorithm, EnumI64, HeaderParameter};
use coset::{CborSerializable, ContentType, CoseSign1, CoseSign1Builder, Header, HeaderBuilder, Label, RegisteredLabelWithPrivate};
use minicbor::{Decode, Encode};

/// The external_aad of every signature: the protocol and its version.
const EXTERNAL_AAD: &[u8] = b"chipbound/1";

/// A kind of document: its name in the protected header and the role that may sign it.
pub trait Document: Encode<()> + for<'b> Decode<'b, ()> {
    /// The content type, `application/chipbound-KIND+cbor`.
    const CONTENT_TYPE: &'static str;
    /// The only role whose signature counts.
    const ROLE: Role;
}

/// Signs documents: a key and its certificate chain (leaf first, root left out).
pub struct Signer<'a> {
    /// The key.
    pub key: &'a dyn Sign,
    /// Its certificates in DER.
    pub chain: &'a [Vec<u8>],
}

impl Signer<'_> {
    /// Signs `document`; the bytes (at most [`MAX_DOCUMENT`]) are what is kept and sent.
    pub fn sign<D: Document>(&self, document: &D) -> Result<Vec<u8>> {
        let chain = self.chain.iter().map(|c| Value::Bytes(c.clone())).collect();
        let protected = HeaderBuilder::new()
            .algorithm(Algorithm::ES256)
            .content_type(D::CONTENT_TYPE.to_owned())
            .value(HeaderParameter::X5Chain.to_i64(), Value::Array(chain))
            .build();
        let signed = CoseSign1Builder::new()
            .protected(protected)
            .payload(encode(document))
            .try_create_signature(EXTERNAL_AAD, |message| self.key.sign(message).map(|s| s.to_vec()))?
            .build();
        let bytes = signed.to_vec().map_err(|e| Refusal::new(Code::Internal, format!("a document cannot be encoded: {e}")))?;
        if bytes.len() > MAX_DOCUMENT {
            return Err(Refusal::new(Code::TooLarge, "the document is larger than its limit"));
        }
        Ok(bytes)
    }
}

/// A document whose signature, chain, role and time were verified. Only [`verify_document`] and [`verify_past_document`] make one.
#[derive(Clone, Debug)]
pub struct Verified<D> {
    document: D,
    bytes: Vec<u8>,
    signer: Certified,
}

impl<D> Verified<D> {
    /// The bytes that were signed and that are kept.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// The BLAKE3 digest of [`Self::bytes`], by which other documents name this one.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }
    /// Whose certificate signed it.
    #[must_use]
    pub fn signer(&self) -> &Certified {
        &self.signer
    }
}

impl<D> std::ops::Deref for Verified<D> {
    type Target = D;
    fn deref(&self) -> &D {
        &self.document
    }
}

/// Verifies the bytes of a document of kind `D`: form, kind, chain and role at the time `at`, and the signature.
pub fn verify_document<D: Document>(bytes: &[u8], trust: &Trust, at: Time) -> Result<Verified<D>> {
    let envelope = open_envelope::<D>(bytes)?;
    let signer = trust.verify(&envelope.chain, D::ROLE, at)?;
    envelope.by(signer, trust, bytes)
}

/// As [`verify_document`] for a document that was signed at the time `at`, in the past: a certificate that was revoked later counts.
pub fn verify_past_document<D: Document>(bytes: &[u8], trust: &Trust, at: Time) -> Result<Verified<D>> {
    let envelope = open_envelope::<D>(bytes)?;
    let signer = trust.verify_past(&envelope.chain, D::ROLE, at)?;
    envelope.by(signer, trust, bytes)
}

/// Reads what a document of kind `D` claims, unverified: for showing it, or to learn the time at which to verify it.
pub fn read_claims<D: Document>(bytes: &[u8]) -> Result<D> {
    decode(&open_envelope::<D>(bytes)?.payload)
}

/// A COSE_Sign1 taken apart, nothing verified yet.
struct Envelope {
    sign1: CoseSign1,
    chain: Vec<Vec<u8>>,
    payload: Vec<u8>,
}

impl Envelope {
    /// Checks the signature of a signer whose chain was verified.
    fn by<D: Document>(&self, signer: Certified, trust: &Trust, bytes: &[u8]) -> Result<Verified<D>> {
        self.sign1.verify_signature(EXTERNAL_AAD, |signature, message| trust.check_signature(&signer, message, signature))?;
        Ok(Verified { document: decode(&self.payload)?, bytes: bytes.to_vec(), signer })
    }
}

fn open_envelope<D: Document>(bytes: &[u8]) -> Result<Envelope> {
    if bytes.len() > MAX_DOCUMENT {
        return Err(Refusal::new(Code::TooLarge, "the document is larger than its limit"));
    }
    let bad = |why: &str| Refusal::new(Code::Malformed, format!("not a signed document: {why}"));
    let sign1 = CoseSign1::from_slice(bytes).map_err(|e| bad(&e.to_string()))?;
    let header = &sign1.protected.header;
    if !sign1.unprotected.is_empty()
        || header.alg != Some(RegisteredLabelWithPrivate::Assigned(Algorithm::ES256))
        || header.rest.len() != 1
        || !only_profile_fields(header)
    {
        return Err(bad("its headers are not those of the profile"));
    }
    match &header.content_type {
        Some(ContentType::Text(text)) if text == D::CONTENT_TYPE => {}
        Some(ContentType::Text(text)) => {
            return Err(Refusal::new(Code::WrongDocument, format!("{text} where {} was expected", D::CONTENT_TYPE)));
        }
        _ => return Err(bad("it names no kind")),
    }
    let chain = header
        .rest
        .iter()
        .find(|(label, _)| *label == Label::Int(HeaderParameter::X5Chain.to_i64()))
        .and_then(|(_, value)| value.as_array())
        .filter(|certificates| certificates.len() <= MAX_CHAIN)
        .and_then(|certificates| certificates.iter().map(|c| c.as_bytes().cloned()).collect::<Option<Vec<_>>>())
        .ok_or_else(|| bad("it has no certificate chain"))?;
    let payload = sign1.payload.clone().ok_or_else(|| bad("it has no payload"))?;
    Ok(Envelope { sign1, chain, payload })
}

/// Whether none of the optional header fields of RFC 9052 §3.1 that the profile leaves out is there.
fn only_profile_fields(header: &Header) -> bool {
    header.crit.is_empty()
        && header.key_id.is_empty()
        && header.iv.is_empty()
        && header.partial_iv.is_empty()
        && header.counter_signatures.is_empty()
}
