//! Uploads, releases and common packages.

use super::{Columns, Connection, SqliteRepository, commit, failed, signed};
use crate::storage::{CommonPackage, PendingUpload, Releases, StoredRelease};
use chipbound_wire::suite::Aead;
use chipbound_wire::{AccountId, Code, Digest, ProgramId, Refusal, Result, Time};
use sqlx::query;
use sqlx::sqlite::SqliteRow;

/// Uploads of one account at once.
const UPLOADS: u64 = 64;
/// Programs in one catalogue.
const CATALOGUE: u32 = 2048;

fn release(row: &SqliteRow) -> Result<StoredRelease> {
    Ok(StoredRelease {
        manifest: Digest(row.id("manifest")?),
        program: row.parsed("program")?,
        version: row.text("version")?,
        sequence: row.number("sequence")?,
        vendor: AccountId(row.id("vendor")?),
        price: row.amount()?,
        signed_manifest: row.bytes("signed_manifest")?,
        layout: row.bytes("layout")?,
        plain_digest: Digest(row.id("plain_digest")?),
        sealed_bytes: row.number("sealed_bytes")?,
        blob: row.text("blob")?,
        published_at: Time(row.number("published_at")?),
    })
}

fn common_package(row: &SqliteRow) -> Result<CommonPackage> {
    Ok(CommonPackage {
        manifest: Digest(row.id("manifest")?),
        aead: row.parsed("aead")?,
        package_id: Digest(row.id("package_id")?),
        content_key: row.bytes("content_key")?,
        blob: row.text("blob")?,
        body_root: Digest(row.id("body_root")?),
        body_size: row.number("body_size")?,
        table_root: Digest(row.id("table_root")?),
        table_size: row.number("table_size")?,
    })
}

/// Refuses a program of a vendor whose releases are another account's, a version that is there already, and a sequence that does
/// not rise.
async fn check_new(tx: &mut Connection, account: AccountId, program: &ProgramId, version: &str, sequence: u64) -> Result<()> {
    let vendor = program.as_str().strip_suffix(program.name()).unwrap_or_default();
    let foreign = query("SELECT 1 FROM releases WHERE substr(program, 1, length(?1)) = ?1 AND vendor <> ?2 LIMIT 1")
        .bind(vendor)
        .bind(&account.0[..])
        .fetch_optional(&mut *tx)
        .await
        .map_err(|e| failed(&e))?;
    if foreign.is_some() {
        return Err(Refusal::new(Code::Forbidden, "another account publishes this vendor's programs"));
    }
    let rows = query(
        "SELECT max(sequence) AS newest, coalesce(max(version = ?2), 0) AS taken FROM releases WHERE program = ?1 HAVING count(*) > 0",
    )
    .bind(program.as_str())
    .bind(version)
    .fetch_optional(&mut *tx)
    .await
    .map_err(|e| failed(&e))?;
    let Some(row) = rows else { return Ok(()) };
    if row.number("taken")? != 0 {
        return Err(Refusal::new(Code::Conflict, format!("version {version} of {program} is published already")));
    }
    let newest = row.number("newest")?;
    if sequence <= newest {
        return Err(Refusal::new(
            Code::Conflict,
            format!("the sequence number {sequence} does not rise above {newest}, the newest of {program}"),
        ));
    }
    Ok(())
}

impl Releases for SqliteRepository {
    async fn announce(&self, upload: &PendingUpload, program: &ProgramId, version: &str, sequence: u64) -> Result<()> {
        let mut tx = self.write().await?;
        check_new(&mut tx, upload.account, program, version, sequence).await?;
        let open = query("SELECT count(*) AS open FROM uploads WHERE account = ?").bind(&upload.account.0[..]);
        if open.fetch_one(&mut *tx).await.map_err(|e| failed(&e))?.number("open")? >= UPLOADS {
            return Err(Refusal::new(Code::RateLimited, format!("{UPLOADS} releases wait for their plaintext already")));
        }
        query("INSERT INTO uploads (upload, account, signed_manifest, price, currency, expires_at) VALUES (?, ?, ?, ?, ?, ?)")
            .bind(&upload.upload)
            .bind(&upload.account.0[..])
            .bind(&upload.manifest)
            .bind(signed(upload.price.minor)?)
            .bind(upload.price.currency.as_str())
            .bind(signed(upload.expires_at.0)?)
            .execute(&mut *tx)
            .await
            .map_err(|e| failed(&e))?;
        commit(tx).await
    }

    async fn upload(&self, upload: &str, account: AccountId, now: Time) -> Result<PendingUpload> {
        let row = query("SELECT * FROM uploads WHERE upload = ? AND account = ? AND expires_at >= ?")
            .bind(upload)
            .bind(&account.0[..])
            .bind(signed(now.0)?)
            .fetch_optional(&self.pool)
            .await
            .map_err(|e| failed(&e))?;
        let row = row.ok_or_else(|| Refusal::new(Code::NotFound, "there is no such upload, or it ran out"))?;
        Ok(PendingUpload {
            upload: row.text("upload")?,
            account,
            manifest: row.bytes("signed_manifest")?,
            price: row.amount()?,
            expires_at: Time(row.number("expires_at")?),
        })
    }

