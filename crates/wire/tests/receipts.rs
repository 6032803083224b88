//! Receipts in the log: verified with the root alone, whatever happened to keys, certificates and servers since.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use chipbound_testkit::pki::{Pki, Wanted};
use chipbound_testkit::{Holder, documents as sample};
use chipbound_wire::bounded::{Bytes, Text};
use chipbound_wire::certificate::Role;
use chipbound_wire::documents::{LogPlace, LogStatement, Receipt};
use chipbound_wire::signed::{read_claims, verify_document};
use chipbound_wire::tlog::{Checkpoint, Entered, Frontier, InclusionProof, LogKey, entry_of, leaf_hash, origin_of};
use chipbound_wire::{Code, Digest, KeyId, Time};

const NOW: Time = Time(1_790_000_000);

/// A server with a log.
struct Shop {
    pki: Pki,
    origin: String,
    log: Frontier,
    receipts: Holder,
    log_key: Ed25519KeyPair,
    statement: Vec<u8>,
}

fn wanted(subject: &str) -> Wanted {
    Wanted { subject: subject.to_owned(), ..Wanted::role(Role::ServerReceipt) }
}

impl Shop {
    fn new() -> Self {
        let pki = Pki::new(NOW);
        let receipts = pki.holder_of(&wanted("shop"));
        let (origin, log_key) = (origin_of(pki.root(), "shop"), Ed25519KeyPair::generate().expect("a key"));
        let mut shop = Self { pki, origin, log: Frontier::default(), receipts, log_key, statement: Vec::new() };
        shop.statement = shop.statement_at(NOW);
        shop
    }

    fn public(&self) -> [u8; 32] {
        self.log_key.public_key().as_ref().try_into().expect("32 bytes")
    }

    fn statement_at(&self, issued_at: Time) -> Vec<u8> {
        let origin = Text::new(self.origin.clone()).expect("short");
        self.receipts.sign(&LogStatement { origin, key: Bytes::new(self.public().to_vec()).expect("32"), issued_at })
    }

    /// A receipt for the next entry, not entered yet.
    fn receipt(&self, at: Time) -> Receipt {
        let manifest = sample::manifest(&KeyId([1; 32]), b"plaintext");
        let place = LogPlace { origin: Text::new(self.origin.clone()).expect("short"), index: self.log.size(), salt: Digest([9; 32]) };
        Receipt { log: Some(place), ..sample::receipt(&sample::confirmation(&manifest, b"signed", KeyId([2; 32]), NOW), at) }
    }

    /// Enters it, and proves it by a checkpoint of the time `at`.
    fn enter(&mut self, signed: &[u8], at: Time) -> InclusionProof {
        let leaf = leaf_hash(&entry_of(signed));
        let hashes = self.log.prove_appended(&[leaf]).expect("a proof").remove(0);
        self.log.push(leaf, |_, _, _| {});
        InclusionProof { extra: self.statement.clone(), index: self.log.size() - 1, hashes, checkpoint: self.checkpoint(at) }
    }

    fn checkpoint(&self, at: Time) -> String {
        let key = LogKey::new(&self.origin, self.public()).expect("a key");
        let checkpoint = Checkpoint { origin: self.origin.clone(), size: self.log.size(), root: self.log.root() };
        checkpoint.sign(&key, at, |message| self.log_key.sign(message).as_ref().try_into().expect("64 bytes"))
    }

    /// A receipt that was sold, signed and entered at that time.
    fn sell(&mut self, at: Time) -> (Vec<u8>, InclusionProof) {
        let signed = self.receipts.sign(&self.receipt(at));
        let proof = self.enter(&signed, at);
        (signed, proof)
    }

    fn verify(&self, signed: &[u8], proof: &InclusionProof) -> Result<Entered, Code> {
        Entered::verify(signed, proof.to_text().as_bytes(), &self.pki.trust()).map_err(|refusal| refusal.code)
    }
}

#[test]
fn a_receipt_in_the_log_verifies_with_the_root_alone() {
    let mut shop = Shop::new();
    for _ in 0..5 {
        let (signed, proof) = shop.sell(NOW);
        let entered = shop.verify(&signed, &proof).expect("it is in the log");
        assert_eq!((entered.receipt().bytes(), entered.checkpoint().time(), entered.key().origin()), (&signed[..], NOW, &*shop.origin));
    }
}

#[test]
fn a_receipt_outlives_its_receipt_key_its_log_key_and_every_certificate() {
    let mut shop = Shop::new();
    let (first, first_proof) = shop.sell(NOW);
    let year = 365 * 24 * 3600;
    let later = NOW.after(year);
    // A year on, both keys are others; the first certificate ran out long ago.
    shop.receipts = shop.pki.holder_of(&Wanted { not_before: Some(later), not_after: Some(later.after(year)), ..wanted("shop") });
    shop.log_key = Ed25519KeyPair::generate().expect("a key");
    shop.statement = shop.statement_at(later);
    let (second, second_proof) = shop.sell(later);
    let old = shop.verify(&first, &first_proof).expect("the old one is as good as it was");
    let new = shop.verify(&second, &second_proof).expect("the new one too");
    assert_eq!((old.checkpoint().size, new.checkpoint().size), (1, 2));
    assert_ne!(old.key(), new.key());
    // The old log key signs nothing that the new statement stands for, nor the other way round.
    let mixed = InclusionProof { extra: first_proof.extra.clone(), ..second_proof.clone() };
    assert_eq!(shop.verify(&second, &mixed).expect_err("another key"), Code::LogKeyUnknown);
}

