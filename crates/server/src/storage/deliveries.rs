//! Deliveries, acknowledgement, capture, receipts.

use super::books::Books;
use super::log::{self, Opened};
use super::sql::{Row, Tx, all, first, number, signed, unreadable, values};
use super::states::{refusal, step};
use super::{Deliveries, Delivery, ReceiptEntry, SettledOrder, Settlement, Settling, StoredOrder, StoredReceipt, ledger, orders, payments};
use chipbound_wire::api::OrderState;
use chipbound_wire::{AccountId, Code, Digest, OrderId, Refusal, Result, Time};
use std::collections::{BTreeMap, HashMap};

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
            let order = orders::locked_of_anybody(tx, new.order)?;
            match order.state {
                OrderState::Cancelled | OrderState::Expired | OrderState::Refunded | OrderState::Confirmed => {
                    return Err(refusal(order.state));
                }
                OrderState::Authorised => {
                    return Err(Refusal::new(Code::OrderState, "no delivery of the order was begun: ask for a ticket and show it first"));
                }
                _ => {}
            }
            tx.put(
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
        };
        self.write(record).await
    }

    async fn delivery(&self, order: OrderId, seal: Digest) -> Result<Delivery> {
        let find = "SELECT * FROM deliveries WHERE seal_digest = $1 AND order_id = $2";
        let found = self.read(move |books: &dyn Tx| first(books, find, values![&seal, &order], delivery)).await?;
        found.ok_or_else(no_such_delivery)
    }

    async fn acknowledge(&self, settlement: &Settlement) -> Result<StoredOrder> {
        let settlement = settlement.clone();
        let acknowledge = move |tx: &dyn Tx| {
            let mut order = orders::locked(tx, settlement.account, settlement.order)?;
            kept_token(tx, &settlement)?;
            acknowledge(tx, &mut order, &settlement)?;
            keep(tx, &order, Some(&settlement), None)?;
            Ok(order)
        };
        self.write(acknowledge).await
    }

    async fn request_capture(&self, order: OrderId, key: &str) -> Result<String> {
        let key = key.to_owned();
        let request = move |tx: &dyn Tx| {
            let mut order = orders::locked_of_anybody(tx, order)?;
            request_capture(tx, &mut order, &key)
        };
        self.write(request).await
    }

    async fn settle(&self, batch: Vec<Settling>) -> Result<Vec<SettledOrder>> {
        self.write(move |tx: &dyn Tx| settle_all(tx, &batch)).await
    }

    async fn receipts(&self, account: AccountId, before: (Time, OrderId), most: u32) -> Result<Vec<StoredReceipt>> {
        let list = "SELECT order_id, issued_at, receipt FROM receipts WHERE account = $1 AND (issued_at, order_id) < ($2, $3)
                    ORDER BY issued_at DESC, order_id DESC LIMIT $4";
        let read = |row: &dyn Row| {
            let (order, issued_at) = (OrderId(row.id("order_id")?), Time(row.number("issued_at")?));
            Ok(StoredReceipt { order, issued_at, receipt: row.bytes("receipt")? })
        };
        let issued_at = signed(before.0.0)?;
        self.read_long(move |books: &dyn Tx| all(books, list, values![&account, issued_at, &before.1, most], read)).await
    }
}

/// The receipts of a batch on their way into the log.
#[derive(Default)]
struct Entered {
    log: Option<Opened>,
    orders: Vec<OrderId>,
}

/// Takes each order to its release, and enters all receipts in the log under one checkpoint. Orders are locked in one order everywhere
/// and before the log, the log before a seller's numbers: two servers never wait for each other.
fn settle_all(tx: &dyn Tx, batch: &[Settling]) -> Result<Vec<SettledOrder>> {
    let mut orders: BTreeMap<_, _> = batch.iter().map(|Settling { settlement, .. }| (settlement.order, None)).collect();
    for (id, order) in &mut orders {
        *order = Some(orders::locked_of_anybody(tx, *id)?);
    }
    let mut entered = Entered::default();
    let settle = |settling: &Settling| {
        let order = orders.get_mut(&settling.settlement.order).and_then(Option::as_mut).ok_or_else(orders::unknown_order)?;
        settle_one(tx, order, settling, &mut entered)
    };
    let mut settled = batch.iter().map(settle).collect::<Result<Vec<_>>>()?;
    let proofs = match (entered.log, batch.last()) {
        (Some(log), Some(Settling { settlement, .. })) => log.close(tx, &settlement.log, settlement.at)?,
        _ => Vec::new(),
    };
    let proofs: HashMap<_, _> = entered.orders.into_iter().zip(proofs).collect();
    for (settled, Settling { settlement, .. }) in settled.iter_mut().zip(batch) {
        settled.proof = match proofs.get(&settlement.order) {
            Some(proof) => Some(proof.clone()),
            None => log::proof(tx, settlement.order)?,
        };
    }
    Ok(settled)
}

