//! The server's keys: three certified ones (K's and its companions) for second path, statements and receipts, and the log's. Each is
//! replaceable alone (`rotation`).

use crate::log_key::LogSigner;
use crate::standing::load_trust;
use chipbound_host::files::{PRIVATE, PUBLIC, read, write_durably, write_new};
use chipbound_host::{FileKey, Kek, now};
use chipbound_session::tls::Identity;
use chipbound_wire::bounded::{Bytes, List, decode, encode};
use chipbound_wire::certificate::{Chain, Role};
use chipbound_wire::limits::{MAX_CERTIFICATE, MAX_CHAIN};
use chipbound_wire::tlog::origin_of;
use chipbound_wire::{Code, Refusal, Result};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// The roles of the keys, in the order of [`ServerKeys`].
pub const ROLES: [Role; 3] = [Role::ServerSecondPath, Role::ServerStatement, Role::ServerReceipt];

/// The keys and their certificates.
#[derive(Clone, Debug)]
pub struct ServerKeys {
    /// The server's end of the second path.
    pub second_path: Identity,
    /// Confirmations, terms, seals, release tokens.
    pub statement: Identity,
    /// Receipts.
    pub receipt: Identity,
    /// Checkpoints of the receipts' log.
    pub log: Arc<LogSigner>,
}

/// The keys in use now.
#[derive(Clone, Debug)]
pub struct SharedKeys(Arc<RwLock<Arc<ServerKeys>>>);

impl SharedKeys {
    /// Begins with `keys`.
    #[must_use]
    pub fn new(keys: ServerKeys) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(keys))))
    }

    /// The keys in use now.
    #[must_use]
    pub fn get(&self) -> Arc<ServerKeys> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on the key of `role` has this certificate chain.
    pub fn renewed(&self, role: Role, chain: Vec<Vec<u8>>) {
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut new = ServerKeys::clone(&keys);
        if let Some(identity) = new.get_mut(role) {
            identity.chain = chain;
        }
        *keys = Arc::new(new);
    }
}

impl ServerKeys {
    /// The key of that role, if it is one of a server's.
    #[must_use]
    pub fn get(&self, role: Role) -> Option<&Identity> {
        match role {
            Role::ServerSecondPath => Some(&self.second_path),
            Role::ServerStatement => Some(&self.statement),
            Role::ServerReceipt => Some(&self.receipt),
            Role::Processor | Role::Vendor => None,
        }
    }

    fn get_mut(&mut self, role: Role) -> Option<&mut Identity> {
        match role {
            Role::ServerSecondPath => Some(&mut self.second_path),
            Role::ServerStatement => Some(&mut self.statement),
            Role::ServerReceipt => Some(&mut self.receipt),
            Role::Processor | Role::Vendor => None,
        }
    }

    /// Reads keys and chains from the folder; makes the log's key where there is none yet. [`Code::NotEnrolled`] where a chain is
    /// missing.
    pub fn load(folder: &Path, kek: &Kek) -> Result<Self> {
        let load = |role| {
            finish_replacement(folder, role)?;
            let key = Arc::new(FileKey::load(&key_file(folder, role), kek, &context(role))?);
            Ok(Identity { key, chain: load_chain(folder, role)? })
        };
        let receipt = load(ROLES[2])?;
        let log = match LogSigner::load(folder, kek)? {
            Some(log) => log,
            None => LogSigner::create(folder, kek, &receipt, &log_origin(&receipt, folder)?, now())?,
        };
        Ok(Self { second_path: load(ROLES[0])?, statement: load(ROLES[1])?, receipt, log: Arc::new(log) })
    }
}

/// The origin of the log of the server with this receipt key, under the authority whose root is in the folder.
fn log_origin(receipt: &Identity, folder: &Path) -> Result<String> {
    let trust = load_trust(folder)?;
    let certified = trust.verify(&receipt.chain, Role::ServerReceipt, now())?;
    Ok(origin_of(trust.root(), certified.subject()))
}

/// The key that is to replace that of `role`: one that an interrupted replacement left, or a fresh one. Its file is beside the old
/// key's.
pub(crate) fn next_key(folder: &Path, kek: &Kek, role: Role) -> Result<FileKey> {
    let path = next(&key_file(folder, role));
    if path.exists() { FileKey::load(&path, kek, &context(role)) } else { FileKey::create(&path, kek, &context(role)) }
}

/// The key that [`next_key`] made has this certificate chain: from now on it is the one of `role`.
pub(crate) fn next_key_is_certified(folder: &Path, role: Role, chain: &[Vec<u8>]) -> Result<()> {
    write_durably(&next(&chain_file(folder, role)), &chain_bytes(chain)?, PUBLIC)?;
    finish_replacement(folder, role)
}

