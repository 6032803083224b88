//! Taxes that a price contains (docs/ledger.md, "Shares and taxes").

use chipbound_wire::Digest;
use std::cmp::Ordering;

/// What of an amount each tax is: as many hundredths of a percent of the price without taxes as its rate says, to the nearest minor unit,
/// halves to even.
pub(crate) fn taxes(rates: &[u32], amount: u128) -> Vec<u128> {
    let whole = 10_000 + rates.iter().map(|rate| u128::from(*rate)).sum::<u128>();
    let share = |rate: &u32| {
        let product = amount * u128::from(*rate);
        let below = product / whole;
        match (2 * (product - below * whole)).cmp(&whole) {
            Ordering::Greater => below + 1,
            Ordering::Equal => below + below % 2,
            Ordering::Less => below,
        }
    };
    rates.iter().map(share).collect()
}

/// Names and rates of taxes, as one digest.
pub(crate) fn rates_of<'a>(taxes: impl Iterator<Item = (&'a str, u32)>) -> Digest {
    let lines: String = taxes.map(|(name, rate)| format!("{}:{name}:{rate};", name.len())).collect();
    Digest::of(lines.as_bytes())
}
