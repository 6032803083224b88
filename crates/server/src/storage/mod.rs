//! What the server keeps: one repository whose methods are whole transactions.
//!
//! Nothing of an engine (connection, transaction, row) leaves this folder, and no method can be taken apart by its
//! caller: what must happen together is one method. A method that was refused changed nothing; one whose caller
//! went away is carried out whole or not at all. Each is written once ([`Books`], over the small dialect in `sql`) and runs on
//! either engine, a SQLite file or a PostgreSQL server (`engine`).

mod accounts;
mod books;
mod deliveries;
pub(crate) mod dump;
mod engine;
mod journal;
mod ledger;
mod log;
mod orders;
mod parcels;
mod payments;
mod releases;
mod settlement;
mod shares;
mod sql;
mod states;
#[cfg(test)]
mod tests;
mod transfers;

pub use books::{Books, Location};
pub use parcels::{Parcels, StoredParcel};
pub use payments::{Begun, OrderPayment, PaymentState, Payments};
pub use settlement::{Deliveries, Log, MakeReceipt, ReceiptEntry, SettledOrder, Settlement, Settling, StoredReceipt};
pub use shares::{Parts, Shares};
pub use transfers::{Leaving, NewTransfer, Transfers};

use chipbound_session::Roots;
use chipbound_wire::api::{AccountRole, Balance, OrderState, Scope, TokenInfo};
use chipbound_wire::random::fresh;
use chipbound_wire::suite::{Aead, Kem, KeyMode};
use chipbound_wire::{AccountId, Amount, Currency, Digest, Hex, KeyId, OrderId, ProgramId, Result, SystemRandom, Time};
use std::future::Future;
use std::io::Write;

/// A key for an instruction that has none yet: 32 hexadecimal digits.
#[must_use]
pub fn fresh_key() -> String {
    Hex(&fresh::<16>(&mut SystemRandom)).to_string()
}

/// Everything that the server keeps. Every method can fail with [`chipbound_wire::Code::Database`].
pub trait Repository:
    Accounts + Releases + Orders + Payments + Deliveries + Parcels + Transfers + Log + Journal + Clone + Send + Sync + 'static
{
}

/// An account as it is made.
#[derive(Clone)]
pub struct NewAccount {
    /// Its id.
    pub account: AccountId,
    /// The user id that people type.
    pub user: String,
    /// What it may do.
    pub role: AccountRole,
    /// The password's hash, a PHC string.
    pub password: String,
    /// When.
    pub created_at: Time,
}

/// Who asks, as a bearer token or the operator's list shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Principal {
    /// The account.
    pub account: AccountId,
    /// Its user id.
    pub user: String,
    /// What it may do.
    pub role: AccountRole,
    /// What the API token by which he asks lets him do; none for a log-in, which lets do all that the role may.
    pub scopes: Option<Vec<Scope>>,
}

/// An API token as it is kept.
#[derive(Clone)]
pub struct StoredToken {
    /// Digest of the token.
    pub token: Digest,
    /// The account.
    pub account: AccountId,
    /// How it is listed.
    pub info: TokenInfo,
}

/// What a log-in is compared with.
pub struct Credentials {
    /// The account.
    pub account: AccountId,
    /// The password's hash, a PHC string.
    pub password: String,
}

