//! `authority.toml`.

use chipbound_wire::certificate::Role;
use chipbound_wire::suite::Class;
use chipbound_wire::{Code, Refusal, Result};
use serde::Deserialize;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The name of the configuration in an installation's folder.
pub const FILE: &str = "authority.toml";

/// A span of time in seconds; its text form is a number and `s`, `m`, `h` or `d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Span(pub u64);

impl FromStr for Span {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Refusal::new(Code::ConfigInvalid, format!("{text:?} is not a span of time such as 90s, 15m, 12h or 30d"));
        let unit = text.char_indices().next_back().ok_or_else(bad)?;
        let seconds = match unit.1 {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 24 * 3600,
            _ => return Err(bad()),
        };
        let number: u64 = text[..unit.0].parse().map_err(|_| bad())?;
        number.checked_mul(seconds).filter(|n| (1..=Self::LONGEST).contains(n)).map(Self).ok_or_else(bad)
    }
}

impl Span {
    /// A hundred years: nothing here lives longer.
    const LONGEST: u64 = 100 * 366 * 24 * 3600;
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n % (24 * 3600) == 0 => write!(f, "{}d", n / (24 * 3600)),
            n if n % 3600 == 0 => write!(f, "{}h", n / 3600),
            n => write!(f, "{n}s"),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(|e: Refusal| serde::de::Error::custom(e.detail))
    }
}

/// The authority's configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the keys and the state lie: the folder of the configuration.
    pub folder: PathBuf,
    /// Where HTTPS is served.
    pub listen: SocketAddr,
    /// DNS names and addresses under which it is reached.
    pub names: Vec<String>,
    /// The classes of key store that are certified.
    pub classes: Vec<Class>,
    /// How long certificates last.
    pub validity: Lifetimes,
    /// How long a revocation list counts; a new one is made after a quarter of it, and at once after a revocation.
    pub revocation_list: Span,
}

/// How long certificates last from the moment they are issued.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lifetimes {
    /// A processor's.
    pub processor: Span,
    /// Each of a server's three.
    pub server: Span,
    /// A vendor's.
    pub vendor: Span,
}

impl Lifetimes {
    /// That of a role.
    #[must_use]
    pub fn of(&self, role: Role) -> Span {
        match role {
            Role::Processor => self.processor,
            Role::ServerSecondPath | Role::ServerStatement | Role::ServerReceipt => self.server,
            Role::Vendor => self.vendor,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: SocketAddr,
    names: Vec<String>,
    admission: String,
    classes: Vec<String>,
    validity: Lifetimes,
    revocation_list: Span,
}

impl Config {
    /// Reads a configuration: [`Code::ConfigInvalid`] names file and line of a mistake, [`Code::NotSupported`] names what
    /// this version cannot do.
    pub fn load(path: &Path) -> Result<Self> {
        let file: File = chipbound_host::config::load(path)?;
        let within = |e: Refusal| Refusal::new(e.code, format!("{}: {}", path.display(), e.detail));
        check_admission(&file.admission).map_err(within)?;
        let classes = file.classes.iter().map(|c| c.parse()).collect::<Result<Vec<Class>>>().map_err(within)?;
        if classes.is_empty() || file.names.is_empty() {
            let what = if classes.is_empty() { "classes" } else { "names" };
            return Err(within(Refusal::new(Code::ConfigInvalid, format!("{what} is empty"))));
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        let File { listen, names, validity, revocation_list, .. } = file;
        Ok(Self { folder, listen, names, classes, validity, revocation_list })
    }

    /// The configuration that `init` writes.
    #[must_use]
    pub fn template(listen: SocketAddr) -> String {
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let own = listen.ip().to_string();
        if !listen.ip().is_unspecified() && !names.contains(&own) {
            names.push(own);
        }
        format!(
            r#"# The authority of a chipbound installation.

# Where HTTPS is served.
listen = "{listen}"
# DNS names and addresses under which clients reach it.
names = {names:?}

# Who is certified: whoever brings a voucher of this authority's operator.
admission = "voucher"
# The classes of key store that are certified.
classes = ["software"]

# How long a revocation list counts. A revocation is served at once; a list that could not be renewed for so long refuses
# everybody.
revocation_list = "1d"

# How long certificates last; processors and servers renew theirs on line. A release can be delivered as long as the
# certificate that its vendor signed it with lasts, so a vendor's is long; a stolen vendor's key is revoked.
[validity]
processor = "30d"
server = "90d"
vendor = "1800d"
"#
        )
    }
}

fn check_admission(text: &str) -> Result<()> {
    match text {
        "voucher" => Ok(()),
        other => Err(Refusal::new(Code::NotSupported, format!("{other:?} is no way of admission; there is: voucher"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE);
        std::fs::write(&path, text).expect("written");
        Config::load(&path)
    }

    fn template() -> String {
        Config::template("127.0.0.1:7701".parse().expect("an address"))
    }

    #[test]
    fn the_template_is_a_working_configuration() {
        let config = load(&template()).expect("what init writes");
        assert_eq!((config.validity.processor, config.validity.of(Role::ServerReceipt)), (Span(30 * 86400), Span(90 * 86400)));
        assert_eq!(config.names, ["localhost", "127.0.0.1", "::1"]);
    }

    #[test]
    fn what_is_not_there_yet_is_refused_and_never_ignored() {
        for (from, to) in [("\"voucher\"", "\"registry\""), ("[\"software\"]", "[\"software\", \"tpm\"]")] {
            let refusal = load(&template().replace(from, to)).expect_err(to);
            assert_eq!(refusal.code, Code::NotSupported, "{refusal}");
            assert!(refusal.detail.contains("there "), "{refusal}");
        }
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        for (from, to, line, word) in [
            ("listen = ", "listem = ", 4, "listem"),
            ("\"30d\"", "\"30 days\"", 20, "30 days"),
            ("\"30d\"", "\"0d\"", 20, "span of time"),
            ("server = \"90d\"", "serves = \"90d\"", 21, "serves"),
            ("\"127.0.0.1:7701\"", "\"nowhere\"", 4, "socket address"),
        ] {
            let refusal = load(&template().replacen(from, to, 1)).expect_err(to);
            assert_eq!(refusal.code, Code::ConfigInvalid, "{refusal}");
            assert!(refusal.detail.contains(&format!("{FILE}:{line}: ")) && refusal.detail.contains(word), "{refusal}");
        }
        assert_eq!(load(&template().replace("[\"software\"]", "[]")).expect_err("no class").code, Code::ConfigInvalid);
    }
}
