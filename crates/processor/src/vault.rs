//! What the daemon keeps: the key-encryption key, the key store, its enrolment, and what it remembers; each in a file of mode 0600,
//! sealed but for the first.

use crate::sys::{Hidden, SecretPages};
use chipbound_host::files::{self, PRIVATE};
use chipbound_host::{Kek, now};
use chipbound_sealing::{Decapsulate, open_possession, seal_possession};
use chipbound_session::tls::SharedTrust;
use chipbound_trusted_core::{
    Held, KeyStore, Memory, Record, Released, Settled, SharedSecrets, SoftwareKeyStore, State, Step, generate_identity, settle,
};
use chipbound_wire::bounded::{Bytes, Text, decode, encode};
use chipbound_wire::certificate::{Certified, Role, SealingKey, Trust};
use chipbound_wire::documents::{Manifest, PackageDocuments};
use chipbound_wire::enrolment::Issued;
use chipbound_wire::limits::MAX_TEXT;
use chipbound_wire::signature::Sign;
use chipbound_wire::{Code, Digest, OrderId, ProgramId, Random, Refusal, Result, SystemRandom, Time};
use minicbor::{Decode, Encode};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

const KEK: &str = "kek";
const KEYS: &str = "keys.sealed";
const ENROLMENT: &str = "enrolment.sealed";
const STATE: &str = "state.sealed";

/// The context under which the enrolment is sealed.
const ENROLMENT_CONTEXT: &str = "chipbound/1 processor enrolment";

/// The largest state file that is read, in bytes.
const MAX_STATE: usize = 256 * 1024 * 1024;
/// The largest file of sealed keys, in bytes.
const MAX_KEYS: usize = 4 * 1024 * 1024;

/// Everything that outlives the daemon.
#[derive(Debug)]
pub struct Vault {
    folder: PathBuf,
    kek: Kek,
    keys: RwLock<Arc<SoftwareKeyStore>>,
    enrolment: RwLock<Option<Arc<Enrolment>>>,
    journal: Mutex<Journal>,
}

/// What the authority issued, and what follows from it.
#[derive(Debug)]
pub struct Enrolment {
    /// `https://host:port` of the authority.
    pub authority: String,
    /// As it came.
    pub issued: Issued,
    /// Our own certificate.
    pub certified: Certified,
    /// The trusted root with the revocation list that came last.
    pub trust: SharedTrust,
    /// The trusted root alone, for what was verified in its own time.
    pub root: Trust,
    /// When the certificate came.
    at: Time,
}

/// The enrolment as it is sealed.
#[derive(Encode, Decode)]
#[cbor(map)]
struct StoredEnrolment {
    #[n(0)]
    authority: Text<MAX_TEXT>,
    #[n(1)]
    issued: Issued,
    /// When it came: the time at which its chain is verified, so that one that ran out can still be read and renewed.
    #[n(2)]
    at: Time,
}

/// The state and its file.
#[derive(Debug)]
struct Journal {
    file: File,
    length: u64,
    state: State,
}

impl Vault {
    /// Makes the folder and new keys in it. Refuses with [`Code::Conflict`] where there are keys.
    pub fn create(folder: &Path) -> Result<Self> {
        files::create_private_folder(folder)?;
        let kek = Kek::create(&folder.join(KEK))?;
        let keys = SoftwareKeyStore::generate(generate_identity(), &mut SystemRandom)?;
        files::write_new(&folder.join(KEYS), &keys.to_sealed(kek.bytes(), &mut SystemRandom), PRIVATE)?;
        Self::open(folder)
    }

    /// Opens what [`Self::create`] made. Refuses with [`Code::InsecurePermissions`] when others could read or change it, and
    /// with [`Code::Unsealable`] when it was changed.
    pub fn open(folder: &Path) -> Result<Self> {
        check_folder(folder)?;
        let kek = Kek::load(&folder.join(KEK))?.kept_in(hidden)?;
        let keys = SoftwareKeyStore::from_sealed(kek.bytes(), &files::read_private(&folder.join(KEYS), MAX_KEYS)?)?.kept_in(&hidden)?;
        let stored = match folder.join(ENROLMENT) {
            path if path.exists() => Some(kek.load_sealed(&path, ENROLMENT_CONTEXT)?),
            _ => None,
        };
        let enrolment = stored.map(|bytes| Enrolment::of(decode(&bytes)?, &keys)).transpose()?;
        let journal = Journal::open(&folder.join(STATE), &kek)?;
        Ok(Self {
            folder: folder.to_owned(),
            kek,
            keys: RwLock::new(Arc::new(keys)),
            enrolment: RwLock::new(enrolment.map(Arc::new)),
            journal: Mutex::new(journal),
        })
    }

