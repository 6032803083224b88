//! Makes a new server: keys, certificates, database, configuration.

use crate::keys::{ROLES, key_file_context, store_chain, write_key};
use crate::standing::store_trust;
use crate::storage::Books;
use chipbound_host::files::{PRIVATE, PUBLIC, clear_installation, create_new_installation, create_private_folder, write_new};
use chipbound_host::{FileKey, Kek, now, signing_request};
use chipbound_transport::enrolment::{Application, Enrolled, enroll};
use chipbound_wire::enrolment::Voucher;
use chipbound_wire::signature::Sign;
use chipbound_wire::{Code, Refusal, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Years for which the private TLS certificate counts.
const TLS_YEARS: i32 = 10;

/// What `init` needs to know.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// The folder to make.
    pub folder: PathBuf,
    /// `https://host:port` of the authority.
    pub authority: String,
    /// Where the first path shall listen.
    pub listen: SocketAddr,
    /// Where the line of its own shall listen.
    pub line: Option<SocketAddr>,
    /// Host names under which clients reach the first path.
    pub names: Vec<String>,
}

/// What `init` made.
#[derive(Clone, Debug)]
pub struct Made {
    /// The configuration.
    pub config: PathBuf,
    /// The root that clients of the first path trust.
    pub tls_root: PathBuf,
    /// The server's name in its certificates.
    pub subject: String,
}

/// Makes a server: three keys certified with one voucher, a private TLS certificate, an empty database, a configuration.
///
/// # Errors
/// [`Code::Conflict`] where there is anything in the folder already; the authority's refusals and those of the disk, after which nothing
/// is in the folder.
pub async fn init(wishes: &Wishes, voucher: &Voucher) -> Result<Made> {
    create_new_installation(&wishes.folder)?;
    make(wishes, voucher).await.inspect_err(|_| clear_installation(&wishes.folder))
}

async fn make(wishes: &Wishes, voucher: &Voucher) -> Result<Made> {
    let mut enrolled = Vec::new();
    for role in ROLES {
        let (key, pkcs8) = FileKey::generate()?;
        let key: Arc<dyn Sign> = Arc::new(key);
        let application = Application::plain(role, signing_request(key)?);
        let no_challenge = |_: &_, _: &_| Err(Refusal::new(Code::UnexpectedMessage, "a challenge to a server, which has no sealing keys"));
        enrolled.push((role, pkcs8, enroll(&wishes.authority, voucher, &application, no_challenge, now()).await?));
    }
    let folder = &wishes.folder;
    let kek = Kek::create(&folder.join("kek"))?;
    let keys = folder.join("keys");
    create_private_folder(&keys)?;
    for (role, pkcs8, Enrolled { chain, .. }) in &enrolled {
        write_key(&keys, &kek, *role, pkcs8)?;
        store_chain(&keys, *role, chain)?;
    }
    let last = &enrolled.last().ok_or_else(|| Refusal::new(Code::Internal, "a server has roles"))?.2;
    store_trust(&keys, &last.root, &last.revocations)?;
    make_tls(folder, &kek, &keys, wishes)?;
    Books::open_file(&folder.join("server.db")).await?.close().await;
    let config = folder.join("server.toml");
    write_new(&config, configuration(wishes, last.certified.subject()).as_bytes(), PUBLIC)?;
    Ok(Made { config, tls_root: folder.join("tls-root.pem"), subject: last.certified.subject().to_owned() })
}

/// A private root, whose key is thrown away, and one certificate under it.
fn make_tls(folder: &Path, kek: &Kek, keys: &Path, wishes: &Wishes) -> Result<()> {
    let failed = |e: rcgen::Error| Refusal::new(Code::Internal, format!("a TLS certificate cannot be made: {e}")).because(e);
    let year = 1970 + i32::try_from(now().0 / 31_556_952).unwrap_or(0);
    let (from, until) = (rcgen::date_time_ymd(year, 1, 1), rcgen::date_time_ymd(year + TLS_YEARS, 1, 1));

    let mut root = CertificateParams::default();
    (root.not_before, root.not_after) = (from, until);
    root.distinguished_name.push(DnType::CommonName, "chipbound server: private TLS root");
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().map_err(failed)?).map_err(failed)?;

    let mut names = vec![wishes.listen.ip().to_string(), "localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.extend(wishes.names.iter().cloned());
    let mut leaf = CertificateParams::new(names).map_err(failed)?;
    (leaf.not_before, leaf.not_after) = (from, until);
    leaf.distinguished_name.push(DnType::CommonName, "chipbound server");
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate().map_err(failed)?;
    let leaf = leaf.signed_by(&key, &root).map_err(failed)?;

    let root = root.as_ref().pem();
    write_new(&folder.join("tls-root.pem"), root.as_bytes(), PUBLIC)?;
    write_new(&folder.join("tls.pem"), format!("{}{root}", leaf.pem()).as_bytes(), PUBLIC)?;
    let pkcs8 = Zeroizing::new(key.serialize_der());
    write_new(&keys.join(TLS_KEY), &kek.seal(&key_file_context(TLS_KEY), &pkcs8), PRIVATE)
}