/// Accounts, their sessions and their money.
pub trait Accounts {
    /// Adds an account; a user id that is taken is [`chipbound_wire::Code::Conflict`].
    fn add_account(&self, account: &NewAccount) -> impl Future<Output = Result<()>> + Send;
    /// The accounts after that user id, by user id; at most `most`.
    fn accounts(&self, after: &str, most: u32) -> impl Future<Output = Result<Vec<Principal>>> + Send;
    /// The credentials of a user, if there is one.
    fn credentials(&self, user: &str) -> impl Future<Output = Result<Option<Credentials>>> + Send;
    /// Remembers a bearer token by its digest, and forgets the account's oldest beyond `most`.
    fn open_session(&self, account: AccountId, token: Digest, expires_at: Time, most: u32) -> impl Future<Output = Result<()>> + Send;
    /// Who holds the token with that digest at the time `now`.
    fn session(&self, token: Digest, now: Time) -> impl Future<Output = Result<Option<Principal>>> + Send;
    /// Forgets a token.
    fn close_session(&self, token: Digest) -> impl Future<Output = Result<()>> + Send;
    /// Forgets all sessions and API tokens of a user; an unknown user is [`chipbound_wire::Code::NotFound`].
    fn shut_out(&self, user: &str) -> impl Future<Output = Result<()>> + Send;
    /// Keeps an API token. A name that the account has already is [`chipbound_wire::Code::Conflict`], more than `most` of them
    /// [`chipbound_wire::Code::RateLimited`].
    fn add_token(&self, token: &StoredToken, most: u32) -> impl Future<Output = Result<()>> + Send;
    /// The account's API tokens, by name.
    fn tokens(&self, account: AccountId) -> impl Future<Output = Result<Vec<TokenInfo>>> + Send;
    /// Forgets an API token of the account; [`chipbound_wire::Code::NotFound`] where there is none of that name.
    fn revoke_token(&self, account: AccountId, name: &str) -> impl Future<Output = Result<()>> + Send;
    /// Who may ask with the API token of that digest at the time `now`.
    fn token(&self, token: Digest, now: Time) -> impl Future<Output = Result<Option<Principal>>> + Send;
    /// Adds money from outside to a user's funds, once for each key of 1 to 128 bytes: returns what the user had afterwards, on every repeat
    /// the same. An unknown user is [`chipbound_wire::Code::NotFound`], a key that was used on this account for anything else
    /// [`chipbound_wire::Code::IdempotencyConflict`].
    fn deposit(&self, user: &str, amount: Amount, key: &str, at: Time) -> impl Future<Output = Result<Balance>> + Send;
    /// Pays out to outside, a vendor from revenue, anybody else from funds, once for each key as [`Self::deposit`] does; returns what the
    /// user had to spend afterwards. [`chipbound_wire::Code::InsufficientFunds`].
    fn payout(&self, user: &str, amount: Amount, note: &str, key: &str, at: Time) -> impl Future<Output = Result<Balance>> + Send;
    /// What stands in each book of an account.
    fn books_of(&self, account: AccountId) -> impl Future<Output = Result<Vec<BookBalance>>> + Send;
    /// What happened to a user's money with `from` ≤ time < `until`; an unknown user is [`chipbound_wire::Code::NotFound`], more than
    /// 100,000 lines are [`chipbound_wire::Code::TooLarge`].
    fn statement(&self, user: &str, from: Time, until: Time) -> impl Future<Output = Result<Statement>> + Send;
    /// The user id of an account.
    fn user_of(&self, account: AccountId) -> impl Future<Output = Result<Option<String>>> + Send;
    /// The account's money, by currency.
    fn balances(&self, account: AccountId) -> impl Future<Output = Result<Vec<Balance>>> + Send;
}

/// What stands in one book of an account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BookBalance {
    /// The book: deposits, card, funds, held, revenue, tax or fees.
    pub book: String,
    /// The currency.
    pub currency: Currency,
    /// Minor units of it.
    pub minor: i64,
}

/// What happened to an account's money in a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Statement {
    /// What its books came to before.
    pub opening: Vec<BookBalance>,
    /// Every change, in the order of the entries.
    pub lines: Vec<StatementLine>,
}

/// One posting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatementLine {
    /// The entry's number.
    pub entry: u64,
    /// When.
    pub at: Time,
    /// What kind of entry: deposit, payout, hold, release, capture or refund.
    pub kind: String,
    /// The order that it is for.
    pub order: Option<OrderId>,
    /// What the operator noted.
    pub note: String,
    /// The book, and by how much it changed.
    pub change: BookBalance,
}

