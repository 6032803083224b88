//! The part of the page of results about runs in another way than the usual one: one paragraph for each, kept by every other run.

use crate::outcome::{Report, Verdict, count};
use std::fmt::Write;

/// What the part begins with, and what follows it.
const HEADING: &str = "## In other ways\n";
const FOLLOWS: &str = "## Results\n";
const INTRODUCTION: &str = "
The same list with one thing forced. `--mapping` concerns `chipbound run` alone, so that nothing is started directly then.

";

/// The whole part of an existing page; only its heading where the page has none.
pub(crate) fn kept(page: &str) -> String {
    let part = page.split_once(HEADING).and_then(|(_, rest)| rest.split_once(FOLLOWS)).map(|(part, _)| part);
    format!("{HEADING}{}", part.unwrap_or(INTRODUCTION))
}

/// The page with `paragraph` in the place of what it said of `variant` before; `None` where it is no page of results.
pub(crate) fn with(page: &str, variant: &str, paragraph: &str) -> Option<String> {
    let (before, after) = page.split_once(FOLLOWS)?;
    let before = before.split_once(HEADING).map_or(before, |(before, _)| before);
    let part = kept(page);
    let mut parts = part.split("### ");
    let mut paragraphs: Vec<&str> = vec![parts.next().unwrap_or_default()];
    paragraphs.extend(parts.filter(|other| !other.starts_with(&title(variant))));
    paragraphs.push(paragraph);
    paragraphs[1..].sort_unstable();
    Some(format!("{before}{}{FOLLOWS}{after}", paragraphs.join("### ")))
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
