//! The JSON of the first path, under `/v1` (steps 1001, 1002, 1009). Documents travel in it as base64 (RFC 4648 §4) of the
//! bytes that were signed. Errors are `application/problem+json` (RFC 9457) with the codes of [`crate::Code`].
//!
//! Which route takes and answers what is described in `docs/openapi.json`.

use crate::error::{Code, Refusal, Result};
use crate::ids::{AccountId, Amount, Currency, Digest, KeyId, OrderId, ProgramId, Time};
use crate::suite::{Format, KeyMode};
use serde::{Deserialize, Serialize};

/// The value of the `Upgrade` header that opens the tunnel.
pub const UPGRADE: &str = "chipbound/1";
/// The header that names the ticket, in hexadecimal.
pub const TICKET_HEADER: &str = "chipbound-ticket";
/// The header that makes `POST /v1/orders` safe to repeat: 1 to 128 visible ASCII characters chosen by the client.
pub const IDEMPOTENCY_HEADER: &str = "idempotency-key";
/// The first bytes on a line of the second path's own, before the ticket's 32.
pub const LINE_MAGIC: &[u8; 4] = b"cbl1";

/// Signed bytes in JSON.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Base64(pub Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.serialize_str(&data_encoding::BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        data_encoding::BASE64.decode(String::deserialize(d)?.as_bytes()).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A user's credentials.
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LogIn {
    /// The user id.
    pub user: String,
    /// The password.
    pub password: String,
}

/// A bearer token (RFC 6750).
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Session {
    /// The token. A secret.
    pub token: String,
    /// Until when it counts.
    pub expires_at: Time,
}

/// What an account may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum AccountRole {
    /// Buys.
    Customer,
    /// Publishes.
    Vendor,
    /// Keeps accounts; sees no program, receipt or token.
    Operator,
    /// Reads the journal, and nothing else.
    Auditor,
}

impl AccountRole {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Customer, Self::Vendor, Self::Operator, Self::Auditor];

    /// The stable text form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Vendor => "vendor",
            Self::Operator => "operator",
            Self::Auditor => "auditor",
        }
    }

    /// The scopes that an API token of such an account can have.
    #[must_use]
    pub fn scopes(self) -> &'static [Scope] {
        match self {
            Self::Customer => &[Scope::Read, Scope::Buy],
            Self::Vendor => &[Scope::Read, Scope::Publish],
            Self::Operator => &[Scope::Read, Scope::Operate],
            Self::Auditor => &[Scope::Read, Scope::Audit],
        }
    }
}

impl std::str::FromStr for AccountRole {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self> {
        let malformed = || Refusal::new(Code::Malformed, format!("{text:?} is none of customer, vendor, operator, auditor"));
        Self::ALL.into_iter().find(|r| r.as_str() == text).ok_or_else(malformed)
    }
}

/// What an API token lets its holder do, within what its account may.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// See the account, the catalogue, and the account's own orders and receipts.
    Read,
    /// Order, have delivered, settle, download again.
    Buy,
    /// Announce and publish releases.
    Publish,
    /// Keep accounts.
    Operate,
    /// Read the journal.
    Audit,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 5] = [Self::Read, Self::Buy, Self::Publish, Self::Operate, Self::Audit];

    /// The stable text form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Buy => "buy",
            Self::Publish => "publish",
            Self::Operate => "operate",
            Self::Audit => "audit",
        }
    }
}

impl std::str::FromStr for Scope {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self> {
        let malformed = || Refusal::new(Code::Malformed, format!("{text:?} is none of read, buy, publish, operate, audit"));
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(malformed)
    }
}

/// An API token as it is asked for, by whoever is logged in with the password.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Its name within the account: 1 to 64 of `a-z`, `A-Z`, `0-9`, `.`, `_`, `-`.
    pub name: String,
    /// What it lets do; a scope that the account's role has not is refused.
    pub scopes: Vec<Scope>,
    /// For how many days it counts, 1 to 366.
    pub days: u32,
}

