//! The configuration, `server.toml`. Unknown fields and values are refused with their line; no field opens a check.

use crate::payment::config::PaymentConfig;
use crate::storage::{Location, Shares};
use chipbound_host::files::read_private;
use chipbound_session::server as second_path;
use chipbound_transport::ServeLimits;
use chipbound_wire::bounded::Text;
use chipbound_wire::limits::{MAX_CHOICES, MAX_NAME, MAX_TEXT};
use chipbound_wire::suite::{Aead, Kem, KeyMode, Suite};
use chipbound_wire::{Code, Refusal, Result};
use serde::Deserialize;
use sqlx::postgres::PgConnectOptions;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Connections to a database server.
const MAX_CONNECTIONS: usize = 256;
/// Bytes of a file with a database's password.
const MAX_DATABASE_PASSWORD: usize = 4096;

/// What the URL of a PostgreSQL server may say after its `?`, beside `options[NAME]`.
const URL_OPTIONS: [&str; 11] =
    ["sslmode", "sslrootcert", "sslcert", "sslkey", "host", "hostaddr", "port", "dbname", "user", "application_name", "options"];

/// An option of a PostgreSQL server's URL that there is not. The library would pass over it, and with it over a mistyped `sslmode`.
fn unknown_option(url: &str) -> Option<&str> {
    let (_, options) = url.split_once('?')?;
    let names = options.split('&').filter(|option| !option.is_empty()).map(|option| option.split('=').next().unwrap_or(option));
    names.into_iter().find(|name| !URL_OPTIONS.contains(name) && !name.starts_with("options["))
}

/// The configuration of one server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the first path listens; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where the second path listens on a line of its own, if it does.
    #[serde(default)]
    pub line: Option<SocketAddr>,
    /// `host:port` under which processors reach the line; where it listens if left out.
    #[serde(default)]
    pub line_address: Option<String>,
    /// Certificates of a public authority for the first path; the private ones that `init` made if left out.
    #[serde(default)]
    pub tls: Option<TlsFiles>,
    /// The chipbound authority.
    pub authority: AuthorityConfig,
    /// What the operator decides.
    #[serde(default)]
    pub policy: Policy,
    /// How many strangers are met before log-in.
    #[serde(default)]
    pub admission: Admission,
    /// Where accounts, orders and money are kept.
    #[serde(default)]
    pub database: DatabaseConfig,
    /// How customers may pay.
    #[serde(default)]
    pub payment: PaymentConfig,
    /// The folder of database, keys and blobs: that of the configuration file.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// Files of the first path's TLS.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The chain in PEM, leaf first.
    pub certificate: PathBuf,
    /// The private key in PEM, mode 0600.
    pub key: PathBuf,
}

/// Where the authority is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorityConfig {
    /// `https://host:port`.
    pub url: String,
    /// Seconds between two looks at the revocation list.
    #[serde(default = "defaults::refresh_seconds")]
    pub refresh_seconds: u64,
}

/// Where accounts, orders and money are kept.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatabaseConfig {
    /// `sqlite:FILE`, below the folder of the configuration, or `postgres://USER@HOST/DATABASE` without a password.
    pub url: String,
    /// A file (mode 0600) whose first line is the password of a PostgreSQL server.
    pub password_file: Option<PathBuf>,
    /// Connections to a PostgreSQL server, and so transactions at once.
    pub connections: usize,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self { url: "sqlite:server.db".to_owned(), password_file: None, connections: 16 }
    }
}

impl DatabaseConfig {
    /// Where that is, for a configuration in `folder`. [`Code::ConfigInvalid`]; a password file's own refusals.
    fn location(&self, folder: &Path) -> Result<Location> {
        let bad = |why: &str| Refusal::new(Code::ConfigInvalid, format!("database: {why}"));
        if let Some(file) = self.url.strip_prefix("sqlite:") {
            if file.is_empty() || self.password_file.is_some() {
                return Err(bad("url names a file, sqlite:server.db, which has no password"));
            }
            return Ok(Location::File(folder.join(file)));
        }
        let rest = self.url.strip_prefix("postgres://").ok_or_else(|| bad("url is sqlite:FILE or postgres://USER@HOST/DATABASE"))?;
        let user = rest.split(['/', '?']).next().and_then(|authority| authority.rsplit_once('@')).map_or("", |(user, _)| user);
        if user.contains(':') || rest.contains("password=") {
            return Err(bad("the url holds no password: write it into a file of mode 0600 and name that as password_file"));
        }
        if let Some(unknown) = unknown_option(rest) {
            return Err(bad(&format!("the url has no option {unknown:?}; there are: {}", URL_OPTIONS.join(", "))));
        }
        if !(1..=MAX_CONNECTIONS).contains(&self.connections) {
            return Err(bad("connections are 1 to 256"));
        }
        let mut options = self.url.parse::<PgConnectOptions>().map_err(|e| bad(&format!("url: {e}")))?;
        if let Some(file) = &self.password_file {
            let bytes = Zeroizing::new(read_private(&folder.join(file), MAX_DATABASE_PASSWORD)?);
            let text = std::str::from_utf8(&bytes).map_err(|_| bad("the password is not UTF-8"))?;
            options = options.password(text.lines().next().unwrap_or_default());
        }
        Ok(Location::Postgres(Box::new(options), self.connections))
    }
}

