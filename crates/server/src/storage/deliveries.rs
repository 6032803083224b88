//! Deliveries, settlement and receipts.

use super::books::Books;
use super::sql::{Lock, Row, Tx, all, first, number, signed, unreadable, values};
use super::{Deliveries, Delivery, MakeReceipt, ReceiptEntry, SettledOrder, Settlement, StoredOrder, ledger, log, orders};
use chipbound_wire::api::OrderState;
use chipbound_wire::{AccountId, Code, Digest, OrderId, Refusal, Result, Time};

/// Receipts in one answer.
const RECEIPTS: u32 = 256;

fn no_such_delivery() -> Refusal {
    Refusal::new(Code::AcknowledgementMismatch, "no package with that seal was sent for this order")
}

fn delivery(row: &dyn Row) -> Result<Delivery> {
    Ok(Delivery {
        order: OrderId(row.id("order_id")?),
        terms: row.bytes("terms")?,
        wrap: row.bytes("wrap")?,
        kem: row.parsed("kem")?,
        sealing_key: row.bytes("sealing_key")?,
        release_secret: row.bytes("release_secret")?,
        content_key: row.bytes("content_key")?,
        seal: row.bytes("seal")?,
        created_at: Time(row.number("created_at")?),
    })
}

impl Deliveries for Books {
    async fn record_delivery(&self, delivery: &Delivery) -> Result<()> {
        let new = delivery.clone();
        let record = move |tx: &dyn Tx| {
            tx.execute(
                "INSERT INTO deliveries (terms_digest, order_id, terms, wrap, kem, sealing_key, release_secret, content_key, seal,
                 seal_digest, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                values![
                    &Digest::of(&new.terms),
                    &new.order,
                    &new.terms,
                    &new.wrap,
                    new.kem.as_str(),
                    &new.sealing_key,
                    &new.release_secret,
                    &new.content_key,
                    &new.seal,
                    &Digest::of(&new.seal),
                    signed(new.created_at.0)?,
                ],
            )
            .map(drop)
        };
        self.write(record).await
    }

    async fn delivery(&self, order: OrderId, seal: Digest) -> Result<Delivery> {
        let find = "SELECT * FROM deliveries WHERE seal_digest = $1 AND order_id = $2";
        let found = self.read(move |books: &dyn Tx| first(books, find, values![&seal, &order], delivery)).await?;
        found.ok_or_else(no_such_delivery)
    }

    async fn settle(&self, settlement: Settlement, make: MakeReceipt) -> Result<SettledOrder> {
        let settle = move |tx: &dyn Tx| {
            let order = orders::locked(tx, settlement.account, settlement.order)?;
            let token = keep_token(tx, &settlement)?;
            let (receipt, proof) = match order.receipt.clone() {
                Some(receipt) => (receipt, log::proof(tx, order.order)?),
                None => capture(tx, &order, &settlement, &make)?,
            };
            Ok(SettledOrder { receipt, token, proof })
        };
        self.write(settle).await
    }

    async fn receipts(&self, account: AccountId) -> Result<Vec<Vec<u8>>> {
        let list = "SELECT receipt FROM receipts WHERE account = $1 ORDER BY number DESC LIMIT $2";
        self.read_long(move |books: &dyn Tx| all(books, list, values![&account, RECEIPTS], |row| row.bytes("receipt"))).await
    }
}

/// The token of the acknowledged delivery: the one it has, or else the one of this settlement.
fn keep_token(tx: &dyn Tx, settlement: &Settlement) -> Result<Vec<u8>> {
    let (seal, order) = (&settlement.seal, &settlement.order);
    let find = "SELECT token FROM deliveries WHERE seal_digest = $1 AND order_id = $2";
    let kept = first(tx, find, values![seal, order], |row| row.optional_bytes("token"))?.ok_or_else(no_such_delivery)?;
    if let Some(token) = kept {
        return Ok(token);
    }
    let keep = "UPDATE deliveries SET token = $1, acknowledgement = $2 WHERE seal_digest = $3";
    tx.execute(keep, values![&settlement.token, &settlement.acknowledgement, seal])?;
    Ok(settlement.token.clone())
}

/// Captures the price, once, and keeps the receipt that says so, numbered and entered in the log; returns it with its proof.
fn capture(tx: &dyn Tx, order: &StoredOrder, settlement: &Settlement, make: &MakeReceipt) -> Result<(Vec<u8>, Option<String>)> {
    let at = settlement.at;
    orders::check_running(order, at)?;
    if order.state != OrderState::Authorised {
        return Err(Refusal::new(Code::OrderState, "the order was not agreed to: nothing is held for it"));
    }
    let vendor = first(tx, "SELECT vendor FROM releases WHERE manifest = $1", values![&order.manifest], |row| row.id("vendor"))?;
    let vendor = AccountId(vendor.ok_or_else(unreadable)?);
    let entry = ledger::capture(tx, order.account, vendor, order.order, order.price, at)?;
    tx.alone(Lock::Numbering)?;
    let next = number(tx, "SELECT coalesce(max(number), 0) + 1 AS n FROM receipts", &[])?;
    let mut log = log::open(tx)?;
    let index = log.next();
    let receipt = make(&ReceiptEntry { number: next, payment: format!("entry-{entry}"), seller: vendor, index })?;
    let insert = "INSERT INTO receipts (number, order_id, account, receipt, log_index) VALUES ($1, $2, $3, $4, $5)";
    tx.execute(insert, values![signed(next)?, &order.order, &order.account, &receipt, signed(index)?])?;
    log.enter(&receipt);
    let proof = log.close(tx, &settlement.log, at)?.pop();
    orders::set_state(tx, order.order, OrderState::Settled)?;
    Ok((receipt, proof))
}
