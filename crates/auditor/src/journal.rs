//! The journal: everything that an audit needs of a server's books, as lines of JSON in one order (docs/ledger.md). It names no user
//! and holds no secret: no password, no token, no key.

use chipbound_wire::api::{AccountRole, Base64, OrderState};
use chipbound_wire::{AccountId, Currency, Digest, KeyId, OrderId, Time, TreeHash};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The version of the form that is described here.
pub const VERSION: u32 = 2;

/// One line, an object with one field that names what it holds. Kinds follow each other in the order in which they stand here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// The first line.
    Journal(Head),
    /// An account, by its id.
    Account(Account),
    /// How many receipts a seller gave, by the seller's id.
    Seller(Seller),
    /// An order, by its id.
    Order(Box<Order>),
    /// A package that was sent whole, by the digest of its seal.
    Delivery(Delivery),
    /// An order that moved to another processor, by order and the processor that it was for.
    Transfer(Transfer),
    /// A payment at the card provider, by its order.
    Payment(Payment),
    /// An entry of the ledger, by its number.
    Entry(Entry),
    /// Postings without an entry; there are none in books that are right.
    Stray(Stray),
    /// What the books say that a book comes to.
    Balance(Balance),
    /// The receipt key's word on a key of the log, by its digest.
    Statement(Statement),
    /// A signed checkpoint of the log, by its size.
    Checkpoint(Checkpoint),
    /// A node of the log's tree, by level and position.
    Node(Node),
    /// The right edge of the log's tree.
    LogHead(LogHead),
    /// A receipt, by seller and number.
    Receipt(Receipt),
    /// The last line: how many lines precede it.
    End(u64),
}

/// What the journal is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// [`VERSION`], or 1: that one never says how a capture was divided.
    pub version: u32,
    /// When it was made, by the server's clock.
    pub made_at: Time,
}

/// An account.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Its id.
    pub account: AccountId,
    /// What it may do.
    pub role: AccountRole,
}

/// A seller's count.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seller {
    /// The vendor's account; all zeros for the first receipts, which were numbered by the server.
    pub seller: AccountId,
    /// Receipts so far.
    pub receipts: u64,
}

/// An order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Its id.
    pub order: OrderId,
    /// The buyer.
    pub account: AccountId,
    /// The vendor's account.
    pub seller: AccountId,
    /// Digest of the vendor's signed manifest.
    pub manifest: Digest,
    /// The processor that it is for now.
    pub processor: KeyId,
    /// The price in minor units.
    pub price: u64,
    /// Its currency.
    pub currency: Currency,
    /// Where it stands.
    pub state: OrderState,
    /// The signed confirmation.
    pub confirmation: Base64,
    /// When it was made.
    pub issued_at: Time,
    /// Until when it could be agreed to, delivered and acknowledged.
    pub expires_at: Time,
    /// Until when its receipt buys a re-download.
    pub redownload_until: Time,
    /// How often the price was held.
    pub holds: u64,
    /// The seal that was acknowledged first.
    pub seal: Option<Digest>,
    /// The processor's signed acknowledgement of it.
    pub acknowledgement: Option<Base64>,
    /// Whether the capture was put on record before it was asked for.
    pub capture_requested: bool,
}

/// A package that was sent whole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delivery {
    /// Digest of its signed seal.
    pub seal: Digest,
    /// Digest of its signed terms.
    pub terms: Digest,
    /// The order.
    pub order: OrderId,
    /// Whether an acknowledgement of it is kept.
    pub acknowledged: bool,
    /// Whether its release token was made.
    pub token: bool,
}

/// An order that moved to another processor.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// The order.
    pub order: OrderId,
    /// The processor that it was for.
    pub from: KeyId,
    /// The processor that it is for.
    pub to: KeyId,
    /// When.
    pub at: Time,
    /// The server's signed word.
    pub transfer: Base64,
}

/// A payment at the card provider; of the card itself nothing is kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payment {
    /// The order.
    pub order: OrderId,
    /// Payments of the order that were declined or ended before this one.
    pub attempt: u64,
    /// Where it stands.
    pub state: PaymentState,
    /// What the provider calls it.
    pub reference: String,
}

