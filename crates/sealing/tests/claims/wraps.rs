//! Key wraps (HPKE, RFC 9180) open for the one processor, order, terms, suite, mode and release they were made for.

use chipbound_sealing::{
    ContentKey, Decapsulate, DirectWrap, PageKeys, ReleaseSecret, SealingKeyPair, SessionKey, open_manifest, open_possession, open_release,
    open_session, open_wrap, seal_manifest, seal_possession, seal_release, wrap_common, wrap_session,
};
use chipbound_wire::bounded::Bytes;
use chipbound_wire::documents::{ReleaseToken, Terms, Wrap};
use chipbound_wire::suite::{Aead, Format, Kem, KeyMode, Suite};
use chipbound_wire::{AccountId, Code, Digest, KeyId, OrderId, SystemRandom, random::fresh};

const PLAIN: Digest = Digest([5; 32]);

/// One delivery as both sides know it.
struct Delivery {
    processor: SealingKeyPair,
    release: ReleaseSecret,
    content: ContentKey,
    terms: Terms,
    digest: Digest,
    wrap: Wrap,
}

fn deliver(kem: Kem, key_mode: KeyMode) -> Delivery {
    let random = &mut SystemRandom;
    let processor = SealingKeyPair::generate(kem, random);
    let public = processor.public(kem).expect("its own kind");
    let release = ReleaseSecret::generate(random);
    let suite = Suite { kem, aead: Aead::Aes256Gcm };
    let order = OrderId(fresh(random));
    let (direct, content) = match key_mode {
        KeyMode::Direct => {
            let (direct, content) = DirectWrap::begin(&public, suite, &release, &order, random).expect("begun");
            (Some(direct), content)
        }
        KeyMode::Common => (None, ContentKey::generate(random)),
    };
    let package_id = Digest(fresh(random));
    let key_commitment = PageKeys::derive(&content, &package_id, &PLAIN, suite.aead, Format::Data).commitment();
    let terms = Terms {
        order,
        account: AccountId([1; 16]),
        processor: KeyId([2; 32]),
        manifest: Digest::of(b"a manifest"),
        suite,
        format: Format::Data,
        key_mode,
        package_id,
        release_commitment: release.commitment(),
        key_commitment,
    };
    let digest = Digest::of(&chipbound_wire::bounded::encode(&terms));
    let wrap = match direct {
        Some(direct) => direct.finish(&digest, &key_commitment),
        None => wrap_common(&public, suite, &release, &order, &digest, &content, random),
    };
    Delivery { processor, release, content, terms, digest, wrap: wrap.expect("wrapped") }
}

impl Delivery {
    fn open(&self) -> chipbound_wire::Result<ContentKey> {
        open_wrap(&self.processor, &self.wrap, &self.terms, &self.digest, &self.release)
    }
}

fn every_kind() -> impl Iterator<Item = (Kem, KeyMode)> {
    Kem::ALL.iter().flat_map(|kem| KeyMode::ALL.iter().map(|mode| (*kem, *mode)))
}

#[test]
fn a_wrap_gives_its_processor_the_content_key_that_the_terms_commit_to() {
    for (kem, mode) in every_kind() {
        let delivery = deliver(kem, mode);
        let content = delivery.open().expect("opens");
        assert_eq!(content, delivery.content);
        PageKeys::of_terms(&content, &delivery.terms, &PLAIN).expect("the committed key");
        let other = PageKeys::of_terms(&content, &delivery.terms, &Digest([6; 32]));
        assert_eq!(other.expect_err("another plain digest").code, Code::WrapInvalid);
        assert_eq!(delivery.wrap.enc.len(), if kem == Kem::XWing { 1120 } else { 65 });
        assert_eq!(delivery.wrap.ciphertext.len(), 48);
    }
}