/// An API token, shown this once.
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MadeToken {
    /// The bearer token. A secret.
    pub token: String,
    /// Until when it counts.
    pub expires_at: Time,
}

/// An API token as it is listed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TokenInfo {
    /// Its name within the account.
    pub name: String,
    /// What it lets do.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created_at: Time,
    /// Until when it counts.
    pub expires_at: Time,
}

/// The account's API tokens, by name; those that ran out included, until they are revoked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Tokens {
    /// At most 64.
    pub tokens: Vec<TokenInfo>,
}

/// An account as the operator makes it.
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NewAccount {
    /// The user id, 1 to 128 bytes without spaces.
    pub user: String,
    /// What it may do.
    pub role: AccountRole,
    /// The first password, 8 to 1024 bytes.
    pub password: String,
}

/// An account as the operator sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AccountInfo {
    /// Its id in documents.
    pub account: AccountId,
    /// The user id.
    pub user: String,
    /// What it may do.
    pub role: AccountRole,
}

/// A page of the accounts, by user id.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Accounts {
    /// The accounts.
    pub accounts: Vec<AccountInfo>,
    /// The `cursor` of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// An account as its owner sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Account {
    /// Its id in documents.
    pub account: AccountId,
    /// The user id.
    pub user: String,
    /// What it may do.
    pub role: AccountRole,
    /// Its money, one entry for each currency.
    pub balances: Vec<Balance>,
    /// What a vendor's sales came to, one entry for each book and currency.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sales: Vec<Book>,
}

/// What stands in one book of an account.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Book {
    /// The book: `revenue` is what was earned and not paid out, `tax` the taxes in the prices, `fees` the house's share.
    pub book: String,
    /// The currency.
    pub currency: Currency,
    /// Its smallest units; below zero where more was given back or paid out than came in.
    pub minor: i64,
}

/// Money of one currency.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Balance {
    /// Free to spend.
    pub available: Amount,
    /// Held for orders that are not settled.
    pub held: Amount,
}

/// A page of the newest releases of each program.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Catalogue {
    /// In the order of their ids.
    pub programs: Vec<Release>,
    /// The `cursor` of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// One release.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Release {
    /// The program.
    pub program: ProgramId,
    /// The version.
    pub version: String,
    /// Rises with each release.
    pub sequence: u64,
    /// What the plaintext is.
    pub format: Format,
    /// Bytes of the plaintext.
    pub size: u64,
    /// The price.
    pub price: Amount,
    /// Digest of the signed manifest.
    pub manifest: Digest,
    /// When it was published.
    pub published_at: Time,
}

/// A vendor announces a release; the plaintext follows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NewRelease {
    /// The signed manifest.
    pub manifest: Base64,
    /// The price.
    pub price: Amount,
}

/// Where the plaintext goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Upload {
    /// `PUT` the plaintext to `/v1/releases/{upload}`.
    pub upload: String,
}

/// Published.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Published {
    /// The release.
    pub release: Release,
    /// Of how many bytes of the plaintext the package seals.
    pub sealed_bytes: u64,
}

/// A customer orders a release for a processor.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NewOrder {
    /// A program id, or the part after its slash where only one vendor uses it.
    pub program: String,
    /// The version; the newest if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The identity key of the processor.
    pub processor: KeyId,
    /// The key mode; the server's policy if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_mode: Option<KeyMode>,
    /// Whether it may be for what the account bought for that processor before, and could download again for nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

/// Where an order stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OrderState {
    /// Offered, not agreed.
    Confirmed,
    /// Agreed; the price is held.
    Authorised,
    /// A second path was opened for it.
    Delivering,
    /// The processor's acknowledgement is on record.
    Acknowledged,
    /// Whoever holds the price is asked to take it.
    CaptureRequested,
    /// The price is taken; receipt and token are on record.
    Captured,
    /// Receipt and token were given out.
    Released,
    /// Given up before anything was sealed; the hold was given back.
    Cancelled,
    /// Ran out before it was acknowledged; the hold was given back.
    Expired,
    /// The price was given back after it had been taken.
    Refunded,
}

