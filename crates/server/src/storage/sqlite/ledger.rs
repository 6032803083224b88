//! The ledger: double entry, append only. Whether an entry sums to zero and leaves no customer below zero is decided by the
//! database's own triggers (`migrations/`), which also keep what the postings of a book come to.

use super::{Columns, all, execute, number, signed};
use chipbound_wire::api::Balance;
use chipbound_wire::{AccountId, Amount, Code, Currency, OrderId, Refusal, Result, Time};
use rusqlite::{Connection, params};

/// One line of an entry.
struct Posting {
    book: &'static str,
    account: AccountId,
    minor: i64,
}

/// Money from outside to the account's funds.
pub(super) fn deposit(tx: &Connection, account: AccountId, amount: Amount, at: Time) -> Result<()> {
    let minor = signed(amount.minor)?;
    let held_and_free = balance(tx, account, amount.currency)?;
    if held_and_free.available.minor.saturating_add(held_and_free.held.minor).saturating_add(amount.minor) > Amount::MAX_MINOR {
        return Err(Refusal::new(Code::TooLarge, "the balance would be larger than the largest amount"));
    }
    let postings = [Posting { book: "deposits", account, minor: -minor }, Posting { book: "funds", account, minor }];
    enter(tx, "deposit", None, amount.currency, &postings, at).map(drop)
}

/// From the customer's funds to what is held for the order; [`Code::InsufficientFunds`].
pub(super) fn hold(tx: &Connection, customer: AccountId, order: OrderId, price: Amount, at: Time) -> Result<()> {
    let available = balance(tx, customer, price.currency)?.available;
    if available.minor < price.minor {
        return Err(Refusal::new(Code::InsufficientFunds, format!("the price is {price}, the balance {available}")));
    }
    let minor = signed(price.minor)?;
    let postings = [Posting { book: "funds", account: customer, minor: -minor }, Posting { book: "held", account: customer, minor }];
    enter(tx, "hold", Some(order), price.currency, &postings, at).map(drop)
}

/// From what is held for the order to the vendor's revenue; returns the entry's number.
pub(super) fn capture(tx: &Connection, customer: AccountId, vendor: AccountId, order: OrderId, price: Amount, at: Time) -> Result<u64> {
    let minor = signed(price.minor)?;
    let postings = [Posting { book: "held", account: customer, minor: -minor }, Posting { book: "revenue", account: vendor, minor }];
    enter(tx, "capture", Some(order), price.currency, &postings, at)
}

/// What is held for the order back to the customer's funds.
pub(super) fn release(tx: &Connection, customer: AccountId, order: OrderId, price: Amount, at: Time) -> Result<()> {
    let minor = signed(price.minor)?;
    let postings = [Posting { book: "held", account: customer, minor: -minor }, Posting { book: "funds", account: customer, minor }];
    enter(tx, "release", Some(order), price.currency, &postings, at).map(drop)
}

/// Writes the postings, then the entry over them.
fn enter(tx: &Connection, kind: &str, order: Option<OrderId>, currency: Currency, postings: &[Posting], at: Time) -> Result<u64> {
    let entry = signed(number(tx, "SELECT coalesce(max(entry), 0) + 1 FROM entries", [])?)?;
    for posting in postings {
        let insert = "INSERT INTO postings (entry, book, account, currency, minor) VALUES (?, ?, ?, ?, ?)";
        execute(tx, insert, params![entry, posting.book, posting.account.0, currency.as_str(), posting.minor])?;
    }
    let insert = "INSERT INTO entries (entry, kind, order_id, at) VALUES (?, ?, ?, ?)";
    execute(tx, insert, params![entry, kind, order.map(|o| o.0), signed(at.0)?])?;
    u64::try_from(entry).map_err(|_| super::unreadable())
}

/// The account's money, by currency.
pub(super) fn balances(connection: &Connection, account: AccountId) -> Result<Vec<Balance>> {
    let sums = "SELECT currency, sum(CASE book WHEN 'funds' THEN minor ELSE 0 END) AS available,
                       sum(CASE book WHEN 'held' THEN minor ELSE 0 END) AS held
                FROM balances WHERE account = ? AND book IN ('funds', 'held') GROUP BY currency ORDER BY currency";
    all(connection, sums, [account.0], |row| {
        let currency = row.parsed("currency")?;
        let amount = |minor| Amount { minor, currency };
        Ok(Balance { available: amount(row.number("available")?), held: amount(row.number("held")?) })
    })
}

/// The account's money of one currency, zero if it never had any.
pub(super) fn balance(connection: &Connection, account: AccountId, currency: Currency) -> Result<Balance> {
    let nothing = Amount { minor: 0, currency };
    let all = balances(connection, account)?;
    Ok(all.into_iter().find(|b| b.available.currency == currency).unwrap_or(Balance { available: nothing, held: nothing }))
}
