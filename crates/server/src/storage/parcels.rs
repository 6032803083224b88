//! Parcels whose delivery may be cut short.

use super::books::Books;
use super::sql::{Row, Tx, all, first, signed, unreadable, values};
use super::{Delivery, orders};
use chipbound_session::Roots;
use chipbound_wire::documents::Seal;
use chipbound_wire::signed::read_claims;
use chipbound_wire::suite::Kem;
use chipbound_wire::{Digest, OrderId, Result, Time};

/// A package whose delivery may be cut short: what it takes to go on with the same bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredParcel {
    /// The order.
    pub order: OrderId,
    /// The signed terms.
    pub terms: Vec<u8>,
    /// The main wrap in CBOR.
    pub wrap: Vec<u8>,
    /// The mechanism of the wrap.
    pub kem: Kem,
    /// The processor's certified sealing key, to which the wrap went.
    pub sealing_key: Vec<u8>,
    /// The release secret, sealed at rest.
    pub release_secret: Vec<u8>,
    /// The content key, sealed at rest.
    pub content_key: Vec<u8>,
    /// Where the ciphertext lies that was made for this order; none where it is the release's common one, or not needed any more.
    pub blob: Option<String>,
    /// Over the ciphertext.
    pub roots: Roots,
    /// Until when it is kept.
    pub until: Time,
}

impl StoredParcel {
    /// The delivery of this parcel under a seal that is about to leave the server.
    #[must_use]
    pub fn sealed_by(&self, seal: Vec<u8>, created_at: Time) -> Delivery {
        let Self { order, terms, wrap, kem, sealing_key, release_secret, content_key, .. } = self.clone();
        Delivery { order, terms, wrap, kem, sealing_key, release_secret, content_key, seal, created_at }
    }
}

/// Parcels whose delivery may be cut short. Each returns the names of the blobs to which nothing refers any more, or what it says.
pub trait Parcels {
    /// Keeps a parcel in the place of the order's earlier one. Beyond `most` bytes of bodies in all the oldest are forgotten.
    fn keep_parcel(&self, parcel: &StoredParcel, most: u64) -> impl Future<Output = Result<Vec<String>>> + Send;
    /// The order's parcel under the terms with that digest: as it was kept, or, of one that was sent whole, without a blob.
    fn parcel(&self, order: OrderId, terms: Digest) -> impl Future<Output = Result<Option<StoredParcel>>> + Send;
    /// Forgets the order's parcel, if there is one.
    fn forget_parcel(&self, order: OrderId) -> impl Future<Output = Result<Vec<String>>> + Send;
    /// Forgets parcels that are not kept any longer.
    fn expire_parcels(&self, now: Time) -> impl Future<Output = Result<Vec<String>>> + Send;
}

/// What both tables have.
fn read(row: &dyn Row, blob: Option<String>, roots: Roots, until: Time) -> Result<StoredParcel> {
    Ok(StoredParcel {
        order: OrderId(row.id("order_id")?),
        terms: row.bytes("terms")?,
        wrap: row.bytes("wrap")?,
        kem: row.parsed("kem")?,
        sealing_key: row.bytes("sealing_key")?,
        release_secret: row.bytes("release_secret")?,
        content_key: row.bytes("content_key")?,
        blob,
        roots,
        until,
    })
}

fn kept(row: &dyn Row) -> Result<StoredParcel> {
    let roots = Roots {
        body_root: Digest(row.id("body_root")?),
        body_size: row.number("body_size")?,
        table_root: Digest(row.id("table_root")?),
        table_size: row.number("table_size")?,
    };
    read(row, row.optional_text("blob")?, roots, Time(row.number("until")?))
}

/// A parcel that was sent whole: its seal says what the ciphertext was.
fn sent(row: &dyn Row) -> Result<StoredParcel> {
    let seal: Seal = read_claims(&row.bytes("seal")?).map_err(|_| unreadable())?;
    let Seal { body_root, body_size, table_root, table_size, .. } = seal;
    read(row, None, Roots { body_root, body_size, table_root, table_size }, Time(row.number("created_at")?))
}

