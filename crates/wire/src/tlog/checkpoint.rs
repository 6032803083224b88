//! Checkpoints (C2SP tlog-checkpoint): the size and root of the log, signed by the log's key, once as a note (type 1) and once with
//! the time (tlog-cosignature, type 4).

use super::note::{Note, Signature, is_key_name};
use super::sha256;
use crate::error::{Code, Refusal, Result};
use crate::ids::{Digest, Hex, Time, TreeHash};
use crate::limits::MAX_ORIGIN;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use data_encoding::BASE64;

/// The kinds of signature, as signed-note numbers them.
const ED25519_NOTE: u8 = 1;
const ED25519_TIMED: u8 = 4;

/// The origin of the log of the server with this certified subject, under the authority with this root certificate. A server has
/// this one and no other, so that it cannot keep one log for some clients and another for the rest under two names.
#[must_use]
pub fn origin_of(root: &[u8], subject: &str) -> String {
    let mut origin = format!("chipbound-receipts/{}/", Hex(&Digest::of(root).0[..16]));
    for byte in subject.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => origin.push(char::from(byte)),
            other => origin.push_str(&format!("%{other:02X}")),
        }
    }
    origin
}

/// The public key of a log (Ed25519, RFC 8032), with the origin for which it signs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogKey {
    origin: String,
    public: [u8; 32],
}

impl LogKey {
    /// The key of the log with this origin. [`Code::Malformed`] for an origin that no key may be named by.
    pub fn new(origin: &str, public: [u8; 32]) -> Result<Self> {
        if origin.len() > MAX_ORIGIN || !is_key_name(origin) {
            return Err(Refusal::new(Code::Malformed, "not the origin of a log"));
        }
        Ok(Self { origin: origin.to_owned(), public })
    }

    /// The origin.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The verifier key of signed-note for other programs: name, key id, type and key.
    #[must_use]
    pub fn to_vkey(&self) -> String {
        let key = [[ED25519_NOTE].as_slice(), &self.public].concat();
        format!("{}+{}+{}", self.origin, Hex(&self.id(ED25519_NOTE)), BASE64.encode(&key))
    }

    fn id(&self, kind: u8) -> [u8; 4] {
        let hash = sha256(&[self.origin.as_bytes(), b"\n", &[kind], &self.public]);
        *hash.0.first_chunk().expect("a hash has more than four bytes")
    }

    /// The one signature of this key of that kind.
    fn signature<'a>(&self, note: &'a Note, kind: u8) -> Result<&'a [u8]> {
        let id = self.id(kind);
        let mut ours = note.signatures.iter().filter(|s| s.name == self.origin && s.key == id);
        match (ours.next(), ours.next()) {
            (Some(one), None) => Ok(&one.bytes),
            (Some(_), Some(_)) => Err(Refusal::new(Code::Malformed, "the log's key signed one checkpoint twice")),
            (None, _) => Err(Refusal::new(Code::LogKeyUnknown, format!("the checkpoint is not signed by the key of {}", self.origin))),
        }
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> Result<()> {
        let verified = UnparsedPublicKey::new(&ED25519, self.public).verify(message, signature);
        verified.map_err(|_| Refusal::new(Code::SignatureInvalid, "the checkpoint's signature does not verify"))
    }
}

/// How many entries the log has, and their root.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// Names the log.
    pub origin: String,
    /// Entries.
    pub size: u64,
    /// The root of their tree.
    pub root: TreeHash,
}

impl Checkpoint {
    /// The text that is signed.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64.encode(&self.root.0))
    }

    /// Reads that text; extension lines, leading zeros and other ways to write the same are [`Code::Malformed`].
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || Refusal::new(Code::Malformed, "not the text of a checkpoint");
        let lines: Vec<_> = text.split('\n').collect();
        let [origin, size, root, ""] = lines[..] else { return Err(bad()) };
        let hash = BASE64.decode(root.as_bytes()).map_err(|_| bad())?;
        let read = Self { origin: origin.to_owned(), size: size.parse().map_err(|_| bad())?, root: TreeHash::from_slice(&hash)? };
        if read.to_text() == text && !origin.is_empty() { Ok(read) } else { Err(bad()) }
    }

    /// Signs: `sign` makes Ed25519 signatures by the key `key`, whose origin is the checkpoint's. Returns the note.
    #[must_use]
    pub fn sign(&self, key: &LogKey, time: Time, sign: impl Fn(&[u8]) -> [u8; 64]) -> String {
        let text = self.to_text();
        let line = |kind, bytes| Signature { name: key.origin.clone(), key: key.id(kind), bytes };
        let plain = line(ED25519_NOTE, sign(text.as_bytes()).to_vec());
        let timed = sign(timed_message(time, &text).as_bytes());
        let timed = line(ED25519_TIMED, [time.0.to_be_bytes().as_slice(), &timed].concat());
        Note { text, signatures: vec![plain, timed] }.to_text()
    }
}

fn timed_message(time: Time, text: &str) -> String {
    format!("cosignature/v1\ntime {}\n{text}", time.0)
}

/// A checkpoint whose signatures were verified. Only [`SignedCheckpoint::verify`] makes one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedCheckpoint {
    checkpoint: Checkpoint,
    time: Time,
    note: String,
}

impl SignedCheckpoint {
    /// Verifies both signatures of `key`. Signatures of other keys are passed over, as signed-note demands.
    ///
    /// [`Code::LogKeyUnknown`] where it is another log's or not signed by `key`, [`Code::SignatureInvalid`], and
    /// [`Code::Malformed`] or [`Code::TooLarge`] where it is none.
    pub fn verify(note: &[u8], key: &LogKey) -> Result<Self> {
        let parsed = Note::parse(note)?;
        let checkpoint = Checkpoint::parse(&parsed.text)?;
        if checkpoint.origin != key.origin {
            return Err(Refusal::new(Code::LogKeyUnknown, format!("a checkpoint of {:?}, not of {:?}", checkpoint.origin, key.origin)));
        }
        key.verify(parsed.text.as_bytes(), key.signature(&parsed, ED25519_NOTE)?)?;
        let timed = key.signature(&parsed, ED25519_TIMED)?;
        let (time, signature) =
            timed.split_first_chunk::<8>().ok_or_else(|| Refusal::new(Code::Malformed, "the checkpoint's time is cut off"))?;
        let time = Time(u64::from_be_bytes(*time));
        key.verify(timed_message(time, &parsed.text).as_bytes(), signature)?;
        Ok(Self { checkpoint, time, note: parsed.to_text() })
    }

    /// When it was signed.
    #[must_use]
    pub fn time(&self) -> Time {
        self.time
    }

    /// The note that was verified.
    #[must_use]
    pub fn note(&self) -> &str {
        &self.note
    }
}

impl std::ops::Deref for SignedCheckpoint {
    type Target = Checkpoint;
    fn deref(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
