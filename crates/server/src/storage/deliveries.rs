//! Deliveries, acknowledgement, capture, receipts.

use super::books::Books;
use super::log;
use super::sql::{Row, Tx, all, first, number, signed, unreadable, values};
use super::states::{refusal, step};
use super::{
    Deliveries, Delivery, Orders, PaymentState, ReceiptEntry, SettledOrder, Settlement, Settling, StoredOrder, StoredReceipt, ledger,
    orders, payments,
};
use chipbound_wire::api::OrderState;
use chipbound_wire::{AccountId, Code, Digest, KeyId, OrderId, Refusal, Result, Time};
use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

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
    async fn record_delivery(&self, delivery: &Delivery, processor: KeyId) -> Result<()> {
        let new = delivery.clone();
        let record = move |tx: &dyn Tx| {
            // An order that is locked by whoever ends it is looked at again when he is done.
            let insert = "INSERT INTO deliveries (terms_digest, order_id, terms, wrap, kem, sealing_key, release_secret, content_key, seal,
                          seal_digest, created_at) SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11 FROM orders
                          WHERE order_id = $2 AND processor = $12
                          AND state NOT IN ('confirmed', 'authorised', 'cancelled', 'expired', 'refunded') FOR UPDATE";
            let (terms, seal) = (Digest::of(&new.terms), Digest::of(&new.seal));
            let values = values![
                &terms,
                &new.order,
                &new.terms,
                &new.wrap,
                new.kem.as_str(),
                &new.sealing_key,
                &new.release_secret,
                &new.content_key,
                &new.seal,
                &seal,
                signed(new.created_at.0)?,
                &processor,
            ];
            if tx.execute_last(insert, values)? == 1 {
                return Ok(());
            }
            let order = orders::find(tx, new.order)?.ok_or_else(orders::unknown_order)?;
            if order.processor != processor {
                return Err(Refusal::new(Code::Conflict, format!("the order is for processor {} since", order.processor)));
            }
            Err(match order.state {
                OrderState::Authorised => {
                    Refusal::new(Code::OrderState, "no delivery of the order was begun: ask for a ticket and show it first")
                }
                state => refusal(state),
            })
        };
        self.write(record).await
    }

    async fn sent(&self, account: AccountId, order: OrderId, seal: Digest) -> Result<(StoredOrder, Delivery)> {
        let find = "SELECT o.*, r.receipt, d.terms, d.wrap, d.kem, d.sealing_key, d.release_secret, d.content_key, d.seal, d.created_at
                    FROM orders o JOIN deliveries d ON d.order_id = o.order_id LEFT JOIN receipts r ON r.order_id = o.order_id
                    WHERE d.seal_digest = $1 AND o.order_id = $2 AND o.account = $3";
        let read = |row: &dyn Row| Ok((orders::stored(row)?, delivery(row)?));
        let found = self.read(move |books: &dyn Tx| first(books, find, values![&seal, &order, &account], read)).await?;
        match found {
            Some(found) => Ok(found),
            None => self.order(account, order).await.and(Err(no_such_delivery())),
        }
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
            Sent::find(tx, std::slice::from_ref(&settlement.seal))?.check(&settlement)?;
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

/// What the deliveries of a batch have, by the digests of their seals.
struct Sent(HashMap<Digest, SentOne>);

struct SentOne {
    order: OrderId,
    token: Option<Vec<u8>>,
    payment: Option<PaymentState>,
}

impl Sent {
    fn find(tx: &dyn Tx, seals: &[Digest]) -> Result<Self> {
        let find = "SELECT d.seal_digest, d.order_id, d.token, p.state AS payment_state FROM deliveries d
                    LEFT JOIN payments p ON p.order_id = d.order_id WHERE d.seal_digest = ANY($1)";
        let keys: Vec<&[u8]> = seals.iter().map(AsRef::as_ref).collect();
        let mut found = HashMap::new();
        tx.query_keys(find, &keys, &mut |row| {
            let order = OrderId(row.id("order_id")?);
            let one = SentOne { order, token: row.optional_bytes("token")?, payment: payments::state(row)? };
            found.insert(Digest(row.id("seal_digest")?), one);
            Ok(())
        })?;
        Ok(Self(found))
    }

    /// The delivery that a settlement is about.
    fn check(&mut self, settlement: &Settlement) -> Result<&mut SentOne> {
        self.0.get_mut(&settlement.seal).filter(|sent| sent.order == settlement.order).ok_or_else(no_such_delivery)
    }
}

/// What a batch changes, written when all of it is known.
#[derive(Default)]
struct Changes<'b> {
    /// Deliveries that get their tokens.
    tokens: Vec<&'b Settlement>,
    /// Orders whose price is taken.
    captured: Vec<&'b Settling>,
}

