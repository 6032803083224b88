//! The authority at work: the issuing key, the state, and what is answered to whoever enrolls, renews or asks who is revoked.

use crate::config::Config;
use crate::enrolment::{Right, Wanted, check};
use crate::installation::{ISSUING_KEY_CONTEXT, Paths};
use crate::issuing::{Issuer, Leaf, Validity};
use crate::pending::Pending;
use crate::store::{Certificate, Store};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use chipbound_host::{FileKey, Kek, files};
use chipbound_sealing::seal_possession;
use chipbound_wire::bounded::{Bytes, List, encode};
use chipbound_wire::certificate::Trust;
use chipbound_wire::enrolment::{Begin, Challenges, Finish, Issued};
use chipbound_wire::limits::MAX_CERTIFICATE;
use chipbound_wire::random::fresh;
use chipbound_wire::{Code, Digest, Hex, KeyId, Refusal, Result, SystemRandom, Time};
use std::sync::{Mutex, PoisonError};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

/// Certificates and lists count from so many seconds before they are made, for clocks that are slow.
const SKEW: u64 = 60;

/// A running authority.
pub struct Authority {
    config: Config,
    root: Vec<u8>,
    issuing: Vec<u8>,
    issuing_until: Time,
    key: FileKey,
    store: Store,
    pending: Mutex<Pending>,
    list: tokio::sync::Mutex<Option<CurrentList>>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", Digest::of(&self.root))
    }
}

struct CurrentList {
    revision: i64,
    remake_at: Time,
    der: Vec<u8>,
}

impl Authority {
    /// Opens the installation of `config`: its certificates, the issuing key and the state. The root key is not needed.
    pub async fn open(config: Config) -> Result<Self> {
        let paths = Paths::of(&config.folder);
        let root = files::read(&paths.root, MAX_CERTIFICATE)?;
        let issuing = files::read(&paths.issuing, MAX_CERTIFICATE)?;
        let key = FileKey::load(&paths.issuing_key, &Kek::load(&paths.kek)?, ISSUING_KEY_CONTEXT)?;
        Issuer::new(&issuing, &key)?;
        let issuing_until = last_second(&issuing)?;
        let store = Store::open(&paths.state).await?;
        Ok(Self { config, root, issuing, issuing_until, key, store, pending: Mutex::default(), list: tokio::sync::Mutex::default() })
    }

    /// The root certificate in DER.
    #[must_use]
    pub fn root(&self) -> &[u8] {
        &self.root
    }

    /// The issuing certificate in DER.
    #[must_use]
    pub fn issuing(&self) -> &[u8] {
        &self.issuing
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The state.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// A certificate for the authority's own HTTPS, for a key that lives as long as this process: it lasts as long as the
    /// issuing certificate, so that a long-running authority never serves an expired one.
    pub fn tls_leaf(&self, spki: &[u8], now: Time) -> Result<Vec<u8>> {
        let validity = Validity { not_before: Time(now.0.saturating_sub(SKEW)), not_after: self.issuing_until };
        self.issuer()?.tls_leaf(spki, &self.config.names, validity, &mut SystemRandom)
    }

    /// Answers the first request of an enrolment or renewal: checks the right, the request and the renewal's proof, and
    /// challenges the sealing keys.
    pub async fn begin(&self, begin: &Begin, now: Time) -> Result<Challenges> {
        let wanted = check(self, begin, now).await?;
        let session = fresh::<16>(&mut SystemRandom);
        let keys = wanted.sealing.iter().flat_map(|s| s.keys.iter());
        let mut answers = Vec::new();
        let mut challenges = Vec::new();
        for key in keys {
            let answer = Zeroizing::new(fresh::<32>(&mut SystemRandom));
            challenges.push(seal_possession(key, &session, &answer, &mut SystemRandom)?);
            answers.push(answer);
        }
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).open(session, wanted, answers, now)?;
        Ok(Challenges { session: Bytes::new(session.to_vec())?, challenges: List::new(challenges)? })
    }