/// Puts a certified next key in the place of the old one. A crash at any point before leaves the old one, after it the rest is done
/// the next time: the next chain is there as long as something is left to do, and only when its key is.
fn finish_replacement(folder: &Path, role: Role) -> Result<()> {
    if !next(&chain_file(folder, role)).exists() {
        return Ok(());
    }
    for file in [key_file(folder, role), chain_file(folder, role)] {
        match std::fs::rename(next(&file), &file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Refusal::io(file.display(), e)),
            _ => {}
        }
    }
    std::fs::File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Refusal::io(folder.display(), e))
}

fn next(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".next");
    PathBuf::from(name)
}

/// Writes the key of a role, in PKCS#8, sealed to its file, which must not be there yet.
pub fn write_key(folder: &Path, kek: &Kek, role: Role, pkcs8: &[u8]) -> Result<()> {
    write_new(&key_file(folder, role), &kek.seal(&context(role), pkcs8), PRIVATE)
}

/// Keeps the certificate chain of a role.
pub fn store_chain(folder: &Path, role: Role, chain: &[Vec<u8>]) -> Result<()> {
    write_durably(&chain_file(folder, role), &chain_bytes(chain)?, PUBLIC)
}

fn chain_bytes(chain: &[Vec<u8>]) -> Result<Vec<u8>> {
    let certificates = chain.iter().map(|c| Bytes::<MAX_CERTIFICATE>::new(c.clone())).collect::<Result<Vec<_>>>()?;
    let chain: Chain = List::<_, MAX_CHAIN>::new(certificates)?;
    Ok(encode(&chain))
}

fn load_chain(folder: &Path, role: Role) -> Result<Vec<Vec<u8>>> {
    let path = chain_file(folder, role);
    if !path.exists() {
        return Err(Refusal::new(Code::NotEnrolled, format!("there is no certificate {}", path.display())));
    }
    let chain: Chain = decode(&read(&path, MAX_CHAIN * (MAX_CERTIFICATE + 16))?)?;
    Ok(chain.into_vec().into_iter().map(Bytes::into_vec).collect())
}

fn key_file(folder: &Path, role: Role) -> PathBuf {
    folder.join(format!("{role}.key"))
}

fn chain_file(folder: &Path, role: Role) -> PathBuf {
    folder.join(format!("{role}.chain"))
}

fn context(role: Role) -> String {
    key_file_context(role.as_str())
}

/// What a key file is sealed as, at rest.
pub(crate) fn key_file_context(name: &str) -> String {
    format!("server key {name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use chipbound_testkit::Pki;
    use chipbound_testkit::pki::Wanted;
    use chipbound_wire::signature::Sign;

    const NOW: chipbound_wire::Time = chipbound_wire::Time(1_800_000_000);

    /// A certificate chain for that key file.
    fn chain(pki: &Pki, role: Role) -> Vec<Vec<u8>> {
        pki.holder_of(&Wanted { subject: "shop".to_owned(), ..Wanted::role(role) }).chain
    }

    #[test]
    fn a_replacement_that_was_cut_off_anywhere_leaves_one_whole_pair() {
        let pki = Pki::new(NOW);
        for (stage, replaced) in [("key made", false), ("certified", true), ("key in place", true), ("done", true)] {
            let folder = tempfile::tempdir().expect("a folder");
            let folder = folder.path();
            let kek = Kek::create(&folder.join("kek")).expect("a key");
            let role = Role::ServerReceipt;
            let old = FileKey::create(&key_file(folder, role), &kek, &context(role)).expect("a key");
            let (old_chain, new_chain) = (chain(&pki, role), chain(&pki, role));
            store_chain(folder, role, &old_chain).expect("kept");
            let new = next_key(folder, &kek, role).expect("a key");
            assert_eq!(next_key(folder, &kek, role).expect("the same").spki(), new.spki(), "tried again it is the same key");
            if stage != "key made" {
                write_durably(&next(&chain_file(folder, role)), &chain_bytes(&new_chain).expect("short"), PUBLIC).expect("kept");
            }
            if stage == "key in place" {
                std::fs::rename(next(&key_file(folder, role)), key_file(folder, role)).expect("renamed");
            }
            if stage == "done" {
                finish_replacement(folder, role).expect("finished");
            }
            finish_replacement(folder, role).expect("finished");
            let key = FileKey::load(&key_file(folder, role), &kek, &context(role)).expect("a key");
            let (spki, expected) = if replaced { (new.spki(), new_chain) } else { (old.spki(), old_chain) };
            assert_eq!((key.spki(), load_chain(folder, role).expect("a chain")), (spki, expected), "{stage}");
        }
    }
}
