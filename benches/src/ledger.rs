//! Settled orders per second on either engine with many clients at once, against the bare commits of the same engine on the same disk.

use crate::database::Shop;
use crate::process::output;
use crate::stats::{Series, Table, at_least};
use crate::{Options, Outcome, failed};
use chipbound_server::storage::{Books, Location};
use chipbound_testkit::postgres::{Cluster, binaries};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// What part of the bare commits is asked for.
const TARGET: f64 = 0.5;
/// Customers who buy at the same time.
const CLIENTS: u8 = 32;
/// Transactions of one order that write, besides the one that settles it: they are [`Shop::one_order`]'s, in this order: place,
/// authorise, issue a ticket, redeem it, record the delivery.
const WRITES: f64 = 5.0;
/// Each batch of receipts has a checkpoint of its own in the log.
const BATCHES: &str = "SELECT count(*) FROM log_checkpoints";
/// Connections to PostgreSQL: one for each client.
const CONNECTIONS: usize = 32;

/// Measures and prints.
pub(crate) fn measure(options: &Options, folder: &Path) -> Outcome<()> {
    let rounds = options.rounds().unwrap_or(if options.quick { 2 } else { 7 });
    let each = if options.quick { 4 } else { 20 };
    println!("## Settled orders, {CLIENTS} clients at once, {rounds} rounds of {each} orders of each client\n");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut table = Table::new(&["engine", "bare commits per s", "commits per order", "settled orders per s", "ratio"]);
    let mut ratios = Vec::new();

    let file = folder.join("books.db");
    let bare = folder.join("bare.db");
    let books = runtime.block_on(Books::open_file(&file))?;
    let batches = || Ok(rusqlite::Connection::open(&file)?.query_row(BATCHES, [], |row| row.get(0))?);
    let sqlite = Engine::open(&runtime, books, rounds * each, &batches)?;
    let quick = if options.quick { 50 } else { 300 };
    let measured = sqlite.rounds(&runtime, rounds, each, || sqlite_commits(&bare, quick))?;
    ratios.push(("SQLite", measured.print("SQLite, one writer", &mut table)));

    let cluster = Cluster::start(true);
    let database = cluster.create_database();
    let location = Location::Postgres(Box::new(cluster.url(&database).parse()?), CONNECTIONS);
    let books = runtime.block_on(Books::open(&location))?;
    let batches = || Ok(cluster.sql(&database, BATCHES).map_err(failed)?.parse()?);
    let postgres = Engine::open(&runtime, books, rounds * each, &batches)?;
    let bare = cluster.create_database();
    cluster.sql(&bare, "CREATE TABLE bare (id BIGSERIAL PRIMARY KEY, value BYTEA)").map_err(failed)?;
    let script = folder.join("bare.sql");
    std::fs::write(&script, "INSERT INTO bare (value) VALUES (decode(repeat('0f', 32), 'hex'));\n")?;
    let time = Duration::from_secs(if options.quick { 1 } else { 3 });
    let measured = postgres.rounds(&runtime, rounds, each, || pgbench(cluster.folder(), &bare, &script, time))?;
    ratios.push(("PostgreSQL", measured.print(&format!("PostgreSQL, {CONNECTIONS} connections"), &mut table)));

    table.print();
    for (engine, ratio) in ratios {
        at_least(&format!("{engine}: settled orders over (bare commits ÷ commits per order)"), ratio, TARGET);
    }
    println!();
    Ok(())
}

/// One engine's books.
struct Engine<'a> {
    shop: Arc<Shop>,
    /// In how many batches orders were settled so far.
    batches: &'a dyn Fn() -> Outcome<u32>,
}

/// What was measured of one engine.
#[derive(Default)]
struct Measured {
    bare: Series,
    settled: Series,
    commits: Series,
    ratio: Series,
}

impl<'a> Engine<'a> {
    fn open(runtime: &Runtime, books: Books, orders: usize, batches: &'a dyn Fn() -> Outcome<u32>) -> Outcome<Self> {
        let shop = Arc::new(runtime.block_on(Shop::open(books, CLIENTS, orders as u64))?);
        Ok(Self { shop, batches })
    }

    /// Bare commits and orders by turns, so that both see the same machine.
    fn rounds(&self, runtime: &Runtime, rounds: usize, each: usize, mut bare: impl FnMut() -> Outcome<f64>) -> Outcome<Measured> {
        let mut measured = Measured::default();
        for _ in 0..rounds {
            let before = bare()?;
            let (settled, commits) = self.round(runtime, each)?;
            let bare = f64::midpoint(before, bare()?);
            measured.bare.push(bare);
            measured.settled.push(settled);
            measured.commits.push(commits);
            measured.ratio.push(settled / (bare / commits));
        }
        Ok(measured)
    }

    /// Orders per second, and commits for each.
    fn round(&self, runtime: &Runtime, each: usize) -> Outcome<(f64, f64)> {
        let (before, begun) = ((self.batches)()?, Instant::now());
        let clients: Vec<_> = (0..usize::from(CLIENTS))
            .map(|client| {
                let shop = self.shop.clone();
                runtime.spawn(async move {
                    for _ in 0..each {
                        shop.one_order(client).await.map_err(|e| e.to_string())?;
                    }
                    Ok::<_, String>(())
                })
            })
            .collect();
        for client in clients {
            runtime.block_on(client)??;
        }
        let (spent, orders) = (begun.elapsed().as_secs_f64(), f64::from(CLIENTS) * each as f64);
        Ok((orders / spent, WRITES + f64::from((self.batches)()? - before) / orders))
    }
}

impl Measured {
    /// Adds the engine's row; returns the ratio.
    fn print(&self, engine: &str, table: &mut Table) -> f64 {
        table.row([engine.to_owned(), self.bare.show(0), self.commits.show(2), self.settled.show(0), self.ratio.show(2)]);
        self.ratio.median()
    }
}

/// Commits per second of one row each, by one connection that is set as the server's: SQLite has one writer at a time.
fn sqlite_commits(path: &Path, commits: usize) -> Outcome<f64> {
    let connection = rusqlite::Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.execute("CREATE TABLE IF NOT EXISTS bare (id INTEGER PRIMARY KEY, value BLOB)", [])?;
    let mut insert = connection.prepare("INSERT INTO bare (value) VALUES (?1)")?;
    let begun = Instant::now();
    for n in 0..commits {
        insert.execute([[n as u8; 32]])?;
    }
    Ok(commits as f64 / begun.elapsed().as_secs_f64())
}

/// Commits per second of one row each, by PostgreSQL's own measuring program with as many clients.
fn pgbench(host: &Path, database: &str, script: &Path, time: Duration) -> Outcome<f64> {
    let program = binaries().ok_or_else(|| failed("PostgreSQL is not installed"))?.join("pgbench");
    let mut command = Command::new(program);
    command.args(["--no-vacuum", "--protocol=prepared", "--jobs=4", "--username=chipbound", "--host"]).arg(host);
    command.arg(format!("--client={CLIENTS}")).arg(format!("--time={}", time.as_secs())).arg("--file").arg(script).arg(database);
    let said = output(&mut command)?;
    let rate = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    rate.ok_or_else(|| failed(format!("pgbench said no rate: {said}")))
}
