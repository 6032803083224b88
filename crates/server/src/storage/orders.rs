//! Orders, holds and tickets.

use super::books::Books;
use super::sql::{Row, Tx, all, first, number, signed, unreadable, values};
use super::{NewOrder, NewTicket, Orders, StoredOrder, accounts, ledger};
use chipbound_wire::api::OrderState;
use chipbound_wire::{AccountId, Code, Digest, KeyId, OrderId, Refusal, Result, Time};

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

fn stored(row: &dyn Row) -> Result<StoredOrder> {
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
        receipt: row.optional_bytes("receipt")?,
    })
}

/// The order of that id, whosever it is.
pub(super) fn find(books: &dyn Tx, order: OrderId) -> Result<Option<StoredOrder>> {
    let find = "SELECT o.*, r.receipt FROM orders o LEFT JOIN receipts r USING (order_id) WHERE o.order_id = $1";
    first(books, find, values![&order], stored)
}

/// The order of that id and account.
pub(super) fn owned(books: &dyn Tx, account: AccountId, order: OrderId) -> Result<StoredOrder> {
    find(books, order)?.filter(|o| o.account == account).ok_or_else(unknown_order)
}

/// The same, locked until the transaction ends.
pub(super) fn locked(tx: &dyn Tx, account: AccountId, order: OrderId) -> Result<StoredOrder> {
    lock(tx, order)?;
    owned(tx, account, order)
}

fn lock(tx: &dyn Tx, order: OrderId) -> Result<()> {
    tx.lock("SELECT 1 FROM orders WHERE order_id = $1 FOR UPDATE", values![&order])
}

pub(super) fn set_state(tx: &dyn Tx, order: OrderId, state: OrderState) -> Result<()> {
    tx.execute("UPDATE orders SET state = $1 WHERE order_id = $2", values![state_text(state), &order]).map(drop)
}

/// Refuses an order that ran out, whether or not its hold was given back yet.
pub(super) fn check_running(order: &StoredOrder, now: Time) -> Result<()> {
    if order.state == OrderState::Expired || (order.state != OrderState::Settled && now > order.expires_at) {
        return Err(Refusal::new(Code::OrderExpired, "the order ran out before it was settled"));
    }
    Ok(())
}

impl Orders for Books {
    async fn place_order(&self, new: &NewOrder) -> Result<StoredOrder> {
        let new = new.clone();
        self.write(move |tx: &dyn Tx| place(tx, &new)).await
    }

    async fn order(&self, account: AccountId, order: OrderId) -> Result<StoredOrder> {
        self.read(move |books: &dyn Tx| owned(books, account, order)).await
    }

    async fn orders(&self, account: AccountId, before: (Time, OrderId), most: u32) -> Result<Vec<StoredOrder>> {
        let list = "SELECT o.*, r.receipt FROM orders o LEFT JOIN receipts r USING (order_id)
                    WHERE o.account = $1 AND (o.issued_at, o.order_id) < ($2, $3) ORDER BY o.issued_at DESC, o.order_id DESC LIMIT $4";
        let issued_at = signed(before.0.0)?;
        self.read_long(move |books: &dyn Tx| all(books, list, values![&account, issued_at, &before.1, most], stored)).await
    }

