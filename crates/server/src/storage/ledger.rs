//! The ledger: double entry, append only. Whether an entry sums to zero and leaves no customer below zero is decided by the
//! database's own triggers (`migrations/`), which also keep what the postings of a book come to.

use super::sql::{Row, Tx, all, first, signed, unreadable, values};
use super::{BookBalance, PaymentState, Shares, Statement, StatementLine, StoredOrder, payments};
use chipbound_wire::api::Balance;
use chipbound_wire::{AccountId, Amount, Code, Currency, OrderId, Refusal, Result, Time};

/// What a customer is free to spend.
const FUNDS: &str = "funds";
/// What the card provider owes us, negative.
const CARD: &str = "card";

/// One line of an entry.
struct Posting {
    book: &'static str,
    account: AccountId,
    minor: i64,
}

fn posting(book: &'static str, account: AccountId, minor: i64) -> Posting {
    Posting { book, account, minor }
}

/// Money from outside to the account's funds; returns the entry's number.
pub(super) fn deposit(tx: &dyn Tx, account: AccountId, amount: Amount, at: Time) -> Result<u64> {
    let minor = signed(amount.minor)?;
    let held_and_free = balance(tx, account, amount.currency)?;
    if held_and_free.available.minor.saturating_add(held_and_free.held.minor).saturating_add(amount.minor) > Amount::MAX_MINOR {
        return Err(Refusal::new(Code::TooLarge, "the balance would be larger than the largest amount"));
    }
    let postings = [posting("deposits", account, -minor), posting("funds", account, minor)];
    enter_numbered(tx, Entry { kind: "deposit", order: None, round: 0, note: "", shares: None, at }, amount.currency, postings)
}

/// Where the price of an order can come from.
pub(super) struct Source {
    /// What stands in the customer's funds.
    pub(super) free: i64,
    pub(super) payment: Option<PaymentState>,
}

impl Source {
    /// As it stands until the transaction ends; the order is locked, and so its payment stands still.
    pub(super) fn find(tx: &dyn Tx, order: &StoredOrder) -> Result<Self> {
        let free = free(tx, order.account, FUNDS, order.price.currency)?;
        Ok(Self { free, payment: payments::find(tx, order.order)?.map(|payment| payment.state) })
    }
}

/// From the customer's funds, or what the card provider owes us, to what is held for the order, in the round that the order counts;
/// [`Code::InsufficientFunds`], and where a card is to pay the refusals of [`payments::by_card`].
pub(super) fn hold(tx: &dyn Tx, order: &StoredOrder, from: &Source, at: Time) -> Result<()> {
    let by_card = payments::by_card(from.payment)?;
    let available = spendable(from.free, order.price.currency);
    if !by_card && available.minor < order.price.minor {
        return Err(Refusal::new(Code::InsufficientFunds, format!("the price is {}, the balance {available}", order.price)));
    }
    let minor = signed(order.price.minor)?;
    let postings = [posting(if by_card { CARD } else { FUNDS }, order.account, -minor), posting("held", order.account, minor)];
    enter(tx, &Entry::of(order, "hold", at), order.price.currency, &postings)
}

/// Where the order's last hold came from, and goes back to.
fn source(tx: &dyn Tx, order: &StoredOrder) -> Result<&'static str> {
    let find = "SELECT p.book FROM postings p JOIN entries e USING (entry)
                WHERE e.order_id = $1 AND e.kind = 'hold' AND e.round = $2 AND p.book <> 'held'";
    let book = first(tx, find, values![&order.order, signed(order.holds)?], |row| row.text("book"))?;
    [FUNDS, CARD].into_iter().find(|known| book.as_deref() == Some(*known)).ok_or_else(unreadable)
}

/// What stands in an account's book, which nobody else takes from until the transaction ends.
fn free(tx: &dyn Tx, account: AccountId, book: &'static str, currency: Currency) -> Result<i64> {
    let find = "SELECT minor FROM balances WHERE account = $1 AND book = $2 AND currency = $3 FOR UPDATE";
    Ok(first(tx, find, values![&account, book, currency.as_str()], |row| row.integer("minor"))?.unwrap_or(0))
}

/// What there is to spend of it: nothing where it is below zero.
fn spendable(minor: i64, currency: Currency) -> Amount {
    Amount { minor: u64::try_from(minor).unwrap_or(0), currency }
}

/// What is held for the order back to where it came from.
pub(super) fn release(tx: &dyn Tx, order: &StoredOrder, at: Time) -> Result<()> {
    let minor = signed(order.price.minor)?;
    let postings = [posting("held", order.account, -minor), posting(source(tx, order)?, order.account, minor)];
    enter(tx, &Entry::of(order, "release", at), order.price.currency, &postings)
}

