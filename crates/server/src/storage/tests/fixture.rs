//! Books with three accounts, one release and some money, on either engine.

use crate::log_key::LogSigner;
use crate::storage::{
    Accounts, Books, Deliveries, Delivery, Location, MakeReceipt, NewAccount, NewOrder, Orders, PendingUpload, Releases, SettledOrder,
    Settlement, StoredOrder, StoredRelease,
};
use chipbound_session::tls::Identity;
use chipbound_testkit::Pki;
use chipbound_testkit::postgres::Cluster;
use chipbound_wire::api::{AccountRole, OrderState};
use chipbound_wire::certificate::Role;
use chipbound_wire::suite::{Kem, KeyMode};
use chipbound_wire::{AccountId, Amount, Code, Digest, KeyId, OrderId, ProgramId, Result, Time};
use rusqlite::Connection;
use std::sync::{Arc, OnceLock};

pub(super) const NOW: Time = Time(1_000_000);
pub(super) const BUYER: AccountId = AccountId([1; 16]);
pub(super) const OTHER: AccountId = AccountId([2; 16]);
pub(super) const VENDOR: AccountId = AccountId([3; 16]);

/// Connections to PostgreSQL.
const CONNECTIONS: usize = 4;

/// Where the books of one test are.
pub(super) enum Place {
    File(tempfile::TempDir),
    Database(String),
}

impl Place {
    fn location(&self) -> Location {
        match self {
            Self::File(folder) => Location::File(folder.path().join("server.db")),
            Self::Database(name) => Location::Postgres(Box::new(Cluster::shared().url(name).parse().expect("a URL")), CONNECTIONS),
        }
    }
}

pub(super) struct Fixture {
    pub(super) place: Place,
    pub(super) repository: Books,
}

/// One key for the logs of all fixtures.
pub(super) fn log_signer() -> Arc<LogSigner> {
    static MADE: OnceLock<Arc<LogSigner>> = OnceLock::new();
    let make = || {
        let holder = Pki::new(NOW).holder(Role::ServerReceipt);
        let receipt = Identity { key: Arc::new(holder.key), chain: holder.chain };
        Arc::new(LogSigner::generate(&receipt, "a/log", NOW).expect("a key").0)
    };
    MADE.get_or_init(make).clone()
}

pub(super) fn eur(minor: u64) -> Amount {
    Amount { minor, currency: "EUR".parse().expect("a currency") }
}

pub(super) fn release(vendor_key: &[u8], name: &str, version: &str, sequence: u64) -> StoredRelease {
    let program = ProgramId::new(&KeyId::of_spki(vendor_key), name).expect("a name");
    let signed_manifest = format!("{program} {version} {sequence}").into_bytes();
    StoredRelease {
        manifest: Digest::of(&signed_manifest),
        blob: format!("plain/{program}-{version}"),
        program,
        version: version.to_owned(),
        sequence,
        vendor: VENDOR,
        price: eur(250),
        signed_manifest,
        layout: vec![1],
        plain_digest: Digest([9; 32]),
        sealed_bytes: 4096,
        published_at: NOW,
    }
}

impl Fixture {
    pub(super) async fn on_sqlite() -> Self {
        Self::filled(Place::File(tempfile::tempdir().expect("a folder"))).await
    }

    pub(super) async fn on_postgres() -> Self {
        Self::filled(Place::Database(Cluster::shared().create_database())).await
    }

    /// Three accounts, one release at 2.50 EUR, and 10 EUR for the buyer.
    pub(super) async fn filled(place: Place) -> Self {
        let repository = Books::open(&place.location()).await.expect("a database");
        let books = Self { place, repository };
        for (account, user, role) in
            [(BUYER, "ann", AccountRole::Customer), (OTHER, "bob", AccountRole::Customer), (VENDOR, "vera", AccountRole::Vendor)]
        {
            let new = NewAccount { account, user: user.to_owned(), role, password: "$argon2id$".to_owned(), created_at: NOW };
            books.repository.add_account(&new).await.expect("a new account");
        }
        books.publish(&release(b"v", "tool", "1.0", 1)).await.expect("a release");
        books.repository.deposit("ann", eur(1000), NOW).await.expect("a deposit");
        books
    }

    /// The same books, opened once more.
    pub(super) async fn opened_again(&self) -> Result<Books> {
        Books::open(&self.place.location()).await
    }

    pub(super) async fn publish(&self, release: &StoredRelease) -> Result<()> {
        let upload = PendingUpload {
            upload: format!("{}-{}-{}", release.program, release.version, release.sequence),
            account: VENDOR,
            manifest: release.signed_manifest.clone(),
            price: release.price,
            expires_at: NOW.after(60),
        };
        self.repository.announce(&upload, &release.program, &release.version, release.sequence).await?;
        assert_eq!(self.repository.upload(&upload.upload, VENDOR, NOW).await.expect("announced"), upload);
        self.repository.publish(&upload.upload, release).await
    }

    pub(super) async fn place(&self, number: u8, key: &str, parameters: &[u8]) -> Result<StoredOrder> {
        let order = StoredOrder {
            order: OrderId([number; 16]),
            account: BUYER,
            manifest: release(b"v", "tool", "1.0", 1).manifest,
            processor: KeyId([7; 32]),
            key_mode: KeyMode::Direct,
            price: eur(250),
            state: OrderState::Confirmed,
            confirmation: vec![number; 10],
            issued_at: NOW,
            expires_at: NOW.after(100),
            redownload_until: NOW.after(1000),
            receipt: None,
        };
        let new = NewOrder { order, idempotency_key: key.to_owned(), parameters: Digest::of(parameters) };
        self.repository.place_order(&new).await
    }

