//! The ledger: double entry, append only. Whether an entry sums to zero and leaves no customer below zero is decided by the
//! database's own triggers (`migrations/`), which also keep what the postings of a book come to.

use super::sql::{Tx, all, signed, unreadable, values};
use chipbound_wire::api::Balance;
use chipbound_wire::{AccountId, Amount, Code, Currency, OrderId, Refusal, Result, Time};

/// One line of an entry.
struct Posting {
    book: &'static str,
    account: AccountId,
    minor: i64,
}

/// Money from outside to the account's funds.
pub(super) fn deposit(tx: &dyn Tx, account: AccountId, amount: Amount, at: Time) -> Result<()> {
    let minor = signed(amount.minor)?;
    let held_and_free = balance(tx, account, amount.currency)?;
    if held_and_free.available.minor.saturating_add(held_and_free.held.minor).saturating_add(amount.minor) > Amount::MAX_MINOR {
        return Err(Refusal::new(Code::TooLarge, "the balance would be larger than the largest amount"));
    }
    let postings = [Posting { book: "deposits", account, minor: -minor }, Posting { book: "funds", account, minor }];
    enter(tx, "deposit", None, amount.currency, &postings, at).map(drop)
}

/// From the customer's funds to what is held for the order; [`Code::InsufficientFunds`].
pub(super) fn hold(tx: &dyn Tx, customer: AccountId, order: OrderId, price: Amount, at: Time) -> Result<()> {
    let funds = "SELECT minor FROM balances WHERE account = $1 AND book = 'funds' AND currency = $2 FOR UPDATE";
    tx.lock(funds, values![&customer, price.currency.as_str()])?;
    let available = balance(tx, customer, price.currency)?.available;
    if available.minor < price.minor {
        return Err(Refusal::new(Code::InsufficientFunds, format!("the price is {price}, the balance {available}")));
    }
    let minor = signed(price.minor)?;
    let postings = [Posting { book: "funds", account: customer, minor: -minor }, Posting { book: "held", account: customer, minor }];
    enter(tx, "hold", Some(order), price.currency, &postings, at).map(drop)
}

/// From what is held for the order to the vendor's revenue; returns the entry's number.
pub(super) fn capture(tx: &dyn Tx, customer: AccountId, vendor: AccountId, order: OrderId, price: Amount, at: Time) -> Result<u64> {
    let minor = signed(price.minor)?;
    let postings = [Posting { book: "held", account: customer, minor: -minor }, Posting { book: "revenue", account: vendor, minor }];
    enter(tx, "capture", Some(order), price.currency, &postings, at)
}

/// What is held for the order back to the customer's funds.
pub(super) fn release(tx: &dyn Tx, customer: AccountId, order: OrderId, price: Amount, at: Time) -> Result<()> {
    let minor = signed(price.minor)?;
    let postings = [Posting { book: "held", account: customer, minor: -minor }, Posting { book: "funds", account: customer, minor }];
    enter(tx, "release", Some(order), price.currency, &postings, at).map(drop)
}

/// Writes the postings, then the entry over them.
fn enter(tx: &dyn Tx, kind: &str, order: Option<OrderId>, currency: Currency, postings: &[Posting], at: Time) -> Result<u64> {
    let entry = tx.next_entry()?;
    for posting in postings {
        let insert = "INSERT INTO postings (entry, book, account, currency, minor) VALUES ($1, $2, $3, $4, $5)";
        tx.execute(insert, values![entry, posting.book, &posting.account, currency.as_str(), posting.minor])?;
    }
    let insert = "INSERT INTO entries (entry, kind, order_id, at) VALUES ($1, $2, $3, $4)";
    tx.execute(insert, values![entry, kind, order.as_ref(), signed(at.0)?])?;
    u64::try_from(entry).map_err(|_| unreadable())
}

/// The account's money, by currency.
pub(super) fn balances(books: &dyn Tx, account: AccountId) -> Result<Vec<Balance>> {
    let sums = "SELECT currency, CAST(sum(CASE book WHEN 'funds' THEN minor ELSE 0 END) AS BIGINT) AS available,
                       CAST(sum(CASE book WHEN 'held' THEN minor ELSE 0 END) AS BIGINT) AS held
                FROM balances WHERE account = $1 AND book IN ('funds', 'held') GROUP BY currency ORDER BY currency";
    all(books, sums, values![&account], |row| {
        let currency = row.parsed("currency")?;
        let amount = |minor| Amount { minor, currency };
        Ok(Balance { available: amount(row.number("available")?), held: amount(row.number("held")?) })
    })
}

/// The account's money of one currency, zero if it never had any.
pub(super) fn balance(books: &dyn Tx, account: AccountId, currency: Currency) -> Result<Balance> {
    let nothing = Amount { minor: 0, currency };
    let all = balances(books, account)?;
    Ok(all.into_iter().find(|b| b.available.currency == currency).unwrap_or(Balance { available: nothing, held: nothing }))
}
