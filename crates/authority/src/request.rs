//! Signing requests (PKCS#10, RFC 2986): the proof of possession of the key to be certified (A4).

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use chipbound_wire::signature::p256_point;
use chipbound_wire::{Code, Refusal, Result};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// The key (SubjectPublicKeyInfo in DER) that signed the request and is to be certified. Subject, attributes and extensions
/// are ignored: only the authority decides them.
///
/// # Errors
/// [`Code::Malformed`] for what is no request, [`Code::CertificateProfile`] for a key that is not P-256,
/// [`Code::PossessionUnproven`] for a request that another key signed.
pub fn requested_key(request: &[u8]) -> Result<Vec<u8>> {
    let malformed = |why: &str| Refusal::new(Code::Malformed, format!("not a signing request: {why}"));
    let (rest, parsed) = X509CertificationRequest::from_der(request).map_err(|e| malformed(&e.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed("bytes follow it"));
    }
    let info = &parsed.certification_request_info;
    let spki = info.subject_pki.raw;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, p256_point(spki)?)
        .verify(info.raw, &parsed.signature_value.data)
        .map_err(|_| Refusal::new(Code::PossessionUnproven, "the signing request was not signed by its own key"))?;
    Ok(spki.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use chipbound_host::{FileKey, signing_request};
    use chipbound_wire::signature::Sign;
    use std::sync::Arc;

    fn request() -> (Vec<u8>, Vec<u8>) {
        let key: Arc<dyn Sign> = Arc::new(FileKey::generate().expect("a key").0);
        (key.spki().to_vec(), signing_request(key).expect("a request"))
    }

    #[test]
    fn a_request_proves_the_key_that_signed_it() {
        let (spki, request) = request();
        assert_eq!(requested_key(&request).expect("signed by its key"), spki);
    }

    #[test]
    fn a_request_for_somebody_elses_key_is_refused() {
        let ((spki, own), (other, _)) = (request(), request());
        let at = own.windows(spki.len()).position(|w| w == spki).expect("the key is in its request");
        let mut stolen = own;
        stolen[at..at + spki.len()].copy_from_slice(&other);
        assert_eq!(requested_key(&stolen).expect_err("another key signed").code, Code::PossessionUnproven);
    }

    #[test]
    fn a_key_on_another_curve_is_not_certified() {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
        let request = rcgen::CertificateParams::default().serialize_request(&pair).expect("a request");
        assert_eq!(requested_key(request.der()).expect_err("P-384").code, Code::CertificateProfile);
    }

    #[test]
    fn no_cut_or_lengthened_request_is_taken() {
        let (_, request) = request();
        for length in 0..request.len() {
            assert!(requested_key(&request[..length]).is_err(), "{length} bytes");
        }
        assert_eq!(requested_key(&[&request[..], &[0]].concat()).expect_err("a byte more").code, Code::Malformed);
    }
}
