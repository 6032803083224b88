//! Orders, holds and tickets.

use super::books::Books;
use super::sql::{Row, Tx, all, first, number, signed, values};
use super::states::{refusal, step};
use super::{NewOrder, NewTicket, Orders, StoredOrder, Unsettled, ledger, payments};
use chipbound_wire::api::OrderState;
use chipbound_wire::{AccountId, Code, Digest, KeyId, OrderId, Refusal, Result, Time};
use std::collections::{BTreeMap, BTreeSet};

/// Seconds for which a session that ran out is kept: a clock that stands a year ahead for a while logs nobody out.
const SESSIONS_KEPT: u64 = 400 * 24 * 3600;
/// Orders whose holds are given back in one transaction.
const EXPIRE_AT_ONCE: u32 = 200;
/// Orders of one account that wait for its agreement at once.
const NOT_AGREED_TO: u32 = 256;
/// Orders that wait for their capture, in one answer.
const UNSETTLED: u32 = 1000;

pub(super) fn unknown_order() -> Refusal {
    Refusal::new(Code::UnknownOrder, "there is no such order of this account")
}

pub(super) fn stored(row: &dyn Row) -> Result<StoredOrder> {
    Ok(StoredOrder { receipt: row.optional_bytes("receipt")?, ..without_receipt(row)? })
}

