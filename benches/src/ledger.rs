//! Settled orders per second on either engine with many clients at once, against the commits of one row by the same
//! engine on the same disk: bare (one statement, committed by itself), and framed as ours are (its beginning, the statement, the commit).

use crate::database::Shop;
use crate::primitives::seconds;
use crate::process::{cpu_seconds, output};
use crate::stats::{Series, Table, at_least};
use crate::{Options, Outcome, failed};
use chipbound_server::storage::{Books, Location};
use chipbound_testkit::postgres::{Cluster, binaries};
use rustix::time::ClockId;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// What part of the framed commits is asked for.
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
    println!("## Settled orders, {CLIENTS} clients at once, {rounds} rounds of {each} orders of each client, after one to warm up\n");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut table = Table::new(&[
        "engine",
        "bare commits per s",
        "framed commits per s",
        "commits per order",
        "settled orders per s",
        "over bare",
        "over framed",
        "CPU ms of one: server + database",
    ]);
    let mut ratios = Vec::new();

    let file = folder.join("books.db");
    let bare = folder.join("bare.db");
    let books = runtime.block_on(Books::open_file(&file))?;
    let batches = || Ok(rusqlite::Connection::open(&file)?.query_row(BATCHES, [], |row| row.get(0))?);
    let sqlite = Engine::open(&runtime, books, (rounds + 1) * each, &batches, &|| Ok(0.0))?;
    let quick = if options.quick { 50 } else { 300 };
    let measured = sqlite.rounds(&runtime, rounds, each, |framed| sqlite_commits(&bare, quick, framed))?;
    ratios.push(("SQLite", measured.print("SQLite, one writer", &mut table)));

    let cluster = Cluster::start(true);
    let database = cluster.create_database();
    let location = Location::Postgres(Box::new(cluster.url(&database).parse()?), CONNECTIONS);
    let books = runtime.block_on(Books::open(&location))?;
    let batches = || Ok(cluster.sql(&database, BATCHES).map_err(failed)?.parse()?);
    let cpu = || cluster_cpu(cluster.folder());
    let postgres = Engine::open(&runtime, books, (rounds + 1) * each, &batches, &cpu)?;
    let bare = cluster.create_database();
    cluster.sql(&bare, "CREATE TABLE bare (id BIGSERIAL PRIMARY KEY, value BYTEA)").map_err(failed)?;
    let scripts = [folder.join("bare.sql"), folder.join("framed.sql")];
    let insert = "INSERT INTO bare (value) VALUES (decode(repeat('0f', 32), 'hex'));\n";
    std::fs::write(&scripts[0], insert)?;
    std::fs::write(&scripts[1], format!("BEGIN;\n{insert}COMMIT;\n"))?;
    let time = Duration::from_secs(if options.quick { 1 } else { 3 });
    let commits = |framed| pgbench(cluster.folder(), &bare, &scripts[usize::from(framed)], time);
    let measured = postgres.rounds(&runtime, rounds, each, commits)?;
    ratios.push(("PostgreSQL", measured.print(&format!("PostgreSQL, {CONNECTIONS} connections"), &mut table)));

    table.print();
    for (engine, ratio) in ratios {
        at_least(&format!("{engine}: settled orders over (framed commits ÷ commits per order)"), ratio, TARGET);
    }
    println!();
    Ok(())
}

/// One engine's books.
struct Engine<'a> {
    shop: Arc<Shop>,
    /// In how many batches orders were settled so far.
    batches: &'a dyn Fn() -> Outcome<u32>,
    /// CPU seconds of the database's own processes so far.
    cpu: &'a dyn Fn() -> Outcome<f64>,
}

/// What was measured of one engine.
#[derive(Default)]
struct Measured {
    bare: Series,
    framed: Series,
    settled: Series,
    commits: Series,
    over_bare: Series,
    over_framed: Series,
    /// Milliseconds of CPU for one order.
    server: Series,
    database: Series,
}

