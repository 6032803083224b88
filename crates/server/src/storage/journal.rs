//! The journal: what is on record, row by row as it stands, for an auditor (docs/ledger.md). It computes nothing and judges nothing.

use super::Journal;
use super::books::Books;
use super::sql::{Row, Tx, all, first, signed, unreadable, values};
use chipbound_auditor::journal::{
    Account, Balance, Checkpoint, Delivery, Entry, Head, Line, LogHead, Node, Order, Payment, Posting, Receipt, Seller, Statement, Stray,
    Transfer, VERSION,
};
use chipbound_wire::api::Base64;
use chipbound_wire::{AccountId, Code, Digest, KeyId, OrderId, Refusal, Result, Time, TreeHash};
use serde::Deserialize;
use serde::de::value::{Error as NotNamed, StrDeserializer};
use std::collections::BTreeMap;
use std::io::Write;

/// Rows of one query.
const PAGE: u32 = 500;

impl Journal for Books {
    async fn journal<W: Write + Send + 'static>(&self, made_at: Time, out: W) -> Result<W> {
        let journal = move |books: &dyn Tx| {
            let mut lines = Lines { out, written: 0 };
            write(books, made_at, &mut lines)?;
            lines.out.flush().map_err(failed)?;
            Ok(lines.out)
        };
        self.snapshot(journal).await
    }
}

fn failed(error: std::io::Error) -> Refusal {
    Refusal::io("writing the journal", error)
}

struct Lines<W> {
    out: W,
    written: u64,
}

impl<W: Write> Lines<W> {
    fn write(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_vec(line).map_err(|e| Refusal::new(Code::Internal, "a line cannot be written").because(e))?;
        text.push(b'\n');
        self.out.write_all(&text).map_err(failed)?;
        self.written += 1;
        Ok(())
    }
}

/// All lines in their order.
fn write<W: Write>(books: &dyn Tx, made_at: Time, out: &mut Lines<W>) -> Result<()> {
    out.write(&Line::Journal(Head { version: VERSION, made_at }))?;
    accounts(books, out)?;
    orders(books, out)?;
    deliveries(books, out)?;
    transfers(books, out)?;
    payments(books, out)?;
    entries(books, out)?;
    balances(books, out)?;
    log(books, out)?;
    receipts(books, out)?;
    out.write(&Line::End(out.written))
}

/// Writes page after page: `page` finds the rows after a key, `key` is that of a row.
fn paged<K, W: Write>(
    out: &mut Lines<W>,
    mut after: K,
    page: impl Fn(&K) -> Result<Vec<Line>>,
    key: impl Fn(&Line) -> Option<K>,
) -> Result<()> {
    loop {
        let lines = page(&after)?;
        lines.iter().try_for_each(|line| out.write(line))?;
        match lines.last().filter(|_| lines.len() >= PAGE as usize) {
            None => return Ok(()),
            Some(last) => after = key(last).ok_or_else(unreadable)?,
        }
    }
}

/// Something that the journal names as the books do.
fn named<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T> {
    T::deserialize(StrDeserializer::<NotNamed>::new(text)).map_err(|_| unreadable())
}

fn optional_digest(row: &dyn Row, column: &str) -> Result<Option<Digest>> {
    row.optional_bytes(column)?.map(|bytes| Digest::from_slice(&bytes)).transpose().map_err(|_| unreadable())
}

