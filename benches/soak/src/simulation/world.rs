//! The simulated world: one server, its books, processors and customers, one clock.

use super::customer::{Customer, Request};
use super::network::{Cut, stream};
use crate::Outcome;
use chipbound_authority::issuing::{Leaf, Validity};
use chipbound_host::Kek;
use chipbound_processor::config::Config;
use chipbound_processor::processor::Processor;
use chipbound_processor::receive::{Held, receive};
use chipbound_processor::vault::Vault;
use chipbound_server::blobs::Blobs;
use chipbound_server::config::Policy;
use chipbound_server::deliver::deliver;
use chipbound_server::keys::{ServerKeys, SharedKeys};
use chipbound_server::log_key::LogSigner;
use chipbound_server::storage::{Accounts, Books, NewAccount, Orders, Principal};
use chipbound_server::{Parts, Server};
use chipbound_session::tls::{Identity, SharedTrust};
use chipbound_testkit::{Holder, Pki, Wanted, documents};
use chipbound_trusted_core::KeyStore;
use chipbound_wire::api::{AccountRole, Base64, NewRelease};
use chipbound_wire::bounded::{Bytes, List};
use chipbound_wire::certificate::{Chain, Role, SealingKeys};
use chipbound_wire::enrolment::Issued;
use chipbound_wire::signature::Sign;
use chipbound_wire::suite::Class;
use chipbound_wire::tlog::origin_of;
use chipbound_wire::{AccountId, Amount, Digest, KeyId, OrderId, Result, SystemRandom, Time};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::runtime::Runtime;

/// Seconds until an order runs out.
pub(super) const TERM: u64 = 600;
/// Seconds by which certificates are older than the story: the clock may be set back.
pub(super) const SLACK: u64 = 20 * TERM;
/// What each customer pays in, in minor units, and what the program costs.
pub(super) const MONEY: u64 = 1000;
pub(super) const PRICE: u64 = 250;
/// Bytes of the program.
pub(super) const SIZE: usize = 40_000;
/// The vendor's account; the customers' follow.
pub(super) const VENDOR: AccountId = AccountId([0xee; 16]);

/// A processor that can be killed: what it keeps lies in its folder.
pub(super) struct Chip {
    pub(super) config: Config,
    pub(super) us: Arc<Processor>,
    pub(super) id: KeyId,
}

/// Everything there is.
pub(super) struct World {
    pub(super) runtime: Runtime,
    pub(super) clock: Arc<AtomicU64>,
    pub(super) server: Arc<Server<Books>>,
    pub(super) books: Books,
    pub(super) pki: Pki,
    pub(super) keys: SharedKeys,
    pub(super) chips: Vec<Chip>,
    pub(super) customers: Vec<Customer>,
    pub(super) plain: Vec<u8>,
    /// Requests that are on their way though nobody waits for them.
    pub(super) late: Vec<(Principal, usize, Request)>,
    /// The confirmation that each key was answered with first.
    pub(super) placed: HashMap<String, Vec<u8>>,
    /// Orders whose package a processor gave out, by their accounts.
    pub(super) released: BTreeSet<([u8; 16], OrderId)>,
    trust: SharedTrust,
    folder: PathBuf,
}

fn price(minor: u64) -> Amount {
    Amount { minor, currency: "EUR".parse().expect("a currency") }
}

fn server_keys(pki: &Pki) -> Result<ServerKeys> {
    let identity = |role| {
        let Holder { key, chain, .. } = pki.holder_of(&Wanted { subject: "shop".to_owned(), ..Wanted::role(role) });
        Identity { key: Arc::new(key), chain }
    };
    let receipt = identity(Role::ServerReceipt);
    let (log, _) = LogSigner::generate(&receipt, &origin_of(pki.root(), "shop"), chipbound_host::now())?;
    Ok(ServerKeys {
        second_path: identity(Role::ServerSecondPath),
        statement: identity(Role::ServerStatement),
        receipt,
        log: Arc::new(log),
    })
}