    /// Refuses with [`Code::Internal`] where the key store does not open what is sealed to its newest sealing keys.
    pub fn check_keys(&self) -> Result<()> {
        let keys = self.keys();
        let broken = || Refusal::new(Code::Internal, "the sealing keys do not open what is sealed to them");
        let store: &dyn Decapsulate = keys.generation_of(&keys.sealing_keys()).ok_or_else(broken)?;
        for key in keys.sealing_keys() {
            let (mut session, mut challenge) = ([0; 16], [0; 32]);
            SystemRandom.fill(&mut session);
            SystemRandom.fill(&mut challenge);
            let wrap = seal_possession(&key, &session, &challenge, &mut SystemRandom)?;
            if open_possession(store, &session, &wrap)? != challenge {
                return Err(broken());
            }
        }
        Ok(())
    }

    /// The key store.
    #[must_use]
    pub fn keys(&self) -> Arc<SoftwareKeyStore> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The enrolment; [`Code::NotEnrolled`] before there is one.
    pub fn enrolment(&self) -> Result<Arc<Enrolment>> {
        let enrolment = self.enrolment.read().unwrap_or_else(PoisonError::into_inner).clone();
        enrolment.ok_or_else(|| Refusal::new(Code::NotEnrolled, "this processor has no certificate yet"))
    }

    /// The sealing keys that a renewal shall certify: fresh ones, unless the newest are not certified yet. They are on the disk
    /// before anybody else hears of them.
    pub fn fresh_sealing_keys(&self) -> Result<Vec<SealingKey>> {
        let (keys, kek) = (self.keys(), self.kek.bytes());
        let certified = self.enrolment().ok().and_then(|e| e.certified.sealing().map(|s| s.keys.to_vec()));
        if certified != Some(keys.sealing_keys()) {
            return Ok(keys.sealing_keys());
        }
        let mut next = SoftwareKeyStore::from_sealed(kek, &keys.to_sealed(kek, &mut SystemRandom))?;
        {
            let journal = self.journal();
            next.rotate(|key| journal.state.needs(key), &mut SystemRandom);
        }
        files::write_durably(&self.folder.join(KEYS), &next.to_sealed(kek, &mut SystemRandom), PRIVATE)?;
        let next = next.kept_in(&hidden)?;
        let fresh = next.sealing_keys();
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(fresh)
    }

    /// Keeps what the authority at `authority` issued, once it verified as ours.
    pub fn enroll(&self, authority: &str, issued: Issued) -> Result<Arc<Enrolment>> {
        self.keep(StoredEnrolment { authority: Text::new(authority)?, issued, at: now() })
    }

    /// Keeps a newer revocation list, once it verified as one of the authority's.
    pub fn take_revocations(&self, list: Vec<u8>) -> Result<()> {
        let current = self.enrolment()?;
        if *current.issued.revocations == list[..] {
            return Ok(());
        }
        let trust = current.root.with_revocations(&list)?;
        // Its signature shows when it is used: our own certificate is as good an occasion as any. A list that withdraws us is
        // kept as well.
        match trust.verify(&current.issued.chain, Role::Processor, now()) {
            Err(e) if !matches!(e.code, Code::CertificateRevoked | Code::CertificateExpired) => return Err(e),
            _ => {}
        }
        let issued = Issued { revocations: Bytes::new(list)?, ..current.issued.clone() };
        self.keep(StoredEnrolment { authority: Text::new(&*current.authority)?, issued, at: current.at }).map(drop)
    }

