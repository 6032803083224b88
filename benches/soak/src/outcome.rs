//! What came of one program.

use crate::list::Program;
use std::fmt;

/// How plain and protected compare.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// The same in every call.
    Equal,
    /// Not the same, as the list says; its reason.
    Known { reason: String },
    /// Not the same; what differs first.
    Unequal { difference: String },
    /// The plain program does not do what the list says, or not twice the same, or is not installed: nothing was compared.
    Unfit { why: String },
}

/// One line of the results.
pub(crate) struct Report<'a> {
    pub(crate) program: &'a Program,
    /// Shape of the file, for people.
    pub(crate) kind: String,
    pub(crate) verdict: Verdict,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, kind, verdict } = self;
        let (word, more) = match verdict {
            Verdict::Equal => ("equal", ""),
            Verdict::Known { reason } => ("unequal", reason.as_str()),
            Verdict::Unequal { difference } => ("UNEQUAL", difference.as_str()),
            Verdict::Unfit { why } => ("UNFIT", why.as_str()),
        };
        write!(f, "{word:<8} {:<24} {kind:<32} {} {}", program.name, calls(program.calls.len()), more)
    }
}

fn calls(count: usize) -> String {
    if count == 1 { "1 call".to_owned() } else { format!("{count} calls") }
}

/// The last line: how many were equal.
pub(crate) fn count(reports: &[Report<'_>]) -> String {
    let of = |test: fn(&Verdict) -> bool| reports.iter().filter(|r| test(&r.verdict)).count();
    let equal = of(|v| *v == Verdict::Equal);
    let unequal = of(|v| matches!(v, Verdict::Known { .. } | Verdict::Unequal { .. }));
    let unfit = of(|v| matches!(v, Verdict::Unfit { .. }));
    let made = reports.iter().map(|r| r.program.calls.len()).sum::<usize>();
    let rest = if unfit == 0 { String::new() } else { format!(", {unfit} not compared") };
    format!("{} programs in {}: {equal} equal, {unequal} unequal{rest}", reports.len(), calls(made))
}
