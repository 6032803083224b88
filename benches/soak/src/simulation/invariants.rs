//! What must hold after every event.

use super::world::{MONEY, PRICE, VENDOR, World};
use crate::{Outcome, failed};
use chipbound_server::storage::{Accounts, Journal, Log, Orders, StoredOrder};
use chipbound_wire::api::OrderState;
use chipbound_wire::documents::Receipt;
use chipbound_wire::signed::read_claims;
use chipbound_wire::{AccountId, OrderId, Time};
use std::collections::BTreeSet;
use std::io::BufReader;

/// More orders of one account than any run makes.
const ALL: u32 = 10_000;

impl World {
    /// What the account is free to spend, and what is held of it.
    pub(super) fn funds(&self, account: AccountId) -> Outcome<(u64, u64)> {
        let balances = self.runtime.block_on(self.books.balances(account))?;
        Ok(balances.first().map_or((0, 0), |b| (b.available.minor, b.held.minor)))
    }

    fn accounts(&self) -> BTreeSet<AccountId> {
        self.customers.iter().map(|customer| customer.principal.account).collect()
    }

    fn orders(&self, account: AccountId) -> Outcome<Vec<StoredOrder>> {
        Ok(self.runtime.block_on(self.books.orders(account, (Time(i64::MAX as u64), OrderId([0xff; 16])), ALL))?)
    }

    /// Whether the customer's account can pay, or an order of its is under way.
    pub(super) fn can_pay_or_holds(&self, number: usize) -> Outcome<bool> {
        let account = self.customers[number].principal.account;
        let own = self.customers[number].order.as_ref().map(|order| order.order);
        let under_way = self.orders(account)?.iter().any(|order| Some(order.order) == own && holds(order.state));
        Ok(under_way || self.can_pay(number)?)
    }

    /// Compares the books with what must always hold.
    pub(super) fn check(&self) -> Outcome<()> {
        let (mut numbers, mut paid) = (BTreeSet::new(), 0);
        for account in self.accounts() {
            let orders = self.orders(account)?;
            let count = |which: fn(OrderState) -> bool| orders.iter().filter(|order| which(order.state)).count() as u64;
            let (free, held) = self.funds(account)?;
            expect("what is held is the price of the orders that are under way", held, PRICE * count(holds))?;
            expect("money is free, held or paid", free + held + PRICE * count(OrderState::is_paid), MONEY)?;
            paid += count(OrderState::is_paid);
            for order in &orders {
                let receipt = order.receipt.is_some();
                expect("who paid has a receipt, and nobody else", receipt, order.state.is_paid() || order.state == OrderState::Refunded)?;
                if let Some(receipt) = &order.receipt {
                    let receipt: Receipt = read_claims(receipt)?;
                    expect("a receipt is its order's", (receipt.order, receipt.amount.minor), (order.order, PRICE))?;
                    expect("a number is given once", numbers.insert(receipt.number), true)?;
                }
            }
            for (_, released) in self.released.iter().filter(|(of, _)| *of == account.0) {
                let order = orders.iter().find(|order| order.order == *released);
                expect("no package is released that was not paid", order.is_some_and(|order| order.receipt.is_some()), true)?;
            }
        }
        expect("numbers have no gaps", numbers.iter().copied().collect::<Vec<_>>(), (1..=numbers.len() as u64).collect())?;
        let revenue = self.runtime.block_on(self.books.books_of(VENDOR))?;
        let revenue = revenue.iter().find(|book| book.book == "revenue").map_or(0, |book| book.minor);
        expect("the vendor has what was paid", revenue, (PRICE * paid) as i64)?;
        let checkpoint = self.runtime.block_on(self.books.log_checkpoint())?;
        let size = checkpoint.map_or(Some(0), |note| note.lines().nth(1)?.parse().ok());
        expect("every receipt is in the log", size, Some(numbers.len()))
    }

    /// After their term nothing is held for anybody.
    pub(super) fn nothing_is_held(&self) -> Outcome<()> {
        for account in self.accounts() {
            expect("nothing is held beyond its term", self.funds(account)?.1, 0)?;
        }
        Ok(())
    }

    /// The independent auditor reads the journal.
    pub(super) fn audited(&self) -> Outcome<()> {
        let journal = self.runtime.block_on(self.books.journal(self.now(), Vec::new()))?;
        let report = chipbound_auditor::audit(BufReader::new(&journal[..]), &self.pki.trust())?;
        if !report.is_clean() {
            return Err(failed(format!("the auditor: {:?}", report.findings)));
        }
        Ok(())
    }

    /// Orders that are paid, and that came to nothing.
    pub(super) fn counts(&self) -> Outcome<(u32, u32)> {
        let (mut paid, mut ended) = (0, 0);
        for account in self.accounts() {
            for order in self.orders(account)? {
                match order.state {
                    OrderState::Captured | OrderState::Released => paid += 1,
                    OrderState::Cancelled | OrderState::Expired | OrderState::Refunded => ended += 1,
                    _ => {}
                }
            }
        }
        Ok((paid, ended))
    }
}

fn holds(state: OrderState) -> bool {
    matches!(state, OrderState::Authorised | OrderState::Delivering | OrderState::Acknowledged | OrderState::CaptureRequested)
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, is: T, should: T) -> Outcome<()> {
    if is == should { Ok(()) } else { Err(failed(format!("{what}: {is:?}, not {should:?}"))) }
}
