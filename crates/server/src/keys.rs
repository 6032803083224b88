//! The server's three certified keys (K's and its companions): second path, statements, receipts. Each is replaceable alone.

use chipbound_host::files::{PRIVATE, PUBLIC, read, write_durably, write_new};
use chipbound_host::{FileKey, Kek};
use chipbound_session::tls::Identity;
use chipbound_wire::bounded::{Bytes, List, decode, encode};
use chipbound_wire::certificate::{Chain, Role};
use chipbound_wire::limits::{MAX_CERTIFICATE, MAX_CHAIN};
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

    /// Reads keys and chains from the folder; [`Code::NotEnrolled`] where a chain is missing.
    pub fn load(folder: &Path, kek: &Kek) -> Result<Self> {
        let load = |role| {
            let key = Arc::new(FileKey::load(&key_file(folder, role), kek, &context(role))?);
            Ok(Identity { key, chain: load_chain(folder, role)? })
        };
        Ok(Self { second_path: load(ROLES[0])?, statement: load(ROLES[1])?, receipt: load(ROLES[2])? })
    }
}

/// Writes the key of a role, in PKCS#8, sealed to its file, which must not be there yet.
pub fn write_key(folder: &Path, kek: &Kek, role: Role, pkcs8: &[u8]) -> Result<()> {
    write_new(&key_file(folder, role), &kek.seal(&context(role), pkcs8), PRIVATE)
}

/// Keeps the certificate chain of a role.
pub fn store_chain(folder: &Path, role: Role, chain: &[Vec<u8>]) -> Result<()> {
    let certificates = chain.iter().map(|c| Bytes::<MAX_CERTIFICATE>::new(c.clone())).collect::<Result<Vec<_>>>()?;
    let chain: Chain = List::<_, MAX_CHAIN>::new(certificates)?;
    write_durably(&chain_file(folder, role), &encode(&chain), PUBLIC)
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