#[test]
fn a_wrap_opens_for_no_other_processor_order_terms_suite_mode_or_release() {
    for (kem, mode) in every_kind() {
        let refused = |what: &str, change: &dyn Fn(&mut Delivery)| {
            let mut delivery = deliver(kem, mode);
            change(&mut delivery);
            assert_eq!(delivery.open().expect_err(what).code, Code::WrapInvalid, "{what} {kem} {mode}");
        };
        refused("processor", &|d| d.processor = SealingKeyPair::generate(kem, &mut SystemRandom));
        refused("order", &|d| d.terms.order = OrderId([9; 16]));
        refused("terms", &|d| d.digest = Digest([9; 32]));
        refused("cipher", &|d| d.terms.suite.aead = Aead::ChaCha20Poly1305);
        refused("kem of the terms", &|d| d.terms.suite.kem = if kem == Kem::XWing { Kem::DhkemP256 } else { Kem::XWing });
        refused("mode", &|d| d.terms.key_mode = if mode == KeyMode::Direct { KeyMode::Common } else { KeyMode::Direct });
        refused("release secret", &|d| d.release = ReleaseSecret::generate(&mut SystemRandom));
        refused("encapsulated key", &|d| {
            let other = deliver(kem, mode);
            d.wrap.enc = other.wrap.enc;
        });
        refused("ciphertext", &|d| {
            let mut bytes = d.wrap.ciphertext.to_vec();
            bytes[3] ^= 1;
            d.wrap.ciphertext = Bytes::new(bytes).expect("short");
        });
        refused("cut encapsulated key", &|d| d.wrap.enc = Bytes::new(d.wrap.enc[1..].to_vec()).expect("short"));
        refused("empty ciphertext", &|d| d.wrap.ciphertext = Bytes::default());
    }
}

#[test]
fn direct_mode_refuses_a_commitment_other_than_the_one_in_the_terms() {
    let mut delivery = deliver(Kem::DhkemP256, KeyMode::Direct);
    delivery.terms.key_commitment = Digest([7; 32]);
    assert_eq!(delivery.open().expect_err("another commitment").code, Code::WrapInvalid);
}

#[test]
fn a_session_wrap_opens_with_that_session_suite_and_terms_only() {
    for kem in Kem::ALL {
        let (session, suite) = (SessionKey::generate(*kem, &mut SystemRandom), Suite { kem: Kem::XWing, aead: Aead::Aes256Gcm });
        let (content, terms) = (ContentKey::generate(&mut SystemRandom), Digest([1; 32]));
        let wrap = wrap_session(&session.sealing_key(), suite, &terms, &content, &mut SystemRandom).expect("wrapped");
        assert_eq!(open_session(&session, &wrap, suite, &terms).expect("opens"), content);
        let other = SessionKey::generate(*kem, &mut SystemRandom);
        let chacha = Suite { aead: Aead::ChaCha20Poly1305, ..suite };
        for refused in [
            open_session(&other, &wrap, suite, &terms),
            open_session(&session, &wrap, chacha, &terms),
            open_session(&session, &wrap, suite, &Digest([2; 32])),
        ] {
            assert_eq!(refused.expect_err("transplanted").code, Code::WrapInvalid);
        }
    }
}

#[test]
fn a_release_token_gives_its_secret_to_its_processor_order_and_terms_only() {
    for kem in Kem::ALL {
        let processor = SealingKeyPair::generate(*kem, &mut SystemRandom);
        let secret = ReleaseSecret::generate(&mut SystemRandom);
        let (order, terms, id) = (OrderId([1; 16]), Digest([2; 32]), KeyId([3; 32]));
        let public = processor.public(*kem).expect("its own kind");
        let release = seal_release(&public, *kem, &order, &terms, &id, &secret, &mut SystemRandom).expect("sealed");
        let token = ReleaseToken { order, terms, processor: id, release };
        let opened = open_release(&processor, &token).expect("opens");
        opened.check(&secret.commitment()).expect("the committed secret");
        assert_eq!(opened.check(&Digest([0; 32])).expect_err("another commitment").code, Code::TokenMismatch);
        let other = SealingKeyPair::generate(*kem, &mut SystemRandom);
        for refused in [
            open_release(&other, &token),
            open_release(&processor, &ReleaseToken { order: OrderId([9; 16]), ..token.clone() }),
            open_release(&processor, &ReleaseToken { terms: Digest([9; 32]), ..token.clone() }),
            open_release(&processor, &ReleaseToken { processor: KeyId([9; 32]), ..token.clone() }),
        ] {
            assert_eq!(refused.expect_err("transplanted").code, Code::TokenMismatch);
        }
    }
}

