//! The one dialect in which the repository's transactions are written, over either engine.
//!
//! A transaction is an ordinary function over a [`Tx`], which may be run again from its beginning. Statements are literals both
//! engines take as they are, with parameters `$1`, `$2` … numbered in the order in which they first occur. Where a transaction
//! decides by what it reads, it locks those rows first ([`Tx::lock`]): SQLite has one writer and needs none, PostgreSQL runs with
//! READ COMMITTED and holds the locks until the transaction ends.

use chipbound_wire::{AccountId, Amount, Code, Digest, KeyId, OrderId, Refusal, Result};

/// A transaction, or a query outside of one.
pub(super) trait Tx {
    /// Runs a statement whose result nobody looks at. What follows sees what it changed; that it fails may show only then, or when
    /// the transaction is committed.
    fn put(&self, statement: &'static str, values: &[Value<'_>]) -> Result<()>;
    /// The same for each of these rows of values, in their order, as one: `INSERT … VALUES (…)` of parameters, or `UPDATE … SET …
    /// WHERE …` by a key that no two rows share.
    fn put_each(&self, statement: &'static str, rows: &[Vec<Value<'_>>]) -> Result<()>;
    /// Runs a statement that returns no rows; how many it changed.
    fn execute(&self, statement: &'static str, values: &[Value<'_>]) -> Result<u64>;
    /// The same, and ends the transaction with it, in one message: what it changed stays. Where it changed nothing and nothing was changed
    /// before it, queries that lock nothing may follow and the transaction be refused; nothing else may come after it.
    fn execute_last(&self, statement: &'static str, values: &[Value<'_>]) -> Result<u64>;
    /// Runs a query and shows `read` each row until it returns false. A `SELECT … FOR UPDATE` of one table locks the rows that it finds until
    /// the transaction ends: what it shows is how they stand. What was read before, also of other tables, may be old. Lock an account before
    /// its orders, and orders in the order of their ids.
    fn query(&self, statement: &'static str, values: &[Value<'_>], read: &mut dyn FnMut(&dyn Row) -> Result<bool>) -> Result<()>;
    /// Runs a query of one parameter, compared by `= ANY($1)`, for all these keys, and shows `read` each row; locks them where it says
    /// `FOR UPDATE`.
    fn query_keys(&self, statement: &'static str, keys: &[&[u8]], read: &mut dyn FnMut(&dyn Row) -> Result<()>) -> Result<()>;
    /// Runs a `SELECT … FOR UPDATE` of rows that nobody looks at.
    fn lock(&self, statement: &'static str, values: &[Value<'_>]) -> Result<()>;
    /// Waits until no other transaction holds the lock of that number, and holds it until this one ends.
    fn alone(&self, lock: Lock) -> Result<()>;
    /// So many numbers of next entries of the ledger. Numbers rise; a transaction that fails may leave a gap. (A statement takes one as
    /// `nextval('entry_numbers')`, and the same again as `currval('entry_numbers')` until the entry is written.)
    fn next_entries(&self, many: usize) -> Result<Vec<i64>>;
    /// The ledger has entries up to that number, written without asking for their numbers.
    fn entries_up_to(&self, last: i64) -> Result<()>;
}

/// What only one transaction at a time may do.
#[derive(Clone, Copy)]
#[repr(i64)]
pub(super) enum Lock {
    /// Publish: which account owns a vendor's programs, and which sequence number is the newest.
    Publishing = 1,
    /// Enter receipts in the log; taken after all orders, before any number.
    Logging = 3,
}

/// A value that goes into a statement.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Integer(Option<i64>),
    Text(Option<&'a str>),
    Blob(Option<&'a [u8]>),
}

/// A value that came out of a statement.
pub(super) enum Cell<'a> {
    Integer(i64),
    Text(&'a str),
    Blob(&'a [u8]),
    Null,
}

/// A row that a query found.
pub(super) trait Row {
    /// What stands in the column of that name.
    fn cell(&self, column: &str) -> Result<Cell<'_>>;
}

/// The values of a statement.
macro_rules! values {
    ($($value:expr),* $(,)?) => { &[$($crate::storage::sql::Value::from($value)),*] };
}
pub(super) use values;

macro_rules! blob_values {
    ($($id:ty),*) => {$(
        impl<'a> From<&'a $id> for Value<'a> {
            fn from(id: &'a $id) -> Self {
                Self::Blob(Some(id.as_ref()))
            }
        }
        impl<'a> From<Option<&'a $id>> for Value<'a> {
            fn from(id: Option<&'a $id>) -> Self {
                Self::Blob(id.map(AsRef::as_ref))
            }
        }
    )*};
}
blob_values!(AccountId, OrderId, KeyId, Digest, Vec<u8>);

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Some(text))
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(text: Option<&'a str>) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(Some(text))
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Integer(Some(number))
    }
}

