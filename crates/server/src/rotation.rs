//! Replaces one of the server's keys by a fresh one, while the server is stopped. Each is replaceable alone: what was signed before
//! stays good, because documents carry the certificates of their time.

use crate::config::Config;
use crate::keys::{ServerKeys, next_key, next_key_is_certified};
use crate::standing::load_trust;
use chipbound_host::{Kek, now, signing_request};
use chipbound_transport::enrolment::{Application, renew};
use chipbound_wire::certificate::Role;
use chipbound_wire::signature::Sign;
use chipbound_wire::{Code, KeyId, Refusal, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// A key that can be replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Which {
    /// The server's end of the second path.
    SecondPath,
    /// Confirmations, terms, seals, release tokens.
    Statement,
    /// Receipts.
    Receipt,
    /// Checkpoints of the receipts' log.
    Log,
}

/// Replaces that key; returns its new name. The authority certifies the three certified ones by the word of the old key; the receipt
/// key names the log's.
///
/// # Errors
/// [`Code::Busy`] while a server uses the keys; the authority's refusals, after which the old key stays in use.
pub async fn rotate(config: &Config, which: Which) -> Result<String> {
    let folder = config.keys();
    let _alone = alone(&folder)?;
    let kek = Kek::load(&config.kek())?;
    let trust = load_trust(&folder)?;
    let keys = ServerKeys::load(&folder, &kek)?;
    let role = match which {
        Which::SecondPath => Role::ServerSecondPath,
        Which::Statement => Role::ServerStatement,
        Which::Receipt => Role::ServerReceipt,
        Which::Log => return Ok(keys.log.replace(&folder, &kek, &keys.receipt, now())?.key().to_vkey()),
    };
    let old = keys.get(role).ok_or_else(|| Refusal::new(Code::Internal, "not a role of a server"))?;
    let new: Arc<dyn Sign> = Arc::new(next_key(&folder, &kek, role)?);
    let application = Application::plain(role, signing_request(new.clone())?);
    let no_challenge = |_: &_, _: &_| Err(Refusal::new(Code::UnexpectedMessage, "a challenge to a server, which has no sealing keys"));
    let renewed = renew(&config.authority.url, trust.root(), &old.chain, &*old.key, &application, no_challenge, now()).await?;
    next_key_is_certified(&folder, role, &renewed.chain)?;
    Ok(KeyId::of_spki(new.spki()).to_string())
}

/// The keys are in use by a server, together with others, for as long as this lives.
pub(crate) fn in_use(folder: &Path) -> Result<File> {
    locked(folder, FlockOperation::NonBlockingLockShared)
}

/// Nobody else uses the keys for as long as this lives.
pub(crate) fn alone(folder: &Path) -> Result<File> {
    locked(folder, FlockOperation::NonBlockingLockExclusive)
}

fn locked(folder: &Path, operation: FlockOperation) -> Result<File> {
    let failed = |e| Refusal::io(format_args!("cannot lock {}", folder.display()), e);
    let handle = File::open(folder).map_err(failed)?;
    match flock(&handle, operation) {
        Ok(()) => Ok(handle),
        Err(Errno::WOULDBLOCK) => {
            Err(Refusal::new(Code::Busy, format!("{} is in use: this is done while its server is stopped", folder.display())))
        }
        Err(e) => Err(failed(e.into())),
    }
}
