//! Names of things: digests, keys, orders, programs, accounts, money and time.

use crate::error::{Code, Refusal, Result};
use crate::limits::MAX_NAME;
use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Shows bytes as lower-case hexadecimal.
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

macro_rules! fixed_bytes {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Takes exactly the right number of bytes; anything else is malformed.
            pub fn from_slice(bytes: &[u8]) -> Result<Self> {
                bytes.try_into().map(Self).map_err(|_| Refusal::new(Code::Malformed, concat!("not ", $what)))
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&Hex(&self.0), f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&Hex(&self.0), f)
            }
        }

        impl FromStr for $name {
            type Err = Refusal;
            fn from_str(text: &str) -> Result<Self> {
                let bytes = data_encoding::HEXLOWER_PERMISSIVE
                    .decode(text.as_bytes())
                    .map_err(|_| Refusal::new(Code::Malformed, concat!("not ", $what, " in hexadecimal")))?;
                Self::from_slice(&bytes)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> std::result::Result<(), EncodeError<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> std::result::Result<Self, DecodeError> {
                Self::from_slice(d.bytes()?).map_err(|_| DecodeError::message(concat!("not ", $what)))
            }
        }
    };
}

fixed_bytes!(
    /// A BLAKE3 digest, 32 bytes.
    Digest, 32, "a digest of 32 bytes"
);
fixed_bytes!(
    /// The name of a key: the BLAKE3 digest of its SubjectPublicKeyInfo in DER. Never a name that its holder chose.
    KeyId, 32, "a key id of 32 bytes"
);
fixed_bytes!(
    /// A hash of the receipts' log: SHA-256, as RFC 9162 and C2SP have it; everything else here is BLAKE3.
    TreeHash, 32, "a hash of 32 bytes"
);
fixed_bytes!(
    /// The name of an order, 16 random bytes.
    OrderId, 16, "an order id of 16 bytes"
);
fixed_bytes!(
    /// The name of an account, 16 random bytes; the user id that people type is not repeated in documents.
    AccountId, 16, "an account id of 16 bytes"
);

impl Digest {
    /// The BLAKE3 digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl KeyId {
    /// The id of the key with this SubjectPublicKeyInfo (DER).
    #[must_use]
    pub fn of_spki(spki: &[u8]) -> Self {
        Self(*blake3::hash(spki).as_bytes())
    }
}

/// The name of a program: the first 20 bytes of its vendor's key id in base32 (32 characters), a slash, and the
/// vendor's own name for it. Two vendors can therefore never claim the same id.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProgramId(String);

impl ProgramId {
    /// Bytes of the vendor's key id that go into the name (160 bits: no second vendor finds the same).
    const VENDOR_BYTES: usize = 20;

    /// The id of the vendor's program `name`: 1 to 64 characters of `a-z 0-9 . _ + -`, not starting with a dot.
    pub fn new(vendor: &KeyId, name: &str) -> Result<Self> {
        Self::check_name(name)?;
        Ok(Self(format!("{}/{name}", Self::vendor_text(vendor))))
    }

    fn vendor_text(vendor: &KeyId) -> String {
        data_encoding::BASE32_NOPAD.encode(&vendor.0[..Self::VENDOR_BYTES]).to_lowercase()
    }

