//! A PostgreSQL server, or an engine that speaks its protocol, shared by any number of our own instances.
//!
//! Transactions run with READ COMMITTED and lock the rows by which they decide (`storage::sql`). A fixed number of threads each own
//! one connection and the runtime that drives it, so that a statement's answer wakes the very thread that waits for it. Statements
//! whose result nobody looks at, the beginning of the transaction among them, are kept back and go to the server in one message with
//! the next query, or with the commit (`link`). A transaction that PostgreSQL gave up (deadlock) or whose connection broke before its
//! commit was asked for changed nothing and is run again.

mod link;
mod tls;

use self::link::{Answer, Bound, Failure, Link, Part, Server, bound, broke, columns};
use super::{Transaction, failed, lost, not_migrated};
use crate::storage::sql::{Lock, Row, Tx, Value, all, unreadable};
use chipbound_wire::{Code, Refusal, Result};
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use std::cell::{Cell as Mutable, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::Error;

/// The same forms under the same numbers as those of SQLite.
static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/postgres");
/// Transactions that wait for a connection; more wait to be taken in.
const WAITING: usize = 256;
/// How often a transaction is run again before it is refused.
const ATTEMPTS: u32 = 12;
/// Statements that are kept back at once, and the bytes of their values: beyond either they are sent.
const KEPT: (usize, usize) = (256, 1 << 20);
/// How a transaction that writes begins.
const WRITING: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
/// How queries begin that see the books as they stood at one moment.
const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

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
    server: Arc<Server>,
    link: Option<Link>,
}