/// Forgets the parcel of that order; its blob.
fn forget(tx: &dyn Tx, order: OrderId) -> Result<Option<String>> {
    let blob = first(tx, "SELECT blob FROM parcels WHERE order_id = $1", values![&order], |row| row.optional_text("blob"))?;
    tx.put("DELETE FROM parcels WHERE order_id = $1", values![&order])?;
    Ok(blob.flatten())
}

/// Forgets the oldest of those with ciphertext of their own beyond `most` bytes; their blobs.
fn make_room(tx: &dyn Tx, most: u64) -> Result<Vec<String>> {
    let newest = "SELECT order_id, body_size FROM parcels WHERE blob IS NOT NULL ORDER BY until DESC, order_id";
    let newest = all(tx, newest, &[], |row| Ok((OrderId(row.id("order_id")?), row.number("body_size")?)))?;
    let (mut room, mut gone) = (most, Vec::new());
    for (order, size) in newest {
        match room.checked_sub(size) {
            Some(rest) => room = rest,
            None => gone.extend(forget(tx, order)?),
        }
    }
    Ok(gone)
}

impl Parcels for Books {
    async fn keep_parcel(&self, parcel: &StoredParcel, most: u64) -> Result<Vec<String>> {
        let new = parcel.clone();
        let keep = move |tx: &dyn Tx| {
            orders::lock(tx, new.order)?;
            let replaced = forget(tx, new.order)?;
            tx.put(
                "INSERT INTO parcels (order_id, terms_digest, terms, wrap, kem, sealing_key, release_secret, content_key, blob, body_root,
                 body_size, table_root, table_size, until) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
                values![
                    &new.order,
                    &Digest::of(&new.terms),
                    &new.terms,
                    &new.wrap,
                    new.kem.as_str(),
                    &new.sealing_key,
                    &new.release_secret,
                    &new.content_key,
                    new.blob.as_deref(),
                    &new.roots.body_root,
                    signed(new.roots.body_size)?,
                    &new.roots.table_root,
                    signed(new.roots.table_size)?,
                    signed(new.until.0)?,
                ],
            )?;
            let mut gone = make_room(tx, most)?;
            gone.extend(replaced);
            Ok(gone)
        };
        self.write(keep).await
    }

    async fn parcel(&self, order: OrderId, terms: Digest) -> Result<Option<StoredParcel>> {
        let find = move |books: &dyn Tx| {
            let find = "SELECT * FROM parcels WHERE order_id = $1 AND terms_digest = $2";
            first(books, find, values![&order, &terms], kept)
        };
        if let Some(parcel) = self.read(find).await? {
            return Ok(Some(parcel));
        }
        let find = move |books: &dyn Tx| {
            let find = "SELECT * FROM deliveries WHERE order_id = $1 AND terms_digest = $2 AND length(content_key) > 0 LIMIT 1";
            first(books, find, values![&order, &terms], sent)
        };
        self.read(find).await
    }

    async fn forget_parcel(&self, order: OrderId) -> Result<Vec<String>> {
        self.write(move |tx: &dyn Tx| Ok(forget(tx, order)?.into_iter().collect())).await
    }

    async fn expire_parcels(&self, now: Time) -> Result<Vec<String>> {
        let late = signed(now.0)?;
        let find = "SELECT order_id FROM parcels WHERE until < $1";
        let expired = self.read(move |books: &dyn Tx| all(books, find, values![late], |row| row.id("order_id").map(OrderId))).await?;
        if expired.is_empty() {
            return Ok(Vec::new());
        }
        let expire = move |tx: &dyn Tx| {
            let gone = expired.iter().map(|order| forget(tx, *order)).collect::<Result<Vec<_>>>()?;
            Ok(gone.into_iter().flatten().collect())
        };
        self.write(expire).await
    }
}
