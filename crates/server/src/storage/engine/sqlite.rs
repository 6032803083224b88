//! One SQLite file: WAL, every commit on the disk before it is answered, one connection that writes, on a thread of its own, and
//! some that read.
//!
//! SQLite is a library, not a server: a statement is a call of a few microseconds, so a transaction must not travel between threads
//! for each of them. A transaction that writes is one function that the writer's thread runs from BEGIN to COMMIT, because it waits
//! for the disk. A query that a key answers runs where it is asked; one that may be long, on a thread for what blocks.

use super::{Transaction, lost, not_migrated};
use crate::storage::sql::{Cell, Lock, Row, Tx, Value, first, unreadable};
use chipbound_host::files::{PRIVATE, write_new};
use chipbound_wire::{Code, Refusal, Result};
use rusqlite::types::ValueRef;
use rusqlite::{CachedStatement, Connection, ErrorCode, OpenFlags, TransactionBehavior};
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Only ever added to; what was released is never changed.
static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/sqlite");
/// How long a transaction waits for a writer in another process.
const BUSY: Duration = Duration::from_secs(20);
/// Transactions that wait for the writer; more wait to be taken in.
const WAITING: usize = 256;
/// Connections that are kept for the next query.
const READERS: usize = 8;
/// Statements that a connection keeps compiled: more than there are.
const STATEMENTS: usize = 256;

/// A transaction that writes, waiting for its turn.
type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// All connections; closed when the last copy is dropped.
#[derive(Clone)]
pub(in crate::storage) struct Sqlite {
    writer: mpsc::Sender<Job>,
    readers: Arc<Readers>,
}

struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Sqlite {
    /// The number of this version's form.
    pub(in crate::storage) fn form() -> i64 {
        MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
    }

    /// Opens the file, makes it if it is not there, and brings it to this version's form.
    pub(in crate::storage) async fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            // SQLite gives its other files the mode of this one.
            write_new(path, b"", PRIVATE)?;
        }
        let mut connection = SqliteConnectOptions::new().filename(path).connect().await.map_err(|e| super::failed(&e))?;
        let migrated = MIGRATIONS.run(&mut connection).await.map_err(|e| not_migrated(&path.display().to_string(), e));
        connection.close().await.map_err(|e| super::failed(&e))?;
        migrated?;
        Self::connect(path)
    }

    fn connect(path: &Path) -> Result<Self> {
        let mut writer = connect(path)?;
        writer.pragma_update(None, "journal_mode", "wal").map_err(|e| failed(&e))?;
        let (jobs, mut waiting) = mpsc::channel::<Job>(WAITING);
        let thread = std::thread::Builder::new().name("books".to_owned()).spawn(move || {
            while let Some(job) = waiting.blocking_recv() {
                // Whoever asked finds no answer; the transaction was rolled back, and the next one is not held up.
                let _ = catch_unwind(AssertUnwindSafe(|| job(&mut writer)));
            }
        });
        thread.map_err(|e| Refusal::io("starting a thread", e))?;
        Ok(Self { writer: jobs, readers: Arc::new(Readers { path: path.to_owned(), idle: Mutex::default() }) })
    }

    /// Runs a query here and now: for what is found by a key.
    pub(in crate::storage) fn read<T>(&self, query: impl FnOnce(&dyn Tx) -> Result<T>) -> Result<T> {
        self.readers.read(query)
    }

    /// Runs a query that may take its time.
    pub(in crate::storage) async fn read_long<T: Send + 'static>(&self, query: impl Transaction<T>) -> Result<T> {
        let readers = self.readers.clone();
        tokio::task::spawn_blocking(move || readers.read(query)).await.map_err(|e| lost().because(e))?
    }

    /// Runs queries that all see the books as they stood at one moment.
    pub(in crate::storage) async fn snapshot<T: Send + 'static>(
        &self,
        queries: impl FnOnce(&dyn Tx) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let readers = self.readers.clone();
        let snapshot = move || {
            let connection = readers.reader()?;
            let tx = rusqlite::Transaction::new_unchecked(&connection, TransactionBehavior::Deferred).map_err(|e| failed(&e))?;
            queries(&*tx)
        };
        tokio::task::spawn_blocking(snapshot).await.map_err(|e| lost().because(e))?
    }

    /// Runs a transaction: what it changed is on the disk when this returns, or it was refused and changed nothing. Where the caller
    /// goes away meanwhile it happens whole or not at all.
    pub(in crate::storage) async fn write<T: Send + 'static>(&self, transaction: impl Transaction<T>) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let _ = answer.send(transact(connection, transaction)); // The caller went away.
        });
        self.writer.send(job).await.map_err(|_| lost())?;
        answered.await.map_err(|e| lost().because(e))?
    }

    /// Waits for the transactions before this one, and closes the idle connections.
    pub(in crate::storage) async fn settle(&self) {
        let checkpoint = |connection: &Connection| connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        let (answer, answered) = oneshot::channel();
        self.readers.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let job: Job = Box::new(move |connection| {
            let _ = answer.send(checkpoint(connection).is_ok()); // Readers that remain leave it to the next start.
        });
        if self.writer.send(job).await.is_ok() {
            let _ = answered.await;
        }
    }
}

impl Readers {
    fn read<T>(&self, query: impl FnOnce(&dyn Tx) -> Result<T>) -> Result<T> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.reader()?,
        };
        let found = query(&connection);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < READERS {
            idle.push(connection);
        }
        found
    }

    fn reader(&self) -> Result<Connection> {
        let connection = connect(&self.path)?;
        connection.pragma_update(None, "query_only", true).map_err(|e| failed(&e))?;
        Ok(connection)
    }
}