/// Takes each order to its release, and enters all receipts in the log under one checkpoint. Orders are locked in one order everywhere
/// and before the log, the log before a seller's numbers: two servers never wait for each other.
fn settle_all(tx: &dyn Tx, batch: &[Settling]) -> Result<Vec<SettledOrder>> {
    let mut orders = orders::locked_all(tx, &batch.iter().map(|settling| settling.settlement.order).collect())?;
    let mut sent = Sent::find(tx, &batch.iter().map(|settling| settling.settlement.seal).collect::<Vec<_>>())?;
    let (mut changes, mut tokens) = (Changes::default(), Vec::new());
    for settling in batch {
        let order = orders.get_mut(&settling.settlement.order).ok_or_else(orders::unknown_order)?;
        tokens.push(settle_one(tx, order, sent.check(&settling.settlement)?, settling, &mut changes)?);
    }
    keep_tokens(tx, &changes.tokens)?;
    let proofs = capture(tx, &mut orders, &changes.captured)?;
    let settled = |(Settling { settlement, .. }, token): (&Settling, Vec<u8>)| {
        let receipt = orders.get(&settlement.order).and_then(|order| order.receipt.clone()).ok_or_else(unreadable)?;
        let proof = match proofs.get(&settlement.order) {
            Some(proof) => Some(proof.clone()),
            None => log::proof(tx, settlement.order)?,
        };
        Ok(SettledOrder { receipt, token, proof })
    };
    batch.iter().zip(tokens).map(settled).collect()
}

/// The way from wherever the order stands to its capture, or from there to its release; the token that counts.
fn settle_one<'b>(
    tx: &dyn Tx,
    order: &mut StoredOrder,
    sent: &mut SentOne,
    settling: &'b Settling,
    changes: &mut Changes<'b>,
) -> Result<Vec<u8>> {
    let settlement = &settling.settlement;
    if order.account != settlement.account {
        return Err(orders::unknown_order());
    }
    if sent.token.is_none() {
        changes.tokens.push(settlement);
    }
    let token = sent.token.get_or_insert_with(|| settlement.token.clone()).clone();
    if !order.state.is_paid() {
        acknowledge(tx, order, settlement)?;
        if order.state == OrderState::Acknowledged {
            step(order, OrderState::CaptureRequested)?;
        }
        payments::check_taken(sent.payment)?;
        step(order, OrderState::Captured)?;
        changes.captured.push(settling);
    } else if order.state == OrderState::Captured && order.receipt.is_some() {
        // And not by this batch, which releases what it takes.
        step(order, OrderState::Released)?;
        orders::save(tx, order)?;
    }
    Ok(token)
}

fn keep_tokens(tx: &dyn Tx, settlements: &[&Settlement]) -> Result<()> {
    let keep = "UPDATE deliveries SET token = $1, acknowledgement = $2 WHERE seal_digest = $3";
    let rows = settlements.iter().map(|one| values![&one.token, &one.acknowledgement, &one.seal].to_vec());
    tx.put_each(keep, &rows.collect::<Vec<_>>())
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
        orders::hold(tx, order, &ledger::Source::find(tx, order)?, settlement.at).map_err(|refused| match refused.code {
            Code::InsufficientFunds => Refusal::new(Code::OrderExpired, format!("the order ran out, and {}", refused.detail)),
            _ => refused,
        })?;
    }
    Ok(())
}

/// Writes down where an order stands, with what was first said of it: which delivery was acknowledged, and under which key the price is
/// asked for.
const KEEP: &str = "UPDATE orders SET state = $1, holds = $2, seal_digest = coalesce(seal_digest, $3),
    acknowledgement = coalesce(acknowledgement, $4), capture_key = coalesce(capture_key, $5) WHERE order_id = $6";