/// A release whose plaintext is on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PendingUpload {
    /// Names the upload.
    pub upload: String,
    /// The vendor's account.
    pub account: AccountId,
    /// The signed manifest.
    pub manifest: Vec<u8>,
    /// The price.
    pub price: Amount,
    /// Until when the plaintext may come.
    pub expires_at: Time,
}

/// A release that was published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredRelease {
    /// Digest of the signed manifest.
    pub manifest: Digest,
    /// The program.
    pub program: ProgramId,
    /// The version.
    pub version: String,
    /// Rises with each release of the program.
    pub sequence: u64,
    /// The vendor's account, which earns the price.
    pub vendor: AccountId,
    /// The price.
    pub price: Amount,
    /// The signed manifest.
    pub signed_manifest: Vec<u8>,
    /// The layout of its packages in CBOR.
    pub layout: Vec<u8>,
    /// The plain digest of its packages.
    pub plain_digest: Digest,
    /// Of how many bytes its packages seal.
    pub sealed_bytes: u64,
    /// Where the plaintext lies.
    pub blob: String,
    /// When it was published.
    pub published_at: Time,
}

/// The one content key and ciphertext of a release in common key mode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommonPackage {
    /// The release, by the digest of its signed manifest.
    pub manifest: Digest,
    /// The cipher.
    pub aead: Aead,
    /// Drawn for this ciphertext.
    pub package_id: Digest,
    /// The content key, sealed at rest.
    pub content_key: Vec<u8>,
    /// Where the ciphertext lies.
    pub blob: String,
    /// BLAKE3 root over the body.
    pub body_root: Digest,
    /// Bytes of the body.
    pub body_size: u64,
    /// BLAKE3 root over the table.
    pub table_root: Digest,
    /// Bytes of the table.
    pub table_size: u64,
}

impl CommonPackage {
    /// Roots and sizes together.
    #[must_use]
    pub fn roots(&self) -> Roots {
        let Self { body_root, body_size, table_root, table_size, .. } = *self;
        Roots { body_root, body_size, table_root, table_size }
    }
}

/// What vendors published.
pub trait Releases {
    /// Announces a release of `program`, in the place of an earlier announcement of that version.
    /// [`chipbound_wire::Code::Conflict`] where the version is there already or the sequence does not rise, [`chipbound_wire::Code::Forbidden`] where the vendor's releases are another account's,
    /// [`chipbound_wire::Code::RateLimited`] where 64 uploads of the account are open.
    fn announce(
        &self,
        upload: &PendingUpload,
        program: &ProgramId,
        version: &str,
        sequence: u64,
    ) -> impl Future<Output = Result<()>> + Send;
    /// The upload of that account; [`chipbound_wire::Code::NotFound`] otherwise.
    fn upload(&self, upload: &str, account: AccountId, now: Time) -> impl Future<Output = Result<PendingUpload>> + Send;
    /// Publishes what was announced and came whole; the same refusals as [`Self::announce`], decided anew.
    fn publish(&self, upload: &str, release: &StoredRelease) -> impl Future<Output = Result<()>> + Send;
    /// The newest release of each program after that id, by program id; at most `most`.
    fn catalogue(&self, after: &str, most: u32) -> impl Future<Output = Result<Vec<StoredRelease>>> + Send;
    /// The release of `program` (its id, or its name where only one vendor uses it) with that version, or its newest.
    /// [`chipbound_wire::Code::UnknownProgram`] otherwise.
    fn find_release(&self, program: &str, version: Option<&str>) -> impl Future<Output = Result<StoredRelease>> + Send;
    /// The release with that manifest; [`chipbound_wire::Code::UnknownProgram`] otherwise.
    fn release(&self, manifest: Digest) -> impl Future<Output = Result<StoredRelease>> + Send;
    /// The common package of a release and an AEAD, if it was made.
    fn common_package(&self, manifest: Digest, aead: Aead) -> impl Future<Output = Result<Option<CommonPackage>>> + Send;
    /// Keeps a common package unless there is one already; returns the one that is kept.
    fn keep_common_package(&self, package: &CommonPackage) -> impl Future<Output = Result<CommonPackage>> + Send;
    /// Every blob that something refers to.
    fn blobs_in_use(&self) -> impl Future<Output = Result<Vec<String>>> + Send;
}

