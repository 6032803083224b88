use super::*;
use crate::storage::{
    Accounts, CommonPackage, Deliveries, Delivery, MakeReceipt, NewAccount, NewOrder, NewTicket, Orders, PendingUpload, Releases,
    SettledOrder, Settlement, StoredOrder, StoredRelease,
};
use chipbound_wire::api::{AccountRole, OrderState};
use chipbound_wire::suite::{Aead, Kem, KeyMode};
use chipbound_wire::{AccountId, Digest, KeyId, OrderId, ProgramId, Time};

const NOW: Time = Time(1_000_000);
const BUYER: AccountId = AccountId([1; 16]);
const OTHER: AccountId = AccountId([2; 16]);
const VENDOR: AccountId = AccountId([3; 16]);

struct Books {
    folder: tempfile::TempDir,
    repository: SqliteRepository,
}

fn eur(minor: u64) -> Amount {
    Amount { minor, currency: "EUR".parse().expect("a currency") }
}

fn release(vendor_key: &[u8], name: &str, version: &str, sequence: u64) -> StoredRelease {
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

impl Books {
    /// Three accounts, one release at 2.50 EUR, and 10 EUR for the buyer.
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let repository = SqliteRepository::open(&folder.path().join("server.db")).await.expect("a database");
        let books = Self { folder, repository };
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

    async fn publish(&self, release: &StoredRelease) -> Result<()> {
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

    async fn place(&self, number: u8, key: &str, parameters: &[u8]) -> Result<StoredOrder> {
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
    async fn delivered(&self, number: u8) -> OrderId {
        let order = self.place(number, &format!("key {number}"), b"p").await.expect("an order");
        self.agree(number).await.expect("a hold");
        self.deliver(number, number).await;
        order.order
    }

    async fn agree(&self, number: u8) -> Result<StoredOrder> {
        self.repository.authorise(BUYER, OrderId([number; 16]), Digest::of(&[number; 10]), NOW).await
    }

    async fn deliver(&self, number: u8, seal: u8) {
        let delivery = Delivery {
            order: OrderId([number; 16]),
            terms: vec![seal, 1],
            wrap: vec![2],
            kem: Kem::XWing,
            sealing_key: vec![3],
            release_secret: vec![4],
            seal: vec![seal],
            created_at: NOW,
        };
        self.repository.record_delivery(&delivery).await.expect("a delivery");
    }

    async fn settle(&self, number: u8, seal: u8, token: &[u8]) -> Result<SettledOrder> {
        let settlement = Settlement {
            order: OrderId([number; 16]),
            account: BUYER,
            seal: Digest::of(&[seal]),
            acknowledgement: b"acknowledged".to_vec(),
            token: token.to_vec(),
            at: NOW,
        };
        let make: MakeReceipt = Box::new(move |entry| Ok(format!("receipt {} {} {number}", entry.number, entry.payment).into_bytes()));
        self.repository.settle(settlement, make).await
    }

    /// A connection that is not the repository's.
    fn beside(&self) -> Connection {
        Connection::open(self.folder.path().join("server.db")).expect("the database")
    }

    async fn scalar(&self, statement: &'static str) -> i64 {
        let row = self.beside().query_row(statement, [], |row| row.get::<_, Option<i64>>(0)).expect(statement);
        row.unwrap_or(0)
    }

    /// Recomputes from orders and receipts what the ledger must say, by other statements than the server's own.
    async fn audit(&self) {
        for (claim, statement) in [
            ("each entry sums to zero", "SELECT count(*) FROM (SELECT 1 FROM postings GROUP BY entry, currency HAVING sum(minor) <> 0)"),
            ("each posting has an entry", "SELECT count(*) FROM postings WHERE entry NOT IN (SELECT entry FROM entries)"),
            (
                "nobody is below zero",
                "SELECT count(*) FROM (SELECT 1 FROM postings WHERE book IN ('funds', 'held') GROUP BY account, book, currency HAVING sum(minor) < 0)",
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
                 FULL JOIN balances b USING (account, book, currency) WHERE b.minor IS NOT s.minor",
            ),
            ("receipts are numbered without a gap", "SELECT coalesce(max(number), 0) - count(*) FROM receipts"),
            (
                "settled orders and receipts are the same",
                "SELECT (SELECT count(*) FROM orders WHERE state = 'settled') - (SELECT count(*) FROM receipts)",
            ),
        ] {
            assert_eq!(self.scalar(statement).await, 0, "{claim}");
        }
    }

    async fn money(&self) -> (u64, u64) {
        let balance = self.repository.balances(BUYER).await.expect("balances")[0];
        (balance.available.minor, balance.held.minor)
    }
}

fn code<T>(outcome: Result<T>) -> Code {
    match outcome {
        Ok(_) => panic!("it was not refused"),
        Err(refusal) => refusal.code,
    }
}

#[tokio::test]
async fn an_order_is_held_once_and_captured_once() {
    let books = Books::new().await;
    books.delivered(1).await;
    assert_eq!(books.money().await, (750, 250));
    assert_eq!(books.agree(1).await.expect("agreed again").state, OrderState::Authorised);
    assert_eq!(books.money().await, (750, 250));
    let first = books.settle(1, 1, b"token").await.expect("settled");
    let again = books.settle(1, 1, b"another token").await.expect("settled again");
    assert_eq!(first, again, "repeats return the same bytes");
    assert_eq!(books.money().await, (750, 0));
    assert_eq!(books.repository.receipts(BUYER).await.expect("receipts"), [first.receipt]);
    books.audit().await;
}

#[tokio::test]
async fn parallel_settlements_charge_once_and_answer_alike() {
    let books = std::sync::Arc::new(Books::new().await);
    books.delivered(1).await;
    books.deliver(1, 9).await; // The same order delivered twice before it was settled.
    let tasks: Vec<_> = (0..16)
        .map(|i| {
            let books = books.clone();
            tokio::spawn(async move { books.settle(1, if i % 2 == 0 { 1 } else { 9 }, &[i]).await.expect("settled") })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.expect("a task"));
    }
    assert!(answers.iter().all(|a| a.receipt == answers[0].receipt));
    for half in 0..2 {
        assert!(answers.iter().skip(half).step_by(2).all(|a| a.token == answers[half].token), "one token for one delivery");
    }
    assert_eq!(books.money().await, (750, 0));
    books.audit().await;
}

#[tokio::test]
async fn a_settlement_cut_off_between_any_two_statements_changes_nothing() {
    let books = Books::new().await;
    books.delivered(1).await;
    let before = books.repository.order(BUYER, OrderId([1; 16])).await.expect("the order");
    for (place, trigger) in [
        ("the token", "CREATE TRIGGER cut BEFORE UPDATE ON deliveries BEGIN SELECT RAISE(ABORT, 'cut'); END"),
        ("after the token", "CREATE TRIGGER cut AFTER UPDATE ON deliveries BEGIN SELECT RAISE(ABORT, 'cut'); END"),
        ("the first posting", "CREATE TRIGGER cut BEFORE INSERT ON postings BEGIN SELECT RAISE(ABORT, 'cut'); END"),
        (
            "the second posting",
            "CREATE TRIGGER cut BEFORE INSERT ON postings WHEN NEW.book = 'revenue' BEGIN SELECT RAISE(ABORT, 'cut'); END",
        ),
        ("the entry", "CREATE TRIGGER cut BEFORE INSERT ON entries BEGIN SELECT RAISE(ABORT, 'cut'); END"),
        ("after the entry", "CREATE TRIGGER cut AFTER INSERT ON entries BEGIN SELECT RAISE(ABORT, 'cut'); END"),
        ("the receipt", "CREATE TRIGGER cut BEFORE INSERT ON receipts BEGIN SELECT RAISE(ABORT, 'cut'); END"),
        ("after the receipt", "CREATE TRIGGER cut AFTER INSERT ON receipts BEGIN SELECT RAISE(ABORT, 'cut'); END"),
        ("the order's state", "CREATE TRIGGER cut BEFORE UPDATE ON orders BEGIN SELECT RAISE(ABORT, 'cut'); END"),
        ("after the order's state", "CREATE TRIGGER cut AFTER UPDATE ON orders BEGIN SELECT RAISE(ABORT, 'cut'); END"),
    ] {
        books.beside().execute_batch(trigger).expect("a trigger");
        assert_eq!(code(books.settle(1, 1, b"token").await), Code::Database, "cut at {place}");
        books.beside().execute_batch("DROP TRIGGER cut").expect("gone");
        assert_eq!(books.repository.order(BUYER, OrderId([1; 16])).await.expect("the order"), before, "cut at {place}");
        assert_eq!(books.money().await, (750, 250), "cut at {place}");
        assert_eq!(books.scalar("SELECT count(*) FROM deliveries WHERE token IS NOT NULL").await, 0, "cut at {place}");
        books.audit().await;
    }
    let settled = books.settle(1, 1, b"token").await.expect("settled after all");
    assert_eq!(settled.receipt, b"receipt 1 entry-3 1");
    books.audit().await;
}

#[tokio::test]
async fn a_receipt_that_cannot_be_signed_captures_nothing() {
    let books = Books::new().await;
    let order = books.delivered(1).await;
    let settlement =
        Settlement { order, account: BUYER, seal: Digest::of(&[1]), acknowledgement: b"a".to_vec(), token: b"t".to_vec(), at: NOW };
    let fails: MakeReceipt = Box::new(|_| Err(Refusal::new(Code::Internal, "the key store is gone")));
    assert_eq!(code(books.repository.settle(settlement, fails).await), Code::Internal);
    assert_eq!(books.money().await, (750, 250));
    books.audit().await;
}

#[tokio::test]
async fn a_transaction_that_panics_changes_nothing_and_holds_nobody_up() {
    let books = Books::new().await;
    let order = books.delivered(1).await;
    let (acknowledgement, token) = (b"a".to_vec(), b"t".to_vec());
    let settlement = Settlement { order, account: BUYER, seal: Digest::of(&[1]), acknowledgement, token, at: NOW };
    assert_eq!(code(books.repository.settle(settlement, Box::new(|_| panic!("a fault of ours"))).await), Code::Internal);
    assert_eq!(books.money().await, (750, 250));
    books.settle(1, 1, b"token").await.expect("settled after all");
    books.audit().await;
}

#[tokio::test]
async fn a_settlement_needs_a_hold_the_owner_and_a_seal_of_this_order() {
    let books = Books::new().await;
    books.place(1, "k", b"p").await.expect("an order");
    books.deliver(1, 1).await;
    assert_eq!(code(books.settle(1, 1, b"t").await), Code::OrderState, "not agreed to");
    books.delivered(2).await;
    assert_eq!(code(books.settle(2, 1, b"t").await), Code::AcknowledgementMismatch, "a seal of another order");
    let foreign = Settlement {
        order: OrderId([2; 16]),
        account: OTHER,
        seal: Digest::of(&[2]),
        acknowledgement: b"a".to_vec(),
        token: b"t".to_vec(),
        at: NOW,
    };
    assert_eq!(code(books.repository.settle(foreign, Box::new(|_| Ok(vec![]))).await), Code::UnknownOrder);
    books.audit().await;
}

#[tokio::test]
async fn an_order_that_runs_out_gives_the_money_back_and_cannot_be_settled() {
    let books = Books::new().await;
    books.delivered(1).await;
    books.place(2, "other", b"p").await.expect("an order");
    assert_eq!(books.repository.expire(NOW.after(100)).await.expect("expiry"), 0, "not yet");
    let late = Settlement {
        order: OrderId([1; 16]),
        account: BUYER,
        seal: Digest::of(&[1]),
        acknowledgement: b"a".to_vec(),
        token: b"t".to_vec(),
        at: NOW.after(101),
    };
    assert_eq!(code(books.repository.settle(late, Box::new(|_| Ok(vec![]))).await), Code::OrderExpired, "before the hold is given back");
    assert_eq!(books.repository.expire(NOW.after(101)).await.expect("expiry"), 2);
    assert_eq!(books.repository.expire(NOW.after(101)).await.expect("expiry"), 0, "once");
    assert_eq!(books.money().await, (1000, 0));
    assert_eq!(code(books.settle(1, 1, b"t").await), Code::OrderExpired);
    assert_eq!(code(books.agree(2).await), Code::OrderExpired);
    books.audit().await;
}

#[tokio::test]
async fn money_that_is_not_there_is_not_held() {
    let books = Books::new().await;
    for number in 1..=5 {
        books.place(number, &format!("{number}"), b"p").await.expect("an order");
    }
    for number in 1..=4 {
        books.agree(number).await.expect("10 EUR pay for four");
    }
    assert_eq!(code(books.agree(5).await), Code::InsufficientFunds);
    assert_eq!(books.money().await, (0, 1000));
    books.audit().await;
}

#[tokio::test]
async fn agreeing_to_another_confirmation_holds_nothing() {
    let books = Books::new().await;
    let order = books.place(1, "k", b"p").await.expect("an order").order;
    let other = books.repository.authorise(BUYER, order, Digest::of(b"another confirmation"), NOW).await;
    assert_eq!(code(other), Code::TermsMismatch);
    assert_eq!(books.money().await, (1000, 0));
}

#[tokio::test]
async fn an_idempotency_key_names_one_order() {
    let books = Books::new().await;
    let first = books.place(1, "key", b"parameters").await.expect("an order");
    assert_eq!(books.place(2, "key", b"parameters").await.expect("the same"), first);
    assert_eq!(code(books.place(3, "key", b"others").await), Code::IdempotencyConflict);
    assert_eq!(books.scalar("SELECT count(*) FROM orders").await, 1);
}

#[tokio::test]
async fn a_foreign_order_is_as_if_it_were_not_there() {
    let books = Books::new().await;
    let order = books.delivered(1).await;
    let repository = &books.repository;
    assert_eq!(code(repository.order(OTHER, order).await), Code::UnknownOrder);
    assert_eq!(code(repository.authorise(OTHER, order, Digest::of(&[1; 10]), NOW).await), Code::UnknownOrder);
    let ticket = NewTicket { ticket: Digest([1; 32]), order, account: OTHER, expires_at: NOW.after(9) };
    assert_eq!(code(repository.issue_ticket(&ticket, NOW, 4).await), Code::UnknownOrder);
    let receipt = books.settle(1, 1, b"t").await.expect("settled").receipt;
    assert_eq!(code(repository.readmit(OTHER, order, &receipt, NOW).await), Code::UnknownOrder);
    assert!(repository.receipts(OTHER).await.expect("none").is_empty());
}

#[tokio::test]
async fn a_ticket_admits_once_in_time_and_its_owner_only() {
    let books = Books::new().await;
    let order = books.delivered(1).await;
    let repository = &books.repository;
    for n in 1..=4 {
        let ticket = NewTicket { ticket: Digest([n; 32]), order, account: BUYER, expires_at: NOW.after(9) };
        repository.issue_ticket(&ticket, NOW, 4).await.expect("a ticket");
    }
    let fifth = NewTicket { ticket: Digest([5; 32]), order, account: BUYER, expires_at: NOW.after(9) };
    assert_eq!(code(repository.issue_ticket(&fifth, NOW, 4).await), Code::RateLimited);
    assert_eq!(code(repository.redeem_ticket(Digest([1; 32]), Some(OTHER), NOW).await), Code::TicketInvalid);
    assert_eq!(repository.redeem_ticket(Digest([1; 32]), Some(BUYER), NOW).await.expect("its owner").order, order);
    assert_eq!(code(repository.redeem_ticket(Digest([1; 32]), Some(BUYER), NOW).await), Code::TicketInvalid, "a replay");
    assert_eq!(repository.redeem_ticket(Digest([2; 32]), None, NOW).await.expect("a line of its own").order, order);
    assert_eq!(code(repository.redeem_ticket(Digest([3; 32]), None, NOW.after(10)).await), Code::TicketInvalid, "late");
    assert_eq!(code(repository.redeem_ticket(Digest([99; 32]), None, NOW).await), Code::TicketInvalid, "unknown");
}

#[tokio::test]
async fn a_settled_order_is_delivered_again_for_its_receipt_only() {
    let books = Books::new().await;
    let order = books.delivered(1).await;
    let receipt = books.settle(1, 1, b"t").await.expect("settled").receipt;
    let repository = &books.repository;
    let ticket = |n| NewTicket { ticket: Digest([n; 32]), order, account: BUYER, expires_at: NOW.after(9) };
    assert_eq!(code(repository.issue_ticket(&ticket(1), NOW, 4).await), Code::OrderState);
    assert_eq!(code(repository.readmit(BUYER, order, b"another receipt", NOW.after(5)).await), Code::ReceiptMismatch);
    repository.readmit(BUYER, order, &receipt, NOW.after(5)).await.expect("its receipt");
    repository.issue_ticket(&ticket(1), NOW.after(5), 4).await.expect("a ticket");
    assert_eq!(code(repository.issue_ticket(&ticket(2), NOW.after(6), 4).await), Code::OrderState);
    books.deliver(1, 2).await;
    let again = books.settle(1, 2, b"second token").await.expect("acknowledged again");
    assert_eq!((again.receipt, again.token.as_slice()), (receipt, b"second token".as_slice()), "the same receipt, that delivery's token");
    assert_eq!(books.money().await, (750, 0), "no second charge");
    books.audit().await;
}

#[tokio::test]
async fn a_release_is_new_and_its_sequence_rises() {
    let books = Books::new().await;
    assert_eq!(code(books.publish(&release(b"v", "tool", "1.0", 2)).await), Code::Conflict, "the version is there");
    assert_eq!(code(books.publish(&release(b"v", "tool", "0.9", 1)).await), Code::Conflict, "the sequence does not rise");
    books.publish(&release(b"v", "tool", "2.0", 7)).await.expect("a newer one");
    let repository = &books.repository;
    let catalogue = repository.catalogue().await.expect("the catalogue");
    assert_eq!(catalogue.iter().map(|r| r.version.as_str()).collect::<Vec<_>>(), ["2.0"], "only the newest");
    assert_eq!(repository.find_release("tool", None).await.expect("by name").version, "2.0");
    assert_eq!(repository.find_release("tool", Some("1.0")).await.expect("by version").sequence, 1);
    assert_eq!(code(repository.find_release("tool", Some("3")).await), Code::UnknownProgram);
    books.publish(&release(b"w", "tool", "1.0", 1)).await.expect("another vendor's");
    assert_eq!(code(repository.find_release("tool", None).await), Code::UnknownProgram, "ambiguous");
    let stolen = StoredRelease { vendor: OTHER, ..release(b"v", "other-tool", "1.0", 1) };
    let upload = PendingUpload { upload: "x".to_owned(), account: OTHER, manifest: vec![], price: eur(1), expires_at: NOW };
    let announced = repository.announce(&upload, &stolen.program, "1.0", 1).await;
    assert_eq!(code(announced), Code::Forbidden, "another account earns nothing with this vendor's programs");
    let id = release(b"w", "tool", "1.0", 1).program;
    assert_eq!(repository.find_release(id.as_str(), None).await.expect("by its id").program, id);
}

#[tokio::test]
async fn two_uploads_of_one_version_publish_it_once() {
    let books = Books::new().await;
    let new = release(b"v", "tool", "2.0", 2);
    let upload =
        |name: &str| PendingUpload { upload: name.to_owned(), account: VENDOR, manifest: vec![], price: eur(1), expires_at: NOW.after(60) };
    for name in ["a", "b"] {
        books.repository.announce(&upload(name), &new.program, "2.0", 2).await.expect("announced");
    }
    assert_eq!(code(books.repository.upload("a", BUYER, NOW).await), Code::NotFound, "another account's upload");
    assert_eq!(code(books.repository.upload("a", VENDOR, NOW.after(61)).await), Code::NotFound, "late");
    books.repository.publish("a", &new).await.expect("published");
    assert_eq!(code(books.repository.publish("b", &new).await), Code::Conflict);
    assert_eq!(code(books.repository.publish("a", &new).await), Code::Conflict);
}

#[tokio::test]
async fn a_common_package_is_made_once() {
    let books = Books::new().await;
    let package = |n: u8| CommonPackage {
        manifest: release(b"v", "tool", "1.0", 1).manifest,
        aead: Aead::Aes256Gcm,
        package_id: Digest([n; 32]),
        content_key: vec![n],
        blob: format!("common/{n}"),
        body_root: Digest([n; 32]),
        body_size: 1,
        table_root: Digest([n; 32]),
        table_size: 1,
    };
    assert_eq!(books.repository.keep_common_package(&package(1)).await.expect("kept"), package(1));
    assert_eq!(books.repository.keep_common_package(&package(2)).await.expect("the first"), package(1));
    let found = books.repository.common_package(package(1).manifest, Aead::Aes256Gcm).await.expect("a query");
    assert_eq!(found, Some(package(1)));
    assert_eq!(books.repository.blobs_in_use().await.expect("blobs").len(), 2);
}

#[tokio::test]
async fn the_ledger_only_grows_and_takes_no_entry_that_does_not_balance() {
    let books = Books::new().await;
    for statement in [
        "UPDATE postings SET minor = 0",
        "DELETE FROM postings",
        "UPDATE entries SET at = 0",
        "DELETE FROM entries",
        "DELETE FROM balances",
        "INSERT INTO postings SELECT 1, 'held', account, 'EUR', 5 FROM accounts",
        "INSERT INTO entries VALUES (99, 'deposit', NULL, 0)",
        "INSERT INTO postings SELECT 99, 'funds', account, 'EUR', 5 FROM accounts",
    ] {
        assert!(books.beside().execute_batch(statement).is_err(), "{statement}");
    }
    let unbalanced = books.beside().execute_batch(
        "BEGIN; INSERT INTO postings VALUES (99, 'funds', x'01010101010101010101010101010101', 'EUR', 5);
         INSERT INTO entries VALUES (99, 'deposit', NULL, 0);",
    );
    assert!(unbalanced.expect_err("it does not balance").to_string().contains("sums to zero"));
    books.audit().await;
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused_and_left_as_it_is() {
    let books = Books::new().await;
    books.beside().execute_batch("INSERT INTO _sqlx_migrations VALUES (9999, 'later', 0, 1, x'00', 0)").expect("a later form");
    books.repository.close().await;
    let path = books.folder.path().join("server.db");
    let before = std::fs::read(&path).expect("the file");
    let refusal = SqliteRepository::open(&path).await.expect_err("a newer form");
    assert_eq!(refusal.code, Code::Database);
    assert!(refusal.detail.contains("newer version"), "{}", refusal.detail);
    assert_eq!(std::fs::read(&path).expect("the file"), before);
}

#[tokio::test]
async fn a_database_of_the_first_form_gets_its_balances() {
    let books = Books::new().await;
    books.delivered(1).await;
    books.repository.close().await;
    let form = "DROP TABLE balances; DROP TRIGGER postings_make_balances; DELETE FROM _sqlx_migrations WHERE version = 2;
                CREATE INDEX postings_of_a_book ON postings (account, book, currency, minor);";
    books.beside().execute_batch(form).expect("the first form");
    let repository = SqliteRepository::open(&books.folder.path().join("server.db")).await.expect("brought to this form");
    let books = Books { repository, ..books };
    assert_eq!(books.money().await, (750, 250));
    books.settle(1, 1, b"token").await.expect("settled");
    books.audit().await;
}

#[tokio::test]
async fn what_was_settled_is_there_after_a_restart() {
    let books = Books::new().await;
    books.delivered(1).await;
    let settled = books.settle(1, 1, b"token").await.expect("settled");
    let repository = SqliteRepository::open(&books.folder.path().join("server.db")).await.expect("opened beside it");
    let order = repository.order(BUYER, OrderId([1; 16])).await.expect("the order");
    assert_eq!((order.state, order.receipt), (OrderState::Settled, Some(settled.receipt)));
}

#[tokio::test]
async fn a_session_ends_by_time_by_log_out_and_by_newer_ones() {
    let books = Books::new().await;
    let repository = &books.repository;
    for n in 1..=4u8 {
        repository.open_session(BUYER, Digest([n; 32]), NOW.after(u64::from(n)), 3).await.expect("a session");
    }
    assert!(repository.session(Digest([1; 32]), NOW).await.expect("a query").is_none(), "the oldest gave way");
    let ann = repository.session(Digest([4; 32]), NOW).await.expect("a query").expect("logged in");
    assert_eq!((ann.account, ann.user.as_str()), (BUYER, "ann"));
    assert!(repository.session(Digest([4; 32]), NOW.after(5)).await.expect("a query").is_none(), "late");
    repository.close_session(Digest([4; 32])).await.expect("log-out");
    assert!(repository.session(Digest([4; 32]), NOW).await.expect("a query").is_none());
    let taken = NewAccount {
        account: AccountId([8; 16]),
        user: "ann".to_owned(),
        role: AccountRole::Vendor,
        password: String::new(),
        created_at: NOW,
    };
    assert_eq!(code(repository.add_account(&taken).await), Code::Conflict);
    assert_eq!(code(repository.deposit("nobody", eur(1), NOW).await), Code::NotFound);
}

#[tokio::test]
async fn who_agrees_to_nothing_and_uploads_nothing_is_stopped_at_a_limit() {
    let books = Books::new().await;
    for number in 0..=255 {
        books.place(number, &format!("{number}"), b"p").await.expect("an order");
    }
    let order = books.place(1, "one too many", b"p").await;
    assert_eq!(code(order), Code::RateLimited);
    books.place(2, "2", b"p").await.expect("a repeat is no new order");
    for number in 0..=64 {
        let upload =
            PendingUpload { upload: format!("{number}"), account: VENDOR, manifest: vec![], price: eur(1), expires_at: NOW.after(60) };
        let announced = books.repository.announce(&upload, &release(b"v", "new", "1", 1).program, "1", 1).await;
        assert_eq!(announced.err().map(|r| r.code), (number == 64).then_some(Code::RateLimited), "{number}");
    }
}
