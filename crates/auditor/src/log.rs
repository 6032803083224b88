//! The receipts' log: the tree computed anew from its entries, and every checkpoint compared with it.

use crate::journal::{Checkpoint, LogHead, Node, Statement};
use crate::{Audit, Rule, verified};
use chipbound_wire::documents::LogStatement;
use chipbound_wire::signed::read_claims;
use chipbound_wire::tlog::{Frontier, LogKey, SignedCheckpoint, leaf_hash};
use chipbound_wire::{Digest, Hex, Result, Time, TreeHash};
use std::collections::{BTreeMap, HashMap};

/// Seconds by which the clocks of one server's machines may differ.
pub(crate) const SKEW: u64 = 300;

#[derive(Default)]
pub(crate) struct Log {
    /// The keys by the digests of the statements on them, and since when they sign.
    keys: HashMap<Digest, (LogKey, Time)>,
    /// The log's names, each from the checkpoint of that size on: books that were restored go on under another.
    names: Vec<(u64, String)>,
    /// Roots that checkpoints name, by size, until so many entries were read.
    roots: BTreeMap<u64, TreeHash>,
    /// When the checkpoints were signed, by size.
    times: BTreeMap<u64, Time>,
    edge: Frontier,
    entries: Vec<Entry>,
    /// Roots over 256 to the power of the level, computed, not compared yet.
    upper: BTreeMap<(u32, u64), TreeHash>,
}

struct Entry {
    value: TreeHash,
    claimed: bool,
}

impl Log {
    /// When the log first said, signed, that it contains that entry.
    pub(crate) fn witness(&self, index: u64) -> Option<Time> {
        self.times.range(index + 1..).next().map(|(_, time)| *time)
    }

    /// The name of the log in the first checkpoint that contains that entry.
    pub(crate) fn name(&self, index: u64) -> Option<&str> {
        let (size, _) = self.times.range(index + 1..).next()?;
        self.names.iter().rev().find(|(from, _)| from <= size).map(|(_, name)| name.as_str())
    }

    /// Whether a checkpoint of that size may bear that name: a log that has another name never has the old one again.
    fn goes_on(&mut self, size: u64, name: &str) -> bool {
        if self.names.last().is_some_and(|(_, last)| last == name) {
            return true;
        }
        let new = self.names.iter().all(|(_, before)| before != name);
        if new {
            self.names.push((size, name.to_owned()));
        }
        new
    }

    /// Takes the entry for the receipt with that commitment; otherwise what there is instead.
    pub(crate) fn claim(&mut self, index: u64, commitment: Option<TreeHash>) -> std::result::Result<(), String> {
        let entry = usize::try_from(index).ok().and_then(|index| self.entries.get_mut(index));
        let entry = entry.ok_or_else(|| format!("no entry {index}"))?;
        if std::mem::replace(&mut entry.claimed, true) {
            return Err(format!("entry {index} is another receipt's too"));
        }
        match commitment {
            Some(commitment) if commitment != entry.value => Err(format!("entry {index} is {}", entry.value)),
            _ => Ok(()),
        }
    }
}

