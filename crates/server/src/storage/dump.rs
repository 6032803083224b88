//! Every row that a backup holds, as it stood at one moment, in one form for both engines; and back into books that are empty.
//!
//! Left out is what would be wrong or dangerous later: log-ins and API tokens (one withdrawn since would be good again), tickets, uploads,
//! parcels. Balances are made again from the postings.

use super::books::Books;
use super::sql::{Cell, Tx, Value, all, first, number, unreadable, values};
use chipbound_wire::{Code, Refusal, Result};
use minicbor::{Decode, Encode};
use std::sync::LazyLock;

/// Rows of one query.
const PAGE: usize = 200;

/// A row.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub(crate) struct Row {
    /// Its table.
    #[n(0)]
    pub(crate) table: String,
    /// What stands in the table's columns, in the order of [`TABLES`].
    #[n(1)]
    pub(crate) values: Vec<Kept>,
}

/// What stands in a column.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub(crate) enum Kept {
    /// Nothing.
    #[n(0)]
    Null,
    /// A number.
    #[n(1)]
    Integer(#[n(0)] i64),
    /// A text.
    #[n(2)]
    Text(#[n(0)] String),
    /// Bytes.
    #[n(3)]
    Blob(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
}

impl Row {
    /// What stands in a column; none where the table has none of that name.
    pub(crate) fn column(&mut self, name: &str) -> Option<&mut Kept> {
        let at = table(&self.table)?.columns.iter().position(|(column, _)| *column == name)?;
        self.values.get_mut(at)
    }
}

/// What a column holds.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Integer,
    Text,
    Blob,
}
use Kind::{Blob, Integer, Text};

/// A table, and the statements that read it page by page and write it.
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) columns: &'static [(&'static str, Kind)],
    /// The first columns are the key in whose order it is read, so many.
    keys: usize,
    start: String,
    next: String,
    insert: String,
}

