//! One processor: what its conversations share.

use crate::admission::Places;
use crate::cache::{Cache, Dropped, Opened};
use crate::config::Config;
use crate::data::InMemory;
use crate::data::files::Files;
use crate::data::kernel::Mounted;
use crate::interpreter;
use crate::readers::Readers;
use crate::room::Room;
use crate::spool::Spool;
use crate::started::Started;
use crate::vault::{Enrolment, Vault};
use crate::ways::Obstacles;
use chipbound_loader::{Image, Libraries, Locked, OwnInterpreter, Workshop};
use chipbound_session::tls::{Identity, ProcessorConfig, TimeProvider, processor_config};
use chipbound_trusted_core::Step;
use chipbound_wire::certificate::Role;
use chipbound_wire::signature::Sign;
use chipbound_wire::suite::LoaderVariables;
use chipbound_wire::{Code, ProgramId, Result, Time};
use rustls_pki_types::UnixTime;
use std::panic::RefUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Where the time comes from.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync + RefUnwindSafe>;

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
    pub programs: Cache<Program>,
    /// What waits ready to open a program.
    pub workshop: Workshop,
    /// Processes that run programs.
    pub started: Started,
    /// Data that was opened whole, where it cannot be served.
    pub data: Cache<InMemory>,
    /// The interpreter that packages on this machine name; none where the configuration names none, or it could not be written.
    pub interpreter: Option<Arc<OwnInterpreter>>,
    /// Deliveries and openings at once.
    pub transfers: Arc<Places>,
    /// Memory for packages that are taken into it while they are verified.
    pub room: Room,
    /// What this machine puts in the way of each way of mapping.
    pub obstacles: Obstacles,
    clock: Ticking,
    files: OnceLock<std::result::Result<Files, String>>,
    enrolling: Mutex<()>,
}

/// A program that was verified and opened.
#[derive(Debug)]
pub struct Program {
    /// Its memory.
    pub image: Image,
    /// Which program.
    pub program: ProgramId,
    /// Its sequence number.
    pub sequence: u64,
    /// What happens to loader variables, and whose libraries may be loaded.
    pub loader_variables: LoaderVariables,
    /// What its dynamic linker will load.
    pub libraries: Libraries,
    /// Of a shared library alone: for which programs it is.
    pub library: Option<Readers>,
    /// Keeps its memory from being swapped out, after its first start.
    pub locked: OnceLock<Option<Locked>>,
}

impl Program {
    /// Takes down what its memory was made with, and locks it where the lock limit allows it. What is not locked is said in the log, once for each opening.
    pub fn lock(&self) {
        self.locked.get_or_init(|| {
            self.image.tidy();
            let locked = self.image.lock();
            if let Err(error) = &locked {
                let bytes = self.image.memory();
                tracing::warn!(program = %self.program, bytes, %error, "its code can be swapped out: raise the lock limit (ulimit -l, LimitMEMLOCK=)");
            }
            locked.ok()
        });
    }
}

