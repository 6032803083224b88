//! Uploads, releases and common packages.

use super::books::Books;
use super::sql::{Lock, Row, Tx, all, first, number, signed, unreadable, values};
use super::{CommonPackage, PendingUpload, Releases, StoredRelease};
use chipbound_wire::documents::Manifest;
use chipbound_wire::signed::read_claims;
use chipbound_wire::suite::Aead;
use chipbound_wire::{AccountId, Code, Digest, ProgramId, Refusal, Result, Time};

/// Uploads of one account at once.
const UPLOADS: u64 = 64;

fn release(row: &dyn Row) -> Result<StoredRelease> {
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

fn common_package(row: &dyn Row) -> Result<CommonPackage> {
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
fn check_new(tx: &dyn Tx, account: AccountId, program: &ProgramId, version: &str, sequence: u64) -> Result<()> {
    let vendor = program.as_str().strip_suffix(program.name()).unwrap_or_default();
    let find_foreign = "SELECT 1 FROM releases WHERE substr(program, 1, length($1)) = $1 AND vendor <> $2 LIMIT 1";
    if first(tx, find_foreign, values![vendor, &account], |_| Ok(()))?.is_some() {
        return Err(Refusal::new(Code::Forbidden, "another account publishes this vendor's programs"));
    }
    let find_newest =
        "SELECT max(sequence) AS newest, max(CASE WHEN version = $1 THEN 1 ELSE 0 END) AS taken FROM releases WHERE program = $2
                       HAVING count(*) > 0";
    let newest = first(tx, find_newest, values![version, program.as_str()], |row| Ok((row.number("newest")?, row.number("taken")?)))?;
    let Some((newest, taken)) = newest else { return Ok(()) };
    if taken != 0 {
        return Err(Refusal::new(Code::Conflict, format!("version {version} of {program} is published already")));
    }
    if sequence <= newest {
        return Err(Refusal::new(
            Code::Conflict,
            format!("the sequence number {sequence} does not rise above {newest}, the newest of {program}"),
        ));
    }
    Ok(())
}

fn insert(tx: &dyn Tx, new: &StoredRelease) -> Result<()> {
    tx.put(
        "INSERT INTO releases (manifest, program, name, version, sequence, vendor, price, currency, signed_manifest, layout,
         plain_digest, sealed_bytes, blob, published_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        values![
            &new.manifest,
            new.program.as_str(),
            new.program.name(),
            &new.version,
            signed(new.sequence)?,
            &new.vendor,
            signed(new.price.minor)?,
            new.price.currency.as_str(),
            &new.signed_manifest,
            &new.layout,
            &new.plain_digest,
            signed(new.sealed_bytes)?,
            &new.blob,
            signed(new.published_at.0)?,
        ],
    )
}

/// Forgets earlier announcements of that version, such as a killed publish leaves behind: the newest one counts.
fn forget_uploads(tx: &dyn Tx, account: AccountId, program: &ProgramId, version: &str) -> Result<()> {
    let list = "SELECT upload, signed_manifest FROM uploads WHERE account = $1";
    let open = all(tx, list, values![&account], |row| Ok((row.text("upload")?, row.bytes("signed_manifest")?)))?;
    for (upload, manifest) in open {
        if read_claims::<Manifest>(&manifest).is_ok_and(|old| old.program == *program && *old.version == *version) {
            tx.put("DELETE FROM uploads WHERE upload = $1", values![&upload])?;
        }
    }
    Ok(())
}

/// The common package of a release and an AEAD.
const COMMON_PACKAGE: &str = "SELECT * FROM common_packages WHERE manifest = $1 AND aead = $2";

impl Releases for Books {
    async fn announce(&self, upload: &PendingUpload, program: &ProgramId, version: &str, sequence: u64) -> Result<()> {
        let (upload, program, version) = (upload.clone(), program.clone(), version.to_owned());
        let announce = move |tx: &dyn Tx| {
            tx.alone(Lock::Publishing)?;
            check_new(tx, upload.account, &program, &version, sequence)?;
            forget_uploads(tx, upload.account, &program, &version)?;
            if number(tx, "SELECT count(*) AS n FROM uploads WHERE account = $1", values![&upload.account])? >= UPLOADS {
                return Err(Refusal::new(Code::RateLimited, format!("{UPLOADS} releases wait for their plaintext already")));
            }
            let (price, expires_at) = (signed(upload.price.minor)?, signed(upload.expires_at.0)?);
            tx.put(
                "INSERT INTO uploads (upload, account, signed_manifest, price, currency, expires_at) VALUES ($1, $2, $3, $4, $5, $6)",
                values![&upload.upload, &upload.account, &upload.manifest, price, upload.price.currency.as_str(), expires_at],
            )
        };
        self.write(announce).await
    }

    async fn upload(&self, upload: &str, account: AccountId, now: Time) -> Result<PendingUpload> {
        let find = "SELECT * FROM uploads WHERE upload = $1 AND account = $2 AND expires_at >= $3";
        let upload = upload.to_owned();
        let read = move |row: &dyn Row| {
            Ok(PendingUpload {
                upload: row.text("upload")?,
                account,
                manifest: row.bytes("signed_manifest")?,
                price: row.amount()?,
                expires_at: Time(row.number("expires_at")?),
            })
        };
        let now = signed(now.0)?;
        let found = self.read(move |books: &dyn Tx| first(books, find, values![&upload, &account, now], read)).await?;
        found.ok_or_else(|| Refusal::new(Code::NotFound, "there is no such upload, or it ran out"))
    }

    async fn publish(&self, upload: &str, new: &StoredRelease) -> Result<()> {
        let (upload, new) = (upload.to_owned(), new.clone());
        let publish = move |tx: &dyn Tx| {
            tx.alone(Lock::Publishing)?;
            if tx.execute("DELETE FROM uploads WHERE upload = $1", values![&upload])? != 1 {
                return Err(Refusal::new(Code::Conflict, "the upload was published, announced anew or ran out meanwhile"));
            }
            check_new(tx, new.vendor, &new.program, &new.version, new.sequence)?;
            insert(tx, &new)
        };
        self.write(publish).await
    }

    async fn catalogue(&self, after: &str, most: u32) -> Result<Vec<StoredRelease>> {
        let list = "SELECT * FROM releases r WHERE program > $1
                    AND sequence = (SELECT max(sequence) FROM releases WHERE program = r.program) ORDER BY program LIMIT $2";
        let after = after.to_owned();
        self.read_long(move |books: &dyn Tx| all(books, list, values![&after, most], release)).await
    }

    async fn find_release(&self, program: &str, version: Option<&str>) -> Result<StoredRelease> {
        let find = "SELECT * FROM releases r WHERE (program = $1 OR name = $1) AND CASE WHEN $2 IS NULL
                    THEN sequence = (SELECT max(sequence) FROM releases WHERE program = r.program) ELSE version = $2 END LIMIT 2";
        let (wanted, wanted_version) = (program.to_owned(), version.map(str::to_owned));
        let query = move |books: &dyn Tx| all(books, find, values![&wanted, wanted_version.as_deref()], release);
        let mut found = self.read(query).await?;
        match (found.pop(), found.is_empty()) {
            (Some(release), true) => Ok(release),
            (None, _) => {
                Err(Refusal::new(Code::UnknownProgram, format!("there is no release {program:?} {}", version.unwrap_or_default())))
            }
            (Some(_), false) => {
                Err(Refusal::new(Code::UnknownProgram, format!("more than one vendor has a program {program:?}: name it by its whole id")))
            }
        }
    }

    async fn release(&self, manifest: Digest) -> Result<StoredRelease> {
        let find = "SELECT * FROM releases WHERE manifest = $1";
        let found = self.read(move |books: &dyn Tx| first(books, find, values![&manifest], release)).await?;
        found.ok_or_else(|| Refusal::new(Code::UnknownProgram, "there is no release with that manifest"))
    }

    async fn common_package(&self, manifest: Digest, aead: Aead) -> Result<Option<CommonPackage>> {
        self.read(move |books: &dyn Tx| first(books, COMMON_PACKAGE, values![&manifest, aead.as_str()], common_package)).await
    }

    async fn keep_common_package(&self, new: &CommonPackage) -> Result<CommonPackage> {
        let new = new.clone();
        let keep = move |tx: &dyn Tx| {
            tx.put(
                "INSERT INTO common_packages (manifest, aead, package_id, content_key, blob, body_root, body_size, table_root, table_size)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (manifest, aead) DO NOTHING",
                values![
                    &new.manifest,
                    new.aead.as_str(),
                    &new.package_id,
                    &new.content_key,
                    &new.blob,
                    &new.body_root,
                    signed(new.body_size)?,
                    &new.table_root,
                    signed(new.table_size)?,
                ],
            )?;
            first(tx, COMMON_PACKAGE, values![&new.manifest, new.aead.as_str()], common_package)?.ok_or_else(unreadable)
        };
        self.write(keep).await
    }

    async fn blobs_in_use(&self) -> Result<Vec<String>> {
        let list = "SELECT blob FROM releases UNION ALL SELECT blob FROM common_packages
                    UNION ALL SELECT blob FROM parcels WHERE blob IS NOT NULL";
        self.read_long(move |books: &dyn Tx| all(books, list, &[], |row| row.text("blob"))).await
    }
}
