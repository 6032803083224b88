//! Deliveries, settlement and receipts.

use super::{Columns, SqliteRepository, all, execute, first, ledger, number, orders, signed, unreadable};
use crate::storage::{Deliveries, Delivery, MakeReceipt, ReceiptEntry, SettledOrder, Settlement, StoredOrder};
use chipbound_wire::api::OrderState;
use chipbound_wire::{AccountId, Code, Digest, OrderId, Refusal, Result, Time};
use rusqlite::{Connection, Row, params};

/// Receipts in one answer.
const RECEIPTS: u32 = 256;

fn no_such_delivery() -> Refusal {
    Refusal::new(Code::AcknowledgementMismatch, "no package with that seal was sent for this order")
}

fn delivery(row: &Row<'_>) -> Result<Delivery> {
    Ok(Delivery {
        order: OrderId(row.id("order_id")?),
        terms: row.bytes("terms")?,
        wrap: row.bytes("wrap")?,
        kem: row.parsed("kem")?,
        sealing_key: row.bytes("sealing_key")?,
        release_secret: row.bytes("release_secret")?,
        seal: row.bytes("seal")?,
        created_at: Time(row.number("created_at")?),
    })
}

impl Deliveries for SqliteRepository {
    async fn record_delivery(&self, delivery: &Delivery) -> Result<()> {
        let new = delivery.clone();
        let record = move |tx: &_| {
            execute(
                tx,
                "INSERT INTO deliveries (terms_digest, order_id, terms, wrap, kem, sealing_key, release_secret, seal, seal_digest,
                 created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                params![
                    Digest::of(&new.terms).0,
                    new.order.0,
                    new.terms,
                    new.wrap,
                    new.kem.as_str(),
                    new.sealing_key,
                    new.release_secret,
                    new.seal,
                    Digest::of(&new.seal).0,
                    signed(new.created_at.0)?,
                ],
            )
            .map(drop)
        };
        self.connections.write(record).await
    }

    async fn delivery(&self, order: OrderId, seal: Digest) -> Result<Delivery> {
        let find = "SELECT * FROM deliveries WHERE seal_digest = ? AND order_id = ?";
        self.connections.read(|books| first(books, find, params![seal.0, order.0], delivery))?.ok_or_else(no_such_delivery)
    }

    async fn settle(&self, settlement: Settlement, make: MakeReceipt) -> Result<SettledOrder> {
        let settle = move |tx: &_| {
            let order = orders::owned(tx, settlement.account, settlement.order)?;
            let token = keep_token(tx, &settlement)?;
            let receipt = match order.receipt.clone() {
                Some(receipt) => receipt,
                None => capture(tx, &order, settlement.at, make)?,
            };
            Ok(SettledOrder { receipt, token })
        };
        self.connections.write(settle).await
    }

    async fn receipts(&self, account: AccountId) -> Result<Vec<Vec<u8>>> {
        let list = "SELECT receipt FROM receipts WHERE account = ? ORDER BY number DESC LIMIT ?";
        self.connections.read_long(move |books| all(books, list, params![account.0, RECEIPTS], |row| row.bytes("receipt"))).await
    }
}

/// The token of the acknowledged delivery: the one it has, or else the one of this settlement.
fn keep_token(tx: &Connection, settlement: &Settlement) -> Result<Vec<u8>> {
    let (seal, order) = (settlement.seal.0, settlement.order.0);
    let find = "SELECT token FROM deliveries WHERE seal_digest = ? AND order_id = ?";
    let kept = first(tx, find, params![seal, order], |row| row.column::<Option<Vec<u8>>>("token"))?.ok_or_else(no_such_delivery)?;
    if let Some(token) = kept {
        return Ok(token);
    }
    let keep = "UPDATE deliveries SET token = ?, acknowledgement = ? WHERE seal_digest = ?";
    execute(tx, keep, params![settlement.token, settlement.acknowledgement, seal])?;
    Ok(settlement.token.clone())
}

/// Captures the price, once, and keeps the receipt that says so.
fn capture(tx: &Connection, order: &StoredOrder, at: Time, make: MakeReceipt) -> Result<Vec<u8>> {
    orders::check_running(order, at)?;
    if order.state != OrderState::Authorised {
        return Err(Refusal::new(Code::OrderState, "the order was not agreed to: nothing is held for it"));
    }
    let vendor = first(tx, "SELECT vendor FROM releases WHERE manifest = ?", [order.manifest.0], |row| row.id("vendor"))?;
    let vendor = AccountId(vendor.ok_or_else(unreadable)?);
    let entry = ledger::capture(tx, order.account, vendor, order.order, order.price, at)?;
    let next = number(tx, "SELECT coalesce(max(number), 0) + 1 FROM receipts", [])?;
    let receipt = make(&ReceiptEntry { number: next, payment: format!("entry-{entry}") })?;
    let insert = "INSERT INTO receipts (number, order_id, account, receipt) VALUES (?, ?, ?, ?)";
    execute(tx, insert, params![signed(next)?, order.order.0, order.account.0, receipt])?;
    orders::set_state(tx, order.order, OrderState::Settled)?;
    Ok(receipt)
}
