//! What the authority remembers, in SQLite: vouchers by digest, certificates, revocations. Every method is one transaction.

use chipbound_host::files::{PRIVATE, write_new};
use chipbound_wire::certificate::Role;
use chipbound_wire::{Code, Digest, Hex, KeyId, Refusal, Result, Time};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use crate::issuing::Withdrawn;

/// Certificates of one subject and role that have not run out, beyond which nothing is renewed.
pub const MOST_LIVING: i64 = 64;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// What a voucher is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Kind {
    /// One processor.
    Processor,
    /// One server: each of its three roles once.
    Server,
    /// One vendor.
    Vendor,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Processor, Self::Server, Self::Vendor];

    /// The stable text form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Processor => "processor",
            Self::Server => "server",
            Self::Vendor => "vendor",
        }
    }

    /// The roles that such a voucher certifies, each once.
    #[must_use]
    pub fn roles(self) -> &'static [Role] {
        match self {
            Self::Processor => &[Role::Processor],
            Self::Server => &[Role::ServerSecondPath, Role::ServerStatement, Role::ServerReceipt],
            Self::Vendor => &[Role::Vendor],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A voucher as it is remembered: without its secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Voucher {
    /// Digest of its secret.
    pub digest: Digest,
    /// What it is for.
    pub kind: Kind,
    /// The subject of its certificates.
    pub name: String,
    /// When it was made.
    pub created_at: Time,
    /// Its last second.
    pub expires_at: Time,
    /// The roles that it certified already.
    pub used_for: Vec<Role>,
}

/// A certificate as it is remembered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// Its serial number.
    pub serial: Vec<u8>,
    /// The certified key.
    pub key_id: KeyId,
    /// Its role.
    pub role: Role,
    /// Its common name.
    pub subject: String,
    /// Digest of its sealing keys in CBOR (of nothing, where there are none).
    pub sealing: Digest,
    /// The certificate.
    pub der: Vec<u8>,
    /// First second of validity.
    pub not_before: Time,
    /// Last second of validity.
    pub not_after: Time,
    /// When it was withdrawn.
    pub revoked_at: Option<Time>,
}

/// By what right a certificate is recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Right {
    /// The voucher with this digest.
    Voucher(Digest),
    /// The certificate with this serial number, which it renews.
    Renewal(Vec<u8>),
}

/// What to revoke.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// Every certificate of a key.
    Key(KeyId),
    /// One certificate.
    Serial(Vec<u8>),
    /// Every certificate of a subject, and what is left of its vouchers.
    Name(String),
}

/// The authority's memory.
#[derive(Clone, Debug)]
pub struct Store {
    pool: SqlitePool,
}

impl Store {
    /// Makes the database, which must not be there yet.
    pub async fn create(path: &Path) -> Result<Self> {
        // SQLite gives its other files the mode of this one.
        write_new(path, b"", PRIVATE)?;
        Self::connect(path).await
    }

    /// Opens the database. One of a newer version is refused and not touched.
    pub async fn open(path: &Path) -> Result<Self> {
        Self::connect(path).await
    }

    async fn connect(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await;
        let pool = pool.map_err(|e| Refusal::new(Code::Database, format!("cannot open {}: {e}", path.display())).because(e))?;
        MIGRATIONS.run(&pool).await.map_err(|e| migration_refusal(path, e))?;
        Ok(Self { pool })
    }

