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
use chipbound_wire::{Refusal, Result};
use std::io::BufRead;
use std::str::FromStr;

/// The log-in and the API with it.
pub(crate) fn logged_in(home: &Home) -> Result<(Session, Api)> {
    let session = home.session()?;
    let api = Api::with(&session)?;
    Ok((session, api))
}

/// A value on the command line. What is wrong with it is said without the code, as for other values.
pub(crate) fn parsed<T: FromStr<Err = Refusal>>(text: &str) -> std::result::Result<T, String> {
    text.parse().map_err(|refusal: Refusal| refusal.detail)
}

/// A voucher as it was told, or with `-` the first line of stdin: what stands on a command line, others see.
pub(crate) fn voucher(told: String) -> Result<String> {
    if told != "-" {
        return Ok(told);
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|e| Refusal::io("the voucher on stdin", e))?;
    Ok(line.trim_end().to_owned())
}

/// A number of bytes for people.
#[must_use]
pub fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}
