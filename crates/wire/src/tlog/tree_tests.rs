use super::*;
use data_encoding::HEXLOWER;

/// The leaves that the logs of Certificate Transparency are tested with.
const LEAVES: [&str; 8] = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];

/// The roots over the first 1 to 8 of them.
const ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

/// Inclusion: (leaf, size, proof).
const PATHS: [(u64, u64, &[&str]); 3] = [
    (0, 1, &[]),
    (
        0,
        8,
        &[
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (2, 3, &["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
];

/// Consistency: (old, new, proof).
const GROWTHS: [(u64, u64, &[&str]); 2] = [
    (
        6,
        8,
        &[
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        5,
        &[
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
];

/// The definition of RFC 9162 §2.1.1, word by word.
fn naive_root(leaves: &[TreeHash]) -> TreeHash {
    match leaves {
        [] => sha256(&[]),
        [one] => *one,
        many => {
            let k = (many.len() as u64 - 1).ilog2();
            let (left, right) = many.split_at(1 << k);
            node_hash(&naive_root(left), &naive_root(right))
        }
    }
}

/// Knows the leaves and nothing else.
struct Leaves<'a>(&'a [TreeHash]);

impl Subtrees for Leaves<'_> {
    fn known(&mut self, start: u64, end: u64) -> Result<Option<TreeHash>> {
        Ok((end - start == 1).then(|| self.0[start as usize]))
    }
}

fn vectors() -> Vec<TreeHash> {
    LEAVES.iter().map(|leaf| leaf_hash(&HEXLOWER.decode(leaf.as_bytes()).unwrap())).collect()
}

fn leaves(count: u64) -> Vec<TreeHash> {
    (0..count).map(|n| leaf_hash(&n.to_be_bytes())).collect()
}

#[test]
fn the_known_trees_have_the_known_roots_and_proofs() {
    let leaves = vectors();
    assert_eq!(tree_root(&mut Leaves(&[]), 0).unwrap().to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    for (size, root) in (1..).zip(ROOTS) {
        assert_eq!(tree_root(&mut Leaves(&leaves), size).unwrap().to_string(), root);
    }
    let text = |proof: Vec<TreeHash>| proof.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (index, size, proof) in PATHS {
        assert_eq!(text(inclusion_proof(&mut Leaves(&leaves), index, size).unwrap()), proof, "{index} of {size}");
    }
    for (old, new, proof) in GROWTHS {
        assert_eq!(text(consistency_proof(&mut Leaves(&leaves), old, new).unwrap()), proof, "{old} to {new}");
    }
}

#[test]
fn every_proof_of_every_small_tree_holds_and_no_changed_one_does() {
    let leaves = leaves(70);
    let root = |size: u64| naive_root(&leaves[..size as usize]);
    let mut source = Leaves(&leaves);
    for size in 1..=70 {
        assert_eq!(tree_root(&mut source, size).unwrap(), root(size));
        for index in 0..size {
            let proof = inclusion_proof(&mut source, index, size).unwrap();
            let check = |leaf, index, size, proof: &[_]| verify_inclusion(leaf, index, size, proof, &root(70.min(size)));
            check(&leaves[index as usize], index, size, &proof).unwrap();
            let refused = |outcome: Result<()>| assert_eq!(outcome.unwrap_err().code, Code::NotInLog, "{index} of {size}");
            refused(check(&leaves[(index as usize + 1) % 70], index, size, &proof));
            refused(check(&leaves[index as usize], size, size, &proof));
            refused(check(&leaves[index as usize], index, size, &[proof.clone(), vec![root(1)]].concat()));
            if let Some((_, shorter)) = proof.split_last() {
                refused(check(&leaves[index as usize], index, size, shorter));
                refused(check(&leaves[index as usize], index ^ 1, size, &proof));
            }
        }
        for old in 0..=size {
            let proof = consistency_proof(&mut source, old, size).unwrap();
            verify_consistency(old, &root(old), size, &root(size), &proof).unwrap();
            let refused = |outcome: Result<()>| assert_eq!(outcome.unwrap_err().code, Code::LogInconsistent, "{old} to {size}");
            refused(verify_consistency(old, &leaf_hash(b"other"), size, &root(size), &proof));
            refused(verify_consistency(old, &root(old), size, &root(size), &[proof.clone(), vec![root(1)]].concat()));
            if old > 0 {
                refused(verify_consistency(old, &root(old), size, &leaf_hash(b"other"), &proof));
            }
            if let Some((_, shorter)) = proof.split_last() {
                refused(verify_consistency(old, &root(old), size, &root(size), shorter));
            }
        }
    }
}

#[test]
fn a_log_that_forgot_or_changed_an_entry_is_inconsistent_with_every_later_one() {
    let before = leaves(21);
    let old_root = naive_root(&before[..13]);
    for changed in 0..13 {
        let mut after = before.clone();
        after[changed] = leaf_hash(b"rewritten");
        let proof = consistency_proof(&mut Leaves(&after), 13, 21).unwrap();
        let outcome = verify_consistency(13, &old_root, 21, &naive_root(&after), &proof);
        assert_eq!(outcome.unwrap_err().code, Code::LogInconsistent);
    }
    assert_eq!(consistency_proof(&mut Leaves(&before), 13, 12).unwrap_err().code, Code::LogInconsistent);
    assert_eq!(verify_consistency(13, &old_root, 12, &old_root, &[]).unwrap_err().code, Code::LogInconsistent);
}

#[test]
fn the_edge_of_a_tree_grows_as_the_tree_does_and_proves_what_was_appended() {
    let leaves = leaves(150);
    for begin in 0..40_u64 {
        for batch in [1, 2, 3, 7, 64, 100] {
            let mut edge = Frontier::default();
            leaves[..begin as usize].iter().for_each(|leaf| edge.push(*leaf, |_, _, _| {}));
            let edge = Frontier::from_bytes(begin, &edge.to_bytes()).unwrap();
            let new = &leaves[begin as usize..begin as usize + batch];
            let proofs = edge.prove_appended(new).unwrap();
            let mut grown = edge.clone();
            new.iter().for_each(|leaf| {
                grown.push(*leaf, |level, index, hash| {
                    let (start, end) = ((index << level) as usize, ((index + 1) << level) as usize);
                    assert_eq!(*hash, naive_root(&leaves[start..end]), "level {level}, {index}");
                });
            });
            assert_eq!((grown.size(), grown.root()), (begin + batch as u64, naive_root(&leaves[..begin as usize + batch])));
            for ((index, leaf), proof) in (begin..).zip(new).zip(&proofs) {
                verify_inclusion(leaf, index, grown.size(), proof, &grown.root()).unwrap();
            }
        }
    }
}

#[test]
fn sizes_beyond_the_limit_and_edges_that_do_not_fit_are_refused() {
    let hash = leaf_hash(b"");
    assert_eq!(verify_inclusion(&hash, 0, u64::MAX, &[], &hash).unwrap_err().code, Code::TooLarge);
    assert_eq!(verify_consistency(1, &hash, u64::MAX, &hash, &[]).unwrap_err().code, Code::TooLarge);
    assert_eq!(verify_inclusion(&hash, 0, 1 << 62, &vec![hash; 100], &hash).unwrap_err().code, Code::NotInLog);
    assert_eq!(Frontier::from_bytes(3, &[0; 32]).unwrap_err().code, Code::Malformed);
    assert_eq!(Frontier::from_bytes(3, &[0; 65]).unwrap_err().code, Code::Malformed);
}