#[test]
fn the_log_is_the_witness_of_when_a_receipt_was_signed() {
    let mut shop = Shop::new();
    let expired = NOW.after(31 * 24 * 3600);
    let back_dated = shop.receipts.sign(&shop.receipt(NOW));
    let proof = shop.enter(&back_dated, expired);
    assert_eq!(shop.verify(&back_dated, &proof).expect_err("entered too late"), Code::CertificateExpired);

    let post_dated = shop.receipts.sign(&shop.receipt(NOW.after(3600)));
    let proof = shop.enter(&post_dated, NOW);
    assert_eq!(shop.verify(&post_dated, &proof).expect_err("entered before it was made"), Code::NotInLog);
}

#[test]
fn a_revocation_counts_for_what_was_entered_after_it() {
    let mut shop = Shop::new();
    shop.statement = shop.statement_at(Time(NOW.0 - 50));
    let (before, proof_before) = shop.sell(Time(NOW.0 - 1));
    let (after, proof_after) = shop.sell(NOW);
    // The list says that the certificate was revoked at NOW.
    let list = shop.pki.revocations(&[&shop.receipts]);
    let trust = shop.pki.trust().with_revocations(&list).expect("a list");
    let verify = |signed: &[u8], proof: &InclusionProof| Entered::verify(signed, proof.to_text().as_bytes(), &trust);
    verify(&before, &proof_before).expect("it was entered before");
    assert_eq!(verify(&after, &proof_after).expect_err("entered after").code, Code::CertificateRevoked);
    shop.verify(&after, &proof_after).expect("without the list nobody can know");
}

#[test]
fn a_receipt_that_is_not_in_the_log_is_refused() {
    let mut shop = Shop::new();
    let (first, first_proof) = shop.sell(NOW);
    let (second, second_proof) = shop.sell(NOW);
    assert_eq!(shop.verify(&first, &second_proof).expect_err("another's proof"), Code::NotInLog);
    let other = shop.receipts.sign(&Receipt { number: 7, ..read_claims(&second).expect("a receipt") });
    assert_eq!(shop.verify(&other, &second_proof).expect_err("another receipt for that place"), Code::NotInLog);
    let newer = InclusionProof { checkpoint: second_proof.checkpoint.clone(), ..first_proof.clone() };
    assert_eq!(shop.verify(&first, &newer).expect_err("a checkpoint that the proof does not lead to"), Code::NotInLog);
    let moved = InclusionProof { index: 1, ..first_proof };
    assert_eq!(shop.verify(&first, &moved).expect_err("another place"), Code::NotInLog);
}

#[test]
fn a_log_of_another_server_or_with_a_key_of_its_own_is_refused() {
    let mut shop = Shop::new();
    let (signed, proof) = shop.sell(NOW);
    let stranger = Ed25519KeyPair::generate().expect("a key");
    let key = LogKey::new(&shop.origin, stranger.public_key().as_ref().try_into().expect("32 bytes")).expect("a key");
    let checkpoint = Checkpoint { origin: shop.origin.clone(), size: 1, root: shop.log.root() };
    let forged = checkpoint.sign(&key, NOW, |message| stranger.sign(message).as_ref().try_into().expect("64 bytes"));
    let by_stranger = InclusionProof { checkpoint: forged, ..proof.clone() };
    assert_eq!(shop.verify(&signed, &by_stranger).expect_err("a key that nobody named"), Code::LogKeyUnknown);

    // Another certified server names a key for our log, or for its own.
    let rival = shop.pki.holder_of(&wanted("rival"));
    let named = |origin: &str| {
        let key = Bytes::new(shop.public().to_vec()).expect("32 bytes");
        rival.sign(&LogStatement { origin: Text::new(origin).expect("short"), key, issued_at: NOW })
    };
    let ours = InclusionProof { extra: named(&shop.origin), ..proof.clone() };
    assert_eq!(shop.verify(&signed, &ours).expect_err("not theirs to name"), Code::LogKeyUnknown);
    let own = InclusionProof { extra: named(&origin_of(shop.pki.root(), "rival")), ..proof.clone() };
    assert_eq!(shop.verify(&signed, &own).expect_err("not our log"), Code::LogKeyUnknown);
    let none = InclusionProof { extra: Vec::new(), ..proof.clone() };
    assert_eq!(shop.verify(&signed, &none).expect_err("no statement"), Code::Malformed);

    // A second log of the same server under another name.
    shop.origin.push_str("-2");
    shop.statement = shop.statement_at(NOW);
    let (signed, proof) = shop.sell(NOW);
    assert_eq!(shop.verify(&signed, &proof).expect_err("a server has one log"), Code::LogKeyUnknown);
}

#[test]
fn receipts_from_before_the_log_are_read_and_verified_and_are_in_none() {
    let mut shop = Shop::new();
    let (_, proof) = shop.sell(NOW);
    let old = Receipt { sale: None, log: None, ..shop.receipt(NOW) };
    let signed = shop.receipts.sign(&old);
    assert_eq!(*verify_document::<Receipt>(&signed, &shop.pki.trust(), NOW).expect("a receipt"), old);
    assert_eq!(shop.verify(&signed, &proof).expect_err("it names no log"), Code::NotInLog);
}
