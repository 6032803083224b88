//! Statements of accounts, for people.

use crate::storage::{BookBalance, Statement, StatementLine};
use chipbound_wire::api::Book;
use chipbound_wire::{Amount, Time};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// What a vendor's sales came to in a book, as the list of accounts says it; none for other books.
pub(crate) fn standing(balance: &BookBalance) -> Option<String> {
    let what = match balance.book.as_str() {
        "revenue" => "earned",
        "tax" => "taxes",
        "fees" => "to the house",
        _ => return None,
    };
    Some(format!("{} {what}", money(balance)))
}

/// What a vendor's sales came to, of all that stands in its books.
pub(crate) fn sales(books: Vec<BookBalance>) -> Vec<Book> {
    let sold = |balance: &BookBalance| standing(balance).is_some();
    books.into_iter().filter(sold).map(|BookBalance { book, currency, minor }| Book { book, currency, minor }).collect()
}

/// The statement: what stood in each book before, each change, what stands in it after.
pub(crate) fn text(user: &str, statement: &Statement) -> String {
    let mut text = format!("Statement of {user}\n\n");
    let mut sums = BTreeMap::new();
    text.push_str("before\n");
    for balance in &statement.opening {
        sums.insert((balance.currency, balance.book.clone()), balance.clone());
        let _ = writeln!(text, "  {:<8}  {:>16}", balance.book, money(balance)); // A string takes everything.
    }
    text.push_str("changes\n");
    for StatementLine { entry, at, kind, order, note, change } in &statement.lines {
        let key = (change.currency, change.book.clone());
        sums.entry(key).or_insert(BookBalance { minor: 0, ..change.clone() }).minor += change.minor;
        let about = order.map(|o| format!("  order {o}")).unwrap_or_default();
        let note = if note.is_empty() { String::new() } else { format!("  {note}") };
        let _ = writeln!(text, "  {}  entry {entry:<6}  {kind:<8}  {:<8}  {:>16}{about}{note}", when(*at), change.book, money(change));
    }
    text.push_str("after\n");
    for balance in sums.values() {
        let _ = writeln!(text, "  {:<8}  {:>16}", balance.book, money(balance));
    }
    text
}

/// The same for machines, each on a line of its own: what stood in each book before, then each change.
pub(crate) fn objects(statement: &Statement) -> Vec<String> {
    let before = sums(&statement.opening).into_iter().map(|sum| json!({ "before": sum }).to_string());
    let change = |line: &StatementLine| {
        let StatementLine { entry, at, kind, order, note, change } = line;
        json!({ "entry": entry, "at": at, "kind": kind, "order": order, "note": note, "change": sum(change) }).to_string()
    };
    before.chain(statement.lines.iter().map(change)).collect()
}

/// What stands in books, for machines. The number is one of the currency's smallest units, and may be below zero.
pub(crate) fn sums(balances: &[BookBalance]) -> Vec<Value> {
    balances.iter().map(sum).collect()
}

fn sum(BookBalance { book, currency, minor }: &BookBalance) -> Value {
    json!({ "book": book, "currency": currency, "minor": minor })
}

fn money(balance: &BookBalance) -> String {
    let amount = Amount { minor: balance.minor.unsigned_abs(), currency: balance.currency };
    if balance.minor < 0 { format!("-{amount}") } else { amount.to_string() }
}

fn when(at: Time) -> String {
    let seconds = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| at.0.to_string(), |t| t.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_adds_up_from_before_to_after() {
        let balance = |book: &str, minor| BookBalance { book: book.to_owned(), currency: "EUR".parse().expect("a currency"), minor };
        let line = |entry, kind: &str, change| StatementLine {
            entry,
            at: Time(1_795_000_000),
            kind: kind.to_owned(),
            order: None,
            note: "by transfer".to_owned(),
            change,
        };
        let statement = Statement {
            opening: vec![balance("funds", 1000)],
            lines: vec![line(7, "payout", balance("funds", -1250)), line(8, "deposit", balance("deposits", -5))],
        };
        let text = text("ann", &statement);
        let lines: Vec<_> = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "Statement of ann",
                "",
                "before",
                "funds 10.00 EUR",
                "changes",
                "2026-11-18 11:06:40 entry 7 payout funds -12.50 EUR by transfer",
                "2026-11-18 11:06:40 entry 8 deposit deposits -0.05 EUR by transfer",
                "after",
                "deposits -0.05 EUR",
                "funds -2.50 EUR",
            ]
        );
        assert_eq!(standing(&balance("revenue", 5)).as_deref(), Some("0.05 EUR earned"));
        assert_eq!(standing(&balance("deposits", -5)), None);
    }
}
