//! Orders, holds and tickets.

use super::{Columns, SqliteRepository, all, execute, first, ledger, number, signed, unreadable};
use crate::storage::{NewOrder, NewTicket, Orders, StoredOrder};
use chipbound_wire::api::OrderState;
use chipbound_wire::{AccountId, Code, Digest, KeyId, OrderId, Refusal, Result, Time};
use rusqlite::{Connection, Row, params};

/// Orders whose holds are given back in one transaction.
const EXPIRE_AT_ONCE: u32 = 200;
/// Orders of one account that wait for its agreement at once.
const NOT_AGREED_TO: u64 = 256;

pub(super) fn unknown_order() -> Refusal {
    Refusal::new(Code::UnknownOrder, "there is no such order of this account")
}

fn state_text(state: OrderState) -> &'static str {
    match state {
        OrderState::Confirmed => "confirmed",
        OrderState::Authorised => "authorised",
        OrderState::Settled => "settled",
        OrderState::Expired => "expired",
    }
}

fn parse_state(text: &str) -> Result<OrderState> {
    [OrderState::Confirmed, OrderState::Authorised, OrderState::Settled, OrderState::Expired]
        .into_iter()
        .find(|s| state_text(*s) == text)
        .ok_or_else(unreadable)
}

fn stored(row: &Row<'_>) -> Result<StoredOrder> {
    Ok(StoredOrder {
        order: OrderId(row.id("order_id")?),
        account: AccountId(row.id("account")?),
        manifest: Digest(row.id("manifest")?),
        processor: KeyId(row.id("processor")?),
        key_mode: row.parsed("key_mode")?,
        price: row.amount()?,
        state: parse_state(&row.text("state")?)?,
        confirmation: row.bytes("confirmation")?,
        issued_at: Time(row.number("issued_at")?),
        expires_at: Time(row.number("expires_at")?),
        redownload_until: Time(row.number("redownload_until")?),
        receipt: row.column("receipt")?,
    })
}

/// The order of that id, whosever it is.
pub(super) fn find(connection: &Connection, order: OrderId) -> Result<Option<StoredOrder>> {
    let find = "SELECT o.*, r.receipt FROM orders o LEFT JOIN receipts r USING (order_id) WHERE o.order_id = ?";
    first(connection, find, [order.0], stored)
}

/// The order of that id and account.
pub(super) fn owned(connection: &Connection, account: AccountId, order: OrderId) -> Result<StoredOrder> {
    find(connection, order)?.filter(|o| o.account == account).ok_or_else(unknown_order)
}

pub(super) fn set_state(tx: &Connection, order: OrderId, state: OrderState) -> Result<()> {
    execute(tx, "UPDATE orders SET state = ? WHERE order_id = ?", params![state_text(state), order.0]).map(drop)
}

/// Refuses an order that ran out, whether or not its hold was given back yet.
pub(super) fn check_running(order: &StoredOrder, now: Time) -> Result<()> {
    if order.state == OrderState::Expired || (order.state != OrderState::Settled && now > order.expires_at) {
        return Err(Refusal::new(Code::OrderExpired, "the order ran out before it was settled"));
    }
    Ok(())
}

impl Orders for SqliteRepository {
    async fn place_order(&self, new: &NewOrder) -> Result<StoredOrder> {
        let new = new.clone();
        self.connections.write(move |tx| place(tx, new)).await
    }

    async fn order(&self, account: AccountId, order: OrderId) -> Result<StoredOrder> {
        self.connections.read(|books| owned(books, account, order))
    }

    async fn authorise(&self, account: AccountId, order: OrderId, confirmation: Digest, now: Time) -> Result<StoredOrder> {
        let authorise = move |tx: &_| {
            let mut order = owned(tx, account, order)?;
            if Digest::of(&order.confirmation) != confirmation {
                return Err(Refusal::new(Code::TermsMismatch, "the agreement is to another confirmation than this order's"));
            }
            check_running(&order, now)?;
            if order.state == OrderState::Confirmed {
                ledger::hold(tx, account, order.order, order.price, now)?;
                set_state(tx, order.order, OrderState::Authorised)?;
                order.state = OrderState::Authorised;
            }
            Ok(order)
        };
        self.connections.write(authorise).await
    }

    async fn issue_ticket(&self, ticket: &NewTicket, now: Time, most: u32) -> Result<()> {
        let new = *ticket;
        let issue = move |tx: &_| {
            let order = owned(tx, new.account, new.order)?;
            check_deliverable(tx, &order, now)?;
            let count = "SELECT count(*) FROM tickets WHERE order_id = ? AND expires_at >= ?";
            if number(tx, count, params![new.order.0, signed(now.0)?])? >= u64::from(most) {
                return Err(Refusal::new(Code::RateLimited, format!("there are {most} unused tickets for this order already")));
            }
            let insert = "INSERT INTO tickets (ticket, order_id, account, expires_at) VALUES (?, ?, ?, ?)";
            execute(tx, insert, params![new.ticket.0, new.order.0, new.account.0, signed(new.expires_at.0)?]).map(drop)
        };
        self.connections.write(issue).await
    }

