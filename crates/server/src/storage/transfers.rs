//! Transfers of orders to other processors.

use super::books::Books;
use super::orders;
use super::sql::{Row, Tx, all, first, number, signed, values};
use chipbound_wire::documents::Terms;
use chipbound_wire::signed::read_claims;
use chipbound_wire::{AccountId, Code, KeyId, OrderId, Refusal, Result, Time};

/// Why the old processor opens nothing of the order.
#[derive(Clone)]
pub enum Leaving {
    /// It said so itself: the signed retirement.
    Retired(Vec<u8>),
    /// The authority withdrew its certificate.
    Revoked,
    /// Nothing was ever delivered to it.
    Unreached,
}

/// An order that is to be for another processor.
#[derive(Clone)]
pub struct NewTransfer {
    /// The order.
    pub order: OrderId,
    /// Its owner.
    pub account: AccountId,
    /// The processor that it is for.
    pub from: KeyId,
    /// The one that it is to be for.
    pub to: KeyId,
    /// Why that one may be passed over.
    pub leaving: Leaving,
    /// The signed transfer.
    pub transfer: Vec<u8>,
    /// When.
    pub at: Time,
}

/// Transfers of orders to other processors.
pub trait Transfers {
    /// Makes the order another processor's: nothing is delivered to the old one any more. A repeat returns the bytes that were kept first.
    /// Refuses [`chipbound_wire::Code::OrderState`] where the order is not settled, [`chipbound_wire::Code::Conflict`] where it is not, or
    /// not any more, for the old one, or where that one was reached after all, and [`chipbound_wire::Code::OrderRetired`] where the new
    /// one gave it up before.
    fn transfer(&self, new: &NewTransfer) -> impl Future<Output = Result<Vec<u8>>> + Send;
    /// The signed transfer by which the order came to that processor.
    fn transfer_to(&self, order: OrderId, to: KeyId) -> impl Future<Output = Result<Option<Vec<u8>>>> + Send;
    /// Whether anything of the order was delivered to that processor: a seal of it is on record.
    fn reached(&self, order: OrderId, processor: KeyId) -> impl Future<Output = Result<bool>> + Send;
    /// Whether that processor gave the order up, or lost it because it was revoked.
    fn gave_up(&self, order: OrderId, processor: KeyId) -> impl Future<Output = Result<bool>> + Send;
    /// The signed terms and the acknowledgement of the order's newest acknowledged delivery, if there is any.
    fn acknowledged(&self, order: OrderId) -> impl Future<Output = Result<Option<(Vec<u8>, Vec<u8>)>>> + Send;
}

const FIND: &str = "SELECT transfer FROM transfers WHERE order_id = $1 AND to_processor = $2";

fn transfer(tx: &dyn Tx, new: &NewTransfer) -> Result<Vec<u8>> {
    let order = orders::locked(tx, new.account, new.order)?;
    if order.processor == new.to
        && let Some(done) = first(tx, FIND, values![&new.order, &new.to], |row| row.bytes("transfer"))?
    {
        return Ok(done);
    }
    if !order.state.is_paid() {
        return Err(Refusal::new(
            Code::OrderState,
            "only what is paid is transferred: let the delivery end first, or leave the order, which runs out by itself",
        ));
    }
    if order.processor != new.from {
        return Err(Refusal::new(Code::Conflict, format!("the order is for processor {}", order.processor)));
    }
    if gave_up(tx, new.order, new.to)? {
        return Err(Refusal::new(Code::OrderRetired, "that processor gave this order up before"));
    }
    if matches!(new.leaving, Leaving::Unreached) && reached(tx, new.order, new.from)? {
        return Err(Refusal::new(Code::Conflict, "a delivery reached the order's processor meanwhile: it is asked to give the order up"));
    }
    let retirement = if let Leaving::Retired(word) = &new.leaving { Some(word) } else { None };
    tx.put(
        "INSERT INTO transfers (order_id, from_processor, to_processor, retirement, transfer, at) VALUES ($1, $2, $3, $4, $5, $6)",
        values![&new.order, &new.from, &new.to, retirement, &new.transfer, signed(new.at.0)?],
    )?;
    tx.put("UPDATE orders SET processor = $1 WHERE order_id = $2", values![&new.to, &new.order])?;
    tx.put("DELETE FROM tickets WHERE order_id = $1", values![&new.order])?;
    Ok(new.transfer.clone())
}

/// Looks into the terms of each delivery: clocks are set back, so that the newest is not the last.
fn reached(tx: &dyn Tx, order: OrderId, processor: KeyId) -> Result<bool> {
    let page = "SELECT seal_digest, terms FROM deliveries WHERE order_id = $1 AND seal_digest > $2 ORDER BY seal_digest LIMIT 64";
    let both = |row: &dyn Row| Ok((row.id::<32>("seal_digest")?, row.bytes("terms")?));
    let mut after = Vec::new();
    loop {
        let deliveries = all(tx, page, values![&order, &after], both)?;
        for (_, terms) in &deliveries {
            if read_claims::<Terms>(terms)?.processor == processor {
                return Ok(true);
            }
        }
        match deliveries.last() {
            Some((seal, _)) => after = seal.to_vec(),
            None => return Ok(false),
        }
    }
}

fn gave_up(tx: &dyn Tx, order: OrderId, processor: KeyId) -> Result<bool> {
    let count = "SELECT count(*) AS n FROM transfers WHERE order_id = $1 AND from_processor = $2";
    Ok(number(tx, count, values![&order, &processor])? > 0)
}

impl Transfers for Books {
    async fn transfer(&self, new: &NewTransfer) -> Result<Vec<u8>> {
        let new = new.clone();
        self.write(move |tx: &dyn Tx| transfer(tx, &new)).await
    }

    async fn transfer_to(&self, order: OrderId, to: KeyId) -> Result<Option<Vec<u8>>> {
        self.read(move |books: &dyn Tx| first(books, FIND, values![&order, &to], |row| row.bytes("transfer"))).await
    }

    async fn reached(&self, order: OrderId, processor: KeyId) -> Result<bool> {
        self.read(move |books: &dyn Tx| reached(books, order, processor)).await
    }

    async fn gave_up(&self, order: OrderId, processor: KeyId) -> Result<bool> {
        self.read(move |books: &dyn Tx| gave_up(books, order, processor)).await
    }

    async fn acknowledged(&self, order: OrderId) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let find = "SELECT terms, acknowledgement FROM deliveries WHERE order_id = $1 AND acknowledgement IS NOT NULL
                    ORDER BY created_at DESC LIMIT 1";
        let both = |row: &dyn Row| Ok((row.bytes("terms")?, row.bytes("acknowledgement")?));
        self.read(move |books: &dyn Tx| first(books, find, values![&order], both)).await
    }
}
