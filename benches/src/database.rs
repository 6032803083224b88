//! The transactions of one order, from confirmation to receipt, in this process: the server's own storage on the same disk.

use crate::Outcome;
use crate::primitives::seconds;
use crate::stats::Series;
use chipbound_server::log_key::LogSigner;
use chipbound_server::sequencer::Sequencer;
use chipbound_server::storage::Books;
use chipbound_server::storage::{
    Accounts, Deliveries, Delivery, NewAccount, NewOrder, NewTicket, Orders, PendingUpload, Releases, Settlement, Settling, Shares,
    StoredOrder, StoredRelease,
};
use chipbound_session::tls::Identity;
use chipbound_testkit::Pki;
use chipbound_wire::api::{AccountRole, OrderState};
use chipbound_wire::certificate::Role;
use chipbound_wire::random::fresh;
use chipbound_wire::suite::{Kem, KeyMode};
use chipbound_wire::{AccountId, Amount, Digest, KeyId, OrderId, ProgramId, SystemRandom, Time};
use rustix::time::ClockId;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const NOW: Time = Time(1_800_000_000);
const VENDOR: AccountId = AccountId([0xff; 16]);
/// Bytes of a signed document of the usual size, its certificates in it: keys and signatures, of which nothing is saved by compression.
const DOCUMENT: usize = 1500;
/// Tickets of one order at once.
const TICKETS: u32 = 8;
/// Requests of one delivery on the first path, each with a bearer token.
const REQUESTS: usize = 7;

/// What one order costs, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct PerOrder {
    /// From the first transaction to the end of the last, commits on the disk included.
    pub(crate) wall: Series,
    /// CPU time of all threads.
    pub(crate) cpu: Series,
}

/// Measures so many orders on a database in `folder`.
pub(crate) fn measure(folder: &Path, orders: usize) -> Outcome<PerOrder> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let repository = Books::open_file(&folder.join("measured.db")).await?;
        let shop = Shop::open(repository.clone(), 1, orders as u64).await?;
        let mut spent = PerOrder::default();
        for _ in 0..orders {
            let (begun, cpu) = (Instant::now(), seconds(ClockId::ProcessCPUTime));
            shop.requests(0).await?;
            shop.one_order(0).await?;
            spent.wall.push(begun.elapsed().as_secs_f64() * 1e3);
            spent.cpu.push((seconds(ClockId::ProcessCPUTime) - cpu) * 1e3);
        }
        repository.close().await;
        Ok(spent)
    })
}

/// Books with a vendor, a release and customers with money.
pub(crate) struct Shop {
    repository: Books,
    sequencer: Sequencer<Books>,
    release: StoredRelease,
    log: Arc<LogSigner>,
    customers: Vec<(AccountId, Digest)>,
}

impl Shop {
    /// Makes them, with the money for so many orders of each customer.
    pub(crate) async fn open(repository: Books, customers: u8, orders: u64) -> Outcome<Self> {
        let price: Amount = "1.00 EUR".parse()?;
        let account =
            |account, user: &str, role| NewAccount { account, user: user.to_owned(), role, password: "none".to_owned(), created_at: NOW };
        repository.add_account(&account(VENDOR, "vendor", AccountRole::Vendor)).await?;
        let customers: Vec<_> = (0..customers).map(|n| (AccountId([n; 16]), Digest([n; 32]))).collect();
        for (customer, token) in &customers {
            let user = format!("buyer-{}", customer.0[0]);
            repository.add_account(&account(*customer, &user, AccountRole::Customer)).await?;
            repository.open_session(*customer, *token, NOW.after(3600), 1).await?;
            repository.deposit(&user, Amount { minor: price.minor * orders, ..price }, "opening", NOW).await?;
        }
        let release = publish(&repository, price).await?;
        let sequencer = Sequencer::new(repository.clone());
        Ok(Self { repository, sequencer, release, log: log_signer()?, customers })
    }

    /// What the requests of one delivery ask of storage besides the order: who asks, and what there is to buy.
    async fn requests(&self, customer: usize) -> Outcome<()> {
        let (repository, (buyer, token)) = (&self.repository, self.customers[customer]);
        for _ in 0..REQUESTS {
            repository.session(token, NOW).await?;
        }
        repository.balances(buyer).await?;
        repository.catalogue("", 256).await?;
        repository.find_release("sample", None).await?;
        Ok(())
    }