    /// An order that is agreed to and delivered; its seal's bytes are those of its number.
    pub(super) async fn delivered(&self, number: u8) -> OrderId {
        let order = self.place(number, &format!("key {number}"), b"p").await.expect("an order");
        self.agree(number).await.expect("a hold");
        self.deliver(number, number).await;
        order.order
    }

    pub(super) async fn agree(&self, number: u8) -> Result<StoredOrder> {
        self.repository.authorise(BUYER, OrderId([number; 16]), Digest::of(&[number; 10]), NOW).await
    }

    pub(super) async fn deliver(&self, number: u8, seal: u8) {
        let delivery = Delivery {
            order: OrderId([number; 16]),
            terms: vec![seal, 1],
            wrap: vec![2],
            kem: Kem::XWing,
            sealing_key: vec![3],
            release_secret: vec![4],
            content_key: vec![9],
            seal: vec![seal],
            created_at: NOW,
        };
        self.repository.record_delivery(&delivery).await.expect("a delivery");
    }

    pub(super) async fn settle(&self, number: u8, seal: u8, token: &[u8]) -> Result<SettledOrder> {
        let settlement = Settlement {
            order: OrderId([number; 16]),
            account: BUYER,
            seal: Digest::of(&[seal]),
            acknowledgement: b"acknowledged".to_vec(),
            token: token.to_vec(),
            at: NOW,
            log: log_signer(),
        };
        let make: MakeReceipt = Box::new(move |entry| Ok(format!("receipt {} {} {number}", entry.number, entry.payment).into_bytes()));
        self.repository.settle(settlement, make).await
    }

    /// Runs statements beside the repository, whatever they do; the error is what the engine says.
    pub(super) fn beside(&self, statements: &str) -> std::result::Result<(), String> {
        match &self.place {
            Place::File(folder) => file(folder).execute_batch(statements).map_err(|e| e.to_string()),
            Place::Database(name) => Cluster::shared().sql(name, statements).map(drop),
        }
    }

    /// The one number that a query finds; zero for none.
    pub(super) fn scalar(&self, query: &str) -> i64 {
        match &self.place {
            Place::File(folder) => file(folder).query_row(query, [], |row| row.get::<_, Option<i64>>(0)).expect(query).unwrap_or(0),
            Place::Database(name) => {
                let found = Cluster::shared().sql(name, query).expect(query);
                if found.is_empty() { 0 } else { found.parse().expect(query) }
            }
        }
    }

    /// Makes what `event` names (`BEFORE UPDATE ON deliveries`) fail for rows where `condition` is true.
    pub(super) fn cut(&self, event: &str, condition: &str) {
        let on = match &self.place {
            Place::File(_) => format!("CREATE TRIGGER cut {event} WHEN {condition} BEGIN SELECT RAISE(ABORT, 'cut'); END"),
            Place::Database(_) => format!(
                "CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'cut'; END $$;
                 CREATE TRIGGER cut {event} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION cut()"
            ),
        };
        self.beside(&on).expect("a trigger");
    }

    /// Lets it happen again.
    pub(super) fn mend(&self, event: &str) {
        let off = match &self.place {
            Place::File(_) => "DROP TRIGGER cut".to_owned(),
            Place::Database(_) => format!("DROP TRIGGER cut ON {}; DROP FUNCTION cut()", event.rsplit(' ').next().expect("a table")),
        };
        self.beside(&off).expect("gone");
    }

    /// Recomputes from orders and receipts what the ledger must say, by other statements than the server's own.
    pub(super) async fn audit(&self) {
        for (claim, statement) in [
            ("each entry sums to zero", "SELECT count(*) FROM (SELECT 1 FROM postings GROUP BY entry, currency HAVING sum(minor) <> 0) AS unequal"),
            ("each posting has an entry", "SELECT count(*) FROM postings WHERE entry NOT IN (SELECT entry FROM entries)"),
            (
                "nobody is below zero",
                "SELECT count(*) FROM (SELECT 1 FROM postings WHERE book IN ('funds', 'held') GROUP BY account, book, currency HAVING sum(minor) < 0) AS below",
            ),
            (
                "what is held is the price of the orders that were agreed to",
                "SELECT (SELECT coalesce(sum(minor), 0) FROM postings WHERE book = 'held') - (SELECT coalesce(sum(price), 0) FROM orders WHERE state = 'authorised')",
            ),
            (
                "what was earned is the price of the settled orders",
                "SELECT (SELECT coalesce(sum(minor), 0) FROM postings WHERE book = 'revenue') - (SELECT coalesce(sum(price), 0) FROM orders WHERE state = 'settled')",
            ),
            (
                "balances are the sums of their postings",
                "SELECT count(*) FROM (SELECT account, book, currency, sum(minor) AS minor FROM postings GROUP BY account, book, currency) s
                 FULL JOIN balances b USING (account, book, currency) WHERE b.minor IS DISTINCT FROM s.minor",
            ),
            ("receipts are numbered without a gap", "SELECT coalesce(max(number), 0) - count(*) FROM receipts"),
            (
                "settled orders and receipts are the same",
                "SELECT (SELECT count(*) FROM orders WHERE state = 'settled') - (SELECT count(*) FROM receipts)",
            ),
        ] {
            assert_eq!(self.scalar(statement), 0, "{claim}");
        }
    }

    pub(super) async fn money(&self) -> (u64, u64) {
        let balance = self.repository.balances(BUYER).await.expect("balances")[0];
        (balance.available.minor, balance.held.minor)
    }
}

fn file(folder: &tempfile::TempDir) -> Connection {
    Connection::open(folder.path().join("server.db")).expect("the database")
}

pub(super) fn code<T>(outcome: Result<T>) -> Code {
    match outcome {
        Ok(_) => panic!("it was not refused"),
        Err(refusal) => refusal.code,
    }
}
