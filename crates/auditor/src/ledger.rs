//! The ledger: every entry by itself, in its order's course, and in the balances.

use crate::journal::{self, Book, Entry, Kind, Posting, Rates};
use crate::orders::{Capture, End, Order, Round};
use crate::taxes::{rates_of, taxes};
use crate::{Audit, Rule};
use chipbound_wire::api::AccountRole;
use chipbound_wire::{AccountId, Amount, Currency};
use std::collections::{BTreeMap, HashMap};

/// A book of an account in one currency.
type Place = (Book, AccountId, Currency);

/// What the postings come to, and which of these sums the books keep as they should.
#[derive(Default)]
pub(crate) struct Ledger {
    sums: HashMap<Place, Sum>,
    /// Whether a capture said by what rates it divided its price.
    rated: bool,
}

#[derive(Default)]
struct Sum {
    minor: i128,
    compared: bool,
}

/// What an entry changes; what it leaves as it is stands nowhere.
type Shape = BTreeMap<Place, i128>;

fn shape(postings: &[Posting]) -> Shape {
    let mut shape = Shape::new();
    for posting in postings {
        *shape.entry((posting.book, posting.account, posting.currency)).or_default() += i128::from(posting.minor);
    }
    shape.retain(|_, minor| *minor != 0);
    shape
}

fn made_of(changes: impl IntoIterator<Item = (Book, AccountId, Currency, i128)>) -> Shape {
    let mut shape = Shape::new();
    for (book, account, currency, minor) in changes {
        *shape.entry((book, account, currency)).or_default() += minor;
    }
    shape.retain(|_, minor| *minor != 0);
    shape
}

fn said(shape: &Shape) -> String {
    let changes = shape.iter().map(|((book, account, currency), minor)| format!("{minor} {currency} {book} of {account}"));
    let text = changes.collect::<Vec<_>>().join(", ");
    if text.is_empty() { "nothing".to_owned() } else { text }
}

