//! Deliveries, honest and dishonest, against both ends' states in memory (steps 1003-1011).

use crate::world::{Lies, Sent, Shipment, World, certify, now, processor, sample, server_key};
use chipbound_processor::processor::Processor;
use chipbound_processor::receive::Held;
use chipbound_sealing::{ContentKey, Layout, Patch, Range, ReadAt, ReleaseSecret, open_wrap, seal_release};
use chipbound_trusted_core::{KeyStore, open_in_one_pass, open_package};
use chipbound_wire::certificate::Role;
use chipbound_wire::documents::{Acknowledgement, ReleaseToken};
use chipbound_wire::limits::{MAX_CHUNK, TAG};
use chipbound_wire::signature::Sign;
use chipbound_wire::signed::verify_document;
use chipbound_wire::suite::{Aead, Kem, KeyMode, Profile, Suite};
use chipbound_wire::{Code, Digest, OrderId, Refusal, Result, SystemRandom};

/// Opens a package with what `us` keeps.
fn open_with(us: &Processor, world: &World, package: &[u8]) -> Result<Vec<u8>> {
    let opened = open_package(package, &us.vault, &*us.vault.keys(), &world.root(), true)?;
    let mut plain = vec![0; opened.plaintext.size() as usize];
    opened.plaintext.read_exact_at(&mut plain, 0).expect("what was verified can be read");
    Ok(plain)
}

fn open(world: &World, package: &[u8]) -> Result<Vec<u8>> {
    open_with(&world.us, world, package)
}

#[test]
fn a_delivery_in_every_suite_and_key_mode_is_received_released_and_opened() {
    let world = World::new();
    for kem in Kem::ALL {
        for aead in Aead::ALL {
            for key_mode in KeyMode::ALL {
                let plain = sample(700_001);
                let mut shipment = world.ship(&plain, |_| {});
                shipment.suite = Suite { kem: *kem, aead: *aead };
                shipment.key_mode = *key_mode;
                let package = world.package(&shipment);
                assert_eq!(open(&world, &package).expect("opens"), plain, "{} {key_mode}", shipment.suite);
                assert!(world.spool().is_empty(), "nothing stays in the spool");
            }
        }
    }
}

#[test]
fn the_acknowledgement_names_order_terms_and_seal_and_is_signed_by_the_identity_key() {
    let world = World::new();
    let shipment = world.ship(&sample(100), |_| {});
    let (held, delivered) = world.delivered(&shipment);
    assert_eq!(held.acknowledged.acknowledgement, delivered.acknowledgement);
    let signed = verify_document::<Acknowledgement>(&delivered.acknowledgement, &world.root(), now()).expect("verifies");
    assert_eq!(signed.signer().key_id(), world.id());
    assert_eq!((signed.order, signed.terms, signed.seal), (shipment.order, Digest::of(&delivered.terms), Digest::of(&delivered.seal)));
}

/// Mounts the lies and checks that both ends have the same code and the same words and that nothing is left.
fn refused_at_both_ends(world: &World, shipment: &Shipment, lies: &Lies, code: Code, what: &str) {
    let (held, server) = world.deliver(shipment, lies);
    let ours = held.expect_err(what);
    assert_eq!(ours.code, code, "{what}: {ours}");
    let theirs = server.expect_err(what);
    assert_eq!((theirs.code, &theirs.detail), (code, &ours.detail), "{what}: the server has the processor's words");
    assert!(!ours.detail.is_empty(), "{what}");
    assert!(world.spool().is_empty(), "{what}: the spool is empty");
    assert_eq!(world.us.vault.remembered(), 0, "{what}: nothing is remembered");
}

/// What somebody on the way makes of the chunks.
type Tamper = fn(Vec<Sent>) -> Vec<Sent>;