    fn check_name(name: &str) -> Result<()> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._+-".contains(c);
        if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(allowed) {
            return Err(Refusal::new(
                Code::Malformed,
                format!("program name {name:?} is not 1 to 64 characters of a-z 0-9 . _ + - starting with no dot"),
            ));
        }
        Ok(())
    }

    /// Whether this program belongs to the vendor with that key.
    #[must_use]
    pub fn is_of(&self, vendor: &KeyId) -> bool {
        self.0.split_once('/').is_some_and(|(v, _)| v == Self::vendor_text(vendor))
    }

    /// Whether both programs are of one vendor.
    #[must_use]
    pub fn is_of_vendor_of(&self, other: &Self) -> bool {
        let vendor = |id: &Self| id.0.split_once('/').map(|(vendor, _)| vendor.to_owned());
        vendor(self) == vendor(other)
    }

    /// The vendor's own name for the program, the part after the slash.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }

    /// The whole id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ProgramId {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Refusal::new(Code::Malformed, "not a program id (32 base32 characters, a slash, a name)");
        if text.len() > MAX_NAME {
            return Err(bad());
        }
        let (vendor, name) = text.split_once('/').ok_or_else(bad)?;
        let base32 = |c: char| c.is_ascii_lowercase() || ('2'..='7').contains(&c);
        if vendor.len() != 32 || !vendor.chars().all(base32) {
            return Err(bad());
        }
        Self::check_name(name)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ProgramId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ProgramId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for ProgramId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ProgramId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<C> Encode<C> for ProgramId {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> std::result::Result<(), EncodeError<W::Error>> {
        e.str(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for ProgramId {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> std::result::Result<Self, DecodeError> {
        d.str()?.parse().map_err(|_| DecodeError::message("not a program id"))
    }
}

/// Seconds since 1970-01-01 00:00:00 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Encode, Decode, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cbor(transparent)]
#[serde(transparent)]
pub struct Time(#[n(0)] pub u64);

impl Time {
    /// The time `seconds` later, at most the last representable one.
    #[must_use]
    pub fn after(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }
}

/// An ISO 4217 currency code, three capital letters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency([u8; 3]);

impl Currency {
    /// The code as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("???")
    }

    /// How many decimal digits the minor unit has (ISO 4217).
    #[must_use]
    pub fn digits(self) -> u32 {
        match &self.0 {
            b"BIF" | b"CLP" | b"DJF" | b"GNF" | b"ISK" | b"JPY" | b"KMF" | b"KRW" | b"PYG" | b"RWF" | b"UGX" | b"VND" | b"VUV" | b"XAF"
            | b"XOF" | b"XPF" => 0,
            b"BHD" | b"IQD" | b"JOD" | b"KWD" | b"LYD" | b"OMR" | b"TND" => 3,
            _ => 2,
        }
    }
}

impl FromStr for Currency {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self> {
        match <[u8; 3]>::try_from(text.as_bytes()) {
            Ok(code) if code.iter().all(u8::is_ascii_uppercase) => Ok(Self(code)),
            _ => Err(Refusal::new(Code::Malformed, format!("{text:?} is not a currency code of three capital letters"))),
        }
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Currency {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<C> Encode<C> for Currency {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> std::result::Result<(), EncodeError<W::Error>> {
        e.str(self.as_str())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Currency {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> std::result::Result<Self, DecodeError> {
        d.str()?.parse().map_err(|_| DecodeError::message("not a currency code"))
    }
}

/// An amount of money in minor units (cents) of one currency. Its text form is `12.50 EUR`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Encode, Decode, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cbor(array)]
pub struct Amount {
    /// Minor units; at most [`Amount::MAX_MINOR`].
    #[n(0)]
    pub minor: u64,
    /// The currency.
    #[n(1)]
    pub currency: Currency,
}

impl Amount {
    /// The greatest amount: 2^53 - 1, so that JSON readers agree on it.
    pub const MAX_MINOR: u64 = (1 << 53) - 1;
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.currency.digits();
        if digits == 0 {
            return write!(f, "{} {}", self.minor, self.currency);
        }
        let unit = 10u64.pow(digits);
        write!(f, "{}.{:0width$} {}", self.minor / unit, self.minor % unit, self.currency, width = digits as usize)
    }
}

impl FromStr for Amount {
    type Err = Refusal;
    /// Reads `12.50 EUR`, `12.5EUR`, `12 EUR`. More decimals than the currency has are refused, never rounded.
    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Refusal::new(Code::Malformed, format!("{text:?} is not an amount such as \"12.50 EUR\": {why}"));
        let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(|| bad("the currency is missing"))?;
        let currency: Currency = text[split..].parse()?;
        let digits = currency.digits() as usize;
        let number = text[..split].trim();
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || !whole.chars().chain(fraction.chars()).all(|c| c.is_ascii_digit()) {
            return Err(bad("digits and at most one point are expected before the currency"));
        }
        if fraction.len() > digits {
            return Err(bad("more decimals than the currency has"));
        }
        let minor = format!("{whole}{fraction:0<digits$}").parse().map_err(|_| bad("too large"))?;
        if minor > Self::MAX_MINOR {
            return Err(bad("too large"));
        }
        Ok(Self { minor, currency })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_exactly_and_never_rounded() {
        for (text, minor) in [("12.50 EUR", 1250), ("12.5EUR", 1250), ("12 EUR", 1200), ("7 JPY", 7), ("0.001 KWD", 1)] {
            let amount: Amount = text.parse().expect(text);
            assert_eq!(amount.minor, minor, "{text}");
            assert_eq!(amount.to_string().parse::<Amount>().expect("its own text"), amount);
        }
        for text in ["12.505 EUR", "1.5 JPY", "EUR", "-1 EUR", "1e3 EUR", "12,50 EUR", "99999999999999999999 EUR", "1 eur", "12.50"] {
            assert_eq!(text.parse::<Amount>().expect_err(text).code, Code::Malformed, "{text}");
        }
    }

    #[test]
    fn a_program_id_begins_with_the_hash_of_its_vendors_key() {
        let vendor = KeyId::of_spki(b"a key");
        let id = ProgramId::new(&vendor, "tool").expect("a good name");
        assert!(id.is_of(&vendor) && !id.is_of(&KeyId::of_spki(b"another key")));
        assert_eq!(id.to_string().parse::<ProgramId>().expect("its own text"), id);
        for name in ["", ".x", "A", "a/b", "a b", "..", &"x".repeat(65)] {
            assert!(ProgramId::new(&vendor, name).is_err(), "{name:?}");
        }
    }
}
