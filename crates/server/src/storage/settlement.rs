//! Settlement: what an acknowledged order is settled with, and the receipts' log that grows with it.

use super::{Delivery, Shares, StoredOrder};
use crate::log_key::LogSigner;
use chipbound_wire::tlog::Tile;
use chipbound_wire::{AccountId, Digest, KeyId, OrderId, Result, Time};
use std::future::Future;
use std::sync::Arc;

/// What settles an order.
#[derive(Clone)]
pub struct Settlement {
    /// The order.
    pub order: OrderId,
    /// Its owner.
    pub account: AccountId,
    /// Digest of the acknowledged seal.
    pub seal: Digest,
    /// The signed acknowledgement.
    pub acknowledgement: Vec<u8>,
    /// The signed release token of the delivery.
    pub token: Vec<u8>,
    /// Who gets what of the price.
    pub shares: Shares,
    /// When.
    pub at: Time,
    /// Signs the log in which the receipt is entered.
    pub log: Arc<LogSigner>,
}

impl Settlement {
    /// The key under which whoever holds the price is asked to take it: one for each order, so that it is taken once.
    #[must_use]
    pub fn capture_key(&self) -> String {
        format!("capture-{}", self.order)
    }
}

/// A settlement, and how its receipt is made.
#[derive(Clone)]
pub struct Settling {
    /// The settlement.
    pub settlement: Settlement,
    /// Makes the receipt.
    pub receipt: MakeReceipt,
}

/// What a receipt says that only the books know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReceiptEntry {
    /// The number of the receipt; those of a seller have no gaps.
    pub number: u64,
    /// The ledger entry that captures the price.
    pub payment: String,
    /// The vendor's account.
    pub seller: AccountId,
    /// Its place in the log.
    pub index: u64,
}

/// A receipt as it is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredReceipt {
    /// The order.
    pub order: OrderId,
    /// When it was given.
    pub issued_at: Time,
    /// The signed receipt.
    pub receipt: Vec<u8>,
}

/// What the owner gets for an acknowledgement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SettledOrder {
    /// The signed receipt.
    pub receipt: Vec<u8>,
    /// The signed release token.
    pub token: Vec<u8>,
    /// The proof that the receipt is in the log (C2SP tlog-proof); none for receipts that are older than it.
    pub proof: Option<String>,
}

/// Makes the signed receipt inside the transaction that captures, which may be run again.
pub type MakeReceipt = Arc<dyn Fn(&ReceiptEntry) -> Result<Vec<u8>> + Send + Sync>;

/// Deliveries, settlement and receipts.
pub trait Deliveries {
    /// Keeps a delivery to that processor, before its seal leaves the server. An order that ended meanwhile is refused with the code of its
    /// state, one that is for another processor meanwhile with [`chipbound_wire::Code::Conflict`].
    fn record_delivery(&self, delivery: &Delivery, processor: KeyId) -> impl Future<Output = Result<()>> + Send;
    /// An order of that account with its delivery of that seal; [`chipbound_wire::Code::UnknownOrder`],
    /// [`chipbound_wire::Code::AcknowledgementMismatch`].
    fn sent(&self, account: AccountId, order: OrderId, seal: Digest) -> impl Future<Output = Result<(StoredOrder, Delivery)>> + Send;
    /// The delivery of that order with that seal; [`chipbound_wire::Code::AcknowledgementMismatch`] otherwise.
    fn delivery(&self, order: OrderId, seal: Digest) -> impl Future<Output = Result<Delivery>> + Send;
    /// Keeps the processor's acknowledgement of a delivery that was sent for the order; one that was acknowledged before is returned
    /// as it is. What ran out less than one term of the order ago is held once more, and refused with
    /// [`chipbound_wire::Code::OrderExpired`] where the funds do not cover it, or later.
    fn acknowledge(&self, settlement: &Settlement) -> impl Future<Output = Result<StoredOrder>> + Send;
    /// Keeps the key under which whoever holds the price of an acknowledged order is asked to take it, before he is asked; returns
    /// the key that was kept first.
    fn request_capture(&self, order: OrderId, key: &str) -> impl Future<Output = Result<String>> + Send;
    /// Takes each order from wherever it stands to its release, all or nothing: acknowledged, capture requested, captured with ledger
    /// entry, receipt and token, released. An order that is paid already is charged nothing and returns the receipt it has; a
    /// delivery that has a token already returns that one. Where the price is held outside of these books, its holder
    /// confirmed before that it was taken.
    fn settle(&self, batch: Vec<Settling>) -> impl Future<Output = Result<Vec<SettledOrder>>> + Send;
    /// The account's receipts, newest first, older than the one that is named by its time of issue and order; at most `most`.
    fn receipts(&self, account: AccountId, before: (Time, OrderId), most: u32) -> impl Future<Output = Result<Vec<StoredReceipt>>> + Send;
}

/// The receipts' log. It grows where receipts are given.
pub trait Log {
    /// The newest signed checkpoint; none before the first receipt.
    fn log_checkpoint(&self) -> impl Future<Output = Result<Option<String>>> + Send;
    /// The bytes of a tile, at most 8,704; none where the log is not that large.
    fn log_tile(&self, tile: Tile) -> impl Future<Output = Result<Option<Vec<u8>>>> + Send;
    /// The proof that the receipt of an order is in the log: the same each time.
    fn log_proof(&self, order: OrderId) -> impl Future<Output = Result<Option<String>>> + Send;
}
