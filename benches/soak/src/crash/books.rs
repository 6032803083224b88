//! After everything: what customers have, what they paid, and what the card provider took.

use super::lane::Bought;
use super::shop::{DEPOSIT, PRICE, Shop};
use super::tally::Tally;
use crate::Outcome;
use chipbound_testkit::cards::{Payment, Status};
use chipbound_wire::documents::Receipt;
use chipbound_wire::signed::read_claims;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long after the end of the last order everything that was held must be given back: two looks of the server's, and some.
const SWEEPS: Duration = Duration::from_secs(15);
/// Between two looks at what is held.
const LOOK: Duration = Duration::from_millis(500);

/// One customer's account.
struct Account {
    receipts: Vec<Receipt>,
    /// Minor units.
    available: u64,
    held: u64,
}

/// Starts everything anew, waits until every order that nobody went on with ran out (`term`), and checks.
pub(crate) fn check(shop: &Shop, bought: &[Bought], term: Duration) -> Outcome<Tally> {
    let mut tally = Tally::default();
    shop.cards.no_more_faults();
    shop.kill_server(Duration::ZERO)?;
    let deadline = Instant::now() + term + SWEEPS;
    let mut accounts = Vec::new();
    for one in bought {
        let account = loop {
            let account = account(shop, &one.user)?;
            let waits = account.held > 0 || (one.left && one.card && held_by_cards(shop, &account.receipts));
            if !waits || Instant::now() > deadline {
                break account;
            }
            std::thread::sleep(LOOK);
        };
        accounts.push(account);
    }
    for (one, account) in bought.iter().zip(&accounts) {
        check_account(one, account, &mut tally);
    }
    check_numbers(&accounts, &mut tally);
    check_cards(shop, &accounts, &mut tally);
    shop.check_logs(&mut tally)?;
    tally.receipts = accounts.iter().map(|a| a.receipts.len() as u32).sum();
    Ok(tally)
}

fn account(shop: &Shop, user: &str) -> Outcome<Account> {
    let api = shop.api(user)?;
    let (account, receipts) =
        shop.runtime.block_on(async { Ok::<_, chipbound_wire::Refusal>((api.account().await?, api.receipts().await?)) })?;
    let receipts = receipts.receipts.iter().map(|bytes| read_claims(&bytes.0)).collect::<Result<_, _>>()?;
    let balance = account.balances.first();
    Ok(Account { receipts, available: balance.map_or(0, |b| b.available.minor), held: balance.map_or(0, |b| b.held.minor) })
}

/// Whether the card provider still holds something.
fn held_by_cards(shop: &Shop, _receipts: &[Receipt]) -> bool {
    shop.cards.payments().iter().any(|p| p.status == Status::RequiresCapture)
}

/// One charge for one receipt, no hold, and the program for everybody who has a receipt or went on.
fn check_account(one: &Bought, account: &Account, tally: &mut Tally) {
    let (user, receipts) = (&one.user, account.receipts.len() as u64);
    let mut bad = |what: String| tally.violations.push(format!("{user}: {what}"));
    if receipts > 1 {
        bad(format!("{receipts} receipts for one purchase"));
    }
    if receipts == 0 && !one.left {
        bad("no receipt for a purchase that was made".to_owned());
    }
    if receipts == 0 && one.obtained {
        bad("a program that runs, and no receipt".to_owned());
    }
    if account.held > 0 {
        bad(format!("{} are held after the term", account.held));
    }
    if !one.card {
        let paid = DEPOSIT.saturating_sub(account.available + account.held);
        if paid != PRICE * receipts {
            bad(format!("{paid} were taken for {receipts} receipts"));
        }
        tally.charges += (paid / PRICE) as u32;
    }
}

/// One seller's receipts are numbered from 1 without a gap, and no number comes twice.
fn check_numbers(accounts: &[Account], tally: &mut Tally) {
    let mut numbers: Vec<_> = accounts.iter().flat_map(|a| &a.receipts).map(|r| r.number).collect();
    numbers.sort_unstable();
    let wanted: Vec<_> = (1..=numbers.len() as u64).collect();
    if numbers != wanted {
        tally.violations.push(format!("receipts are numbered {numbers:?}"));
    }
}

/// What the card provider took is what receipts say, once each; it holds nothing that could not still be asked for.
fn check_cards(shop: &Shop, accounts: &[Account], tally: &mut Tally) {
    let mut by_order: BTreeMap<String, Vec<Payment>> = BTreeMap::new();
    for payment in shop.cards.payments() {
        by_order.entry(payment.order.clone()).or_default().push(payment);
    }
    let receipted: BTreeMap<_, _> = accounts.iter().flat_map(|a| &a.receipts).map(|r| (r.order.to_string(), r.amount.minor)).collect();
    for (order, payments) in &by_order {
        let mut bad = |what: &str| tally.violations.push(format!("order {order}: {what}: {payments:?}"));
        let kept: u64 = payments.iter().map(|p| p.captured - p.refunded).sum();
        if payments.iter().any(|p| p.captures > 1) {
            bad("the card was charged twice");
        }
        match receipted.get(order) {
            Some(price) if kept != *price => bad("a receipt, and another amount was taken from the card"),
            None if kept > 0 => bad("the card was charged, and there is no receipt"),
            _ => {}
        }
        if payments.iter().any(|p| p.status == Status::RequiresCapture) {
            bad("the card provider holds a price after the term");
        }
        tally.charges += (kept / PRICE) as u32;
    }
}
