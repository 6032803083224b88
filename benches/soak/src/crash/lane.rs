//! One purchase after another, each disturbed as the plan says, each gone on with until the customer has the program.

mod errand;

use super::Ends;
use super::plan::{Moment, Stroke, Wish};
use super::shop::Shop;
use super::tally::{At, Errand, Tally, Victim, locked};
use crate::dice::Dice;
use crate::{Outcome, failed};
use chipbound_testkit::cards::Operation;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long a client may take that has everything it needs, or has lost it.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often a customer tries again before she gives up for good, which must not happen.
const TRIES: usize = 60;
/// How often somebody is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// A purchase that was made, or left.
pub(crate) struct Bought {
    pub(crate) customer: Customer,
    pub(crate) wish: Wish,
    /// Whether the customer has the program; she may also have it who left.
    pub(crate) obtained: bool,
    pub(crate) left: bool,
    /// The order, where its price was given back.
    pub(crate) refunded: Option<String>,
    /// Whether the operator added money to her account.
    pub(crate) deposited: bool,
    /// Whether the vendor was paid out a part of the price.
    pub(crate) paid_out: bool,
}

/// Whoever buys on one processor.
pub(crate) struct Lane<'a> {
    shop: &'a Shop,
    number: usize,
    dice: Dice,
    customers: u32,
    /// How long an errand takes that nobody disturbs.
    took: BTreeMap<Errand, Duration>,
    tally: &'a Mutex<Tally>,
    pub(crate) bought: Vec<Bought>,
}

/// A customer while one purchase goes on.
pub(crate) struct Customer {
    pub(crate) user: String,
    /// The name of what she buys.
    program: String,
    /// One, or two that know of the same order.
    clients: Vec<Client>,
}

/// A client's folder, and how far it is.
struct Client {
    home: PathBuf,
    package: PathBuf,
    /// Whether it has the package.
    well: bool,
    /// The order whose receipt it has, when it had ended before the package came.
    paid: Option<String>,
}

impl<'a> Lane<'a> {
    pub(crate) fn new(shop: &'a Shop, number: usize, seed: u64, tally: &'a Mutex<Tally>) -> Self {
        Self { shop, number, dice: Dice::new(seed), customers: 0, took: BTreeMap::new(), tally, bought: Vec::new() }
    }

    /// One purchase, whatever happens to it.
    pub(crate) fn purchase(&mut self, ends: &Ends<'_>) -> Outcome<()> {
        let wish = Wish::draw(&mut self.dice, self.shop.has_cluster());
        self.customers += 1;
        let name = format!("customer-{}-{}", self.number, self.customers);
        let (user, work) = self.shop.customer(&name, !wish.card)?;
        let program = match &wish.errand {
            Some((Errand::Publish, blows)) => self.publish(&wish, blows, ends)?,
            _ => wish.program.name.to_owned(),
        };
        let deposit = wish.errand.as_ref().filter(|(errand, _)| *errand == Errand::Deposit);
        if let Some((_, blows)) = deposit {
            self.deposit(&user, blows, ends)?;
        }
        let deposited = deposit.is_some();
        let client = Client { home: self.shop.home(&user), package: work.join("package-0"), well: false, paid: None };
        let mut customer = Customer { user, program, clients: vec![client] };
        let (hits, raced) = self.disturb(&wish, &mut customer, &work, ends)?;
        let left = wish.left && !customer.has_all();
        if !left {
            self.go_on(&wish, &mut customer)?;
        }
        let old = work.join("old");
        if customer.has_all() {
            std::fs::copy(&customer.clients[0].package, &old)?;
        }
        let obtained = self.holds(&wish, &customer)?;
        let (refunded, paid_out) = self.afterwards(&wish, &customer, &old, ends)?;
        let _ = std::fs::remove_file(old); // Where there is one.
        let mut tally = locked(self.tally);
        tally.purchases += 1;
        tally.by_card += u32::from(wish.card);
        tally.raced += u32::from(raced);
        tally.left += u32::from(left);
        tally.recovered += u32::from(hits > 0 && customer.has_all());
        self.bought.push(Bought { customer, wish, obtained, left, refunded, deposited, paid_out });
        Ok(())
    }

    /// Begins the purchase again and again, and strikes each time: how often that hit, and whether two clients were at it.
    fn disturb(&mut self, wish: &Wish, customer: &mut Customer, work: &Path, ends: &Ends<'_>) -> Outcome<(u32, bool)> {
        let (mut hits, mut raced) = (0, false);
        for stroke in &wish.strokes {
            let attempts = self.begin(wish, customer)?;
            if attempts.is_empty() {
                break;
            }
            raced |= attempts.len() > 1;
            let begun = Instant::now();
            let landed = self.strike(stroke, attempts, ends, customer)?;
            hits += u32::from(landed);
            if !landed && customer.has_all() {
                self.shop.undisturbed(begun.elapsed());
            }
            if wish.race && customer.clients.len() == 1 {
                self.second_client(customer, work.join("package-1"))?;
            }
        }
        Ok((hits, raced))
    }