#[test]
fn a_challenge_is_opened_only_by_the_key_that_it_was_sealed_to() {
    for kem in Kem::ALL {
        let pair = SealingKeyPair::generate(*kem, &mut SystemRandom);
        let wrap = seal_possession(&pair.sealing_key(), &[1; 16], &[2; 32], &mut SystemRandom).expect("sealed");
        assert_eq!(open_possession(&pair, &[1; 16], &wrap).expect("opens"), [2; 32]);
        assert!(open_possession(&pair, &[3; 16], &wrap).is_err());
        let stored = SealingKeyPair::deserialize(&pair.serialize()).expect("its own bytes");
        assert_eq!(open_possession(&stored, &[1; 16], &wrap).expect("opens after storing"), [2; 32]);
        assert!(open_possession(&SealingKeyPair::generate(*kem, &mut SystemRandom), &[1; 16], &wrap).is_err());
    }
}

#[test]
fn a_wrap_made_for_one_purpose_does_not_open_as_another() {
    let (session, suite) = (SessionKey::generate(Kem::DhkemP256, &mut SystemRandom), Suite { kem: Kem::DhkemP256, aead: Aead::Aes256Gcm });
    let wrap = wrap_session(&session.sealing_key(), suite, &PLAIN, &ContentKey::generate(&mut SystemRandom), &mut SystemRandom);
    let wrap = wrap.expect("wrapped");
    assert!(open_possession(&session, &[5; 16], &wrap).is_err());
    let token = ReleaseToken { order: OrderId([5; 16]), terms: PLAIN, processor: KeyId([5; 32]), release: wrap };
    assert_eq!(open_release(&session, &token).expect_err("another purpose").code, Code::TokenMismatch);
}

#[test]
fn nothing_is_wrapped_to_what_is_no_public_key() {
    let suite = |kem| Suite { kem, aead: Aead::Aes256Gcm };
    let secret = ReleaseSecret::generate(&mut SystemRandom);
    for (kem, public) in [(Kem::XWing, vec![0; 65]), (Kem::DhkemP256, vec![0; 65]), (Kem::DhkemP256, vec![]), (Kem::XWing, vec![])] {
        let begun = DirectWrap::begin(&public, suite(kem), &secret, &OrderId([0; 16]), &mut SystemRandom);
        assert_eq!(begun.map(|_| ()).expect_err("no key").code, Code::WrapInvalid);
    }
}

#[test]
fn the_appended_manifest_opens_with_its_content_key_and_terms_only() {
    let Delivery { content, terms, .. } = deliver(Kem::DhkemP256, KeyMode::Common);
    let sealed = seal_manifest(&content, &terms, b"a manifest").expect("the manifest of the terms");
    assert!(!sealed.windows(4).any(|w| w == b"mani"));
    assert_eq!(open_manifest(&content, &terms, &sealed).expect("opens"), b"a manifest");
    assert_eq!(seal_manifest(&content, &terms, b"another").expect_err("another").code, Code::ManifestMismatch);
    let other = Terms { package_id: Digest([8; 32]), ..terms.clone() };
    let mut changed = sealed.clone();
    changed[0] ^= 1;
    for refused in [
        open_manifest(&ContentKey::generate(&mut SystemRandom), &terms, &sealed),
        open_manifest(&content, &other, &sealed),
        open_manifest(&content, &terms, &changed),
        open_manifest(&content, &terms, &sealed[..5]),
    ] {
        assert_eq!(refused.expect_err("not its manifest").code, Code::ManifestMismatch);
    }
}