impl World {
    /// A shop with one program, and customers: each number is one's account and processor.
    pub(super) fn new(folder: PathBuf, customers: &[(u8, usize)]) -> Outcome<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let now = chipbound_host::now();
        let clock = Arc::new(AtomicU64::new(now.0 + SLACK));
        let pki = Pki::new(now);
        let days = Time(now.0 + 30 * 24 * 3600);
        let trust = SharedTrust::new(pki.trust().with_revocations(&pki.revocations_until(&[], days))?);
        let keys = SharedKeys::new(server_keys(&pki)?);
        Kek::create(&folder.join("kek"))?;
        let books = runtime.block_on(Books::open_file(&folder.join("server.db")))?;
        let server = server(&folder, &books, &keys, &trust, &clock)?;
        let chips = (0..=customers.iter().map(|c| c.1).max().unwrap_or(0)).map(|n| chip(&pki, &folder.join(format!("chip-{n}")), &clock));
        let chips = chips.collect::<Outcome<Vec<_>>>()?;
        let plain: Vec<u8> = (0..SIZE).map(|i| (i * 31 % 251) as u8).collect();
        let mut world = Self {
            runtime,
            clock,
            server,
            books,
            pki,
            keys,
            chips,
            customers: Vec::new(),
            plain,
            late: Vec::new(),
            placed: HashMap::new(),
            released: BTreeSet::new(),
            trust,
            folder,
        };
        world.publish()?;
        for (number, (account, chip)) in customers.iter().enumerate() {
            let account = AccountId([*account; 16]);
            if !world.customers.iter().any(|c: &Customer| c.principal.account == account) {
                let user = world.account(account, AccountRole::Customer)?.user;
                world.runtime.block_on(world.books.deposit(&user, price(MONEY), "opening", world.now()))?;
            }
            world.customers.push(Customer::new(number, principal(account, AccountRole::Customer), *chip));
        }
        Ok(world)
    }

    pub(super) fn now(&self) -> Time {
        Time(self.clock.load(Ordering::Relaxed))
    }

    fn account(&self, account: AccountId, role: AccountRole) -> Outcome<Principal> {
        let principal = principal(account, role);
        let new = NewAccount { account, user: principal.user.clone(), role, password: "none".to_owned(), created_at: self.now() };
        self.runtime.block_on(self.books.add_account(&new))?;
        Ok(principal)
    }

    fn publish(&self) -> Outcome<()> {
        let vendor = self.account(VENDOR, AccountRole::Vendor)?;
        let holder = self.pki.holder(Role::Vendor);
        let manifest = holder.sign(&documents::manifest(&holder.id(), &self.plain));
        let new = NewRelease { manifest: Base64(manifest), price: price(PRICE) };
        let upload = self.runtime.block_on(self.server.announce(&vendor, new))?;
        self.runtime.block_on(self.server.publish(&vendor, &upload.upload, SIZE as u64, &self.plain[..]))?;
        Ok(())
    }

    /// The server is killed and starts again: what it did not write down is gone.
    pub(super) fn restart_server(&mut self) -> Outcome<()> {
        self.books = self.runtime.block_on(Books::open_file(&self.folder.join("server.db")))?;
        self.server = server(&self.folder, &self.books, &self.keys, &self.trust, &self.clock)?;
        self.runtime.block_on(self.server.tidy())?;
        self.runtime.block_on(self.server.recover())?;
        Ok(())
    }

    /// The processor is killed and starts again, and with it go all deliveries that it held.
    pub(super) fn restart_chip(&mut self, number: usize) -> Outcome<()> {
        self.customers.iter_mut().filter(|c| c.chip == number).for_each(Customer::lose_delivery);
        let chip = &mut self.chips[number];
        let clock = self.clock.clone();
        chip.us = Arc::new(Processor::open_at(chip.config.clone(), Arc::new(move || Time(clock.load(Ordering::Relaxed))))?);
        Ok(())
    }

    /// The second path between the server and a processor, until it is cut.
    pub(super) fn deliver(&self, ticket: Digest, account: AccountId, chip: usize, confirmation: &[u8], cut: Option<Cut>) -> Result<Held> {
        let redeemed = self.books.redeem_ticket(Digest::of(&ticket.0), Some(account), self.now());
        let order = self.runtime.block_on(redeemed)?;
        let (ours, theirs) = stream(cut);
        std::thread::scope(|scope| {
            scope.spawn(|| deliver(&self.server, &order, theirs, self.runtime.handle()));
            receive(ours, confirmation, 0, &self.chips[chip].us, &mut |_| Ok(()))
        })
    }
}

fn principal(account: AccountId, role: AccountRole) -> Principal {
    Principal { account, user: format!("{role:?}-{}", account.0[0]).to_lowercase(), role, scopes: None }
}

fn server(
    folder: &std::path::Path,
    books: &Books,
    keys: &SharedKeys,
    trust: &SharedTrust,
    clock: &Arc<AtomicU64>,
) -> Result<Arc<Server<Books>>> {
    let clock = clock.clone();
    Server::new(Parts {
        repository: books.clone(),
        blobs: Blobs::open(&folder.join("blobs"))?,
        keys: keys.clone(),
        trust: trust.clone(),
        kek: Kek::load(&folder.join("kek"))?,
        policy: Policy { order_seconds: TERM, ..Policy::default() },
        clock: Arc::new(move || Time(clock.load(Ordering::Relaxed))),
        cards: None,
    })
}

/// A processor in `folder`, certified.
fn chip(pki: &Pki, folder: &std::path::Path, clock: &Arc<AtomicU64>) -> Outcome<Chip> {
    chipbound_host::files::create_private_folder(folder)?;
    let path = folder.join("processor.toml");
    std::fs::write(&path, Config::template(false))?;
    let config = Config::load(&path)?;
    Vault::create(&config.state)?;
    let ticking = clock.clone();
    let us = Processor::open_at(config.clone(), Arc::new(move || Time(ticking.load(Ordering::Relaxed))))?;
    let (keys, now) = (us.vault.keys(), us.now());
    let days = Time(now.0 + 30 * 24 * 3600);
    let sealing = SealingKeys { class: Class::Software, keys: List::new(keys.sealing_keys())? };
    let validity = Validity { not_before: Time(now.0 - 60 - SLACK), not_after: days };
    let leaf = Leaf { role: Role::Processor, subject: "processor", spki: keys.spki(), validity, sealing: Some(&sealing) };
    let certificate = pki.issuer().leaf(&leaf, &mut SystemRandom)?;
    let chain = [certificate, pki.issuing().to_vec()].map(Bytes::new).into_iter().collect::<Result<Vec<_>>>()?;
    let issued = Issued {
        chain: Chain::new(chain)?,
        root: Bytes::new(pki.root().to_vec())?,
        revocations: Bytes::new(pki.revocations_until(&[], days))?,
    };
    us.vault.enroll("https://authority.invalid", issued)?;
    Ok(Chip { config, id: keys.key_id(), us: Arc::new(us) })
}
