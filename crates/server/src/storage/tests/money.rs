//! Shares, refunds, payouts, statements, the numbers of receipts.

use super::fixture::{BUYER, Fixture, NOW, VENDOR, code, eur, settlement};
use crate::storage::{Accounts, NewAccount, Orders, PendingUpload, Releases, Settlement, Shares, StoredOrder, StoredRelease};
use chipbound_wire::api::{AccountRole, Balance, OrderState};
use chipbound_wire::bounded::Text;
use chipbound_wire::documents::TaxLine;
use chipbound_wire::{AccountId, Amount, Code, OrderId};

async fn books_of(books: &Fixture, account: AccountId) -> Vec<(String, i64)> {
    let all = books.repository.books_of(account).await.expect("books");
    all.into_iter().map(|b| (b.book, b.minor)).collect()
}

fn expected(books: &[(&str, i64)]) -> Vec<(String, i64)> {
    books.iter().map(|(book, minor)| ((*book).to_owned(), *minor)).collect()
}

pub(super) async fn a_price_is_divided_refunded_and_paid_out(books: Fixture) {
    for number in 1..=2 {
        books.delivered(number).await;
        let vat = TaxLine { name: Text::new("VAT".to_owned()).expect("short"), rate: 1900, minor: 40 };
        let shares = Shares { house: 3000, taxes: vec![vat] };
        books.settle_as(Settlement { shares, ..settlement(number, number) }).await.expect("settled");
    }
    assert_eq!(books_of(&books, VENDOR).await, expected(&[("fees", 126), ("revenue", 294), ("tax", 80)]));
    let repository = &books.repository;
    assert_eq!(code(repository.payout("vera", eur(295), "", "a", NOW).await), Code::InsufficientFunds);
    repository.payout("vera", eur(200), "transfer 1", "a", NOW).await.expect("paid out");
    let refund = |number: u8| repository.refund(OrderId([number; 16]), "it did not run", NOW);
    for _ in 0..2 {
        assert_eq!(refund(1).await.expect("refunded").state, OrderState::Refunded, "and again, once");
        assert_eq!(books.money().await, (750, 0));
        assert_eq!(books_of(&books, VENDOR).await, expected(&[("deposits", 200), ("fees", 63), ("revenue", -53), ("tax", 40)]));
    }
    assert_eq!(code(repository.payout("vera", eur(1), "", "b", NOW).await), Code::InsufficientFunds, "the vendor owes something");
    assert_eq!(code(books.settle(1, 1, b"t").await), Code::OrderRefunded, "no token for what was given back");
    let receipt = repository.order(BUYER, OrderId([1; 16])).await.expect("the order").receipt.expect("its receipt");
    assert_eq!(code(repository.readmit(BUYER, OrderId([1; 16]), &receipt, NOW).await), Code::OrderRefunded);
    assert_eq!(code(refund(9).await), Code::UnknownOrder);
    books.delivered(3).await;
    assert_eq!(code(refund(3).await), Code::OrderState, "nothing was taken yet");
    books.audit().await;
}

pub(super) async fn an_instruction_is_carried_out_once_and_answered_the_same_for_ever(books: Fixture) {
    let repository = &books.repository;
    let after = |available| Balance { available: eur(available), held: eur(0) };
    let deposit = |minor, key| repository.deposit("ann", eur(minor), key, NOW);
    assert_eq!(deposit(50, "bank 17").await.expect("a deposit"), after(1050));
    assert_eq!(deposit(7, "bank 18").await.expect("another"), after(1057));
    books.delivered(1).await;
    for _ in 0..2 {
        assert_eq!(deposit(50, "bank 17").await.expect("repeated"), after(1050), "as it was answered first");
    }
    let payout = |note, key| repository.payout("ann", eur(100), note, key, NOW.after(9));
    assert_eq!(payout("back", "bank 19").await.expect("a payout"), Balance { available: eur(707), held: eur(250) });
    assert_eq!(payout("back", "bank 19").await.expect("repeated"), Balance { available: eur(707), held: eur(250) });
    assert_eq!(books.money().await, (707, 250));
    assert_eq!(code(deposit(51, "bank 17").await), Code::IdempotencyConflict, "another amount");
    let dollars = Amount { minor: 50, currency: "USD".parse().expect("a currency") };
    assert_eq!(code(repository.deposit("ann", dollars, "bank 17", NOW).await), Code::IdempotencyConflict, "another currency");
    assert_eq!(code(payout("for something else", "bank 19").await), Code::IdempotencyConflict, "another note");
    assert_eq!(code(payout("", "bank 17").await), Code::IdempotencyConflict, "a deposit's key");
    assert_eq!(code(repository.payout("ann", eur(9999), "", "bank 20", NOW).await), Code::InsufficientFunds);
    repository.deposit("ann", eur(1), "bank 20", NOW).await.expect("what was refused used no key up");
    assert_eq!(code(repository.payout("vera", eur(50), "", "bank 17", NOW).await), Code::InsufficientFunds, "a key of another account");
    assert_eq!(books.money().await, (708, 250));
    for change in ["DELETE FROM instructions", "UPDATE instructions SET available = 0"] {
        assert!(books.beside(change).is_err(), "{change}");
    }
    books.audit().await;
}

