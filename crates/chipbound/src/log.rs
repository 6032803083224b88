//! A server's log of receipts as its customer sees it: the receipt must be in it, and it must go on from what it was when it was seen
//! last. Whoever keeps every checkpoint that a server shows, and compares, makes it keep one log for everybody.

use crate::api::Api;
use crate::home::Home;
use chipbound_wire::certificate::Trust;
use chipbound_wire::documents::Receipt;
use chipbound_wire::signed::Verified;
use chipbound_wire::tlog::{
    Checkpoint, Entered, InclusionProof, LogKey, Note, SignedCheckpoint, Tile, Tiles, consistency_proof, origin_of, verify_consistency,
};
use chipbound_wire::{Code, Refusal, Result};
use std::collections::HashMap;

/// Verifies that `receipt` is in its server's log by the `proof` that came with it, keeps the proof beside it, and compares the log
/// with what was seen of it last. A receipt that names no log is taken as it is.
///
/// # Errors
/// [`Code::NotInLog`] and the other codes of [`Entered::verify`]; [`Code::LogInconsistent`] where the server shows another log than
/// before: then both proofs are kept in the home as evidence.
pub async fn check(home: &Home, api: &Api, receipt: &Verified<Receipt>, proof: Option<&str>, trust: &Trust) -> Result<()> {
    if receipt.log.is_none() {
        return before_the_log(home, receipt, trust);
    }
    let proof = proof.ok_or_else(|| Refusal::new(Code::NotInLog, "the server gave no proof that the receipt is in its log"))?;
    let entered = Entered::verify(receipt.bytes(), proof.as_bytes(), trust)?;
    home.store_proof(&receipt.order, proof)?;
    let shown = entered.checkpoint();
    let Some(kept_proof) = home.newest_proof(&shown.origin)? else {
        return home.store_newest_proof(&shown.origin, proof.as_bytes());
    };
    let kept = checkpoint_of(&kept_proof)?;
    match compare(api, &kept, shown).await {
        Ok(()) if shown.size > kept.size => home.store_newest_proof(&shown.origin, proof.as_bytes()),
        Ok(()) => Ok(()),
        Err(refusal) if refusal.code == Code::LogInconsistent => {
            let folder = home.store_evidence([&kept_proof, proof.as_bytes()])?;
            Err(Refusal::new(refusal.code, format!("{}; both checkpoints are in {}", refusal.detail, folder.display())))
        }
        Err(refusal) => Err(refusal),
    }
}

/// A receipt without a place in a log is taken only where it is older than what was seen of its server's log.
fn before_the_log(home: &Home, receipt: &Verified<Receipt>, trust: &Trust) -> Result<()> {
    let Some(kept) = home.newest_proof(&origin_of(trust.root(), receipt.signer().subject()))? else { return Ok(()) };
    let kept = InclusionProof::parse(&kept)?;
    let seen = SignedCheckpoint::verify(kept.checkpoint.as_bytes(), &LogKey::of_statement(&kept.extra, trust)?)?;
    if receipt.issued_at < seen.time() {
        return Ok(());
    }
    Err(Refusal::new(Code::NotInLog, "the server has a log, and this receipt is not in it"))
}

/// The checkpoint of a proof that was verified before it was kept.
pub(crate) fn checkpoint_of(proof: &[u8]) -> Result<Checkpoint> {
    Checkpoint::parse(&Note::parse(InclusionProof::parse(proof)?.checkpoint.as_bytes())?.text)
}

/// Checks that the smaller of two checkpoints is the beginning of the larger, by the tiles that the server shows. What it cannot or
/// will not show counts as another log.
async fn compare(api: &Api, one: &Checkpoint, other: &Checkpoint) -> Result<()> {
    let (old, new) = if one.size <= other.size { (one, other) } else { (other, one) };
    if old.size == new.size {
        return verify_consistency(old.size, &old.root, new.size, &new.root, &[]);
    }
    let mut tiles = HashMap::new();
    for tile in Tile::needed(old.size, new.size)? {
        let bytes = api.log_tile(&tile).await.map_err(not_shown)?;
        tiles.insert(tile, bytes);
    }
    let fetch = |tile: &Tile| tiles.get(tile).cloned().ok_or_else(|| Refusal::new(Code::NotFound, "a tile that was not asked for"));
    let proof = consistency_proof(&mut Tiles::new(new.size, fetch), old.size, new.size).map_err(not_shown)?;
    verify_consistency(old.size, &old.root, new.size, &new.root, &proof)
}

/// A server that cannot be reached, or cannot reach its books, is that; whatever else it answers, it does not show that its log goes on.
fn not_shown(refusal: Refusal) -> Refusal {
    use Code as C;
    match refusal.code {
        C::ServerUnreachable | C::ServerUntrusted | C::TimedOut | C::PathTruncated | C::Busy | C::RateLimited | C::DatabaseUnavailable => {
            refusal
        }
        _ => {
            Refusal::new(C::LogInconsistent, format!("the server does not show how its log goes on ({})", refusal.detail)).because(refusal)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_its_books_is_not_accused_of_another_log() {
        let shown = |code| not_shown(Refusal::new(code, "said the server")).code;
        assert_eq!([Code::DatabaseUnavailable, Code::Busy].map(shown), [Code::DatabaseUnavailable, Code::Busy]);
        assert_eq!([Code::NotFound, Code::Internal].map(shown), [Code::LogInconsistent; 2]);
    }
}