/// One round of orders.
struct Round {
    per_second: f64,
    commits: f64,
    server: f64,
    database: f64,
}

impl<'a> Engine<'a> {
    fn open(
        runtime: &Runtime,
        books: Books,
        orders: usize,
        batches: &'a dyn Fn() -> Outcome<u32>,
        cpu: &'a dyn Fn() -> Outcome<f64>,
    ) -> Outcome<Self> {
        let shop = Arc::new(runtime.block_on(Shop::open(books, CLIENTS, orders as u64))?);
        Ok(Self { shop, batches, cpu })
    }

    /// Commits and orders by turns, so that both see the same machine.
    fn rounds(&self, runtime: &Runtime, rounds: usize, each: usize, mut commits: impl FnMut(bool) -> Outcome<f64>) -> Outcome<Measured> {
        let mut measured = Measured::default();
        self.round(runtime, each)?; // Connections come to know their statements.
        for _ in 0..rounds {
            let before = [commits(false)?, commits(true)?];
            let round = self.round(runtime, each)?;
            let [framed, bare] = [commits(true)?, commits(false)?];
            let (bare, framed) = (f64::midpoint(before[0], bare), f64::midpoint(before[1], framed));
            measured.bare.push(bare);
            measured.framed.push(framed);
            measured.settled.push(round.per_second);
            measured.commits.push(round.commits);
            measured.over_bare.push(round.per_second / (bare / round.commits));
            measured.over_framed.push(round.per_second / (framed / round.commits));
            measured.server.push(round.server);
            measured.database.push(round.database);
        }
        Ok(measured)
    }

    fn round(&self, runtime: &Runtime, each: usize) -> Outcome<Round> {
        let before = ((self.batches)()?, (self.cpu)()?, seconds(ClockId::ProcessCPUTime));
        let begun = Instant::now();
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
        Ok(Round {
            per_second: orders / spent,
            server: (seconds(ClockId::ProcessCPUTime) - before.2) * 1e3 / orders,
            database: ((self.cpu)()? - before.1) * 1e3 / orders,
            commits: WRITES + f64::from((self.batches)()? - before.0) / orders,
        })
    }
}

impl Measured {
    /// Adds the engine's row; returns the ratio that is judged.
    fn print(&self, engine: &str, table: &mut Table) -> f64 {
        table.row([
            engine.to_owned(),
            self.bare.show(0),
            self.framed.show(0),
            self.commits.show(2),
            self.settled.show(0),
            self.over_bare.show(2),
            self.over_framed.show(2),
            format!("{:.2} + {:.2}", self.server.median(), self.database.median()),
        ]);
        self.over_framed.median()
    }
}

/// CPU seconds of a cluster's processes that are alive, and of those that ended.
fn cluster_cpu(folder: &Path) -> Outcome<f64> {
    let pid_file = std::fs::read_to_string(folder.join("data/postmaster.pid"))?;
    let postmaster: i32 = pid_file.lines().next().unwrap_or_default().parse()?;
    let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"))?;
    let mut cpu = cpu_seconds(postmaster)?;
    for child in children.split_whitespace() {
        cpu += cpu_seconds(child.parse()?).unwrap_or_default(); // It may end meanwhile.
    }
    Ok(cpu)
}

/// Commits per second of one row each, by one connection that is set as the server's: SQLite has one writer at a time. Framed, each is
/// three statements.
fn sqlite_commits(path: &Path, commits: usize, framed: bool) -> Outcome<f64> {
    let connection = rusqlite::Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.execute("CREATE TABLE IF NOT EXISTS bare (id INTEGER PRIMARY KEY, value BLOB)", [])?;
    let mut insert = connection.prepare("INSERT INTO bare (value) VALUES (?1)")?;
    let begun = Instant::now();
    for n in 0..commits {
        if framed {
            connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        }
        insert.execute([[n as u8; 32]])?;
        if framed {
            connection.prepare_cached("COMMIT")?.execute([])?;
        }
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