/// An order whose price is taken.
pub(super) struct Captured<'a> {
    /// The number of the entry.
    pub(super) entry: i64,
    pub(super) order: &'a StoredOrder,
    pub(super) shares: &'a Shares,
    pub(super) at: Time,
}

/// For each order an entry from what is held for it to taxes, the house's share and the vendor's revenue.
pub(super) fn capture(tx: &dyn Tx, captured: &[Captured<'_>]) -> Result<()> {
    let rates = captured.iter().map(|one| one.shares.rates()).collect::<Result<Vec<_>>>()?;
    let entry = |(Captured { entry, order, shares, at }, rates): (&Captured<'_>, _)| {
        let parts = shares.of(order.price.minor)?;
        let postings = vec![
            posting("held", order.account, -signed(order.price.minor)?),
            posting("revenue", order.seller, signed(parts.revenue)?),
            posting("fees", order.seller, signed(parts.fee)?),
            posting("tax", order.seller, signed(parts.tax)?),
        ];
        let entry_of = Entry { shares: Some(rates), ..Entry::of(order, "capture", *at) };
        Ok(Numbered { number: *entry, entry: entry_of, currency: order.price.currency, postings })
    };
    let entries = captured.iter().zip(rates.iter().map(String::as_str)).map(entry);
    enter_all(tx, &entries.collect::<Result<Vec<_>>>()?)
}

/// What was captured for the order back to where its hold came from, from wherever it went.
pub(super) fn refund(tx: &dyn Tx, order: &StoredOrder, note: &str, at: Time) -> Result<()> {
    let captured =
        "SELECT p.book, p.account, p.minor FROM postings p JOIN entries e USING (entry) WHERE e.order_id = $1 AND e.kind = 'capture'";
    let source = source(tx, order)?;
    let mut postings = all(tx, captured, values![&order.order], |row| {
        let book = match row.text("book")?.as_str() {
            "held" => source,
            "revenue" => "revenue",
            "fees" => "fees",
            "tax" => "tax",
            _ => return Err(unreadable()),
        };
        Ok(posting(book, AccountId(row.id("account")?), -row.integer("minor")?))
    })?;
    postings.sort_by_key(|posting| (posting.book, posting.account));
    free(tx, order.seller, "revenue", order.price.currency)?; // No payout gets a number in between.
    enter(tx, &Entry { round: 0, note, ..Entry::of(order, "refund", at) }, order.price.currency, &postings)
}

/// Money of an account's book to outside; [`Code::InsufficientFunds`]. Returns the entry's number.
pub(super) fn payout(tx: &dyn Tx, account: AccountId, book: &'static str, amount: Amount, note: &str, at: Time) -> Result<u64> {
    let (currency, wanted) = (amount.currency, signed(amount.minor)?);
    let there = free(tx, account, book, currency)?;
    if there < wanted {
        let there = spendable(there, currency);
        return Err(Refusal::new(Code::InsufficientFunds, format!("{amount} are to be paid out, and {there} are there")));
    }
    let postings = [posting(book, account, -wanted), posting("deposits", account, wanted)];
    enter_numbered(tx, Entry { kind: "payout", order: None, round: 0, note, shares: None, at }, currency, postings)
}

/// What an entry says besides its postings.
struct Entry<'a> {
    kind: &'static str,
    order: Option<OrderId>,
    /// Which hold of the order it is or ends; 0 for what is none of these.
    round: u64,
    note: &'a str,
    /// By what rates a capture divides the price.
    shares: Option<&'a str>,
    at: Time,
}

impl Entry<'static> {
    fn of(order: &StoredOrder, kind: &'static str, at: Time) -> Self {
        Self { kind, order: Some(order.order), round: order.holds, note: "", shares: None, at }
    }
}

/// Writes the postings, then the entry over them, under the next number. Postings of nothing are left out, but for the first two: an entry
/// over a price of zero has some.
fn enter(tx: &dyn Tx, entry: &Entry<'_>, currency: Currency, postings: &[Posting]) -> Result<()> {
    let currency = currency.as_str();
    let (first_two, more) = postings.split_at_checked(2).ok_or_else(unreadable)?;
    let [a, b] = [&first_two[0], &first_two[1]];
    let insert = "INSERT INTO postings (entry, currency, book, account, minor)
                  VALUES (nextval('entry_numbers'), $1, $2, $3, $4), (currval('entry_numbers'), $1, $5, $6, $7)";
    tx.put(insert, values![currency, a.book, &a.account, a.minor, b.book, &b.account, b.minor])?;
    for posting in more.iter().filter(|posting| posting.minor != 0) {
        let insert = "INSERT INTO postings (entry, currency, book, account, minor) VALUES (currval('entry_numbers'), $1, $2, $3, $4)";
        tx.put(insert, values![currency, posting.book, &posting.account, posting.minor])?;
    }
    let insert =
        "INSERT INTO entries (entry, kind, order_id, round, at, note, shares) VALUES (currval('entry_numbers'), $1, $2, $3, $4, $5, $6)";
    let Entry { kind, order, round, note, shares, at } = entry;
    tx.put(insert, values![*kind, order.as_ref(), signed(*round)?, signed(at.0)?, *note, *shares])
}

