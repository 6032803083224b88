//! Deliveries of 100 KB: what one costs the server, against the primitives that the protocol makes for it.

use crate::lab::Lab;
use crate::primitives::{self, SMALL};
use crate::process::{cpu_seconds, run};
use crate::stats::{Series, Table, at_least};
use crate::{Options, Outcome, database, samples};
use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use chipbound::api::Api;
use chipbound::client::deliver::{Wanted, Wish, buy};
use chipbound::client::{Device, Story};
use chipbound::home::Home;
use chipbound_wire::api::Payment;
use chipbound_wire::suite::KeyMode;
use rustix::time::ClockId;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::Runtime;

/// What part of the primitives' speed is asked for.
const TARGET: f64 = 0.35;
/// Series of deliveries whose median counts.
const BATCHES: usize = 5;
/// Customers who buy at the same time.
const CUSTOMERS: usize = 6;

/// Measures and prints.
pub(crate) fn measure(options: &Options, folder: &Path) -> Outcome<()> {
    let deliveries = options.rounds().unwrap_or(if options.quick { 40 } else { 300 });
    println!("## Deliveries of 100 KB, {deliveries} in each mode, fresh connections for each\n");
    let lab = Lab::start(&folder.join("lab"), &options.chipbound()?)?;
    let file = folder.join("small");
    samples::random_file(&file, SMALL as u64)?;
    run(&mut lab.publish(&file, "small", true))?;

    let mut driver = Driver::new(&lab)?;
    let mut direct = Spent::default();
    let mut common = Spent::default();
    let batch = deliveries.div_ceil(BATCHES);
    driver.deliver(KeyMode::Direct, CUSTOMERS)?; // Fills caches,
    driver.deliver(KeyMode::Common, CUSTOMERS)?; // and makes the common ciphertext.
    // The primitives are measured between the batches, so that both see the same machine.
    let mut parts = primitives::Primitives::default();
    for _ in 0..BATCHES {
        direct.add(&lab, &mut driver, KeyMode::Direct, batch)?;
        parts.add(if options.quick { 20 } else { 100 })?;
        common.add(&lab, &mut driver, KeyMode::Common, batch)?;
    }
    let per_order = database::measure(folder, if options.quick { 50 } else { 200 })?;
    parts.print();
    print(&direct, &common, &parts, &per_order, &argon2(if options.quick { 3 } else { 10 })?);
    Ok(())
}

/// What deliveries cost, in milliseconds of one.
#[derive(Default)]
struct Spent {
    server: Series,
    processor: Series,
    client: Series,
    wall: Series,
}

impl Spent {
    /// One batch.
    fn add(&mut self, lab: &Lab, driver: &mut Driver, key_mode: KeyMode, deliveries: usize) -> Outcome<()> {
        let (server, processor) = (cpu_seconds(lab.server())?, cpu_seconds(lab.processor()?)?);
        let (begun, client) = (Instant::now(), primitives::seconds(ClockId::ProcessCPUTime));
        let made = driver.deliver(key_mode, deliveries)? as f64;
        let each = |seconds: f64| seconds * 1e3 / made;
        self.wall.push(each(begun.elapsed().as_secs_f64()));
        self.client.push(each(primitives::seconds(ClockId::ProcessCPUTime) - client));
        self.server.push(each(cpu_seconds(lab.server())? - server));
        self.processor.push(each(cpu_seconds(lab.processor()?)? - processor));
        Ok(())
    }
}

/// The customers: the command's own client code in this process, with connections of its own for every delivery.
struct Driver {
    runtime: Runtime,
    homes: Vec<Home>,
    socket: Arc<Path>,
}

impl Driver {
    /// Customers of `lab`, logged in.
    fn new(lab: &Lab) -> Outcome<Self> {
        let homes = (0..CUSTOMERS).map(|n| Ok(Home::locate(Some(&lab.customer(&format!("buyer-{n}"))?))?)).collect::<Outcome<Vec<_>>>()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(Self { runtime, homes, socket: lab.socket().into() })
    }

