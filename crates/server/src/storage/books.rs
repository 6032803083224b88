//! The repository over either engine.

use super::Repository;
use super::engine::{Postgres, Sqlite, Transaction};
use super::sql::Tx;
use chipbound_wire::Result;
use sqlx::postgres::PgConnectOptions;
use std::path::{Path, PathBuf};

/// Where the books are.
#[derive(Clone)]
pub enum Location {
    /// A file on this machine.
    File(PathBuf),
    /// A PostgreSQL server, and how many connections to keep to it.
    Postgres(Box<PgConnectOptions>, usize),
}

impl std::fmt::Debug for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            // The options may hold a password.
            Self::Postgres(options, connections) => write!(f, "Postgres({}, {connections})", options.get_host()),
        }
    }
}

/// The repository.
#[derive(Clone)]
pub struct Books {
    engine: Engine,
}

#[derive(Clone)]
enum Engine {
    Sqlite(Sqlite),
    Postgres(Postgres),
}

impl std::fmt::Debug for Books {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Books")
    }
}

impl Repository for Books {}

impl Books {
    /// Opens the books, makes them if they are not there, and brings them to this version's form. Books that a newer version wrote
    /// are refused with [`chipbound_wire::Code::DatabaseSchema`] and left as they are.
    pub async fn open(location: &Location) -> Result<Self> {
        let engine = match location {
            Location::File(path) => Engine::Sqlite(Sqlite::open(path).await?),
            Location::Postgres(options, connections) => Engine::Postgres(Postgres::open(options, *connections).await?),
        };
        Ok(Self { engine })
    }

    /// The number of the form to which this version brings its books: the same for either engine.
    pub(crate) fn form() -> i64 {
        Sqlite::form()
    }

    /// Opens the books in the SQLite file `path`.
    pub async fn open_file(path: &Path) -> Result<Self> {
        Self::open(&Location::File(path.to_owned())).await
    }

    /// Closes them: everything committed is on the disk.
    pub async fn close(&self) {
        match &self.engine {
            Engine::Sqlite(sqlite) => sqlite.settle().await,
            Engine::Postgres(_) => {} // A commit is on the disk when it is answered.
        }
    }

    /// One query for what is found by a key.
    pub(super) async fn read<T: Send + 'static>(&self, query: impl Transaction<T>) -> Result<T> {
        match &self.engine {
            Engine::Sqlite(sqlite) => sqlite.read(query),
            Engine::Postgres(postgres) => postgres.read(query).await,
        }
    }

    /// One query that may take its time.
    pub(super) async fn read_long<T: Send + 'static>(&self, query: impl Transaction<T>) -> Result<T> {
        match &self.engine {
            Engine::Sqlite(sqlite) => sqlite.read_long(query).await,
            Engine::Postgres(postgres) => postgres.read(query).await,
        }
    }

    /// Any number of queries that see the books as they stood at one moment; they may take their time. Never run again.
    pub(super) async fn snapshot<T: Send + 'static>(&self, queries: impl FnOnce(&dyn Tx) -> Result<T> + Send + 'static) -> Result<T> {
        match &self.engine {
            Engine::Sqlite(sqlite) => sqlite.snapshot(queries).await,
            Engine::Postgres(postgres) => postgres.snapshot(queries).await,
        }
    }

    /// A transaction: what it changed is on the disk when this returns, or it was refused and changed nothing. Where the caller
    /// goes away meanwhile it happens whole or not at all.
    pub(super) async fn write<T: Send + 'static>(&self, transaction: impl Transaction<T>) -> Result<T> {
        match &self.engine {
            Engine::Sqlite(sqlite) => sqlite.write(transaction).await,
            Engine::Postgres(postgres) => postgres.write(transaction).await,
        }
    }
}
