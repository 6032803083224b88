//! How a customer pays, and what must never be part of it: the number of a card.

use crate::error::{Code, Refusal, Result};
use std::fmt;
use std::str::FromStr;

/// The longest token of a payment method, in bytes.
pub const MAX_CARD_TOKEN: usize = 255;
/// Digits of a card number (ISO/IEC 7812-1).
const CARD_DIGITS: std::ops::RangeInclusive<usize> = 13..=19;
/// What people write between groups of them.
const SEPARATORS: [char; 3] = [' ', '-', '.'];

/// A payment method as the card provider's own form or command named it, `pm_…`: it pays nothing at anybody else's. It is
/// handed on to the provider and never stored; Debug does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct CardToken(String);

impl CardToken {
    /// The token.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CardToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CardToken(…)")
    }
}

impl FromStr for CardToken {
    type Err = Refusal;
    /// Takes `pm_` and letters, digits and underscores. [`Code::CardNumber`] for anything with a card number in it, otherwise
    /// [`Code::Malformed`]; neither repeats the text.
    fn from_str(text: &str) -> Result<Self> {
        refuse_card_numbers("the payment method", text)?;
        let rest = text.strip_prefix("pm_").unwrap_or_default();
        if rest.is_empty() || text.len() > MAX_CARD_TOKEN || !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(Refusal::new(Code::Malformed, "a payment method is a token of the card provider's, pm_ and letters or digits"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Refuses a text with a card number in it by [`Code::CardNumber`], naming the field and not the text.
pub fn refuse_card_numbers(field: &str, text: &str) -> Result<()> {
    match holds_card_number(text) {
        true => Err(Refusal::new(Code::CardNumber, format!("{field} holds what looks like the number of a card"))),
        false => Ok(()),
    }
}

/// Whether groups of digits, with spaces, dots or dashes between them or none, make up a number with the length and the check
/// digit of a card's.
#[must_use]
pub fn holds_card_number(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_digit() && !SEPARATORS.contains(&c)).any(|run| {
        let groups: Vec<Vec<u32>> = run.split(SEPARATORS).map(|group| group.chars().filter_map(|c| c.to_digit(10)).collect()).collect();
        (0..groups.len()).any(|first| begins_card_number(&groups[first..]))
    })
}

/// Whether the first of these groups, or the first few together, are a card number.
fn begins_card_number(groups: &[Vec<u32>]) -> bool {
    let mut digits = Vec::new();
    for group in groups {
        digits.extend(group);
        if digits.len() > *CARD_DIGITS.end() {
            return false;
        }
        if is_card_number(&digits) {
            return true;
        }
    }
    false
}

/// The length, and the check digit by Luhn's formula (ISO/IEC 7812-1 annex B).
fn is_card_number(digits: &[u32]) -> bool {
    let doubled = |digit: u32| if digit > 4 { digit * 2 - 9 } else { digit * 2 };
    let sum: u32 = digits.iter().rev().enumerate().map(|(place, &digit)| if place % 2 == 1 { doubled(digit) } else { digit }).sum();
    CARD_DIGITS.contains(&digits.len()) && sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_cards_are_seen_in_any_writing() {
        for text in [
            "4242424242424242",
            "4242 4242 4242 4242",
            "4000-0566-5566-5556",
            "378282246310005",
            "6304 0000 0000 0000 000",
            "pm_4242424242424242",
            "1 4242424242424242 2",
            "1-4242-4242-4242-4242-12",
            "card: 4242.4242.4242.4242, please",
        ] {
            assert!(holds_card_number(text), "{text}");
            assert_eq!(text.parse::<CardToken>().expect_err(text).code, Code::CardNumber);
        }
    }

    #[test]
    fn other_numbers_and_tokens_are_no_cards() {
        for text in ["4242424242424241", "424242424242", "tool-1.0.20261122", "pm_1NXWPnLkdIwHu7ix7GbXVoYJ", "", "1234567890 EUR"] {
            assert!(!holds_card_number(text), "{text}");
        }
    }

    #[test]
    fn a_token_is_the_providers_and_nothing_else_and_is_not_shown() {
        let token: CardToken = "pm_card_visa".parse().expect("a token");
        assert_eq!((token.as_str(), format!("{token:?}").as_str()), ("pm_card_visa", "CardToken(…)"));
        for text in ["", "pm_", "tok_visa", "pm_a b", "pm_ä", &format!("pm_{}", "a".repeat(253))] {
            assert_eq!(text.parse::<CardToken>().expect_err(text).code, Code::Malformed, "{text}");
        }
    }
}
