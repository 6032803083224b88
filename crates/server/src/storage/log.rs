//! The receipts' log: grows in the transaction that captures, and is read as tiles and proofs.

use super::Log;
use super::books::Books;
use super::sql::{Lock, Tx, all, first, signed, unreadable, values};
use crate::log_key::LogSigner;
use chipbound_wire::tlog::{Frontier, InclusionProof, Tile, TileKind, Tiles, entry_bundle, entry_of, inclusion_proof, leaf_hash};
use chipbound_wire::{Digest, OrderId, Result, Time};

/// The log while receipts are entered: until the transaction ends nobody else enters any.
pub(super) struct Opened {
    edge: Frontier,
    statement: Option<Digest>,
    entries: Vec<[u8; 32]>,
}

/// Opens the log.
pub(super) fn open(tx: &dyn Tx) -> Result<Opened> {
    tx.alone(Lock::Logging)?;
    let head = first(tx, "SELECT size, edge, statement FROM log_head", &[], |row| {
        let statement = row.optional_bytes("statement")?.map(|digest| Digest::from_slice(&digest)).transpose()?;
        Ok(Opened { edge: Frontier::from_bytes(row.number("size")?, &row.bytes("edge")?)?, statement, entries: Vec::new() })
    })?;
    head.ok_or_else(unreadable)
}

impl Opened {
    /// The place of the next receipt.
    pub(super) fn next(&self) -> u64 {
        self.edge.size() + self.entries.len() as u64
    }

    /// Enters a signed receipt at that place.
    pub(super) fn enter(&mut self, receipt: &[u8]) {
        self.entries.push(entry_of(receipt));
    }

    /// Writes what was entered, at least one receipt, under one checkpoint; returns the proof of each.
    pub(super) fn close(self, tx: &dyn Tx, signer: &LogSigner, at: Time) -> Result<Vec<String>> {
        let leaves: Vec<_> = self.entries.iter().map(|entry| leaf_hash(entry)).collect();
        let paths = self.edge.prove_appended(&leaves)?;
        let mut edge = self.edge.clone();
        let mut nodes = Vec::new();
        for (entry, leaf) in self.entries.iter().zip(&leaves) {
            edge.push(*leaf, |level, position, hash| match level {
                0 => nodes.push((0, position, *entry)),
                above if above.is_multiple_of(8) => nodes.push((above / 8, position, hash.0)),
                _ => {}
            });
        }
        let insert = "INSERT INTO log_nodes (level, position, value) VALUES ($1, $2, $3)";
        let nodes: Vec<_> = nodes.into_iter().map(|(level, position, value)| (level, position, Digest(value))).collect();
        let rows = nodes.iter().map(|(level, position, value)| Ok(values![*level, signed(*position)?, value].to_vec()));
        tx.put_each(insert, &rows.collect::<Result<Vec<_>>>()?)?;
        let statement = Digest::of(signer.statement());
        if self.statement != Some(statement) {
            let insert = "INSERT INTO log_statements (digest, statement) VALUES ($1, $2) ON CONFLICT DO NOTHING";
            tx.put(insert, values![&statement, &signer.statement().to_vec()])?;
        }
        let note = signer.checkpoint(edge.size(), edge.root(), at);
        let insert = "INSERT INTO log_checkpoints (size, note, statement) VALUES ($1, $2, $3)";
        tx.put(insert, values![signed(edge.size())?, &note, &statement])?;
        let update = "UPDATE log_head SET size = $1, edge = $2, statement = $3";
        tx.put(update, values![signed(edge.size())?, &edge.to_bytes(), &statement])?;
        let proof =
            |(index, hashes)| InclusionProof { extra: signer.statement().to_vec(), index, hashes, checkpoint: note.clone() }.to_text();
        Ok((self.edge.size()..).zip(paths).map(proof).collect())
    }
}

/// The proof of an order's receipt in the checkpoint under which it was entered; none where it is in no log. The same each time.
pub(super) fn proof(tx: &dyn Tx, order: OrderId) -> Result<Option<String>> {
    let find = "SELECT log_index FROM receipts WHERE order_id = $1 AND log_index IS NOT NULL";
    let Some(index) = first(tx, find, values![&order], |row| row.number("log_index"))? else { return Ok(None) };
    let find = "SELECT c.size, c.note, s.statement FROM log_checkpoints c JOIN log_statements s ON s.digest = c.statement
                WHERE c.size > $1 ORDER BY c.size LIMIT 1";
    let found = first(tx, find, values![signed(index)?], |row| Ok((row.number("size")?, row.text("note")?, row.bytes("statement")?)))?;
    let (size, checkpoint, extra) = found.ok_or_else(unreadable)?;
    let mut tree = Tiles::new(size, |wanted: &Tile| tile(tx, *wanted)?.ok_or_else(unreadable));
    let hashes = inclusion_proof(&mut tree, index, size)?;
    Ok(Some(InclusionProof { extra, index, hashes, checkpoint }.to_text()))
}

/// The bytes of a tile, if the log is large enough for it.
fn tile(books: &dyn Tx, tile: Tile) -> Result<Option<Vec<u8>>> {
    let (level, positions) = (if let TileKind::Hashes(level) = tile.kind { level } else { 0 }, tile.positions());
    let find = "SELECT value FROM log_nodes WHERE level = $1 AND position >= $2 AND position < $3 ORDER BY position";
    let values = values![u32::from(level), signed(positions.start)?, signed(positions.end)?];
    let nodes: Vec<[u8; 32]> = all(books, find, values, |row| row.id("value"))?;
    if nodes.len() as u64 != tile.width {
        return Ok(None);
    }
    Ok(Some(match tile.kind {
        TileKind::Entries => entry_bundle(&nodes),
        TileKind::Hashes(0) => nodes.iter().flat_map(|entry| leaf_hash(entry).0).collect(),
        TileKind::Hashes(_) => nodes.concat(),
    }))
}

impl Log for Books {
    async fn log_checkpoint(&self) -> Result<Option<String>> {
        let newest = "SELECT note FROM log_checkpoints ORDER BY size DESC LIMIT 1";
        self.read(move |books: &dyn Tx| first(books, newest, &[], |row| row.text("note"))).await
    }

    async fn log_tile(&self, wanted: Tile) -> Result<Option<Vec<u8>>> {
        self.read_long(move |books: &dyn Tx| tile(books, wanted)).await
    }

    async fn log_proof(&self, order: OrderId) -> Result<Option<String>> {
        self.read_long(move |books: &dyn Tx| proof(books, order)).await
    }
}
