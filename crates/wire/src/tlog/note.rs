//! Signed notes (C2SP signed-note): a text, an empty line, and signature lines.

use crate::error::{Code, Refusal, Result};
use crate::limits::MAX_NOTE;
use data_encoding::BASE64;

/// Signature lines of one note.
const MAX_SIGNATURES: usize = 32;

/// A note taken apart, nothing verified yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// The text that is signed, with its last newline.
    pub text: String,
    /// The signatures in their order.
    pub signatures: Vec<Signature>,
}

/// One signature line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signature {
    /// The name of the key.
    pub name: String,
    /// The first four bytes: which key of that name.
    pub key: [u8; 4],
    /// What follows them.
    pub bytes: Vec<u8>,
}

impl Note {
    /// Takes a note apart. [`Code::TooLarge`] beyond [`MAX_NOTE`] bytes or 32 signatures; [`Code::Malformed`] for anything
    /// that [`Self::to_text`] would write in another way.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_NOTE {
            return Err(Refusal::new(Code::TooLarge, "the note is larger than its limit"));
        }
        let bad = |why: &str| Refusal::new(Code::Malformed, format!("not a signed note: {why}"));
        let note = std::str::from_utf8(bytes).map_err(|_| bad("it is no text"))?;
        if note.chars().any(|c| c < ' ' && c != '\n') {
            return Err(bad("it holds control characters"));
        }
        let (text, lines) = note.rsplit_once("\n\n").ok_or_else(|| bad("it has no signatures"))?;
        let lines = lines.strip_suffix('\n').ok_or_else(|| bad("its last line does not end"))?;
        let signatures = lines.split('\n').map(Signature::parse).collect::<Option<Vec<_>>>();
        let signatures = signatures.ok_or_else(|| bad("a signature line is not one"))?;
        if signatures.len() > MAX_SIGNATURES {
            return Err(Refusal::new(Code::TooLarge, "the note has more signatures than the limit"));
        }
        Ok(Self { text: format!("{text}\n"), signatures })
    }

    /// The note as it travels.
    #[must_use]
    pub fn to_text(&self) -> String {
        let lines: String = self.signatures.iter().map(Signature::to_line).collect();
        format!("{}\n{lines}", self.text)
    }
}

impl Signature {
    fn parse(line: &str) -> Option<Self> {
        let (name, signature) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
        let bytes = BASE64.decode(signature.as_bytes()).ok()?;
        let (key, bytes) = bytes.split_first_chunk()?;
        (is_key_name(name) && !bytes.is_empty()).then(|| Self { name: name.to_owned(), key: *key, bytes: bytes.to_vec() })
    }

    fn to_line(&self) -> String {
        let bytes = [self.key.as_slice(), &self.bytes].concat();
        format!("\u{2014} {} {}\n", self.name, BASE64.encode(&bytes))
    }
}

/// Whether a key may have this name: not empty, no white space, no plus sign, no control character.
pub(super) fn is_key_name(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+')
}
