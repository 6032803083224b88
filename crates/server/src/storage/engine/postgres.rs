//! A PostgreSQL server, or an engine that speaks its protocol, shared by any number of our own instances.
//!
//! Transactions run with READ COMMITTED and lock the rows by which they decide (`storage::sql`). A fixed number of threads each own
//! one connection and the runtime that drives it, so that a statement's answer wakes the very thread that waits for it. A
//! transaction that PostgreSQL gave up (deadlock) or whose connection broke before its commit changed nothing and is run again.

use super::{Transaction, failed, lost, not_migrated};
use crate::storage::sql::{Cell, Lock, Row, Tx, Value, first, unreadable};
use chipbound_wire::{Code, Refusal, Result};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow};
use sqlx::{Arguments as _, ConnectOptions as _, Connection as _, Executor as _, Row as _, TypeInfo as _, ValueRef as _};
use std::cell::{Cell as Mutable, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

/// The same forms under the same numbers as those of SQLite.
static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/postgres");
/// Transactions that wait for a connection; more wait to be taken in.
const WAITING: usize = 256;
/// Statements that a connection keeps prepared: more than there are.
const STATEMENTS: usize = 256;
/// How often a transaction is run again before it is refused.
const ATTEMPTS: u32 = 12;
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// How a transaction that writes begins.
const WRITING: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";
/// How queries begin that see the books as they stood at one moment.
const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// What bounds a statement, a wait for a lock, and a transaction whose server instance stands still. Every statement finds its rows by
/// a key, so that one plan is as good as another: it is made once.
const SESSION: [(&str, &str); 4] = [
    ("statement_timeout", "60s"),
    ("lock_timeout", "20s"),
    ("idle_in_transaction_session_timeout", "60s"),
    ("plan_cache_mode", "force_generic_plan"),
];

/// A transaction waiting for a connection.
type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// All connections; closed when the last copy is dropped.
#[derive(Clone)]
pub(in crate::storage) struct Postgres {
    jobs: mpsc::Sender<Job>,
}

/// One thread's connection, and what drives it.
struct Worker {
    runtime: Runtime,
    options: Arc<PgConnectOptions>,
    connection: Option<PgConnection>,
}

/// What became of a statement that failed, besides being refused.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// PostgreSQL gave the transaction up in favour of another one.
    GivenUp,
    /// The connection is gone, and the transaction with it.
    Disconnected,
    /// It is wrong, and would be again.
    Wrong,
}

impl Postgres {
    /// Brings the database to this version's form and begins so many connections.
    pub(in crate::storage) async fn open(options: &PgConnectOptions, connections: usize) -> Result<Self> {
        let options = options.clone().options(SESSION).application_name("chipbound-server").statement_cache_capacity(STATEMENTS);
        let mut connection = connect(&options).await?;
        let name = format!("the database {}", options.get_database().unwrap_or("of that user"));
        let migrated = MIGRATIONS.run(&mut connection).await.map_err(|e| not_migrated(&name, e));
        connection.close().await.map_err(|e| failed(&e))?;
        migrated?;
        let (jobs, waiting) = mpsc::channel::<Job>(WAITING);
        let (waiting, options) = (Arc::new(Mutex::new(waiting)), Arc::new(options));
        for _ in 0..connections {
            let (waiting, options) = (waiting.clone(), options.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|e| Refusal::io("the asynchronous runtime does not start", e))?;
            let worker = Worker { runtime, options, connection: None };
            let thread = std::thread::Builder::new().name("books".to_owned()).spawn(move || worker.work(&waiting));
            thread.map_err(|e| Refusal::io("starting a thread", e))?;
        }
        Ok(Self { jobs })
    }

