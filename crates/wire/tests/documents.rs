//! Signed documents: only what was signed, by the right role, in the right form, is taken.

use chipbound_testkit::{Holder, Pki, Repeatable, documents};
use chipbound_wire::certificate::Role;
use chipbound_wire::documents::{Confirmation, Manifest, Terms};
use chipbound_wire::signed::{Document, Signer, read_claims, verify_document};
use chipbound_wire::suite::Format;
use chipbound_wire::{Code, Digest, Random, Time};
use coset::cbor::value::Value;
use coset::{CborSerializable, CoseSign1, HeaderBuilder};

const NOW: Time = Time(1_790_000_000);

struct Scene {
    pki: Pki,
    vendor: Holder,
    signed: Vec<u8>,
}

fn scene() -> Scene {
    let pki = Pki::new(NOW);
    let vendor = pki.holder(Role::Vendor);
    let signed = vendor.sign(&documents::manifest(&vendor.id(), b"plaintext"));
    Scene { pki, vendor, signed }
}

fn code<D: Document + std::fmt::Debug>(scene: &Scene, bytes: &[u8]) -> Code {
    verify_document::<D>(bytes, &scene.pki.trust(), NOW).expect_err("must be refused").code
}

fn changed(signed: &[u8], change: impl FnOnce(&mut CoseSign1)) -> Vec<u8> {
    let mut sign1 = CoseSign1::from_slice(signed).expect("a signed document");
    change(&mut sign1);
    sign1.to_vec().expect("it encodes")
}

#[test]
fn a_signed_document_verifies_and_keeps_its_bytes() {
    let s = scene();
    let verified = verify_document::<Manifest>(&s.signed, &s.pki.trust(), NOW).expect("signed by its vendor");
    assert_eq!(*verified, documents::manifest(&s.vendor.id(), b"plaintext"));
    assert_eq!((verified.bytes(), verified.digest()), (&s.signed[..], Digest::of(&s.signed)));
    assert_eq!(verified.signer().key_id(), s.vendor.id());
    assert_eq!(read_claims::<Manifest>(&s.signed).expect("readable"), *verified);
}

#[test]
fn a_document_of_another_kind_is_refused() {
    let s = scene();
    assert_eq!(code::<Terms>(&s, &s.signed), Code::WrongDocument);
    assert_eq!(read_claims::<Terms>(&s.signed).expect_err("another kind").code, Code::WrongDocument);
}

#[test]
fn a_document_signed_in_the_wrong_role_is_refused() {
    let s = scene();
    let receipts = s.pki.holder(Role::ServerReceipt);
    let manifest = documents::manifest(&s.vendor.id(), b"plaintext");
    let confirmation = documents::confirmation(&manifest, &s.signed, s.vendor.id(), NOW);
    let terms = documents::terms(&confirmation, Format::Data);
    assert_eq!(code::<Terms>(&s, &receipts.sign(&terms)), Code::CertificateRole);
    assert_eq!(code::<Confirmation>(&s, &s.vendor.sign(&confirmation)), Code::CertificateRole);
}

#[test]
fn an_altered_payload_is_refused() {
    let s = scene();
    let forged = chipbound_wire::bounded::encode(&documents::manifest(&s.vendor.id(), b"something else"));
    assert_eq!(code::<Manifest>(&s, &changed(&s.signed, |d| d.payload = Some(forged))), Code::SignatureInvalid);
    assert_eq!(code::<Manifest>(&s, &changed(&s.signed, |d| d.payload = None)), Code::Malformed);
}

#[test]
fn an_altered_header_is_refused() {
    let s = scene();
    // Another certificate of the same vendor's role, for the same bytes: the chain is signed too.
    let other = s.pki.holder(Role::Vendor);
    let chain = Value::Array(other.chain.iter().cloned().map(Value::Bytes).collect());
    let swapped = changed(&s.signed, |d| {
        d.protected.original_data = None;
        d.protected.header.rest[0].1 = chain;
    });
    assert_eq!(code::<Manifest>(&s, &swapped), Code::SignatureInvalid);
    let renamed = changed(&s.signed, |d| {
        d.protected.original_data = None;
        d.protected.header.content_type = Some(coset::ContentType::Text(Terms::CONTENT_TYPE.to_owned()));
    });
    assert_eq!(code::<Manifest>(&s, &renamed), Code::WrongDocument);
    let es384 = changed(&s.signed, |d| {
        d.protected.original_data = None;
        d.protected.header.alg = Some(coset::RegisteredLabelWithPrivate::Assigned(coset::iana::Algorithm::ES384));
    });
    assert_eq!(code::<Manifest>(&s, &es384), Code::Malformed);
}

#[test]
fn a_header_outside_the_profile_is_refused_signed_or_not() {
    let s = scene();
    let unprotected = changed(&s.signed, |d| d.unprotected = HeaderBuilder::new().key_id(b"me".to_vec()).build());
    assert_eq!(code::<Manifest>(&s, &unprotected), Code::Malformed);
    let more = changed(&s.signed, |d| {
        d.protected.original_data = None;
        d.protected.header.key_id = b"me".to_vec();
    });
    assert_eq!(code::<Manifest>(&s, &more), Code::Malformed);
    let unknown = changed(&s.signed, |d| {
        d.protected.original_data = None;
        d.protected.header.rest.push((coset::Label::Int(4711), Value::Null));
    });
    assert_eq!(code::<Manifest>(&s, &unknown), Code::Malformed);
}

#[test]
fn bytes_after_or_missing_from_a_document_are_refused() {
    let s = scene();
    assert_eq!(code::<Manifest>(&s, &[&s.signed[..], &[0]].concat()), Code::Malformed);
    for length in [0, 1, s.signed.len() / 2, s.signed.len() - 1] {
        assert_eq!(code::<Manifest>(&s, &s.signed[..length]), Code::Malformed, "{length} bytes");
    }
    assert_eq!(code::<Manifest>(&s, &vec![0; chipbound_wire::limits::MAX_DOCUMENT + 1]), Code::TooLarge);
}

#[test]
fn no_single_flipped_bit_survives() {
    let s = scene();
    for position in 0..s.signed.len() {
        let mut flipped = s.signed.clone();
        flipped[position] ^= 1 << (position % 8);
        assert!(verify_document::<Manifest>(&flipped, &s.pki.trust(), NOW).is_err(), "byte {position}");
    }
}

#[test]
fn hostile_bytes_never_panic() {
    let s = scene();
    let mut random = Repeatable::new(1);
    for length in 0..512 {
        let mut bytes = vec![0; length];
        random.fill(&mut bytes);
        assert!(verify_document::<Manifest>(&bytes, &s.pki.trust(), NOW).is_err());
    }
}

#[test]
fn a_signature_of_a_key_outside_its_certificate_is_refused() {
    let s = scene();
    let thief = s.pki.holder(Role::Vendor);
    let forged = Signer { key: &thief.key, chain: &s.vendor.chain }.sign(&documents::manifest(&s.vendor.id(), b"x")).expect("signs");
    assert_eq!(code::<Manifest>(&s, &forged), Code::SignatureInvalid);
}