impl Audit<'_> {
    pub(crate) fn entry(&mut self, entry: &Entry) {
        self.report.totals.entries += 1;
        let about = match entry.order {
            Some(order) => format!("entry {}, order {order}", entry.entry),
            None => format!("entry {}", entry.entry),
        };
        self.add(entry, &about);
        let sums = entry.postings.iter().fold(BTreeMap::<_, i128>::new(), |mut sums, posting| {
            *sums.entry(posting.currency).or_default() += i128::from(posting.minor);
            sums
        });
        // What is wrong with an entry by itself is said once; its order went on with it all the same.
        let sound = if let Some((currency, sum)) = sums.iter().find(|(_, sum)| **sum != 0) {
            self.report.find(Rule::EntrySum, &about, format!("0 {currency}"), format!("{sum} {currency}"));
            false
        } else if entry.postings.is_empty() {
            self.report.find(Rule::EntrySum, &about, "postings", "none");
            false
        } else if let Some(unknown) = entry.postings.iter().find(|p| !self.accounts.contains_key(&p.account)) {
            self.report.find(Rule::EntryKnown, &about, format!("account {}", unknown.account), "it is not there");
            false
        } else {
            true
        };
        match entry.order {
            None if sound => self.of_money(entry, &about),
            None => {}
            Some(order) => match self.orders.remove(&order) {
                None => self.report.find(Rule::EntryKnown, about, format!("order {order}"), "it is not there"),
                Some(mut audited) => {
                    self.of_order(entry, &mut audited, sound, &about);
                    self.orders.insert(order, audited);
                }
            },
        }
    }

    /// Adds the postings up, and looks at what they leave.
    fn add(&mut self, entry: &Entry, about: &str) {
        for posting in &entry.postings {
            self.ledger.sums.entry((posting.book, posting.account, posting.currency)).or_default().minor += i128::from(posting.minor);
        }
        for (place, _) in shape(&entry.postings) {
            let left = self.ledger.sums.get(&place).map_or(0, |sum| sum.minor);
            let (book, account, currency) = place;
            let rule = match (book, entry.kind) {
                (Book::Funds | Book::Held, _) => Rule::BalanceNegative,
                (Book::Revenue, Kind::Payout) => Rule::PayoutCovered,
                _ => continue,
            };
            if left < 0 {
                let about = format!("{about}, account {account}");
                self.report.find(rule, about, "nothing below zero", format!("{left} {currency} left in {book}"));
            }
        }
    }

    /// Money from outside or to it.
    fn of_money(&mut self, entry: &Entry, about: &str) {
        let first = entry.postings[0];
        let (account, currency) = (first.account, first.currency);
        let book = match (entry.kind, self.accounts.get(&account)) {
            (Kind::Payout, Some(AccountRole::Vendor)) => Book::Revenue,
            _ => Book::Funds,
        };
        let found = shape(&entry.postings);
        let amount = found.get(&(book, account, currency)).copied().unwrap_or(0).abs();
        let totals = self.report.totals.money.entry(currency).or_default();
        let signed = match entry.kind {
            Kind::Deposit => {
                totals.deposited += amount;
                amount
            }
            Kind::Payout => {
                totals.paid_out += amount;
                -amount
            }
            other => {
                return self.report.find(Rule::EntryShape, about, "an order", format!("a {other} of none"));
            }
        };
        let expected = made_of([(book, account, currency, signed), (Book::Deposits, account, currency, -signed)]);
        if found != expected || entry.round != 0 {
            self.report.find(Rule::EntryShape, about, said(&expected), said(&found));
        }
    }

    /// A step of an order's price.
    fn of_order(&mut self, entry: &Entry, order: &mut Order, sound: bool, about: &str) {
        if matches!(entry.kind, Kind::Deposit | Kind::Payout) {
            return self.report.find(Rule::EntryShape, about, "no order", "an order");
        }
        if let Err((expected, found)) = in_turn(entry, order) {
            return self.report.find(Rule::EntryRound, about, expected, found);
        }
        let (price, currency) = (i128::from(order.price.minor), order.price.currency);
        let (buyer, seller) = (order.account, order.seller);
        let found = shape(&entry.postings);
        let of = |book, account| found.get(&(book, account, currency)).copied().unwrap_or(0);
        let source = match entry.kind {
            Kind::Hold if entry.postings.iter().any(|posting| posting.book == Book::Card) => Book::Card,
            Kind::Hold => Book::Funds,
            _ => order.rounds.last().map_or(Book::Funds, |round| round.source),
        };
        let totals = self.report.totals.money.entry(currency).or_default();
        let expected = match entry.kind {
            Kind::Hold => {
                order.rounds.push(Round { source, end: End::Open });
                made_of([(source, buyer, currency, -price), (Book::Held, buyer, currency, price)])
            }
            Kind::Capture => {
                totals.captured += price;
                let [revenue, fees, tax] = [Book::Revenue, Book::Fees, Book::Tax].map(|book| of(book, seller).max(0));
                let amount = Amount { minor: u64::try_from(-of(Book::Held, buyer)).unwrap_or(0), currency };
                let rates = entry.shares.as_ref().map(|shares| rates_of(shares.taxes.iter().map(|tax| (tax.name.as_str(), tax.rate))));
                order.capture = Some(Capture { entry: entry.entry, at: entry.at, amount, revenue, fees, tax, rates });
                end(order, End::Captured);
                let parts = [(Book::Revenue, revenue), (Book::Fees, fees), (Book::Tax, tax)];
                let parts = parts.map(|(book, minor)| (book, seller, currency, minor));
                made_of(parts.into_iter().chain([(Book::Held, buyer, currency, -price)]))
            }
            Kind::Refund => {
                totals.refunded += price;
                order.refunded = true;
                let parts = order.capture.map_or([0; 3], |c| [c.revenue, c.fees, c.tax]);
                let parts = [Book::Revenue, Book::Fees, Book::Tax].into_iter().zip(parts);
                let parts = parts.map(|(book, minor)| (book, seller, currency, -minor));
                made_of(parts.chain([(source, buyer, currency, price)]))
            }
            Kind::Release | Kind::Deposit | Kind::Payout => {
                end(order, End::Released);
                made_of([(Book::Held, buyer, currency, -price), (source, buyer, currency, price)])
            }
        };
        if sound && found != expected {
            let rule = if entry.kind == Kind::Refund { Rule::RefundMirrors } else { Rule::EntryShape };
            self.report.find(rule, about, said(&expected), said(&found));
        }
        if entry.kind == Kind::Capture {
            self.divided(entry.shares.as_ref(), price, of(Book::Fees, seller), about);
        }
        let last = order.last_hold(entry.round);
        if entry.kind == Kind::Hold && entry.at > last {
            self.report.find(Rule::HoldTerm, about, format!("a hold until {}", last.0), format!("one at {}", entry.at.0));
        }
    }

    /// The house's share of a capture, by the rates that stand with it.
    fn divided(&mut self, rates: Option<&Rates>, price: i128, fees: i128, about: &str) {
        let Some(Rates { house, taxes: lines }) = rates else {
            if self.ledger.rated {
                self.report.find(Rule::HouseShare, about, "the rates of the capture, as with those before it", "none");
            }
            return;
        };
        self.ledger.rated = true;
        let price = price.unsigned_abs();
        let rates: Vec<_> = lines.iter().map(|line| line.rate).collect();
        let net = price.saturating_sub(taxes(&rates, price).iter().sum());
        let expected = net.saturating_mul(u128::from(*house)) / 10_000;
        if u128::try_from(fees) != Ok(expected) {
            let found = format!("{fees}, at {house} hundredths of a percent of {net}");
            self.report.find(Rule::HouseShare, about, expected, found);
        }
    }

    pub(crate) fn stray(&mut self, stray: &journal::Stray) {
        for posting in &stray.postings {
            self.ledger.sums.entry((posting.book, posting.account, posting.currency)).or_default().minor += i128::from(posting.minor);
        }
        let found = format!("postings alone: {}", said(&shape(&stray.postings)));
        self.report.find(Rule::EntryKnown, format!("entry {}", stray.entry), "an entry over its postings", found);
    }

    pub(crate) fn balance(&mut self, balance: &journal::Balance) {
        let sum = self.ledger.sums.entry((balance.book, balance.account, balance.currency)).or_default();
        sum.compared = true;
        if sum.minor != i128::from(balance.minor) {
            let about = format!("{} of account {}", balance.book, balance.account);
            let (expected, found) = (format!("{} {}", sum.minor, balance.currency), format!("{} {}", balance.minor, balance.currency));
            self.report.find(Rule::BalanceDerived, about, expected, found);
        }
    }

    pub(crate) fn end_of_ledger(&mut self) {
        let mut missing: Vec<_> =
            self.ledger.sums.iter().filter(|(_, sum)| !sum.compared).map(|(place, sum)| (*place, sum.minor)).collect();
        missing.sort_unstable();
        for ((book, account, currency), minor) in missing {
            let about = format!("{book} of account {account}");
            self.report.find(Rule::BalanceDerived, about, format!("{minor} {currency}"), "no balance");
        }
        for ((book, _, currency), sum) in &self.ledger.sums {
            if *book == Book::Held {
                self.report.totals.money.entry(*currency).or_default().held += sum.minor;
            }
        }
    }
}

/// Whether the entry follows the order's entries before it; otherwise what may follow, and what does.
fn in_turn(entry: &Entry, order: &Order) -> Result<(), (String, String)> {
    let rounds = order.rounds.len() as u64;
    let last = order.rounds.last().map(|round| round.end);
    let (kind, round) = (entry.kind, entry.round);
    let good = match kind {
        Kind::Hold => round == rounds + 1 && matches!(last, None | Some(End::Released)),
        Kind::Release | Kind::Capture => round == rounds && last == Some(End::Open),
        Kind::Refund => round == 0 && last == Some(End::Captured) && !order.refunded,
        Kind::Deposit | Kind::Payout => false,
    };
    let may_follow = match last {
        None => "hold 1".to_owned(),
        Some(End::Open) => format!("the end of hold {rounds}"),
        Some(End::Released) => format!("hold {}", rounds + 1),
        Some(End::Captured) if order.refunded => "nothing more".to_owned(),
        Some(End::Captured) => "a refund".to_owned(),
    };
    if good { Ok(()) } else { Err((may_follow, format!("{kind} of round {round}"))) }
}

fn end(order: &mut Order, how: End) {
    if let Some(round) = order.rounds.last_mut() {
        round.end = how;
    }
}
