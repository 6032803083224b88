//! One processor: what its conversations share.

use crate::admission::Places;
use crate::cache::Cache;
use crate::config::Config;
use crate::spool::Spool;
use crate::vault::{Enrolment, Vault};
use chipbound_session::tls::{DefaultTimeProvider, Identity, ProcessorConfig, processor_config};
use chipbound_wire::signature::Sign;
use chipbound_wire::{Result, Time};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One processor: its keys, what it remembers, its spool and its opened programs.
#[derive(Debug)]
pub struct Processor {
    /// The configuration.
    pub config: Config,
    /// Keys, enrolment, records.
    pub vault: Vault,
    /// Deliveries on their way.
    pub spool: Spool,
    /// Opened programs.
    pub cache: Cache,
    /// Deliveries and openings at once.
    pub transfers: Arc<Places>,
    enrolling: Mutex<()>,
}

impl Processor {
    /// Opens everything that the configuration names.
    pub fn open(config: Config) -> Result<Self> {
        let vault = Vault::open(&config.state)?;
        let spool = Spool::open(&config.spool)?;
        let cache = Cache::new(config.limits.cache_entries, config.limits.cache_bytes);
        let transfers = Places::new("deliveries and openings", config.limits.transfers, config.limits.transfers.div_ceil(2));
        Ok(Self { config, vault, spool, cache, transfers, enrolling: Mutex::new(()) })
    }

    /// Held while the enrolment is being replaced: one at a time.
    pub fn enrolling(&self) -> MutexGuard<'_, ()> {
        self.enrolling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Time {
        chipbound_host::now()
    }

    /// The identity key with its chain.
    #[must_use]
    pub fn identity(&self, enrolment: &Enrolment) -> Identity {
        let key: Arc<dyn Sign> = self.vault.keys();
        Identity { key, chain: enrolment.issued.chain.iter().map(|c| c.to_vec()).collect() }
    }

    /// What TLS of the second path needs.
    pub fn path_config(&self, enrolment: &Enrolment) -> Result<ProcessorConfig> {
        processor_config(&self.identity(enrolment), enrolment.trust.clone(), Arc::new(DefaultTimeProvider))
    }
}