    /// What becomes of a purchase that was made: the order, where its price was given back, and whether the vendor was paid out. `old` is
    /// a copy of its package.
    fn afterwards(&mut self, wish: &Wish, customer: &Customer, old: &Path, ends: &Ends<'_>) -> Outcome<(Option<String>, bool)> {
        let Some((errand, blows)) = wish.errand.as_ref().filter(|_| customer.has_all()) else { return Ok((None, false)) };
        let order = errand::order_in(&customer.clients[0].home)?;
        match errand {
            Errand::Publish | Errand::Deposit => Ok((None, false)),
            Errand::Transfer => self.transfer(wish, customer, &order, old, blows, ends).map(|()| (None, false)),
            Errand::Refund => self.refund(customer, &order, blows, ends).map(|()| (Some(order), false)),
            Errand::Payout => self.pay_out(&customer.user, blows, ends).map(|()| (None, true)),
        }
    }

    /// Who left and was charged all the same comes back for the program, by the same command.
    pub(crate) fn come_back(&mut self) -> Outcome<()> {
        let mut bought = std::mem::take(&mut self.bought);
        for one in bought.iter_mut().filter(|one| one.left && !one.obtained) {
            if !self.shop.account(&one.customer.user)?.receipts.is_empty() {
                self.go_on(&one.wish, &mut one.customer)?;
                one.obtained = self.holds(&one.wish, &one.customer)?;
                locked(self.tally).recovered += u32::from(one.obtained);
            }
        }
        self.bought = bought;
        Ok(())
    }

    /// Starts those of the customer's clients that have no package yet.
    fn begin(&self, wish: &Wish, customer: &Customer) -> Outcome<Vec<(usize, Attempt)>> {
        let pay = if wish.card { "card:pm_card_visa" } else { "prepaid" };
        let start = |(number, client): (usize, &Client)| {
            let mut command = match &client.paid {
                Some(order) => self.shop.command(&client.home, self.number, &["--json", "redownload", order]),
                None => self.shop.command(&client.home, self.number, &["--json", "buy", &customer.program, "--pay", pay]),
            };
            let how = if client.paid.is_some() { &wish.how[2..] } else { &wish.how }; // The key mode was the order's.
            command.args(how).arg("--output").arg(&client.package).stdout(Stdio::piped()).stderr(Stdio::piped());
            Ok((number, Attempt::start(&mut command)?))
        };
        customer.clients.iter().enumerate().filter(|(_, client)| !client.well).map(start).collect()
    }

    /// Waits for the moment, kills, and sees what becomes of the clients. Whether somebody was under way when the kill came.
    fn strike(&mut self, stroke: &Stroke, mut attempts: Vec<(usize, Attempt)>, ends: &Ends<'_>, customer: &mut Customer) -> Outcome<bool> {
        let (held, taken) = self.shop.held_and_taken();
        match stroke.moment {
            Moment::Held => self.shop.answer_late(Operation::Create),
            Moment::Taken => self.shop.answer_late(Operation::Capture),
            _ => {}
        }
        let aimed = self.dice.below(attempts.len() as u64) as usize;
        let at = &mut attempts[aimed].1;
        let came = match stroke.moment {
            Moment::After(thousandths) => at.wait_until(Instant::now() + self.shop.usual() * thousandths as u32 / 1000),
            Moment::Step(step, more) => at.wait_for(step) && at.wait_until(Instant::now() + more),
            Moment::Held => at.wait_while(|| self.shop.held_and_taken().0 == held),
            Moment::Taken => at.wait_while(|| self.shop.held_and_taken().1 == taken),
        };
        let landed = came && at.runs()? && ends.one_more();
        if landed {
            *locked(self.tally).kills.entry((stroke.victim, At::Step(at.step))).or_default() += 1;
            match stroke.victim {
                Victim::Client => at.child.kill()?,
                Victim::Server => self.shop.kill_server(stroke.away)?,
                Victim::Processor => self.shop.kill_processor(self.number, stroke.away)?,
                Victim::Database => self.shop.kill_database(),
            }
        }
        for (number, attempt) in attempts {
            self.ended(number, attempt, customer)?;
        }
        Ok(landed)
    }

    /// Sees how a client ended, and notes it down.
    fn ended(&self, number: usize, attempt: Attempt, customer: &mut Customer) -> Outcome<()> {
        let ended = attempt.end()?;
        let client = &mut customer.clients[number];
        match &ended {
            Ended::Well => client.well = true,
            _ if ended.is_refused(&["already_bought"]) => {
                client.well = client.package.exists();
                client.paid = Some(errand::order_in(&client.home)?);
            }
            _ => {}
        }
        self.note(&customer.user, &ended);
        Ok(())
    }

