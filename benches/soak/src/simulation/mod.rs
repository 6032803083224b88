//! A deterministic simulation: the server, processors and customers of one shop in this process, with simulated time and a simulated
//! network, and events drawn from a seed; the clock is set back now and then. After every event the books are compared with what must always hold, and at the end the
//! independent auditor reads them.
//!
//! Server and processor are the real ones, down to their books, vaults and TLS; the customer is a model of `chipbound buy`, which
//! writes down what that writes down. Nothing happens at once: an event ends before the next one begins, so that a seed's events and
//! what comes of them are the same each time. Keys and ids are not: they are fresh in every run.

mod customer;
mod invariants;
mod network;
mod world;

use crate::dice::Dice;
use crate::{Outcome, failed};
use chipbound_server::storage::{Deliveries, Orders, Settlement, Shares};
use chipbound_wire::api::OrderState;
use customer::Request;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use world::{TERM, World};

/// Account and processor of each customer: the first two are at one order from two machines, and the third has one of its own.
const CUSTOMERS: [(u8, usize); 4] = [(1, 0), (1, 0), (1, 1), (2, 2)];
/// Events before everything goes well again.
const EVENTS: u32 = 60;
/// Steps within which everybody then has the program.
const CALM: u32 = 40;

/// What a run consisted of.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Story {
    /// Every event and what came of it; the same for the same seed.
    pub events: Vec<String>,
    /// Prices that were taken.
    pub paid: u32,
    /// Orders that came to nothing.
    pub ended: u32,
}

/// Where files are cheapest: the system's folder in memory, where there is one.
#[must_use]
pub fn folder() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// Plays the seed in a new folder below `folder`.
///
/// # Errors
/// What did not hold, with the seed and the event.
pub fn play(seed: u64, folder: &Path) -> Outcome<Story> {
    let room = tempfile::Builder::new().prefix("simulation-").tempdir_in(folder)?;
    let mut world = World::new(room.path().to_owned(), &CUSTOMERS)?;
    let mut dice = Dice::new(seed);
    let mut story = Story::default();
    let wrong = |story: &Story, why: &dyn std::fmt::Display| {
        failed(format!("seed {seed}, event {}: {why}\n{}", story.events.len(), story.events.join("\n")))
    };
    for _ in 0..EVENTS {
        let event = world.event(&mut dice).map_err(|e| wrong(&story, &e))?;
        story.events.push(event);
        world.check().map_err(|e| wrong(&story, &e))?;
    }
    let ends = world.ends_well(&mut dice, &mut story);
    let (paid, ended) = ends.map_err(|e| wrong(&story, &e))?;
    Ok(Story { paid, ended, ..story })
}

impl World {
    /// One event; says which it was and what came of it.
    fn event(&mut self, dice: &mut Dice) -> Outcome<String> {
        let number = dice.index(self.customers.len());
        let said = match dice.below(100) {
            0..62 => self.step(number, dice, false)?,
            62..67 => {
                self.customers[number].crash();
                "the client is killed".to_owned()
            }
            67..71 => {
                self.restart_chip(self.customers[number].chip)?;
                "the processor is killed".to_owned()
            }
            71..75 => {
                self.restart_server()?;
                "the server is killed".to_owned()
            }
            75..80 => self.killed_while_settling(dice)?,
            80..84 => {
                let seconds = dice.one_of(&[1, 10, TERM / 4, TERM / 2, TERM]);
                if dice.percent(20) {
                    self.clock.fetch_sub(seconds, Ordering::Relaxed);
                    format!("the clock is set back by {seconds} seconds")
                } else {
                    self.clock.fetch_add(seconds, Ordering::Relaxed);
                    format!("{seconds} seconds pass")
                }
            }
            84..88 => format!("{} orders run out", self.runtime.block_on(self.server.expire())?),
            88..93 => self.something_late(dice)?,
            93..96 => self.give_up(number)?,
            96..98 => self.refunded(number)?,
            _ => {
                self.customers[number].lose_package();
                "the package is lost".to_owned()
            }
        };
        Ok(format!("customer {number}: {said}"))
    }