fn accounts<W: Write>(books: &dyn Tx, out: &mut Lines<W>) -> Result<()> {
    let list = "SELECT account, role FROM accounts WHERE account > $1 ORDER BY account LIMIT $2";
    let read = |row: &dyn Row| Ok(Line::Account(Account { account: AccountId(row.id("account")?), role: named(&row.text("role")?)? }));
    let key = |line: &Line| if let Line::Account(account) = line { Some(account.account.0.to_vec()) } else { None };
    paged(out, Vec::new(), |after| all(books, list, values![after, PAGE], read), key)?;

    let list = "SELECT seller, receipts FROM sellers WHERE seller > $1 ORDER BY seller LIMIT $2";
    let read = |row: &dyn Row| Ok(Line::Seller(Seller { seller: AccountId(row.id("seller")?), receipts: row.number("receipts")? }));
    let key = |line: &Line| if let Line::Seller(seller) = line { Some(seller.seller.0.to_vec()) } else { None };
    paged(out, Vec::new(), |after| all(books, list, values![after, PAGE], read), key)
}

fn orders<W: Write>(books: &dyn Tx, out: &mut Lines<W>) -> Result<()> {
    let list = "SELECT order_id, account, seller, manifest, processor, price, currency, state, confirmation, issued_at, expires_at,
                redownload_until, holds, seal_digest, acknowledgement, CASE WHEN capture_key IS NULL THEN 0 ELSE 1 END AS requested
                FROM orders WHERE order_id > $1 ORDER BY order_id LIMIT $2";
    let read = |row: &dyn Row| {
        Ok(Line::Order(Box::new(Order {
            order: OrderId(row.id("order_id")?),
            account: AccountId(row.id("account")?),
            seller: AccountId(row.id("seller")?),
            manifest: Digest(row.id("manifest")?),
            processor: KeyId(row.id("processor")?),
            price: row.number("price")?,
            currency: row.parsed("currency")?,
            state: row.parsed("state")?,
            confirmation: Base64(row.bytes("confirmation")?),
            issued_at: Time(row.number("issued_at")?),
            expires_at: Time(row.number("expires_at")?),
            redownload_until: Time(row.number("redownload_until")?),
            holds: row.number("holds")?,
            seal: optional_digest(row, "seal_digest")?,
            acknowledgement: row.optional_bytes("acknowledgement")?.map(Base64),
            capture_requested: row.number("requested")? != 0,
        })))
    };
    let key = |line: &Line| if let Line::Order(order) = line { Some(order.order.0.to_vec()) } else { None };
    paged(out, Vec::new(), |after| all(books, list, values![after, PAGE], read), key)
}

fn deliveries<W: Write>(books: &dyn Tx, out: &mut Lines<W>) -> Result<()> {
    let list = "SELECT seal_digest, terms_digest, order_id, CASE WHEN acknowledgement IS NULL THEN 0 ELSE 1 END AS acknowledged,
                CASE WHEN token IS NULL THEN 0 ELSE 1 END AS released
                FROM deliveries WHERE seal_digest > $1 ORDER BY seal_digest LIMIT $2";
    let read = |row: &dyn Row| {
        Ok(Line::Delivery(Delivery {
            seal: Digest(row.id("seal_digest")?),
            terms: Digest(row.id("terms_digest")?),
            order: OrderId(row.id("order_id")?),
            acknowledged: row.number("acknowledged")? != 0,
            token: row.number("released")? != 0,
        }))
    };
    let key = |line: &Line| if let Line::Delivery(delivery) = line { Some(delivery.seal.0.to_vec()) } else { None };
    paged(out, Vec::new(), |after| all(books, list, values![after, PAGE], read), key)
}

fn transfers<W: Write>(books: &dyn Tx, out: &mut Lines<W>) -> Result<()> {
    let list = "SELECT order_id, from_processor, to_processor, at, transfer FROM transfers WHERE (order_id, from_processor) > ($1, $2)
                ORDER BY order_id, from_processor LIMIT $3";
    let read = |row: &dyn Row| {
        Ok(Line::Transfer(Transfer {
            order: OrderId(row.id("order_id")?),
            from: KeyId(row.id("from_processor")?),
            to: KeyId(row.id("to_processor")?),
            at: Time(row.number("at")?),
            transfer: Base64(row.bytes("transfer")?),
        }))
    };
    let key = |line: &Line| if let Line::Transfer(t) = line { Some((t.order.0.to_vec(), t.from.0.to_vec())) } else { None };
    paged(out, (Vec::new(), Vec::new()), |(order, from)| all(books, list, values![order, from, PAGE], read), key)
}