impl OrderState {
    /// Every state.
    pub const ALL: [Self; 10] = [
        Self::Confirmed,
        Self::Authorised,
        Self::Delivering,
        Self::Acknowledged,
        Self::CaptureRequested,
        Self::Captured,
        Self::Released,
        Self::Cancelled,
        Self::Expired,
        Self::Refunded,
    ];

    /// The stable text form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Authorised => "authorised",
            Self::Delivering => "delivering",
            Self::Acknowledged => "acknowledged",
            Self::CaptureRequested => "capture-requested",
            Self::Captured => "captured",
            Self::Released => "released",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Refunded => "refunded",
        }
    }

    /// Whether the order runs out by time: nothing of it is acknowledged.
    #[must_use]
    pub fn runs_out(self) -> bool {
        matches!(self, Self::Confirmed | Self::Authorised | Self::Delivering)
    }

    /// Whether the price was taken and stayed taken.
    #[must_use]
    pub fn is_paid(self) -> bool {
        matches!(self, Self::Captured | Self::Released)
    }
}

impl std::str::FromStr for OrderState {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|s| s.as_str() == text);
        found.ok_or_else(|| Refusal::new(Code::Malformed, format!("{text:?} is not the state of an order")))
    }
}

/// An order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Order {
    /// Its id.
    pub order: OrderId,
    /// Where it stands.
    pub state: OrderState,
    /// The signed confirmation.
    pub confirmation: Base64,
    /// The signed receipt, once the price was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Base64>,
    /// The signed `transfer` by which it is for the processor that it is for now; none where that is the receipt's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Base64>,
    /// The proof that the receipt is in the server's log (C2SP tlog-proof), where it is in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
}

/// A page of the account's orders, newest first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Orders {
    /// The orders.
    pub orders: Vec<Order>,
    /// The `cursor` of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The customer's agreement to a confirmation, by the digest of its signed bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Agreement {
    /// BLAKE3 of the signed confirmation.
    pub confirmation: Digest,
    /// Who pays.
    #[serde(default, skip_serializing_if = "Payment::is_prepaid")]
    pub payment: Payment,
}

/// How a price is paid.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Payment {
    /// From the account's own money.
    #[default]
    Prepaid,
    /// By the card provider: the token of a payment method, `pm_…` ([`crate::payment::CardToken`]). Never a card's number.
    Card(String),
}

impl Payment {
    /// Whether the account's own money pays.
    #[must_use]
    pub fn is_prepaid(&self) -> bool {
        *self == Self::Prepaid
    }
}

impl std::fmt::Debug for Payment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_prepaid() { "Prepaid" } else { "Card(…)" })
    }
}

/// The right to open one second path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Ticket {
    /// One-use.
    pub ticket: Digest,
    /// Until when.
    pub expires_at: Time,
    /// `host:port` of the line of its own, where the server has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
}

/// Step 1008 on its way to the server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Acknowledge {
    /// The processor's signed acknowledgement.
    pub acknowledgement: Base64,
}

/// Step 1009.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Settled {
    /// The signed receipt: the same bytes on every repeat.
    pub receipt: Base64,
    /// The signed release token: the same bytes on every repeat.
    pub token: Base64,
    /// The proof that the receipt is in the server's log (C2SP tlog-proof), where it is in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
}

/// A settled order is to be for another processor, because its own is retired or revoked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TransferOrder {
    /// The identity key of the other processor.
    pub to: KeyId,
    /// The signed `retirement` by its own; left out at first, and where that one is revoked or was never delivered to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retirement: Option<Base64>,
}

/// How far a transfer is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Transferring {
    /// The signed `transfer`, once it is done: the same bytes on every repeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Base64>,
    /// The signed `retirement-request` that the order's own processor is to answer first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Base64>,
}

/// A page of the account's receipts, newest first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Receipts {
    /// Signed receipts.
    pub receipts: Vec<Base64>,
    /// The `cursor` of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A receipt buys the same release for the same processor again (source \[60\]).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Redownload {
    /// The signed receipt.
    pub receipt: Base64,
}