    /// Runs one query, outside of a transaction.
    pub(in crate::storage) async fn read<T: Send + 'static>(&self, query: impl Transaction<T>) -> Result<T> {
        self.run(move |worker| worker.again(|worker| worker.query(&query))).await
    }

    /// Runs a transaction: what it changed is on the disk when this returns, or it was refused and changed nothing. Where the caller
    /// goes away meanwhile it happens whole or not at all.
    pub(in crate::storage) async fn write<T: Send + 'static>(&self, transaction: impl Transaction<T>) -> Result<T> {
        self.run(move |worker| worker.again(|worker| worker.transact(WRITING, |tx| transaction(tx)))).await
    }

    /// Runs queries that all see the books as they stood at one moment; once.
    pub(in crate::storage) async fn snapshot<T: Send + 'static>(
        &self,
        queries: impl FnOnce(&dyn Tx) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run(move |worker| worker.transact(SNAPSHOT, queries).map_err(|(refusal, _)| refusal)).await
    }

    async fn run<T: Send + 'static>(&self, job: impl FnOnce(&mut Worker) -> Result<T> + Send + 'static) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |worker| {
            let _ = answer.send(job(worker)); // The caller went away.
        });
        self.jobs.send(job).await.map_err(|_| lost())?;
        answered.await.map_err(|e| lost().because(e))?
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection> {
    let connected = tokio::time::timeout(CONNECT, options.connect()).await;
    let connected = connected.map_err(|_| Refusal::new(Code::DatabaseUnavailable, "the database server does not answer"))?;
    let mut connection =
        connected.map_err(|e| Refusal::new(Code::DatabaseUnavailable, format!("the database server cannot be reached: {e}")))?;
    // A commit that is answered is on the disk, whatever the server's default is.
    let durable = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";
    connection.execute(durable).await.map_err(|e| failed(&e))?;
    Ok(connection)
}

impl Worker {
    fn work(mut self, waiting: &Mutex<mpsc::Receiver<Job>>) {
        loop {
            let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
            let Some(job) = job else { return };
            // Whoever asked finds no answer; the connection is dropped, its transaction rolled back, the next one not held up.
            if catch_unwind(AssertUnwindSafe(|| job(&mut self))).is_err() {
                self.connection = None;
            }
        }
    }

    /// Runs `attempt` until it is done or refused for a reason that would stay.
    fn again<T>(&mut self, attempt: impl Fn(&mut Self) -> std::result::Result<T, (Refusal, Failure)>) -> Result<T> {
        let mut reconnected = false;
        for _ in 1..ATTEMPTS {
            match attempt(self) {
                Ok(done) => return Ok(done),
                Err((_, Failure::GivenUp)) => {}
                Err((_, Failure::Disconnected)) if !reconnected => reconnected = true,
                Err((refusal, _)) => return Err(refusal),
            }
        }
        attempt(self).map_err(|(refusal, _)| refusal)
    }

    fn take(&mut self) -> std::result::Result<PgConnection, (Refusal, Failure)> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => self.runtime.block_on(connect(&self.options)).map_err(|refusal| (refusal, Failure::Wrong)),
        }
    }

    fn query<T>(&mut self, query: &impl Transaction<T>) -> std::result::Result<T, (Refusal, Failure)> {
        let connection = self.take()?;
        let session = Session { runtime: &self.runtime, connection: RefCell::new(connection), failure: Mutable::new(None) };
        let found = query(&session);
        let (connection, failure) = session.end();
        if failure != Some(Failure::Disconnected) {
            self.connection = Some(connection);
        }
        found.map_err(|refusal| (refusal, failure.unwrap_or(Failure::Wrong)))
    }

    fn transact<T>(
        &mut self,
        begin: &'static str,
        transaction: impl FnOnce(&dyn Tx) -> Result<T>,
    ) -> std::result::Result<T, (Refusal, Failure)> {
        let connection = self.take()?;
        let session = Session { runtime: &self.runtime, connection: RefCell::new(connection), failure: Mutable::new(None) };
        let outcome = session.raw(begin).and_then(|()| transaction(&session));
        let (outcome, failed_before) = match (outcome, session.failure.get()) {
            (Ok(done), None) => (session.raw("COMMIT").map(|()| done), false),
            (Ok(_), Some(_)) => (Err(lost()), true), // A failed statement ends its transaction, whoever looked away.
            (Err(refusal), _) => (Err(refusal), true),
        };
        if failed_before && session.failure.get() != Some(Failure::Disconnected) && session.raw("ROLLBACK").is_err() {
            session.failure.set(Some(Failure::Disconnected));
        }
        let (connection, failure) = session.end();
        if failure != Some(Failure::Disconnected) {
            self.connection = Some(connection);
        }
        outcome.map_err(|refusal| match failure {
            // The commit was asked for and not answered: whether it happened shows when the caller asks again.
            Some(Failure::Disconnected) if !failed_before => (refusal, Failure::Wrong),
            failure => (refusal, failure.unwrap_or(Failure::Wrong)),
        })
    }
}

