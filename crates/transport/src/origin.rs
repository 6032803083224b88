//! The address of a server.

use chipbound_wire::{Code, Refusal, Result};
use http::{HeaderValue, Uri};
use rustls::pki_types::ServerName;

/// Where a client's requests go.
pub(crate) struct Origin {
    /// `host:port`, as it is dialled and shown.
    pub(crate) address: String,
    /// What the `Host` field says.
    pub(crate) host: HeaderValue,
    pub(crate) name: ServerName<'static>,
}

impl Origin {
    /// Takes `https://host` or `https://host:port` and nothing more.
    pub(crate) fn parse(base_url: &str) -> Result<Self> {
        let wrong = || Refusal::new(Code::ConfigInvalid, format!("{base_url:?} is not of the form https://host:port"));
        let uri: Uri = base_url.parse().map_err(|_| wrong())?;
        let plain = uri.scheme_str() == Some("https") && matches!(uri.path_and_query().map(|p| p.as_str()), None | Some("" | "/"));
        let authority = uri.authority().filter(|a| plain && !a.as_str().contains('@')).ok_or_else(wrong)?;
        let bare = authority.host().trim_start_matches('[').trim_end_matches(']');
        Ok(Self {
            address: format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(443)),
            host: HeaderValue::try_from(authority.as_str()).map_err(|_| wrong())?,
            name: ServerName::try_from(bare.to_owned()).map_err(|_| wrong())?,
        })
    }
}
