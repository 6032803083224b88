//! The documents: what each party signs. Their CDDL is `docs/chipbound.cddl`; the map keys are the `n(..)` numbers here.

use crate::bounded::{Bytes, List, Text};
use crate::certificate::{Role, SealingKey};
use crate::ids::{AccountId, Amount, Digest, KeyId, OrderId, ProgramId, Time};
use crate::limits::{MAX_CHOICES, MAX_KEM_BYTES, MAX_NAME, MAX_ORIGIN, MAX_TEXT};
use crate::signed::Document;
use crate::suite::{Class, Format, Kem, KeyMode, LoaderVariables, Profile, Suite};
use minicbor::{Decode, Encode};

macro_rules! document {
    ($name:ident, $kind:literal, $role:ident) => {
        impl Document for $name {
            const CONTENT_TYPE: &'static str = concat!("application/chipbound-", $kind, "+cbor");
            const ROLE: Role = Role::$role;
        }
    };
}

/// The vendor's word on one release: what the plaintext is and what may be done with it.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Manifest {
    /// The program; its id begins with the hash of the signer's key.
    #[n(0)]
    pub program: ProgramId,
    /// The vendor's name of the version.
    #[n(1)]
    pub version: Text<MAX_NAME>,
    /// Rises with each release of the program.
    #[n(2)]
    pub sequence: u64,
    /// What the plaintext is.
    #[n(3)]
    pub format: Format,
    /// BLAKE3 root of the whole plaintext.
    #[n(4)]
    pub plain_root: Digest,
    /// Size of the plaintext in bytes.
    #[n(5)]
    pub plain_size: u64,
    /// What is sealed.
    #[n(6)]
    pub profile: Profile,
    /// What happens to loader variables.
    #[n(7)]
    pub loader_variables: LoaderVariables,
    /// The classes of key store that may open it; `software` only where it is named.
    #[n(8)]
    pub classes: List<Class, MAX_CHOICES>,
    /// Whether data may be opened to a file.
    #[n(9)]
    pub open_to_file: bool,
    /// The smallest sequence number of the program that is still opened by a processor which knows this manifest.
    #[n(10)]
    pub minimum_sequence: u64,
    /// The key modes that the vendor allows.
    #[n(11)]
    pub key_modes: List<KeyMode, MAX_CHOICES>,
    /// The programs to which data may be given that may not be opened to a file; all of the same vendor where absent.
    #[n(12)]
    pub readers: Option<List<ProgramId, MAX_CHOICES>>,
}
document!(Manifest, "manifest", Vendor);

/// What the server offers and the client agrees to (step 1002).
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Confirmation {
    /// The order.
    #[n(0)]
    pub order: OrderId,
    /// The buyer.
    #[n(1)]
    pub account: AccountId,
    /// The program.
    #[n(2)]
    pub program: ProgramId,
    /// Its version.
    #[n(3)]
    pub version: Text<MAX_NAME>,
    /// Digest of the vendor's signed manifest.
    #[n(4)]
    pub manifest: Digest,
    /// The identity key of the processor it is for.
    #[n(5)]
    pub processor: KeyId,
    /// The price, captured at settlement.
    #[n(6)]
    pub price: Amount,
    /// When it was made.
    #[n(7)]
    pub issued_at: Time,
    /// Until when it can be agreed to and delivered.
    #[n(8)]
    pub expires_at: Time,
    /// The conditions, for people.
    #[n(9)]
    pub conditions: Text<MAX_TEXT>,
    /// Until when the receipt will buy a re-download.
    #[n(10)]
    pub redownload_until: Time,
}
document!(Confirmation, "confirmation", ServerStatement);

/// The server's half of the explicit exchange (step 1005; source \[46\]).
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ServerExchange {
    /// What both ends sign.
    #[n(0)]
    pub facts: ExchangeFacts,
}
document!(ServerExchange, "server-exchange", ServerSecondPath);

/// The processor's half of the explicit exchange (step 1006; source \[47\]).
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ProcessorExchange {
    /// What both ends sign.
    #[n(0)]
    pub facts: ExchangeFacts,
}
document!(ProcessorExchange, "processor-exchange", Processor);

