//! What is disturbed besides purchases: a release is published before its first customer comes, or she is given more money; what was
//! bought moves to another processor or is refunded, or its vendor is paid out. The same command is said again until it ends well;
//! then it must have happened whole, and once.

use super::super::plan::{Blow, Wish};
use super::super::shop::{ADDED, PAID_OUT, PRICE, VENDOR, price};
use super::super::tally::{At, Errand, Victim, locked};
use super::{Attempt, Client, Customer, Ended, Lane, TRIES};
use crate::{Outcome, failed};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What an old processor says of an order that moved away.
const MOVED: [&str; 2] = ["processor_mismatch", "order_retired"];
/// The most that one wait between two tries takes.
const PAUSE: Duration = Duration::from_millis(500);

impl Lane<'_> {
    /// A release that nobody else publishes; its name.
    pub(super) fn publish(&mut self, wish: &Wish, blows: &[Blow], ends: &super::Ends<'_>) -> Outcome<String> {
        let name = format!("program-{}-{}", self.number, self.customers);
        let (shop, number, price) = (self.shop, self.number, price(PRICE));
        let arguments =
            ["--json", "publish", "--name", &name, "--version", "1", "--class", "software", "--price", &price, wish.program.file];
        self.disturbed(Errand::Publish, blows, ends, || shop.command(&shop.home(VENDOR), number, &arguments))?;
        self.count(Errand::Publish);
        Ok(name)
    }

    /// The operator gives a price back; then its receipt buys nothing more.
    pub(super) fn refund(&mut self, customer: &Customer, order: &str, blows: &[Blow], ends: &super::Ends<'_>) -> Outcome<()> {
        self.operate(Errand::Refund, &["--order", order], blows, ends)?;
        let Client { home, package, .. } = &customer.clients[0];
        let fetch = || self.redownload(home, self.number, order, package);
        self.until(&customer.user, fetch, |ended| ended.is_refused(&["order_refunded"]) || matches!(ended, Ended::Well))?;
        if package.exists() {
            std::fs::remove_file(package)?;
            self.violation(format!("{}: what was refunded is served again", customer.user));
        }
        Ok(())
    }

    /// The operator adds money to a customer's account, under one key for all tries.
    pub(super) fn deposit(&mut self, user: &str, blows: &[Blow], ends: &super::Ends<'_>) -> Outcome<()> {
        self.operate(Errand::Deposit, &["--user", user, "--amount", &price(ADDED), "--key", user], blows, ends)
    }

    /// The operator pays a part of a customer's price out to the vendor, under one key for all tries.
    pub(super) fn pay_out(&mut self, user: &str, blows: &[Blow], ends: &super::Ends<'_>) -> Outcome<()> {
        self.operate(Errand::Payout, &["--user", VENDOR, "--amount", &price(PAID_OUT), "--key", user], blows, ends)
    }

    /// What the operator does to an account; said once more it changes nothing.
    fn operate(&mut self, errand: Errand, arguments: &[&str], blows: &[Blow], ends: &super::Ends<'_>) -> Outcome<()> {
        let (shop, number) = (self.shop, self.number);
        let config = shop.world.path("server/server.toml");
        let command = || {
            let mut command = shop.command(&shop.home("operator"), number, &["--json", "account", errand.as_str()]);
            command.args(arguments).arg("--config").arg(&config);
            command
        };
        self.disturbed(errand, blows, ends, command)?;
        self.count(errand);
        self.disturbed(errand, &[], ends, command)
    }

    /// A purchase moves to the processor that is there for it: from there it is fetched and runs, and its own serves it no more. `old` is
    /// a copy of the package.
    pub(super) fn transfer(
        &mut self,
        wish: &Wish,
        customer: &Customer,
        order: &str,
        old: &Path,
        blows: &[Blow],
        ends: &super::Ends<'_>,
    ) -> Outcome<()> {
        let (shop, number, spare) = (self.shop, self.number, self.shop.spare());
        let home = &customer.clients[0].home;
        let socket = shop.world.sockets[spare].display().to_string();
        self.disturbed(Errand::Transfer, blows, ends, || shop.command(home, number, &["--json", "transfer", order, "--to", &socket]))?;

        let package = old.with_file_name("moved");
        let fetch = |lane: usize| self.redownload(home, lane, order, &package);
        if self.until(&customer.user, || fetch(spare), |ended| matches!(ended, Ended::Well))? {
            let runs = || Ok(self.run(wish, home, spare, &package)?.is_none());
            if !self.tries(runs)? {
                self.violation(format!("{}: what was transferred does not run", customer.user));
            }
            std::fs::remove_file(&package)?;
        }

        self.until(&customer.user, || fetch(number), |ended| ended.is_refused(&MOVED) || matches!(ended, Ended::Well))?;
        let said = self.run(wish, home, number, old)?;
        if package.exists() || !said.as_ref().is_some_and(|said| said.contains("order_retired")) {
            self.violation(format!("{}: the old processor still serves what was transferred: {said:?}", customer.user));
        }
        self.count(Errand::Transfer);
        Ok(())
    }

    /// The command that fetches what an order's receipt buys.
    fn redownload(&self, home: &Path, lane: usize, order: &str, package: &Path) -> Command {
        let mut command = self.shop.command(home, lane, &["--json", "redownload", order, "--output"]);
        command.arg(package);
        command
    }

    /// Runs a package; what was said where it did not do what it should.
    fn run(&self, wish: &Wish, home: &Path, lane: usize, package: &Path) -> Outcome<Option<String>> {
        let output = self.shop.command(home, lane, &["run"]).arg(package).args(wish.program.arguments).output()?;
        let well = output.status.success() && output.stdout == wish.program.says.as_bytes();
        Ok((!well).then(|| String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// The same command until it ends well, with these blows in its first tries. What it said is so, also where a daemon is killed right
    /// after it.
    fn disturbed(&mut self, errand: Errand, blows: &[Blow], ends: &super::Ends<'_>, command: impl Fn() -> Command) -> Outcome<()> {
        for blow in blows {
            let begun = Instant::now();
            let mut attempt = start(command())?;
            let usual = self.took.get(&errand).copied().unwrap_or(Duration::from_millis(100));
            let came = attempt.wait_until(begun + usual * blow.after as u32 / 1000);
            let after = !came && blow.victim != Victim::Client;
            let landed = (after || came && attempt.runs()?) && ends.one_more();
            if landed {
                *locked(self.tally).kills.entry((blow.victim, At::Errand(errand))).or_default() += 1;
                self.strike_in(errand, blow, &mut attempt)?;
            }
            match attempt.end()? {
                ended if done(errand, &ended) => {
                    if !landed {
                        self.took.insert(errand, begun.elapsed());
                    }
                    return Ok(());
                }
                ended => self.note(errand.as_str(), &ended),
            }
        }
        self.until(errand.as_str(), command, |ended| done(errand, ended)).map(drop)
    }

    fn strike_in(&mut self, errand: Errand, blow: &Blow, attempt: &mut Attempt) -> Outcome<()> {
        let either = [self.number, self.shop.spare()];
        match blow.victim {
            Victim::Client => Ok(attempt.child.kill()?),
            Victim::Server => self.shop.kill_server(blow.away),
            Victim::Processor => {
                let number = if errand == Errand::Transfer { self.dice.one_of(&either) } else { self.number };
                self.shop.kill_processor(number, blow.away)
            }
            Victim::Database => {
                self.shop.kill_database();
                Ok(())
            }
        }
    }

    /// The same command until it is enough; whether it ever was.
    fn until(&self, who: &str, command: impl Fn() -> Command, enough: impl Fn(&Ended) -> bool) -> Outcome<bool> {
        let mut last = None;
        let ended = self.tries(|| {
            let ended = start(command())?.end()?;
            let enough = enough(&ended);
            if !enough {
                self.note(who, &ended);
            }
            last = Some(ended);
            Ok(enough)
        })?;
        if !ended {
            self.violation(format!("{who}: {:?} did not end in {TRIES} tries: {last:?}", command()));
        }
        Ok(ended)
    }

    /// Tries until it went well, with pauses that grow; whether it did.
    fn tries(&self, mut attempt: impl FnMut() -> Outcome<bool>) -> Outcome<bool> {
        for turn in 0..TRIES {
            if attempt()? {
                return Ok(true);
            }
            std::thread::sleep((Duration::from_millis(20) * turn as u32).min(PAUSE));
        }
        Ok(false)
    }

    fn count(&self, errand: Errand) {
        *locked(self.tally).errands.entry(errand).or_default() += 1;
    }

    fn violation(&self, what: String) {
        locked(self.tally).violation(what);
    }
}

/// Whether an errand needs no other try: what is published is not published again.
fn done(errand: Errand, ended: &Ended) -> bool {
    matches!(ended, Ended::Well) || errand == Errand::Publish && ended.is_refused(&["conflict"])
}

fn start(mut command: Command) -> Outcome<Attempt> {
    Attempt::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// The order whose receipt a home keeps: it has one.
pub(super) fn order_in(home: &Path) -> Outcome<String> {
    let kept: Vec<PathBuf> = std::fs::read_dir(home.join("receipts"))?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    let mut receipts = kept.iter().filter(|path| path.extension().is_some_and(|e| e == "receipt"));
    match (receipts.next().and_then(|path| path.file_stem()), receipts.next()) {
        (Some(order), None) => Ok(order.to_string_lossy().into_owned()),
        _ => Err(failed(format!("{} keeps {kept:?}", home.display()))),
    }
}
