//! Deliveries, settlement and receipts.

use super::{Columns, Connection, SqliteRepository, commit, failed, ledger, orders, signed};
use crate::storage::{Deliveries, Delivery, MakeReceipt, ReceiptEntry, SettledOrder, Settlement, StoredOrder};
use chipbound_wire::api::OrderState;
use chipbound_wire::{AccountId, Code, Digest, OrderId, Refusal, Result, Time};
use sqlx::{Row, query};

/// Receipts in one answer.
const RECEIPTS: u32 = 256;

fn no_such_delivery() -> Refusal {
    Refusal::new(Code::AcknowledgementMismatch, "no package with that seal was sent for this order")
}

impl Deliveries for SqliteRepository {
    async fn record_delivery(&self, delivery: &Delivery) -> Result<()> {
        query(
            "INSERT INTO deliveries (terms_digest, order_id, terms, wrap, kem, sealing_key, release_secret, seal, seal_digest, created_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&Digest::of(&delivery.terms).0[..])
        .bind(&delivery.order.0[..])
        .bind(&delivery.terms)
        .bind(&delivery.wrap)
        .bind(delivery.kem.as_str())
        .bind(&delivery.sealing_key)
        .bind(&delivery.release_secret)
        .bind(&delivery.seal)
        .bind(&Digest::of(&delivery.seal).0[..])
        .bind(signed(delivery.created_at.0)?)
        .execute(&self.pool)
        .await
        .map_err(|e| failed(&e))?;
        Ok(())
    }

    async fn delivery(&self, order: OrderId, seal: Digest) -> Result<Delivery> {
        let row = query("SELECT * FROM deliveries WHERE seal_digest = ? AND order_id = ?").bind(&seal.0[..]).bind(&order.0[..]);
        let row = row.fetch_optional(&self.pool).await.map_err(|e| failed(&e))?.ok_or_else(no_such_delivery)?;
        Ok(Delivery {
            order,
            terms: row.bytes("terms")?,
            wrap: row.bytes("wrap")?,
            kem: row.parsed("kem")?,
            sealing_key: row.bytes("sealing_key")?,
            release_secret: row.bytes("release_secret")?,
            seal: row.bytes("seal")?,
            created_at: Time(row.number("created_at")?),
        })
    }

    async fn settle(&self, settlement: &Settlement<'_>, make: &MakeReceipt<'_>) -> Result<SettledOrder> {
        let mut tx = self.write().await?;
        let order = orders::owned(&mut tx, settlement.account, settlement.order).await?;
        let token = keep_token(&mut tx, settlement).await?;
        let receipt = match &order.receipt {
            Some(receipt) => receipt.clone(),
            None => capture(&mut tx, &order, settlement.at, make).await?,
        };
        commit(tx).await?;
        Ok(SettledOrder { receipt, token })
    }

    async fn receipts(&self, account: AccountId) -> Result<Vec<Vec<u8>>> {
        let rows = query("SELECT receipt FROM receipts WHERE account = ? ORDER BY number DESC LIMIT ?").bind(&account.0[..]).bind(RECEIPTS);
        rows.fetch_all(&self.pool).await.map_err(|e| failed(&e))?.iter().map(|row| row.bytes("receipt")).collect()
    }
}

/// The token of the acknowledged delivery: the one it has, or else the one of this settlement.
async fn keep_token(tx: &mut Connection, settlement: &Settlement<'_>) -> Result<Vec<u8>> {
    let row = query("SELECT token FROM deliveries WHERE seal_digest = ? AND order_id = ?")
        .bind(&settlement.seal.0[..])
        .bind(&settlement.order.0[..])
        .fetch_optional(&mut *tx)
        .await
        .map_err(|e| failed(&e))?
        .ok_or_else(no_such_delivery)?;
    if let Some(token) = row.try_get("token").map_err(|e| failed(&e))? {
        return Ok(token);
    }
    query("UPDATE deliveries SET token = ?, acknowledgement = ? WHERE seal_digest = ?")
        .bind(settlement.token)
        .bind(settlement.acknowledgement)
        .bind(&settlement.seal.0[..])
        .execute(tx)
        .await
        .map_err(|e| failed(&e))?;
    Ok(settlement.token.to_vec())
}

/// Captures the price, once, and keeps the receipt that says so.
async fn capture(tx: &mut Connection, order: &StoredOrder, at: Time, make: &MakeReceipt<'_>) -> Result<Vec<u8>> {
    orders::check_running(order, at)?;
    if order.state != OrderState::Authorised {
        return Err(Refusal::new(Code::OrderState, "the order was not agreed to: nothing is held for it"));
    }
    let vendor = query("SELECT vendor FROM releases WHERE manifest = ?").bind(&order.manifest.0[..]);
    let vendor = AccountId(vendor.fetch_one(&mut *tx).await.map_err(|e| failed(&e))?.id("vendor")?);
    let entry = ledger::capture(tx, order.account, vendor, order.order, order.price, at).await?;
    let last = query("SELECT coalesce(max(number), 0) AS last FROM receipts").fetch_one(&mut *tx).await.map_err(|e| failed(&e))?;
    let number = last.number("last")? + 1;
    let receipt = make(&ReceiptEntry { number, payment: format!("entry-{entry}") })?;
    query("INSERT INTO receipts (number, order_id, account, receipt) VALUES (?, ?, ?, ?)")
        .bind(signed(number)?)
        .bind(&order.order.0[..])
        .bind(&order.account.0[..])
        .bind(&receipt)
        .execute(&mut *tx)
        .await
        .map_err(|e| failed(&e))?;
    orders::set_state(tx, order.order, OrderState::Settled).await?;
    Ok(receipt)
}
