//! Accounts, releases, common packages, the ledger's own guards, the form of the database.

use super::fixture::{BUYER, Fixture, NOW, OTHER, VENDOR, code, eur, release};
use crate::storage::{
    Accounts, CommonPackage, Leaving, NewAccount, NewTransfer, Orders, Parcels, PendingUpload, Releases, StoredParcel, StoredRelease,
    Transfers,
};
use chipbound_session::Roots;
use chipbound_testkit::{Pki, documents};
use chipbound_wire::api::{AccountRole, OrderState};
use chipbound_wire::bounded::Text;
use chipbound_wire::certificate::Role;
use chipbound_wire::documents::Manifest;
use chipbound_wire::suite::{Aead, Kem};
use chipbound_wire::{AccountId, Code, Digest, KeyId, OrderId};

pub(super) async fn a_release_is_new_and_its_sequence_rises(books: Fixture) {
    assert_eq!(code(books.publish(&release(b"v", "tool", "1.0", 2)).await), Code::Conflict, "the version is there");
    assert_eq!(code(books.publish(&release(b"v", "tool", "0.9", 1)).await), Code::Conflict, "the sequence does not rise");
    books.publish(&release(b"v", "tool", "2.0", 7)).await.expect("a newer one");
    let repository = &books.repository;
    let catalogue = repository.catalogue("", 10).await.expect("the catalogue");
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

pub(super) async fn two_uploads_of_one_version_publish_it_once(books: Fixture) {
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

pub(super) async fn a_version_that_is_announced_anew_is_published_by_its_newest_announcement(books: Fixture) {
    let vendor = Pki::new(NOW).holder(Role::Vendor);
    let signed = |version: &str| {
        let manifest = documents::manifest(&vendor.id(), b"plain");
        vendor.sign(&Manifest { version: Text::new(version).expect("a version"), ..manifest })
    };
    let program = documents::manifest(&vendor.id(), b"plain").program;
    let announce = async |name: &str, version: &str| {
        let manifest = signed(version); // Other bytes each time.
        let upload = PendingUpload { upload: name.to_owned(), account: VENDOR, manifest, price: eur(1), expires_at: NOW.after(60) };
        books.repository.announce(&upload, &program, version, 1).await.expect("announced");
    };
    announce("a", "1.0").await;
    announce("b", "1.1").await;
    announce("c", "1.0").await;
    let new = StoredRelease { program: program.clone(), ..release(b"x", "tool", "1.0", 1) };
    assert_eq!(code(books.repository.upload("a", VENDOR, NOW).await), Code::NotFound);
    assert_eq!(code(books.repository.publish("a", &new).await), Code::Conflict, "it was under way");
    books.repository.upload("b", VENDOR, NOW).await.expect("another version stays");
    books.repository.publish("c", &new).await.expect("published");
}

pub(super) async fn a_common_package_is_made_once(books: Fixture) {
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

fn parcel(order: u8, terms: u8, body_size: u64) -> StoredParcel {
    StoredParcel {
        order: OrderId([order; 16]),
        terms: vec![terms],
        wrap: vec![1],
        kem: Kem::XWing,
        sealing_key: vec![2],
        release_secret: vec![3],
        content_key: vec![4],
        blob: Some(format!("order/{order}-{terms}")),
        roots: Roots { body_root: Digest([5; 32]), body_size, table_root: Digest([6; 32]), table_size: 7 },
        until: NOW.after(u64::from(order)),
    }
}

pub(super) async fn a_parcel_is_kept_for_its_terms_until_it_is_forgotten_replaced_late_or_without_room(books: Fixture) {
    for order in 1..=4 {
        books.place(order, &format!("key {order}"), b"p").await.expect("an order");
    }
    let (repository, none) = (&books.repository, Vec::<String>::new());
    assert_eq!(repository.keep_parcel(&parcel(1, 1, 10), 100).await.expect("kept"), none);
    let found = |order: u8, terms: u8| repository.parcel(OrderId([order; 16]), Digest::of(&[terms]));
    assert!(found(1, 1).await.expect("a query") == Some(parcel(1, 1, 10)));
    assert!(found(1, 2).await.expect("a query").is_none() && found(2, 1).await.expect("a query").is_none(), "of others nothing");
    assert_eq!(repository.keep_parcel(&parcel(1, 2, 10), 100).await.expect("replaced"), ["order/1-1"]);
    assert!(found(1, 1).await.expect("a query").is_none());
    assert!(repository.blobs_in_use().await.expect("blobs").contains(&"order/1-2".to_owned()));
    // A common one has no ciphertext of its own, and takes no room.
    let common = StoredParcel { blob: None, ..parcel(2, 1, 1000) };
    assert_eq!(repository.keep_parcel(&common, 100).await.expect("kept"), none);
    assert!(found(2, 1).await.expect("a query") == Some(common));
    assert_eq!(repository.keep_parcel(&parcel(3, 1, 95), 100).await.expect("kept"), ["order/1-2"], "the oldest goes first");
    assert_eq!(repository.forget_parcel(OrderId([3; 16])).await.expect("forgotten"), ["order/3-1"]);
    assert_eq!(repository.forget_parcel(OrderId([3; 16])).await.expect("nothing is there"), none);
    assert_eq!(repository.keep_parcel(&parcel(4, 1, 1), 100).await.expect("kept"), none);
    assert_eq!(repository.expire_parcels(NOW.after(3)).await.expect("the common one"), none);
    assert!(found(2, 1).await.expect("a query").is_none() && found(4, 1).await.expect("a query").is_some());
    assert_eq!(repository.expire_parcels(NOW.after(5)).await.expect("the last"), ["order/4-1"]);
}

pub(super) async fn an_order_moves_to_another_processor_once_and_never_back(books: Fixture) {
    let (order, first, second, third) = (OrderId([1; 16]), KeyId([7; 32]), KeyId([8; 32]), KeyId([9; 32]));
    let repository = &books.repository;
    let word = |from, to, word: u8| NewTransfer {
        order,
        account: BUYER,
        from,
        to,
        leaving: if word == 1 { Leaving::Retired(vec![5]) } else { Leaving::Revoked },
        transfer: vec![word],
        at: NOW,
    };
    books.delivered(1).await;
    assert_eq!(code(repository.transfer(&word(first, second, 1)).await), Code::OrderState, "it is not bought yet");
    books.settle(1, 1, b"token").await.expect("settled");
    let strange = NewTransfer { account: OTHER, ..word(first, second, 1) };
    assert_eq!(code(repository.transfer(&strange).await), Code::UnknownOrder);
    assert_eq!(code(repository.transfer(&word(third, second, 1)).await), Code::Conflict, "it is not the third's");
    let (one, two) = (word(first, second, 1), word(first, second, 2));
    let (one, two) = tokio::join!(repository.transfer(&one), repository.transfer(&two));
    assert_eq!(one.expect("moved"), two.expect("the same"), "two at once move it once and answer alike");
    assert_eq!(repository.order(BUYER, order).await.expect("the order").processor, second);
    assert!(repository.transfer_to(order, second).await.expect("a query").is_some());
    assert_eq!(code(books.seal(1, 2).await), Code::Conflict, "a delivery to the first that was under way ends without its seal");
    assert!(repository.gave_up(order, first).await.expect("a query") && !repository.gave_up(order, second).await.expect("a query"));
    assert_eq!(code(repository.transfer(&word(second, first, 3)).await), Code::OrderRetired, "never back");
    assert_eq!(repository.transfer(&word(second, third, 4)).await.expect("on"), [4]);
    assert_eq!(code(repository.transfer(&word(first, second, 1)).await), Code::Conflict, "a replay of the first word");
    assert!(repository.acknowledged(order).await.expect("a query").is_some());
}

pub(super) async fn the_ledger_only_grows_and_takes_no_entry_that_does_not_balance(books: Fixture) {
    books.delivered(1).await;
    books.settle(1, 1, b"t").await.expect("settled");
    for statement in [
        "UPDATE postings SET minor = 0",
        "DELETE FROM postings",
        "UPDATE entries SET at = 0",
        "DELETE FROM entries",
        "DELETE FROM balances",
        "INSERT INTO postings SELECT 1, 'held', account, 'EUR', 5 FROM accounts",
        "INSERT INTO entries (entry, kind, at) VALUES (99, 'deposit', 0)",
        "UPDATE receipts SET number = 7",
        "DELETE FROM receipts",
        "INSERT INTO postings SELECT 99, 'funds', account, 'EUR', 5 FROM accounts",
    ] {
        assert!(books.beside(statement).is_err(), "{statement}");
    }
    let unbalanced = books.beside(
        "BEGIN; INSERT INTO postings SELECT 99, 'funds', account, 'EUR', 5 FROM accounts;
         INSERT INTO entries (entry, kind, at) VALUES (99, 'deposit', 0); COMMIT;",
    );
    assert!(unbalanced.expect_err("it does not balance").contains("sums to zero"));
    let of_nobody = books.beside(
        "BEGIN; INSERT INTO postings (entry, book, account, currency, minor)
           SELECT 99, 'funds', parameters, 'EUR', 5 FROM orders UNION ALL SELECT 99, 'deposits', parameters, 'EUR', -5 FROM orders;
         INSERT INTO entries (entry, kind, at) VALUES (99, 'deposit', 0); COMMIT;",
    );
    assert!(of_nobody.expect_err("no account has that id").to_lowercase().contains("foreign key"));
    books.audit().await;
}

pub(super) async fn a_database_of_a_newer_version_is_refused_and_left_as_it_is(books: Fixture) {
    let insert = "INSERT INTO _sqlx_migrations (version, description, installed_on, success, checksum, execution_time)
                  SELECT 9999, 'later', installed_on, success, checksum, 0 FROM _sqlx_migrations ORDER BY version DESC LIMIT 1";
    books.beside(insert).expect("a later form");
    books.repository.close().await;
    let refusal = books.opened_again().await.expect_err("a newer form");
    assert_eq!(refusal.code, Code::DatabaseSchema);
    assert!(refusal.detail.contains("newer version") && refusal.detail.contains("9999"), "{}", refusal.detail);
    assert_eq!(books.scalar("SELECT max(version) FROM _sqlx_migrations"), 9999);
    assert_eq!(books.scalar("SELECT count(*) FROM releases"), 1);
}

pub(super) async fn what_was_settled_is_there_after_a_restart(books: Fixture) {
    books.delivered(1).await;
    let settled = books.settle(1, 1, b"token").await.expect("settled");
    let repository = books.opened_again().await.expect("opened beside it");
    let order = repository.order(BUYER, OrderId([1; 16])).await.expect("the order");
    assert_eq!((order.state, order.receipt), (OrderState::Released, Some(settled.receipt)));
}

pub(super) async fn a_session_ends_by_time_by_log_out_and_by_newer_ones(books: Fixture) {
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
    assert_eq!(code(repository.deposit("nobody", eur(1), "k", NOW).await), Code::NotFound);
}

pub(super) async fn a_session_outlives_a_clock_that_was_a_year_ahead(books: Fixture) {
    let (repository, session, day) = (&books.repository, Digest([1; 32]), 24 * 3600);
    repository.open_session(BUYER, session, NOW.after(60), 3).await.expect("a session");
    let ahead = NOW.after(366 * day);
    repository.expire(ahead).await.expect("expiry");
    assert!(repository.session(session, ahead).await.expect("a query").is_none(), "not good by that clock");
    assert!(repository.session(session, NOW).await.expect("a query").is_some(), "the clock is right again");
    repository.expire(NOW.after(401 * day)).await.expect("expiry");
    assert!(repository.session(session, NOW).await.expect("a query").is_none(), "forgotten in the end");
}

pub(super) async fn who_agrees_to_nothing_and_uploads_nothing_is_stopped_at_a_limit(books: Fixture) {
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
