//! The table of results.

use crate::outcome::{Report, Verdict, count};
use std::fmt::Write;
use std::fs;

/// What stands below the page's heading of results: the count, and a row for each program.
pub(crate) fn results(reports: &[Report<'_>]) -> String {
    let mut page = String::new();
    let _ = writeln!(
        page,
        "\n{} **{}.**\n\n| package | program | file | calls | plain and protected |\n|---|---|---|---|---|",
        made(),
        count(reports)
    );
    for Report { program, kind, verdict } in reports {
        let result = match verdict {
            Verdict::Equal => "equal".to_owned(),
            Verdict::Known { reason } => format!("unequal: {reason}"),
            Verdict::Unequal { difference } => format!("**unequal**: {difference}"),
            Verdict::Unfit { why } => format!("not compared: {why}"),
        };
        let result = result.replace('|', "\\|");
        let name = program.name.rsplit('/').next().unwrap_or(&program.name);
        let _ = writeln!(page, "| {} | {name} | {kind} | {} | {result} |", program.package, program.calls.len());
    }
    page
}

/// On what.
pub(crate) fn made() -> String {
    let field = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    format!("Made on Debian {}, kernel {}.", field("/etc/debian_version"), field("/proc/sys/kernel/osrelease"))
}