pub(super) async fn instructions_given_at_once_under_one_key_are_one(books: Fixture) {
    let books = std::sync::Arc::new(books);
    let give = |_| {
        let books = books.clone();
        tokio::spawn(async move { books.repository.deposit("ann", eur(5), "bank 17", NOW).await.expect("a deposit") })
    };
    let given: Vec<_> = (0..16).map(give).collect();
    for one in given {
        assert_eq!(one.await.expect("a task").available, eur(1005));
    }
    assert_eq!(books.money().await, (1005, 0));
}

pub(super) async fn a_statement_says_what_happened_in_its_time(books: Fixture) {
    books.delivered(1).await;
    books.settle_as(Settlement { at: NOW.after(50), ..settlement(1, 1) }).await.expect("settled");
    books.repository.payout("ann", eur(100), "transfer 2", "c", NOW.after(60)).await.expect("paid out");
    let statement = books.repository.statement("ann", NOW.after(1), NOW.after(60)).await.expect("a statement");
    let opening: Vec<_> = statement.opening.into_iter().map(|b| (b.book, b.minor)).collect();
    assert_eq!(opening, expected(&[("deposits", -1000), ("funds", 750), ("held", 250)]));
    let lines: Vec<_> = statement.lines.iter().map(|l| (l.kind.as_str(), l.change.book.as_str(), l.change.minor, l.order)).collect();
    assert_eq!(lines, [("capture", "held", -250, Some(OrderId([1; 16])))]);
    let all = books.repository.statement("ann", NOW, NOW.after(61)).await.expect("a statement");
    assert!(all.opening.is_empty());
    let notes: Vec<_> = all.lines.iter().filter(|l| l.kind == "payout").map(|l| (l.note.as_str(), l.change.minor)).collect();
    assert_eq!(notes, [("transfer 2", 100), ("transfer 2", -100)]);
    assert_eq!(code(books.repository.statement("nobody", NOW, NOW).await), Code::NotFound);
}

pub(super) async fn each_seller_counts_receipts_from_one_without_a_gap(books: Fixture) {
    let other = AccountId([4; 16]);
    let vito = NewAccount { account: other, user: "vito".to_owned(), role: AccountRole::Vendor, password: String::new(), created_at: NOW };
    books.repository.add_account(&vito).await.expect("a vendor");
    let game = StoredRelease { vendor: other, ..super::fixture::release(b"w", "game", "1.0", 1) };
    let upload =
        PendingUpload { upload: "u".to_owned(), account: other, manifest: game.signed_manifest.clone(), price: eur(1), expires_at: NOW };
    books.repository.announce(&upload, &game.program, "1.0", 1).await.expect("announced");
    books.repository.publish("u", &game).await.expect("published");
    for number in 1..=3 {
        books.delivered(number).await;
    }
    let of_vito = |order: StoredOrder| StoredOrder { manifest: game.manifest, seller: other, ..order };
    books.place_as(4, "4", b"p", of_vito).await.expect("an order");
    books.agree(4).await.expect("a hold");
    books.deliver(4, 4).await;
    let batch = [4, 3, 1, 2].map(|n| super::fixture::settling(settlement(n, n)));
    crate::storage::Deliveries::settle(&books.repository, batch.to_vec()).await.expect("settled");
    let numbers = |seller: &str| {
        let query = format!(
            "SELECT sum(number) * 100 + count(*) FROM receipts JOIN accounts a ON a.account = seller WHERE a.\"user\" = '{seller}'"
        );
        books.scalar(&query)
    };
    assert_eq!((numbers("vera"), numbers("vito")), (603, 101), "1, 2, 3; and 1");
    books.audit().await;
}
