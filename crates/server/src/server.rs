//! What the routes and the deliveries share.

use crate::accounts::Passwords;
use crate::blobs::{Blobs, Entered};
use crate::config::Policy;
use crate::keys::SharedKeys;
use crate::packing::Making;
use crate::payment::CardPayments;
use crate::places::Places;
use crate::sequencer::Sequencer;
use crate::storage::Repository;
use crate::strangers::Strangers;
use crate::threads::Threads;
use chipbound_host::Kek;
use chipbound_session::tls::SharedTrust;
use chipbound_wire::{Code, Refusal, Result, Time};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Nobody lets so much time pass between two changes of a file that he writes, or until what refers to it is on record.
const SPARED: Duration = Duration::from_secs(3600);

/// Where the time comes from.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// What a server is made of.
pub struct Parts<R> {
    /// What is kept.
    pub repository: R,
    /// Programs and ciphertext.
    pub blobs: Blobs,
    /// The three certified keys.
    pub keys: SharedKeys,
    /// The authority's root and its newest revocation list.
    pub trust: SharedTrust,
    /// Seals content keys and release secrets at rest.
    pub kek: Kek,
    /// What the operator decided.
    pub policy: Policy,
    /// The time.
    pub clock: Clock,
    /// The card provider, if there is one.
    pub cards: Option<CardPayments>,
}

/// One server: every method of its modules is one thing that somebody may ask of it.
pub struct Server<R> {
    pub(crate) repository: R,
    pub(crate) blobs: Blobs,
    pub(crate) keys: SharedKeys,
    pub(crate) trust: SharedTrust,
    pub(crate) kek: Kek,
    pub(crate) policy: Policy,
    pub(crate) clock: Clock,
    pub(crate) cards: Option<CardPayments>,
    pub(crate) passwords: Passwords,
    pub(crate) strangers: Strangers,
    /// Where orders are settled.
    pub(crate) sequencer: Sequencer<R>,
    /// Common packages that are being made.
    pub(crate) making: Making,
    /// Places for deliveries.
    pub(crate) places: Places,
    /// Threads for deliveries.
    pub(crate) threads: Threads,
    /// The place for a journal: each holds one read transaction.
    pub(crate) journals: Arc<Semaphore>,
    /// `host:port` of the line of its own, once it listens.
    pub(crate) line: OnceLock<String>,
}

impl<R> std::fmt::Debug for Server<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({:?})", self.blobs)
    }
}

impl<R: Repository> Server<R> {
    /// Puts the parts together.
    pub fn new(parts: Parts<R>) -> Result<Arc<Self>> {
        let Parts { repository, blobs, keys, trust, kek, policy, clock, cards } = parts;
        let places = Places::new(policy.deliveries, policy.deliveries_per_account);
        let passwords = Passwords::new()?;
        Ok(Arc::new(Self {
            sequencer: Sequencer::new(repository.clone()),
            repository,
            blobs,
            keys,
            trust,
            kek,
            policy,
            clock,
            cards,
            passwords,
            strangers: Strangers::default(),
            making: Making::default(),
            places,
            threads: Threads::default(),
            journals: Arc::new(Semaphore::new(1)),
            line: OnceLock::new(),
        }))
    }

    /// The time.
    pub(crate) fn now(&self) -> Time {
        (self.clock)()
    }

    /// Names the address of the line of its own, `host:port`, once.
    pub fn set_line(&self, address: String) {
        let _ = self.line.set(address);
    }

    /// Gives back the holds of orders that ran out, and forgets what else did; returns how many orders.
    pub async fn expire(&self) -> Result<u64> {
        let gone = self.repository.expire_parcels(self.now()).await?;
        self.remove_blobs(gone).await?;
        self.repository.expire(self.now()).await
    }

    /// How many more deliveries could begin now.
    #[must_use]
    pub fn free_places(&self) -> usize {
        self.places.free()
    }

    /// Removes what a killed server left half-written, before anything else runs; returns how many files. What comes with it says to servers
    /// that start later that this one works with the programs. Beside another one, what was changed in the last hour stays: that one
    /// may be writing it. Programs beside books that know not even an account are refused with [`Code::Database`] and stay: a
    /// database that was lost, or is another one, would cost them all.
    pub async fn tidy(&self) -> Result<(Entered, usize)> {
        let mut entered = self.blobs.enter()?;
        if self.repository.accounts("", 1).await?.is_empty() && !self.blobs.is_empty()? {
            let detail = format!("the database is empty, and programs lie in {}: it is not theirs; none was removed", self.blobs.folder());
            return Err(Refusal::new(Code::Database, detail));
        }
        let in_use = self.repository.blobs_in_use().await?.into_iter().collect();
        let removed = self.blobs.sweep(&in_use, if entered.alone() { Duration::ZERO } else { SPARED })?;
        entered.share()?;
        Ok((entered, removed))
    }
}
