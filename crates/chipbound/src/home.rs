//! What the command keeps between two runs: the log-in, receipts, purchases that are under way, the authorities it met.
//!
//! | file | what |
//! |---|---|
//! | `session.json`, 0600 | server, user, bearer token, TLS root |
//! | `processor` | the path of the processor's socket, as `processor enroll` last used it |
//! | `receipts/ORDER.receipt` | signed receipts |
//! | `receipts/ORDER.transfer` | the server's signed word that the order is for another processor |
//! | `receipts/ORDER.tlog-proof` | the proof that the receipt is in its server's log |
//! | `logs/DIGEST.tlog-proof` | for each server's log the proof with the largest checkpoint that was seen |
//! | `logs/evidence/` | two checkpoints of one log that do not fit together, by their own digests |
//! | `authorities/DIGEST.der` | root certificates under which receipts were verified |
//! | `pending/NAME.json` | one purchase under way: its idempotency key, written before the order is placed |

use chipbound_host::files::{create_private_folder, read_private, write_durably};
use chipbound_transport::ServerTrust;
use chipbound_wire::limits::{MAX_DOCUMENT, MAX_PROOF_FILE};
use chipbound_wire::{Code, Digest, OrderId, Refusal, Result, Time};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use zeroize::ZeroizeOnDrop;

/// Where the processor listens that was set up for the whole machine.
pub const SYSTEM_SOCKET: &str = "/run/chipbound/processor.sock";

/// How the files of proofs end, as C2SP tlog-proof has it.
pub(crate) const PROOF: &str = "tlog-proof";

/// Bytes of the file of a log-in, its TLS root included.
const MAX_SESSION: usize = 64 * 1024;

/// The folder, and what lies in it.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

/// A log-in at one server.
#[derive(Serialize, Deserialize, ZeroizeOnDrop)]
pub struct Session {
    /// `https://host:port`.
    #[zeroize(skip)]
    pub server: String,
    /// The user id.
    #[zeroize(skip)]
    pub user: String,
    /// The bearer token. A secret.
    pub token: String,
    /// Until when the token counts; none for an API token, whose end the server knows.
    #[zeroize(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// The server's private TLS root in PEM; the public roots without one.
    #[zeroize(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_root: Option<String>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({} at {})", self.user, self.server)
    }
}

impl Session {
    /// Whom the client takes for this server.
    pub fn trust(&self) -> Result<ServerTrust> {
        self.tls_root.as_ref().map_or(Ok(ServerTrust::WebPki), |pem| ServerTrust::root_from_pem(pem.as_bytes()))
    }
}

impl Home {
    /// The folder as told, else `$CHIPBOUND_HOME`, else `chipbound` in the user's configuration folder.
    pub fn locate(told: Option<&Path>) -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        told.map(Path::to_owned)
            .or_else(|| variable("CHIPBOUND_HOME"))
            .or_else(|| variable("XDG_CONFIG_HOME").map(|c| c.join("chipbound")))
            .or_else(|| variable("HOME").map(|h| h.join(".config/chipbound")))
            .map(Self)
            .ok_or_else(|| Refusal::new(Code::ConfigInvalid, "there is no $HOME: name the folder with --home or $CHIPBOUND_HOME"))
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The log-in; [`Code::Unauthenticated`] when there is none.
    pub fn session(&self) -> Result<Session> {
        self.session_if_any()?.ok_or_else(|| Refusal::new(Code::Unauthenticated, "nobody is logged in here"))
    }

    /// The log-in, if any.
    pub fn session_if_any(&self) -> Result<Option<Session>> {
        let path = self.0.join("session.json");
        if !path.try_exists().map_err(|e| Refusal::io(path.display(), e))? {
            return Ok(None);
        }
        let bytes = read_private(&path, MAX_SESSION)?;
        parse(&path, &bytes).map(Some)
    }

    /// Keeps a log-in.
    pub fn store_session(&self, session: &Session) -> Result<()> {
        self.ready()?;
        write_durably(&self.0.join("session.json"), &zeroize::Zeroizing::new(json(session)), 0o600)
    }

    /// Forgets the log-in.
    pub fn forget_session(&self) -> Result<()> {
        remove(&self.0.join("session.json"))
    }

    /// The processor's socket: as told, else `$CHIPBOUND_PROCESSOR`, else the one last enrolled, else the system's.
    #[must_use]
    pub fn processor(&self, told: Option<&Path>) -> PathBuf {
        let enrolled = || std::fs::read(self.0.join("processor")).ok().map(OsString::from_vec);
        told.map(Path::to_owned)
            .or_else(|| std::env::var_os("CHIPBOUND_PROCESSOR").filter(|v| !v.is_empty()).map(PathBuf::from))
            .or_else(|| enrolled().map(PathBuf::from))
            .unwrap_or_else(|| PathBuf::from(SYSTEM_SOCKET))
    }

    /// Remembers the processor's socket for the next commands.
    pub fn remember_processor(&self, socket: &Path) -> Result<()> {
        let whole = std::path::absolute(socket).map_err(|e| Refusal::io(socket.display(), e))?;
        self.ready()?;
        write_durably(&self.0.join("processor"), whole.as_os_str().as_encoded_bytes(), 0o600)
    }