fn keep(tx: &dyn Tx, order: &StoredOrder, settlement: Option<&Settlement>, key: Option<&str>) -> Result<()> {
    let (seal, said) = (settlement.map(|s| &s.seal), settlement.map(|s| &s.acknowledgement));
    tx.put(KEEP, values![order.state.as_str(), signed(order.holds)?, seal, said, key, &order.order])
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

/// Takes the prices, each once: the ledger's entry, the number, the receipt that says so, and its place in the log; and releases the orders.
/// Returns the proofs of the receipts.
fn capture(tx: &dyn Tx, orders: &mut BTreeMap<OrderId, StoredOrder>, captured: &[&Settling]) -> Result<HashMap<OrderId, String>> {
    let Some(last) = captured.last() else { return Ok(HashMap::new()) };
    let mut log = log::open(tx)?;
    let entries = tx.next_entries(captured.len())?;
    let mut numbers = next_numbers(tx, captured.iter().filter_map(|settling| Some(orders.get(&settling.settlement.order)?.seller)))?;
    let mut receipts = Vec::with_capacity(captured.len());
    for (Settling { settlement, receipt }, entry) in captured.iter().zip(&entries) {
        let order = orders.get_mut(&settlement.order).ok_or_else(orders::unknown_order)?;
        let number = numbers.get_mut(&order.seller).and_then(Iterator::next).ok_or_else(unreadable)?;
        let index = log.next();
        let signed = receipt(&ReceiptEntry { number, payment: format!("entry-{entry}"), seller: order.seller, index })?;
        log.enter(&signed);
        step(order, OrderState::Released)?;
        order.receipt = Some(signed);
        receipts.push((number, index));
    }
    let taken = captured.iter().zip(entries).zip(receipts).map(|((Settling { settlement, .. }, entry), (number, index))| Taken {
        settlement,
        order: &orders[&settlement.order],
        entry,
        number,
        index,
    });
    let taken: Vec<_> = taken.collect();
    let entries =
        taken.iter().map(|t| ledger::Captured { entry: t.entry, order: t.order, shares: &t.settlement.shares, at: t.settlement.at });
    ledger::capture(tx, &entries.collect::<Vec<_>>())?;
    keep_receipts(tx, &taken)?;
    let proofs = log.close(tx, &last.settlement.log, last.settlement.at)?;
    Ok(taken.iter().map(|taken| taken.order.order).zip(proofs).collect())
}

/// An order whose price is taken, with the numbers that it got.
struct Taken<'b> {
    settlement: &'b Settlement,
    order: &'b StoredOrder,
    /// Of the ledger's entry.
    entry: i64,
    /// Of the receipt, and its place in the log.
    number: u64,
    index: u64,
}

/// Writes down the receipts, and that their orders are released.
fn keep_receipts(tx: &dyn Tx, taken: &[Taken<'_>]) -> Result<()> {
    let rows = taken.iter().map(|Taken { settlement, order, number, index, .. }| {
        let (number, at, index) = (signed(*number)?, signed(settlement.at.0)?, signed(*index)?);
        Ok(values![&order.seller, number, &order.order, &order.account, order.receipt.as_ref(), at, index].to_vec())
    });
    let insert =
        "INSERT INTO receipts (seller, number, order_id, account, receipt, issued_at, log_index) VALUES ($1, $2, $3, $4, $5, $6, $7)";
    tx.put_each(insert, &rows.collect::<Result<Vec<_>>>()?)?;
    let keys: Vec<_> = taken.iter().map(|taken| taken.settlement.capture_key()).collect();
    let rows = taken.iter().zip(&keys).map(|(Taken { settlement, order, .. }, key)| {
        let (seal, said) = (&settlement.seal, &settlement.acknowledgement);
        Ok(values![order.state.as_str(), signed(order.holds)?, seal, said, key, &order.order].to_vec())
    });
    tx.put_each(KEEP, &rows.collect::<Result<Vec<_>>>()?)
}

/// The sellers' next receipt numbers, as many as they are named. Whoever takes some holds the seller's row until the transaction ends, so
/// that there are no gaps.
fn next_numbers(tx: &dyn Tx, sellers: impl Iterator<Item = AccountId>) -> Result<BTreeMap<AccountId, RangeInclusive<u64>>> {
    let mut counts = BTreeMap::<_, u32>::new();
    sellers.for_each(|seller| *counts.entry(seller).or_default() += 1);
    let count = "INSERT INTO sellers (seller, receipts) VALUES ($1, $2) ON CONFLICT (seller) DO UPDATE SET receipts = sellers.receipts + $2
                 RETURNING receipts AS n";
    let take = |(seller, many): (AccountId, u32)| {
        let last = number(tx, count, values![&seller, many])?;
        let first = (last + 1).checked_sub(many.into()).ok_or_else(unreadable)?;
        Ok((seller, first..=last))
    };
    counts.into_iter().map(take).collect()
}