fn payments<W: Write>(books: &dyn Tx, out: &mut Lines<W>) -> Result<()> {
    let list = "SELECT order_id, attempt, state, reference FROM payments WHERE order_id > $1 ORDER BY order_id LIMIT $2";
    let read = |row: &dyn Row| {
        Ok(Line::Payment(Payment {
            order: OrderId(row.id("order_id")?),
            attempt: row.number("attempt")?,
            state: named(&row.text("state")?)?,
            reference: row.text("reference")?,
        }))
    };
    let key = |line: &Line| if let Line::Payment(payment) = line { Some(payment.order.0.to_vec()) } else { None };
    paged(out, Vec::new(), |after| all(books, list, values![after, PAGE], read), key)
}

/// Entries with their postings; where postings have none, they stand alone.
fn entries<W: Write>(books: &dyn Tx, out: &mut Lines<W>) -> Result<()> {
    let list = "SELECT entry, kind, order_id, round, at, note, shares FROM entries WHERE entry > $1 ORDER BY entry LIMIT $2";
    let read = |row: &dyn Row| {
        let order = row.optional_bytes("order_id")?;
        Ok(Entry {
            entry: row.number("entry")?,
            kind: named(&row.text("kind")?)?,
            order: order.map(|bytes| OrderId::from_slice(&bytes)).transpose().map_err(|_| unreadable())?,
            round: row.number("round")?,
            at: Time(row.number("at")?),
            note: row.text("note")?,
            shares: row.optional_text("shares")?.map(|text| serde_json::from_str(&text)).transpose().map_err(|_| unreadable())?,
            postings: Vec::new(),
        })
    };
    let mut after = i64::MIN;
    loop {
        let page = all(books, list, values![after, PAGE], read)?;
        let last = match page.last() {
            Some(last) if page.len() >= PAGE as usize => signed(last.entry)?,
            _ => i64::MAX,
        };
        let mut postings = postings(books, after, last)?;
        for mut entry in page {
            let number = entry.entry;
            for stray in postings.extract_if(..number, |_, _| true).collect::<Vec<_>>() {
                out.write(&Line::Stray(Stray { entry: stray.0, postings: stray.1 }))?;
            }
            entry.postings = postings.remove(&number).unwrap_or_default();
            out.write(&Line::Entry(entry))?;
        }
        for (entry, postings) in postings {
            out.write(&Line::Stray(Stray { entry, postings }))?;
        }
        if last == i64::MAX {
            return Ok(());
        }
        after = last;
    }
}

/// The postings of the entries with `after` < number ≤ `last`.
fn postings(books: &dyn Tx, after: i64, last: i64) -> Result<BTreeMap<u64, Vec<Posting>>> {
    let list = "SELECT entry, book, account, currency, minor FROM postings WHERE entry > $1 AND entry <= $2
                ORDER BY entry, book, account, currency";
    let read = |row: &dyn Row| {
        let posting = Posting {
            book: named(&row.text("book")?)?,
            account: AccountId(row.id("account")?),
            currency: row.parsed("currency")?,
            minor: row.integer("minor")?,
        };
        Ok((row.number("entry")?, posting))
    };
    let mut found = BTreeMap::<_, Vec<_>>::new();
    for (entry, posting) in all(books, list, values![after, last], read)? {
        found.entry(entry).or_default().push(posting);
    }
    Ok(found)
}