/// Tables, number of key columns, columns. Rows refer to tables before theirs alone.
type Form = (&'static str, usize, &'static [(&'static str, Kind)]);

#[rustfmt::skip]
const FORMS: [Form; 14] = [
    ("accounts", 1, &[("account", Blob), ("\"user\"", Text), ("role", Text), ("password", Text), ("created_at", Integer)]),
    ("releases", 1, &[("manifest", Blob), ("program", Text), ("name", Text), ("version", Text), ("sequence", Integer), ("vendor", Blob),
        ("price", Integer), ("currency", Text), ("signed_manifest", Blob), ("layout", Blob), ("plain_digest", Blob),
        ("sealed_bytes", Integer), ("blob", Text), ("published_at", Integer)]),
    ("common_packages", 2, &[("manifest", Blob), ("aead", Text), ("package_id", Blob), ("content_key", Blob), ("blob", Text),
        ("body_root", Blob), ("body_size", Integer), ("table_root", Blob), ("table_size", Integer)]),
    ("orders", 1, &[("order_id", Blob), ("account", Blob), ("manifest", Blob), ("seller", Blob), ("processor", Blob), ("key_mode", Text),
        ("price", Integer), ("currency", Text), ("state", Text), ("confirmation", Blob), ("idempotency_key", Text), ("parameters", Blob),
        ("issued_at", Integer), ("expires_at", Integer), ("redownload_until", Integer), ("readmitted_until", Integer), ("holds", Integer),
        ("seal_digest", Blob), ("acknowledgement", Blob), ("capture_key", Text)]),
    ("deliveries", 1, &[("seal_digest", Blob), ("terms_digest", Blob), ("order_id", Blob), ("terms", Blob), ("wrap", Blob), ("kem", Text),
        ("sealing_key", Blob), ("release_secret", Blob), ("content_key", Blob), ("seal", Blob), ("acknowledgement", Blob),
        ("token", Blob), ("created_at", Integer)]),
    ("transfers", 2, &[("order_id", Blob), ("from_processor", Blob), ("to_processor", Blob), ("retirement", Blob), ("transfer", Blob),
        ("at", Integer)]),
    ("payments", 1, &[("order_id", Blob), ("attempt", Integer), ("method", Blob), ("state", Text), ("reference", Text)]),
    // Its entries come last: that they are there is asked at the end.
    ("instructions", 2, &[("account", Blob), ("key", Text), ("parameters", Blob), ("entry", Integer), ("available", Integer),
        ("held", Integer)]),
    ("sellers", 1, &[("seller", Blob), ("receipts", Integer)]),
    ("receipts", 2, &[("seller", Blob), ("number", Integer), ("order_id", Blob), ("account", Blob), ("receipt", Blob),
        ("issued_at", Integer), ("log_index", Integer)]),
    ("log_statements", 1, &[("digest", Blob), ("statement", Blob)]),
    ("log_nodes", 2, &[("level", Integer), ("position", Integer), ("value", Blob)]),
    ("log_checkpoints", 1, &[("size", Integer), ("note", Text), ("statement", Blob)]),
    ("log_head", 1, &[("one", Integer), ("size", Integer), ("edge", Blob), ("statement", Blob)]),
];

/// An entry follows its postings, and these the entry before: the books take them in no other order.
const POSTINGS: Form = ("postings", 2, &[("entry", Integer), ("book", Text), ("account", Blob), ("currency", Text), ("minor", Integer)]);
const ENTRIES: Form = (
    "entries",
    1,
    &[("entry", Integer), ("kind", Text), ("order_id", Blob), ("round", Integer), ("at", Integer), ("note", Text), ("shares", Text)],
);

/// All tables of a backup.
pub(super) static TABLES: LazyLock<Vec<Table>> = LazyLock::new(|| FORMS.into_iter().chain([POSTINGS, ENTRIES]).map(Table::of).collect());

fn table(name: &str) -> Option<&'static Table> {
    TABLES.iter().find(|table| table.name == name)
}

impl Table {
    fn of((name, keys, columns): Form) -> Self {
        let list = |columns: &[(&str, Kind)]| columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let marks = |n: usize| (1..=n).map(|i| format!("${i}")).collect::<Vec<_>>().join(", ");
        let (all, key) = (list(columns), list(&columns[..keys]));
        let page = format!("ORDER BY {key} LIMIT {PAGE}");
        Self {
            start: format!("SELECT {all} FROM {name} {page}"),
            next: format!("SELECT {all} FROM {name} WHERE ({key}) > ({}) {page}", marks(keys)),
            // The books begin with a head of the log, which only grows.
            insert: match name {
                "log_head" => "UPDATE log_head SET size = $1, edge = $2, statement = $3 WHERE size < $1".to_owned(),
                _ => format!("INSERT INTO {name} ({all}) VALUES ({})", marks(columns.len())),
            },
            name,
            columns,
            keys,
        }
    }

    fn read(&'static self, books: &dyn Tx, after: Option<&Row>) -> Result<Vec<Row>> {
        let take = |row: &dyn super::sql::Row| {
            let kept = self.columns.iter().map(|(name, _)| Ok(Kept::of(&row.cell(name.trim_matches('"'))?)));
            Ok(Row { table: self.name.to_owned(), values: kept.collect::<Result<_>>()? })
        };
        match after {
            None => all(books, &self.start, &[], take),
            Some(last) => all(books, &self.next, &self.bound(&last.values[..self.keys])?, take),
        }
    }

    /// The values as those of the table's first columns.
    fn bound<'a>(&self, values: &'a [Kept]) -> Result<Vec<Value<'a>>> {
        let value = |(kept, (_, kind)): (&'a Kept, &(&str, Kind))| match (kept, kind) {
            (Kept::Null, Integer) => Ok(Value::Integer(None)),
            (Kept::Null, Text) => Ok(Value::Text(None)),
            (Kept::Null, Blob) => Ok(Value::Blob(None)),
            (Kept::Integer(number), Integer) => Ok(Value::Integer(Some(*number))),
            (Kept::Text(text), Text) => Ok(Value::Text(Some(text))),
            (Kept::Blob(bytes), Blob) => Ok(Value::Blob(Some(bytes))),
            _ => Err(foreign()),
        };
        values.iter().zip(self.columns).map(value).collect()
    }

    fn write(&'static self, tx: &dyn Tx, row: &Row) -> Result<()> {
        if row.values.len() != self.columns.len() {
            return Err(foreign());
        }
        let values = self.bound(&row.values)?;
        let values = if self.name == "log_head" { &values[1..] } else { &values };
        tx.put(&self.insert, values)
    }
}