impl From<u32> for Value<'_> {
    fn from(number: u32) -> Self {
        Self::Integer(Some(number.into()))
    }
}

/// Columns of a row as our types; what does not read as such is [`Code::Database`].
impl dyn Row + '_ {
    pub(super) fn integer(&self, column: &str) -> Result<i64> {
        match self.cell(column)? {
            Cell::Integer(number) => Ok(number),
            _ => Err(unreadable()),
        }
    }

    pub(super) fn number(&self, column: &str) -> Result<u64> {
        u64::try_from(self.integer(column)?).map_err(|_| unreadable())
    }

    pub(super) fn optional_number(&self, column: &str) -> Result<Option<u64>> {
        match self.cell(column)? {
            Cell::Integer(number) => u64::try_from(number).map(Some).map_err(|_| unreadable()),
            Cell::Null => Ok(None),
            _ => Err(unreadable()),
        }
    }

    pub(super) fn optional_bytes(&self, column: &str) -> Result<Option<Vec<u8>>> {
        match self.cell(column)? {
            Cell::Blob(bytes) => Ok(Some(bytes.to_vec())),
            Cell::Null => Ok(None),
            _ => Err(unreadable()),
        }
    }

    pub(super) fn bytes(&self, column: &str) -> Result<Vec<u8>> {
        self.optional_bytes(column)?.ok_or_else(unreadable)
    }

    pub(super) fn id<const N: usize>(&self, column: &str) -> Result<[u8; N]> {
        match self.cell(column)? {
            Cell::Blob(bytes) => bytes.try_into().map_err(|_| unreadable()),
            _ => Err(unreadable()),
        }
    }

    pub(super) fn text(&self, column: &str) -> Result<String> {
        match self.cell(column)? {
            Cell::Text(text) => Ok(text.to_owned()),
            _ => Err(unreadable()),
        }
    }

    pub(super) fn optional_text(&self, column: &str) -> Result<Option<String>> {
        match self.cell(column)? {
            Cell::Text(text) => Ok(Some(text.to_owned())),
            Cell::Null => Ok(None),
            _ => Err(unreadable()),
        }
    }

    pub(super) fn parsed<T: std::str::FromStr>(&self, column: &str) -> Result<T> {
        match self.cell(column)? {
            Cell::Text(text) => text.parse().map_err(|_| unreadable()),
            _ => Err(unreadable()),
        }
    }

    pub(super) fn amount(&self) -> Result<Amount> {
        Ok(Amount { minor: self.number("price")?, currency: self.parsed("currency")? })
    }
}

/// The first row that a query finds, as `read` takes it.
pub(super) fn first<T>(
    tx: &dyn Tx,
    statement: &'static str,
    values: &[Value<'_>],
    read: impl Fn(&dyn Row) -> Result<T>,
) -> Result<Option<T>> {
    let mut found = None;
    tx.query(statement, values, &mut |row| {
        found = Some(read(row)?);
        Ok(false)
    })?;
    Ok(found)
}

/// Every row that a query finds, as `read` takes them.
pub(super) fn all<T>(tx: &dyn Tx, statement: &'static str, values: &[Value<'_>], read: impl Fn(&dyn Row) -> Result<T>) -> Result<Vec<T>> {
    let mut found = Vec::new();
    tx.query(statement, values, &mut |row| {
        found.push(read(row)?);
        Ok(true)
    })?;
    Ok(found)
}

/// The number `n` of the one row that a query always finds.
pub(super) fn number(tx: &dyn Tx, statement: &'static str, values: &[Value<'_>]) -> Result<u64> {
    first(tx, statement, values, |row| row.number("n"))?.ok_or_else(unreadable)
}

/// Numbers in the database are signed.
pub(super) fn signed(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| Refusal::new(Code::TooLarge, "a number beyond what the books can hold"))
}

/// A row that is not what this version writes.
pub(super) fn unreadable() -> Refusal {
    Refusal::new(Code::Database, "a row of the database does not read as what it should be")
}