    async fn authorise(&self, account: AccountId, order: OrderId, confirmation: Digest, now: Time) -> Result<StoredOrder> {
        let authorise = move |tx: &dyn Tx| {
            let mut order = locked(tx, account, order)?;
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
        self.write(authorise).await
    }

    async fn issue_ticket(&self, ticket: &NewTicket, now: Time, most: u32) -> Result<()> {
        let new = *ticket;
        let issue = move |tx: &dyn Tx| {
            let order = locked(tx, new.account, new.order)?;
            check_deliverable(tx, &order, now)?;
            let count = "SELECT count(*) AS n FROM tickets WHERE order_id = $1 AND expires_at >= $2";
            if number(tx, count, values![&new.order, signed(now.0)?])? >= u64::from(most) {
                return Err(Refusal::new(Code::RateLimited, format!("there are {most} unused tickets for this order already")));
            }
            let insert = "INSERT INTO tickets (ticket, order_id, account, expires_at) VALUES ($1, $2, $3, $4)";
            tx.execute(insert, values![&new.ticket, &new.order, &new.account, signed(new.expires_at.0)?]).map(drop)
        };
        self.write(issue).await
    }

    async fn redeem_ticket(&self, ticket: Digest, account: Option<AccountId>, now: Time) -> Result<StoredOrder> {
        let invalid = || Refusal::new(Code::TicketInvalid, "the ticket is unknown, used or expired");
        let redeem = move |tx: &dyn Tx| {
            let used = "DELETE FROM tickets WHERE ticket = $1 AND expires_at >= $2 AND account = coalesce($3, account) RETURNING order_id";
            let values = values![&ticket, signed(now.0)?, account.as_ref()];
            let order = first(tx, used, values, |row| row.id("order_id"))?.ok_or_else(invalid)?;
            let order = find(tx, OrderId(order))?.ok_or_else(invalid)?;
            check_deliverable(tx, &order, now)?;
            Ok(order)
        };
        self.write(redeem).await
    }

    async fn readmit(&self, account: AccountId, order: OrderId, receipt: &[u8], until: Time) -> Result<StoredOrder> {
        let receipt = receipt.to_vec();
        let readmit = move |tx: &dyn Tx| {
            let order = locked(tx, account, order)?;
            if order.receipt.as_ref() != Some(&receipt) {
                return Err(Refusal::new(Code::ReceiptMismatch, "this is not the receipt of that order"));
            }
            let change = "UPDATE orders SET readmitted_until = $1 WHERE order_id = $2 AND readmitted_until < $1";
            tx.execute(change, values![signed(until.0)?, &order.order])?;
            Ok(order)
        };
        self.write(readmit).await
    }

    async fn expire(&self, now: Time) -> Result<u64> {
        let mut expired = 0;
        loop {
            // One transaction for some of them, so that it holds nobody up for long.
            let some = self.write(move |tx| expire_some(tx, now)).await?;
            expired += some;
            if some < u64::from(EXPIRE_AT_ONCE) {
                return Ok(expired);
            }
        }
    }
}

/// One transaction's worth of [`Orders::expire`].
fn expire_some(tx: &dyn Tx, now: Time) -> Result<u64> {
    let now_signed = signed(now.0)?;
    let find_late = "SELECT order_id FROM orders WHERE state IN ('confirmed', 'authorised') AND expires_at < $1 ORDER BY order_id LIMIT $2";
    let late = all(tx, find_late, values![now_signed, EXPIRE_AT_ONCE], |row| row.id("order_id").map(OrderId))?;
    for order in &late {
        let order = find(tx, *order)?.ok_or_else(unknown_order)?;
        if order.state == OrderState::Authorised {
            ledger::release(tx, order.account, order.order, order.price, now)?;
        }
        set_state(tx, order.order, OrderState::Expired)?;
    }
    for statement in [
        "DELETE FROM tickets WHERE expires_at < $1",
        "DELETE FROM sessions WHERE expires_at < $1",
        "DELETE FROM uploads WHERE expires_at < $1",
    ] {
        tx.execute(statement, values![now_signed])?;
    }
    Ok(late.len() as u64)
}

/// Whether a package may be delivered for this order now.
fn check_deliverable(tx: &dyn Tx, order: &StoredOrder, now: Time) -> Result<()> {
    check_running(order, now)?;
    match order.state {
        OrderState::Authorised => Ok(()),
        OrderState::Settled => {
            let until = number(tx, "SELECT readmitted_until AS n FROM orders WHERE order_id = $1", values![&order.order])?;
            if now.0 > until {
                return Err(Refusal::new(Code::OrderState, "the order is settled: show its receipt to download again"));
            }
            Ok(())
        }
        OrderState::Confirmed | OrderState::Expired => Err(Refusal::new(Code::OrderState, "the order was not agreed to")),
    }
}

/// Places the order, or finds the one that was placed with its key before.
fn place(tx: &dyn Tx, new: &NewOrder) -> Result<StoredOrder> {
    let account = new.order.account;
    accounts::lock(tx, &account)?;
    let find_before = "SELECT order_id, parameters FROM orders WHERE account = $1 AND idempotency_key = $2";
    let ids = |row: &dyn Row| Ok((OrderId(row.id("order_id")?), Digest(row.id("parameters")?)));
    if let Some((order, parameters)) = first(tx, find_before, values![&account, &new.idempotency_key], ids)? {
        if parameters != new.parameters {
            return Err(Refusal::new(Code::IdempotencyConflict, "another order was placed with this idempotency key"));
        }
        return owned(tx, account, order);
    }
    // Nobody fills the books who agrees to nothing.
    let open = number(tx, "SELECT count(*) AS n FROM orders WHERE account = $1 AND state = 'confirmed'", values![&account])?;
    if open >= NOT_AGREED_TO {
        return Err(Refusal::new(Code::RateLimited, format!("{open} orders wait for an agreement already")));
    }
    insert(tx, new)?;
    Ok(new.order.clone())
}

fn insert(tx: &dyn Tx, new: &NewOrder) -> Result<()> {
    let order = &new.order;
    tx.execute(
        "INSERT INTO orders (order_id, account, manifest, processor, key_mode, price, currency, state, confirmation, idempotency_key,
         parameters, issued_at, expires_at, redownload_until) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        values![
            &order.order,
            &order.account,
            &order.manifest,
            &order.processor,
            order.key_mode.as_str(),
            signed(order.price.minor)?,
            order.price.currency.as_str(),
            state_text(order.state),
            &order.confirmation,
            &new.idempotency_key,
            &new.parameters,
            signed(order.issued_at.0)?,
            signed(order.expires_at.0)?,
            signed(order.redownload_until.0)?,
        ],
    )
    .map(drop)
}
