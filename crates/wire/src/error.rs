//! One table of everything that can be refused. Codes are stable: programs may match on them.

use std::fmt;

/// The result of anything that can be refused.
pub type Result<T> = std::result::Result<T, Refusal>;

/// Whose fault a refusal is, and so who can mend it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// What the other side sent is wrong.
    Peer,
    /// What the caller asked for cannot be had.
    Caller,
    /// The caller may not.
    Denied,
    /// The machine, the network or a disk.
    Environment,
    /// A defect of this software.
    Us,
}

impl Fault {
    /// The exit code of the command for a refusal of this kind (after `sysexits.h`).
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Caller => 65,
            Self::Us => 70,
            Self::Environment => 74,
            Self::Peer => 76,
            Self::Denied => 77,
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $fault:ident, $status:literal, $advice:literal;)+) => {
        /// The stable code of a refusal.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Code { $($(#[$doc])* $variant,)+ }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable text of the code, as it travels and as it is printed.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// Whose fault it is.
            #[must_use]
            pub fn fault(self) -> Fault {
                match self { $(Self::$variant => Fault::$fault),+ }
            }

            /// The HTTP status that carries it on the first path.
            #[must_use]
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status),+ }
            }

            /// What to do next, one sentence.
            #[must_use]
            pub fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice),+ }
            }
        }
    };
}

