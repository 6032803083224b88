//! The verbs, by whose they are.

pub mod customer;
pub mod installed;
pub mod package;
pub mod processor;
pub mod receipts;
mod several;
pub mod token;
pub mod vendor;

use crate::api::Api;
use crate::home::{Home, Session};
use chipbound_wire::Result;

/// The log-in and the API with it.
pub(crate) fn logged_in(home: &Home) -> Result<(Session, Api)> {
    let session = home.session()?;
    let api = Api::with(&session)?;
    Ok((session, api))
}

/// A number of bytes for people.
#[must_use]
pub fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}