fn without_receipt(row: &dyn Row) -> Result<StoredOrder> {
    Ok(StoredOrder {
        order: OrderId(row.id("order_id")?),
        account: AccountId(row.id("account")?),
        manifest: Digest(row.id("manifest")?),
        seller: AccountId(row.id("seller")?),
        processor: KeyId(row.id("processor")?),
        key_mode: row.parsed("key_mode")?,
        price: row.amount()?,
        state: row.parsed("state")?,
        confirmation: row.bytes("confirmation")?,
        issued_at: Time(row.number("issued_at")?),
        expires_at: Time(row.number("expires_at")?),
        redownload_until: Time(row.number("redownload_until")?),
        holds: row.number("holds")?,
        receipt: None,
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
    find_locked(tx, order)?.filter(|o| o.account == account).ok_or_else(unknown_order)
}

/// The order of that id, whosever it is, locked until the transaction ends.
pub(super) fn locked_of_anybody(tx: &dyn Tx, order: OrderId) -> Result<StoredOrder> {
    find_locked(tx, order)?.ok_or_else(unknown_order)
}

fn find_locked(tx: &dyn Tx, order: OrderId) -> Result<Option<StoredOrder>> {
    let find = "SELECT * FROM orders WHERE order_id = $1 FOR UPDATE";
    let mut found = first(tx, find, values![&order], without_receipt)?;
    if let Some(order) = &mut found {
        find_receipt(tx, order)?;
    }
    Ok(found)
}

/// An order that waits for its agreement, and where its price can come from, as they stand until the transaction ends; the order is
/// locked. None where it does not wait, or its customer has no funds at all.
fn confirmed_with_funds(tx: &dyn Tx, order: OrderId) -> Result<Option<(StoredOrder, ledger::Source)>> {
    let find = "SELECT o.*, b.minor AS free, p.state AS payment_state FROM orders o
                JOIN balances b ON b.account = o.account AND b.book = 'funds' AND b.currency = o.currency
                LEFT JOIN payments p ON p.order_id = o.order_id
                WHERE o.order_id = $1 AND o.state = 'confirmed' FOR UPDATE OF b";
    first(tx, find, values![&order], |row| {
        Ok((without_receipt(row)?, ledger::Source { free: row.integer("free")?, payment: payments::state(row)? }))
    })
}

/// The orders of these ids, locked in their order until the transaction ends; [`Code::UnknownOrder`] where one is not there.
pub(super) fn locked_all(tx: &dyn Tx, orders: &BTreeSet<OrderId>) -> Result<BTreeMap<OrderId, StoredOrder>> {
    let find = "SELECT * FROM orders WHERE order_id = ANY($1) ORDER BY order_id FOR UPDATE";
    let keys: Vec<&[u8]> = orders.iter().map(AsRef::as_ref).collect();
    let mut found = BTreeMap::new();
    tx.query_keys(find, &keys, &mut |row| {
        let order = without_receipt(row)?;
        found.insert(order.order, order);
        Ok(())
    })?;
    found.values_mut().try_for_each(|order| find_receipt(tx, order))?;
    if found.len() < orders.len() { Err(unknown_order()) } else { Ok(found) }
}

/// Completes an order that was read by itself.
fn find_receipt(tx: &dyn Tx, order: &mut StoredOrder) -> Result<()> {
    if order.state.is_paid() || order.state == OrderState::Refunded {
        let find = "SELECT receipt FROM receipts WHERE order_id = $1";
        order.receipt = first(tx, find, values![&order.order], |row| row.bytes("receipt"))?;
    }
    Ok(())
}

/// Locks the order until the transaction ends.
pub(super) fn lock(tx: &dyn Tx, order: OrderId) -> Result<()> {
    tx.lock("SELECT 1 FROM orders WHERE order_id = $1 FOR UPDATE", values![&order])
}

/// Writes down where the order stands.
pub(super) fn save(tx: &dyn Tx, order: &StoredOrder) -> Result<()> {
    let change = "UPDATE orders SET state = $1, holds = $2 WHERE order_id = $3";
    tx.put(change, values![order.state.as_str(), signed(order.holds)?, &order.order])
}

/// Holds the price once more; the step that follows says for what.
pub(super) fn hold(tx: &dyn Tx, order: &mut StoredOrder, from: &ledger::Source, now: Time) -> Result<()> {
    order.holds += 1;
    ledger::hold(tx, order, from, now)
}

/// Refuses an agreement to anything but this order's signed confirmation.
pub(super) fn check_agreement(order: &StoredOrder, confirmation: Digest) -> Result<()> {
    match Digest::of(&order.confirmation) == confirmation {
        true => Ok(()),
        false => Err(Refusal::new(Code::TermsMismatch, "the agreement is to another confirmation than this order's")),
    }
}

/// Refuses an order that ran out, whether or not its hold was given back yet.
pub(super) fn check_running(order: &StoredOrder, now: Time) -> Result<()> {
    if order.state.runs_out() && now > order.expires_at {
        return Err(refusal(OrderState::Expired));
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

    async fn has_order(&self, order: OrderId) -> Result<bool> {
        let find = "SELECT 1 AS n FROM orders WHERE order_id = $1";
        Ok(self.read(move |books: &dyn Tx| first(books, find, values![&order], |row| row.number("n"))).await?.is_some())
    }

    async fn orders(&self, account: AccountId, before: (Time, OrderId), most: u32) -> Result<Vec<StoredOrder>> {
        let list = "SELECT o.*, r.receipt FROM orders o LEFT JOIN receipts r USING (order_id)
                    WHERE o.account = $1 AND (o.issued_at, o.order_id) < ($2, $3) ORDER BY o.issued_at DESC, o.order_id DESC LIMIT $4";
        let issued_at = signed(before.0.0)?;
        self.read_long(move |books: &dyn Tx| all(books, list, values![&account, issued_at, &before.1, most], stored)).await
    }

    async fn authorise(&self, account: AccountId, order: OrderId, confirmation: Digest, now: Time) -> Result<StoredOrder> {
        let authorise = move |tx: &dyn Tx| {
            lock(tx, order)?;
            let (mut order, source) = match confirmed_with_funds(tx, order)? {
                Some((order, source)) => (order, Some(source)),
                None => (find(tx, order)?.ok_or_else(unknown_order)?, None),
            };
            if order.account != account {
                return Err(unknown_order());
            }
            check_agreement(&order, confirmation)?;
            check_running(&order, now)?;
            match order.state {
                OrderState::Confirmed => {
                    let source = source.map_or_else(|| ledger::Source::find(tx, &order), Ok)?;
                    hold(tx, &mut order, &source, now)?;
                    step(&mut order, OrderState::Authorised)?;
                    save(tx, &order)?;
                }
                OrderState::Cancelled | OrderState::Expired | OrderState::Refunded => return Err(refusal(order.state)),
                _ => {} // It was agreed to before.
            }
            Ok(order)
        };
        self.write(authorise).await
    }

    async fn cancel(&self, account: AccountId, order: OrderId, now: Time) -> Result<StoredOrder> {
        let cancel = move |tx: &dyn Tx| {
            let mut order = locked(tx, account, order)?;
            if order.state == OrderState::Cancelled {
                return Ok(order);
            }
            let sealed = "SELECT count(*) AS n FROM deliveries WHERE order_id = $1";
            if order.state == OrderState::Delivering && number(tx, sealed, values![&order.order])? > 0 {
                return Err(Refusal::new(
                    Code::OrderState,
                    "a package was sealed for the order: let the delivery end, or leave it, and what is held goes back when it runs out",
                ));
            }
            end(tx, &mut order, OrderState::Cancelled, now)?;
            Ok(order)
        };
        self.write(cancel).await
    }

    async fn issue_ticket(&self, ticket: &NewTicket, now: Time, most: u32) -> Result<()> {
        let new = *ticket;
        let issue = move |tx: &dyn Tx| {
            // Where it is not deliverable any more when the ticket is shown, that is refused then.
            let insert = "INSERT INTO tickets (ticket, order_id, account, expires_at) SELECT $1, order_id, account, $2 FROM orders o
                          WHERE order_id = $3 AND account = $4
                            AND CASE WHEN state IN ('authorised', 'delivering') THEN expires_at >= $5
                                     WHEN state IN ('captured', 'released') THEN readmitted_until >= $5
                                     ELSE state IN ('acknowledged', 'capture-requested') END
                            AND (SELECT count(*) FROM tickets t WHERE t.order_id = o.order_id AND t.expires_at >= $5) < $6";
            let times = (signed(new.expires_at.0)?, signed(now.0)?);
            if tx.execute_last(insert, values![&new.ticket, times.0, &new.order, &new.account, times.1, most])? == 1 {
                return Ok(());
            }
            check_deliverable(tx, &owned(tx, new.account, new.order)?, now)?;
            Err(Refusal::new(Code::RateLimited, format!("there are {most} unused tickets for this order already")))
        };
        self.write(issue).await
    }

    async fn has_ticket(&self, ticket: Digest, now: Time) -> Result<bool> {
        let (find, now) = ("SELECT 1 AS n FROM tickets WHERE ticket = $1 AND expires_at >= $2", signed(now.0)?);
        Ok(self.read(move |books: &dyn Tx| first(books, find, values![&ticket, now], |row| row.number("n"))).await?.is_some())
    }

    async fn redeem_ticket(&self, ticket: Digest, account: Option<AccountId>, now: Time) -> Result<StoredOrder> {
        let invalid = || Refusal::new(Code::TicketInvalid, "the ticket is unknown, used or expired");
        let redeem = move |tx: &dyn Tx| {
            let values = values![&ticket, signed(now.0)?, account.as_ref()];
            // The usual way: it is the order's first ticket. Who shows the same one meanwhile waits for the order, and finds it begun.
            let begin = "UPDATE orders SET state = 'delivering'
                         WHERE order_id = (SELECT order_id FROM tickets WHERE ticket = $1 AND expires_at >= $2 AND account = coalesce($3, account))
                           AND state = 'authorised' AND expires_at >= $2 RETURNING *";
            if let Some(begun) = first(tx, begin, values, without_receipt)? {
                tx.put("DELETE FROM tickets WHERE ticket = $1", values![&ticket])?;
                return Ok(begun);
            }
            let used = "DELETE FROM tickets WHERE ticket = $1 AND expires_at >= $2 AND account = coalesce($3, account) RETURNING order_id";
            let order = first(tx, used, values, |row| row.id("order_id").map(OrderId))?.ok_or_else(invalid)?;
            let mut order = locked_of_anybody(tx, order)?;
            check_deliverable(tx, &order, now)?;
            if order.state == OrderState::Authorised {
                step(&mut order, OrderState::Delivering)?;
                save(tx, &order)?;
            }
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
            if !order.state.is_paid() {
                return Err(refusal(order.state));
            }
            let change = "UPDATE orders SET readmitted_until = $1 WHERE order_id = $2 AND readmitted_until < $1";
            tx.put(change, values![signed(until.0)?, &order.order])?;
            Ok(order)
        };
        self.write(readmit).await
    }

    async fn refund(&self, order: OrderId, note: &str, at: Time) -> Result<StoredOrder> {
        let note = note.to_owned();
        let refund = move |tx: &dyn Tx| {
            let mut order = locked_of_anybody(tx, order)?;
            if order.state != OrderState::Refunded {
                step(&mut order, OrderState::Refunded)?;
                ledger::refund(tx, &order, &note, at)?;
                payments::give_back(tx, order.order)?;
                save(tx, &order)?;
            }
            Ok(order)
        };
        self.write(refund).await
    }

    async fn expire(&self, now: Time) -> Result<u64> {
        let mut expired = 0;
        loop {
            let some = self.write(move |tx: &dyn Tx| expire_some(tx, now)).await?;
            expired += some;
            if some < u64::from(EXPIRE_AT_ONCE) {
                return Ok(expired);
            }
        }
    }

    async fn unsettled(&self) -> Result<Vec<Unsettled>> {
        let list = "SELECT o.*, r.receipt FROM orders o LEFT JOIN receipts r USING (order_id)
                    WHERE o.state IN ('acknowledged', 'capture-requested') ORDER BY o.order_id LIMIT $1";
        let read = |row: &dyn Row| {
            Ok(Unsettled { order: stored(row)?, seal: Digest(row.id("seal_digest")?), acknowledgement: row.bytes("acknowledgement")? })
        };
        self.read_long(move |books: &dyn Tx| all(books, list, values![UNSETTLED], read)).await
    }
}

/// Ends an order whose price was not taken, and gives back what is held for it.
pub(super) fn end(tx: &dyn Tx, order: &mut StoredOrder, to: OrderState, now: Time) -> Result<()> {
    let held = order.state != OrderState::Confirmed;
    step(order, to)?;
    if held {
        ledger::release(tx, order, now)?;
    }
    payments::give_back(tx, order.order)?; // A card may hold the price before the order does.
    save(tx, order)
}

/// One transaction's worth of [`Orders::expire`].
fn expire_some(tx: &dyn Tx, now: Time) -> Result<u64> {
    let now_signed = signed(now.0)?;
    let find_late = "SELECT order_id FROM orders WHERE state IN ('confirmed', 'authorised', 'delivering') AND expires_at < $1
                     ORDER BY order_id LIMIT $2";
    let late = all(tx, find_late, values![now_signed, EXPIRE_AT_ONCE], |row| row.id("order_id").map(OrderId))?;
    let mut expired = 0;
    for order in late {
        let mut order = locked_of_anybody(tx, order)?;
        if order.state.runs_out() {
            end(tx, &mut order, OrderState::Expired, now)?;
            expired += 1;
        }
    }
    tx.put("DELETE FROM tickets WHERE expires_at < $1", values![now_signed])?;
    tx.put("DELETE FROM uploads WHERE expires_at < $1", values![now_signed])?;
    tx.put("DELETE FROM sessions WHERE expires_at < $1", values![signed(now.0.saturating_sub(SESSIONS_KEPT))?])?;
    Ok(expired)
}

/// Whether a package may be delivered for this order now.
fn check_deliverable(tx: &dyn Tx, order: &StoredOrder, now: Time) -> Result<()> {
    check_running(order, now)?;
    match order.state {
        OrderState::Authorised | OrderState::Delivering | OrderState::Acknowledged | OrderState::CaptureRequested => Ok(()),
        OrderState::Captured | OrderState::Released => {
            let until = number(tx, "SELECT readmitted_until AS n FROM orders WHERE order_id = $1", values![&order.order])?;
            if now.0 > until {
                return Err(Refusal::new(
                    Code::OrderState,
                    "the order is paid: show its receipt to download it again (chipbound redownload ORDER)",
                ));
            }
            Ok(())
        }
        OrderState::Confirmed | OrderState::Cancelled | OrderState::Expired | OrderState::Refunded => Err(refusal(order.state)),
    }
}

/// Places the order, or finds the one that was placed with its key before. Nobody fills the books who agrees to nothing.
fn place(tx: &dyn Tx, new: &NewOrder) -> Result<StoredOrder> {
    if !new.withdrawn && insert(tx, new)? {
        return Ok(new.order.clone());
    }
    let account = new.order.account;
    let find_before = "SELECT order_id, parameters FROM orders WHERE account = $1 AND idempotency_key = $2";
    let ids = |row: &dyn Row| Ok((OrderId(row.id("order_id")?), Digest(row.id("parameters")?)));
    match first(tx, find_before, values![&account, &new.idempotency_key], ids)? {
        None if new.withdrawn => Err(Refusal::new(Code::SequenceTooOld, "the vendor withdrew this version: it would be opened no more")),
        None => Err(bought_before(tx, new)?
            .unwrap_or_else(|| Refusal::new(Code::RateLimited, format!("{NOT_AGREED_TO} orders wait for an agreement already")))),
        Some((_, parameters)) if parameters != new.parameters => {
            Err(Refusal::new(Code::IdempotencyConflict, "another order was placed with this idempotency key"))
        }
        Some((order, _)) => owned(tx, account, order),
    }
}

/// Why an order is not wanted `again`: what it is for was bought for that processor, and nothing was given back, or for one that gave it up
/// to another.
fn bought_before(tx: &dyn Tx, new: &NewOrder) -> Result<Option<Refusal>> {
    if new.again {
        return Ok(None);
    }
    let find = "SELECT o.order_id, o.processor, (SELECT count(*) FROM transfers t WHERE t.order_id = o.order_id) AS moves FROM orders o
                WHERE o.account = $1 AND o.manifest = $2
                  AND (o.processor = $3 OR o.order_id IN (SELECT order_id FROM transfers WHERE from_processor = $3))
                  AND o.state IN ('acknowledged', 'capture-requested', 'captured', 'released') AND o.redownload_until >= $4
                ORDER BY o.issued_at DESC LIMIT 1";
    let StoredOrder { account, manifest, processor, issued_at, .. } = &new.order;
    let bought = first(tx, find, values![account, manifest, processor, signed(issued_at.0)?], |row| {
        let (order, holder) = (OrderId(row.id("order_id")?), KeyId(row.id("processor")?));
        Ok(match row.number("moves")? {
            _ if holder != *processor => format!("it was bought with order {order}, which was transferred to processor {holder}"),
            0 => format!("it was bought with order {order} for this processor"),
            _ => format!("it was bought with order {order}, which is for this processor since it was transferred"),
        })
    })?;
    Ok(bought.map(|what| Refusal::new(Code::AlreadyBought, what)))
}

/// Whether it was placed: not where its key was used before, too many orders of the account wait for its agreement, those that are
/// placed in the same moment not counted, or [`bought_before`] has a word against it.
fn insert(tx: &dyn Tx, new: &NewOrder) -> Result<bool> {
    let order = &new.order;
    let placed = tx.execute_last(
        "INSERT INTO orders (order_id, account, manifest, seller, processor, key_mode, price, currency, state, confirmation,
         idempotency_key, parameters, issued_at, expires_at, redownload_until)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15
         WHERE (SELECT count(*) FROM orders WHERE account = $2 AND state = 'confirmed') < $16
           AND (CAST($17 AS BIGINT) = 1
                OR NOT EXISTS (SELECT 1 FROM orders WHERE account = $2 AND manifest = $3 AND processor = $5 AND redownload_until >= $13
                                AND state IN ('acknowledged', 'capture-requested', 'captured', 'released'))
                AND NOT EXISTS (SELECT 1 FROM transfers JOIN orders USING (order_id)
                                WHERE from_processor = $5 AND account = $2 AND manifest = $3 AND redownload_until >= $13
                                AND state IN ('acknowledged', 'capture-requested', 'captured', 'released')))
         ON CONFLICT (account, idempotency_key) DO NOTHING",
        values![
            &order.order,
            &order.account,
            &order.manifest,
            &order.seller,
            &order.processor,
            order.key_mode.as_str(),
            signed(order.price.minor)?,
            order.price.currency.as_str(),
            order.state.as_str(),
            &order.confirmation,
            &new.idempotency_key,
            &new.parameters,
            signed(order.issued_at.0)?,
            signed(order.expires_at.0)?,
            signed(order.redownload_until.0)?,
            NOT_AGREED_TO,
            u32::from(new.again),
        ],
    )?;
    Ok(placed == 1)
}
