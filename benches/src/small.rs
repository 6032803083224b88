//! Deliveries of 100 KB: what one costs the server, against the primitives that the protocol makes for it.

use crate::lab::{KeyMode, Lab, Way};
use crate::primitives::{self, SMALL};
use crate::process::{cpu_seconds, run};
use crate::stats::{Series, Table, at_least};
use crate::{Options, Outcome, database, samples};
use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use std::path::Path;
use std::time::Instant;

/// What part of the primitives' speed is asked for.
const TARGET: f64 = 0.35;
/// Series of deliveries whose median counts.
const BATCHES: usize = 5;

/// Measures and prints.
pub(crate) fn measure(options: &Options, folder: &Path) -> Outcome<()> {
    let deliveries = options.rounds().unwrap_or(if options.quick { 40 } else { 300 });
    println!("## Deliveries of 100 KB, {deliveries} in each mode, fresh connections for each\n");
    let lab = Lab::start(&folder.join("lab"), &options.chipbound()?)?;
    let file = folder.join("small");
    samples::random_file(&file, SMALL as u64)?;
    run(&mut lab.publish(&file, "small", true))?;

    let target = folder.join("received");
    let mut direct = Spent::default();
    let mut common = Spent::default();
    let batch = deliveries.div_ceil(BATCHES);
    for _ in 0..batch.min(10) {
        run(&mut lab.buy("small", KeyMode::Common, Way::Tunnel, &target))?; // Makes the common ciphertext, fills caches.
    }
    // The primitives are measured between the batches, so that both see the same machine.
    let mut parts = primitives::Primitives::default();
    for _ in 0..BATCHES {
        direct.add(&lab, KeyMode::Direct, batch, &target)?;
        parts.add(if options.quick { 20 } else { 100 })?;
        common.add(&lab, KeyMode::Common, batch, &target)?;
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
    /// One batch, by the customer's own command, one after another.
    fn add(&mut self, lab: &Lab, key_mode: KeyMode, deliveries: usize, target: &Path) -> Outcome<()> {
        let (server, processor) = (cpu_seconds(lab.server())?, cpu_seconds(lab.processor()?)?);
        let (begun, mut client) = (Instant::now(), 0.0);
        for _ in 0..deliveries {
            client += run(&mut lab.buy("small", key_mode, Way::Tunnel, target))?.cpu;
        }
        let each = |seconds: f64| seconds * 1e3 / deliveries as f64;
        self.wall.push(each(begun.elapsed().as_secs_f64()));
        self.client.push(each(client));
        self.server.push(each(cpu_seconds(lab.server())? - server));
        self.processor.push(each(cpu_seconds(lab.processor()?)? - processor));
        Ok(())
    }
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

    let primitives = parts.sum() / 1e3;
    let without = direct.server.median() - per_order.cpu.median();
    println!("primitives alone: {primitives:.2} ms = {:.0} deliveries per second per core", 1e3 / primitives);
    println!("server, direct: {:.2} ms = {:.0} deliveries per second per core", direct.server.median(), 1e3 / direct.server.median());
    println!(
        "server, direct, without the database: {without:.2} ms = {:.0} per second per core; {:.2} of the primitives' speed",
        1e3 / without,
        primitives / without
    );
    at_least("server's speed over the primitives' speed, database included", primitives / direct.server.median(), TARGET);
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
