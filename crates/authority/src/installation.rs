//! A new installation: what `init` makes, and where things lie.

use crate::config::{Config, FILE};
use crate::issuing::{Issuer, Validity, root};
use crate::store::Store;
use chipbound_host::files::{PUBLIC, clear_installation, create_new_installation, create_private_folder, write_new};
use chipbound_host::{FileKey, Kek};
use chipbound_wire::signature::Sign;
use chipbound_wire::{Digest, Result, SystemRandom, Time};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What the issuing key is sealed for.
pub(crate) const ISSUING_KEY_CONTEXT: &str = "chipbound authority issuing key";
/// What the root key is sealed for.
const ROOT_KEY_CONTEXT: &str = "chipbound authority root key";
const DAY: u64 = 24 * 3600;
/// How long a root lasts, in seconds.
const ROOT_LASTS: u64 = 20 * 365 * DAY;
/// How long an issuing authority lasts, in seconds.
const ISSUING_LASTS: u64 = 5 * 365 * DAY;

/// Where things lie in an authority's folder.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The configuration.
    pub config: PathBuf,
    /// The root certificate, DER.
    pub root: PathBuf,
    /// The issuing certificate, DER.
    pub issuing: PathBuf,
    /// The issuing key, sealed under [`Self::kek`].
    pub issuing_key: PathBuf,
    /// The key-encryption key of the issuing key.
    pub kek: PathBuf,
    /// The database.
    pub state: PathBuf,
    /// A folder with the root key and its own key-encryption key. The running authority never opens it: it belongs off line.
    pub offline: PathBuf,
}

impl Paths {
    /// The paths in `folder`.
    #[must_use]
    pub fn of(folder: &Path) -> Self {
        Self {
            config: folder.join(FILE),
            root: folder.join("root.der"),
            issuing: folder.join("issuing.der"),
            issuing_key: folder.join("issuing.key"),
            kek: folder.join("issuing.kek"),
            state: folder.join("state.db"),
            offline: folder.join("offline"),
        }
    }
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Made {
    /// Where things lie.
    pub paths: Paths,
    /// The digest of the root certificate, which vouchers carry.
    pub root: Digest,
}

/// Makes the folder of an authority called `name`: root and issuing key with their certificates, an empty state, a
/// configuration. [`Code::Conflict`](chipbound_wire::Code::Conflict) when there is anything in the folder already. The
/// configuration comes last: without it nothing runs. Where it fails, nothing is left in the folder.
pub async fn create(folder: &Path, listen: SocketAddr, name: &str, now: Time) -> Result<Made> {
    create_new_installation(folder)?;
    make(folder, listen, name, now).await.inspect_err(|_| clear_installation(folder))
}

async fn make(folder: &Path, listen: SocketAddr, name: &str, now: Time) -> Result<Made> {
    let paths = Paths::of(folder);
    create_private_folder(&paths.offline)?;
    let root_key = FileKey::create(&paths.offline.join("root.key"), &Kek::create(&paths.offline.join("root.kek"))?, ROOT_KEY_CONTEXT)?;
    let issuing_key = FileKey::create(&paths.issuing_key, &Kek::create(&paths.kek)?, ISSUING_KEY_CONTEXT)?;

    let not_before = Time(now.0.saturating_sub(DAY));
    let root = root(&root_key, name, Validity { not_before, not_after: now.after(ROOT_LASTS) }, &mut SystemRandom)?;
    let validity = Validity { not_before, not_after: now.after(ISSUING_LASTS) };
    let issuing_name = format!("{name} issuing");
    let issuing = Issuer::new(&root, &root_key)?.issuing(issuing_key.spki(), &issuing_name, validity, &mut SystemRandom)?;
    write_new(&paths.root, &root, PUBLIC)?;
    write_new(&paths.issuing, &issuing, PUBLIC)?;

    Store::create(&paths.state).await?.close().await;
    write_new(&paths.config, Config::template(listen).as_bytes(), PUBLIC)?;
    Ok(Made { paths, root: Digest::of(&root) })
}