    /// Where the receipt of an order lies.
    #[must_use]
    pub fn receipt_path(&self, order: &OrderId) -> PathBuf {
        self.0.join("receipts").join(format!("{order}.receipt"))
    }

    /// Where the proof lies that the receipt of an order is in its server's log.
    #[must_use]
    pub fn proof_path(&self, order: &OrderId) -> PathBuf {
        self.0.join("receipts").join(format!("{order}.{PROOF}"))
    }

    /// Stores the proof that the receipt of an order is in its server's log.
    pub fn store_proof(&self, order: &OrderId, proof: &str) -> Result<()> {
        self.ready()?;
        create_private_folder(&self.0.join("receipts"))?;
        write_durably(&self.proof_path(order), proof.as_bytes(), 0o600)
    }

    /// The proof with the largest checkpoint of the log with this origin that was seen here.
    pub fn newest_proof(&self, origin: &str) -> Result<Option<Vec<u8>>> {
        match self.newest_path(origin) {
            path if path.exists() => chipbound_host::files::read(&path, MAX_PROOF_FILE).map(Some),
            _ => Ok(None),
        }
    }

    /// Remembers a proof as the one with the largest checkpoint of its log.
    pub fn store_newest_proof(&self, origin: &str, proof: &[u8]) -> Result<()> {
        self.ready()?;
        create_private_folder(&self.0.join("logs"))?;
        write_durably(&self.newest_path(origin), proof, 0o600)
    }

    fn newest_path(&self, origin: &str) -> PathBuf {
        self.0.join("logs").join(format!("{}.{PROOF}", Digest::of(origin.as_bytes())))
    }

    /// Keeps proofs whose checkpoints do not fit together; returns their folder.
    pub fn store_evidence(&self, proofs: [&[u8]; 2]) -> Result<PathBuf> {
        let folder = self.0.join("logs").join("evidence");
        create_private_folder(&folder)?;
        for proof in proofs {
            write_durably(&folder.join(format!("{}.{PROOF}", Digest::of(proof))), proof, 0o600)?;
        }
        Ok(folder)
    }

    /// Stores a signed receipt; it is on the disk when this returns.
    pub fn store_receipt(&self, order: &OrderId, receipt: &[u8]) -> Result<PathBuf> {
        self.ready()?;
        create_private_folder(&self.0.join("receipts"))?;
        let path = self.receipt_path(order);
        write_durably(&path, receipt, 0o600)?;
        Ok(path)
    }

    /// Stores the signed transfer of an order beside its receipt; it is on the disk when this returns.
    pub fn store_transfer(&self, order: &OrderId, transfer: &[u8]) -> Result<PathBuf> {
        self.ready()?;
        create_private_folder(&self.0.join("receipts"))?;
        let path = self.receipt_path(order).with_extension("transfer");
        write_durably(&path, transfer, 0o600)?;
        Ok(path)
    }

    /// The signed transfer of an order that was stored last, if any.
    pub fn transfer(&self, order: &OrderId) -> Result<Option<Vec<u8>>> {
        match self.receipt_path(order).with_extension("transfer") {
            path if path.exists() => chipbound_host::files::read(&path, MAX_DOCUMENT).map(Some),
            _ => Ok(None),
        }
    }

    /// All stored receipts: path and bytes.
    pub fn receipts(&self) -> Result<Vec<(PathBuf, Vec<u8>)>> {
        files_in(&self.0.join("receipts"), "receipt")
    }

    /// Keeps a root certificate so that receipts verify off line.
    pub fn remember_authority(&self, root: &[u8]) -> Result<()> {
        let folder = self.0.join("authorities");
        let path = folder.join(format!("{}.der", Digest::of(root)));
        if path.exists() {
            return Ok(());
        }
        self.ready()?;
        create_private_folder(&folder)?;
        write_durably(&path, root, 0o600)
    }

    /// The root certificates (DER) that were kept.
    pub fn authorities(&self) -> Result<Vec<Vec<u8>>> {
        Ok(files_in(&self.0.join("authorities"), "der")?.into_iter().map(|(_, bytes)| bytes).collect())
    }

    /// The folder of the purchases under way, made if need be.
    pub(crate) fn pending(&self) -> Result<PathBuf> {
        self.ready()?;
        let folder = self.0.join("pending");
        create_private_folder(&folder)?;
        Ok(folder)
    }

    fn ready(&self) -> Result<()> {
        create_private_folder(&self.0)
    }
}

/// A value as the JSON of a file.
pub(crate) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("our own values have a JSON form")
}

/// Reads the JSON of a file of ours.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Refusal::new(Code::ConfigInvalid, format!("{}: {e}", path.display())).because(e))
}

/// Removes a file that may be gone already.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Refusal::io(path.display(), e)),
        _ => Ok(()),
    }
}

fn files_in(folder: &Path, extension: &str) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Refusal::io(folder.display(), e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Refusal::io(folder.display(), e))?.path();
        if path.extension().is_some_and(|e| e == extension) {
            let bytes = std::fs::read(&path).map_err(|e| Refusal::io(path.display(), e))?;
            files.push((path, bytes));
        }
    }
    files.sort();
    Ok(files)
}