    /// Answers the second request: hears the answers once, issues, and uses up the voucher in the same transaction that
    /// records the certificate.
    pub async fn finish(&self, finish: &Finish, now: Time) -> Result<Issued> {
        let open = self.pending.lock().unwrap_or_else(PoisonError::into_inner).take(&finish.session, now)?;
        let right = open.answers.len() == finish.answers.len()
            && open.answers.iter().zip(finish.answers.iter()).all(|(a, b)| verify_slices_are_equal(&**a, b).is_ok());
        if !right {
            return Err(Refusal::new(Code::PossessionUnproven, "a challenge to a sealing key was answered wrongly"));
        }
        let new = self.issue(&open.wanted, now)?;
        let counts = self.store.record(&new, &open.wanted.right, now).await?;
        let how = match open.wanted.right {
            Right::Voucher(_) => "by voucher",
            Right::Renewal(_) => "by renewal",
        };
        let serial = Hex(&counts.serial);
        tracing::info!(role = %counts.role, subject = counts.subject, key = %counts.key_id, %serial, "certified {how}");
        Ok(Issued {
            chain: List::new(vec![Bytes::new(counts.der)?, Bytes::new(self.issuing.clone())?])?,
            root: Bytes::new(self.root.clone())?,
            revocations: Bytes::new(self.revocations(now).await?)?,
        })
    }

    /// The current revocation list in DER: made anew after each revocation and after a quarter of its time.
    pub async fn revocations(&self, now: Time) -> Result<Vec<u8>> {
        let mut list = self.list.lock().await;
        let revision = self.store.revision().await?;
        if let Some(current) = &*list
            && current.revision == revision
            && now < current.remake_at
        {
            return Ok(current.der.clone());
        }
        let (number, revision, withdrawn) = self.store.next_list().await?;
        let span = self.config.revocation_list.0;
        let validity = Validity { not_before: Time(now.0.saturating_sub(SKEW)), not_after: now.after(span) };
        let der = self.issuer()?.revocations(number, &withdrawn, validity)?;
        tracing::info!(number, revoked = withdrawn.len(), "made a revocation list");
        *list = Some(CurrentList { revision, remake_at: now.after((span / 4).max(1)), der: der.clone() });
        Ok(der)
    }

    /// What the authority itself trusts: its root and its current revocation list.
    pub async fn trust(&self, now: Time) -> Result<Trust> {
        Trust::new(&self.root)?.with_revocations(&self.revocations(now).await?)
    }

    fn issue(&self, wanted: &Wanted, now: Time) -> Result<Certificate> {
        let lasts = self.config.validity.of(wanted.role).0;
        let validity = Validity { not_before: Time(now.0.saturating_sub(SKEW)), not_after: now.after(lasts).min(self.issuing_until) };
        let sealing = wanted.sealing.as_ref();
        let leaf = Leaf { role: wanted.role, subject: &wanted.subject, spki: &wanted.spki, validity, sealing };
        let der = self.issuer()?.leaf(&leaf, &mut SystemRandom)?;
        let serial = parse(&der)?.raw_serial().to_vec();
        Ok(Certificate {
            serial,
            key_id: KeyId::of_spki(&wanted.spki),
            role: wanted.role,
            subject: wanted.subject.clone(),
            sealing: Digest::of(&sealing.map(encode).unwrap_or_default()),
            der,
            not_before: validity.not_before,
            not_after: validity.not_after,
            revoked_at: None,
        })
    }

    fn issuer(&self) -> Result<Issuer<'_>> {
        Issuer::new(&self.issuing, &self.key)
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>> {
    let parsed = X509Certificate::from_der(der);
    parsed.map(|(_, c)| c).map_err(|e| Refusal::new(Code::CertificateProfile, format!("not a certificate: {e}")))
}

fn last_second(der: &[u8]) -> Result<Time> {
    Ok(Time(u64::try_from(parse(der)?.validity().not_after.timestamp()).unwrap_or(0)))
}
