//! Transfers of orders to other processors.

use super::books::Books;
use super::sql::{Row, Tx, first, number, signed, values};
use super::{NewTransfer, Transfers, orders};
use chipbound_wire::{Code, KeyId, OrderId, Refusal, Result};

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
    tx.put(
        "INSERT INTO transfers (order_id, from_processor, to_processor, retirement, transfer, at) VALUES ($1, $2, $3, $4, $5, $6)",
        values![&new.order, &new.from, &new.to, new.retirement.as_ref(), &new.transfer, signed(new.at.0)?],
    )?;
    tx.put("UPDATE orders SET processor = $1 WHERE order_id = $2", values![&new.to, &new.order])?;
    tx.put("DELETE FROM tickets WHERE order_id = $1", values![&new.order])?;
    Ok(new.transfer.clone())
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