    /// What the server asks of its storage for one order, in this order.
    pub(crate) async fn one_order(&self, customer: usize) -> Outcome<()> {
        let Self { repository, sequencer, release, log, customers } = self;
        let (buyer, _) = customers[customer];
        let confirmation = document();
        let order = OrderId(fresh(&mut SystemRandom));
        let new = new_order(order, buyer, release, &confirmation);
        let processor = new.order.processor;
        repository.place_order(&new).await?;
        repository.authorise(buyer, order, Digest::of(&confirmation), NOW).await?;
        let ticket = Digest(fresh(&mut SystemRandom));
        let new = NewTicket { ticket, order, account: buyer, expires_at: NOW.after(60) };
        repository.issue_ticket(&new, NOW, TICKETS).await?;
        repository.redeem_ticket(ticket, Some(buyer), NOW).await?;
        repository.release(release.manifest).await?;
        let seal = document();
        let delivery = Delivery {
            order,
            terms: document(),
            wrap: fresh::<1200>(&mut SystemRandom).to_vec(),
            kem: Kem::XWing,
            sealing_key: fresh::<1216>(&mut SystemRandom).to_vec(),
            release_secret: fresh::<64>(&mut SystemRandom).to_vec(),
            content_key: fresh::<64>(&mut SystemRandom).to_vec(),
            seal: seal.clone(),
            created_at: NOW,
        };
        repository.record_delivery(&delivery, processor).await?;
        let seal = Digest::of(&seal);
        repository.sent(buyer, order, seal).await?;
        let (acknowledgement, token) = (document(), document());
        let (shares, log) = (Shares::default(), log.clone());
        let settlement = Settlement { order, account: buyer, seal, acknowledgement, token, shares, at: NOW, log };
        sequencer.settle(Settling { settlement, receipt: Arc::new(|_| Ok(document())) }).await?;
        Ok(())
    }
}

fn document() -> Vec<u8> {
    fresh::<DOCUMENT>(&mut SystemRandom).to_vec()
}

/// Publishes one release.
async fn publish(repository: &Books, price: Amount) -> Outcome<StoredRelease> {
    let signed_manifest = vec![3; DOCUMENT];
    let release = StoredRelease {
        manifest: Digest::of(&signed_manifest),
        program: ProgramId::new(&KeyId([4; 32]), "sample")?,
        version: "1.0".to_owned(),
        sequence: 1,
        vendor: VENDOR,
        price,
        signed_manifest,
        layout: vec![5; 64],
        plain_digest: Digest([6; 32]),
        sealed_bytes: 100_000,
        blob: "sample".to_owned(),
        published_at: NOW,
    };
    let upload = PendingUpload {
        upload: "sample".to_owned(),
        account: VENDOR,
        manifest: release.signed_manifest.clone(),
        price,
        expires_at: NOW.after(60),
    };
    repository.announce(&upload, &release.program, &release.version, release.sequence).await?;
    repository.publish(&upload.upload, &release).await?;
    Ok(release)
}

/// What signs the log in which each receipt is entered.
fn log_signer() -> Outcome<Arc<LogSigner>> {
    let holder = Pki::new(NOW).holder(Role::ServerReceipt);
    let receipt = Identity { key: Arc::new(holder.key), chain: holder.chain };
    Ok(Arc::new(LogSigner::generate(&receipt, "a/log", NOW)?.0))
}

fn new_order(order: OrderId, buyer: AccountId, release: &StoredRelease, confirmation: &[u8]) -> NewOrder {
    let order = StoredOrder {
        order,
        account: buyer,
        manifest: release.manifest,
        seller: VENDOR,
        processor: KeyId([16; 32]),
        key_mode: KeyMode::Direct,
        price: release.price,
        state: OrderState::Confirmed,
        confirmation: confirmation.to_vec(),
        issued_at: NOW,
        expires_at: NOW.after(3600),
        redownload_until: NOW.after(3600),
        holds: 0,
        receipt: None,
    };
    let idempotency_key = order.order.to_string();
    NewOrder { order, idempotency_key, parameters: Digest([17; 32]), again: true, withdrawn: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_run_from_confirmation_to_receipt() {
        let folder = tempfile::tempdir().unwrap();
        let spent = measure(folder.path(), 2).unwrap();
        assert!(spent.wall.median() > 0.0);
    }
}