/// Caps on what the first path does for strangers (attack A16). Bursts may be somewhat above the rates.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admission {
    /// TLS handshakes a second, in all.
    pub handshakes_per_second: u32,
    /// TLS handshakes a second of one address.
    pub handshakes_per_second_of_an_address: u32,
}

impl Default for Admission {
    fn default() -> Self {
        let limits = ServeLimits::default();
        Self { handshakes_per_second: limits.handshakes_per_second, handshakes_per_second_of_an_address: limits.peer_handshakes_per_second }
    }
}

impl Admission {
    /// The limits of the first path.
    #[must_use]
    pub fn limits(&self) -> ServeLimits {
        ServeLimits {
            handshakes_per_second: self.handshakes_per_second,
            handshake_burst: self.handshakes_per_second.saturating_mul(2),
            peer_handshakes_per_second: self.handshakes_per_second_of_an_address,
            peer_handshake_burst: self.handshakes_per_second_of_an_address.saturating_mul(3),
            ..ServeLimits::default()
        }
    }

    fn check(&self) -> Result<()> {
        match [self.handshakes_per_second, self.handshakes_per_second_of_an_address].contains(&0) {
            true => Err(Refusal::new(Code::ConfigInvalid, "admission: rates must be at least 1")),
            false => Ok(()),
        }
    }
}

/// What the operator decides.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Who sells, for people.
    pub seller: String,
    /// The conditions in each confirmation, for people.
    pub conditions: String,
    /// The taxes that every price contains.
    pub taxes: Vec<Tax>,
    /// The house's share of what vendors sell, after taxes, in basis points: 10000 is all of it. What counts is the share at the
    /// time of the capture.
    pub house_share: u32,
    /// The same for single vendors, by user id.
    pub house_shares: BTreeMap<String, u32>,
    /// Suites, best first.
    #[serde(deserialize_with = "suites")]
    pub suites: Vec<Suite>,
    /// The key mode of an order that names none.
    pub key_mode: KeyMode,
    /// Seconds from a confirmation to the end of its order: agreement, delivery and settlement happen within them.
    pub order_seconds: u64,
    /// Days for which a receipt buys a re-download.
    pub redownload_days: u64,
    /// Seconds for which a ticket can be used.
    pub ticket_seconds: u64,
    /// Seconds for which a log-in counts.
    pub session_seconds: u64,
    /// Bytes of ciphertext that are kept for deliveries that may be cut short, all together; the oldest go first. 0 keeps none.
    pub kept_bytes: u64,
    /// Deliveries at once.
    pub deliveries: usize,
    /// Deliveries at once of one account.
    pub deliveries_per_account: usize,
}

/// A tax that prices contain, as receipts show it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tax {
    /// Its name.
    pub name: String,
    /// Its rate in hundredths of a percent: 1900 is 19 %.
    pub rate: u32,
}

impl Default for Policy {
    fn default() -> Self {
        let suite = |kem, aead| Suite { kem, aead };
        Self {
            seller: String::new(),
            conditions: "For one processor; the receipt downloads it again.".to_owned(),
            taxes: Vec::new(),
            house_share: 0,
            house_shares: BTreeMap::new(),
            suites: vec![
                suite(Kem::XWing, Aead::Aes256Gcm),
                suite(Kem::XWing, Aead::ChaCha20Poly1305),
                suite(Kem::DhkemP256, Aead::Aes256Gcm),
                suite(Kem::DhkemP256, Aead::ChaCha20Poly1305),
            ],
            key_mode: KeyMode::Direct,
            order_seconds: 24 * 3600,
            redownload_days: 3650,
            ticket_seconds: 60,
            session_seconds: 12 * 3600,
            kept_bytes: 256 << 30,
            deliveries: 64,
            deliveries_per_account: 16,
        }
    }
}

impl Policy {
    /// The conditions as a confirmation carries them.
    #[must_use]
    pub fn conditions_text(&self) -> String {
        if self.seller.is_empty() { self.conditions.clone() } else { format!("{}: {}", self.seller, self.conditions) }
    }

    /// What the second path may choose for an order in this key mode.
    #[must_use]
    pub fn for_order(&self, key_mode: KeyMode) -> second_path::Policy {
        second_path::Policy { suites: self.suites.clone(), key_modes: vec![key_mode] }
    }

