//! Tiles (C2SP tlog-tiles): the tree as static files of up to 256 hashes, and bundles of up to 256 entries.

use super::tree::{Subtrees, consistency_proof, tree_root};
use crate::error::{Code, Refusal, Result};
use crate::ids::TreeHash;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

/// Hashes or entries of a full tile.
pub const TILE_WIDTH: u64 = 256;

/// Levels above which no tree has a tile.
const MAX_LEVEL: u8 = 7;

/// What a tile holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TileKind {
    /// The entries themselves.
    Entries,
    /// Hashes of subtrees of 256 to the power of this level.
    Hashes(u8),
}

/// One tile by its place: its text is the path below `/log/tile/`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tile {
    /// What it holds.
    pub kind: TileKind,
    /// Which one of its level.
    pub index: u64,
    /// How many hashes or entries, 1 to 256.
    pub width: u64,
}

impl Tile {
    /// The tile `index` of that kind in the log of `size` entries, as wide as it is there; none where it has nothing.
    #[must_use]
    pub fn of(kind: TileKind, index: u64, size: u64) -> Option<Self> {
        let level = if let TileKind::Hashes(level) = kind { u32::from(level) } else { 0 };
        let all = size.checked_shr(8 * level).unwrap_or(0);
        let width = all.saturating_sub(index.checked_mul(TILE_WIDTH)?).min(TILE_WIDTH);
        (width > 0).then_some(Self { kind, index, width })
    }

    /// All tiles of the log of `size` entries, bundles of entries left out.
    pub fn all(size: u64) -> impl Iterator<Item = Self> {
        let of_level = move |level| (0..).map_while(move |index| Self::of(TileKind::Hashes(level), index, size));
        (0..=MAX_LEVEL).flat_map(of_level)
    }

    /// The bundles of all entries of the log of `size` entries.
    pub fn bundles(size: u64) -> impl Iterator<Item = Self> {
        (0..).map_while(move |index| Self::of(TileKind::Entries, index, size))
    }

    /// The positions on the tile's level: those of entries, or of subtrees.
    #[must_use]
    pub fn positions(&self) -> std::ops::Range<u64> {
        self.index * TILE_WIDTH..self.index * TILE_WIDTH + self.width
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TileKind::Entries => f.write_str("entries/")?,
            TileKind::Hashes(level) => write!(f, "{level}/")?,
        }
        let mut groups = vec![self.index % 1000];
        while let rest @ 1.. = self.index / 1000_u64.pow(groups.len() as u32) {
            groups.push(rest % 1000);
        }
        for group in groups.iter().skip(1).rev() {
            write!(f, "x{group:03}/")?;
        }
        write!(f, "{:03}", groups[0])?;
        if self.width < TILE_WIDTH { write!(f, ".p/{}", self.width) } else { Ok(()) }
    }
}

impl FromStr for Tile {
    type Err = Refusal;
    /// Reads the path; anything that would be written in another way is [`Code::NotFound`].
    fn from_str(path: &str) -> Result<Self> {
        let none = || Refusal::new(Code::NotFound, "there is no such tile");
        if path.len() > 64 || !path.is_ascii() {
            return Err(none());
        }
        let (kind, rest) = path.split_once('/').ok_or_else(none)?;
        let kind = match kind {
            "entries" => TileKind::Entries,
            level => TileKind::Hashes(level.parse().ok().filter(|l| *l <= MAX_LEVEL).ok_or_else(none)?),
        };
        let (groups, width) = match rest.split_once(".p/") {
            Some((groups, width)) => (groups, width.parse().ok().filter(|w| (1..TILE_WIDTH).contains(w)).ok_or_else(none)?),
            None => (rest, TILE_WIDTH),
        };
        let digits = groups.replace("/x", "/").replacen('x', "", usize::from(groups.starts_with('x'))).replace('/', "");
        let index = digits.parse().ok().filter(|n| *n < super::tree::MAX_SIZE / TILE_WIDTH).ok_or_else(none)?;
        let tile = Self { kind, index, width };
        if tile.to_string() == path { Ok(tile) } else { Err(none()) }
    }
}