    /// About so many deliveries, the same number for each customer; returns how many.
    fn deliver(&mut self, key_mode: KeyMode, deliveries: usize) -> Outcome<usize> {
        let each = deliveries.div_ceil(self.homes.len());
        let customers: Vec<_> = self
            .homes
            .iter()
            .map(|home| {
                let (home, socket) = (home.clone(), self.socket.clone());
                self.runtime.spawn(async move {
                    for _ in 0..each {
                        one_delivery(&home, &socket, key_mode).await?;
                    }
                    Ok::<_, chipbound_wire::Refusal>(())
                })
            })
            .collect();
        for customer in customers {
            self.runtime.block_on(customer)??;
        }
        Ok(each * self.homes.len())
    }
}

async fn one_delivery(home: &Home, socket: &Path, key_mode: KeyMode) -> chipbound_wire::Result<()> {
    let session = home.session()?;
    let api = Api::with(&session)?;
    let device = Device { home, session: &session, api: &api, socket, story: &Silent };
    let wish = Wish {
        program: "small".to_owned(),
        version: None,
        key_mode: Some(key_mode),
        line: Wanted::default(),
        max_price: None,
        target: Some(home.path().join("received")),
        again: true,
        payment: Payment::Prepaid,
    };
    buy(&device, &wish).await.map(drop)
}

/// Nobody is told.
struct Silent;

impl Story for Silent {
    fn step(&self, _: u16, _: &str, _: serde_json::Value) {}
    fn progress(&self, _: u64, _: u64) {}
}

fn print(direct: &Spent, common: &Spent, parts: &primitives::Primitives, per_order: &database::PerOrder, argon2: &Series) {
    let mut table = Table::new(&["one delivery, ms", "server CPU", "processor CPU", "client CPU", "wall"]);
    for (name, spent) in [("direct", direct), ("common", common)] {
        let cells = [&spent.server, &spent.processor, &spent.client, &spent.wall].map(|s| s.show(2));
        let [server, processor, client, wall] = cells;
        table.row([name.to_owned(), server, processor, client, wall]);
    }
    table.print();
    println!(
        "database, one order's transactions: CPU {} ms, wall with commits on the disk {} ms",
        per_order.cpu.show(2),
        per_order.wall.show(2)
    );
    println!("Argon2id, one log-in: {} ms\n", argon2.show(1));

    let (primitives, remembered) = (parts.sum() / 1e3, parts.sum_remembered() / 1e3);
    let without = direct.server.median() - per_order.cpu.median();
    println!("primitives alone: {primitives:.2} ms = {:.0} deliveries per second per core", 1e3 / primitives);
    println!("server, direct: {:.2} ms = {:.0} deliveries per second per core", direct.server.median(), 1e3 / direct.server.median());
    println!("server, direct, without the database's transactions: {without:.2} ms = {:.0} per second per core", 1e3 / without);
    at_least("server's speed over the primitives', its database apart", primitives / without, TARGET);
    at_least("server's speed over the primitives', its database included", primitives / direct.server.median(), TARGET);
    println!("the same, certificates counted as remembered: {:.2} and {:.2}", remembered / without, remembered / direct.server.median());
    println!();
}

/// Milliseconds of one password check with the parameters that accounts are made with.
fn argon2(rounds: usize) -> Outcome<Series> {
    let salt = SaltString::encode_b64(&[1; 16]).map_err(|e| e.to_string())?;
    let hash = Argon2::default().hash_password(b"a password", &salt).map_err(|e| e.to_string())?.to_string();
    let hash = PasswordHash::new(&hash).map_err(|e| e.to_string())?;
    let mut spent = Series::default();
    for _ in 0..rounds {
        let begun = Instant::now();
        Argon2::default().verify_password(b"a password", &hash).map_err(|e| e.to_string())?;
        spent.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(spent)
}