    async fn publish(&self, upload: &str, new: &StoredRelease) -> Result<()> {
        let mut tx = self.write().await?;
        let gone = query("DELETE FROM uploads WHERE upload = ?").bind(upload).execute(&mut *tx).await.map_err(|e| failed(&e))?;
        if gone.rows_affected() != 1 {
            return Err(Refusal::new(Code::Conflict, "the upload was published or ran out meanwhile"));
        }
        check_new(&mut tx, new.vendor, &new.program, &new.version, new.sequence).await?;
        query(
            "INSERT INTO releases (manifest, program, name, version, sequence, vendor, price, currency, signed_manifest, layout,
             plain_digest, sealed_bytes, blob, published_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&new.manifest.0[..])
        .bind(new.program.as_str())
        .bind(new.program.name())
        .bind(&new.version)
        .bind(signed(new.sequence)?)
        .bind(&new.vendor.0[..])
        .bind(signed(new.price.minor)?)
        .bind(new.price.currency.as_str())
        .bind(&new.signed_manifest)
        .bind(&new.layout)
        .bind(&new.plain_digest.0[..])
        .bind(signed(new.sealed_bytes)?)
        .bind(&new.blob)
        .bind(signed(new.published_at.0)?)
        .execute(&mut *tx)
        .await
        .map_err(|e| failed(&e))?;
        commit(tx).await
    }

    async fn catalogue(&self) -> Result<Vec<StoredRelease>> {
        let rows = query(
            "SELECT * FROM releases r WHERE sequence = (SELECT max(sequence) FROM releases WHERE program = r.program) ORDER BY program LIMIT ?",
        )
        .bind(CATALOGUE)
        .fetch_all(&self.pool)
        .await
        .map_err(|e| failed(&e))?;
        rows.iter().map(release).collect()
    }

    async fn find_release(&self, program: &str, version: Option<&str>) -> Result<StoredRelease> {
        let unknown = || Refusal::new(Code::UnknownProgram, format!("there is no release {program:?} {}", version.unwrap_or_default()));
        let rows = query(
            "SELECT * FROM releases r WHERE (program = ?1 OR name = ?1) AND CASE WHEN ?2 IS NULL
             THEN sequence = (SELECT max(sequence) FROM releases WHERE program = r.program) ELSE version = ?2 END LIMIT 2",
        )
        .bind(program)
        .bind(version)
        .fetch_all(&self.pool)
        .await
        .map_err(|e| failed(&e))?;
        match rows.as_slice() {
            [] => Err(unknown()),
            [row] => release(row),
            _ => {
                Err(Refusal::new(Code::UnknownProgram, format!("more than one vendor has a program {program:?}: name it by its whole id")))
            }
        }
    }

    async fn release(&self, manifest: Digest) -> Result<StoredRelease> {
        let row = query("SELECT * FROM releases WHERE manifest = ?").bind(&manifest.0[..]);
        let row = row.fetch_optional(&self.pool).await.map_err(|e| failed(&e))?;
        row.as_ref().map(release).transpose()?.ok_or_else(|| Refusal::new(Code::UnknownProgram, "there is no release with that manifest"))
    }

    async fn common_package(&self, manifest: Digest, aead: Aead) -> Result<Option<CommonPackage>> {
        let row = query("SELECT * FROM common_packages WHERE manifest = ? AND aead = ?").bind(&manifest.0[..]).bind(aead.as_str());
        let row = row.fetch_optional(&self.pool).await.map_err(|e| failed(&e))?;
        row.as_ref().map(common_package).transpose()
    }

    async fn keep_common_package(&self, new: &CommonPackage) -> Result<CommonPackage> {
        let mut tx = self.write().await?;
        query(
            "INSERT INTO common_packages (manifest, aead, package_id, content_key, blob, body_root, body_size, table_root, table_size)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (manifest, aead) DO NOTHING",
        )
        .bind(&new.manifest.0[..])
        .bind(new.aead.as_str())
        .bind(&new.package_id.0[..])
        .bind(&new.content_key)
        .bind(&new.blob)
        .bind(&new.body_root.0[..])
        .bind(signed(new.body_size)?)
        .bind(&new.table_root.0[..])
        .bind(signed(new.table_size)?)
        .execute(&mut *tx)
        .await
        .map_err(|e| failed(&e))?;
        let kept = query("SELECT * FROM common_packages WHERE manifest = ? AND aead = ?").bind(&new.manifest.0[..]).bind(new.aead.as_str());
        let kept = common_package(&kept.fetch_one(&mut *tx).await.map_err(|e| failed(&e))?)?;
        commit(tx).await?;
        Ok(kept)
    }

    async fn blobs_in_use(&self) -> Result<Vec<String>> {
        let rows = query("SELECT blob FROM releases UNION ALL SELECT blob FROM common_packages");
        rows.fetch_all(&self.pool).await.map_err(|e| failed(&e))?.iter().map(|row| row.text("blob")).collect()
    }
}