#[test]
fn flipped_dropped_swapped_repeated_missing_and_added_chunks_are_refused() {
    let world = World::new();
    let shipment = world.ship(&sample(3 * MAX_CHUNK + 5000), |_| {});
    let flip_byte = |mut c: Vec<Sent>| {
        c[1].bytes[777] ^= 1;
        c
    };
    let flip_tag = |mut c: Vec<Sent>| {
        c[2].tags[TAG] ^= 0x80;
        c
    };
    let swap_tags = |mut c: Vec<Sent>| {
        let tags = c[0].tags.clone();
        c[0].tags = std::mem::replace(&mut c[1].tags, tags);
        c
    };
    let swap_pages = |mut c: Vec<Sent>| {
        let (a, b) = c[0].bytes.split_at_mut(2 * 65536);
        a[..65536].swap_with_slice(&mut b[..65536]);
        c
    };
    let swap_chunks = |mut c: Vec<Sent>| {
        let (a, b) = (c[0].offset, c[1].offset);
        c.swap(0, 1);
        (c[0].offset, c[1].offset) = (a, b);
        c
    };
    let add_tag = |mut c: Vec<Sent>| {
        c[0].tags.extend([0; TAG]);
        c
    };
    let drop_chunk = |mut c: Vec<Sent>| {
        c.remove(1);
        c
    };
    let repeat = |mut c: Vec<Sent>| {
        c.insert(1, c[0].clone());
        c
    };
    let truncate = |mut c: Vec<Sent>| {
        c.pop();
        c
    };
    let extend = |mut c: Vec<Sent>| {
        let offset = c.last().map_or(0, |l| l.offset + l.bytes.len() as u64);
        c.push(Sent { offset, tags: vec![0; TAG], bytes: vec![0; 100] });
        c
    };
    let attacks: [(&str, Tamper, Code); 10] = [
        ("a flipped byte", flip_byte, Code::PageAltered),
        ("a flipped tag", flip_tag, Code::PageAltered),
        ("swapped tags", swap_tags, Code::PageAltered),
        ("swapped pages", swap_pages, Code::PageAltered),
        ("swapped chunks", swap_chunks, Code::PageAltered),
        ("a tag too many", add_tag, Code::PageAltered),
        ("a missing chunk", drop_chunk, Code::PageAltered),
        ("a repeated chunk", repeat, Code::PageAltered),
        ("a missing end", truncate, Code::PackageTruncated),
        ("bytes after the end", extend, Code::PackageTruncated),
    ];
    for (what, chunks, code) in attacks {
        refused_at_both_ends(&world, &shipment, &Lies { chunks, ..Lies::default() }, code, what);
    }
}

/// A21: whoever breaks into the server can seal and sign what he likes, but not in the vendor's name.
#[test]
fn a_server_that_changes_the_vendors_program_is_refused() {
    let world = World::new();
    let shipment = world.ship(&sample(200_000), |_| {});
    let mut program = sample(200_000);
    program[100_000] ^= 1;
    let lies = Lies { program: Some(program), ..Lies::default() };
    refused_at_both_ends(&world, &shipment, &lies, Code::PlaintextMismatch, "another byte");
    let lies = Lies { program: Some(sample(200_001)), ..Lies::default() };
    refused_at_both_ends(&world, &shipment, &lies, Code::ManifestMismatch, "another size");
}

/// A layout of the same file with these ranges and patches.
fn edited(layout: &Layout, ranges: &[Range], patches: &[Patch]) -> Layout {
    let mut bytes = Vec::new();
    let mut encoder = minicbor::Encoder::new(&mut bytes);
    let form = encoder.map(4).and_then(|e| e.u8(0)?.encode(layout.format())?.u8(1)?.u64(layout.body_size())?.u8(2)?.encode(ranges));
    form.and_then(|e| e.u8(3)?.encode(patches)).expect("written");
    Layout::decode(&bytes).expect("of the right form")
}