    /// Closes the database; what was written is on the disk before that already.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Remembers a new voucher. [`Code::Conflict`] when its name is that of a living voucher or certificate.
    pub async fn add_voucher(&self, voucher: &Voucher) -> Result<()> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let now = seconds(voucher.created_at);
        let taken: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM certificates WHERE subject = ?1 AND revoked_at IS NULL AND not_after >= ?2)
                 OR EXISTS (SELECT 1 FROM vouchers v WHERE name = ?1 AND expires_at >= ?2
                            AND NOT EXISTS (SELECT 1 FROM voucher_uses u WHERE u.voucher = v.digest))",
        )
        .bind(&voucher.name)
        .bind(now)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        if taken {
            let detail = format!("the name {:?} belongs to a living certificate or voucher: revoke it first, or use another", voucher.name);
            return Err(Refusal::new(Code::Conflict, detail));
        }
        sqlx::query("INSERT INTO vouchers (digest, kind, name, created_at, expires_at) VALUES (?, ?, ?, ?, ?)")
            .bind(voucher.digest.as_ref())
            .bind(voucher.kind.as_str())
            .bind(&voucher.name)
            .bind(now)
            .bind(seconds(voucher.expires_at))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)
    }

    /// The voucher with this digest.
    pub async fn voucher(&self, digest: &Digest) -> Result<Option<Voucher>> {
        let mut connection = self.pool.acquire().await.map_err(failed)?;
        voucher(&mut connection, digest).await
    }

    /// Every voucher, newest first.
    pub async fn vouchers(&self) -> Result<Vec<Voucher>> {
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let digests: Vec<Vec<u8>> = sqlx::query_scalar("SELECT digest FROM vouchers ORDER BY created_at DESC, rowid DESC")
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        let mut vouchers = Vec::new();
        for digest in digests {
            vouchers.extend(voucher(&mut tx, &Digest::from_slice(&digest)?).await?);
        }
        Ok(vouchers)
    }

    /// Every certificate, newest first.
    pub async fn certificates(&self) -> Result<Vec<Certificate>> {
        let rows: Vec<CertificateRow> = sqlx::query_as(
            "SELECT serial, key_id, role, subject, sealing, der, not_before, not_after, revoked_at
             FROM certificates ORDER BY issued_at DESC, rowid DESC",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        rows.into_iter().map(Certificate::try_from).collect()
    }

    /// The certificate with this serial number.
    pub async fn certificate(&self, serial: &[u8]) -> Result<Option<Certificate>> {
        let mut connection = self.pool.acquire().await.map_err(failed)?;
        certificate(&mut connection, serial).await
    }

    /// Records that `new` was issued by `right`, using it up, at `now`; answers the certificate that counts. That is `new`,
    /// or the one that the same voucher got for the same keys before: whoever lost the answer asks again.
    ///
    /// # Errors
    /// [`Code::VoucherInvalid`] for a voucher that is unknown, expired, used or for other roles; [`Code::Conflict`] for a
    /// key that was certified under another name, role or right; [`Code::CertificateRevoked`] for a renewal of a withdrawn
    /// certificate, [`Code::RateLimited`] for one where [`MOST_LIVING`] certificates of the same name and role still count.
    pub async fn record(&self, new: &Certificate, right: &Right, now: Time) -> Result<Certificate> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        if let Right::Voucher(digest) = right {
            let voucher = voucher(&mut tx, digest).await?;
            let voucher = voucher.filter(|v| now <= v.expires_at && v.kind.roles().contains(&new.role));
            if voucher.ok_or_else(voucher_invalid)?.used_for.contains(&new.role) {
                return issued_before(&mut tx, digest, new, now).await;
            }
        }
        check_key(&mut tx, new, right).await?;
        if matches!(right, Right::Renewal(_)) {
            check_living(&mut tx, new, now).await?;
        }
        insert(&mut tx, new, now).await?;
        if let Right::Voucher(digest) = right {
            sqlx::query("INSERT INTO voucher_uses (voucher, role, serial) VALUES (?, ?, ?)")
                .bind(digest.as_ref())
                .bind(new.role.as_str())
                .bind(&new.serial)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(new.clone())
    }

    /// Withdraws certificates, and the vouchers of a name; answers the certificates that were not withdrawn before.
    /// [`Code::NotFound`] when the target names nothing that was ever there.
    pub async fn revoke(&self, target: &Target, now: Time) -> Result<Vec<Certificate>> {
        let (key, serial, name) = match target {
            Target::Key(key) => (Some(key.as_ref()), None, None),
            Target::Serial(serial) => (None, Some(serial.as_slice()), None),
            Target::Name(name) => (None, None, Some(name.as_str())),
        };
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let known: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM certificates WHERE key_id = ?1 OR serial = ?2 OR subject = ?3)
                 OR EXISTS (SELECT 1 FROM vouchers WHERE name = ?3)",
        )
        .bind(key)
        .bind(serial)
        .bind(name)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        if !known {
            return Err(Refusal::new(Code::NotFound, "this authority knows no such key, serial number or name"));
        }
        sqlx::query("UPDATE vouchers SET expires_at = min(expires_at, ?1 - 1) WHERE name = ?2")
            .bind(seconds(now))
            .bind(name)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        let revoked: Vec<CertificateRow> = sqlx::query_as(
            "UPDATE certificates SET revoked_at = ?4 WHERE (key_id = ?1 OR serial = ?2 OR subject = ?3) AND revoked_at IS NULL
             RETURNING serial, key_id, role, subject, sealing, der, not_before, not_after, revoked_at",
        )
        .bind(key)
        .bind(serial)
        .bind(name)
        .bind(seconds(now))
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        sqlx::query("UPDATE state SET revision = revision + 1").execute(&mut *tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        revoked.into_iter().map(Certificate::try_from).collect()
    }

    /// A number that rises with each revocation.
    pub async fn revision(&self) -> Result<i64> {
        sqlx::query_scalar("SELECT revision FROM state").fetch_one(&self.pool).await.map_err(failed)
    }

    /// What the next revocation list says: its number, the revision it stands for, and everything withdrawn.
    pub async fn next_list(&self) -> Result<(u64, i64, Vec<Withdrawn>)> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let (number, revision): (i64, i64) =
            sqlx::query_as("UPDATE state SET list_number = list_number + 1 RETURNING list_number, revision")
                .fetch_one(&mut *tx)
                .await
                .map_err(failed)?;
        let rows: Vec<(Vec<u8>, i64)> =
            sqlx::query_as("SELECT serial, revoked_at FROM certificates WHERE revoked_at IS NOT NULL ORDER BY revoked_at, serial")
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        let withdrawn = rows.into_iter().map(|(serial, at)| Withdrawn { serial, at: time(at) }).collect();
        Ok((number.unsigned_abs(), revision, withdrawn))
    }
}