    fn check(&self) -> Result<()> {
        let bad = |why: &str| Err(Refusal::new(Code::ConfigInvalid, format!("policy: {why}")));
        if self.suites.is_empty() {
            return bad("suites must name at least one");
        }
        if [self.order_seconds, self.ticket_seconds, self.session_seconds, self.deliveries as u64, self.deliveries_per_account as u64]
            .contains(&0)
        {
            return bad("order_seconds, ticket_seconds, session_seconds, deliveries and deliveries_per_account must be at least 1");
        }
        if self.house_shares.values().chain([&self.house_share]).any(|share| *share > Shares::ALL) {
            return bad("house_share and house_shares are at most 10000 basis points");
        }
        if self.deliveries > 4096 {
            return bad("deliveries is at most 4096, each is a thread");
        }
        if self.conditions_text().len() > MAX_TEXT || self.conditions_text().chars().any(char::is_control) {
            return bad("seller and conditions are one line of at most 1024 bytes");
        }
        if self.taxes.len() > MAX_CHOICES || self.taxes.iter().any(|tax| Text::<MAX_NAME>::new(tax.name.clone()).is_err()) {
            return bad("taxes are at most 16, each with a name of one line of at most 128 bytes");
        }
        Ok(())
    }
}

/// Suites in their text form, `x-wing+aes-256-gcm`.
fn suites<'de, D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Vec<Suite>, D::Error> {
    let texts = Vec::<String>::deserialize(d)?;
    texts.iter().map(|t| t.parse().map_err(|e: Refusal| serde::de::Error::custom(e.detail))).collect()
}

mod defaults {
    pub(super) fn refresh_seconds() -> u64 {
        30
    }
}

impl Config {
    /// Reads and checks the configuration; [`Code::ConfigInvalid`].
    pub fn load(path: &Path) -> Result<Self> {
        let mut config: Self = chipbound_host::config::load(path)?;
        config.policy.check()?;
        config.admission.check()?;
        if config.authority.refresh_seconds == 0 {
            return Err(Refusal::new(Code::ConfigInvalid, "authority: refresh_seconds must be at least 1"));
        }
        let folder = path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
        config.folder = folder.to_owned();
        Ok(config)
    }

    /// Where the database is; reads the file of its password, if there is one.
    pub fn database(&self) -> Result<Location> {
        self.database.location(&self.folder)
    }

    /// The folder of sealed keys and their certificates.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.folder.join("keys")
    }

    /// The key-encryption key.
    #[must_use]
    pub fn kek(&self) -> PathBuf {
        self.folder.join("kek")
    }

    /// The folder of programs and ciphertext.
    #[must_use]
    pub fn blobs(&self) -> PathBuf {
        self.folder.join("blobs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("server.toml");
        std::fs::write(&path, text).expect("written");
        Config::load(&path)
    }

    const GOOD: &str = "listen = \"127.0.0.1:0\"\n[authority]\nurl = \"https://127.0.0.1:7701\"\n[policy]\n";

    #[test]
    fn what_is_left_out_has_its_default() {
        let config = load(GOOD).expect("a configuration");
        assert_eq!((config.policy.suites.len(), config.policy.key_mode, config.authority.refresh_seconds), (4, KeyMode::Direct, 30));
    }

    #[test]
    fn a_database_is_a_file_below_the_folder_or_a_server_whose_password_stands_in_a_private_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let at = |url: &str, password_file: Option<&str>| {
            let password_file = password_file.map(PathBuf::from);
            DatabaseConfig { url: url.to_owned(), password_file, ..DatabaseConfig::default() }.location(folder.path())
        };
        assert!(matches!(DatabaseConfig::default().location(folder.path()), Ok(Location::File(f)) if f == folder.path().join("server.db")));
        for url in [
            "server.db",
            "sqlite:",
            "mysql://a@b/c",
            "postgres://ann@host/books?sslmod=verify-full",
            "postgres://ann:secret@host/books",
            "postgres://ann@host/books?password=secret",
        ] {
            let refusal = at(url, None).expect_err(url);
            assert_eq!(refusal.code, Code::ConfigInvalid, "{url}");
            assert!(!refusal.detail.contains("secret"), "{}", refusal.detail);
        }
        let file = folder.path().join("password");
        std::fs::write(&file, "correct horse\n").expect("written");
        assert_eq!(at("postgres://ann@host/books", Some("password")).expect_err("all may read it").code, Code::InsecurePermissions);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("made private");
        at("postgres://ann@host/books?sslmode=verify-full&options=-c%20geqo%3Doff", Some("password")).expect("a server with options");
        let location = at("postgres://ann@host/books", Some("password")).expect("a server");
        assert!(!format!("{location:?}").contains("horse"), "{location:?}");
        assert!(matches!(location, Location::Postgres(options, 16) if options.get_host() == "host" && options.get_username() == "ann"));
    }

    #[test]
    fn unknown_fields_and_values_are_refused_with_their_line() {
        for (more, said) in [
            ("verify = false\n", ":5: unknown field"),
            ("suites = [\"rot13+none\"]\n", ":5:"),
            ("key_mode = \"none\"\n", ":5: unknown variant"),
            ("suites = []\n", "at least one"),
            ("deliveries = 0\n", "at least 1"),
            ("house_share = 10001\n", "basis points"),
            ("house_shares = { vera = 10001 }\n", "basis points"),
            ("conditions = \"a\\nb\"\n", "one line"),
        ] {
            let refusal = load(&format!("{GOOD}{more}")).expect_err(more);
            assert_eq!(refusal.code, Code::ConfigInvalid, "{more}");
            assert!(refusal.detail.contains(said), "{more}: {}", refusal.detail);
        }
    }
}