/// A21: what the vendor's profile seals is sealed, whatever the server would rather leave plain.
#[test]
fn a_server_that_seals_less_than_the_vendors_profile_is_refused() {
    let world = World::new();
    let plain = std::fs::read("/bin/ls").expect("a program of every Debian");
    let mut shipment = world.ship(&plain, |m| m.profile = Profile::CodeAndConstants);
    let honest = Layout::of(Profile::CodeAndConstants, &plain).expect("a layout");
    let (ranges, patches) = (honest.sealed(), honest.patches());

    let mut shorter = ranges.to_vec();
    shorter[0].len -= 1;
    let mut later = ranges.to_vec();
    later[0] = Range { offset: later[0].offset + 1, len: later[0].len - 1 };
    let mut holed = ranges.to_vec();
    let last = holed.pop().expect("a range");
    let half = last.len / 2;
    holed.extend([Range { len: half, ..last }, Range { offset: last.offset + half + 1, len: last.len - half - 1 }]);
    let lies = [
        ("one byte less at an end", edited(&honest, &shorter, patches)),
        ("one byte less at a beginning", edited(&honest, &later, patches)),
        ("one byte less in the middle", edited(&honest, &holed, patches)),
        ("one range less", edited(&honest, &ranges[1..], patches)),
        ("a segment that can be executed", edited(&honest, ranges, &[])),
        ("code alone", Layout::of(Profile::Code, &plain).expect("a layout")),
    ];
    for (what, layout) in lies {
        let lies = Lies { sealed_by: Some(layout), ..Lies::default() };
        refused_at_both_ends(&world, &shipment, &lies, Code::ProfileMismatch, what);
    }

    let cut = edited(
        &honest,
        &[&[Range { len: 16, ..ranges[0] }, Range { offset: ranges[0].offset + 16, len: ranges[0].len - 16 }], &ranges[1..]].concat(),
        patches,
    );
    let (held, _) = world.deliver(&shipment, &Lies { sealed_by: Some(cut), ..Lies::default() });
    held.expect("the same bytes in more pieces");
    shipment = world.ship(&plain, |_| {});
    let (held, _) = world.deliver(&shipment, &Lies { sealed_by: Some(honest), ..Lies::default() });
    held.expect("more than the profile asks for");
}

/// The same, of a package that lies on the disk as recorded and released: it is looked at again whenever it is opened.
#[test]
fn a_recorded_package_that_seals_less_than_the_vendors_profile_is_not_opened() {
    let world = World::new();
    let plain = std::fs::read("/bin/ls").expect("a program of every Debian");
    let mut shipment = world.ship(&plain, |m| m.profile = Profile::CodeAndConstants);
    assert_eq!(open(&world, &world.believed(&shipment)).expect("an honest one"), plain);
    shipment.profile = Profile::Code;
    let package = world.believed(&shipment);
    assert_eq!(open(&world, &package).expect_err("less").code, Code::ProfileMismatch);
    let unsettled = open_in_one_pass(&package, &world.us.vault, &*world.us.vault.keys(), &world.root()).expect("its documents are good");
    assert_eq!(unsettled.settle().expect_err("less").code, Code::ProfileMismatch);
}

#[test]
fn a_wrong_session_key_layout_or_seal_is_refused() {
    let world = World::new();
    let shipment = world.ship(&sample(200_000), |_| {});
    let lies = Lies { session_key: Some(ContentKey::generate(&mut SystemRandom)), ..Lies::default() };
    refused_at_both_ends(&world, &shipment, &lies, Code::WrapInvalid, "another content key for the comparison");
    let other = Layout::data(200_001).expect("a layout").encode();
    let lies = Lies { layout: Some(other), ..Lies::default() };
    refused_at_both_ends(&world, &shipment, &lies, Code::ManifestMismatch, "another layout");
    let lies = Lies { roots: |roots| roots.body_root.0[0] ^= 1, ..Lies::default() };
    refused_at_both_ends(&world, &shipment, &lies, Code::SealMismatch, "a seal over other bytes");
    let lies = Lies { roots: |roots| roots.table_root.0[0] ^= 1, ..Lies::default() };
    refused_at_both_ends(&world, &shipment, &lies, Code::SealMismatch, "a seal over other tags");
    let flip = |mut seal: Vec<u8>| {
        *seal.last_mut().expect("not empty") ^= 1;
        seal
    };
    refused_at_both_ends(&world, &shipment, &Lies { seal: flip, ..Lies::default() }, Code::SignatureInvalid, "an edited seal");
}

#[test]
fn a_server_that_goes_away_before_the_seal_leaves_nothing() {
    let world = World::new();
    let shipment = world.ship(&sample(MAX_CHUNK * 2), |_| {});
    let (held, _) = world.deliver(&shipment, &Lies { hang_up: true, ..Lies::default() });
    assert_eq!(held.expect_err("no seal").code, Code::Internal, "the server's own abort is reported");
    assert!(world.spool().is_empty() && world.us.vault.remembered() == 0);
}

#[test]
fn a_confirmation_for_another_processor_starts_nothing() {
    let world = World::new();
    let other = World::new();
    let shipment = other.ship(&sample(10), |_| {});
    let (held, _) = world.deliver(&shipment, &Lies::default());
    assert_eq!(held.expect_err("foreign").code, Code::CertificateForeign);
}

