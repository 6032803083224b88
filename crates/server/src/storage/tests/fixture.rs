//! Books with three accounts, one release and some money, on either engine.

use crate::log_key::LogSigner;
use crate::storage::{
    Accounts, Books, Deliveries, Delivery, Location, MakeReceipt, NewAccount, NewOrder, NewTicket, Orders, PendingUpload, Releases,
    SettledOrder, Settlement, Settling, Shares, StoredOrder, StoredRelease, fresh_key,
};
use chipbound_session::tls::Identity;
use chipbound_testkit::Pki;
use chipbound_testkit::postgres::Cluster;
use chipbound_wire::api::{AccountRole, OrderState};
use chipbound_wire::certificate::Role;
use chipbound_wire::random::fresh;
use chipbound_wire::suite::{Kem, KeyMode};
use chipbound_wire::{AccountId, Amount, Code, Digest, KeyId, OrderId, ProgramId, Result, SystemRandom, Time};
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
    pub(super) fn location(&self) -> Location {
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
        books.repository.deposit("ann", eur(1000), "opening", NOW).await.expect("a deposit");
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
        self.place_as(number, key, parameters, |order| order).await
    }

    pub(super) async fn place_as(
        &self,
        number: u8,
        key: &str,
        parameters: &[u8],
        change: impl FnOnce(StoredOrder) -> StoredOrder,
    ) -> Result<StoredOrder> {
        let order = change(Self::order(number));
        let new = NewOrder { order, idempotency_key: key.to_owned(), parameters: Digest::of(parameters), again: true, withdrawn: false };
        self.repository.place_order(&new).await
    }

    /// An order that was not placed yet.
    pub(super) fn order(number: u8) -> StoredOrder {
        StoredOrder {
            order: OrderId([number; 16]),
            account: BUYER,
            manifest: release(b"v", "tool", "1.0", 1).manifest,
            seller: VENDOR,
            processor: KeyId([7; 32]),
            key_mode: KeyMode::Direct,
            price: eur(250),
            state: OrderState::Confirmed,
            confirmation: vec![number; 10],
            issued_at: NOW,
            expires_at: NOW.after(100),
            redownload_until: NOW.after(1000),
            holds: 0,
            receipt: None,
        }
    }

    /// An order that is agreed to and delivered; its seal's bytes are those of its number.
    pub(super) async fn delivered(&self, number: u8) -> OrderId {
        let order = self.place(number, &format!("key {number}"), b"p").await.expect("an order");
        self.agree(number).await.expect("a hold");
        self.deliver(number, number).await;
        order.order
    }

    pub(super) async fn agree(&self, number: u8) -> Result<StoredOrder> {
        self.agree_at(number, NOW).await
    }

    pub(super) async fn agree_at(&self, number: u8, now: Time) -> Result<StoredOrder> {
        self.repository.authorise(BUYER, OrderId([number; 16]), Digest::of(&[number; 10]), now).await
    }

    pub(super) async fn repository_deposit(&self, minor: u64) {
        self.repository.deposit("ann", eur(minor), &fresh_key(), NOW).await.expect("a deposit");
    }

    /// Opens a second path for an order, and records that a package was sent.
    pub(super) async fn deliver(&self, number: u8, seal: u8) {
        self.redeem(number, NOW).await.expect("a second path");
        self.seal(number, seal).await.expect("a delivery");
    }

    pub(super) async fn redeem(&self, number: u8, now: Time) -> Result<StoredOrder> {
        let ticket = Digest(fresh(&mut SystemRandom));
        let new = NewTicket { ticket, order: OrderId([number; 16]), account: BUYER, expires_at: now.after(9) };
        self.repository.issue_ticket(&new, now, 100).await?;
        self.repository.redeem_ticket(ticket, Some(BUYER), now).await
    }

    pub(super) async fn seal(&self, number: u8, seal: u8) -> Result<()> {
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
        self.repository.record_delivery(&delivery, KeyId([7; 32])).await
    }

    pub(super) async fn settle(&self, number: u8, seal: u8, token: &[u8]) -> Result<SettledOrder> {
        let settlement = Settlement { token: token.to_vec(), ..settlement(number, seal) };
        self.settle_as(settlement).await
    }

    pub(super) async fn settle_as(&self, settlement: Settlement) -> Result<SettledOrder> {
        let mut settled = self.repository.settle(vec![settling(settlement)]).await?;
        assert_eq!(settled.len(), 1);
        Ok(settled.remove(0))
    }

    pub(super) async fn state(&self, number: u8) -> OrderState {
        self.repository.order(BUYER, OrderId([number; 16])).await.expect("the order").state
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
                "what is held is the price of the orders under way",
                "SELECT (SELECT coalesce(sum(minor), 0) FROM postings WHERE book = 'held') - (SELECT coalesce(sum(price), 0) FROM orders
                 WHERE state IN ('authorised', 'delivering', 'acknowledged', 'capture-requested'))",
            ),
            (
                "what was taken is the price of the paid orders",
                "SELECT (SELECT coalesce(sum(minor), 0) FROM postings JOIN entries USING (entry)
                         WHERE book IN ('revenue', 'fees', 'tax') AND kind <> 'payout')
                      - (SELECT coalesce(sum(price), 0) FROM orders WHERE state IN ('captured', 'released'))",
            ),
            (
                "balances are the sums of their postings",
                "SELECT count(*) FROM (SELECT account, book, currency, sum(minor) AS minor FROM postings GROUP BY account, book, currency) s
                 FULL JOIN balances b USING (account, book, currency) WHERE b.minor IS DISTINCT FROM s.minor",
            ),
            (
                "each seller's receipts are numbered without a gap",
                "SELECT count(*) FROM (SELECT seller FROM receipts GROUP BY seller HAVING max(number) <> count(*) OR min(number) <> 1) AS gaps",
            ),
            (
                "each seller's count is that of the receipts",
                "SELECT count(*) FROM sellers s WHERE receipts <> (SELECT count(*) FROM receipts r WHERE r.seller = s.seller)",
            ),
            (
                "who paid has a receipt, and nobody else",
                "SELECT count(*) FROM orders o WHERE (state IN ('captured', 'released', 'refunded'))
                 <> EXISTS (SELECT 1 FROM receipts r WHERE r.order_id = o.order_id)",
            ),
            (
                "who has a token paid",
                "SELECT count(*) FROM deliveries JOIN orders USING (order_id)
                 WHERE token IS NOT NULL AND state NOT IN ('captured', 'released', 'refunded')",
            ),
            (
                "each round of a hold is ended or its order under way",
                "SELECT count(*) FROM entries h JOIN orders o USING (order_id) WHERE h.kind = 'hold'
                 AND NOT EXISTS (SELECT 1 FROM entries e WHERE e.order_id = h.order_id AND e.round = h.round AND e.kind IN ('release', 'capture'))
                 AND o.state NOT IN ('authorised', 'delivering', 'acknowledged', 'capture-requested')",
            ),
        ] {
            assert_eq!(self.scalar(statement), 0, "{claim}");
        }
    }

    /// All receipts of an account, newest first.
    pub(super) async fn receipts(&self, account: AccountId) -> Vec<Vec<u8>> {
        let all = self.repository.receipts(account, (Time(i64::MAX as u64), OrderId([0xff; 16])), 256).await.expect("receipts");
        all.into_iter().map(|r| r.receipt).collect()
    }

    pub(super) async fn money(&self) -> (u64, u64) {
        let balance = self.repository.balances(BUYER).await.expect("balances")[0];
        (balance.available.minor, balance.held.minor)
    }
}

/// The settlement of the buyer's order with that number and seal, now.
pub(super) fn settlement(number: u8, seal: u8) -> Settlement {
    Settlement {
        order: OrderId([number; 16]),
        account: BUYER,
        seal: Digest::of(&[seal]),
        acknowledgement: b"acknowledged".to_vec(),
        token: b"token".to_vec(),
        shares: Shares::default(),
        at: NOW,
        log: log_signer(),
    }
}

/// The same with a receipt that says what the books said.
pub(super) fn settling(settlement: Settlement) -> Settling {
    let order = settlement.order;
    let receipt: MakeReceipt = Arc::new(move |entry| Ok(format!("receipt {} {} {order}", entry.number, entry.payment).into_bytes()));
    Settling { settlement, receipt }
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
