//! Recomputes a server's whole log of receipts from its entries, and compares it with what the server signed, with its tiles, and with
//! what was seen of it here. It needs no log-in: the entries name nobody.

use crate::api::MAX_TILE;
use crate::home::Home;
use crate::log::checkpoint_of;
use chipbound_transport::{Client, ServerTrust};
use chipbound_wire::certificate::Trust;
use chipbound_wire::documents::Receipt;
use chipbound_wire::limits::{MAX_DOCUMENT, MAX_NOTE};
use chipbound_wire::signed::read_claims;
use chipbound_wire::tlog::{
    Checkpoint, Frontier, LogKey, SignedCheckpoint, TILE_WIDTH, Tile, TileKind, entry_of, leaf_hash, read_entry_bundle,
};
use chipbound_wire::{Code, Refusal, Result, TreeHash};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Where a log is read.
pub enum Source {
    /// At its server.
    Server(Box<Client>),
    /// In a folder with the same files.
    Folder(PathBuf),
}

impl Source {
    /// The server with this address, or else the folder. Without a TLS root it is trusted as by the log-in, where that is at this server.
    pub fn of(name: &str, tls_root: Option<&Path>, home: &Home) -> Result<Self> {
        if !name.starts_with("https://") {
            return Ok(Self::Folder(PathBuf::from(name)));
        }
        let name = name.trim_end_matches('/');
        let trust = match (tls_root, home.session_if_any()?) {
            (Some(path), _) => ServerTrust::root_from_pem(&chipbound_host::files::read(path, 64 * 1024)?)?,
            (None, Some(session)) if session.server == name => session.trust()?,
            (None, _) => ServerTrust::WebPki,
        };
        Ok(Self::Server(Box::new(Client::new(name, trust)?)))
    }

    async fn get(&self, path: &str, max: usize) -> Result<Vec<u8>> {
        match self {
            Self::Server(client) => Ok(client.get_bytes(&format!("/log/{path}"), None, max).await?.into()),
            Self::Folder(folder) => chipbound_host::files::read(&folder.join(path), max),
        }
    }
}

/// A log that is what it should be.
#[derive(Debug)]
pub struct Report {
    checkpoint: SignedCheckpoint,
    tiles: u64,
    earlier: bool,
    receipts: u64,
}

impl Report {
    /// For people.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let Checkpoint { origin, size, root } = &*self.checkpoint;
        let earlier = if self.earlier { "it goes on from the checkpoint that is kept here" } else { "no checkpoint of it was kept here" };
        vec![
            format!("{origin}: {size} entries, root {root}"),
            format!("signed {}", crate::receipts::moment(self.checkpoint.time())),
            format!("{} tiles and all entries give that root; {earlier}", self.tiles),
            format!("{} receipts that are kept here are in their places", self.receipts),
            "the log is what its server signed".to_owned(),
        ]
    }

    /// For machines.
    #[must_use]
    pub fn value(&self) -> Value {
        let Checkpoint { origin, size, root } = &*self.checkpoint;
        json!({ "origin": origin, "entries": size, "root": root, "signed_at": self.checkpoint.time(), "tiles": self.tiles,
            "goes_on_from_kept": self.earlier, "receipts_in_place": self.receipts })
    }
}

