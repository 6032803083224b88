//! After everything: what customers have, what they paid, and what the card provider took.

use super::lane::Bought;
use super::shop::{ADDED, Account, DEPOSIT, PAID_OUT, PRICE, Shop};
use super::tally::Tally;
use crate::Outcome;
use chipbound_testkit::cards::{Payment, Status};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long after the end of the last order everything that was held must be given back: two looks of the server's, and some.
const SWEEPS: Duration = Duration::from_secs(15);
/// Between two looks at what is held.
const LOOK: Duration = Duration::from_millis(500);

/// Starts the server anew, and waits until nothing is held any more or every order that nobody went on with ran out (`term`).
pub(crate) fn settle<'a>(shop: &Shop, bought: impl Iterator<Item = &'a Bought> + Clone, term: Duration) -> Outcome<()> {
    shop.cards.no_more_faults();
    shop.kill_server(Duration::ZERO)?;
    let deadline = Instant::now() + term + SWEEPS;
    let refunded: Vec<_> = bought.clone().filter_map(|one| one.refunded.as_ref()).collect();
    let owes = || shop.cards.payments().iter().any(|p| p.captured > p.refunded && refunded.contains(&&p.order));
    while Instant::now() < deadline && owes() {
        std::thread::sleep(LOOK);
    }
    for one in bought {
        while Instant::now() < deadline && (shop.account(&one.customer.user)?.held > 0 || cards_hold(shop)?) {
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}

/// Whether the card provider holds something that the server knows of. What it may or may not have heard is given back ten minutes
/// after the order ran out.
fn cards_hold(shop: &Shop) -> Outcome<bool> {
    let mut held = shop.cards.payments();
    held.retain(|p| p.status == Status::RequiresCapture);
    let asked = if held.is_empty() { Vec::new() } else { shop.asked()? };
    Ok(held.iter().any(|p| !asked.contains(&p.order)))
}

/// Checks what everybody has, and has the server's books audited and compared with the card provider's.
pub(crate) fn check(shop: &Shop, bought: &[Bought]) -> Outcome<Tally> {
    let mut tally = Tally::default();
    let accounts = bought.iter().map(|one| shop.account(&one.customer.user)).collect::<Outcome<Vec<_>>>()?;
    for (one, account) in bought.iter().zip(&accounts) {
        check_account(one, account, &mut tally);
    }
    check_numbers(&accounts, &mut tally);
    let refunded: Vec<_> = bought.iter().filter_map(|one| one.refunded.as_ref()).collect();
    check_cards(shop, &accounts, &refunded, &mut tally)?;
    check_earned(shop, bought, &accounts, &mut tally)?;
    let (audited, said) = shop.operator("audit")?;
    if !audited {
        tally.violations.push(format!("the audit found something: {said}"));
    }
    let (_, said) = shop.operator("reconcile")?;
    if !said.trim_end().ends_with(", 0 not known here, 0 differ") {
        tally.violations.push(format!("the card provider's book differs: {said}"));
    }
    shop.check_logs(&mut tally)?;
    tally.receipts = accounts.iter().map(|a| a.receipts.len() as u32).sum();
    Ok(tally)
}

/// One charge for one receipt, no hold, and the program for everybody who has a receipt or went on.
fn check_account(one: &Bought, account: &Account, tally: &mut Tally) {
    let (user, receipts) = (&one.customer.user, account.receipts.len() as u64);
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
    if receipts > 0 && !one.obtained {
        bad("a receipt, and no program".to_owned());
    }
    if account.held > 0 {
        bad(format!("{} are held after the term", account.held));
    }
    let (prepaid, deposited) = (!one.wish.card, if one.deposited { ADDED } else { 0 });
    let given_back = if prepaid && one.refunded.is_some() { PRICE } else { 0 };
    let paid_in = if prepaid { DEPOSIT } else { 0 } + deposited + given_back;
    let (left, prices) = (account.available + account.held, if prepaid { PRICE * receipts } else { 0 });
    if paid_in != left + prices {
        bad(format!(
            "{paid_in} came in ({deposited} by a later deposit, {given_back} given back), {prices} for receipts, and {left} is there"
        ));
    }
    if prepaid {
        tally.charges += (paid_in.saturating_sub(left) / PRICE) as u32;
    }
}

/// The vendor has earned every price that was not given back, and was paid out once what was paid out.
fn check_earned(shop: &Shop, bought: &[Bought], accounts: &[Account], tally: &mut Tally) -> Outcome<()> {
    let count = |of: fn(&Bought) -> bool| bought.iter().filter(|one| of(one)).count() as u64;
    let receipts = accounts.iter().map(|a| a.receipts.len() as u64).sum::<u64>();
    let (refunded, paid_out) = (count(|one| one.refunded.is_some()), count(|one| one.paid_out));
    let (earned, sales) = (shop.earned()?, format!("{receipts} receipts, {refunded} refunds, {paid_out} payouts"));
    if u64::try_from(earned).ok().map(|earned| earned + PRICE * refunded + PAID_OUT * paid_out) != Some(PRICE * receipts) {
        tally.violations.push(format!("the vendor has {earned} left to be paid out after {sales}"));
    }
    Ok(())
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

/// What the card provider took is what receipts say, once each, and given back for an order that was refunded; it holds nothing that could
/// not still be asked for.
fn check_cards(shop: &Shop, accounts: &[Account], refunded: &[&String], tally: &mut Tally) -> Outcome<()> {
    let asked = shop.asked()?;
    let mut by_order: BTreeMap<String, Vec<Payment>> = BTreeMap::new();
    for payment in shop.cards.payments() {
        by_order.entry(payment.order.clone()).or_default().push(payment);
    }
    let receipted: BTreeMap<_, _> = accounts.iter().flat_map(|a| &a.receipts).map(|r| (r.order.to_string(), r.amount.minor)).collect();
    for (order, payments) in &by_order {
        let mut bad = |what: &str| tally.violations.push(format!("order {order}: {what}: {payments:?}"));
        let (taken, given_back) = payments.iter().fold((0, 0), |(taken, back), p| (taken + p.captured, back + p.refunded));
        let kept = taken.saturating_sub(given_back);
        if given_back > taken {
            bad("more was given back than the card was charged");
        }
        if payments.iter().any(|p| p.captures > 1) {
            bad("the card was charged twice");
        }
        match receipted.get(order) {
            Some(price) if refunded.contains(&order) && (kept, taken) != (0, *price) => {
                bad("the card was not given back what it was charged")
            }
            Some(price) if !refunded.contains(&order) && kept != *price => bad("a receipt, and another amount was taken from the card"),
            None if kept > 0 => bad("the card was charged, and there is no receipt"),
            _ => {}
        }
        if payments.iter().any(|p| p.status == Status::RequiresCapture) {
            match asked.contains(order) {
                true => tally.unanswered += 1,
                false => bad("the card provider holds a price after the term"),
            }
        }
        tally.charges += (if refunded.contains(&order) { taken } else { kept } / PRICE) as u32;
    }
    Ok(())
}
