//! JSON Schemas of the names that travel as text, beside those that are derived where the types stand.

use crate::api::Base64;
use crate::ids::{AccountId, Currency, Digest, KeyId, OrderId, ProgramId};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::borrow::Cow;

macro_rules! text {
    ($($name:ident, $pattern:literal, $about:literal;)+) => {$(
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "description": $about })
            }
        }
    )+};
}

text! {
    Digest, "^[0-9a-fA-F]{64}$", "32 bytes in hexadecimal: a BLAKE3 digest, or a secret of that size.";
    KeyId, "^[0-9a-fA-F]{64}$", "The BLAKE3 digest of a key's SubjectPublicKeyInfo in DER, in hexadecimal.";
    OrderId, "^[0-9a-fA-F]{32}$", "An order: 16 random bytes in hexadecimal.";
    AccountId, "^[0-9a-fA-F]{32}$", "An account: 16 random bytes in hexadecimal.";
    ProgramId, "^[a-z2-7]{32}/", "A program: what its vendor's key hashes to in base32, a slash, the vendor's name for it.";
    Currency, "^[A-Z]{3}$", "A currency (ISO 4217).";
    Base64, "^[A-Za-z0-9+/]*={0,2}$", "A document, the bytes that were signed, in base64 (RFC 4648, section 4).";
}
