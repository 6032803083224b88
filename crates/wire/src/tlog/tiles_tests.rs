use super::*;
use crate::tlog::{Frontier, leaf_hash, verify_consistency};

fn leaf(n: u64) -> TreeHash {
    leaf_hash(&n.to_be_bytes())
}

/// The hashes of every level of tiles, and the root of each size.
fn log(size: u64) -> (Vec<Vec<TreeHash>>, Vec<TreeHash>) {
    let (mut levels, mut roots, mut edge) = (vec![Vec::new(); 3], Vec::new(), Frontier::default());
    roots.push(edge.root());
    for n in 0..size {
        edge.push(leaf(n), |level, _, hash| {
            if level % 8 == 0 {
                levels[(level / 8) as usize].push(*hash);
            }
        });
        roots.push(edge.root());
    }
    (levels, roots)
}

fn fetched(levels: &[Vec<TreeHash>], tile: &Tile) -> Vec<u8> {
    let TileKind::Hashes(level) = tile.kind else { panic!("not a tile of hashes") };
    let range = tile.positions();
    levels[level as usize][range.start as usize..range.end as usize].iter().flat_map(|hash| hash.0).collect()
}

#[test]
fn tiles_have_the_paths_of_the_specification() {
    let tile = |kind, index, width| Tile { kind, index, width };
    for (path, tile) in [
        ("0/x001/x234/067", tile(TileKind::Hashes(0), 1_234_067, 256)),
        ("0/000.p/1", tile(TileKind::Hashes(0), 0, 1)),
        ("2/000.p/17", tile(TileKind::Hashes(2), 0, 17)),
        ("entries/273.p/112", tile(TileKind::Entries, 273, 112)),
        ("1/x001/000", tile(TileKind::Hashes(1), 1000, 256)),
    ] {
        assert_eq!(tile.to_string(), path);
        assert_eq!(path.parse::<Tile>().unwrap(), tile);
    }
}

#[test]
fn other_paths_are_no_tiles() {
    for path in [
        "",
        "0",
        "0/",
        "0/0",
        "0/00",
        "0/0000",
        "0/x000/001",
        "00/000",
        "8/000",
        "64/000",
        "-1/000",
        "0/000.p/0",
        "0/000.p/256",
        "0/000.p/01",
        "0/000.p/",
        "0/001/002",
        "0/x001",
        "0/x1/000",
        "0/../0",
        "entries/x",
        "Entries/000",
        "0/000/",
        "/0/000",
        "0/xx001/000",
        "0/x999/x999/x999/x999/x999/x999/999",
        "0/\u{660}00",
    ] {
        assert_eq!(path.parse::<Tile>().expect_err(path).code, Code::NotFound, "{path:?}");
    }
}

/// The example of the specification: 70,000 entries.
#[test]
fn a_log_has_the_tiles_of_the_specification() {
    let all: Vec<_> = Tile::all(70_000).collect();
    let of = |level| all.iter().filter(|t| t.kind == TileKind::Hashes(level)).map(|t| t.width).collect::<Vec<_>>();
    assert_eq!((of(0).len(), of(0)[273], of(1), of(2), of(3)), (274, 112, vec![256, 17], vec![1], vec![]));
    assert_eq!(Tile::all(256).map(|t| t.width).collect::<Vec<_>>(), [256, 1]);
    assert_eq!(Tile::all(0).count() + Tile::bundles(0).count(), 0);
    assert_eq!(Tile::bundles(70_000).count(), 274);
    assert_eq!(Tile::of(TileKind::Hashes(0), u64::MAX, u64::MAX), None);
}

#[test]
fn the_needed_tiles_are_enough_to_compare_two_sizes_and_few() {
    let (levels, roots) = log(70_000);
    for (old, new) in
        [(0, 1), (1, 2), (255, 256), (256, 257), (300, 70_000), (65_536, 70_000), (65_535, 65_537), (70_000, 70_000), (1, 70_000)]
    {
        let needed = Tile::needed(old, new).unwrap();
        assert!(needed.len() <= 6, "{} tiles from {old} to {new}", needed.len());
        let mut tiles = Tiles::new(new, |tile: &Tile| {
            assert!(needed.contains(tile), "{tile}");
            Ok(fetched(&levels, tile))
        });
        assert_eq!(tree_root(&mut tiles, new).unwrap(), roots[new as usize]);
        assert_eq!(tree_root(&mut tiles, old).unwrap(), roots[old as usize]);
        let proof = consistency_proof(&mut tiles, old, new).unwrap();
        verify_consistency(old, &roots[old as usize], new, &roots[new as usize], &proof).unwrap();
    }
}

#[test]
fn missing_and_wrongly_long_tiles_and_bundles_are_refused() {
    let missing = Tiles::new(2, |_: &Tile| Err(Refusal::new(Code::NotFound, "gone")));
    let short = Tiles::new(2, |_: &Tile| Ok(vec![0; 63]));
    assert_eq!(tree_root(&mut { missing }, 2).unwrap_err().code, Code::NotFound);
    assert_eq!(tree_root(&mut { short }, 2).unwrap_err().code, Code::Malformed);
    let bundle = entry_bundle(&[[1; 32], [2; 32]]);
    assert_eq!(read_entry_bundle(&bundle, 2).unwrap(), [[1; 32], [2; 32]]);
    let mut other = bundle.clone();
    other[1] = 31;
    for (bytes, width) in [(&bundle[..], 1), (&bundle[..67], 2), (&other, 2), (&[], 1)] {
        assert_eq!(read_entry_bundle(bytes, width).unwrap_err().code, Code::Malformed);
    }
}
