//! The crash run: servers, clients, processors and databases are killed (SIGKILL) at every step of purchases, and afterwards nobody
//! has paid twice, nobody has paid for nothing, and everybody who went on has the program.
//!
//! Several installations run at once, each with authority, server, processors and a card provider of its own, half of them on SQLite
//! and half on PostgreSQL. In each, some lanes buy one program after another, every time for a new customer; some programs are published
//! for it, some customers get money, some purchases are transferred to another processor or refunded afterwards, or their vendor is paid
//! out, and that is disturbed too. What is bought how, who is killed and when is drawn from the seed; where exactly a kill hits depends on the machine's clock, so that a run of the same
//! seed makes the same purchases and aims at the same moments, but is not the same run to the microsecond.

mod books;
mod lane;
mod plan;
mod shop;
mod tally;

pub use tally::{At, Errand, Tally, Victim};

use crate::Outcome;
use lane::Lane;
use shop::Shop;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// Where an installation keeps its books.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Database {
    /// A file.
    Sqlite,
    /// A cluster of its own.
    Postgres,
}

/// How large a run is.
#[derive(Clone, Debug)]
pub struct Size {
    /// What is drawn depends on it.
    pub seed: u64,
    /// Kills in all.
    pub kills: u32,
    /// Installations on each of the two databases.
    pub shops: usize,
    /// Purchases at once in each installation.
    pub lanes: usize,
    /// Seconds until an order runs out.
    pub order_seconds: u64,
}

/// Runs until so many kills were made or `ending` is set, then checks the books. `chipbound` is the command that is killed.
///
/// # Errors
/// What keeps the run from being made; what is wrong with the books is in the tally.
pub fn run(chipbound: &Path, size: &Size, ending: &AtomicBool) -> Outcome<Tally> {
    let databases = [Database::Sqlite, Database::Postgres];
    let numbers = (0..size.shops).flat_map(|_| databases).enumerate();
    let (tally, kills) = (Mutex::new(Tally::default()), AtomicU32::new(0));
    let each = std::thread::scope(|scope| {
        let shops: Vec<_> = numbers
            .map(|(number, database)| {
                let (tally, kills) = (&tally, &kills);
                scope.spawn(move || one(chipbound, size, (number, database), &Ends { kills, size, ending }, tally))
            })
            .collect();
        shops.into_iter().map(|shop| shop.join().map_err(|_| crate::failed("a shop's thread ended"))?).collect::<Outcome<Vec<()>>>()
    });
    each?;
    Ok(tally.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// When it is enough.
pub(crate) struct Ends<'a> {
    kills: &'a AtomicU32,
    size: &'a Size,
    ending: &'a AtomicBool,
}

impl Ends<'_> {
    fn reached(&self) -> bool {
        self.ending.load(Ordering::Relaxed) || self.kills.load(Ordering::Relaxed) >= self.size.kills
    }

    /// Whether one kill more may be made; it counts then.
    pub(crate) fn one_more(&self) -> bool {
        let more = |kills: u32| (kills < self.size.kills).then_some(kills + 1);
        self.kills.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

/// One installation, from its beginning to its books.
fn one(chipbound: &Path, size: &Size, (number, database): (usize, Database), ends: &Ends<'_>, tally: &Mutex<Tally>) -> Outcome<()> {
    let folder = tempfile::Builder::new().prefix("chipbound-crash-").tempdir()?;
    let shop = Shop::open(chipbound, folder.path(), database, size)?;
    let mut lanes = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..size.lanes)
            .map(|lane| {
                let (shop, seed) = (&shop, size.seed.wrapping_mul(1_000_003).wrapping_add((number * size.lanes + lane) as u64));
                scope.spawn(move || {
                    let mut lane = Lane::new(shop, lane, seed, tally);
                    while !ends.reached() {
                        lane.purchase(ends)?;
                    }
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>(lane)
                })
            })
            .collect();
        let lanes = lanes.into_iter().map(|lane| lane.join().map_err(|_| crate::failed("a lane's thread ended"))?);
        lanes.collect::<Outcome<Vec<_>>>()
    })?;
    books::settle(&shop, lanes.iter().flat_map(|lane| &lane.bought), Duration::from_secs(size.order_seconds))?;
    lanes.iter_mut().try_for_each(Lane::come_back)?;
    let bought: Vec<_> = lanes.into_iter().flat_map(|lane| lane.bought).collect();
    let mut found = books::check(&shop, &bought)?;
    let name = format!("shop {number} on {database:?}");
    found.violations.iter_mut().for_each(|violation| *violation = format!("{name}: {violation}"));
    tally::locked(tally).add(found);
    Ok(())
}