#[test]
fn a_release_older_than_a_known_manifest_allows_is_neither_taken_nor_opened() {
    let world = World::new();
    let old = world.ship(&sample(1000), |_| {});
    let package = world.package(&old);
    assert_eq!(open(&world, &package).expect("still allowed"), sample(1000));
    let new = world.ship(&sample(1001), |m| {
        m.sequence = 5;
        m.minimum_sequence = 3;
    });
    world.package(&new);
    assert_eq!(open(&world, &package).expect_err("withdrawn").code, Code::SequenceTooOld);
    let again = world.ship(&sample(1000), |_| {});
    let (held, server) = world.deliver(&again, &Lies::default());
    let (ours, theirs) = (held.expect_err("withdrawn"), server.expect_err("told"));
    assert_eq!((ours.code, theirs.code, ours.detail), (Code::SequenceTooOld, Code::SequenceTooOld, theirs.detail));
}

/// What the processor answers a client with who hands it that token.
fn refused_token(held: &mut Held, world: &World, token: &[u8], code: Code, words: &str) {
    let refusal = held.release(token, &world.us).expect_err(words);
    assert_eq!((refusal.code, &*refusal.detail), (code, words));
}

#[test]
fn a_token_of_another_order_terms_processor_or_signer_opens_nothing() {
    let world = World::new();
    let shipment = world.ship(&sample(100_000), |_| {});
    let (mut held, delivered) = world.delivered(&shipment);
    let other = world.ship(&sample(100_000), |_| {});
    let (_, other_delivered) = world.delivered(&other);

    let replayed = world.token(&other, &other_delivered, |_| {});
    refused_token(&mut held, &world, &replayed, Code::TokenMismatch, "the release token is of another order");
    let token = world.token(&shipment, &delivered, |t| t.order = OrderId([9; 16]));
    refused_token(&mut held, &world, &token, Code::TokenMismatch, "the release token is of another order");
    let token = world.token(&shipment, &delivered, |t| t.terms = Digest([9; 32]));
    refused_token(&mut held, &world, &token, Code::TokenMismatch, "the release token is of other terms");
    let token = world.token(&shipment, &delivered, |t| t.processor = world.vendor.id());
    refused_token(&mut held, &world, &token, Code::ProcessorMismatch, "the release token is for another processor");
    let mut wrong = shipment.clone();
    wrong.secret = ReleaseSecret::generate(&mut SystemRandom);
    let token = world.token(&wrong, &delivered, |_| {});
    refused_token(&mut held, &world, &token, Code::TokenMismatch, "the token's secret is not the one of these terms");
    let other_key = server_key(&world.pki, Role::ServerStatement, "shop");
    let claims: ReleaseToken = chipbound_wire::signed::read_claims(&world.token(&shipment, &delivered, |_| {})).expect("a token");
    refused_token(
        &mut held,
        &world,
        &other_key.sign(&claims),
        Code::StatementKeyMismatch,
        "the release token is signed by another key than the terms",
    );
    let mut altered = world.token(&shipment, &delivered, |_| {});
    *altered.last_mut().expect("not empty") ^= 1;
    refused_token(&mut held, &world, &altered, Code::SignatureInvalid, "the signature does not verify");
    refused_token(
        &mut held,
        &world,
        &delivered.seal,
        Code::WrongDocument,
        "application/chipbound-seal+cbor where application/chipbound-release-token+cbor was expected",
    );

    let token = world.token(&shipment, &delivered, |_| {});
    held.release(&token, &world.us).expect("the right token opens after all wrong ones");
    held.release(&token, &world.us).expect("and again");
    let second = world.token(&shipment, &delivered, |_| {});
    refused_token(&mut held, &world, &second, Code::TokenMismatch, "the delivery was released with another token already");
}

