//! Pages of lists: a cursor names the last thing that was shown, so that nothing is shown twice or left out when things are added.

use chipbound_wire::{Code, OrderId, Refusal, Result, Time};
use serde::Deserialize;

/// Things on one page, at most and where the caller says nothing.
pub(crate) const MOST: u32 = 256;

/// Which page is asked for.
#[derive(Deserialize, Default, Debug)]
pub struct Page {
    /// The `next` of the page before; the first page without one.
    cursor: Option<String>,
    /// How many at most, 1 to 256.
    limit: Option<u32>,
}

impl Page {
    /// How many things are asked for; [`Code::Malformed`] for none or more than there may be.
    pub(crate) fn limit(&self) -> Result<u32> {
        match self.limit.unwrap_or(MOST) {
            limit @ 1..=MOST => Ok(limit),
            _ => Err(Refusal::new(Code::Malformed, format!("limit is 1 to {MOST}"))),
        }
    }

    /// After what to go on, as [`next`] wrote it for the same `list`; [`Code::Malformed`] for any other cursor.
    pub(crate) fn after(&self, list: &str) -> Result<Option<String>> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let text = data_encoding::BASE64URL_NOPAD.decode(cursor.as_bytes()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let after = text.as_deref().and_then(|text| text.strip_prefix(list)?.strip_prefix(':'));
        Ok(Some(after.ok_or_else(foreign)?.to_owned()))
    }

    /// Before what a list goes on that shows what has a time and an order, newest first: the cursor's [`moment_key`], or the end of time.
    pub(crate) fn before(&self, list: &str) -> Result<(Time, OrderId)> {
        let Some(key) = self.after(list)? else { return Ok((Time(i64::MAX as u64), OrderId([0xff; 16]))) };
        let (at, order) = key.split_once('.').ok_or_else(foreign)?;
        let at = at.parse().ok().filter(|t| i64::try_from(*t).is_ok()).ok_or_else(foreign)?;
        Ok((Time(at), order.parse().map_err(|_| foreign())?))
    }
}

fn foreign() -> Refusal {
    Refusal::new(Code::Malformed, "the cursor is none of this list")
}

/// The key of what has a time and an order, for [`next`] and [`Page::before`].
pub(crate) fn moment_key(at: Time, order: OrderId) -> String {
    format!("{}.{order}", at.0)
}

/// The cursor of the page after `shown`, unless that was the last one: `limit` things and one more were asked for.
pub(crate) fn next<T>(list: &str, shown: &mut Vec<T>, limit: u32, key: impl Fn(&T) -> String) -> Option<String> {
    let limit = limit as usize;
    if shown.len() <= limit {
        return None;
    }
    shown.truncate(limit);
    let last = shown.last().map(key)?;
    Some(data_encoding::BASE64URL_NOPAD.encode(format!("{list}:{last}").as_bytes()))
}
