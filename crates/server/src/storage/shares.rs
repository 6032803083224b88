//! Who gets what of a price.

use chipbound_wire::documents::TaxLine;
use chipbound_wire::{Code, Refusal, Result};
use serde::Serialize;

/// How a price is divided.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Shares {
    /// The house's share of what remains after taxes, in basis points: 10,000 is all of it.
    pub house: u32,
    /// The taxes that the price contains.
    pub taxes: Vec<TaxLine>,
}

/// The parts of a price, in its minor units; together they are the price.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parts {
    /// The taxes.
    pub tax: u64,
    /// The house's share.
    pub fee: u64,
    /// The vendor's.
    pub revenue: u64,
}

impl Shares {
    /// Basis points of all of it.
    pub const ALL: u32 = 10_000;

    /// All taxes together, in minor units.
    #[must_use]
    pub fn tax(&self) -> u64 {
        self.taxes.iter().map(|line| line.minor).sum()
    }

    /// The rates, as they are kept with the capture.
    pub(super) fn rates(&self) -> Result<String> {
        let taxes = self.taxes.iter().map(|line| Rate { name: &line.name, rate: line.rate }).collect();
        let text = serde_json::to_string(&Rates { house: self.house, taxes });
        text.map_err(|e| Refusal::new(Code::Internal, "rates cannot be written").because(e))
    }

    /// Divides a price. Of what does not divide evenly the vendor gets the greater part: the house's share is rounded down to
    /// whole minor units. [`Code::ConfigInvalid`] where the taxes are more than the price or the share more than all.
    pub fn of(&self, price: u64) -> Result<Parts> {
        let tax = self.tax();
        let net = price.checked_sub(tax).filter(|_| self.house <= Self::ALL);
        let net = net.ok_or_else(|| Refusal::new(Code::ConfigInvalid, "taxes and the house's share are more than the price"))?;
        let fee = u128::from(net) * u128::from(self.house) / u128::from(Self::ALL);
        let fee = u64::try_from(fee).map_err(|_| Refusal::new(Code::Internal, "a share is more than the price"))?;
        Ok(Parts { tax, fee, revenue: net - fee })
    }
}

#[derive(Serialize)]
struct Rates<'a> {
    house: u32,
    taxes: Vec<Rate<'a>>,
}

#[derive(Serialize)]
struct Rate<'a> {
    name: &'a str,
    rate: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use chipbound_wire::bounded::Text;

    fn shares(house: u32, tax: u64) -> Shares {
        let line = |minor| TaxLine { name: Text::new("VAT".to_owned()).expect("short"), rate: 1900, minor };
        Shares { house, taxes: vec![line(tax / 2), line(tax - tax / 2)] }
    }

    #[test]
    fn the_parts_are_the_price_and_what_does_not_divide_is_the_vendors() {
        for price in (0..2000).chain([chipbound_wire::Amount::MAX_MINOR]) {
            for house in [0, 1, 333, 2999, 5000, 9999, 10_000] {
                for tax in [0, price / 6, price] {
                    let parts = shares(house, tax).of(price).expect("it divides");
                    assert_eq!(parts.tax + parts.fee + parts.revenue, price, "{price} {house} {tax}");
                    assert!(u128::from(parts.fee) * 10_000 <= u128::from(price - tax) * u128::from(house), "never more than its share");
                    assert!((u128::from(parts.fee) + 1) * 10_000 > u128::from(price - tax) * u128::from(house), "and less than one below");
                }
            }
        }
        assert_eq!(shares(3000, 40).of(250).expect("it divides"), Parts { tax: 40, fee: 63, revenue: 147 });
        for wrong in [shares(10_001, 0), shares(0, 251)] {
            assert_eq!(wrong.of(250).expect_err("too much").code, Code::ConfigInvalid);
        }
    }
}