    /// The server is killed between two of the transactions that settle an order, and starts again.
    fn killed_while_settling(&mut self, dice: &mut Dice) -> Outcome<String> {
        let waits = self.customers.iter().find_map(|c| c.acknowledgement().map(|(order, held)| (c, order, held)));
        let Some((customer, order, held)) = waits else { return Ok("nothing to settle".to_owned()) };
        let settlement = Settlement {
            order,
            account: customer.principal.account,
            seal: held.acknowledged.seal.digest(),
            acknowledgement: held.acknowledged.acknowledgement.clone(),
            token: Vec::new(),
            shares: Shares::default(),
            at: self.now(),
            log: self.keys.get().log.clone(),
        };
        let acknowledged = self.runtime.block_on(self.books.acknowledge(&settlement));
        let asked = dice.percent(50);
        let outcome = match acknowledged {
            Ok(order) if asked && order.state == OrderState::Acknowledged => {
                self.runtime.block_on(self.books.request_capture(order.order, &settlement.capture_key()))?;
                "capture-requested"
            }
            Ok(order) => order.state.as_str(),
            Err(refusal) => refusal.code.as_str(),
        };
        self.restart_server()?;
        Ok(format!("the server is killed while it settles: {outcome}"))
    }

    /// A request that was given up arrives after all.
    fn something_late(&mut self, dice: &mut Dice) -> Outcome<String> {
        if self.late.is_empty() {
            return Ok("nothing is late".to_owned());
        }
        let (principal, chip, request) = self.late.remove(dice.index(self.late.len()));
        let code = self.arrives(&principal, chip, &request).err().map(|refusal| refusal.code);
        Ok(format!("something late arrives: {}", code.map_or("done", |code| code.as_str())))
    }

    fn give_up(&mut self, number: usize) -> Outcome<String> {
        let customer = &self.customers[number];
        let Some(order) = customer.order.as_ref().map(|order| order.order) else { return Ok("nothing to give up".to_owned()) };
        let given_up = self.arrives(&customer.principal.clone(), customer.chip, &Request::Cancel(order));
        Ok(format!("gives up: {}", given_up.err().map_or("cancelled", |refusal| refusal.code.as_str())))
    }

    fn refunded(&mut self, number: usize) -> Outcome<String> {
        let Some(order) = self.customers[number].order.as_ref().map(|order| order.order) else {
            return Ok("nothing to refund".to_owned());
        };
        let refunded = self.runtime.block_on(self.books.refund(order, "as a kindness", self.now()));
        Ok(format!("refund: {}", refunded.err().map_or("given back", |refusal| refusal.code.as_str())))
    }

    /// No more faults: everybody who can pay gets the program, nothing stays held, and the auditor finds nothing.
    fn ends_well(&mut self, dice: &mut Dice, story: &mut Story) -> Outcome<(u32, u32)> {
        self.restart_server()?;
        for number in 0..self.customers.len() {
            let mut steps = 0;
            while self.customers[number].package.is_none() && (self.customers[number].receipt.is_some() || self.can_pay_or_holds(number)?) {
                let said = self.step(number, dice, true)?;
                story.events.push(format!("calm: customer {number}: {said}"));
                self.check()?;
                steps += 1;
                if steps == CALM {
                    return Err(failed(format!("customer {number} did not get the program in {CALM} steps")));
                }
            }
            if self.customers[number].package.is_some() {
                self.opens(number)?;
            }
        }
        self.clock.fetch_add(3 * TERM, Ordering::Relaxed);
        self.runtime.block_on(self.server.expire())?;
        self.check()?;
        self.nothing_is_held()?;
        self.audited()?;
        self.counts()
    }
}