codes! {
    // What was sent is not what it should be.
    /// Not the CBOR, JSON, DER or text that was expected.
    Malformed = "malformed", Peer, 400, "Check that both sides run the same version, and that the file was not changed.";
    /// Longer than the named limit.
    TooLarge = "too_large", Peer, 413, "Send less at once; the limits are listed in docs/protocol.md.";
    /// A signature does not verify.
    SignatureInvalid = "signature_invalid", Peer, 400, "Somebody changed the document or signed it with another key: fetch it again from its source.";
    /// A document of another kind stands where this kind was expected.
    WrongDocument = "wrong_document", Peer, 400, "Pass the document that the command asks for.";
    /// End of file without close_notify.
    PathTruncated = "path_truncated", Peer, 400, "The connection was cut: run the same command again.";
    /// The peer closed the second path with a refusal of its own that this version does not know.
    PeerRefused = "peer_refused", Peer, 400, "Read the detail; both sides' logs name the reason.";
    /// A message stands where another was expected.
    UnexpectedMessage = "unexpected_message", Peer, 400, "Check that both sides run the same version.";

    // Certificates.
    /// Past its validity.
    CertificateExpired = "certificate_expired", Peer, 403, "Renew the certificate: start the daemon with the authority reachable, or enroll again.";
    /// Before its validity.
    CertificateNotYetValid = "certificate_not_yet_valid", Peer, 403, "Check the clocks of both machines.";
    /// On the authority's revocation list.
    CertificateRevoked = "certificate_revoked", Peer, 403, "The authority withdrew this certificate: ask its operator why.";
    /// Not issued under the authority that is trusted here.
    CertificateForeign = "certificate_foreign", Peer, 403, "Enroll with the authority that the other side trusts; a receipt is verified under the root of its own server's: --root FILE.";
    /// Certified for another role.
    CertificateRole = "certificate_role", Peer, 403, "Use the certificate of the role that is needed here.";
    /// Outside the strict profile of docs/protocol.md.
    CertificateProfile = "certificate_profile", Peer, 403, "Have the certificate issued by a chipbound authority.";
    /// The revocation list is older than its own next update.
    RevocationListStale = "revocation_list_stale", Environment, 503, "Make the authority reachable so that a fresh revocation list can be read.";
    /// The voucher is unknown, used or expired.
    VoucherInvalid = "voucher_invalid", Denied, 403, "Ask the authority's operator for a new voucher: chipbound authority voucher.";
    /// The holder did not prove that it holds the private key.
    PossessionUnproven = "possession_unproven", Peer, 403, "Enroll with keys that your own key store holds.";
    /// This processor or server has no certificate yet.
    NotEnrolled = "not_enrolled", Caller, 409, "Enroll first: chipbound processor enroll, or as a vendor: chipbound vendor init.";

    // The second path.
    /// The signed exchange is not about this connection: relayed, reflected or diverted.
    ExchangeMismatch = "exchange_mismatch", Peer, 403, "Somebody between the two ends relays the connection: do not use this network path.";
    /// The exchange and the TLS connection name different keys.
    IdentityMismatch = "identity_mismatch", Peer, 403, "Somebody between the two ends relays the connection: do not use this network path.";
    /// A statement was signed by another key than the exchange named.
    StatementKeyMismatch = "statement_key_mismatch", Peer, 403, "The server answers with two identities: report it to its operator.";
    /// No suite, format or mode that both sides can process.
    NothingInCommon = "nothing_in_common", Peer, 409, "Upgrade the older side, or widen the server's policy.";
    /// The server chose what the signed offer does not contain.
    OfferAltered = "offer_altered", Peer, 403, "Somebody changed the offer on the way: do not use this network path.";
    /// The terms differ from what was agreed or offered.
    TermsMismatch = "terms_mismatch", Peer, 409, "Order again; if it repeats, report it to the server's operator.";
    /// The seal is not about these terms, wraps, this session or these bytes.
    SealMismatch = "seal_mismatch", Peer, 409, "Run the delivery again; if it repeats, report it to the server's operator.";
    /// The order is another one.
    OrderMismatch = "order_mismatch", Peer, 409, "Use the documents of one and the same order.";
    /// The account is another one.
    AccountMismatch = "account_mismatch", Denied, 403, "Log in as the user who bought it.";
    /// Bound to another processor.
    ProcessorMismatch = "processor_mismatch", Denied, 403, "It is bound to another processor: use it there, have the purchase transferred from there (chipbound transfer), or buy it for this one.";
    /// The release's manifest does not allow this class of key store.
    ClassRefused = "class_refused", Denied, 403, "The vendor does not release this program to this class of processor.";
    /// The vendor's manifest and what was received disagree.
    ManifestMismatch = "manifest_mismatch", Peer, 409, "The server sent something that the vendor did not sign: report it to the vendor.";
    /// The server sealed less of the program than the vendor's profile asks for.
    ProfileMismatch = "profile_mismatch", Peer, 409, "The server sealed less of the program than its vendor asked for: report it to the vendor.";
    /// The opened program is not the one that the vendor signed.
    PlaintextMismatch = "plaintext_mismatch", Peer, 409, "The server sent something that the vendor did not sign: report it to the vendor.";
    /// Not a suite, mode or feature of this version.
    NotSupported = "not_supported", Caller, 400, "See the README for what this version supports.";

    // Packages.
    /// An encrypted page or chunk was changed.
    PageAltered = "page_altered", Peer, 409, "The package was damaged: download it again with its receipt.";
    /// A byte outside the encrypted pages was changed.
    PlainPartsAltered = "plain_parts_altered", Peer, 409, "The package was damaged: download it again with its receipt.";
    /// The package is shorter or longer than it should be.
    PackageTruncated = "package_truncated", Peer, 409, "The package is incomplete: download it again with its receipt.";
    /// Not a package at all.
    NotAPackage = "not_a_package", Caller, 400, "Pass a file that `chipbound buy` or `chipbound redownload` wrote.";
    /// The key wrap does not open.
    WrapInvalid = "wrap_invalid", Peer, 409, "Download it again with its receipt.";
    /// The release token is not for this order, these terms or this processor.
    TokenMismatch = "token_mismatch", Peer, 409, "Use the token that came with this order's receipt.";
    /// This processor never received and compared this package.
    NotReceived = "not_received", Denied, 403, "Only what this processor received and compared is opened: download it again with its receipt.";
    /// The delivery has no release token yet.
    NotReleased = "not_released", Denied, 403, "Finish the delivery: the release token comes with the receipt.";
    /// Older than the minimum the vendor still allows.
    SequenceTooOld = "sequence_too_old", Denied, 403, "The vendor withdrew this version: buy or download a newer one.";
    /// The manifest does not allow this use.
    UseForbidden = "use_forbidden", Denied, 403, "The vendor's manifest does not allow it.";

    // The receipts' log.
    /// The receipt's proof does not lead to the checkpoint, or there is none.
    NotInLog = "not_in_log", Peer, 409, "Keep the receipt and report it: the server did not enter it in its log, or shows another log.";
    /// What the log shows now is not what it showed before.
    LogInconsistent = "log_inconsistent", Peer, 409, "Keep both checkpoints and show them to others: the server rewrote its log or shows two.";
    /// Another log's key, or one that the server's certified receipt key did not name.
    LogKeyUnknown = "log_key_unknown", Peer, 403, "Fetch the proof again from the server that signed the receipt.";

    // Running.
    /// Not a program that can be run this way.
    UnsupportedProgram = "unsupported_program", Caller, 400, "See docs/source-map.md for the formats; other files can be published as data.";
    /// The process at the exec stop is not the package that was verified.
    ProcessMismatch = "process_mismatch", Peer, 409, "The package or its interpreter changed while it was being started: start it again.";
    /// The kernel refused ptrace.
    TraceRefused = "trace_refused", Environment, 503, "Another tracer holds the process, or the kernel forbids it: see the processor's set-up in the README.";
    /// A library that the program would load, or a folder in which it is looked for, could be anybody's.
    ForeignLibrary = "foreign_library", Denied, 403, "Have the administrator own that file and every folder above it, writable by nobody else; or ask the vendor to allow loader variables.";
    /// A filter of system calls is over the process, whose owner could answer in the kernel's place.
    ForeignFilter = "foreign_filter", Denied, 403, "Start it without that filter (sandboxes and units of a service manager set such), or ask the vendor to allow loader variables.";
    /// A package names an interpreter that does not start it here.
    NoDirectStart = "no_direct_start", Environment, 409, "Start it with `chipbound run`, or put it in place anew: chipbound install.";
    /// The client lives in another user or mount namespace.
    ForeignNamespace = "foreign_namespace", Denied, 403, "Start the program in the processor's own namespaces.";
    /// The program could not be started.
    StartFailed = "start_failed", Environment, 500, "Read the detail; the package itself is intact.";
    /// This machine has no way to give a program that data.
    DataUnavailable = "data_unavailable", Environment, 503, "Let the processor use FUSE (the package fuse3, user_allow_other in /etc/fuse.conf) and start it again, or raise its limits.data_in_memory_bytes.";

    // The first path.
    /// User id or password is wrong.
    WrongCredentials = "wrong_credentials", Denied, 401, "Check user id and password: chipbound login.";
    /// No valid bearer token.
    Unauthenticated = "unauthenticated", Denied, 401, "Log in again: chipbound login.";
    /// The role may not do this.
    Forbidden = "forbidden", Denied, 403, "Log in as a user who may do this.";
    /// No such program or version.
    UnknownProgram = "unknown_program", Caller, 404, "See what there is: chipbound catalogue.";
    /// No such order of this account.
    UnknownOrder = "unknown_order", Caller, 404, "See your receipts: chipbound receipts.";
    /// No such route or thing.
    NotFound = "not_found", Caller, 404, "Check the name, the path or the address.";
    /// The method does not exist for this route.
    MethodNotAllowed = "method_not_allowed", Caller, 405, "Check the method against docs/protocol.md.";
    /// The balance does not cover the price.
    InsufficientFunds = "insufficient_funds", Caller, 402, "Ask for less, or have the server's operator add to the account: chipbound account deposit.";
    /// The card provider refuses the payment; nothing is held.
    PaymentDeclined = "payment_declined", Caller, 402, "Nothing was charged: pay with another card (buy --pay card:TOKEN), or from the account's money.";
    /// The card provider has not said yet what became of the payment.
    PaymentPending = "payment_pending", Environment, 503, "Run the same command again in a moment: the provider is asked again, and nothing is charged twice.";
    /// The number of a card where a token should be, or anywhere else.
    CardNumber = "card_number", Caller, 400, "Never send a card number: pass the token (pm_…) that the card provider's own form gives; nothing was stored.";
    /// The same idempotency key with other parameters.
    IdempotencyConflict = "idempotency_conflict", Caller, 409, "Repeat a request with its own words, or give another one a key of its own.";
    /// The order confirmation or the hold ran out.
    OrderExpired = "order_expired", Caller, 410, "Order again; nothing was charged.";
    /// The order was cancelled.
    OrderCancelled = "order_cancelled", Caller, 410, "Order again; nothing was charged.";
    /// The order's price was given back.
    OrderRefunded = "order_refunded", Caller, 410, "The price was given back: to have the program again, pay for another order: chipbound buy.";
    /// The order is not in a state that allows this.
    OrderState = "order_state", Caller, 409, "Look at the order's state and go on from there.";
    /// The ticket is unknown, used or expired.
    TicketInvalid = "ticket_invalid", Denied, 403, "Ask for a new ticket: run the same command again.";
    /// The acknowledgement is not for a delivery of this order.
    AcknowledgementMismatch = "acknowledgement_mismatch", Peer, 409, "Run the delivery again.";
    /// The receipt is not one of this server or not for this order.
    ReceiptMismatch = "receipt_mismatch", Denied, 403, "Use a receipt that this server signed.";
    /// The processor gave the order up for another processor.
    OrderRetired = "order_retired", Denied, 403, "This processor gave the order up: use it on the processor that it was transferred to.";
    /// The price is above what the buyer allowed.
    PriceExceeded = "price_exceeded", Caller, 402, "Nothing was charged: raise --max-price if it is worth that.";
    /// This release was bought for this processor before.
    AlreadyBought = "already_bought", Caller, 409, "Have it again without a charge, on the processor that it is for: chipbound redownload ORDER. To pay for another order: buy --again.";
    /// The receipt's time for downloading again is over.
    ReceiptExpired = "receipt_expired", Denied, 403, "The time for downloading again is over: order the program anew.";
    /// Something with this name is there already and differs.
    Conflict = "conflict", Caller, 409, "Choose another name, place or version, or make way for this one; what is there was left as it is.";
    /// Too many requests.
    RateLimited = "rate_limited", Environment, 429, "Wait as long as Retry-After says, then try again.";
    /// Too many connections or deliveries at once.
    Busy = "busy", Environment, 503, "Try again in a moment.";

    // The machine.
    /// The disk is full.
    DiskFull = "disk_full", Environment, 507, "Free some space; nothing half-written was left, run the command again.";
    /// What was kept of a delivery that was cut short is not what came, or the server's is another; it was thrown away.
    KeptPartAltered = "kept_part_altered", Environment, 409, "Run the same command again: the delivery begins anew, and nothing is charged twice.";
    /// Reading or writing failed.
    Io = "io", Environment, 500, "See that the file, folder or address in the message is there and open to this user, then run the command again.";
    /// No processor answers.
    ProcessorUnreachable = "processor_unreachable", Environment, 503, "Start the processor (chipbound processor run), or name the socket of one that serves this user with --processor.";
    /// No server answers.
    ServerUnreachable = "server_unreachable", Environment, 503, "Check the address and that the server runs.";
    /// The server's TLS certificate is not trusted.
    ServerUntrusted = "server_untrusted", Environment, 495, "Pass the server's TLS root: --tls-root FILE.";
    /// No authority answers.
    AuthorityUnreachable = "authority_unreachable", Environment, 503, "Check the address and that the authority runs.";
    /// The peer was too slow.
    TimedOut = "timed_out", Environment, 504, "Run the same command again.";
    /// Ctrl-C.
    Cancelled = "cancelled", Caller, 499, "Run the same command again to go on.";
    /// A configuration file or flag is wrong.
    ConfigInvalid = "config_invalid", Caller, 400, "Mend the line or the option that is named.";
    /// A key file can be read by others, or is not ours.
    InsecurePermissions = "insecure_permissions", Environment, 500, "chmod 600 the file and chown it to the user who runs this.";
    /// A sealed file does not open.
    Unsealable = "unsealable", Environment, 500, "The file was changed or belongs to another installation: restore it from a backup or enroll again.";
    /// The server's database cannot be reached now; nothing was changed.
    DatabaseUnavailable = "database_unavailable", Environment, 503, "Try again in a moment; the server goes on as soon as its database does.";
    /// The database failed.
    Database = "database", Environment, 500, "Look at the server's log and its disk.";
    /// The database was written by a newer version.
    DatabaseSchema = "database_schema", Environment, 500, "Run the version that wrote it, or a newer one; it was left as it is.";
    /// An audit found that the books are not what they should be.
    BooksInconsistent = "books_inconsistent", Us, 500, "Keep the journal, and do what stands at each finding.";
    /// A defect of this software.
    Internal = "internal", Us, 500, "Report it with the server's log.";
}