impl Postgres {
    /// Brings the database to this version's form and begins so many connections.
    pub(in crate::storage) async fn open(options: &PgConnectOptions, connections: usize) -> Result<Self> {
        let server = Arc::new(Server::new(options)?);
        migrate(options).await?;
        let (jobs, waiting) = mpsc::channel::<Job>(WAITING);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..connections {
            let (waiting, server) = (waiting.clone(), server.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|e| Refusal::io("the asynchronous runtime does not start", e))?;
            let worker = Worker { runtime, server, link: None };
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

/// Brings the database to this version's form, by the same program as SQLite's files.
async fn migrate(options: &PgConnectOptions) -> Result<()> {
    let connected = tokio::time::timeout(link::CONNECT, options.connect()).await;
    let connected = connected.map_err(|_| Refusal::new(Code::DatabaseUnavailable, "the database server does not answer"))?;
    let mut connection = connected.map_err(not_connected)?;
    let name = format!("the database {}", options.get_database().unwrap_or("of that user"));
    let migrated = MIGRATIONS.run(&mut connection).await.map_err(|e| not_migrated(&name, e));
    connection.close().await.map_err(|e| failed(&e))?;
    migrated
}

/// How the codes begin with which a server refuses whoever asks: no such user or password, no such database, not allowed to connect.
const REFUSING: [&str; 3] = ["28", "3D", "42501"];

/// Why there is no connection at the start: what the server refuses is for its operator to mend, all else may pass.
fn not_connected(error: sqlx::Error) -> Refusal {
    if let sqlx::Error::Database(refused) = &error
        && let Some(code) = refused.code()
        && REFUSING.iter().any(|class| code.starts_with(class))
    {
        return Refusal::new(Code::ConfigInvalid, format!("database: the database server refuses it: {}", refused.message()));
    }
    Refusal::new(Code::DatabaseUnavailable, format!("the database server cannot be reached: {error}"))
}

impl Worker {
    fn work(mut self, waiting: &Mutex<mpsc::Receiver<Job>>) {
        loop {
            let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
            let Some(job) = job else { return };
            // Whoever asked finds no answer; the connection is dropped, its transaction rolled back, the next one not held up.
            if catch_unwind(AssertUnwindSafe(|| job(&mut self))).is_err() {
                self.disconnect();
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

    fn disconnect(&mut self) {
        if let Some(link) = self.link.take() {
            self.runtime.block_on(link.close());
        }
    }

    fn query<T>(&mut self, query: &impl Transaction<T>) -> std::result::Result<T, (Refusal, Failure)> {
        let session = self.session()?;
        let found = query(&session);
        let failure = session.failure.get();
        if failure == Some(Failure::Disconnected) {
            self.disconnect();
        }
        found.map_err(|refusal| (refusal, failure.unwrap_or(Failure::Wrong)))
    }

    fn transact<T>(
        &mut self,
        begin: &'static str,
        transaction: impl FnOnce(&dyn Tx) -> Result<T>,
    ) -> std::result::Result<T, (Refusal, Failure)> {
        let session = self.session()?;
        let outcome = session.put(begin, &[]).and_then(|()| transaction(&session));
        let outcome = match (outcome, session.failure.get()) {
            (Ok(done), None) => session.commit().map(|()| done),
            // A failed statement ends its transaction, whoever looked away.
            (Ok(_), Some(Failure::Disconnected)) => Err(broke(&"in the middle of a transaction")),
            (Ok(_), Some(_)) => Err(lost()),
            (Err(refusal), _) => Err(refusal),
        };
        if outcome.is_err() {
            session.roll_back();
        }
        let (failure, broken) = (session.failure.get(), session.broken.get());
        if broken {
            self.disconnect();
        }
        outcome.map_err(|refusal| (refusal, failure.unwrap_or(Failure::Wrong)))
    }

    /// The connection, for one query or transaction; a new one where there is none.
    fn session(&mut self) -> std::result::Result<Session<'_>, (Refusal, Failure)> {
        let Self { runtime, server, link } = self;
        let link = match link {
            Some(link) => link,
            none => none.insert(runtime.block_on(server.connect()).map_err(|refusal| (refusal, Failure::Wrong))?),
        };
        Ok(Session {
            runtime,
            link: RefCell::new(link),
            kept: RefCell::default(),
            sent: Mutable::new(false),
            committed: Mutable::new(false),
            failure: Mutable::new(None),
            broken: Mutable::new(false),
        })
    }
}

/// A connection while a transaction or a query runs on it.
struct Session<'w> {
    runtime: &'w Runtime,
    link: RefCell<&'w mut Link>,
    /// What was not sent yet.
    kept: RefCell<Kept>,
    /// Whether anything was sent.
    sent: Mutable<bool>,
    /// Whether the commit was answered.
    committed: Mutable<bool>,
    /// Of the first statement that failed.
    failure: Mutable<Option<Failure>>,
    /// Whether the connection is of no use any more.
    broken: Mutable<bool>,
}

/// Statements that are kept back.
#[derive(Default)]
struct Kept {
    parts: Vec<Part>,
    bytes: usize,
}

impl Session<'_> {
    /// Refuses for a failed statement, and remembers what became of the transaction.
    fn refuse(&self, error: &Error) -> Refusal {
        let failure = Failure::of(error);
        self.broken.set(self.broken.get() || failure == Failure::Disconnected);
        self.failure.set(self.failure.get().or(Some(failure)));
        failure.refuse(error)
    }

    fn part(&self, statement: &'static str, values: Vec<Bound>) -> Result<Part> {
        let mut link = self.link.borrow_mut();
        let statement = match link.known(statement, &values) {
            Some(known) => known,
            None => self.runtime.block_on(link.prepare(statement, &values)).map_err(|e| self.refuse(&e))?,
        };
        Ok(Part { statement, values })
    }

    /// Sends what was kept back and this; the answer to this.
    fn ask(&self, statement: &'static str, values: Vec<Bound>) -> Result<Answer> {
        let part = self.part(statement, values)?;
        let mut parts = self.kept.take().parts;
        parts.push(part);
        self.send(parts)
    }

    /// The answer to the last of them.
    fn send(&self, parts: Vec<Part>) -> Result<Answer> {
        self.sent.set(true);
        let last = parts.len().saturating_sub(1);
        self.runtime.block_on(self.link.borrow().send(parts, last)).map_err(|(_, error)| self.refuse(&error))
    }

    /// Keeps a statement back, unless there are too many.
    fn keep(&self, statement: &'static str, values: Vec<Bound>) -> Result<()> {
        let part = self.part(statement, values)?;
        let mut kept = self.kept.borrow_mut();
        kept.bytes += part.bytes();
        kept.parts.push(part);
        if kept.parts.len() < KEPT.0 && kept.bytes < KEPT.1 {
            return Ok(());
        }
        let parts = std::mem::take(&mut *kept).parts;
        drop(kept);
        self.send(parts).map(drop)
    }

    /// Ends a transaction that did not end itself.
    fn commit(&self) -> Result<()> {
        let nothing = !self.sent.get() && self.kept.borrow().parts.len() == 1; // But its beginning.
        match nothing || self.committed.get() {
            true => Ok(()),
            false => self.send_with_commit().map(drop),
        }
    }

    /// Sends what was kept back with the commit; the answer to the last before it.
    fn send_with_commit(&self) -> Result<Answer> {
        let part = self.part("COMMIT", Vec::new())?;
        let mut parts = self.kept.take().parts;
        let link = self.link.borrow();
        // Nobody knows what became of a message with the commit in it that is lost: none goes to a connection that ended before.
        if self.runtime.block_on(link.is_closed()) {
            self.broken.set(true);
            self.failure.set(Some(Failure::Disconnected));
            return Err(broke(&"it was closed before the commit"));
        }
        let commit = parts.len();
        parts.push(part);
        self.sent.set(true);
        let sent = self.runtime.block_on(link.send(parts, commit.saturating_sub(1))).map_err(|(at, error)| {
            let refusal = self.refuse(&error);
            // It was asked for and not answered: whether it happened shows when the caller asks again.
            if self.failure.get() == Some(Failure::Disconnected) && (at == commit || error.code().is_none()) {
                self.failure.set(Some(Failure::Wrong));
            }
            refusal
        })?;
        self.committed.set(true);
        Ok(sent)
    }

    fn roll_back(&self) {
        self.kept.take();
        if self.sent.get() && !self.committed.get() && !self.broken.get() && self.ask("ROLLBACK", Vec::new()).is_err() {
            self.broken.set(true);
        }
    }
}

impl Tx for Session<'_> {
    fn put(&self, statement: &'static str, values: &[Value<'_>]) -> Result<()> {
        self.keep(statement, bound(values))
    }

    fn put_each(&self, statement: &'static str, rows: &[Vec<Value<'_>>]) -> Result<()> {
        match rows {
            [] => Ok(()),
            [values] => self.put(statement, values),
            rows => self.keep(statement, columns(rows)),
        }
    }