    async fn redeem_ticket(&self, ticket: Digest, account: Option<AccountId>, now: Time) -> Result<StoredOrder> {
        let invalid = || Refusal::new(Code::TicketInvalid, "the ticket is unknown, used or expired");
        let redeem = move |tx: &_| {
            let used = "DELETE FROM tickets WHERE ticket = ?1 AND expires_at >= ?2 AND account = coalesce(?3, account) RETURNING order_id";
            let values = params![ticket.0, signed(now.0)?, account.map(|a| a.0)];
            let order = first(tx, used, values, |row| row.id("order_id"))?.ok_or_else(invalid)?;
            let order = find(tx, OrderId(order))?.ok_or_else(invalid)?;
            check_deliverable(tx, &order, now)?;
            Ok(order)
        };
        self.connections.write(redeem).await
    }

    async fn readmit(&self, account: AccountId, order: OrderId, receipt: &[u8], until: Time) -> Result<StoredOrder> {
        let receipt = receipt.to_vec();
        let readmit = move |tx: &_| {
            let order = owned(tx, account, order)?;
            if order.receipt.as_ref() != Some(&receipt) {
                return Err(Refusal::new(Code::ReceiptMismatch, "this is not the receipt of that order"));
            }
            let change = "UPDATE orders SET readmitted_until = max(readmitted_until, ?) WHERE order_id = ?";
            execute(tx, change, params![signed(until.0)?, order.order.0])?;
            Ok(order)
        };
        self.connections.write(readmit).await
    }

    async fn expire(&self, now: Time) -> Result<u64> {
        let mut expired = 0;
        loop {
            // One transaction for some of them, so that it holds nobody up for long.
            let some = self.connections.write(move |tx| expire_some(tx, now)).await?;
            expired += some;
            if some < u64::from(EXPIRE_AT_ONCE) {
                return Ok(expired);
            }
        }
    }
}

/// One transaction's worth of [`Orders::expire`].
fn expire_some(tx: &Connection, now: Time) -> Result<u64> {
    let now_signed = signed(now.0)?;
    let find_late = "SELECT order_id FROM orders WHERE state IN ('confirmed', 'authorised') AND expires_at < ? LIMIT ?";
    let late = all(tx, find_late, params![now_signed, EXPIRE_AT_ONCE], |row| row.id("order_id").map(OrderId))?;
    for order in &late {
        let order = find(tx, *order)?.ok_or_else(unknown_order)?;
        if order.state == OrderState::Authorised {
            ledger::release(tx, order.account, order.order, order.price, now)?;
        }
        set_state(tx, order.order, OrderState::Expired)?;
    }
    for statement in [
        "DELETE FROM tickets WHERE expires_at < ?",
        "DELETE FROM sessions WHERE expires_at < ?",
        "DELETE FROM uploads WHERE expires_at < ?",
    ] {
        execute(tx, statement, [now_signed])?;
    }
    Ok(late.len() as u64)
}

/// Whether a package may be delivered for this order now.
fn check_deliverable(tx: &Connection, order: &StoredOrder, now: Time) -> Result<()> {
    check_running(order, now)?;
    match order.state {
        OrderState::Authorised => Ok(()),
        OrderState::Settled => {
            let until = number(tx, "SELECT readmitted_until FROM orders WHERE order_id = ?", [order.order.0])?;
            if now.0 > until {
                return Err(Refusal::new(Code::OrderState, "the order is settled: show its receipt to download again"));
            }
            Ok(())
        }
        OrderState::Confirmed | OrderState::Expired => Err(Refusal::new(Code::OrderState, "the order was not agreed to")),
    }
}

/// Places the order, or finds the one that was placed with its key before.
fn place(tx: &Connection, new: NewOrder) -> Result<StoredOrder> {
    let account = new.order.account;
    let find_before = "SELECT order_id, parameters FROM orders WHERE account = ? AND idempotency_key = ?";
    let ids = |row: &Row<'_>| Ok((OrderId(row.id("order_id")?), Digest(row.id("parameters")?)));
    if let Some((order, parameters)) = first(tx, find_before, params![account.0, new.idempotency_key], ids)? {
        if parameters != new.parameters {
            return Err(Refusal::new(Code::IdempotencyConflict, "another order was placed with this idempotency key"));
        }
        return owned(tx, account, order);
    }
    // Nobody fills the books who agrees to nothing.
    let open = number(tx, "SELECT count(*) FROM orders WHERE account = ? AND state = 'confirmed'", [account.0])?;
    if open >= NOT_AGREED_TO {
        return Err(Refusal::new(Code::RateLimited, format!("{open} orders wait for an agreement already")));
    }
    insert(tx, &new)?;
    Ok(new.order)
}

fn insert(tx: &Connection, new: &NewOrder) -> Result<()> {
    let order = &new.order;
    execute(
        tx,
        "INSERT INTO orders (order_id, account, manifest, processor, key_mode, price, currency, state, confirmation, idempotency_key,
         parameters, issued_at, expires_at, redownload_until) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        params![
            order.order.0,
            order.account.0,
            order.manifest.0,
            order.processor.0,
            order.key_mode.as_str(),
            signed(order.price.minor)?,
            order.price.currency.as_str(),
            state_text(order.state),
            order.confirmation,
            new.idempotency_key,
            new.parameters.0,
            signed(order.issued_at.0)?,
            signed(order.expires_at.0)?,
            signed(order.redownload_until.0)?,
        ],
    )
    .map(drop)
}