impl Code {
    /// The code with this stable text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|c| c.as_str() == text)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something was refused: the code, a detail for people that holds no secret, and the error underneath.
#[derive(Debug)]
pub struct Refusal {
    /// The stable code.
    pub code: Code,
    /// What exactly, one line, no secrets.
    pub detail: String,
    /// Seconds after which it is worth trying again, where that is known.
    pub retry_after: Option<u64>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Refusal {
    /// A refusal with its code and detail.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), retry_after: None, source: None }
    }

    /// The same, keeping the error underneath for the log; it is not part of the text.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same, saying after how many seconds it is worth trying again.
    #[must_use]
    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// A refusal for a failed system call on `what`; a full disk has its own code.
    #[must_use]
    pub fn io(what: impl fmt::Display, error: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let code = match error.kind() {
            K::StorageFull | K::QuotaExceeded => Code::DiskFull,
            K::TimedOut | K::WouldBlock => Code::TimedOut,
            _ => Code::Io,
        };
        Self::new(code, format!("{what}: {error}")).because(error)
    }

    /// The lines that people read: code, what is wrong, what to do. Every program of the system prints a refusal so.
    #[must_use]
    pub fn for_people(&self) -> String {
        let Self { code, detail, .. } = self;
        format!("error[{code}]: {detail}\nwhat to do: {}\n", code.advice())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_text_and_an_advice() {
        let mut seen = std::collections::HashSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()), "{code} twice");
            assert!(code.advice().ends_with('.') && (400..600).contains(&code.status()), "{code}");
            assert_eq!(Code::parse(code.as_str()), Some(*code));
        }
    }
}
