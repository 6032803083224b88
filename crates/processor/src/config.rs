//! The daemon's configuration, `processor.toml`.

use chipbound_wire::limits::MAX_PROGRAM;
use chipbound_wire::suite::Class;
use chipbound_wire::{Code, Refusal, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What the TOML file says. Relative paths are relative to the file's own folder.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The class of key store. This version has `software`.
    pub class: String,
    /// Keys and what the processor remembers; mode 0700.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// Deliveries on their way; mode 0700.
    #[serde(default = "default_spool")]
    pub spool: PathBuf,
    /// The control socket.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// Who may connect.
    #[serde(default)]
    pub clients: Clients,
    /// Where programs may run.
    #[serde(default)]
    pub namespaces: Namespaces,
    /// Direct start of packages.
    #[serde(default)]
    pub start: Start,
    /// Caps.
    #[serde(default)]
    pub limits: Limits,
    /// The certificate's renewal and the revocation list.
    #[serde(default)]
    pub renewal: Renewal,
}

/// Who may connect to the control socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clients {
    /// Only processes of the daemon's own user (mode 0600): for development.
    #[default]
    OwnUser,
    /// Every user of the machine (mode 0666): for a daemon with a user of its own.
    Everyone,
}

/// In which user and mount namespaces programs may be run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Namespaces {
    /// Only in the processor's own.
    #[default]
    Own,
    /// In any, for clients of the processor's own user, to whom nothing is promised anyway: for development.
    AnyForOwnUser,
}

/// Direct start of packages by the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Start {
    /// Where the interpreter stands that packages on this machine name; without one they are started by `chipbound run` alone.
    pub interpreter: Option<PathBuf>,
}

/// Caps. Beyond one of the first three a request is refused as `busy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections of one user at once.
    pub connections_per_user: usize,
    /// Deliveries and openings at once.
    pub transfers: usize,
    /// Bytes of the largest program or data file that is taken.
    pub program_bytes: u64,
    /// Bytes of deliveries that were cut short and wait to go on, all together; the oldest go first. 0 keeps none.
    pub spool_bytes: u64,
    /// Bytes of opened programs that are kept for the next start. They are memory, and can be swapped.
    pub cache_bytes: u64,
    /// How many opened programs are kept.
    pub cache_entries: usize,
    /// Bytes of data for programs that are opened in memory, where this machine has no FUSE for the daemon. They can be swapped.
    pub data_in_memory_bytes: u64,
    /// Seconds that a peer may say nothing.
    pub silence_seconds: u64,
    /// Seconds that a delivery waits for its release token.
    pub release_seconds: u64,
    /// Seconds from the word that a client may exec to the end of its start.
    pub start_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            connections_per_user: 64,
            transfers: 16,
            program_bytes: MAX_PROGRAM,
            spool_bytes: 64 << 30,
            cache_bytes: 1 << 30,
            cache_entries: 64,
            data_in_memory_bytes: 1 << 30,
            silence_seconds: 60,
            release_seconds: 600,
            start_seconds: 30,
        }
    }
}

/// When certificate and revocation list are renewed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Renewal {
    /// Seconds between two looks. The certificate is renewed once a third of its validity is left.
    pub look_every_seconds: u64,
    /// Seconds between two reads of the revocation list.
    pub revocations_every_seconds: u64,
    /// Whether each renewal certifies fresh sealing keys; the old ones go on opening.
    pub fresh_sealing_keys: bool,
}

impl Default for Renewal {
    fn default() -> Self {
        Self { look_every_seconds: 60, revocations_every_seconds: 60, fresh_sealing_keys: true }
    }
}

fn default_state() -> PathBuf {
    "state".into()
}

fn default_spool() -> PathBuf {
    "spool".into()
}

fn default_socket() -> PathBuf {
    "processor.sock".into()
}

impl Config {
    /// Reads and checks the file. Mistakes are [`Code::ConfigInvalid`], a class that this version lacks is
    /// [`Code::NotSupported`].
    pub fn load(path: &Path) -> Result<Self> {
        let mut config: Self = chipbound_host::config::load(path)?;
        config.class.parse::<Class>()?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for place in [&mut config.state, &mut config.spool, &mut config.socket].into_iter().chain(config.start.interpreter.as_mut()) {
            *place = folder.join(&*place);
        }
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let l = &self.limits;
        let positive = [
            ("limits.connections", l.connections as u64),
            ("limits.connections_per_user", l.connections_per_user as u64),
            ("limits.transfers", l.transfers as u64),
            ("limits.program_bytes", l.program_bytes),
            ("limits.silence_seconds", l.silence_seconds),
            ("limits.release_seconds", l.release_seconds),
            ("limits.start_seconds", l.start_seconds),
            ("renewal.look_every_seconds", self.renewal.look_every_seconds),
            ("renewal.revocations_every_seconds", self.renewal.revocations_every_seconds),
        ];
        match positive.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(Refusal::new(Code::ConfigInvalid, format!("{}: {name} must be at least 1", path.display()))),
            None => Ok(()),
        }
    }

    /// What `init` writes: for its own user alone, or for every user of the machine.
    #[must_use]
    pub fn template(everyone: bool) -> String {
        let text = include_str!("processor.toml");
        if !everyone {
            return text.to_owned();
        }
        text.replace("\nclients = \"own-user\"", "\nclients = \"everyone\"")
            .replace("\nsocket = \"processor.sock\"", "\nsocket = \"/run/chipbound/processor.sock\"")
            .replace("\ninterpreter = \"interpreter\"", "\ninterpreter = \"/var/lib/chipbound/interpreter\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config> {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("processor.toml");
        std::fs::write(&path, text).expect("written");
        Config::load(&path).map(|mut c| {
            c.socket = c.socket.strip_prefix(folder.path()).unwrap_or(&c.socket).to_owned();
            c
        })
    }

    #[test]
    fn the_template_is_the_default_configuration() {
        let config = load(&Config::template(false)).expect("the template");
        assert_eq!((config.limits, config.renewal, config.clients), (Limits::default(), Renewal::default(), Clients::OwnUser));
        assert_eq!(config.socket, Path::new("processor.sock"));
        let config = load(&Config::template(true)).expect("the template");
        assert_eq!((config.clients, config.socket.as_path()), (Clients::Everyone, Path::new("/run/chipbound/processor.sock")));
        assert_eq!(config.start.interpreter.as_deref(), Some(Path::new("/var/lib/chipbound/interpreter")));
    }

    #[test]
    fn a_key_store_that_is_not_there_is_refused_by_name() {
        let refusal = load("class = \"tpm\"").expect_err("no such class");
        assert_eq!(refusal.code, Code::NotSupported, "{refusal}");
    }

    #[test]
    fn unknown_fields_and_caps_of_nothing_are_refused_with_their_place() {
        let refusal = load("class = \"software\"\nskip_verification = true").expect_err("no such field");
        assert_eq!(refusal.code, Code::ConfigInvalid);
        assert!(refusal.detail.contains(":2:"), "{refusal}");
        let refusal = load("class = \"software\"\n[limits]\ntransfers = 0").expect_err("nothing could be done");
        assert!(refusal.code == Code::ConfigInvalid && refusal.detail.contains("limits.transfers"), "{refusal}");
    }
}