/// Recomputes the log, under one of `roots`.
///
/// # Errors
/// [`Code::LogInconsistent`] where entries, tiles, checkpoint, or what is kept in `home` do not fit together; codes of the statement on
/// the log's key and of the checkpoint.
pub async fn audit(source: Source, roots: &[Vec<u8>], home: &Home) -> Result<Report> {
    let statement = source.get("key", MAX_DOCUMENT).await?;
    let mut key = Err(Refusal::new(Code::CertificateForeign, "no authority is known here: pass its root certificate with --root FILE"));
    for root in roots {
        key = key.or(Trust::new(root).and_then(|trust| LogKey::of_statement(&statement, &trust)));
    }
    let checkpoint = SignedCheckpoint::verify(&source.get("checkpoint", MAX_NOTE).await?, &key?)?;
    let kept = home.newest_proof(&checkpoint.origin)?.map(|proof| checkpoint_of(&proof)).transpose()?;
    let mut own = own_entries(home, &checkpoint.origin)?;

    let mut rebuilt = Rebuilt::default();
    let earlier = kept.as_ref().is_some_and(|kept| kept.size <= checkpoint.size);
    if kept.is_some() && !earlier {
        return Err(inconsistent("it has fewer entries than the checkpoint that is kept here"));
    }
    let mut receipts = 0;
    for bundle in Tile::bundles(checkpoint.size) {
        let bytes = source.get(&format!("tile/{bundle}"), MAX_TILE).await?;
        for (index, entry) in bundle.positions().zip(read_entry_bundle(&bytes, bundle.width)?) {
            rebuilt.compare_with(kept.as_ref())?;
            rebuilt.push(&entry);
            if let Some(at) = own.iter().position(|(place, _)| *place == index) {
                if own.swap_remove(at).1 != entry {
                    return Err(inconsistent(format!("entry {index} is not the receipt that was given for it")));
                }
                receipts += 1;
            }
        }
    }
    rebuilt.compare_with(kept.as_ref())?;
    if rebuilt.edge.root() != checkpoint.root {
        return Err(inconsistent("its entries do not give the root that was signed"));
    }
    if let Some((index, _)) = own.first() {
        return Err(inconsistent(format!("there is no entry {index}, for which a receipt is kept here")));
    }
    let tiles = rebuilt.compare_tiles(&source, checkpoint.size).await?;
    Ok(Report { checkpoint, tiles, earlier, receipts })
}

fn inconsistent(why: impl std::fmt::Display) -> Refusal {
    Refusal::new(Code::LogInconsistent, format!("the log is not what it should be: {why}"))
}

/// Places and entries of the receipts of that log that are kept here.
fn own_entries(home: &Home, origin: &str) -> Result<Vec<(u64, [u8; 32])>> {
    let places = home.receipts()?.into_iter().filter_map(|(_, bytes)| {
        let place = read_claims::<Receipt>(&bytes).ok()?.log.filter(|place| *place.origin == *origin)?;
        Some((place.index, entry_of(&bytes)))
    });
    Ok(places.collect())
}

/// The tree as it grows again, entry by entry.
#[derive(Default)]
struct Rebuilt {
    edge: Frontier,
    /// The hashes that stand in tiles, by the tiles' level.
    levels: Vec<Vec<TreeHash>>,
}

impl Rebuilt {
    fn push(&mut self, entry: &[u8; 32]) {
        let levels = &mut self.levels;
        self.edge.push(leaf_hash(entry), |level, _, hash| {
            if level.is_multiple_of(8) {
                let level = level as usize / 8;
                levels.resize(levels.len().max(level + 1), Vec::new());
                levels[level].push(*hash);
            }
        });
    }

    /// When it is as large as the kept checkpoint it must be that tree.
    fn compare_with(&self, kept: Option<&Checkpoint>) -> Result<()> {
        match kept {
            Some(kept) if kept.size == self.edge.size() && kept.root != self.edge.root() => {
                Err(inconsistent("it does not begin with the checkpoint that is kept here"))
            }
            _ => Ok(()),
        }
    }

    /// Every tile must hold these hashes.
    async fn compare_tiles(&self, source: &Source, size: u64) -> Result<u64> {
        let mut count = 0;
        for tile in Tile::all(size) {
            let TileKind::Hashes(level) = tile.kind else { continue };
            let from =
                usize::try_from(tile.index * TILE_WIDTH).map_err(|_| Refusal::new(Code::TooLarge, "the log does not fit in memory"))?;
            let expected: Vec<u8> = self.levels[level as usize][from..][..tile.width as usize].iter().flat_map(|hash| hash.0).collect();
            if source.get(&format!("tile/{tile}"), MAX_TILE).await? != expected {
                return Err(inconsistent(format!("tile {tile} does not hold the hashes of its entries")));
            }
            count += 1;
        }
        Ok(count)
    }
}