/// A connection while a transaction or a query runs on it.
struct Session<'w> {
    runtime: &'w Runtime,
    connection: RefCell<PgConnection>,
    failure: Mutable<Option<Failure>>,
}

impl Session<'_> {
    fn end(self) -> (PgConnection, Option<Failure>) {
        (self.connection.into_inner(), self.failure.into_inner())
    }

    /// Refuses for a failed statement, and remembers what became of the transaction.
    fn refuse(&self, error: &sqlx::Error) -> Refusal {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        self.failure.set(Some(match (error, code.as_deref()) {
            (_, Some("40001" | "40P01")) => Failure::GivenUp,
            (_, Some("57P01" | "57P02" | "57P03" | "25P03")) => Failure::Disconnected,
            (_, Some(_)) => Failure::Wrong,
            (sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed, None) => {
                Failure::Disconnected
            }
            _ => Failure::Wrong,
        }));
        failed(error)
    }

    fn raw(&self, statement: &'static str) -> Result<()> {
        let mut connection = self.connection.borrow_mut();
        self.runtime.block_on(connection.execute(statement)).map(drop).map_err(|e| self.refuse(&e))
    }

    fn rows(&self, statement: &'static str, values: &[Value<'_>]) -> Result<Vec<PgRow>> {
        let query = sqlx::query_with(statement, arguments(values)?);
        let mut connection = self.connection.borrow_mut();
        self.runtime.block_on(query.fetch_all(&mut *connection)).map_err(|e| self.refuse(&e))
    }
}

fn arguments(values: &[Value<'_>]) -> Result<PgArguments> {
    let mut arguments = PgArguments::default();
    for value in values {
        let added = match value {
            Value::Integer(number) => arguments.add(*number),
            Value::Text(text) => arguments.add(*text),
            Value::Blob(bytes) => arguments.add(*bytes),
        };
        added.map_err(|e| failed(&e))?;
    }
    Ok(arguments)
}

impl Tx for Session<'_> {
    fn execute(&self, statement: &'static str, values: &[Value<'_>]) -> Result<u64> {
        let query = sqlx::query_with(statement, arguments(values)?);
        let mut connection = self.connection.borrow_mut();
        self.runtime.block_on(query.execute(&mut *connection)).map(|done| done.rows_affected()).map_err(|e| self.refuse(&e))
    }

    fn query(&self, statement: &'static str, values: &[Value<'_>], read: &mut dyn FnMut(&dyn Row) -> Result<bool>) -> Result<()> {
        for row in self.rows(statement, values)? {
            if !read(&row)? {
                break;
            }
        }
        Ok(())
    }

    fn query_locked(&self, statement: &'static str, values: &[Value<'_>], read: &mut dyn FnMut(&dyn Row) -> Result<bool>) -> Result<()> {
        self.query(statement, values, read)
    }

    fn alone(&self, lock: Lock) -> Result<()> {
        self.rows("SELECT pg_advisory_xact_lock($1)", &[Value::from(lock as i64)]).map(drop)
    }

    fn next_entry(&self) -> Result<i64> {
        first(self, "SELECT nextval('entry_numbers') AS n", &[], |row| row.integer("n"))?.ok_or_else(unreadable)
    }

    fn entries_up_to(&self, last: i64) -> Result<()> {
        self.rows("SELECT setval('entry_numbers', $1 + 1, false)", &[Value::from(last)]).map(drop)
    }
}

impl Row for PgRow {
    fn cell(&self, column: &str) -> Result<Cell<'_>> {
        let value = self.try_get_raw(column).map_err(|e| failed(&e))?;
        if value.is_null() {
            return Ok(Cell::Null);
        }
        let bytes = value.as_bytes().map_err(|e| failed(&e))?;
        match value.type_info().name() {
            "INT8" => bytes.try_into().map(|b| Cell::Integer(i64::from_be_bytes(b))).map_err(|_| unreadable()),
            "INT4" => bytes.try_into().map(|b| Cell::Integer(i32::from_be_bytes(b).into())).map_err(|_| unreadable()),
            "TEXT" => std::str::from_utf8(bytes).map(Cell::Text).map_err(|_| unreadable()),
            "BYTEA" => Ok(Cell::Blob(bytes)),
            _ => Err(unreadable()),
        }
    }
}
