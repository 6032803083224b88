//! Orders, holds and tickets.

use super::{Columns, Connection, SqliteRepository, commit, failed, ledger, signed};
use crate::storage::{NewOrder, NewTicket, Orders, StoredOrder};
use chipbound_wire::api::OrderState;
use chipbound_wire::{AccountId, Code, Digest, KeyId, OrderId, Refusal, Result, Time};
use sqlx::query;
use sqlx::sqlite::SqliteRow;

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
        .ok_or_else(super::unreadable)
}

fn stored(row: &SqliteRow) -> Result<StoredOrder> {
    let receipt = sqlx::Row::try_get(row, "receipt").map_err(|e| failed(&e))?;
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
        receipt,
    })
}

/// The order of that id, whosever it is.
pub(super) async fn find(connection: &mut Connection, order: OrderId) -> Result<Option<StoredOrder>> {
    let row = query("SELECT o.*, r.receipt FROM orders o LEFT JOIN receipts r USING (order_id) WHERE o.order_id = ?").bind(&order.0[..]);
    row.fetch_optional(connection).await.map_err(|e| failed(&e))?.as_ref().map(stored).transpose()
}

/// The order of that id and account.
pub(super) async fn owned(connection: &mut Connection, account: AccountId, order: OrderId) -> Result<StoredOrder> {
    find(connection, order).await?.filter(|o| o.account == account).ok_or_else(unknown_order)
}

pub(super) async fn set_state(tx: &mut Connection, order: OrderId, state: OrderState) -> Result<()> {
    let changed = query("UPDATE orders SET state = ? WHERE order_id = ?").bind(state_text(state)).bind(&order.0[..]);
    changed.execute(tx).await.map_err(|e| failed(&e))?;
    Ok(())
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
        let mut tx = self.write().await?;
        let order = &new.order;
        let before = query("SELECT order_id, parameters FROM orders WHERE account = ? AND idempotency_key = ?")
            .bind(&order.account.0[..])
            .bind(&new.idempotency_key)
            .fetch_optional(&mut *tx)
            .await
            .map_err(|e| failed(&e))?;
        if let Some(row) = before {
            if Digest(row.id("parameters")?) != new.parameters {
                return Err(Refusal::new(Code::IdempotencyConflict, "another order was placed with this idempotency key"));
            }
            return owned(&mut tx, order.account, OrderId(row.id("order_id")?)).await;
        }
        check_room(&mut tx, order.account).await?;
        insert(&mut tx, new).await?;
        commit(tx).await?;
        Ok(order.clone())
    }

    async fn order(&self, account: AccountId, order: OrderId) -> Result<StoredOrder> {
        let mut connection = self.pool.acquire().await.map_err(|e| failed(&e))?;
        owned(&mut connection, account, order).await
    }

    async fn authorise(&self, account: AccountId, order: OrderId, confirmation: Digest, now: Time) -> Result<StoredOrder> {
        let mut tx = self.write().await?;
        let mut order = owned(&mut tx, account, order).await?;
        if Digest::of(&order.confirmation) != confirmation {
            return Err(Refusal::new(Code::TermsMismatch, "the agreement is to another confirmation than this order's"));
        }
        check_running(&order, now)?;
        if order.state == OrderState::Confirmed {
            ledger::hold(&mut tx, account, order.order, order.price, now).await?;
            set_state(&mut tx, order.order, OrderState::Authorised).await?;
            order.state = OrderState::Authorised;
        }
        commit(tx).await?;
        Ok(order)
    }

    async fn issue_ticket(&self, ticket: &NewTicket, now: Time, most: u32) -> Result<()> {
        let mut tx = self.write().await?;
        let order = owned(&mut tx, ticket.account, ticket.order).await?;
        check_deliverable(&mut tx, &order, now).await?;
        let open = query("SELECT count(*) AS open FROM tickets WHERE order_id = ? AND expires_at >= ?")
            .bind(&ticket.order.0[..])
            .bind(signed(now.0)?)
            .fetch_one(&mut *tx)
            .await
            .map_err(|e| failed(&e))?;
        if open.number("open")? >= u64::from(most) {
            return Err(Refusal::new(Code::RateLimited, format!("there are {most} unused tickets for this order already")));
        }
        query("INSERT INTO tickets (ticket, order_id, account, expires_at) VALUES (?, ?, ?, ?)")
            .bind(&ticket.ticket.0[..])
            .bind(&ticket.order.0[..])
            .bind(&ticket.account.0[..])
            .bind(signed(ticket.expires_at.0)?)
            .execute(&mut *tx)
            .await
            .map_err(|e| failed(&e))?;
        commit(tx).await
    }

    async fn redeem_ticket(&self, ticket: Digest, account: Option<AccountId>, now: Time) -> Result<StoredOrder> {
        let invalid = || Refusal::new(Code::TicketInvalid, "the ticket is unknown, used or expired");
        let mut tx = self.write().await?;
        let row =
            query("DELETE FROM tickets WHERE ticket = ?1 AND expires_at >= ?2 AND account = coalesce(?3, account) RETURNING order_id")
                .bind(&ticket.0[..])
                .bind(signed(now.0)?)
                .bind(account.map(|a| a.0.to_vec()))
                .fetch_optional(&mut *tx)
                .await
                .map_err(|e| failed(&e))?
                .ok_or_else(invalid)?;
        let order = find(&mut tx, OrderId(row.id("order_id")?)).await?.ok_or_else(invalid)?;
        check_deliverable(&mut tx, &order, now).await?;
        commit(tx).await?;
        Ok(order)
    }

    async fn readmit(&self, account: AccountId, order: OrderId, receipt: &[u8], until: Time) -> Result<StoredOrder> {
        let mut tx = self.write().await?;
        let order = owned(&mut tx, account, order).await?;
        if order.receipt.as_deref() != Some(receipt) {
            return Err(Refusal::new(Code::ReceiptMismatch, "this is not the receipt of that order"));
        }
        query("UPDATE orders SET readmitted_until = max(readmitted_until, ?) WHERE order_id = ?")
            .bind(signed(until.0)?)
            .bind(&order.order.0[..])
            .execute(&mut *tx)
            .await
            .map_err(|e| failed(&e))?;
        commit(tx).await?;
        Ok(order)
    }

    async fn expire(&self, now: Time) -> Result<u64> {
        let mut expired = 0;
        loop {
            let some = self.expire_some(now).await?;
            expired += some;
            if some < u64::from(EXPIRE_AT_ONCE) {
                return Ok(expired);
            }
        }
    }
}