impl Opened for Program {
    fn memory(&self) -> u64 {
        self.image.memory()
    }
    fn program(&self) -> &ProgramId {
        &self.program
    }
    fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl Processor {
    /// Opens everything that the configuration names.
    pub fn open(config: Config) -> Result<Self> {
        Self::open_at(config, Arc::new(chipbound_host::now))
    }

    /// The same with that clock.
    pub fn open_at(config: Config, clock: Clock) -> Result<Self> {
        let vault = Vault::open(&config.state)?;
        let spool = Spool::open(&config.spool, config.limits.spool_bytes, clock())?;
        let programs = Cache::new(config.limits.cache_entries, config.limits.cache_bytes);
        let data = Cache::new(config.limits.cache_entries, config.limits.data_in_memory_bytes);
        let interpreter = interpreter::open(&config).unwrap_or_else(|refusal| {
            tracing::warn!(reason = %refusal, "there is no interpreter: packages are started by `chipbound run` alone");
            None
        });
        let transfers = Places::new("deliveries and openings", config.limits.transfers, config.limits.transfers.div_ceil(2));
        let (files, enrolling, obstacles, started) = (OnceLock::new(), Mutex::new(()), Obstacles::here(), Started::default());
        let (workshop, room, clock) = (Workshop::default(), Room::default(), Ticking(clock));
        Ok(Self {
            config,
            vault,
            spool,
            programs,
            workshop,
            started,
            data,
            interpreter,
            transfers,
            room,
            obstacles,
            clock,
            files,
            enrolling,
        })
    }

    /// Serves data on this file system from now on, or remembers why there is none. Only the first call counts.
    pub fn serve_data(&self, mounted: Result<Mounted>) {
        let files = mounted.and_then(Files::start).map_err(|refusal| refusal.detail);
        match &files {
            Ok(_) => tracing::info!("data for programs is served as it is read"),
            Err(why) => tracing::info!(why, "data for programs is opened in memory"),
        }
        let _ = self.files.set(files);
    }

    /// Where data is served, or why it is not.
    pub fn files(&self) -> std::result::Result<&Files, &str> {
        match self.files.get() {
            Some(Ok(files)) => Ok(files),
            Some(Err(why)) => Err(why),
            None => Err("no file system of data was asked for"),
        }
    }

    /// Held while the enrolment is being replaced: one at a time.
    pub fn enrolling(&self) -> MutexGuard<'_, ()> {
        self.enrolling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers `step`, as [`Vault::remember`]. What a higher minimum of its program withdraws is dropped from memory.
    pub fn remember(&self, step: Step) -> Result<()> {
        let raised = match &step {
            Step::Compared { program, minimum, .. } => Some((program.clone(), *minimum)),
            Step::Released { .. } | Step::Retired { .. } | Step::Snapshot { .. } => None,
        };
        self.vault.remember(step)?;
        if let Some((program, minimum)) = raised {
            self.drop_where("withdrawn by its vendor", |opened| *opened.program() == program && opened.check_minimum(minimum).is_err());
        }
        Ok(())
    }

    /// Keeps a newer revocation list, as [`Vault::take_revocations`]. A processor whose own certificate was withdrawn keeps
    /// nothing opened.
    pub fn take_revocations(&self, list: Vec<u8>) -> Result<()> {
        self.vault.take_revocations(list)?;
        let enrolment = self.vault.enrolment()?;
        match enrolment.trust.get().verify(&enrolment.issued.chain, Role::Processor, self.now()) {
            Err(refusal) if refusal.code == Code::CertificateRevoked => {
                self.drop_where("this processor's certificate was withdrawn", |_| true)
            }
            _ => Dropped::default(),
        };
        Ok(())
    }

    /// Drops what was opened and `gone` says from memory, for that reason. Programs that run are not disturbed.
    pub fn drop_where(&self, why: &str, gone: impl Fn(&dyn Opened) -> bool) -> Dropped {
        let (programs, data) = (self.programs.drop_where(|program| gone(program)), self.data.drop_where(|data| gone(data)));
        let dropped = Dropped { builds: programs.builds + data.builds, bytes: programs.bytes + data.bytes };
        if dropped.builds > 0 {
            tracing::info!(builds = dropped.builds, bytes = dropped.bytes, why, "dropped from memory");
        }
        dropped
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Time {
        (self.clock.0)()
    }

    /// The identity key with its chain.
    #[must_use]
    pub fn identity(&self, enrolment: &Enrolment) -> Identity {
        let key: Arc<dyn Sign> = self.vault.keys();
        Identity { key, chain: enrolment.issued.chain.iter().map(|c| c.to_vec()).collect() }
    }

    /// What TLS of the second path needs.
    pub fn path_config(&self, enrolment: &Enrolment) -> Result<ProcessorConfig> {
        processor_config(&self.identity(enrolment), enrolment.trust.clone(), Arc::new(self.clock.clone()))
    }
}

/// The clock as TLS asks for it.
#[derive(Clone)]
struct Ticking(Clock);

impl std::fmt::Debug for Ticking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticking")
    }
}

impl TimeProvider for Ticking {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs((self.0)().0)))
    }
}