/// Where a payment stands at the card provider.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PaymentState {
    /// The provider is about to be asked to hold the price.
    Asked,
    /// It has not decided.
    Undecided,
    /// It holds the price.
    Held,
    /// It refused.
    Declined,
    /// Its hold is to be given back.
    Ending,
    /// It holds nothing any more.
    Ended,
    /// It took the price.
    Captured,
    /// What it took is to be given back.
    Refunding,
    /// It gave it back.
    Refunded,
}

/// Kinds of entries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Money came in from outside.
    Deposit,
    /// Money went to outside.
    Payout,
    /// A price is held.
    Hold,
    /// A hold was given back.
    Release,
    /// A held price was taken.
    Capture,
    /// A price that was taken was given back.
    Refund,
}

/// The books.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Book {
    /// What came in from outside and did not go out again, negative.
    Deposits,
    /// What a card provider owes, negative.
    Card,
    /// What a customer is free to spend.
    Funds,
    /// What is held of it for orders.
    Held,
    /// What a vendor earned and was not paid yet.
    Revenue,
    /// The taxes contained in what a vendor sold.
    Tax,
    /// The house's share of what a vendor sold.
    Fees,
}

impl fmt::Display for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// An entry of the ledger.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its number.
    pub entry: u64,
    /// What it is.
    pub kind: Kind,
    /// The order that it is for.
    pub order: Option<OrderId>,
    /// Which hold of the order it is or ends, from 1; 0 for what is none of these.
    pub round: u64,
    /// When.
    pub at: Time,
    /// What the operator noted.
    pub note: String,
    /// By what rates a capture divided the price; none for other kinds, and for captures of before these were kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<Rates>,
    /// Its postings, by book, account and currency.
    pub postings: Vec<Posting>,
}

/// By what rates a price was divided.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// The house's share of what remains after taxes, in hundredths of a percent.
    pub house: u32,
    /// The taxes.
    pub taxes: Vec<Rate>,
}

/// A tax.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Its name.
    pub name: String,
    /// Its rate in hundredths of a percent.
    pub rate: u32,
}

/// Postings without an entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stray {
    /// The entry's number.
    pub entry: u64,
    /// The postings.
    pub postings: Vec<Posting>,
}

/// One line of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Posting {
    /// The book.
    pub book: Book,
    /// Whose.
    pub account: AccountId,
    /// The currency.
    pub currency: Currency,
    /// By how many minor units it changes.
    pub minor: i64,
}

/// What a book of an account comes to, as the books keep it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balance {
    /// The account.
    pub account: AccountId,
    /// The book.
    pub book: Book,
    /// The currency.
    pub currency: Currency,
    /// Minor units.
    pub minor: i64,
}

/// The receipt key's word on a key of the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Its digest.
    pub digest: Digest,
    /// The signed statement.
    pub statement: Base64,
}

/// A signed checkpoint of the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Entries of the log then.
    pub size: u64,
    /// The signed note.
    pub note: String,
    /// Digest of the statement on the key that signed it.
    pub statement: Digest,
}

/// A node of the log's tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// 0 for entries; n for the roots over 256 to the power of n of them.
    pub level: u32,
    /// Which one of its level, from 0.
    pub position: u64,
    /// The entry, or the root.
    pub value: TreeHash,
}

/// The right edge of the log's tree.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogHead {
    /// Entries.
    pub size: u64,
    /// The roots of the whole subtrees that make the tree up, the largest first.
    pub edge: Base64,
}

/// A receipt.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The seller by whom it is numbered.
    pub seller: AccountId,
    /// Its number.
    pub number: u64,
    /// The order.
    pub order: OrderId,
    /// The buyer.
    pub account: AccountId,
    /// When it was given.
    pub issued_at: Time,
    /// Its entry in the log; the first receipts have none.
    pub log_index: Option<u64>,
    /// The signed receipt.
    pub receipt: Base64,
}
