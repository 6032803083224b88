//! The key that signs the checkpoints of the receipts' log (Ed25519), and the statement by which the certified receipt key names it.

use aws_lc_rs::encoding::AsBigEndian;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use chipbound_host::Kek;
use chipbound_host::files::{PRIVATE, write_new};
use chipbound_session::tls::Identity;
use chipbound_wire::bounded::{Bytes, Text};
use chipbound_wire::documents::LogStatement;
use chipbound_wire::signed::read_claims;
use chipbound_wire::tlog::{Checkpoint, LogKey};
use chipbound_wire::{Code, Refusal, Result, Time, TreeHash};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// What the file is sealed as, at rest.
const CONTEXT: &str = "server key log";

/// Signs checkpoints.
pub struct LogSigner {
    pair: Ed25519KeyPair,
    key: LogKey,
    statement: Vec<u8>,
}

impl std::fmt::Debug for LogSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogSigner({})", self.key.to_vkey())
    }
}

/// Bytes of a key's seed (RFC 8032), with which its file begins; the statement follows, so that both are replaced together.
const SEED: usize = 32;

impl LogSigner {
    /// A fresh key for the log with this origin, named by the server's receipt key: the signer, and what its file holds.
    pub fn generate(receipt: &Identity, origin: &str, now: Time) -> Result<(Self, Zeroizing<Vec<u8>>)> {
        let failed = || Refusal::new(Code::Internal, "a key for the log cannot be generated");
        let pair = Ed25519KeyPair::generate().map_err(|_| failed())?;
        let key = Bytes::new(pair.public_key().as_ref().to_vec())?;
        let statement = receipt.signer().sign(&LogStatement { origin: Text::new(origin)?, key, issued_at: now })?;
        let mut file = Zeroizing::new(Vec::with_capacity(SEED + statement.len()));
        file.extend_from_slice(pair.seed().and_then(|seed| seed.as_be_bytes()).map_err(|_| failed())?.as_ref());
        file.extend_from_slice(&statement);
        Ok((Self::from_bytes(&file)?, file))
    }

    fn from_bytes(file: &[u8]) -> Result<Self> {
        let bad = || Refusal::new(Code::Unsealable, "the sealed file holds no key of a log");
        let (seed, signed) = file.split_at_checked(SEED).ok_or_else(bad)?;
        let statement: LogStatement = read_claims(signed)?;
        let pair = Ed25519KeyPair::from_seed_and_public_key(seed, &statement.key).map_err(|_| bad())?;
        let public = (*statement.key).try_into().map_err(|_| bad())?;
        Ok(Self { key: LogKey::new(&statement.origin, public)?, pair, statement: signed.to_vec() })
    }

    /// Makes the first key of a log, and its file.
    pub fn create(folder: &Path, kek: &Kek, receipt: &Identity, origin: &str, now: Time) -> Result<Self> {
        let (signer, bytes) = Self::generate(receipt, origin, now)?;
        write_new(&file(folder), &kek.seal(CONTEXT, &bytes), PRIVATE)?;
        Ok(signer)
    }

    /// Reads the key; none where the installation has no log yet.
    pub fn load(folder: &Path, kek: &Kek) -> Result<Option<Self>> {
        let path = file(folder);
        if !path.exists() {
            return Ok(None);
        }
        Self::from_bytes(&kek.load_sealed(&path, CONTEXT)?).map(Some)
    }

    /// Makes another key for the same log, and puts it in the place of this one.
    pub fn replace(&self, folder: &Path, kek: &Kek, receipt: &Identity, now: Time) -> Result<Self> {
        let (signer, bytes) = Self::generate(receipt, self.key.origin(), now)?;
        kek.store(&file(folder), CONTEXT, &bytes)?;
        Ok(signer)
    }

    /// The public key, with the log's origin.
    #[must_use]
    pub fn key(&self) -> &LogKey {
        &self.key
    }

    /// The signed statement that names the key.
    #[must_use]
    pub fn statement(&self) -> &[u8] {
        &self.statement
    }

    /// Signs the checkpoint of the log with that size and root.
    #[must_use]
    pub fn checkpoint(&self, size: u64, root: TreeHash, at: Time) -> String {
        let checkpoint = Checkpoint { origin: self.key.origin().to_owned(), size, root };
        checkpoint.sign(&self.key, at, |message| self.pair.sign(message).as_ref().try_into().expect("Ed25519 signatures have 64 bytes"))
    }
}

fn file(folder: &Path) -> PathBuf {
    folder.join("log.key")
}

#[cfg(test)]
mod tests {
    use super::*;
    use chipbound_testkit::Pki;
    use chipbound_testkit::pki::Wanted;
    use chipbound_wire::certificate::Role;
    use chipbound_wire::tlog::{SignedCheckpoint, origin_of};
    use std::sync::Arc;

    const NOW: Time = Time(1_800_000_000);

    #[test]
    fn the_logs_key_is_kept_sealed_named_by_the_receipt_key_and_replaced_with_its_statement() {
        let (pki, folder) = (Pki::new(NOW), tempfile::tempdir().expect("a folder"));
        let kek = Kek::create(&folder.path().join("kek")).expect("a key");
        let holder = pki.holder_of(&Wanted { subject: "shop".to_owned(), ..Wanted::role(Role::ServerReceipt) });
        let receipt = Identity { key: Arc::new(holder.key), chain: holder.chain };
        assert!(LogSigner::load(folder.path(), &kek).expect("nothing").is_none());
        let origin = origin_of(pki.root(), "shop");
        let made = LogSigner::create(folder.path(), &kek, &receipt, &origin, NOW).expect("a key");
        let loaded = LogSigner::load(folder.path(), &kek).expect("it opens").expect("it is there");
        let replaced = loaded.replace(folder.path(), &kek, &receipt, NOW).expect("another");
        let last = LogSigner::load(folder.path(), &kek).expect("it opens").expect("it is there");
        assert_eq!((loaded.key(), last.key()), (made.key(), replaced.key()));
        assert_ne!(made.key(), replaced.key());
        for signer in [&loaded, &last] {
            let named = LogKey::of_statement(signer.statement(), &pki.trust()).expect("the receipt key names it");
            let note = signer.checkpoint(5, TreeHash([1; 32]), NOW);
            assert_eq!(SignedCheckpoint::verify(note.as_bytes(), &named).expect("signed by it").size, 5);
        }
        let (_, bytes) = LogSigner::generate(&receipt, &origin, NOW).expect("a key");
        assert_eq!(LogSigner::from_bytes(&bytes[..SEED - 1]).expect_err("cut").code, Code::Unsealable);
        let mixed = [&bytes[..SEED], last.statement()].concat();
        assert_eq!(LogSigner::from_bytes(&mixed).expect_err("another's statement").code, Code::Unsealable);
    }
}