/// What a repeat of [`Store::record`] gets: the certificate that this voucher certified for the same keys, while it counts.
async fn issued_before(db: &mut SqliteConnection, voucher: &Digest, new: &Certificate, now: Time) -> Result<Certificate> {
    let serial: Vec<u8> = sqlx::query_scalar("SELECT serial FROM voucher_uses WHERE voucher = ? AND role = ?")
        .bind(voucher.as_ref())
        .bind(new.role.as_str())
        .fetch_one(&mut *db)
        .await
        .map_err(failed)?;
    let same =
        |old: &Certificate| old.key_id == new.key_id && old.sealing == new.sealing && old.revoked_at.is_none() && now <= old.not_after;
    certificate(db, &serial).await?.filter(same).ok_or_else(voucher_invalid)
}

/// A key belongs to one subject in one role for ever; only a renewal certifies it again (A6).
async fn check_key(db: &mut SqliteConnection, new: &Certificate, right: &Right) -> Result<()> {
    let known: Vec<(String, String)> = sqlx::query_as("SELECT subject, role FROM certificates WHERE key_id = ?")
        .bind(new.key_id.as_ref())
        .fetch_all(&mut *db)
        .await
        .map_err(failed)?;
    let own = |(subject, role): &(String, String)| *subject == new.subject && *role == new.role.as_str();
    let allowed = match right {
        Right::Voucher(_) => known.is_empty(),
        Right::Renewal(_) => known.iter().all(own),
    };
    if !allowed {
        let detail = format!("the key {} is certified already: renew its certificate, or enroll with a new key", new.key_id);
        return Err(Refusal::new(Code::Conflict, detail));
    }
    if let Right::Renewal(serial) = right {
        let renewed = certificate(db, serial).await?;
        if renewed.is_none_or(|c| c.revoked_at.is_some()) {
            return Err(Refusal::new(Code::CertificateRevoked, format!("the certificate {} was withdrawn", Hex(serial))));
        }
    }
    Ok(())
}

/// Whoever renews in a loop must not fill the disk.
async fn check_living(db: &mut SqliteConnection, new: &Certificate, now: Time) -> Result<()> {
    let living: i64 = sqlx::query_scalar("SELECT count(*) FROM certificates WHERE subject = ? AND role = ? AND not_after >= ?")
        .bind(&new.subject)
        .bind(new.role.as_str())
        .bind(seconds(now))
        .fetch_one(db)
        .await
        .map_err(failed)?;
    if living >= MOST_LIVING {
        let detail = format!("{} has {MOST_LIVING} certificates of this role that have not run out", new.subject);
        return Err(Refusal::new(Code::RateLimited, detail));
    }
    Ok(())
}