/// What both ends of the second path sign: who they are, for which order, and in which connection. The direction is in the
/// document's kind.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ExchangeFacts {
    /// Rc, the processor's challenge.
    #[n(0)]
    pub processor_challenge: Digest,
    /// Rs, the server's challenge.
    #[n(1)]
    pub server_challenge: Digest,
    /// The processor's identity key.
    #[n(2)]
    pub processor: KeyId,
    /// The server's second-path key.
    #[n(3)]
    pub server: KeyId,
    /// The key that will sign terms, seal and token (A30).
    #[n(4)]
    pub statement_key: KeyId,
    /// The processor's sealing key of this session, in memory only.
    #[n(5)]
    pub session_key: SealingKey,
    /// The order.
    #[n(6)]
    pub order: OrderId,
    /// The TLS exporter (RFC 8446 §7.5) with [`EXPORTER_LABEL`], 32 bytes.
    #[n(7)]
    pub exporter: Digest,
}

/// The label of the TLS exporter; its context is empty.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-chipbound/1 exchange";

/// What the processor says it can process (source \[61\]); signed as a whole, so that nobody can thin it out (A8).
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Offer {
    /// Digest of the [`ExchangeFacts`] in CBOR: the offer is of this session.
    #[n(0)]
    pub exchange: Digest,
    /// Suites it can open, in no order of preference: the server's policy decides.
    #[n(1)]
    pub suites: List<Suite, MAX_CHOICES>,
    /// Formats it can open.
    #[n(2)]
    pub formats: List<Format, MAX_CHOICES>,
    /// Key modes it can open.
    #[n(3)]
    pub key_modes: List<KeyMode, MAX_CHOICES>,
    /// The largest plaintext it can take, in bytes.
    #[n(4)]
    pub max_plain_size: u64,
    /// What it kept of an earlier delivery of this order, if anything.
    #[n(5)]
    pub kept: Option<Kept>,
}
document!(Offer, "offer", Processor);

/// The beginning of a body that a processor keeps from a delivery that did not come to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Kept {
    /// Digest of the signed terms of that delivery.
    #[n(0)]
    pub terms: Digest,
    /// Bytes of the body, from its start: whole chunks of [`crate::limits::MAX_CHUNK`], or all of it.
    #[n(1)]
    pub bytes: u64,
}

/// On what the delivery stands; the key wrap's AAD is the digest of this document, which therefore does not hold the wrap.
/// Terms and wrap stay the same when a delivery is resumed.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Terms {
    /// The order.
    #[n(0)]
    pub order: OrderId,
    /// The buyer.
    #[n(1)]
    pub account: AccountId,
    /// The processor's identity key.
    #[n(2)]
    pub processor: KeyId,
    /// Digest of the vendor's signed manifest.
    #[n(3)]
    pub manifest: Digest,
    /// The suite.
    #[n(4)]
    pub suite: Suite,
    /// The format.
    #[n(5)]
    pub format: Format,
    /// The key mode.
    #[n(6)]
    pub key_mode: KeyMode,
    /// Drawn fresh for each encryption.
    #[n(7)]
    pub package_id: Digest,
    /// Commitment to the release secret (`sealing::gate::ReleaseSecret::commitment`).
    #[n(8)]
    pub release_commitment: Digest,
    /// Commitment to the content key, from the same derivation as the page key.
    #[n(9)]
    pub key_commitment: Digest,
}
document!(Terms, "terms", ServerStatement);

/// A key wrap (HPKE, RFC 9180). The main wrap goes to the processor's certified sealing key in PSK mode; the session wrap to
/// the session's sealing key in base mode. Not signed by itself: the seal names its digest.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Wrap {
    /// The mechanism.
    #[n(0)]
    pub kem: Kem,
    /// The encapsulated key: 1120 bytes for X-Wing, 65 for P-256.
    #[n(1)]
    pub enc: Bytes<MAX_KEM_BYTES>,
    /// The ciphertext: the content key (common mode, session wrap) or the key commitment (direct mode); 32 bytes and a tag.
    #[n(2)]
    pub ciphertext: Bytes<64>,
}

