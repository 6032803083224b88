//! Medians, ranges and ratios of measured series.

use std::fmt::Write;

/// How many standard deviations hold 95 % of a normal distribution.
const NORMAL_95: f64 = 1.96;

/// A series of measurements in one unit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    /// Adds one measurement.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds another series.
    pub(crate) fn append(&mut self, mut more: Self) {
        self.0.append(&mut more.0);
    }

    /// The middle one, or the mean of the middle two; NaN where nothing was measured.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    /// Between which two of the measurements the median of what was measured lies with 95 % confidence, by their order alone
    /// (binomial, normal approximation): the median itself twice where there are too few to say.
    pub(crate) fn interval(&self) -> (f64, f64) {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let (n, half) = (sorted.len() as f64, NORMAL_95 * (sorted.len() as f64).sqrt() / 2.0);
        let (low, high) = ((n / 2.0 - half).floor() as usize, (n / 2.0 + half).ceil() as usize);
        match (sorted.get(low), sorted.get(high)) {
            (Some(a), Some(b)) if sorted.len() >= 8 => (*a, *b),
            _ => (self.median(), self.median()),
        }
    }

    /// `median [95 % interval]` with so many digits after the point; a dash where nothing was measured.
    pub(crate) fn show_interval(&self, digits: usize) -> String {
        if self.0.is_empty() {
            return "-".to_owned();
        }
        let (low, high) = self.interval();
        format!("{:.digits$} [{low:.digits$}-{high:.digits$}]", self.median())
    }

    /// Whether nothing was measured.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn range(&self) -> (f64, f64) {
        self.0.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)))
    }

    /// This series over another that was measured in the same rounds, round by round.
    pub(crate) fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }

    /// `median (lowest-highest)` with so many digits after the point; a dash where nothing was measured.
    pub(crate) fn show(&self, digits: usize) -> String {
        if self.0.is_empty() {
            return "-".to_owned();
        }
        let (low, high) = self.range();
        format!("{:.digits$} ({low:.digits$}-{high:.digits$})", self.median())
    }
}

impl FromIterator<f64> for Series {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// A table in Markdown whose columns also line up on a terminal.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these heads.
    pub(crate) fn new(heads: &[&str]) -> Self {
        Self { rows: vec![heads.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// Adds a row with a cell for each head.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// Prints it.
    pub(crate) fn print(&self) {
        let columns = self.rows[0].len();
        let width = |c: usize| self.rows.iter().map(|r| r[c].chars().count()).max().unwrap_or_default();
        let widths: Vec<_> = (0..columns).map(width).collect();
        let line = |cells: &[String]| {
            let mut text = String::from("|");
            for (cell, width) in cells.iter().zip(&widths) {
                let _ = write!(text, " {cell:width$} |"); // Writing to a string does not fail.
            }
            println!("{text}");
        };
        line(&self.rows[0]);
        line(&widths.iter().map(|w| "-".repeat(*w)).collect::<Vec<_>>());
        self.rows[1..].iter().for_each(|row| line(row));
        println!();
    }
}

/// Says whether a ratio that should be at least `target` is.
pub(crate) fn at_least(what: &str, ratio: f64, target: f64) {
    println!("{what}: {ratio:.2}; target ≥ {target}: {}", verdict(ratio >= target));
}

/// Says whether a ratio or size that should be at most `target` is.
pub(crate) fn at_most(what: &str, value: f64, target: f64) {
    println!("{what}: {value:.2}; target ≤ {target}: {}", verdict(value <= target));
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_in_the_middle_and_the_range_at_the_ends() {
        let odd: Series = [3.0, 1.0, 2.0].into_iter().collect();
        assert_eq!(odd.show(1), "2.0 (1.0-3.0)");
        let even: Series = [4.0, 1.0, 2.0, 3.0].into_iter().collect();
        assert_eq!(even.show(1), "2.5 (1.0-4.0)");
        assert_eq!(Series::default().show(1), "-");
    }

    #[test]
    fn the_interval_of_a_median_lies_around_it_and_needs_some_measurements() {
        let hundred: Series = (1..=100).map(f64::from).collect();
        assert_eq!(hundred.show_interval(1), "50.5 [41.0-61.0]");
        let few: Series = [1.0, 2.0, 3.0].into_iter().collect();
        assert_eq!(few.show_interval(1), "2.0 [2.0-2.0]");
        assert_eq!(Series::default().show_interval(1), "-");
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        let (a, b): (Series, Series) = ([2.0, 9.0].into_iter().collect(), [1.0, 3.0].into_iter().collect());
        assert_eq!(a.over(&b).show(1), "2.5 (2.0-3.0)");
    }
}