/// The way from wherever the order stands to its release.
fn settle_one(tx: &dyn Tx, order: &mut StoredOrder, settling: &Settling, entered: &mut Entered) -> Result<SettledOrder> {
    let settlement = &settling.settlement;
    if order.account != settlement.account {
        return Err(orders::unknown_order());
    }
    let token = match kept_token(tx, settlement)? {
        Some(token) => token,
        None => keep_token(tx, settlement)?,
    };
    if !order.state.is_paid() {
        acknowledge(tx, order, settlement)?;
        if order.state == OrderState::Acknowledged {
            step(order, OrderState::CaptureRequested)?;
        }
        capture(tx, order, settling, entered)?;
        step(order, OrderState::Released)?;
        keep(tx, order, Some(settlement), Some(&settlement.capture_key()))?;
    } else if order.state == OrderState::Captured {
        step(order, OrderState::Released)?;
        orders::save(tx, order)?;
    }
    Ok(SettledOrder { receipt: order.receipt.clone().ok_or_else(unreadable)?, token, proof: None })
}

/// The token that the acknowledged delivery has already, if it has one.
fn kept_token(tx: &dyn Tx, settlement: &Settlement) -> Result<Option<Vec<u8>>> {
    let find = "SELECT token FROM deliveries WHERE seal_digest = $1 AND order_id = $2";
    let found = first(tx, find, values![&settlement.seal, &settlement.order], |row| row.optional_bytes("token"))?;
    found.ok_or_else(no_such_delivery)
}

fn keep_token(tx: &dyn Tx, settlement: &Settlement) -> Result<Vec<u8>> {
    let keep = "UPDATE deliveries SET token = $1, acknowledgement = $2 WHERE seal_digest = $3";
    tx.put(keep, values![&settlement.token, &settlement.acknowledgement, &settlement.seal])?;
    Ok(settlement.token.clone())
}

/// Step 1008. What ran out is held once more, within one more term of the order.
fn acknowledge(tx: &dyn Tx, order: &mut StoredOrder, settlement: &Settlement) -> Result<()> {
    if matches!(order.state, OrderState::Acknowledged | OrderState::CaptureRequested) || order.state.is_paid() {
        return Ok(()); // It was acknowledged before.
    }
    let late = settlement.at > order.expires_at;
    if late && settlement.at.0 - order.expires_at.0 > order.expires_at.0.saturating_sub(order.issued_at.0) {
        return Err(refusal(OrderState::Expired));
    }
    let expired = order.state == OrderState::Expired;
    step(order, OrderState::Acknowledged)?;
    if expired {
        orders::hold(tx, order, settlement.at).map_err(|refused| match refused.code {
            Code::InsufficientFunds => Refusal::new(Code::OrderExpired, format!("the order ran out, and {}", refused.detail)),
            _ => refused,
        })?;
    }
    Ok(())
}

/// Writes down where the order stands, with what was first said of it: which delivery was acknowledged, and under which key the price is
/// asked for.
fn keep(tx: &dyn Tx, order: &StoredOrder, settlement: Option<&Settlement>, key: Option<&str>) -> Result<()> {
    let keep = "UPDATE orders SET state = $1, holds = $2, seal_digest = coalesce(seal_digest, $3),
                acknowledgement = coalesce(acknowledgement, $4), capture_key = coalesce(capture_key, $5) WHERE order_id = $6";
    let (seal, said) = (settlement.map(|s| &s.seal), settlement.map(|s| &s.acknowledgement));
    tx.put(keep, values![order.state.as_str(), signed(order.holds)?, seal, said, key, &order.order])
}

/// Writes down under which key the price is asked for, before anybody is asked; returns the key that counts.
fn request_capture(tx: &dyn Tx, order: &mut StoredOrder, key: &str) -> Result<String> {
    if order.state == OrderState::CaptureRequested {
        let kept = first(tx, "SELECT capture_key FROM orders WHERE order_id = $1", values![&order.order], |row| row.text("capture_key"))?;
        return kept.ok_or_else(unreadable);
    }
    step(order, OrderState::CaptureRequested)?;
    keep(tx, order, None, Some(key))?;
    Ok(key.to_owned())
}

/// Takes the price, once: the ledger's entry, the number, the receipt that says so, and its place in the log.
fn capture(tx: &dyn Tx, order: &mut StoredOrder, settling: &Settling, entered: &mut Entered) -> Result<()> {
    let at = settling.settlement.at;
    payments::check_taken(tx, order.order)?;
    step(order, OrderState::Captured)?;
    let entry = ledger::capture(tx, order, &settling.settlement.shares, at)?;
    let log = match &mut entered.log {
        Some(log) => log,
        none => none.insert(log::open(tx)?),
    };
    let (number, index) = (next_number(tx, &order.seller)?, log.next());
    let receipt = (settling.receipt)(&ReceiptEntry { number, payment: format!("entry-{entry}"), seller: order.seller, index })?;
    let insert = "INSERT INTO receipts (seller, number, order_id, account, receipt, issued_at, log_index)
                  VALUES ($1, $2, $3, $4, $5, $6, $7)";
    let values = values![&order.seller, signed(number)?, &order.order, &order.account, &receipt, signed(at.0)?, signed(index)?];
    tx.put(insert, values)?;
    log.enter(&receipt);
    entered.orders.push(order.order);
    order.receipt = Some(receipt);
    Ok(())
}

/// The seller's next receipt number. Whoever takes one holds the seller's row until the transaction ends, so that there are no gaps.
fn next_number(tx: &dyn Tx, seller: &AccountId) -> Result<u64> {
    let count = "INSERT INTO sellers (seller, receipts) VALUES ($1, 1) ON CONFLICT (seller) DO UPDATE SET receipts = sellers.receipts + 1
                 RETURNING receipts AS n";
    number(tx, count, values![seller])
}