/// The last word on one delivery (step 1007): everything that was sent, by digest.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Seal {
    /// Digest of the signed terms.
    #[n(0)]
    pub terms: Digest,
    /// Digest of the main wrap in CBOR.
    #[n(1)]
    pub wrap: Digest,
    /// Digest of the session wrap in CBOR.
    #[n(2)]
    pub session_wrap: Digest,
    /// Digest of this session's [`ExchangeFacts`] in CBOR.
    #[n(3)]
    pub exchange: Digest,
    /// The plain digest: over the layout and every unsealed byte of the body.
    #[n(4)]
    pub plain_digest: Digest,
    /// BLAKE3 root over the whole body, ciphertext and plain parts.
    #[n(5)]
    pub body_root: Digest,
    /// Bytes of the body.
    #[n(6)]
    pub body_size: u64,
    /// BLAKE3 root over the table: the layout and all tags.
    #[n(7)]
    pub table_root: Digest,
    /// Bytes of the table.
    #[n(8)]
    pub table_size: u64,
}
document!(Seal, "seal", ServerStatement);

/// The processor's word that it received, opened and compared the package (step 1008; source \[51\]).
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Acknowledgement {
    /// The order.
    #[n(0)]
    pub order: OrderId,
    /// Digest of the signed terms.
    #[n(1)]
    pub terms: Digest,
    /// Digest of the signed seal.
    #[n(2)]
    pub seal: Digest,
    /// When.
    #[n(3)]
    pub at: Time,
}
document!(Acknowledgement, "acknowledgement", Processor);

/// The receipt (step 1009; source \[51\]\[60\]).
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Receipt {
    /// Rises by one for each receipt of the seller.
    #[n(0)]
    pub number: u64,
    /// The order.
    #[n(1)]
    pub order: OrderId,
    /// The buyer.
    #[n(2)]
    pub account: AccountId,
    /// The program.
    #[n(3)]
    pub program: ProgramId,
    /// Its version.
    #[n(4)]
    pub version: Text<MAX_NAME>,
    /// Digest of the vendor's signed manifest.
    #[n(5)]
    pub manifest: Digest,
    /// The processor's identity key.
    #[n(6)]
    pub processor: KeyId,
    /// What was captured.
    #[n(7)]
    pub amount: Amount,
    /// The payment's reference in the seller's books.
    #[n(8)]
    pub payment: Text<MAX_NAME>,
    /// When it was captured.
    #[n(9)]
    pub issued_at: Time,
    /// Until when it buys a re-download, any number of times.
    #[n(10)]
    pub redownload_until: Time,
    /// Who sold, with which taxes, under which conditions. The first receipts were given without it.
    #[n(11)]
    pub sale: Option<Sale>,
    /// Where the receipt is entered in its server's log. The first receipts are in none.
    #[n(12)]
    pub log: Option<LogPlace>,
}
document!(Receipt, "receipt", ServerReceipt);

/// What a receipt says of its seller.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Sale {
    /// The vendor's account, which counts its receipts from 1. The vendor's key is in the program's id.
    #[n(0)]
    pub seller: AccountId,
    /// Who sells, for people.
    #[n(1)]
    pub name: Text<MAX_TEXT>,
    /// The taxes that the amount contains.
    #[n(2)]
    pub taxes: List<TaxLine, MAX_CHOICES>,
    /// The conditions that the buyer agreed to, for people.
    #[n(3)]
    pub conditions: Text<MAX_TEXT>,
}

/// One tax that an amount contains.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(array)]
pub struct TaxLine {
    /// Its name.
    #[n(0)]
    pub name: Text<MAX_NAME>,
    /// Its rate in hundredths of a percent.
    #[n(1)]
    pub rate: u32,
    /// What of the amount is this tax, in minor units of the receipt's currency.
    #[n(2)]
    pub minor: u64,
}

