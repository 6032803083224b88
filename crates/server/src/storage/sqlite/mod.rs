//! The repository in one SQLite file: WAL, every commit on the disk before it is answered, one writer at a time.

mod accounts;
mod deliveries;
mod ledger;
mod orders;
mod releases;
#[cfg(test)]
mod tests;

use super::Repository;
use chipbound_host::files::{PRIVATE, write_new};
use chipbound_wire::{Amount, Code, Refusal, Result};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{ColumnIndex, Row, Sqlite, SqlitePool, Transaction};
use std::path::Path;
use std::time::Duration;

/// Only ever added to; what was released is never changed.
static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Connections at once: one writes, the others read beside it.
const CONNECTIONS: u32 = 8;
/// How long a transaction waits for the writer before it.
const BUSY: Duration = Duration::from_secs(20);

/// The repository in one SQLite file.
#[derive(Clone, Debug)]
pub struct SqliteRepository {
    pool: SqlitePool,
}

impl Repository for SqliteRepository {}

impl SqliteRepository {
    /// Opens the database at `path`, makes it if it is not there, and brings it to this version's form. A database that a newer
    /// version wrote is refused with [`Code::Database`] and left as it is.
    pub async fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            // SQLite gives its other files the mode of this one.
            write_new(path, b"", PRIVATE)?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY);
        let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS).connect_with(options).await.map_err(|e| failed(&e))?;
        MIGRATIONS.run(&pool).await.map_err(|e| match e {
            MigrateError::VersionMissing(version) => Refusal::new(
                Code::Database,
                format!("{} was written by a newer version (its form {version} is unknown here); it was left as it is", path.display()),
            ),
            other => Refusal::new(Code::Database, format!("{} cannot be brought to this version's form: {other}", path.display())),
        })?;
        Ok(Self { pool })
    }

    /// Closes it: everything committed is in the file.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A transaction that writes: it takes the writer's place at once, so that it never fails for having read first.
    async fn write(&self) -> Result<Transaction<'static, Sqlite>> {
        self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(|e| failed(&e))
    }
}

/// The connection inside a transaction.
type Connection = sqlx::SqliteConnection;

async fn commit(transaction: Transaction<'static, Sqlite>) -> Result<()> {
    transaction.commit().await.map_err(|e| failed(&e))
}

/// A failed statement. The text names no values, only what SQLite says of tables and columns.
fn failed(error: &sqlx::Error) -> Refusal {
    Refusal::new(Code::Database, format!("the database failed: {error}"))
}

/// Numbers in the database are signed.
fn signed(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| Refusal::new(Code::TooLarge, "a number beyond what the books can hold"))
}

/// Columns of a row as our types; what does not read as such is [`Code::Database`].
trait Columns {
    fn number<I: ColumnIndex<SqliteRow>>(&self, column: I) -> Result<u64>;
    fn bytes<I: ColumnIndex<SqliteRow>>(&self, column: I) -> Result<Vec<u8>>;
    fn text<I: ColumnIndex<SqliteRow>>(&self, column: I) -> Result<String>;
    fn id<const N: usize, I: ColumnIndex<SqliteRow>>(&self, column: I) -> Result<[u8; N]>;
    fn parsed<T: std::str::FromStr, I: ColumnIndex<SqliteRow>>(&self, column: I) -> Result<T>;
    fn amount(&self) -> Result<Amount>;
}

fn unreadable() -> Refusal {
    Refusal::new(Code::Database, "a row of the database does not read as what it should be")
}

impl Columns for SqliteRow {
    fn number<I: ColumnIndex<SqliteRow>>(&self, column: I) -> Result<u64> {
        u64::try_from(self.try_get::<i64, _>(column).map_err(|e| failed(&e))?).map_err(|_| unreadable())
    }

    fn bytes<I: ColumnIndex<SqliteRow>>(&self, column: I) -> Result<Vec<u8>> {
        self.try_get(column).map_err(|e| failed(&e))
    }

    fn text<I: ColumnIndex<SqliteRow>>(&self, column: I) -> Result<String> {
        self.try_get(column).map_err(|e| failed(&e))
    }

    fn id<const N: usize, I: ColumnIndex<SqliteRow>>(&self, column: I) -> Result<[u8; N]> {
        self.bytes(column)?.try_into().map_err(|_| unreadable())
    }

    fn parsed<T: std::str::FromStr, I: ColumnIndex<SqliteRow>>(&self, column: I) -> Result<T> {
        self.text(column)?.parse().map_err(|_| unreadable())
    }

    fn amount(&self) -> Result<Amount> {
        Ok(Amount { minor: self.number("price")?, currency: self.parsed("currency")? })
    }
}
