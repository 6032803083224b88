//! Enrolment and renewal at the authority (source \[33\]-\[35\]): two requests over its HTTPS, bodies in CBOR.
//!
//! `POST /v1/enrolments` with [`Begin`] answers [`Challenges`]: one for each sealing key. `POST /v1/enrolments/finish` with
//! [`Finish`] answers [`Issued`]. The signing request is the proof of possession of the identity key, the answers are the
//! proof of possession of the sealing keys. `GET /v1/revocations` answers the current revocation list in DER.

use crate::bounded::{Bytes, List, Text};
use crate::certificate::{Chain, Role, SealingKey};
use crate::documents::Wrap;
use crate::error::{Code, Refusal, Result};
use crate::ids::Digest;
use crate::limits::{MAX_CERTIFICATE, MAX_CHOICES, MAX_NAME, MAX_REVOCATION_LIST};
use crate::suite::Class;
use minicbor::{Decode, Encode};
use std::fmt;
use std::str::FromStr;
use zeroize::ZeroizeOnDrop;

/// Media type of every body here.
pub const CONTENT_TYPE: &str = "application/cbor";

/// Starts an enrolment or a renewal.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Begin {
    /// Why it may.
    #[n(0)]
    pub authorisation: Authorisation,
    /// The role that is asked for; a voucher and a certificate each allow certain roles only.
    #[n(1)]
    pub role: Role,
    /// The class of key store, for a processor.
    #[n(2)]
    pub class: Option<Class>,
    /// PKCS#10 (RFC 2986) in DER, signed by the key to be certified; its subject is ignored.
    #[n(3)]
    pub request: Bytes<MAX_CERTIFICATE>,
    /// The sealing keys to be certified, for a processor.
    #[n(4)]
    pub sealing_keys: List<SealingKey, MAX_CHOICES>,
}

/// Why somebody may be certified.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Authorisation {
    /// The 16 secret bytes of a one-use voucher.
    #[n(0)]
    Voucher(#[n(0)] Bytes<16>),
    /// A certificate that is still valid, for the same role. `proof` is a signature (r ‖ s, 64 bytes) by its key over
    /// [`renewal_message`] of the request.
    #[n(1)]
    Renewal {
        /// The chain to be renewed.
        #[n(0)]
        chain: Chain,
        /// The signature.
        #[n(1)]
        proof: Bytes<64>,
    },
}

/// What the holder of a certificate signs to have it renewed.
#[must_use]
pub fn renewal_message(request: &[u8]) -> Vec<u8> {
    [b"chipbound/1 renewal".as_slice(), Digest::of(request).as_ref()].concat()
}

/// Challenges for the sealing keys; none for a role without them.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Challenges {
    /// Names the enrolment in [`Finish`], 16 random bytes.
    #[n(0)]
    pub session: Bytes<16>,
    /// 32 random bytes sealed to each sealing key in the order of [`Begin`] (HPKE base mode, info `chipbound/1 possession`,
    /// AAD the session).
    #[n(1)]
    pub challenges: List<Wrap, MAX_CHOICES>,
}

/// The answers.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Finish {
    /// From [`Challenges`].
    #[n(0)]
    pub session: Bytes<16>,
    /// The opened challenges, in order.
    #[n(1)]
    pub answers: List<Bytes<32>, MAX_CHOICES>,
}

/// What was issued.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Issued {
    /// The new chain, leaf first, root left out.
    #[n(0)]
    pub chain: Chain,
    /// The root certificate.
    #[n(1)]
    pub root: Bytes<MAX_CERTIFICATE>,
    /// The current revocation list.
    #[n(2)]
    pub revocations: Bytes<MAX_REVOCATION_LIST>,
}

/// A one-use right to be certified, as its text travels from the authority's operator to whoever enrolls:
/// `cbv1-` and base32 of the secret (16 bytes) and the digest of the root certificate (32 bytes), so that the enrolling side
/// knows the right authority without another file.
#[derive(Clone, ZeroizeOnDrop)]
pub struct Voucher {
    /// The secret; the authority keeps only its digest.
    pub secret: [u8; 16],
    /// BLAKE3 of the authority's root certificate in DER.
    #[zeroize(skip)]
    pub root: Digest,
}

impl Voucher {
    const PREFIX: &'static str = "cbv1-";

    /// The text that is handed over. A secret.
    #[must_use]
    pub fn to_text(&self) -> String {
        let bytes = [self.secret.as_slice(), &self.root.0].concat();
        format!("{}{}", Self::PREFIX, data_encoding::BASE32_NOPAD.encode(&bytes).to_lowercase())
    }
}

impl fmt::Debug for Voucher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Voucher(secret, root {})", self.root)
    }
}

impl FromStr for Voucher {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Refusal::new(Code::VoucherInvalid, "not a voucher: it begins with cbv1- and has 82 characters");
        let rest = text.trim().strip_prefix(Self::PREFIX).ok_or_else(bad)?;
        let bytes = data_encoding::BASE32_NOPAD.decode(rest.to_uppercase().as_bytes()).map_err(|_| bad())?;
        let (secret, root) = bytes.split_first_chunk::<16>().ok_or_else(bad)?;
        Ok(Self { secret: *secret, root: Digest::from_slice(root).map_err(|_| bad())? })
    }
}

/// The text that an operator gives to a certificate's subject: 1 to [`MAX_NAME`] bytes.
pub type Subject = Text<MAX_NAME>;