/// An order as it is placed.
#[derive(Clone)]
pub struct NewOrder {
    /// The order.
    pub order: StoredOrder,
    /// Chosen by the client, with the account it names the order.
    pub idempotency_key: String,
    /// Digest of what the client asked for.
    pub parameters: Digest,
    /// Whether it may be for what the account bought for that processor before.
    pub again: bool,
    /// Whether its vendor withdrew the release: then it is not placed, and one that was placed with the key before is found all the same.
    pub withdrawn: bool,
}

/// An order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredOrder {
    /// Its id.
    pub order: OrderId,
    /// The buyer.
    pub account: AccountId,
    /// The release, by the digest of its signed manifest.
    pub manifest: Digest,
    /// The vendor's account, which earns the price.
    pub seller: AccountId,
    /// The processor it is for.
    pub processor: KeyId,
    /// How the content key will relate to the processor.
    pub key_mode: KeyMode,
    /// The price.
    pub price: Amount,
    /// Where it stands.
    pub state: OrderState,
    /// The signed confirmation.
    pub confirmation: Vec<u8>,
    /// When it was made.
    pub issued_at: Time,
    /// Until when it can be agreed to, delivered and acknowledged.
    pub expires_at: Time,
    /// Until when its receipt buys a re-download.
    pub redownload_until: Time,
    /// How often the price was held.
    pub holds: u64,
    /// The signed receipt, once the price was taken.
    pub receipt: Option<Vec<u8>>,
}

/// An order that was acknowledged, and whose price was not taken yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unsettled {
    /// The order.
    pub order: StoredOrder,
    /// Digest of the acknowledged seal.
    pub seal: Digest,
    /// The signed acknowledgement.
    pub acknowledgement: Vec<u8>,
}

/// A ticket as it is issued.
#[derive(Clone, Copy)]
pub struct NewTicket {
    /// Digest of the ticket.
    pub ticket: Digest,
    /// The order.
    pub order: OrderId,
    /// The order's owner.
    pub account: AccountId,
    /// Until when it can be used.
    pub expires_at: Time,
}