    fn query_keys(&self, statement: &'static str, keys: &[&[u8]], read: &mut dyn FnMut(&dyn Row) -> Result<()>) -> Result<()> {
        let keys = vec![Bound::Blobs(keys.iter().map(|key| Some(key.to_vec())).collect())];
        self.ask(statement, keys)?.rows.iter().try_for_each(|row| read(row))
    }

    fn execute(&self, statement: &'static str, values: &[Value<'_>]) -> Result<u64> {
        self.ask(statement, bound(values)).map(|answer| answer.changed)
    }

    fn execute_last(&self, statement: &'static str, values: &[Value<'_>]) -> Result<u64> {
        let part = self.part(statement, bound(values))?;
        self.kept.borrow_mut().parts.push(part);
        self.send_with_commit().map(|answer| answer.changed)
    }

    fn query(&self, statement: &'static str, values: &[Value<'_>], read: &mut dyn FnMut(&dyn Row) -> Result<bool>) -> Result<()> {
        for row in self.ask(statement, bound(values))?.rows {
            if !read(&row)? {
                break;
            }
        }
        Ok(())
    }

    fn lock(&self, statement: &'static str, values: &[Value<'_>]) -> Result<()> {
        self.put(statement, values)
    }

    fn alone(&self, lock: Lock) -> Result<()> {
        self.put("SELECT pg_advisory_xact_lock($1)", &[Value::from(lock as i64)])
    }

    fn next_entries(&self, many: usize) -> Result<Vec<i64>> {
        let many = i64::try_from(many).map_err(|_| unreadable())?;
        let next = "SELECT nextval('entry_numbers') AS n FROM generate_series(1, $1)";
        all(self, next, &[Value::from(many)], |row| row.integer("n"))
    }

    fn entries_up_to(&self, last: i64) -> Result<()> {
        self.put("SELECT setval('entry_numbers', $1 + 1, false)", &[Value::from(last)])
    }
}
