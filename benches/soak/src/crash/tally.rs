//! What happened in a run.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Who is killed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Victim {
    /// `chipbound server run`.
    Server,
    /// `chipbound buy`.
    Client,
    /// `chipbound processor run`.
    Processor,
    /// A process of PostgreSQL, which then begins anew from its log.
    Database,
}

impl Victim {
    const ALL: [Self; 4] = [Self::Server, Self::Client, Self::Processor, Self::Database];

    fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Processor => "processor",
            Self::Database => "PostgreSQL",
        }
    }
}

/// What is done besides purchases.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Errand {
    /// `chipbound publish`.
    Publish,
    /// `chipbound transfer`.
    Transfer,
    /// `chipbound account refund`.
    Refund,
    /// `chipbound account deposit`.
    Deposit,
    /// `chipbound account payout`.
    Payout,
}

impl Errand {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Transfer => "transfer",
            Self::Refund => "refund",
            Self::Deposit => "deposit",
            Self::Payout => "payout",
        }
    }
}

/// Where somebody was when he was hit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum At {
    /// In a purchase, whose client had said that step last (0 before the first).
    Step(u16),
    /// In something else.
    Errand(Errand),
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(step) => f.pad(&step.to_string()),
            Self::Errand(errand) => f.pad(errand.as_str()),
        }
    }
}

/// Counts, and what is wrong.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// By whom, and where.
    pub kills: BTreeMap<(Victim, At), u32>,
    /// Customers who began to buy.
    pub purchases: u32,
    /// Of them by card.
    pub by_card: u32,
    /// Of them with two clients at one order.
    pub raced: u32,
    /// Of them given up after a kill.
    pub left: u32,
    /// Releases, transfers, refunds, deposits and payouts that came to their end.
    pub errands: BTreeMap<Errand, u32>,
    /// Purchases that were hit and gave the program in the end.
    pub recovered: u32,
    /// Prices that were taken, by balances and the card provider's book.
    pub charges: u32,
    /// Receipts that servers keep.
    pub receipts: u32,
    /// Holds of orders that were given up before the card provider's answer came; the server gives them back ten minutes after the
    /// order's end, which a run does not wait for.
    pub unanswered: u32,
    /// Refusals that clients ended with, by code.
    pub refused: BTreeMap<String, u32>,
    /// What must not be.
    pub violations: Vec<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        other.kills.into_iter().for_each(|(key, count)| *self.kills.entry(key).or_default() += count);
        other.refused.into_iter().for_each(|(key, count)| *self.refused.entry(key).or_default() += count);
        other.errands.into_iter().for_each(|(key, count)| *self.errands.entry(key).or_default() += count);
        self.purchases += other.purchases;
        self.by_card += other.by_card;
        self.raced += other.raced;
        self.left += other.left;
        self.recovered += other.recovered;
        self.charges += other.charges;
        self.receipts += other.receipts;
        self.unanswered += other.unanswered;
        self.violations.extend(other.violations);
    }

    /// Notes down what must not be; a customer who tries again and hears the same is one.
    pub(crate) fn violation(&mut self, what: String) {
        if !self.violations.contains(&what) {
            self.violations.push(what);
        }
    }

    /// How many times it was killed.
    #[must_use]
    pub fn killed(&self, victim: Victim) -> u32 {
        self.kills.iter().filter(|((v, _), _)| *v == victim).map(|(_, count)| count).sum()
    }
}

/// What is wrong, kills by step, refusals by code, and as the last line the counts.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for violation in &self.violations {
            writeln!(f, "VIOLATION: {violation}")?;
        }
        let mut steps: Vec<_> = self.kills.keys().map(|(_, step)| *step).collect();
        steps.sort_unstable();
        steps.dedup();
        writeln!(f, "kills by the step that was said last, or by what else was done:")?;
        for step in steps {
            let count = |victim| self.kills.get(&(victim, step)).copied().unwrap_or_default();
            let counts: Vec<_> = Victim::ALL.iter().map(|v| format!("{} {:>4}", v.as_str(), count(*v))).collect();
            writeln!(f, "  {step:>8}  {}", counts.join("  "))?;
        }
        let refused: Vec<_> = self.refused.iter().map(|(code, count)| format!("{code} {count}")).collect();
        writeln!(f, "refusals: {}", refused.join(", "))?;
        let errands = |errand| self.errands.get(&errand).copied().unwrap_or_default();
        let killed: Vec<_> = Victim::ALL.iter().map(|v| format!("{} {}", v.as_str(), self.killed(*v))).collect();
        write!(
            f,
            "kills={} ({}) purchases={} (by card {}, two clients {}, given up {}) published={} transferred={} refunded={} deposited={} paid_out={} charges={} receipts={} unanswered={} refused={} recovered={} violations={}",
            self.kills.values().sum::<u32>(),
            killed.join(", "),
            self.purchases,
            self.by_card,
            self.raced,
            self.left,
            errands(Errand::Publish),
            errands(Errand::Transfer),
            errands(Errand::Refund),
            errands(Errand::Deposit),
            errands(Errand::Payout),
            self.charges,
            self.receipts,
            self.unanswered,
            self.refused.values().sum::<u32>(),
            self.recovered,
            self.violations.len(),
        )
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
