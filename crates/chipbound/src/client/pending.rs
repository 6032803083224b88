//! A purchase under way: the idempotency key lies on the disk before the order is placed, so that whoever is interrupted goes
//! on with the same order (design §8 laws 1 and 2).

use crate::home::{Home, json, parse, remove};
use chipbound_host::files::write_durably;
use chipbound_host::process::now;
use chipbound_wire::api::Release;
use chipbound_wire::random::fresh;
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Amount, Code, Digest, Hex, KeyId, Refusal, Result, SystemRandom, Time};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The same purchase is recognised by this.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Purpose {
    /// The server.
    pub server: String,
    /// The user id.
    pub user: String,
    /// The program as the user named it.
    pub program: String,
    /// The version, if one was named.
    pub version: Option<String>,
    /// The key mode, if one was named.
    pub key_mode: Option<KeyMode>,
    /// The processor.
    pub processor: KeyId,
}

/// What is kept of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    purpose: Purpose,
    idempotency_key: String,
    #[serde(with = "any_path")]
    target: PathBuf,
    expected_price: Option<Amount>,
    #[serde(default)]
    expected_size: u64,
    begun_at: Time,
}

/// A path in JSON: a text, or its bytes where they are none.
mod any_path {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(PathBuf),
        Bytes(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => text.serialize(to),
            None => path.as_os_str().as_bytes().serialize(to),
        }
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<PathBuf, D::Error> {
        Form::deserialize(from).map(|form| match form {
            Form::Text(path) => path,
            Form::Bytes(bytes) => OsString::from_vec(bytes).into(),
        })
    }
}

/// A purchase that this process works at, and no other at the same time.
#[derive(Debug)]
pub struct Pending {
    /// Places the order once.
    pub idempotency_key: String,
    /// Where the package goes, absolute.
    pub target: PathBuf,
    /// The price that the catalogue named when the purchase began.
    pub expected_price: Option<Amount>,
    /// The size that the catalogue named, in bytes; 0 where it named none.
    pub expected_size: u64,
    /// Whether an earlier run began it.
    pub resumed: bool,
    path: PathBuf,
    _lock: File,
}

impl Pending {
    /// Takes up the purchase that an earlier run began, if one did.
    /// [`Code::Busy`] when another process is at it.
    pub fn resume(home: &Home, purpose: &Purpose) -> Result<Option<Self>> {
        let path = path_of(home, purpose)?;
        Self::lock(&path, true)
    }

    /// Begins a purchase of what the catalogue says: its new key is on the disk when this returns.
    pub fn begin(home: &Home, purpose: Purpose, target: PathBuf, expected: Option<&Release>) -> Result<Self> {
        let path = path_of(home, &purpose)?;
        let key: [u8; 16] = fresh(&mut SystemRandom);
        let target = std::path::absolute(&target).map_err(|e| Refusal::io(target.display(), e))?;
        let kept = Kept {
            purpose,
            idempotency_key: Hex(&key).to_string(),
            target,
            expected_price: expected.map(|r| r.price),
            expected_size: expected.map_or(0, |r| r.size),
            begun_at: now(),
        };
        write_durably(&path, &json(&kept), 0o600)?;
        Self::lock(&path, false)?.ok_or_else(busy)
    }

    /// The purchase came to its end, or never began.
    pub fn done(self) -> Result<()> {
        remove(&self.path)
    }

    fn lock(path: &Path, resumed: bool) -> Result<Option<Self>> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Refusal::io(path.display(), e)),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(busy()),
            Err(e) => return Err(Refusal::io(path.display(), e.into())),
        }
        // Whoever held the lock may have ended the purchase, or another may have begun anew, while this waited for nobody.
        let opened = file.metadata().map_err(|e| Refusal::io(path.display(), e))?;
        match std::fs::metadata(path) {
            Ok(there) if there.ino() == opened.ino() => {}
            Ok(_) => return Err(busy()),
            Err(_) => return Ok(None),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| Refusal::io(path.display(), e))?;
        let kept: Kept = parse(path, &bytes)?;
        Ok(Some(Self {
            idempotency_key: kept.idempotency_key,
            target: kept.target,
            expected_price: kept.expected_price,
            expected_size: kept.expected_size,
            resumed,
            path: path.to_owned(),
            _lock: file,
        }))
    }
}

fn busy() -> Refusal {
    Refusal::new(Code::Busy, "another chipbound of yours is at the same purchase")
}

fn path_of(home: &Home, purpose: &Purpose) -> Result<PathBuf> {
    let name = Digest::of(&json(purpose));
    Ok(home.pending()?.join(format!("{}.json", Hex(&name.0[..16]))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purpose(program: &str) -> Purpose {
        Purpose {
            server: "https://127.0.0.1:1".into(),
            user: "ada".into(),
            program: program.into(),
            version: None,
            key_mode: None,
            processor: KeyId([7; 32]),
        }
    }

    #[test]
    fn an_interrupted_purchase_goes_on_with_its_first_key_and_a_finished_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(&folder.path().join("home"))).unwrap();
        assert!(Pending::resume(&home, &purpose("tool")).unwrap().is_none());
        let begun = Pending::begin(&home, purpose("tool"), "tool".into(), None).unwrap();
        let key = begun.idempotency_key.clone();
        assert_eq!(Pending::resume(&home, &purpose("tool")).unwrap_err().code, Code::Busy, "the first still works at it");
        drop(begun); // The process ends.
        let again = Pending::resume(&home, &purpose("tool")).unwrap().unwrap();
        assert_eq!((again.idempotency_key.as_str(), again.resumed), (key.as_str(), true));
        assert!(Pending::resume(&home, &purpose("other")).unwrap().is_none());
        again.done().unwrap();
        assert!(Pending::resume(&home, &purpose("tool")).unwrap().is_none());
    }
}