impl Kept {
    fn of(cell: &Cell<'_>) -> Self {
        match cell {
            Cell::Null => Self::Null,
            Cell::Integer(number) => Self::Integer(*number),
            Cell::Text(text) => Self::Text((*text).to_owned()),
            Cell::Blob(bytes) => Self::Blob(bytes.to_vec()),
        }
    }
}

fn foreign() -> Refusal {
    Refusal::new(Code::Malformed, "a row of the backup is of no table that is known here")
}

/// Shows `put` every row, each after those that it refers to.
fn rows(books: &dyn Tx, put: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
    for table in TABLES.iter().take(FORMS.len()) {
        each(books, table, put)?;
    }
    let (postings, entries) = (table(POSTINGS.0).ok_or_else(unreadable)?, table(ENTRIES.0).ok_or_else(unreadable)?);
    let mut last: Option<Row> = None;
    loop {
        let page = entries.read(books, last.as_ref())?;
        for entry in &page {
            let Some(Kept::Integer(number)) = entry.values.first() else { return Err(unreadable()) };
            let list = "SELECT entry, book, account, currency, minor FROM postings WHERE entry = $1 ORDER BY book, account, currency";
            let take = |row: &dyn super::sql::Row| {
                let kept = postings.columns.iter().map(|(name, _)| Ok(Kept::of(&row.cell(name)?)));
                Ok(Row { table: postings.name.to_owned(), values: kept.collect::<Result<_>>()? })
            };
            all(books, list, values![*number], take)?.into_iter().try_for_each(&mut *put)?;
            put(entry.clone())?;
        }
        match page.into_iter().nth(PAGE - 1) {
            None => return Ok(()),
            full => last = full,
        }
    }
}

fn each(books: &dyn Tx, table: &'static Table, put: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
    let mut last: Option<Row> = None;
    loop {
        let page = table.read(books, last.as_ref())?;
        page.iter().cloned().try_for_each(&mut *put)?;
        match page.into_iter().nth(PAGE - 1) {
            None => return Ok(()),
            full => last = full,
        }
    }
}

/// Whether nothing was ever written.
fn is_new(tx: &dyn Tx) -> Result<bool> {
    Ok(number(tx, "SELECT count(*) AS n FROM accounts", &[])? == 0 && number(tx, "SELECT size AS n FROM log_head", &[])? == 0)
}

impl Books {
    /// Hands every row of a backup to `put`, all as they stood at one moment, and returns what `put` made of them. Nobody waits for it
    /// meanwhile.
    pub(crate) async fn dump<O: Send + 'static>(&self, mut out: O, put: fn(&mut O, Row) -> Result<()>) -> Result<O> {
        self.snapshot(move |books: &dyn Tx| {
            rows(books, &mut |row| put(&mut out, row))?;
            Ok(out)
        })
        .await
    }

    /// Whether these books were never written to.
    pub(crate) async fn are_new(&self) -> Result<bool> {
        self.read(is_new).await
    }

    /// Fills new books with the rows that `source` shows to its argument, in the order of [`Self::dump`], all or nothing. It may be asked for
    /// them again. Books that are not new are [`Code::Conflict`].
    pub(crate) async fn fill(&self, source: impl Fn(&mut dyn FnMut(Row) -> Result<()>) -> Result<()> + Send + 'static) -> Result<()> {
        let fill = move |tx: &dyn Tx| {
            if !is_new(tx)? {
                return Err(Refusal::new(Code::Conflict, "the books are not empty; nothing in them was touched"));
            }
            source(&mut |row| table(&row.table).ok_or_else(foreign)?.write(tx, &row))?;
            let last = first(tx, "SELECT coalesce(max(entry), 0) AS n FROM entries", &[], |row| row.integer("n"))?;
            tx.entries_up_to(last.ok_or_else(unreadable)?)
        };
        self.write(fill).await
    }
}
