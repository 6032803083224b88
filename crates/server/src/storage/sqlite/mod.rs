//! The repository in one SQLite file: WAL, every commit on the disk before it is answered, one writer at a time.

mod accounts;
mod connections;
mod deliveries;
mod ledger;
mod orders;
mod releases;
#[cfg(test)]
mod tests;

use super::Repository;
use chipbound_host::files::{PRIVATE, write_new};
use chipbound_wire::{Amount, Code, Refusal, Result};
use connections::Connections;
use rusqlite::types::FromSql;
use rusqlite::{Connection, Params, Row, RowIndex};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use std::path::Path;

/// Only ever added to; what was released is never changed.
static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// The repository in one SQLite file.
#[derive(Clone)]
pub struct SqliteRepository {
    connections: Connections,
}

impl std::fmt::Debug for SqliteRepository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SqliteRepository")
    }
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
        let mut connection = SqliteConnectOptions::new().filename(path).connect().await.map_err(|e| failed(&e))?;
        let migrated = migrate(&mut connection, path).await;
        connection.close().await.map_err(|e| failed(&e))?;
        migrated?;
        Ok(Self { connections: Connections::open(path)? })
    }

    /// Closes it: everything committed is in the file.
    pub async fn close(&self) {
        self.connections.settle().await;
    }
}

async fn migrate(connection: &mut SqliteConnection, path: &Path) -> Result<()> {
    MIGRATIONS.run(connection).await.map_err(|e| match e {
        MigrateError::VersionMissing(version) => Refusal::new(
            Code::Database,
            format!("{} was written by a newer version (its form {version} is unknown here); it was left as it is", path.display()),
        ),
        other => Refusal::new(Code::Database, format!("{} cannot be brought to this version's form: {other}", path.display())),
    })
}

/// Runs a statement that returns no rows; how many it changed.
fn execute(connection: &Connection, statement: &str, values: impl Params) -> Result<usize> {
    connection.prepare_cached(statement).and_then(|mut prepared| prepared.execute(values)).map_err(|e| failed(&e))
}

/// The first row that a statement finds, as `read` takes it.
fn first<T>(connection: &Connection, statement: &str, values: impl Params, read: impl FnOnce(&Row<'_>) -> Result<T>) -> Result<Option<T>> {
    let mut prepared = connection.prepare_cached(statement).map_err(|e| failed(&e))?;
    let mut rows = prepared.query(values).map_err(|e| failed(&e))?;
    rows.next().map_err(|e| failed(&e))?.map(read).transpose()
}

/// Every row that a statement finds, as `read` takes them.
fn all<T>(connection: &Connection, statement: &str, values: impl Params, read: impl Fn(&Row<'_>) -> Result<T>) -> Result<Vec<T>> {
    let mut prepared = connection.prepare_cached(statement).map_err(|e| failed(&e))?;
    let mut rows = prepared.query(values).map_err(|e| failed(&e))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(|e| failed(&e))? {
        found.push(read(row)?);
    }
    Ok(found)
}

/// The number that a statement always finds.
fn number(connection: &Connection, statement: &str, values: impl Params) -> Result<u64> {
    first(connection, statement, values, |row| row.number(0))?.ok_or_else(unreadable)
}

/// A failed statement. The text names no values, only what SQLite says of tables and columns.
fn failed(error: &impl std::error::Error) -> Refusal {
    Refusal::new(Code::Database, format!("the database failed: {error}"))
}

/// Numbers in the database are signed.
fn signed(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| Refusal::new(Code::TooLarge, "a number beyond what the books can hold"))
}

/// Columns of a row as our types; what does not read as such is [`Code::Database`].
trait Columns {
    fn column<T: FromSql>(&self, column: impl RowIndex) -> Result<T>;

    fn number(&self, column: impl RowIndex) -> Result<u64> {
        u64::try_from(self.column::<i64>(column)?).map_err(|_| unreadable())
    }

    fn bytes(&self, column: impl RowIndex) -> Result<Vec<u8>> {
        self.column(column)
    }

    fn text(&self, column: impl RowIndex) -> Result<String> {
        self.column(column)
    }

    fn id<const N: usize>(&self, column: impl RowIndex) -> Result<[u8; N]> {
        self.column(column)
    }

    fn parsed<T: std::str::FromStr>(&self, column: impl RowIndex) -> Result<T> {
        self.text(column)?.parse().map_err(|_| unreadable())
    }

    fn amount(&self) -> Result<Amount> {
        Ok(Amount { minor: self.number("price")?, currency: self.parsed("currency")? })
    }
}

fn unreadable() -> Refusal {
    Refusal::new(Code::Database, "a row of the database does not read as what it should be")
}

impl Columns for Row<'_> {
    fn column<T: FromSql>(&self, column: impl RowIndex) -> Result<T> {
        self.get(column).map_err(|e| failed(&e))
    }
}
