//! The two engines. Each runs a whole transaction, one function over a [`Tx`], from its beginning to its commit, and nothing else
//! of it leaves this folder.

mod postgres;
mod sqlite;

pub(super) use postgres::Postgres;
pub(super) use sqlite::Sqlite;

use super::sql::Tx;
use chipbound_wire::{Code, Refusal, Result};
use sqlx::migrate::MigrateError;

/// A transaction that writes. It may be run more than once; only the last time counts.
pub(super) trait Transaction<T>: Fn(&dyn Tx) -> Result<T> + Send + 'static {}
impl<T, F: Fn(&dyn Tx) -> Result<T> + Send + 'static> Transaction<T> for F {}

/// A failed statement. The text names no values, only what the engine says of tables and columns.
fn failed(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Code::Database, format!("the database failed: {error}"))
}

fn lost() -> Refusal {
    Refusal::new(Code::Internal, "a transaction of the books ended without an answer")
}

/// SQLite's extended code `SQLITE_IOERR_SHMSIZE`: the file beside the database could not grow, which is how a full disk shows first.
const SHARED_MEMORY_NOT_ENLARGED: &str = "4874";

/// A database that could not be brought to this version's form.
fn not_migrated(what: &str, error: MigrateError) -> Refusal {
    match error {
        MigrateError::VersionMissing(version) => Refusal::new(
            Code::DatabaseSchema,
            format!("{what} was written by a newer version (its form {version} is unknown here); it was left as it is"),
        ),
        MigrateError::Execute(sqlx::Error::Database(error)) if error.code().as_deref() == Some(SHARED_MEMORY_NOT_ENLARGED) => {
            Refusal::new(Code::DiskFull, format!("{what} cannot be opened: there is no room beside it"))
        }
        other => Refusal::new(Code::Database, format!("{what} cannot be brought to this version's form: {other}")),
    }
}