/// Orders, holds and tickets. An order of another account is [`chipbound_wire::Code::UnknownOrder`], as if it were not there.
pub trait Orders {
    /// Places an order. The same key and parameters return the order that was placed first; the same key with other
    /// parameters is [`chipbound_wire::Code::IdempotencyConflict`]. Refuses with [`chipbound_wire::Code::RateLimited`] where 256
    /// orders of the account wait for its agreement (those that are placed in the same moment come on top), and with
    /// [`chipbound_wire::Code::AlreadyBought`] what is not wanted again, with [`chipbound_wire::Code::SequenceTooOld`] what was withdrawn.
    fn place_order(&self, new: &NewOrder) -> impl Future<Output = Result<StoredOrder>> + Send;
    /// An order of that account.
    fn order(&self, account: AccountId, order: OrderId) -> impl Future<Output = Result<StoredOrder>> + Send;
    /// Whether there is an order, whosever it is.
    fn has_order(&self, order: OrderId) -> impl Future<Output = Result<bool>> + Send;
    /// The account's orders, newest first, older than the one that is named by its time of issue and id; at most `most`.
    fn orders(&self, account: AccountId, before: (Time, OrderId), most: u32) -> impl Future<Output = Result<Vec<StoredOrder>>> + Send;
    /// Holds the price of an order whose signed confirmation has the digest `confirmation`. An order that was agreed to
    /// already is returned as it is. Refuses [`chipbound_wire::Code::TermsMismatch`], [`chipbound_wire::Code::OrderExpired`],
    /// [`chipbound_wire::Code::InsufficientFunds`].
    fn authorise(
        &self,
        account: AccountId,
        order: OrderId,
        confirmation: Digest,
        now: Time,
    ) -> impl Future<Output = Result<StoredOrder>> + Send;
    /// Gives up an order for which nothing was sealed yet, and gives back what is held for it; one that is cancelled already is
    /// returned as it is. Anything else is refused with the code of its state.
    fn cancel(&self, account: AccountId, order: OrderId, now: Time) -> impl Future<Output = Result<StoredOrder>> + Send;
    /// Remembers a ticket for an order that is held, or paid and re-admitted; at most `most` at once (those that are issued in the same
    /// moment come on top), beyond them [`chipbound_wire::Code::RateLimited`].
    fn issue_ticket(&self, ticket: &NewTicket, now: Time, most: u32) -> impl Future<Output = Result<()>> + Send;
    /// Whether there is a ticket of that digest that can be used.
    fn has_ticket(&self, ticket: Digest, now: Time) -> impl Future<Output = Result<bool>> + Send;
    /// Uses a ticket up, once, and returns its order, which is being delivered from now on. `account` is who shows it, where that is known. Anything but a good ticket
    /// is [`chipbound_wire::Code::TicketInvalid`] and leaves every ticket as it was.
    fn redeem_ticket(&self, ticket: Digest, account: Option<AccountId>, now: Time) -> impl Future<Output = Result<StoredOrder>> + Send;
    /// Lets tickets be issued for a paid order until `until`, whose receipt is `receipt` byte for byte;
    /// [`chipbound_wire::Code::ReceiptMismatch`] otherwise.
    fn readmit(&self, account: AccountId, order: OrderId, receipt: &[u8], until: Time) -> impl Future<Output = Result<StoredOrder>> + Send;
    /// Gives back the holds of orders that ran out, and forgets tickets and uploads that did, and sessions that did 400 days ago; returns
    /// how many orders.
    fn expire(&self, now: Time) -> impl Future<Output = Result<u64>> + Send;
    /// Gives the price of a paid order, whosever it is, back to its buyer's funds; one that was refunded already is returned as it
    /// is. Anything else is refused with the code of its state.
    fn refund(&self, order: OrderId, note: &str, at: Time) -> impl Future<Output = Result<StoredOrder>> + Send;
    /// Orders that are acknowledged or whose capture was requested, the first 1,000 by id.
    fn unsettled(&self) -> impl Future<Output = Result<Vec<Unsettled>>> + Send;
}

/// A package that was sent whole.
#[derive(Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The order.
    pub order: OrderId,
    /// The signed terms.
    pub terms: Vec<u8>,
    /// The main wrap in CBOR.
    pub wrap: Vec<u8>,
    /// The mechanism of the wrap.
    pub kem: Kem,
    /// The processor's certified sealing key, to which the wrap went.
    pub sealing_key: Vec<u8>,
    /// The release secret, sealed at rest.
    pub release_secret: Vec<u8>,
    /// The content key, sealed at rest.
    pub content_key: Vec<u8>,
    /// The signed seal.
    pub seal: Vec<u8>,
    /// When.
    pub created_at: Time,
}

/// The books for an auditor (docs/ledger.md).
pub trait Journal {
    /// Writes the journal, all of it as it stood at one moment, and returns the writer. Nobody waits for it meanwhile.
    /// [`chipbound_wire::Code::Io`] where the writer fails; what was written before is no whole journal.
    fn journal<W: Write + Send + 'static>(&self, made_at: Time, out: W) -> impl Future<Output = Result<W>> + Send;
}
