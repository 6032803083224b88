//! What an audit found.

use crate::rules::Rule;
use chipbound_wire::{Currency, Time};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Findings that are listed; what is beyond is counted.
const LISTED: usize = 10_000;

/// One place where a rule does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// The order, entry, receipt or the like.
    pub about: String,
    /// What there should be.
    pub expected: String,
    /// What there is.
    pub found: String,
}

/// What happened in one currency, in minor units.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Money {
    /// Came in from outside.
    pub deposited: i128,
    /// Went to outside.
    pub paid_out: i128,
    /// Is held now.
    pub held: i128,
    /// Was captured.
    pub captured: i128,
    /// Was refunded of it.
    pub refunded: i128,
}

/// What was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Accounts.
    pub accounts: u64,
    /// Orders by their states.
    pub orders: BTreeMap<&'static str, u64>,
    /// Entries of the ledger.
    pub entries: u64,
    /// Receipts.
    pub receipts: u64,
    /// Entries of the log.
    pub logged: u64,
    /// Checkpoints of the log.
    pub checkpoints: u64,
    /// Money by currency.
    pub money: BTreeMap<Currency, Money>,
}

/// The result of an audit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// When the journal was made.
    pub made_at: Time,
    /// What is wrong, at most 10,000.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub unlisted: u64,
    /// What was looked at.
    pub totals: Totals,
}

impl Report {
    pub(crate) fn new(made_at: Time) -> Self {
        Self { made_at, findings: Vec::new(), unlisted: 0, totals: Totals::default() }
    }

    /// Notes down that a rule does not hold.
    pub(crate) fn find(&mut self, rule: Rule, about: impl ToString, expected: impl ToString, found: impl ToString) {
        if self.findings.len() == LISTED {
            self.unlisted += 1;
        } else {
            let (about, expected, found) = (about.to_string(), expected.to_string(), found.to_string());
            self.findings.push(Finding { rule, about, expected, found });
        }
    }

    /// Whether every rule holds.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Findings in all.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.findings.len() as u64 + self.unlisted
    }

    /// For people: each finding with what to do next, the totals, and in the last line the result.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |line: std::fmt::Arguments<'_>| {
            let _ = writeln!(text, "{line}"); // A string takes everything.
        };
        for Finding { rule, about, expected, found } in &self.findings {
            line(format_args!("{rule}  {about}\n  expected  {expected}\n  found     {found}\n  next      {}", rule.advice()));
        }
        if self.unlisted > 0 {
            line(format_args!("… and {} more", self.unlisted));
        }
        for (currency, money) in &self.totals.money {
            let Money { deposited, paid_out, held, captured, refunded } = money;
            line(format_args!(
                "{currency} (minor units): {deposited} deposited, {paid_out} paid out, {held} held, {captured} captured, {refunded} refunded"
            ));
        }
        let Totals { accounts, orders, entries, receipts, logged, checkpoints, .. } = &self.totals;
        let states: Vec<_> = orders.iter().map(|(state, count)| format!("{count} {state}")).collect();
        line(format_args!("orders: {}", if states.is_empty() { "none".to_owned() } else { states.join(", ") }));
        let orders: u64 = orders.values().sum();
        line(format_args!(
            "{} rules, {accounts} accounts, {orders} orders, {entries} entries, {receipts} receipts, {logged} log entries, \
             {checkpoints} checkpoints: {}",
            Rule::ALL.len(),
            if self.is_clean() { "the books are right".to_owned() } else { format!("{} findings", self.count()) }
        ));
        text
    }

    /// For machines.
    #[must_use]
    pub fn value(&self) -> Value {
        let finding = |f: &Finding| json!({ "rule": f.rule.as_str(), "about": f.about, "expected": f.expected, "found": f.found, "advice": f.rule.advice() });
        let money = |(currency, m): (&Currency, &Money)| {
            let texts = json!({ "deposited": m.deposited.to_string(), "paid_out": m.paid_out.to_string(), "held": m.held.to_string(),
                "captured": m.captured.to_string(), "refunded": m.refunded.to_string() });
            (currency.to_string(), texts)
        };
        let Totals { accounts, orders, entries, receipts, logged, checkpoints, money: totals } = &self.totals;
        json!({ "made_at": self.made_at, "clean": self.is_clean(), "findings": self.findings.iter().map(finding).collect::<Vec<_>>(),
            "unlisted": self.unlisted, "accounts": accounts, "orders": orders, "entries": entries, "receipts": receipts,
            "log_entries": logged, "checkpoints": checkpoints,
            "money": Value::Object(totals.iter().map(money).collect()) })
    }
}