/// The sealed file of the private TLS key, in the folder of keys.
pub(crate) const TLS_KEY: &str = "tls.key";

fn configuration(wishes: &Wishes, subject: &str) -> String {
    let line = match wishes.line {
        Some(line) => format!("line = \"{line}\""),
        None => "# line = \"127.0.0.1:8444\"".to_owned(),
    };
    format!(
        "# chipbound server {subject}. What is left out has the default that stands here behind a #.

# Where the first path (HTTPS) listens.
listen = \"{listen}\"
# Where the second path listens on a line of its own; left out, it runs through the first.
{line}
# The host:port under which processors reach that line; where it listens, if left out.
# line_address = \"server.example:8444\"

# Certificates of a public authority for the first path, instead of the private ones in this folder.
# [tls]
# certificate = \"/etc/chipbound/fullchain.pem\"
# key = \"/etc/chipbound/privkey.pem\"

[authority]
url = \"{authority}\"
# refresh_seconds = 30

[admission]
# handshakes_per_second = 500
# handshakes_per_second_of_an_address = 100

# Accounts, orders and money: a file below this folder, or a PostgreSQL server (url = \"postgres://USER@HOST/DATABASE\", its
# password the first line of the file that password_file names, mode 0600; connections = 16).
[database]
# url = \"sqlite:server.db\"

# Taxes that every price contains, in hundredths of a percent, as receipts show them: taxes = [{{ name = \"VAT\", rate = 1900 }}]
[policy]
# seller = \"\"
# conditions = \"For one processor; the receipt downloads it again.\"
# taxes = []
# house_share = 0
# house_shares = {{}}
# suites = [\"x-wing+aes-256-gcm\", \"x-wing+chacha20-poly1305\", \"dhkem-p256+aes-256-gcm\", \"dhkem-p256+chacha20-poly1305\"]
# key_mode = \"direct\"
# order_seconds = 86400
# redownload_days = 3650
# ticket_seconds = 60
# session_seconds = 43200
# kept_bytes = 274877906944
# deliveries = 64
# deliveries_per_account = 16
",
        listen = wishes.listen,
        authority = wishes.authority,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_configuration_that_is_written_loads_and_its_comments_are_the_defaults() {
        let folder = tempfile::tempdir().expect("a folder");
        let wishes = Wishes {
            folder: folder.path().to_owned(),
            authority: "https://127.0.0.1:7701".to_owned(),
            listen: "127.0.0.1:8443".parse().expect("an address"),
            line: Some("127.0.0.1:8444".parse().expect("an address")),
            names: Vec::new(),
        };
        let text = configuration(&wishes, "shop");
        let path = folder.path().join("server.toml");
        std::fs::write(&path, &text).expect("written");
        let plain = Config::load(&path).expect("it loads");
        let policy = text.split("[policy]\n").nth(1).expect("a policy");
        let uncommented = text.replace(policy, &policy.replace("# ", "")).replace("# refresh_seconds", "refresh_seconds");
        let uncommented = uncommented.replace("# url", "url");
        std::fs::write(&path, uncommented).expect("written");
        let spelled_out = Config::load(&path).expect("it loads with the defaults spelled out");
        assert_eq!(format!("{plain:?}"), format!("{spelled_out:?}"));
    }

    #[test]
    fn the_private_tls_certificate_serves_under_its_root_and_its_key_is_sealed() {
        let folder = tempfile::tempdir().expect("a folder");
        let kek = Kek::create(&folder.path().join("kek")).expect("a key");
        let wishes = Wishes {
            folder: folder.path().to_owned(),
            authority: String::new(),
            listen: "127.0.0.1:8443".parse().expect("an address"),
            line: None,
            names: vec!["shop.example".to_owned()],
        };
        make_tls(folder.path(), &kek, folder.path(), &wishes).expect("made");
        crate::run::own_tls(folder.path(), folder.path(), &kek).expect("it serves");
        let sealed = std::fs::read(folder.path().join(TLS_KEY)).expect("the key");
        let opened = kek.open(&key_file_context(TLS_KEY), &sealed).expect("it opens");
        assert!(!sealed.windows(32).any(|w| opened.windows(32).any(|o| o == w)), "nothing of the key is in the clear");
    }
}