/// A failed statement, or a file that another process holds for longer than a transaction waits.
fn failed(error: &rusqlite::Error) -> Refusal {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy) => Refusal::new(Code::DatabaseUnavailable, "another process holds the database's file"),
        _ => super::failed(error),
    }
}

/// A connection whose commits are on the disk when they return.
fn connect(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|e| failed(&e))?;
    connection.busy_timeout(BUSY).map_err(|e| failed(&e))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    for (name, value) in [("synchronous", "full"), ("foreign_keys", "on")] {
        connection.pragma_update(None, name, value).map_err(|e| failed(&e))?;
    }
    Ok(connection)
}

/// It takes the writer's place at once, so that it never fails for having read first.
fn transact<T>(connection: &mut Connection, transaction: impl Transaction<T>) -> Result<T> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|e| failed(&e))?;
    let done = transaction(&*tx)?; // Refused: dropped, and rolled back by that.
    tx.commit().map_err(|e| failed(&e))?;
    Ok(done)
}

impl Tx for Connection {
    fn put(&self, statement: &'static str, values: &[Value<'_>]) -> Result<()> {
        let mut prepared = prepare(self, statement, values)?;
        prepared.raw_execute().map(drop).map_err(|e| failed(&e))
    }

    fn put_each(&self, statement: &'static str, rows: &[Vec<Value<'_>>]) -> Result<()> {
        rows.iter().try_for_each(|values| self.put(statement, values))
    }

    fn query_keys(&self, statement: &'static str, keys: &[&[u8]], read: &mut dyn FnMut(&dyn Row) -> Result<()>) -> Result<()> {
        let statement = statement.replace("= ANY($1)", "= $1");
        for key in keys {
            let mut prepared = prepare(self, &statement, &[Value::Blob(Some(key))])?;
            let mut rows = prepared.raw_query();
            while let Some(row) = rows.next().map_err(|e| failed(&e))? {
                read(row)?;
            }
        }
        Ok(())
    }

    fn execute(&self, statement: &'static str, values: &[Value<'_>]) -> Result<u64> {
        let mut prepared = prepare(self, statement, values)?;
        prepared.raw_execute().map(|changed| changed as u64).map_err(|e| failed(&e))
    }

    fn execute_last(&self, statement: &'static str, values: &[Value<'_>]) -> Result<u64> {
        Tx::execute(self, statement, values) // A commit is a call.
    }

    fn query(&self, statement: &'static str, values: &[Value<'_>], read: &mut dyn FnMut(&dyn Row) -> Result<bool>) -> Result<()> {
        let mut prepared = prepare(self, statement, values)?;
        let mut rows = prepared.raw_query();
        while let Some(row) = rows.next().map_err(|e| failed(&e))? {
            if !read(row)? {
                break;
            }
        }
        Ok(())
    }

    fn lock(&self, _: &'static str, _: &[Value<'_>]) -> Result<()> {
        Ok(()) // There is one writer.
    }

    fn alone(&self, _: Lock) -> Result<()> {
        Ok(()) // There is one writer.
    }

    fn next_entries(&self, many: usize) -> Result<Vec<i64>> {
        let next = "SELECT nextval('entry_numbers') AS n";
        let next = first(self, next, &[], |row| row.integer("n"))?.ok_or_else(unreadable)?;
        Ok((next..).take(many).collect())
    }

    fn entries_up_to(&self, _: i64) -> Result<()> {
        Ok(()) // The next number is found by the last one.
    }
}

/// What SQLite has no word for: it locks no rows, for there is one writer, and counts entries by the last one.
fn in_words_of_sqlite(statement: &str) -> Cow<'_, str> {
    let statement = statement.split_once(" FOR UPDATE").map_or(statement, |(before, _)| before);
    if !statement.contains("val('entry_numbers')") {
        return Cow::Borrowed(statement);
    }
    let next = "(SELECT coalesce(max(entry), 0) + 1 FROM entries)";
    Cow::Owned(statement.replace("nextval('entry_numbers')", next).replace("currval('entry_numbers')", next))
}

fn prepare<'c>(connection: &'c Connection, statement: &str, values: &[Value<'_>]) -> Result<CachedStatement<'c>> {
    let mut prepared = connection.prepare_cached(&in_words_of_sqlite(statement)).map_err(|e| failed(&e))?;
    for (value, index) in values.iter().zip(1..) {
        // SQLite takes `$1` for a name and numbers names as they occur.
        debug_assert_eq!(prepared.parameter_name(index), Some(format!("${index}").as_str()), "{statement}");
        let bound = match value {
            Value::Integer(number) => prepared.raw_bind_parameter(index, number),
            Value::Text(text) => prepared.raw_bind_parameter(index, text),
            Value::Blob(bytes) => prepared.raw_bind_parameter(index, bytes),
        };
        bound.map_err(|e| failed(&e))?;
    }
    Ok(prepared)
}

impl Row for rusqlite::Row<'_> {
    fn cell(&self, column: &str) -> Result<Cell<'_>> {
        match self.get_ref(column).map_err(|e| failed(&e))? {
            ValueRef::Null => Ok(Cell::Null),
            ValueRef::Integer(number) => Ok(Cell::Integer(number)),
            ValueRef::Text(text) => std::str::from_utf8(text).map(Cell::Text).map_err(|_| unreadable()),
            ValueRef::Blob(bytes) => Ok(Cell::Blob(bytes)),
            ValueRef::Real(_) => Err(unreadable()),
        }
    }
}