impl SqliteRepository {
    /// One transaction's worth of [`Orders::expire`], so that it holds nobody up for long.
    async fn expire_some(&self, now: Time) -> Result<u64> {
        let mut tx = self.write().await?;
        let late = query("SELECT order_id FROM orders WHERE state IN ('confirmed', 'authorised') AND expires_at < ? LIMIT ?")
            .bind(signed(now.0)?)
            .bind(EXPIRE_AT_ONCE)
            .fetch_all(&mut *tx)
            .await
            .map_err(|e| failed(&e))?;
        for row in &late {
            let order = find(&mut tx, OrderId(row.id("order_id")?)).await?.ok_or_else(unknown_order)?;
            if order.state == OrderState::Authorised {
                ledger::release(&mut tx, order.account, order.order, order.price, now).await?;
            }
            set_state(&mut tx, order.order, OrderState::Expired).await?;
        }
        for statement in [
            "DELETE FROM tickets WHERE expires_at < ?",
            "DELETE FROM sessions WHERE expires_at < ?",
            "DELETE FROM uploads WHERE expires_at < ?",
        ] {
            query(statement).bind(signed(now.0)?).execute(&mut *tx).await.map_err(|e| failed(&e))?;
        }
        commit(tx).await?;
        Ok(late.len() as u64)
    }
}

/// Whether a package may be delivered for this order now.
async fn check_deliverable(tx: &mut Connection, order: &StoredOrder, now: Time) -> Result<()> {
    check_running(order, now)?;
    match order.state {
        OrderState::Authorised => Ok(()),
        OrderState::Settled => {
            let row = query("SELECT readmitted_until FROM orders WHERE order_id = ?").bind(&order.order.0[..]);
            let until = row.fetch_one(tx).await.map_err(|e| failed(&e))?.number("readmitted_until")?;
            if now.0 > until {
                return Err(Refusal::new(Code::OrderState, "the order is settled: show its receipt to download again"));
            }
            Ok(())
        }
        OrderState::Confirmed | OrderState::Expired => Err(Refusal::new(Code::OrderState, "the order was not agreed to")),
    }
}

/// Refuses one more order to somebody who agrees to none.
async fn check_room(tx: &mut Connection, account: AccountId) -> Result<()> {
    let open = query("SELECT count(*) AS open FROM orders WHERE account = ? AND state = 'confirmed'").bind(&account.0[..]);
    let open = open.fetch_one(tx).await.map_err(|e| failed(&e))?.number("open")?;
    if open >= NOT_AGREED_TO {
        return Err(Refusal::new(Code::RateLimited, format!("{open} orders wait for an agreement already")));
    }
    Ok(())
}

async fn insert(tx: &mut Connection, new: &NewOrder) -> Result<()> {
    let order = &new.order;
    query(
        "INSERT INTO orders (order_id, account, manifest, processor, key_mode, price, currency, state, confirmation, idempotency_key,
         parameters, issued_at, expires_at, redownload_until) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&order.order.0[..])
    .bind(&order.account.0[..])
    .bind(&order.manifest.0[..])
    .bind(&order.processor.0[..])
    .bind(order.key_mode.as_str())
    .bind(signed(order.price.minor)?)
    .bind(order.price.currency.as_str())
    .bind(state_text(order.state))
    .bind(&order.confirmation)
    .bind(&new.idempotency_key)
    .bind(&new.parameters.0[..])
    .bind(signed(order.issued_at.0)?)
    .bind(signed(order.expires_at.0)?)
    .bind(signed(order.redownload_until.0)?)
    .execute(tx)
    .await
    .map_err(|e| failed(&e))?;
    Ok(())
}
