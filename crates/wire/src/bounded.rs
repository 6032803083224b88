//! Byte strings, texts and lists whose greatest length is part of their type, so that no decoder can forget it.

use crate::error::{Code, Refusal, Result};
use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};
use minicbor::{Decode, Encode};

/// A byte string of at most `MAX` bytes.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Bytes<const MAX: usize>(Vec<u8>);

impl<const MAX: usize> Bytes<MAX> {
    /// Takes the bytes, refusing more than `MAX` with [`Code::TooLarge`].
    pub fn new(bytes: Vec<u8>) -> Result<Self> {
        if bytes.len() > MAX {
            return Err(Refusal::new(Code::TooLarge, format!("{} bytes where {MAX} are allowed", bytes.len())));
        }
        Ok(Self(bytes))
    }

    /// The bytes, given away.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

impl<const MAX: usize> std::ops::Deref for Bytes<MAX> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<const MAX: usize> AsRef<[u8]> for Bytes<MAX> {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl<const MAX: usize> std::fmt::Debug for Bytes<MAX> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl<C, const MAX: usize> Encode<C> for Bytes<MAX> {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> std::result::Result<(), EncodeError<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C, const MAX: usize> Decode<'b, C> for Bytes<MAX> {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> std::result::Result<Self, DecodeError> {
        let bytes = d.bytes()?;
        if bytes.len() > MAX {
            return Err(DecodeError::message("byte string longer than its limit"));
        }
        Ok(Self(bytes.to_vec()))
    }
}

/// A UTF-8 text of at most `MAX` bytes without control characters.
#[derive(Clone, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// Takes the text, refusing more than `MAX` bytes ([`Code::TooLarge`]) and control characters ([`Code::Malformed`]).
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        if text.len() > MAX {
            return Err(Refusal::new(Code::TooLarge, format!("a text of {} bytes where {MAX} are allowed", text.len())));
        }
        if text.chars().any(char::is_control) {
            return Err(Refusal::new(Code::Malformed, "a text holds control characters"));
        }
        Ok(Self(text))
    }

    /// Takes as much of the text as fits, control characters replaced by spaces; for details of errors.
    #[must_use]
    pub fn cut(text: &str) -> Self {
        let mut out: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        while out.len() > MAX {
            out.pop();
        }
        Self(out)
    }
}

impl<const MAX: usize> std::ops::Deref for Text<MAX> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> std::fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl<const MAX: usize> std::fmt::Debug for Text<MAX> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl<C, const MAX: usize> Encode<C> for Text<MAX> {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> std::result::Result<(), EncodeError<W::Error>> {
        e.str(&self.0)?.ok()
    }
}

impl<'b, C, const MAX: usize> Decode<'b, C> for Text<MAX> {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> std::result::Result<Self, DecodeError> {
        Self::new(d.str()?).map_err(|_| DecodeError::message("text too long or with control characters"))
    }
}

/// A list of at most `MAX` items, in the order sent.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct List<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> List<T, MAX> {
    /// Takes the items, refusing more than `MAX` with [`Code::TooLarge`].
    pub fn new(items: Vec<T>) -> Result<Self> {
        if items.len() > MAX {
            return Err(Refusal::new(Code::TooLarge, format!("{} items where {MAX} are allowed", items.len())));
        }
        Ok(Self(items))
    }

    /// The items, given away.
    #[must_use]
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }
}

impl<T, const MAX: usize> std::ops::Deref for List<T, MAX> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<C, T: Encode<C>, const MAX: usize> Encode<C> for List<T, MAX> {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, c: &mut C) -> std::result::Result<(), EncodeError<W::Error>> {
        e.array(self.0.len() as u64)?;
        for item in &self.0 {
            item.encode(e, c)?;
        }
        Ok(())
    }
}

impl<'b, C, T: Decode<'b, C>, const MAX: usize> Decode<'b, C> for List<T, MAX> {
    fn decode(d: &mut Decoder<'b>, c: &mut C) -> std::result::Result<Self, DecodeError> {
        let count = d.array()?.ok_or_else(|| DecodeError::message("list of indefinite length"))?;
        if count > MAX as u64 {
            return Err(DecodeError::message("list longer than its limit"));
        }
        (0..count).map(|_| T::decode(d, c)).collect::<std::result::Result<Vec<T>, _>>().map(Self)
    }
}

/// Encodes a value of this crate. Writing to memory cannot fail.
#[must_use]
pub fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("encoding to memory does not fail")
}

/// Decodes one value that must fill `bytes` to the last one; [`Code::Malformed`] otherwise.
pub fn decode<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T> {
    let mut decoder = Decoder::new(bytes);
    let value: T = decoder.decode().map_err(|e| Refusal::new(Code::Malformed, format!("not the CBOR that was expected: {e}")))?;
    if decoder.position() != bytes.len() {
        return Err(Refusal::new(Code::Malformed, "bytes follow the end of the value"));
    }
    Ok(value)
}