/// A26: everything that lies on the disk before the token, put together by somebody who may even sign a token of his own but
/// does not know the release secret.
#[test]
fn a_copied_spool_with_state_and_keys_opens_nothing_before_the_token() {
    let mut world = World::new();
    let shipment = world.ship(&sample(300_000), |_| {});
    let (held, delivered) = world.delivered(&shipment);
    let [copy] = &world.spool()[..] else { panic!("one delivery lies in the spool") };
    let copied = std::fs::read(copy).expect("copied");
    // The copy is made a package with a token that releases another secret.
    let guess = ReleaseSecret::generate(&mut SystemRandom);
    let mut guessed = shipment.clone();
    guessed.secret = guess;
    let token = world.token(&guessed, &delivered, |_| {});
    let Held { acknowledged, .. } = &held;
    let layout = Layout::decode(&acknowledged.delivery.layout).expect("a layout");
    let documents = chipbound_wire::documents::PackageDocuments {
        terms: bounded(&delivered.terms),
        wrap: delivered.wrap.clone(),
        seal: bounded(&delivered.seal),
        token: bounded(&token),
        sealed_manifest: bounded(&[0; 400]),
    };
    let package = [copied, chipbound_sealing::package::ending(&layout, &documents)].concat();
    let refusal = open(&world, &package).expect_err("no token came");
    assert_eq!(refusal.code, Code::NotReleased);
    assert!(!refusal.detail.is_empty(), "not a word");
    // And it is no matter of policy: with every key of this processor the main wrap does not open without the secret.
    let terms = &held.acknowledged.delivery.terms;
    for keys in world.us.vault.keys().generations() {
        let refusal = open_wrap(keys, &delivered.wrap, terms, &terms.digest(), &guessed.secret).expect_err("the secret is missing");
        assert_eq!(refusal.code, Code::WrapInvalid);
        open_wrap(keys, &delivered.wrap, terms, &terms.digest(), &shipment.secret).expect("opens with the secret");
    }
    drop(held);
    world.restart();
    assert_eq!(open(&world, &package).expect_err("no token came").code, Code::NotReleased);
}

fn bounded<const MAX: usize>(bytes: &[u8]) -> chipbound_wire::bounded::Bytes<MAX> {
    chipbound_wire::bounded::Bytes::new(bytes.to_vec()).expect("within its limit")
}

#[test]
fn a_package_opens_on_its_own_processor_after_a_restart_and_on_no_other() {
    let mut world = World::new();
    let package = world.package(&world.ship(&sample(5000), |_| {}));
    world.restart();
    assert_eq!(open(&world, &package).expect("opens"), sample(5000));
    let other = processor(&world.pki, &world.folder.path().join("other"));
    assert_eq!(open_with(&other, &world, &package).expect_err("foreign").code, Code::ProcessorMismatch);
}

/// A4: a key pair of the user's own making, with terms that name it and everything signed as it should be.
#[test]
fn a_package_made_for_a_self_made_key_pair_was_never_received_here() {
    let world = World::new();
    let maker = World::new();
    let package = maker.package(&maker.ship(&sample(5000), |_| {}));
    // The maker's processor holds its keys and yet has no certificate of our authority: our server serves it nothing.
    let shipment = world.ship(&sample(10), |_| {});
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let (held, server) = std::thread::scope(|scope| {
        let server = scope.spawn(|| crate::world::serve(theirs, &world, &shipment, &Lies::default()));
        (chipbound_processor::receive::receive(ours, &shipment.confirmation, 7, &maker.us, &mut |_| Ok(())), server.join().expect("ends"))
    });
    // Each trusts its own authority alone; the processor looks first, and the server hears it.
    let (ours, theirs) = (held.expect_err("foreign"), server.expect_err("foreign"));
    assert_eq!((ours.code, theirs.code), (Code::CertificateForeign, Code::CertificateForeign));
    assert_eq!(&*ours.detail, "the server-second-path certificate was not issued under the trusted authority");
    assert_eq!(&*theirs.detail, "the other side says: our certificate was not issued under the authority that it trusts");
    assert_eq!(open(&world, &package).expect_err("foreign").code, Code::ProcessorMismatch);
}