    fn keep(&self, stored: StoredEnrolment) -> Result<Arc<Enrolment>> {
        let bytes = encode(&stored);
        let enrolment = Arc::new(Enrolment::of(stored, &self.keys())?);
        self.kek.store(&self.folder.join(ENROLMENT), ENROLMENT_CONTEXT, &bytes)?;
        *self.enrolment.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&enrolment));
        Ok(enrolment)
    }

    /// The smallest sequence number of `program` that may still be opened.
    #[must_use]
    pub fn minimum(&self, program: &ProgramId) -> u64 {
        self.journal().state.minimum(program)
    }

    /// How many deliveries are remembered.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.journal().state.len()
    }

    /// Remembers `step`: on the disk first, then in memory. After a failed write nothing is remembered.
    pub fn remember(&self, step: Step) -> Result<()> {
        let mut journal = self.journal();
        let prepared = journal.state.prepare(step, self.kek.bytes(), &mut SystemRandom)?;
        journal.append(prepared.frame())?;
        journal.state.commit(prepared);
        Ok(())
    }

    /// What openings of a package that was just released need not do again, as [`chipbound_trusted_core::settle`].
    pub fn settle(
        &self,
        released: &Released,
        documents: (&PackageDocuments, &[u8]),
        recorded: (&Record, Time),
        root: &Trust,
    ) -> Result<Settled> {
        settle(released, documents, recorded, root, self.kek.bytes(), &mut SystemRandom)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory for Vault {
    fn record(&self, seal: &Digest) -> Result<Record> {
        self.journal().state.record(seal)
    }

    fn check_sequence(&self, manifest: &Manifest) -> Result<()> {
        self.journal().state.check_sequence(manifest)
    }

    fn check_order(&self, order: &OrderId) -> Result<()> {
        self.journal().state.check_order(order)
    }

    fn secrets(&self, record: &Record) -> Result<SharedSecrets> {
        match record.release.as_ref().and_then(|release| release.settled.as_ref()) {
            Some(settled) => settled.open_secrets(&record.seal, self.kek.bytes()),
            None => Ok(SharedSecrets::default()),
        }
    }
}

impl Enrolment {
    /// Verifies that the chain is a processor's, under its own root, for our identity key and sealing keys of ours.
    fn of(stored: StoredEnrolment, keys: &SoftwareKeyStore) -> Result<Self> {
        let root = Trust::new(&stored.issued.root)?;
        let trust = SharedTrust::new(root.with_revocations(&stored.issued.revocations)?);
        let certified = root.verify(&stored.issued.chain, Role::Processor, stored.at)?;
        let sealing = certified.sealing().map(|s| s.keys.to_vec()).unwrap_or_default();
        if certified.key_id() != keys.key_id() || keys.generation_of(&sealing).is_none() {
            return Err(Refusal::new(Code::CertificateProfile, "the authority certified keys that this processor does not hold"));
        }
        Ok(Self { authority: stored.authority.to_string(), issued: stored.issued, certified, trust, root, at: stored.at })
    }
}

impl Journal {
    fn open(path: &Path, kek: &Kek) -> Result<Self> {
        let failed = |e| Refusal::io(path.display(), e);
        let bytes = if path.exists() { files::read_private(path, MAX_STATE)? } else { Vec::new() };
        let (mut state, mut length) = State::read(kek.bytes(), &bytes)?;
        if state.wants_compaction() {
            let (compacted, frame) = state.compact(kek.bytes(), &mut SystemRandom)?;
            files::write_durably(path, &frame, PRIVATE)?;
            (state, length) = (compacted, frame.len());
        }
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(PRIVATE).open(path).map_err(failed)?;
        file.set_len(length as u64).map_err(failed)?; // What a crash cut short goes.
        Ok(Self { file, length: length as u64, state })
    }

    fn append(&mut self, frame: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(frame, self.length).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            let _ = self.file.set_len(self.length); // A rest that stays is overwritten by the next frame, or dropped on start.
            return Err(Refusal::io("writing what the processor remembers", error));
        }
        self.length += frame.len() as u64;
        Ok(())
    }
}

/// Keys lie in memory that is as far out of others' reach as this machine allows.
fn hidden(secret: &[u8]) -> Result<Held> {
    let pages = SecretPages::holding(secret).map_err(|e| Refusal::io("memory for keys", e))?;
    match pages.hidden() {
        Hidden::Secret => tracing::debug!(keys = %pages.hidden(), "memory for keys"),
        Hidden::Locked => tracing::info!(keys = %pages.hidden(), "memory for keys"),
        Hidden::Swappable => tracing::warn!(keys = %pages.hidden(), "memory for keys"),
    }
    Ok(Box::new(pages))
}

/// The folder must be ours and nobody else's.
fn check_folder(folder: &Path) -> Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let meta = std::fs::metadata(folder).map_err(|e| Refusal::io(folder.display(), e))?;
    let own = rustix::process::geteuid().as_raw();
    if meta.permissions().mode() & 0o077 != 0 || meta.uid() != own {
        let detail = format!("{} has mode {:04o} and owner {}", folder.display(), meta.permissions().mode() & 0o7777, meta.uid());
        return Err(Refusal::new(Code::InsecurePermissions, detail));
    }
    Ok(())
}
