//! The page of results. What people wrote stands first and is kept by every run; then one paragraph for each way of running that is not
//! the usual one, kept by every other run; then the table of the usual one.

use crate::outcome::{Report, Verdict, count};
use std::fmt::Write;

/// What the part begins with, and what follows it.
const HEADING: &str = "## In other ways\n";
const FOLLOWS: &str = "## Results\n";
const INTRODUCTION: &str = "
The same list with one thing forced. `--mapping` concerns `chipbound run` alone, so that nothing is started directly then.

";

/// The page with `results` in the place of its last ones; `None` where it has no heading for them.
pub(crate) fn with_results(page: &str, results: &str) -> Option<String> {
    let (before, _) = page.split_once(FOLLOWS)?;
    Some(format!("{before}{FOLLOWS}{results}"))
}

/// The page with `paragraph` in the place of what it said of `variant` before; `None` where it has no heading of results.
pub(crate) fn with(page: &str, variant: &str, paragraph: &str) -> Option<String> {
    let (before, after) = page.split_once(FOLLOWS)?;
    let (before, part) = before.split_once(HEADING).unwrap_or((before, INTRODUCTION));
    let mut parts = part.split("### ");
    let mut paragraphs: Vec<&str> = vec![parts.next().unwrap_or_default()];
    paragraphs.extend(parts.filter(|other| !other.starts_with(&title(variant))));
    paragraphs.push(paragraph);
    paragraphs[1..].sort_unstable();
    Some(format!("{before}{HEADING}{}{FOLLOWS}{after}", paragraphs.join("### ")))
}

/// What one run of the list in this way gave: the count, and each program that was not equal.
pub(crate) fn paragraph(variant: &str, made: &str, reports: &[Report<'_>]) -> String {
    let mut text = format!("{}\n{made} **{}.**\n\n", title(variant), count(reports));
    for Report { program, verdict, .. } in reports {
        let why = match verdict {
            Verdict::Equal => continue,
            Verdict::Known { reason } => reason.clone(),
            Verdict::Unequal { difference } => format!("**unequal**: {difference}"),
            Verdict::Unfit { why } => format!("not compared: {why}"),
        };
        let _ = writeln!(text, "- {}: {why}", program.name);
    }
    text.push('\n');
    text
}

fn title(variant: &str) -> String {
    format!("`{variant}`\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_take_the_place_of_the_last_and_leave_what_people_wrote() {
        let page = "intro\n\n## In other ways\n\n### `--a`\nfirst\n\n## Results\n\nrows\n";
        let again = with_results(page, "\nother rows\n").unwrap();
        assert_eq!(again, page.replace("rows", "other rows"));
        assert_eq!(with_results("no page", "rows"), None);
    }

    #[test]
    fn a_variants_paragraph_takes_the_place_of_its_last_and_leaves_the_others() {
        let page = "intro\n\n## Results\n\nrows\n";
        let one = with(page, "--a", "`--a`\nfirst\n\n").unwrap();
        assert!(one.starts_with("intro\n\n## In other ways\n") && one.ends_with("### `--a`\nfirst\n\n## Results\n\nrows\n"), "{one}");
        let two = with(&one, "--0", "`--0`\nother\n\n").unwrap();
        let again = with(&two, "--a", "`--a`\nsecond\n\n").unwrap();
        assert!(again.ends_with("### `--0`\nother\n\n### `--a`\nsecond\n\n## Results\n\nrows\n"), "{again}");
        assert_eq!(again.matches(INTRODUCTION).count(), 1);
        assert_eq!(with("no page", "--a", ""), None);
    }
}
