//! A receipt with its place in the log, verified with nothing but the authority's root: no server, no authority, no clock.

use super::checkpoint::{LogKey, SignedCheckpoint, origin_of};
use super::entry_of;
use super::proof::InclusionProof;
use super::tree::{leaf_hash, verify_inclusion};
use crate::certificate::Trust;
use crate::documents::{LogStatement, Receipt};
use crate::error::{Code, Refusal, Result};
use crate::signed::{Verified, read_claims, verify_past_document};

/// Seconds by which the clocks of one server's machines may differ.
const SKEW: u64 = 300;

/// A receipt that is in its server's log. Only [`Entered::verify`] makes one.
#[derive(Clone, Debug)]
pub struct Entered {
    receipt: Verified<Receipt>,
    key: LogKey,
    checkpoint: SignedCheckpoint,
}

impl Entered {
    /// Verifies a signed receipt and its proof under the root of `trust`.
    ///
    /// The log's timed signature is the witness of when the receipt was signed: the certificate must have been valid then, and
    /// not revoked by then, as far as `trust` has a revocation list. So a receipt outlives the certificate, the receipt key and the
    /// log key by which it was signed, and nobody who comes by an old key makes a new receipt with it that the log contains.
    ///
    /// # Errors
    /// Codes of certificates and signatures; [`Code::NotInLog`] where the proof is not about this receipt or does not hold;
    /// [`Code::LogKeyUnknown`] where the log or its key is not the signing server's.
    pub fn verify(receipt: &[u8], proof: &[u8], trust: &Trust) -> Result<Self> {
        let proof = InclusionProof::parse(proof)?;
        let claims: Receipt = read_claims(receipt)?;
        let place = claims.log.as_ref().ok_or_else(|| Refusal::new(Code::NotInLog, "the receipt names no place in a log"))?;
        let (key, statement) = log_key(&proof.extra, trust)?;
        let checkpoint = SignedCheckpoint::verify(proof.checkpoint.as_bytes(), &key)?;
        let witnessed = checkpoint.time();
        if claims.issued_at > witnessed.after(SKEW) || statement.issued_at > witnessed.after(SKEW) {
            return Err(Refusal::new(Code::NotInLog, "the checkpoint is older than what it stands for"));
        }
        let receipt: Verified<Receipt> = verify_past_document(receipt, trust, witnessed)?;
        let own = origin_of(trust.root(), receipt.signer().subject());
        if [&*place.origin, key.origin()].iter().any(|origin| *origin != own) {
            return Err(Refusal::new(Code::LogKeyUnknown, format!("the receipt of {:?} is in another log", receipt.signer().subject())));
        }
        if place.index != proof.index {
            return Err(Refusal::new(
                Code::NotInLog,
                format!("the proof of entry {} for the receipt of entry {}", proof.index, place.index),
            ));
        }
        verify_inclusion(&leaf_hash(&entry_of(receipt.bytes())), proof.index, checkpoint.size, &proof.hashes, &checkpoint.root)?;
        Ok(Self { receipt, key, checkpoint })
    }

    /// The receipt.
    #[must_use]
    pub fn receipt(&self) -> &Verified<Receipt> {
        &self.receipt
    }

    /// The key of the log.
    #[must_use]
    pub fn key(&self) -> &LogKey {
        &self.key
    }

    /// The checkpoint of the log that contains it.
    #[must_use]
    pub fn checkpoint(&self) -> &SignedCheckpoint {
        &self.checkpoint
    }
}

/// The key that a server's signed statement names, if the server has that log.
fn log_key(statement: &[u8], trust: &Trust) -> Result<(LogKey, Verified<LogStatement>)> {
    let claims: LogStatement = read_claims(statement)?;
    let statement: Verified<LogStatement> = verify_past_document(statement, trust, claims.issued_at)?;
    if *statement.origin != *origin_of(trust.root(), statement.signer().subject()) {
        return Err(Refusal::new(Code::LogKeyUnknown, "the statement on the log's key is not by the server whose log it is"));
    }
    let public = <[u8; 32]>::try_from(&*statement.key).map_err(|_| Refusal::new(Code::Malformed, "the log's key is not 32 bytes"))?;
    Ok((LogKey::new(&statement.origin, public)?, statement))
}

impl LogKey {
    /// The key that a server's signed statement names ([`LogStatement`]), verified under the root of `trust` at the time of the
    /// statement. [`Code::LogKeyUnknown`] where it is about another server's log.
    pub fn of_statement(statement: &[u8], trust: &Trust) -> Result<Self> {
        Ok(log_key(statement, trust)?.0)
    }
}
