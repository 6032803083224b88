//! The connections to the file: one that writes, on a thread of its own, and some that read.
//!
//! SQLite is a library, not a server: a statement is a call of a few microseconds, so a transaction must not travel between threads
//! for each of them. A transaction that writes is one function that the writer's thread runs from BEGIN to COMMIT, because it waits
//! for the disk. A query that a key answers runs where it is asked; one that may be long, on a thread for what blocks.

use super::failed;
use chipbound_wire::{Code, Refusal, Result};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long a transaction waits for a writer in another process.
const BUSY: Duration = Duration::from_secs(20);
/// Transactions that wait for the writer; more wait to be taken in.
const WAITING: usize = 256;
/// Connections that are kept for the next query.
const READERS: usize = 8;
/// Statements that a connection keeps compiled: more than there are.
const STATEMENTS: usize = 128;

/// A transaction that writes, waiting for its turn.
type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// All connections; closed when the last copy is dropped.
#[derive(Clone)]
pub(super) struct Connections {
    writer: mpsc::Sender<Job>,
    readers: Arc<Readers>,
}

struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Connections {
    /// Opens the file, which is there already.
    pub(super) fn open(path: &Path) -> Result<Self> {
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
    pub(super) fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        self.readers.read(query)
    }

    /// Runs a query that may take its time.
    pub(super) async fn read_long<T: Send + 'static>(&self, query: impl FnOnce(&Connection) -> Result<T> + Send + 'static) -> Result<T> {
        let readers = self.readers.clone();
        tokio::task::spawn_blocking(move || readers.read(query)).await.map_err(|e| lost().because(e))?
    }

    /// Runs a transaction: what it changed is on the disk when this returns, or it was refused and changed nothing. Where the caller
    /// goes away meanwhile it happens whole or not at all.
    pub(super) async fn write<T: Send + 'static>(&self, transaction: impl FnOnce(&Connection) -> Result<T> + Send + 'static) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let _ = answer.send(transact(connection, transaction)); // The caller went away.
        });
        self.writer.send(job).await.map_err(|_| lost())?;
        answered.await.map_err(|e| lost().because(e))?
    }

    /// Waits for the transactions before this one, and closes the idle connections.
    pub(super) async fn settle(&self) {
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
    fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
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
fn transact<T>(connection: &mut Connection, transaction: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|e| failed(&e))?;
    let done = transaction(&tx)?; // Refused: dropped, and rolled back by that.
    tx.commit().map_err(|e| failed(&e))?;
    Ok(done)
}

fn lost() -> Refusal {
    Refusal::new(Code::Internal, "a transaction of the books ended without an answer")
}