#[test]
fn rolled_back_and_lost_records_refuse_what_came_after_them() {
    let mut world = World::new();
    let first = world.package(&world.ship(&sample(5000), |_| {}));
    let state = world.us.config.state.join("state.sealed");
    let earlier = std::fs::read(&state).expect("the state");
    let second = world.package(&world.ship(&sample(6000), |_| {}));
    let later = std::fs::read(&state).expect("the state");
    std::fs::write(&state, &earlier).expect("rolled back");
    world.restart();
    assert_eq!(open(&world, &first).expect("recorded by then"), sample(5000));
    assert_eq!(open(&world, &second).expect_err("not recorded by then").code, Code::NotReceived);
    // Half a frame is what a crash leaves: dropped, and the next one goes in its place.
    std::fs::write(&state, &later[..later.len() - 7]).expect("cut");
    world.restart();
    assert_eq!(open(&world, &second).expect_err("compared, but the release is lost").code, Code::NotReleased);
    let third = world.package(&world.ship(&sample(7000), |_| {}));
    world.restart();
    assert_eq!(open(&world, &third).expect("opens"), sample(7000));
    // A changed byte is no crash.
    let mut altered = later;
    altered[20] ^= 1;
    std::fs::write(&state, &altered).expect("altered");
    assert_eq!(Processor::open(world.us.config.clone()).expect_err("altered").code, Code::Unsealable);
}

#[test]
fn old_sealing_keys_go_on_opening_after_a_renewal_with_fresh_ones() {
    let mut world = World::new();
    let package = world.package(&world.ship(&sample(5000), |_| {}));
    let before = world.us.vault.keys().sealing_keys();
    for _ in 0..4 {
        let fresh = world.us.vault.fresh_sealing_keys().expect("fresh keys");
        assert_ne!(fresh, before);
        assert_eq!(
            world.us.vault.fresh_sealing_keys().expect("not certified yet"),
            fresh,
            "a renewal that failed is tried with the same keys"
        );
        world.us.vault.enroll("https://authority.invalid", certify(&world.pki, &world.us.vault, now().after(3600))).expect("renewed");
    }
    assert_eq!(open(&world, &package).expect("opens"), sample(5000));
    let new = world.package(&world.ship(&sample(6000), |_| {}));
    world.restart();
    assert_eq!(open(&world, &package).expect("opens"), sample(5000));
    assert_eq!(open(&world, &new).expect("opens"), sample(6000));
}

#[test]
fn a_certificate_for_keys_that_are_not_here_is_not_taken() {
    let world = World::new();
    let other = processor(&world.pki, &world.folder.path().join("other"));
    let foreign = certify(&world.pki, &other.vault, now().after(3600));
    let refusal = world.us.vault.enroll("https://authority.invalid", foreign).expect_err("another's certificate");
    assert_eq!(refusal.code, Code::CertificateProfile);
    assert_eq!(world.us.vault.enrolment().expect("unchanged").certified.key_id(), world.us.vault.keys().key_id());
}

/// Who signs the release for a key of his own gets nothing out of a wrap that was made for ours.
#[test]
fn a_release_sealed_to_another_key_is_refused() {
    let world = World::new();
    let shipment = world.ship(&sample(5000), |_| {});
    let (mut held, delivered) = world.delivered(&shipment);
    let other = processor(&world.pki, &world.folder.path().join("other"));
    let public = other.vault.keys().sealing_keys().iter().find(|k| k.kem == Kem::XWing).expect("a key").public.to_vec();
    let terms = Digest::of(&delivered.terms);
    let release = seal_release(&public, Kem::XWing, &shipment.order, &terms, &world.id(), &shipment.secret, &mut SystemRandom);
    let token =
        world.statement.sign(&ReleaseToken { order: shipment.order, terms, processor: world.id(), release: release.expect("sealed") });
    refused_token(&mut held, &world, &token, Code::TokenMismatch, "the release token does not open here");
}

#[test]
fn a_delivery_that_its_progress_refuses_ends_and_tells_the_server() {
    let world = World::new();
    let shipment = world.ship(&sample(9 * 1024 * 1024), |_| {});
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let (held, server) = std::thread::scope(|scope| {
        let server = scope.spawn(|| crate::world::serve(theirs, &world, &shipment, &Lies::default()));
        let mut gone = |_| Err(Refusal::new(Code::Cancelled, "the client closed its connection"));
        (chipbound_processor::receive::receive(ours, &shipment.confirmation, 7, &world.us, &mut gone), server.join().expect("ends"))
    });
    assert_eq!(held.expect_err("cancelled").code, Code::Cancelled);
    assert_eq!(server.expect_err("told").code, Code::Cancelled);
    assert_eq!(world.us.spool.waiting().expect("read").len(), 1, "what came waits to go on");
}