    /// Counts a refusal, and notes down what no command should end with.
    fn note(&self, who: &str, ended: &Ended) {
        let mut tally = locked(self.tally);
        match ended {
            Ended::Well | Ended::Killed => {}
            Ended::Refused { code, detail } => {
                match code.as_str() {
                    "internal" => tally.violation(format!("{who}: a client says that something of ours is broken: {detail}")),
                    "unknown_program" => tally.violation(format!("{who}: what was published is not there: {detail}")),
                    _ => {}
                }
                *tally.refused.entry(code.clone()).or_default() += 1;
            }
            Ended::Otherwise(said) => tally.violations.push(format!("{who}: a client ended without a code: {said}")),
            Ended::Hung(step) => tally.violations.push(format!("{who}: a client hung after step {step}")),
        }
    }

    /// A second client that knows of the order, if the first one got that far, as a backup of its home does.
    fn second_client(&self, customer: &mut Customer, package: PathBuf) -> Outcome<()> {
        let first = &customer.clients[0].home;
        if std::fs::read_dir(first.join("pending")).map_or(0, Iterator::count) == 0 {
            return Ok(());
        }
        let home = self.shop.home(&format!("{}-again", customer.user));
        if !std::process::Command::new("cp").arg("-a").arg(first).arg(&home).status()?.success() {
            return Err(failed("a home could not be copied"));
        }
        customer.clients.push(Client { home, package, well: false, paid: None });
        Ok(())
    }

    /// The same command until the package is there, for every client.
    fn go_on(&self, wish: &Wish, customer: &mut Customer) -> Outcome<()> {
        for turn in 0..TRIES {
            for (number, attempt) in self.begin(wish, customer)? {
                self.ended(number, attempt, customer)?;
            }
            if customer.has_all() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20 * turn.min(25) as u64));
        }
        locked(self.tally).violations.push(format!("{}: the program was not to be had in {TRIES} tries", customer.user));
        Ok(())
    }

    /// Whether a package is there, also one of a client that was killed right after; each must run.
    fn holds(&self, wish: &Wish, customer: &Customer) -> Outcome<bool> {
        let mut held = false;
        for Client { home, package, .. } in customer.clients.iter().filter(|client| client.well || client.package.exists()) {
            let output = self.shop.command(home, self.number, &["run"]).arg(package).args(wish.program.arguments).output()?;
            if output.status.success() && output.stdout == wish.program.says.as_bytes() {
                held = true;
            } else {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                locked(self.tally).violations.push(format!("{}: what was bought does not run: {said}", customer.user));
            }
            std::fs::remove_file(package)?;
        }
        Ok(held)
    }
}

impl Customer {
    fn has_all(&self) -> bool {
        self.clients.iter().all(|client| client.well)
    }
}

/// A client at work.
struct Attempt {
    child: Child,
    /// The steps that it says; closed when it says nothing any more.
    says: Receiver<u16>,
    /// The last of them.
    step: u16,
}

#[derive(Debug)]
enum Ended {
    Well,
    Killed,
    Refused { code: String, detail: String },
    Otherwise(String),
    Hung(u16),
}

impl Ended {
    fn is_refused(&self, codes: &[&str]) -> bool {
        matches!(self, Self::Refused { code, .. } if codes.contains(&code.as_str()))
    }
}

impl Attempt {
    fn start(command: &mut std::process::Command) -> Outcome<Self> {
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| failed("stdout is piped"))?;
        Ok(Self { child, says: steps(stdout), step: 0 })
    }

    /// Waits until then; false if the client said its last word before.
    fn wait_until(&mut self, moment: Instant) -> bool {
        loop {
            match self.says.recv_timeout(moment.saturating_duration_since(Instant::now())) {
                Ok(step) => self.step = step,
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// Waits for a step; false if the client ended before, or waits too long.
    fn wait_for(&mut self, step: u16) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while self.step < step {
            match self.says.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(step) => self.step = step,
                Err(_) => return false,
            }
        }
        true
    }

    /// Waits for something to change; false if the client ended before.
    fn wait_while(&mut self, same: impl Fn() -> bool) -> bool {
        while same() {
            if !self.wait_until(Instant::now() + LOOK) {
                return false;
            }
        }
        true
    }

    fn runs(&mut self) -> Outcome<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end.
    fn end(mut self) -> Outcome<Ended> {
        let deadline = Instant::now() + PATIENCE;
        if self.wait_until(deadline) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            return Ok(Ended::Hung(self.step));
        }
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        let status = self.child.wait()?;
        if status.success() {
            return Ok(Ended::Well);
        }
        if status.code().is_none() {
            return Ok(Ended::Killed);
        }
        let refusal = said.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
        let word = |name: &str| refusal.as_ref().and_then(|r| r["error"][name].as_str()).map(str::to_owned);
        match (word("code"), word("detail")) {
            (Some(code), Some(detail)) => Ok(Ended::Refused { code, detail }),
            _ => Ok(Ended::Otherwise(said)),
        }
    }
}

/// The steps that a client says, as it says them.
fn steps(stdout: ChildStdout) -> Receiver<u16> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let step = serde_json::from_str::<Value>(&line).ok().and_then(|line| line["step"].as_u64());
            if let Some(step) = step.and_then(|step| u16::try_from(step).ok())
                && tell.send(step).is_err()
            {
                return;
            }
        }
    });
    told
}
