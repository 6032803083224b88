//! Configuration files in TOML.

use crate::files::read;
use chipbound_wire::{Code, Refusal, Result};
use serde::de::DeserializeOwned;
use std::path::Path;

/// Far above any real configuration.
const MAX_CONFIG: usize = 256 * 1024;

/// Reads a configuration. A mistake is [`Code::ConfigInvalid`], naming file, line and field.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = read(path, MAX_CONFIG).map_err(|e| Refusal::new(Code::ConfigInvalid, e.detail.clone()).because(e))?;
    let text = String::from_utf8(bytes).map_err(|_| Refusal::new(Code::ConfigInvalid, format!("{} is not UTF-8", path.display())))?;
    toml::from_str(&text).map_err(|e| {
        let line = e.span().map_or(1, |s| text[..s.start].matches('\n').count() + 1);
        Refusal::new(Code::ConfigInvalid, format!("{}:{line}: {}", path.display(), e.message().replace('\n', " "))).because(e)
    })
}