/// The tree by its tiles of hashes, each fetched when it is first asked for.
pub struct Tiles<F> {
    size: u64,
    fetch: F,
    tiles: HashMap<Tile, Vec<u8>>,
}

impl<F> std::fmt::Debug for Tiles<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tiles({} of {} entries)", self.tiles.len(), self.size)
    }
}

impl<F: FnMut(&Tile) -> Result<Vec<u8>>> Tiles<F> {
    /// The tree of the log of `size` entries, whose tiles `fetch` brings.
    pub fn new(size: u64, fetch: F) -> Self {
        Self { size, fetch, tiles: HashMap::new() }
    }
}

impl Tile {
    /// Which tiles it takes to see that the log of `old` entries is the beginning of that of `new`, and what both roots are.
    pub fn needed(old: u64, new: u64) -> Result<Vec<Self>> {
        let mut wanted = Wanted { size: new, tiles: Vec::new() };
        consistency_proof(&mut wanted, old, new)?;
        tree_root(&mut wanted, old)?;
        tree_root(&mut wanted, new)?;
        Ok(wanted.tiles)
    }
}

/// The tile, and the place in it, of the node over `start..end`, where it is a node of a tile: over a power of 256.
fn place(start: u64, end: u64, size: u64) -> Option<(Tile, usize)> {
    let width = end - start;
    let level = width.is_power_of_two().then(|| width.ilog2()).filter(|l| l.is_multiple_of(8))? / 8;
    let position = start / width;
    let tile = Tile::of(TileKind::Hashes(u8::try_from(level).ok()?), position / TILE_WIDTH, size)?;
    Some((tile, (position % TILE_WIDTH) as usize))
}

impl<F: FnMut(&Tile) -> Result<Vec<u8>>> Subtrees for Tiles<F> {
    fn known(&mut self, start: u64, end: u64) -> Result<Option<TreeHash>> {
        let Some((tile, at)) = place(start, end, self.size) else { return Ok(None) };
        if !self.tiles.contains_key(&tile) {
            let bytes = (self.fetch)(&tile)?;
            if bytes.len() as u64 != tile.width * 32 {
                return Err(Refusal::new(Code::Malformed, format!("tile {tile} of the log has {} bytes", bytes.len())));
            }
            self.tiles.insert(tile, bytes);
        }
        Ok(self.tiles[&tile].as_chunks().0.get(at).copied().map(TreeHash))
    }
}

/// Notes which tiles are asked for.
struct Wanted {
    size: u64,
    tiles: Vec<Tile>,
}

impl Subtrees for Wanted {
    fn known(&mut self, start: u64, end: u64) -> Result<Option<TreeHash>> {
        let Some((tile, _)) = place(start, end, self.size) else { return Ok(None) };
        if !self.tiles.contains(&tile) {
            self.tiles.push(tile);
        }
        Ok(Some(TreeHash([0; 32])))
    }
}

/// A bundle of entries: each after its length of two bytes, big endian.
#[must_use]
pub fn entry_bundle<'a>(entries: impl IntoIterator<Item = &'a [u8; 32]>) -> Vec<u8> {
    entries.into_iter().flat_map(|entry| [0, 32].into_iter().chain(*entry)).collect()
}

/// The entries of a bundle that holds `width` of them, each of 32 bytes; [`Code::Malformed`] for any other.
pub fn read_entry_bundle(bytes: &[u8], width: u64) -> Result<Vec<[u8; 32]>> {
    let (entries, rest) = bytes.as_chunks::<34>();
    if !rest.is_empty() || entries.len() as u64 != width || entries.iter().any(|entry| entry[..2] != [0, 32]) {
        return Err(Refusal::new(Code::Malformed, format!("not a bundle of {width} entries")));
    }
    Ok(entries.iter().map(|entry| *entry.last_chunk().expect("34 bytes end in 32")).collect())
}

#[cfg(test)]
#[path = "tiles_tests.rs"]
mod tests;