fn balances<W: Write>(books: &dyn Tx, out: &mut Lines<W>) -> Result<()> {
    let list = "SELECT account, book, currency, minor FROM balances WHERE (account, book, currency) > ($1, $2, $3)
                ORDER BY account, book, currency LIMIT $4";
    let read = |row: &dyn Row| {
        let book = row.text("book")?;
        let balance = Balance {
            account: AccountId(row.id("account")?),
            book: named(&book)?,
            currency: row.parsed("currency")?,
            minor: row.integer("minor")?,
        };
        Ok((book, balance))
    };
    let mut after = (Vec::new(), String::new(), String::new());
    loop {
        let page = all(books, list, values![&after.0, &after.1, &after.2, PAGE], read)?;
        page.iter().try_for_each(|(_, balance)| out.write(&Line::Balance(balance.clone())))?;
        match page.into_iter().next_back() {
            None => return Ok(()),
            Some((book, last)) => after = (last.account.0.to_vec(), book, last.currency.to_string()),
        }
    }
}

fn log<W: Write>(books: &dyn Tx, out: &mut Lines<W>) -> Result<()> {
    let list = "SELECT digest, statement FROM log_statements WHERE digest > $1 ORDER BY digest LIMIT $2";
    let read =
        |row: &dyn Row| Ok(Line::Statement(Statement { digest: Digest(row.id("digest")?), statement: Base64(row.bytes("statement")?) }));
    let key = |line: &Line| if let Line::Statement(statement) = line { Some(statement.digest.0.to_vec()) } else { None };
    paged(out, Vec::new(), |after| all(books, list, values![after, PAGE], read), key)?;

    let list = "SELECT size, note, statement FROM log_checkpoints WHERE size > $1 ORDER BY size LIMIT $2";
    let read = |row: &dyn Row| {
        let statement = Digest(row.id("statement")?);
        Ok(Line::Checkpoint(Checkpoint { size: row.number("size")?, note: row.text("note")?, statement }))
    };
    let key = |line: &Line| if let Line::Checkpoint(checkpoint) = line { i64::try_from(checkpoint.size).ok() } else { None };
    paged(out, i64::MIN, |after| all(books, list, values![*after, PAGE], read), key)?;

    let list = "SELECT level, position, value FROM log_nodes WHERE (level, position) > ($1, $2) ORDER BY level, position LIMIT $3";
    let read = |row: &dyn Row| {
        let level = u32::try_from(row.number("level")?).map_err(|_| unreadable())?;
        Ok(Line::Node(Node { level, position: row.number("position")?, value: TreeHash(row.id("value")?) }))
    };
    let key = |line: &Line| if let Line::Node(node) = line { Some((node.level, i64::try_from(node.position).ok()?)) } else { None };
    paged(out, (0, i64::MIN), |(level, position)| all(books, list, values![i64::from(*level), *position, PAGE], read), key)?;

    let head = first(books, "SELECT size, edge FROM log_head", &[], |row| {
        Ok(LogHead { size: row.number("size")?, edge: Base64(row.bytes("edge")?) })
    })?;
    head.map_or(Ok(()), |head| out.write(&Line::LogHead(head)))
}

fn receipts<W: Write>(books: &dyn Tx, out: &mut Lines<W>) -> Result<()> {
    let list = "SELECT seller, number, order_id, account, issued_at, log_index, receipt FROM receipts WHERE (seller, number) > ($1, $2)
                ORDER BY seller, number LIMIT $3";
    let read = |row: &dyn Row| {
        Ok(Line::Receipt(Receipt {
            seller: AccountId(row.id("seller")?),
            number: row.number("number")?,
            order: OrderId(row.id("order_id")?),
            account: AccountId(row.id("account")?),
            issued_at: Time(row.number("issued_at")?),
            log_index: row.optional_number("log_index")?,
            receipt: Base64(row.bytes("receipt")?),
        }))
    };
    let key = |line: &Line| if let Line::Receipt(r) = line { Some((r.seller.0.to_vec(), i64::try_from(r.number).ok()?)) } else { None };
    paged(out, (Vec::new(), i64::MIN), |(seller, number)| all(books, list, values![seller, *number, PAGE], read), key)
}
