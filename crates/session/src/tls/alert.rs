//! Refusals before the first message: until the handshake is done, a TLS alert (RFC 8446 §6.2) is all that one end can tell
//! the other. Within this ALPN each certificate code has an alert of its own, so that both ends report the same code.
//!
//! | code | alert |
//! |---|---|
//! | `certificate_profile` | bad_certificate (42) |
//! | `certificate_role` | unsupported_certificate (43) |
//! | `certificate_revoked` | certificate_revoked (44) |
//! | `certificate_expired` | certificate_expired (45) |
//! | `certificate_not_yet_valid` | certificate_unknown (46) |
//! | `certificate_foreign` | unknown_ca (48) |
//! | `revocation_list_stale` | bad_certificate_status_response (113) |

use chipbound_wire::{Code, Refusal};
use rustls::{AlertDescription as Alert, CertificateError, Error, OtherError};
use std::sync::Arc;

/// The error of rustls that makes it send the alert for `code`.
pub(super) fn certificate_error(code: Code) -> CertificateError {
    match code {
        Code::CertificateRole => CertificateError::InvalidPurpose,
        Code::CertificateRevoked => CertificateError::Revoked,
        Code::CertificateExpired => CertificateError::Expired,
        Code::CertificateForeign => CertificateError::UnknownIssuer,
        Code::RevocationListStale => CertificateError::InvalidOcspResponse,
        // rustls would send certificate_expired for one that is not valid yet; this variant sends certificate_unknown.
        Code::CertificateNotYetValid => CertificateError::Other(OtherError(Arc::new(Refusal::new(code, "not valid yet")))),
        _ => CertificateError::BadEncoding,
    }
}

/// The refusal for an error of rustls that is not about the certificate that we verified.
pub(super) fn explain(error: Error) -> Refusal {
    let refusal = match &error {
        Error::AlertReceived(alert) => from_alert(*alert),
        Error::Other(OtherError(inner)) => match inner.downcast_ref::<Refusal>() {
            Some(ours) => Refusal::new(ours.code, ours.detail.clone()),
            None => Refusal::new(Code::Internal, format!("TLS failed: {inner}")),
        },
        Error::InvalidCertificate(e) => Refusal::new(Code::SignatureInvalid, format!("the other side did not prove its key: {e}")),
        Error::NoCertificatesPresented => Refusal::new(Code::CertificateProfile, "the other side showed no certificate"),
        Error::PeerIncompatible(e) => Refusal::new(Code::NothingInCommon, format!("no TLS in common: {e:?}")),
        Error::NoApplicationProtocol => Refusal::new(Code::NotSupported, "the other side does not speak chipbound/1"),
        Error::DecryptError => Refusal::new(Code::Malformed, "a TLS record does not open: it was changed on the way"),
        other => Refusal::new(Code::Malformed, format!("not the TLS that was expected: {other}")),
    };
    refusal.because(error)
}

/// What the other side means by `alert`.
fn from_alert(alert: Alert) -> Refusal {
    let (code, what) = match alert {
        Alert::BadCertificate => (Code::CertificateProfile, "our certificate is outside its profile"),
        Alert::UnsupportedCertificate => (Code::CertificateRole, "our certificate is of another role"),
        Alert::CertificateRevoked => (Code::CertificateRevoked, "our certificate was revoked"),
        Alert::CertificateExpired => (Code::CertificateExpired, "our certificate ran out"),
        Alert::CertificateUnknown => (Code::CertificateNotYetValid, "our certificate is not valid yet"),
        Alert::UnknownCA => (Code::CertificateForeign, "our certificate was not issued under the authority that it trusts"),
        Alert::BadCertificateStatusResponse => (Code::RevocationListStale, "it has no fresh revocation list for our certificate"),
        Alert::CertificateRequired => (Code::CertificateProfile, "it was shown no certificate"),
        Alert::DecryptError => (Code::SignatureInvalid, "our proof of the key does not verify, or the handshake was changed"),
        Alert::NoApplicationProtocol => (Code::NotSupported, "it does not speak chipbound/1"),
        Alert::HandshakeFailure | Alert::ProtocolVersion | Alert::InsufficientSecurity => {
            (Code::NothingInCommon, "there is no TLS in common")
        }
        Alert::BadRecordMac => (Code::Malformed, "what we sent was changed on the way"),
        _ => return Refusal::new(Code::PeerRefused, format!("the other side ended TLS: {alert:?}")),
    };
    Refusal::new(code, format!("the other side says: {what}"))
}
