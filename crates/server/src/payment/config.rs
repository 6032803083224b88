//! The section `[payment]` of the configuration.

use super::CardPayments;
use super::cards::{Cards, Patience};
use super::webhook::Webhooks;
use chipbound_host::files::{read, read_private};
use chipbound_transport::ServerTrust;
use chipbound_wire::{Code, Refusal, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// Bytes of a file with a key or a secret.
const MAX_SECRET: usize = 4096;
/// Bytes of a root certificate in PEM.
const MAX_ROOT: usize = 64 * 1024;
/// Seconds that one answer of the provider may take at most.
const MAX_ANSWER_SECONDS: u64 = 60;

/// How customers may pay besides from their account's money.
#[derive(Clone, Default, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PaymentConfig {
    /// The card provider, if there is one.
    pub cards: Option<CardsConfig>,
}

/// The card provider. The files' names are relative to the folder of the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardsConfig {
    /// `https://host`.
    pub url: String,
    /// A file (mode 0600) whose first line is the API key.
    pub key_file: PathBuf,
    /// A file (mode 0600) whose first line is the secret of the webhook endpoint, `whsec_…`; events are refused if left out.
    #[serde(default)]
    pub webhook_secret_file: Option<PathBuf>,
    /// The root in PEM under which the provider's TLS certificate is; the public roots if left out.
    #[serde(default)]
    pub tls_root: Option<PathBuf>,
    /// Seconds that one answer may take.
    #[serde(default = "answer_seconds")]
    pub answer_seconds: u64,
}

fn answer_seconds() -> u64 {
    Patience::default().answer.as_secs()
}

impl PaymentConfig {
    /// Reads key and secret and makes the provider's client. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`]; for the files those of [`read_private`].
    pub fn open(&self, folder: &Path) -> Result<Option<CardPayments>> {
        let Some(cards) = &self.cards else { return Ok(None) };
        if !(1..=MAX_ANSWER_SECONDS).contains(&cards.answer_seconds) {
            return Err(bad("answer_seconds are 1 to 60"));
        }
        let trust = match &cards.tls_root {
            Some(file) => ServerTrust::root_from_pem(&read(&folder.join(file), MAX_ROOT)?)?,
            None => ServerTrust::WebPki,
        };
        let patience = Patience { answer: Duration::from_secs(cards.answer_seconds), ..Patience::default() };
        let provider = Cards::new(&cards.url, trust, secret(&folder.join(&cards.key_file))?, patience)?;
        let webhooks = cards.webhook_secret_file.as_ref().map(|file| secret(&folder.join(file)));
        let webhooks = webhooks.transpose()?.map(|secret| Webhooks::new(&secret));
        Ok(Some(CardPayments { provider: Box::new(provider), webhooks }))
    }
}

fn bad(why: &str) -> Refusal {
    Refusal::new(Code::ConfigInvalid, format!("payment.cards: {why}"))
}

/// The first line of a private file.
fn secret(path: &Path) -> Result<Zeroizing<String>> {
    let bytes = Zeroizing::new(read_private(path, MAX_SECRET)?);
    let line = std::str::from_utf8(&bytes).ok().and_then(|text| text.lines().next()).map(str::trim).unwrap_or_default();
    if line.is_empty() || !line.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(bad(&format!("the first line of {} is no key", path.display())));
    }
    Ok(Zeroizing::new(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use chipbound_host::files::write_new;

    fn open(folder: &Path, more: &str) -> Result<Option<CardPayments>> {
        let text = format!("url = \"https://127.0.0.1:1\"\nkey_file = \"key\"\n{more}");
        let cards = toml::from_str(&text).expect(more);
        PaymentConfig { cards: Some(cards) }.open(folder)
    }

    #[test]
    fn key_and_secret_are_private_files_and_are_not_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        assert!(PaymentConfig::default().open(path).expect("no cards").is_none());
        assert_eq!(open(path, "").expect_err("no file").code, Code::Io);
        write_new(&path.join("key"), b"sk_live_secret\n", 0o600).expect("written");
        write_new(&path.join("open"), b"whsec_secret\n", 0o644).expect("written");
        write_new(&path.join("empty"), b"\n", 0o600).expect("written");
        let payments = open(path, "").expect("a provider").expect("configured");
        assert!(payments.webhooks.is_none() && !format!("{payments:?}").contains("secret"));
        let hooked = open(path, "webhook_secret_file = \"key\"").expect("a provider").expect("configured");
        assert!(hooked.webhooks.is_some() && !format!("{hooked:?}").contains("secret"));
        for (more, code) in [
            ("webhook_secret_file = \"open\"", Code::InsecurePermissions),
            ("webhook_secret_file = \"empty\"", Code::ConfigInvalid),
            ("answer_seconds = 0", Code::ConfigInvalid),
            ("tls_root = \"key\"", Code::ConfigInvalid),
        ] {
            assert_eq!(open(path, more).expect_err(more).code, code, "{more}");
        }
    }
}
