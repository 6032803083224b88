//! Whatever becomes of the database in the middle of sales, nobody is charged twice or without a receipt, what cannot be done is refused
//! as `database_unavailable`, and the same command ends the purchase as soon as the database is back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound_testkit::postgres::Cluster;
use chipbound_wire::Code;
use common::{CHIPBOUND, PASSWORD, SERVER, World, audited, good, json_lines, noise, refused};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Customers who buy at the same time.
const CUSTOMERS: usize = 4;
/// How long after the beginning of some purchase the database ends, in milliseconds, twice each: shut down, and killed.
const MOMENTS: [u64; 3] = [5, 40, 110];
/// After how long a customer who was refused tries again. The server takes no more connections of one address for a while where many
/// come in a long outage.
const MOMENT: Duration = Duration::from_millis(100);
/// How long something may take that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Customers at work.
struct Sales<'w> {
    world: &'w World,
    begun: AtomicUsize,
    refused: AtomicUsize,
    bought: AtomicUsize,
    ending: AtomicBool,
}

/// Ends the sales, also where a test fails.
struct Ending<'s>(&'s AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Sales<'_> {
    /// Buys one copy after another, each by the same command until it is there; how many.
    fn customer(&self, user: &str) -> usize {
        let (mut bought, mut under_way) = (0, false);
        while under_way || !self.ending.load(Ordering::Relaxed) {
            self.begun.fetch_add(1, Ordering::Relaxed);
            let data = if user.ends_with(['0', '1']) { "small" } else { "large" };
            let output = self.world.as_user(user, &["--json", "buy", data, "--again", "-o", user]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            if !output.status.success() {
                let refusal: Value = said.lines().rev().find_map(|line| serde_json::from_str(line).ok()).unwrap_or_default();
                let code = refusal["error"]["code"].as_str().unwrap_or_default();
                assert!([Code::DatabaseUnavailable, Code::Busy].map(Code::as_str).contains(&code), "{said}");
                self.refused.fetch_add(usize::from(code == Code::DatabaseUnavailable.as_str()), Ordering::Relaxed);
                std::thread::sleep(MOMENT);
            }
            // It may have been the server's log alone that could not be compared with what was seen of it before.
            under_way = !output.status.success() && !said.contains("the package is whole in");
            if !under_way {
                bought += 1;
                self.bought.fetch_add(1, Ordering::Relaxed);
                fs::remove_file(self.world.work(user)).unwrap();
            }
        }
        bought
    }

    fn awaits(&self, what: &str, count: &AtomicUsize, more: usize) {
        let (deadline, wanted) = (Instant::now() + PATIENCE, count.load(Ordering::Relaxed) + more);
        while count.load(Ordering::Relaxed) < wanted {
            assert!(
                Instant::now() < deadline,
                "no more {what} than {}: {}",
                count.load(Ordering::Relaxed),
                last_lines(&self.world.log(SERVER))
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The database ends while somebody buys, and comes back when everybody noticed.
    fn outage(&self, cluster: &Cluster, after: u64, end: fn(&Cluster)) {
        self.awaits("purchases", &self.begun, 1);
        std::thread::sleep(Duration::from_millis(after));
        end(cluster);
        self.awaits("refusals", &self.refused, CUSTOMERS);
        cluster.start_again();
        self.awaits("packages", &self.bought, CUSTOMERS);
    }
}

#[test]
fn a_database_that_is_shut_down_or_killed_under_sales_loses_none_and_charges_nobody_twice() {
    let cluster = Cluster::start(true);
    let world = World::start_on(Path::new(CHIPBOUND), "", 1, Some(&cluster.url(&cluster.create_database())));
    // Below and above the size from which interrupted deliveries go on.
    for (name, size) in [("small", 200_000), ("large", 1_500_000)] {
        noise(&world.folder.path().join(name), size);
        world.publish(&world.folder.path().join(name), name, "1", &["--open-to-file"]);
    }
    let customers: Vec<_> = (0..CUSTOMERS).map(|number| format!("customer-{number}")).collect();
    for user in &customers {
        world.runtime.block_on(world.daemons.account(user, "customer", PASSWORD, Some("9000.00 EUR"))).unwrap();
        world.runtime.block_on(world.daemons.log_in(user, PASSWORD)).unwrap();
    }
    let sales = Sales { world: &world, begun: 0.into(), refused: 0.into(), bought: 0.into(), ending: false.into() };
    let bought: Vec<_> = std::thread::scope(|scope| {
        let ending = Ending(&sales.ending);
        let buying: Vec<_> = customers.iter().map(|user| scope.spawn(|| sales.customer(user))).collect();
        for (after, end) in MOMENTS.iter().flat_map(|after| [(after, Cluster::shut_down_at_once as fn(&Cluster)), (after, Cluster::kill)]) {
            sales.outage(&cluster, *after, end);
        }
        drop(ending);
        buying.into_iter().map(|customer| customer.join().unwrap()).collect()
    });
    for (user, bought) in customers.iter().zip(bought) {
        let receipts = json_lines(&good(world.as_user(user, &["--json", "receipts"]))).len();
        let account = json_lines(&good(world.as_user(user, &["--json", "balance"]))).remove(0);
        let minor = |name: &str| account["balances"][0][name]["minor"].as_u64().unwrap() as usize;
        assert_eq!((receipts, minor("available"), minor("held")), (bought, 900_000 - 1000 * bought, 0), "{user}");
    }
    audited(&world);
    let log = world.log(SERVER);
    let wrong: Vec<_> = log.lines().filter(|line| line.contains("panicked at") || line.contains("code=internal")).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The end of a log, which may be long.
fn last_lines(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// The file of the server's books, held by another process as long as this lives.
fn hold(world: &World) -> rusqlite::Connection {
    let held = rusqlite::Connection::open(world.folder.path().join("server/server.db")).unwrap();
    held.busy_timeout(PATIENCE).unwrap();
    held.execute_batch("BEGIN EXCLUSIVE").unwrap();
    held
}

#[test]
fn books_that_another_process_holds_are_waited_for_and_not_for_ever() {
    let world = World::start("", 1);
    noise(&world.folder.path().join("data"), 200_000);
    world.publish(&world.folder.path().join("data"), "data", "1", &["--open-to-file"]);

    // For a short time: the purchase waits.
    let held = hold(&world);
    let mut buying = world.ada(&["--json", "buy", "data", "-o", "first"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(buying.stdout.take().unwrap()).lines();
    assert!(said.next().unwrap().unwrap().contains("1001"), "who reads does not wait");
    std::thread::sleep(Duration::from_secs(1));
    assert!(buying.try_wait().unwrap().is_none(), "it waits");
    drop(held);
    assert!(buying.wait().unwrap().success());
    assert_eq!((world.balance(), world.receipts()), (("90.00 EUR".into(), "0.00 EUR".into()), 1));
    drop(said);

    // For longer than a transaction waits, from the middle of a purchase on.
    let mut buying =
        world.ada(&["--json", "buy", "data", "--again", "-o", "second"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(buying.stdout.take().unwrap()).lines().map_while(Result::ok);
    told.find(|line| line.contains("held, nothing taken")).expect("the price is held");
    let held = hold(&world);
    told.by_ref().for_each(drop);
    let output = buying.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(Code::DatabaseUnavailable.as_str()), "{said}");
    assert_eq!((world.balance(), world.receipts()), (("80.00 EUR".into(), "10.00 EUR".into()), 1), "held, not taken");
    assert_eq!(world.names(), ["first"], "nothing half-written is left");
    drop(held);
    good(world.ada(&["buy", "data", "--again", "-o", "second"]));
    assert_eq!((world.balance(), world.receipts()), (("80.00 EUR".into(), "0.00 EUR".into()), 2), "the same order");
    audited(&world);
    refused(world.ada(&["buy", "data"]), Code::AlreadyBought);
}
