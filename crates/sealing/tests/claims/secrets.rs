//! Secrets are never shown (A18).

use crate::common::seal;
use chipbound_sealing::{
    ContentKey, DirectWrap, Opener, PageKeys, ReleaseSecret, Sealer, SealingKeyPair, SessionKey, open_session, wrap_session,
};
use chipbound_wire::random::Random;
use chipbound_wire::suite::{Aead, Format, Kem, Suite};
use chipbound_wire::{Digest, Hex, OrderId, SystemRandom};

/// Randomness that can be recognised wherever it turns up.
struct Planted;

impl Random for Planted {
    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill(PLANTED);
    }
}
const PLANTED: u8 = 0xa7;

/// The ways in which bytes get into text.
fn shows(text: &str, secret: &[u8]) -> bool {
    let hex = Hex(&secret[..4]).to_string();
    let list = format!("{:?}", &secret[..4]);
    let list = list.trim_matches(['[', ']']);
    let lower = text.to_lowercase();
    lower.contains(&hex) || text.contains(list) || lower.contains("a7, a7") || text.contains("0xa7")
}

#[test]
fn no_secret_shows_in_debug_output_or_in_a_refusal() {
    let content = ContentKey::generate(&mut Planted);
    let release = ReleaseSecret::generate(&mut Planted);
    let keys = PageKeys::derive(&content, &Digest([1; 32]), &Digest([2; 32]), Aead::Aes256Gcm, Format::Data);
    assert!(shows(&Hex(content.bytes()).to_string(), content.bytes()), "the test can see");
    for text in [format!("{content:?}"), format!("{release:?} {:#?}", Some(&release))] {
        assert!(!shows(&text, content.bytes()), "{text}");
    }
    assert_eq!(format!("{keys:?}"), format!("PageKeys(aes-256-gcm, data, commitment {}, ..)", keys.commitment()));

    let suite = Suite { kem: Kem::DhkemP256, aead: Aead::Aes256Gcm };
    for kem in Kem::ALL {
        let pair = SealingKeyPair::generate(*kem, &mut SystemRandom);
        let secret = pair.serialize()[1..].to_vec();
        assert!(!shows(&format!("{pair:?}"), &secret) && format!("{pair:?}").len() < 40);
        let session = SessionKey::generate(*kem, &mut SystemRandom);
        let wrap = wrap_session(&session.sealing_key(), suite, &Digest([3; 32]), &content, &mut SystemRandom).expect("wrapped");
        let refused = open_session(&session, &wrap, suite, &Digest([4; 32])).expect_err("other terms");
        let text = format!("{session:?} {wrap:?} {refused} {refused:?}");
        assert!(!shows(&text, content.bytes()), "{text}");
    }
    let pair = SealingKeyPair::generate(Kem::DhkemP256, &mut SystemRandom);
    let (direct, exported) =
        DirectWrap::begin(&pair.sealing_key().public, suite, &release, &OrderId([0; 16]), &mut SystemRandom).expect("begun");
    assert!(!shows(&format!("{direct:?} {exported:?}"), exported.bytes()));
}

#[test]
fn no_plaintext_or_key_shows_in_sealers_openers_and_their_refusals() {
    let plain = vec![PLANTED; 200_000];
    let mut sealed = seal(&plain, Aead::Aes256Gcm);
    let mut sealer = Sealer::new(&sealed.layout, &sealed.keys).expect("a sealer");
    let opener = Opener::new(sealed.layout.clone(), &sealed.keys).expect("an opener");
    sealed.body[70_000] ^= 1;
    let refused = sealed.open().expect_err("altered");
    let wrong = sealer.seal_chunk(&mut [PLANTED; 1000], &mut Vec::new()).expect_err("no chunk");
    let text = format!("{sealer:?} {opener:?} {refused} {refused:?} {wrong} {:?}", sealed.keys);
    assert!(!shows(&text, &plain), "{text}");
}

#[test]
fn a_release_secret_that_does_not_fit_is_not_shown() {
    let (mine, pair) = (ReleaseSecret::generate(&mut Planted), SealingKeyPair::generate(Kem::DhkemP256, &mut SystemRandom));
    let refused = mine.check(&Digest([0; 32])).expect_err("another commitment");
    assert!(!shows(&format!("{refused} {refused:?} {pair:?}"), mine.bytes()));
}