impl Audit<'_> {
    pub(crate) fn statement(&mut self, row: &Statement) -> Result<()> {
        let about = format!("statement {} on a key of the log", row.digest);
        let key = verified(LogKey::of_statement(&row.statement.0, self.trust))?;
        let since = read_claims::<LogStatement>(&row.statement.0).map_or(Time(0), |claims| claims.issued_at);
        match key {
            Err(why) => self.report.find(Rule::LogCheckpoint, about, "a statement of a server on its log", why),
            Ok(_) if Digest::of(&row.statement.0) != row.digest => {
                self.report.find(Rule::LogCheckpoint, about, Digest::of(&row.statement.0), row.digest);
            }
            Ok(key) => {
                self.log.keys.insert(row.digest, (key, since));
            }
        }
        Ok(())
    }

    pub(crate) fn checkpoint(&mut self, row: &Checkpoint) {
        self.report.totals.checkpoints += 1;
        let about = format!("checkpoint of {} entries", row.size);
        let Some((key, since)) = self.log.keys.get(&row.statement) else {
            let found = "there is none that is good";
            return self.report.find(Rule::LogCheckpoint, about, format!("statement {}", row.statement), found);
        };
        match SignedCheckpoint::verify(row.note.as_bytes(), key) {
            Err(refusal) => {
                let found = format!("{}: {}", refusal.code, refusal.detail);
                self.report.find(Rule::LogCheckpoint, about, "a checkpoint signed by its key", found);
            }
            Ok(signed) if signed.size != row.size => {
                self.report.find(Rule::LogCheckpoint, about, format!("{} entries", row.size), format!("{} entries", signed.size));
            }
            Ok(signed) if *since > signed.time().after(SKEW) => {
                self.report.find(Rule::LogCheckpoint, about, format!("signed from {} on", since.0), format!("signed {}", signed.time().0));
            }
            Ok(signed) => {
                let name = key.origin().to_owned();
                if !self.log.goes_on(row.size, &name) {
                    self.report.find(Rule::LogCheckpoint, about, "the log's newer name", name);
                }
                self.log.roots.insert(row.size, signed.root);
                self.log.times.insert(row.size, signed.time());
            }
        }
    }

    pub(crate) fn node(&mut self, node: &Node) {
        if node.level > 0 {
            let about = format!("node {} of level {}", node.position, node.level);
            return match self.log.upper.remove(&(node.level, node.position)) {
                Some(computed) if computed == node.value => {}
                Some(computed) => self.report.find(Rule::LogTree, about, computed, node.value),
                None => self.report.find(Rule::LogTree, about, "none: the log is not that large", node.value),
            };
        }
        self.report.totals.logged += 1;
        let size = self.log.edge.size();
        if node.position != size {
            self.report.find(Rule::LogTree, "entries of the log", format!("entry {size}"), format!("entry {}", node.position));
        }
        let Log { edge, upper, entries, .. } = &mut self.log;
        entries.push(Entry { value: node.value, claimed: false });
        edge.push(leaf_hash(&node.value.0), |level, position, hash| {
            if level > 0 && level.is_multiple_of(8) {
                upper.insert((level / 8, position), *hash);
            }
        });
        if let Some(root) = self.log.roots.remove(&(size + 1)) {
            let computed = self.log.edge.root();
            if root != computed {
                self.report.find(Rule::LogCheckpoint, format!("checkpoint of {} entries", size + 1), computed, root);
            }
        }
    }

    pub(crate) fn log_head(&mut self, head: &LogHead) {
        let edge = self.log.edge.to_bytes();
        if head.size != self.log.edge.size() || head.edge.0 != edge {
            let said = |size: u64, edge: &[u8]| format!("{size} entries, {}", Hex(edge));
            let (expected, found) = (said(self.log.edge.size(), &edge), said(head.size, &head.edge.0));
            self.report.find(Rule::LogTree, "the tree's edge", expected, found);
        }
    }

    pub(crate) fn end_of_log(&mut self) {
        let size = self.log.edge.size();
        for (level, position) in self.log.upper.keys() {
            self.report.find(Rule::LogTree, format!("node {position} of level {level}"), "it is kept", "it is not there");
        }
        for beyond in self.log.roots.keys() {
            self.report.find(Rule::LogCheckpoint, format!("checkpoint of {beyond} entries"), format!("{beyond} entries"), size);
        }
        if size > 0 && !self.log.times.contains_key(&size) {
            self.report.find(Rule::LogCheckpoint, "the newest checkpoint", format!("one of {size} entries"), "there is none that is good");
        }
    }

    /// Entries of the log that no receipt claimed.
    pub(crate) fn end_of_entries(&mut self) {
        for (index, _) in self.log.entries.iter().enumerate().filter(|(_, entry)| !entry.claimed) {
            self.report.find(Rule::LogEntry, format!("entry {index} of the log"), "a receipt", "there is none");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Report;
    use chipbound_testkit::Pki;

    #[test]
    fn a_log_takes_a_new_name_and_never_an_old_one_again() {
        let mut log = Log::default();
        for (size, name, goes_on) in [(3, "a", true), (5, "a", true), (9, "b", true), (11, "a", false), (12, "b", true)] {
            assert_eq!(log.goes_on(size, name), goes_on, "{size}: {name}");
            log.times.insert(size, Time(0));
        }
        let names: Vec<_> = [0, 2, 4, 5, 8, 9, 11, 12].map(|index| log.name(index)).into();
        assert_eq!(names, [Some("a"), Some("a"), Some("a"), Some("b"), Some("b"), Some("b"), Some("b"), None]);
    }

    #[test]
    fn kept_roots_over_256_entries_are_compared_with_those_that_are_computed() {
        let trust = Pki::new(Time(1_000_000)).trust();
        let entry = |position: u64| Node { level: 0, position, value: TreeHash([(position % 251) as u8; 32]) };
        let mut edge = Frontier::default();
        let mut roots = Vec::new();
        for position in 0..600 {
            edge.push(leaf_hash(&entry(position).value.0), |level, position, hash| {
                if level == 8 {
                    roots.push(Node { level: 1, position, value: *hash });
                }
            });
        }
        let altered = Node { value: TreeHash([9; 32]), ..roots[1] };
        let beyond = Node { position: 2, ..roots[1] };
        for (kept, findings) in
            [(vec![roots[0], roots[1]], 0), (vec![roots[0], altered], 1), (vec![roots[0]], 1), (vec![roots[0], roots[1], beyond], 1)]
        {
            let mut audit = crate::Audit::new(&trust, Time(1_000_000));
            (0..600).for_each(|position| audit.node(&entry(position)));
            kept.iter().for_each(|node| audit.node(node));
            audit.log_head(&LogHead { size: 600, edge: chipbound_wire::api::Base64(edge.to_bytes()) });
            audit.end_of_log();
            let Report { findings: found, .. } = audit.report;
            assert_eq!(found.iter().filter(|finding| finding.rule == Rule::LogTree).count(), findings, "{found:?}");
        }
    }
}