/// An entry whose number is known, with its postings.
struct Numbered<'a> {
    number: i64,
    entry: Entry<'a>,
    currency: Currency,
    postings: Vec<Posting>,
}

/// The same as [`enter`]; returns the number.
fn enter_numbered(tx: &dyn Tx, entry: Entry<'_>, currency: Currency, postings: [Posting; 2]) -> Result<u64> {
    let number = tx.next_entries(1)?.pop().ok_or_else(unreadable)?;
    enter_all(tx, &[Numbered { number, entry, currency, postings: postings.into() }])?;
    u64::try_from(number).map_err(|_| unreadable())
}

/// Writes the postings of all entries, then the entries.
fn enter_all(tx: &dyn Tx, entries: &[Numbered<'_>]) -> Result<()> {
    let rows = entries.iter().flat_map(|Numbered { number, currency, postings, .. }| {
        let written = postings.iter().enumerate().filter(|(at, posting)| *at < 2 || posting.minor != 0);
        written.map(|(_, posting)| values![*number, currency.as_str(), posting.book, &posting.account, posting.minor].to_vec())
    });
    let insert = "INSERT INTO postings (entry, currency, book, account, minor) VALUES ($1, $2, $3, $4, $5)";
    tx.put_each(insert, &rows.collect::<Vec<_>>())?;
    let rows = entries.iter().map(|Numbered { number, entry: Entry { kind, order, round, note, shares, at }, .. }| {
        Ok(values![*number, *kind, order.as_ref(), signed(*round)?, signed(at.0)?, *note, *shares].to_vec())
    });
    let insert = "INSERT INTO entries (entry, kind, order_id, round, at, note, shares) VALUES ($1, $2, $3, $4, $5, $6, $7)";
    tx.put_each(insert, &rows.collect::<Result<Vec<_>>>()?)
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

/// Lines of one statement.
const STATEMENT: u32 = 100_000;

/// What stands in each book of an account.
pub(super) fn books_of(books: &dyn Tx, account: AccountId) -> Result<Vec<BookBalance>> {
    let list = "SELECT book, currency, minor FROM balances WHERE account = $1 ORDER BY currency, book";
    all(books, list, values![&account], book_balance)
}

fn book_balance(row: &dyn Row) -> Result<BookBalance> {
    Ok(BookBalance { book: row.text("book")?, currency: row.parsed("currency")?, minor: row.integer("minor")? })
}

/// Every posting of an account with `from` ≤ time < `until`, and what its books came to before.
pub(super) fn statement(books: &dyn Tx, account: AccountId, from: Time, until: Time) -> Result<Statement> {
    let before = "SELECT p.book, p.currency, CAST(sum(p.minor) AS BIGINT) AS minor FROM postings p JOIN entries e USING (entry)
                  WHERE p.account = $1 AND e.at < $2 GROUP BY p.book, p.currency ORDER BY p.currency, p.book";
    let opening = all(books, before, values![&account, signed(from.0)?], book_balance)?;
    let within =
        "SELECT e.entry, e.at, e.kind, e.order_id, e.note, p.book, p.currency, p.minor FROM postings p JOIN entries e USING (entry)
                  WHERE p.account = $1 AND e.at >= $2 AND e.at < $3 ORDER BY e.entry, p.book LIMIT $4";
    let lines = all(books, within, values![&account, signed(from.0)?, signed(until.0)?, STATEMENT + 1], |row| {
        let order = row.optional_bytes("order_id")?;
        Ok(StatementLine {
            entry: row.number("entry")?,
            at: Time(row.number("at")?),
            kind: row.text("kind")?,
            order: order.map(|o| OrderId::from_slice(&o)).transpose().map_err(|_| unreadable())?,
            note: row.text("note")?,
            change: book_balance(row)?,
        })
    })?;
    if lines.len() > STATEMENT as usize {
        return Err(Refusal::new(Code::TooLarge, format!("the statement has more than {STATEMENT} lines: ask for a shorter period")));
    }
    Ok(Statement { opening, lines })
}
