use super::*;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

const ORIGIN: &str = "chipbound-receipts/00/shop";

fn pair() -> (Ed25519KeyPair, LogKey) {
    let pair = Ed25519KeyPair::generate().unwrap();
    let public = pair.public_key().as_ref().try_into().unwrap();
    (pair, LogKey::new(ORIGIN, public).unwrap())
}

fn signed(checkpoint: &Checkpoint, (pair, key): &(Ed25519KeyPair, LogKey), time: u64) -> String {
    checkpoint.sign(key, Time(time), |message| pair.sign(message).as_ref().try_into().unwrap())
}

fn checkpoint() -> Checkpoint {
    Checkpoint { origin: ORIGIN.to_owned(), size: 70_000, root: TreeHash([7; 32]) }
}

fn refused(note: &str, key: &LogKey) -> Code {
    SignedCheckpoint::verify(note.as_bytes(), key).expect_err(note).code
}

/// The example of the specification of signed notes.
#[test]
fn the_note_of_the_specification_verifies_by_the_key_of_the_specification() {
    let note = "This is an example message.\n\n\u{2014} example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";
    let vkey = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
    let public = BASE64.decode(vkey.rsplit_once('+').unwrap().1.as_bytes()).unwrap();
    let key = LogKey::new("example.com/foo", public[1..].try_into().unwrap()).unwrap();
    assert_eq!(key.to_vkey(), vkey);
    let parsed = Note::parse(note.as_bytes()).unwrap();
    key.verify(parsed.text.as_bytes(), key.signature(&parsed, ED25519_NOTE).unwrap()).unwrap();
    assert_eq!(parsed.to_text(), note);
}

#[test]
fn a_checkpoint_verifies_by_its_key_alone_and_says_its_time() {
    let (ours, other) = (pair(), pair());
    let note = signed(&checkpoint(), &ours, 1_700_000_000);
    let verified = SignedCheckpoint::verify(note.as_bytes(), &ours.1).unwrap();
    assert_eq!((&*verified, verified.time(), verified.note()), (&checkpoint(), Time(1_700_000_000), note.as_str()));
    assert_eq!(refused(&note, &other.1), Code::LogKeyUnknown);
    let renamed = LogKey::new("another/log", ours.1.public).unwrap();
    assert_eq!(refused(&note, &renamed), Code::LogKeyUnknown);
}

#[test]
fn signatures_of_others_are_passed_over_and_a_second_one_of_ours_is_not() {
    let (ours, other) = (pair(), pair());
    let mut note = Note::parse(signed(&checkpoint(), &ours, 5).as_bytes()).unwrap();
    let theirs = Note::parse(signed(&checkpoint(), &other, 6).as_bytes()).unwrap();
    note.signatures.extend(theirs.signatures);
    assert_eq!(SignedCheckpoint::verify(note.to_text().as_bytes(), &ours.1).unwrap().time(), Time(5));
    assert_eq!(SignedCheckpoint::verify(note.to_text().as_bytes(), &other.1).unwrap().time(), Time(6));
    let again = Note::parse(signed(&checkpoint(), &ours, 7).as_bytes()).unwrap();
    note.signatures.extend(again.signatures);
    assert_eq!(refused(&note.to_text(), &ours.1), Code::Malformed);
}

#[test]
fn any_change_to_text_time_or_signature_is_refused() {
    let ours = pair();
    let note = Note::parse(signed(&checkpoint(), &ours, 5).as_bytes()).unwrap();
    let larger = Note { text: note.text.replace("70000", "70001"), ..note.clone() };
    assert_eq!(refused(&larger.to_text(), &ours.1), Code::SignatureInvalid);
    for line in [0, 1] {
        for byte in 0..note.signatures[line].bytes.len() {
            let mut changed = note.clone();
            changed.signatures[line].bytes[byte] ^= 1;
            assert_eq!(refused(&changed.to_text(), &ours.1), Code::SignatureInvalid, "byte {byte} of line {line}");
        }
        let mut without = note.clone();
        without.signatures.remove(line);
        assert_eq!(refused(&without.to_text(), &ours.1), Code::LogKeyUnknown);
    }
    let mut cut = note.clone();
    cut.signatures[1].bytes.truncate(7);
    assert_eq!(refused(&cut.to_text(), &ours.1), Code::Malformed);
}

#[test]
fn notes_and_texts_written_in_another_way_are_refused() {
    let ours = pair();
    let note = signed(&checkpoint(), &ours, 5);
    for (from, to) in [
        ("70000", "070000"),
        ("70000", "+70000"),
        ("70000", "70000\nextension"),
        ("BwcHBw", "BwcHBx"),
        ("\n\n", "\n"),
        ("\n\n", "\n\n\n"),
        ("\u{2014}", "-"),
        ("shop ", "shop  "),
        ("shop ", "shop+1 "),
        ("shop\n", "shop\r\n"),
        ("shop\n", "shop\t\n"),
    ] {
        let other = note.replacen(from, to, 1);
        assert_ne!(other, note, "{from}");
        let code = refused(&other, &ours.1);
        let refused_for_its_form = code == Code::Malformed || (to == "BwcHBx" && code == Code::SignatureInvalid);
        assert!(refused_for_its_form, "{to:?}: {code}");
    }
    assert_eq!(refused(note.trim_end(), &ours.1), Code::Malformed);
    let many = format!("{note}{}", "\u{2014} w AAAAAAA=\n".repeat(40));
    assert_eq!(refused(&many, &ours.1), Code::TooLarge);
    let long = format!("{note}{}", "\u{2014} w AAAAAAA=\n".repeat(4000));
    assert_eq!(refused(&long, &ours.1), Code::TooLarge);
    for name in ["", "a b", "a+b", "a\u{a0}b", "a\nb"] {
        assert_eq!(LogKey::new(name, [0; 32]).unwrap_err().code, Code::Malformed, "{name:?}");
    }
}

#[test]
fn a_server_has_one_origin_and_it_is_a_key_name_whatever_the_subject() {
    let root = b"root";
    for subject in ["shop", "my shop", "a+b/c", "läden", "%41"] {
        let origin = origin_of(root, subject);
        LogKey::new(&origin, [0; 32]).unwrap();
        assert_ne!(origin, origin_of(b"another", subject));
    }
    assert_ne!(origin_of(root, "%41"), origin_of(root, "A"));
    assert!(origin_of(root, "my shop").ends_with("/my%20shop"));
    assert!(origin_of(root, &"\u{20ac}".repeat(42)).len() <= MAX_ORIGIN, "the longest subject has an origin");
}

#[test]
fn hostile_notes_never_panic() {
    let ours = pair();
    let note = signed(&checkpoint(), &ours, 5).into_bytes();
    for at in 0..note.len() {
        for change in [0, b'\n', b' ', 0xff, note[at] ^ 0x20] {
            let mut bytes = note.clone();
            bytes[at] = change;
            let _ = SignedCheckpoint::verify(&bytes, &ours.1);
        }
        let _ = SignedCheckpoint::verify(&note[..at], &ours.1);
        let _ = SignedCheckpoint::verify(&note[at..], &ours.1);
    }
}