/// Where a receipt is entered in its server's log (`tlog`).
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct LogPlace {
    /// The log.
    #[n(0)]
    pub origin: Text<MAX_ORIGIN>,
    /// The entry, counted from 0.
    #[n(1)]
    pub index: u64,
    /// 32 random bytes, so that nobody who reads the log can test guesses at what was bought.
    #[n(2)]
    pub salt: Digest,
}

/// The server's word on the key by which its log is signed. A new key gets a new statement; the log goes on.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct LogStatement {
    /// The log.
    #[n(0)]
    pub origin: Text<MAX_ORIGIN>,
    /// The public key (Ed25519, RFC 8032), 32 bytes.
    #[n(1)]
    pub key: Bytes<32>,
    /// From when on it signs.
    #[n(2)]
    pub issued_at: Time,
}
document!(LogStatement, "log", ServerReceipt);

/// What opens the gate (step 1009-1010): the release secret, sealed to the processor.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ReleaseToken {
    /// The order.
    #[n(0)]
    pub order: OrderId,
    /// Digest of the signed terms.
    #[n(1)]
    pub terms: Digest,
    /// The processor's identity key.
    #[n(2)]
    pub processor: KeyId,
    /// The release secret, HPKE-sealed to the processor's certified sealing key.
    #[n(3)]
    pub release: Wrap,
}
document!(ReleaseToken, "release-token", ServerStatement);

/// The server asks a processor to give up an order, whose owner wants it on another processor.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct RetirementRequest {
    /// The order.
    #[n(0)]
    pub order: OrderId,
    /// The processor that gives it up.
    #[n(1)]
    pub from: KeyId,
    /// The processor that it is for from then on.
    #[n(2)]
    pub to: KeyId,
    /// The program.
    #[n(3)]
    pub program: ProgramId,
    /// Until when the request counts.
    #[n(4)]
    pub until: Time,
}
document!(RetirementRequest, "retirement-request", ServerStatement);

/// The processor's word that it has forgotten what it needs to open an order's packages, and will never take the order again.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Retirement {
    /// The order.
    #[n(0)]
    pub order: OrderId,
    /// The processor that it is for from now on.
    #[n(1)]
    pub to: KeyId,
    /// When.
    #[n(2)]
    pub at: Time,
}
document!(Retirement, "retirement", Processor);

/// The server's word that an order is for another processor from now on, at no charge.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Transfer {
    /// The order.
    #[n(0)]
    pub order: OrderId,
    /// The buyer.
    #[n(1)]
    pub account: AccountId,
    /// The processor that it was for.
    #[n(2)]
    pub from: KeyId,
    /// The processor that it is for.
    #[n(3)]
    pub to: KeyId,
    /// When.
    #[n(4)]
    pub at: Time,
}
document!(Transfer, "transfer", ServerReceipt);

/// The documents appended to a package, after the table. The manifest is encrypted: it names the digest of the plaintext,
/// with which anybody could test guesses.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct PackageDocuments {
    /// The signed [`Terms`].
    #[n(0)]
    pub terms: Bytes<{ crate::limits::MAX_DOCUMENT }>,
    /// The main wrap.
    #[n(1)]
    pub wrap: Wrap,
    /// The signed [`Seal`].
    #[n(2)]
    pub seal: Bytes<{ crate::limits::MAX_DOCUMENT }>,
    /// The signed [`ReleaseToken`].
    #[n(3)]
    pub token: Bytes<{ crate::limits::MAX_DOCUMENT }>,
    /// The signed [`Manifest`], sealed with the content key.
    #[n(4)]
    pub sealed_manifest: Bytes<{ crate::limits::MAX_DOCUMENT }>,
}

/// A receipt in a file of its own, with what it takes to verify it anywhere but the authority's root.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ExportedReceipt {
    /// The signed [`Receipt`].
    #[n(0)]
    pub receipt: Bytes<{ crate::limits::MAX_DOCUMENT }>,
    /// The proof that it is in its server's log ([`crate::tlog::InclusionProof`]).
    #[n(1)]
    pub proof: Option<Bytes<{ crate::limits::MAX_PROOF_FILE }>>,
}