async fn insert(db: &mut SqliteConnection, new: &Certificate, now: Time) -> Result<()> {
    sqlx::query(
        "INSERT INTO certificates (serial, key_id, role, subject, sealing, der, not_before, not_after, issued_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&new.serial)
    .bind(new.key_id.as_ref())
    .bind(new.role.as_str())
    .bind(&new.subject)
    .bind(new.sealing.as_ref())
    .bind(&new.der)
    .bind(seconds(new.not_before))
    .bind(seconds(new.not_after))
    .bind(seconds(now))
    .execute(db)
    .await
    .map_err(failed)?;
    Ok(())
}

async fn voucher(db: &mut SqliteConnection, digest: &Digest) -> Result<Option<Voucher>> {
    let row: Option<(Vec<u8>, String, String, i64, i64)> =
        sqlx::query_as("SELECT digest, kind, name, created_at, expires_at FROM vouchers WHERE digest = ?")
            .bind(digest.as_ref())
            .fetch_optional(&mut *db)
            .await
            .map_err(failed)?;
    let Some((stored, kind, name, created_at, expires_at)) = row else { return Ok(None) };
    // The index compares digests of a secret of 128 bits; the last word is a comparison that takes the same time always.
    if aws_lc_rs::constant_time::verify_slices_are_equal(&stored, digest.as_ref()).is_err() {
        return Ok(None);
    }
    let roles: Vec<String> = sqlx::query_scalar("SELECT role FROM voucher_uses WHERE voucher = ? ORDER BY rowid")
        .bind(digest.as_ref())
        .fetch_all(&mut *db)
        .await
        .map_err(failed)?;
    let kind = Kind::ALL.into_iter().find(|k| k.as_str() == kind).ok_or_else(corrupt)?;
    let used_for = roles.iter().map(|r| Role::from_str(r).map_err(|_| corrupt())).collect::<Result<_>>()?;
    Ok(Some(Voucher { digest: *digest, kind, name, created_at: time(created_at), expires_at: time(expires_at), used_for }))
}

async fn certificate(db: &mut SqliteConnection, serial: &[u8]) -> Result<Option<Certificate>> {
    let row: Option<CertificateRow> = sqlx::query_as(
        "SELECT serial, key_id, role, subject, sealing, der, not_before, not_after, revoked_at FROM certificates WHERE serial = ?",
    )
    .bind(serial)
    .fetch_optional(db)
    .await
    .map_err(failed)?;
    row.map(Certificate::try_from).transpose()
}

type CertificateRow = (Vec<u8>, Vec<u8>, String, String, Vec<u8>, Vec<u8>, i64, i64, Option<i64>);

impl TryFrom<CertificateRow> for Certificate {
    type Error = Refusal;
    fn try_from((serial, key_id, role, subject, sealing, der, not_before, not_after, revoked_at): CertificateRow) -> Result<Self> {
        Ok(Self {
            serial,
            key_id: KeyId::from_slice(&key_id).map_err(|_| corrupt())?,
            role: role.parse().map_err(|_| corrupt())?,
            subject,
            sealing: Digest::from_slice(&sealing).map_err(|_| corrupt())?,
            der,
            not_before: time(not_before),
            not_after: time(not_after),
            revoked_at: revoked_at.map(time),
        })
    }
}

/// One refusal for every fault of a voucher, so that nobody learns which secrets were once good.
pub(crate) fn voucher_invalid() -> Refusal {
    Refusal::new(Code::VoucherInvalid, "the voucher is unknown, used, expired or for another role")
}

fn migration_refusal(path: &Path, error: MigrateError) -> Refusal {
    let why = match &error {
        MigrateError::VersionMissing(version) => format!("it has schema {version}, which this version does not know"),
        other => other.to_string(),
    };
    Refusal::new(Code::Database, format!("{} cannot be used: {why}", path.display())).because(error)
}

fn failed(error: sqlx::Error) -> Refusal {
    Refusal::new(Code::Database, format!("the authority's database failed: {error}")).because(error)
}

fn corrupt() -> Refusal {
    Refusal::new(Code::Database, "the authority's database holds something that this version never wrote")
}

fn seconds(time: Time) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

fn time(seconds: i64) -> Time {
    Time(seconds.max(0).unsigned_abs())
}
