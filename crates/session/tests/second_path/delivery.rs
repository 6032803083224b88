//! Steps 1007 and 1008: what is delivered is what was agreed, what the vendor signed and what the seal names.

use crate::common::{NOW, PLAINTEXT, World, assert_both, deliver, deliver_between, honest, of_server, on, resign, wrap};
use chipbound_session::server::{Expected, verify_acknowledgement};
use chipbound_testkit::documents::SUITE;
use chipbound_testkit::{Holder, Wanted};
use chipbound_wire::bounded::{Bytes, List, Text};
use chipbound_wire::certificate::Role;
use chipbound_wire::documents::{Acknowledgement, Manifest, Seal, Terms};
use chipbound_wire::messages::{Kind, Start, payload, read_payload};
use chipbound_wire::suite::{Format, Kem, KeyMode};
use chipbound_wire::{AccountId, Code, Digest, KeyId, OrderId};

/// Changes the start message.
fn start(change: impl Fn(&mut Start) + Sync) -> impl Fn(Kind, Vec<u8>) -> Vec<u8> + Sync {
    on(Kind::Start, move |message| {
        let mut start: Start = read_payload(&message).unwrap();
        change(&mut start);
        payload(Kind::Start, &start).unwrap()
    })
}

/// Changes the terms within the start message, signed anew by `signer`.
fn terms(signer: &Holder, change: impl Fn(&mut Terms) + Sync) -> impl Fn(Kind, Vec<u8>) -> Vec<u8> + Sync {
    start(move |start| start.terms = Bytes::new(resign::<Terms>(&start.terms, signer, &change)).unwrap())
}

#[test]
fn a_delivery_leaves_the_same_documents_on_both_ends() {
    let world = World::new();
    let (processor, server) = deliver(&world, &honest, &honest);
    let (processor, server) = (processor.expect("the processor's end"), server.expect("the server's end"));
    assert_eq!(processor.acknowledgement, server.bytes());
    assert_eq!(processor.delivery.terms.digest(), server.terms);
    assert_eq!(processor.seal.digest(), server.seal);
    assert_eq!(processor.delivery.manifest.bytes(), world.signed_manifest);
    assert_eq!((server.order, server.at), (world.confirmation.order, NOW));
}

#[test]
fn terms_other_than_agreed_are_refused() {
    let changes: [fn(&mut Terms); 4] = [
        |t| t.order = OrderId([1; 16]),
        |t| t.account = AccountId([1; 16]),
        |t| t.processor = KeyId([1; 32]),
        |t| t.manifest = Digest([1; 32]),
    ];
    for change in changes {
        let world = World::new();
        assert_both(deliver(&world, &honest, &terms(&world.statement, change)), Code::TermsMismatch);
    }
}

#[test]
fn a_body_that_begins_where_nobody_offered_is_refused() {
    let world = World::new();
    assert_both(deliver(&world, &honest, &start(|start| start.from = Some(1 << 18))), Code::OfferAltered);
}

#[test]
fn terms_by_another_statement_key_than_the_exchange_named_are_refused() {
    let world = World::new();
    let second = world.pki.holder_of(&of_server(Role::ServerStatement));
    assert_both(deliver(&world, &honest, &terms(&second, |_| {})), Code::StatementKeyMismatch);
}

#[test]
fn another_servers_statement_key_counts_for_nothing_even_where_the_exchange_names_it() {
    let processors = World::new();
    let mut servers = World::new();
    servers.pki = chipbound_testkit::Pki::new(NOW);
    // The same people on both ends, but the server's terms are signed by a certified key of another server.
    let other = processors.pki.holder_of(&Wanted { subject: "other.example".to_owned(), ..of_server(Role::ServerStatement) });
    servers.server = processors.server.clone();
    servers.server_trust = processors.server_trust.clone();
    servers.statement = other;
    servers.terms = processors.terms.clone();
    servers.manifest = processors.manifest.clone();
    servers.signed_manifest = processors.signed_manifest.clone();
    assert_both(deliver_between(&processors, &servers, &honest, &honest), Code::StatementKeyMismatch);
}

#[test]
fn terms_signed_in_the_wrong_role_or_changed_after_signing_are_refused() {
    let world = World::new();
    assert_both(deliver(&world, &honest, &terms(&world.server, |_| {})), Code::CertificateRole);
    let flip = start(|start| {
        let mut bytes = start.terms.to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        start.terms = Bytes::new(bytes).unwrap();
    });
    assert_both(deliver(&world, &honest, &flip), Code::SignatureInvalid);
}

/// A server that delivers under this manifest although it should not: the buyer's confirmation names it, the server's own
/// checks are left out.
fn deliver_under(bend: impl FnOnce(&World, &mut Manifest) -> Option<Holder>, code: Code) {
    let servers = World::new();
    let mut manifest = servers.manifest.clone();
    let signer = bend(&servers, &mut manifest).unwrap_or_else(|| servers.vendor.clone());
    let signed = signer.sign(&manifest);
    let mut processors = World::new();
    processors.pki = chipbound_testkit::Pki::new(NOW);
    processors.processor = servers.processor.clone();
    processors.processor_trust = servers.processor_trust.clone();
    processors.statement = servers.statement.clone();
    processors.confirmation = servers.confirmation.clone();
    processors.confirmation.manifest = Digest::of(&signed);
    let tamper = start(|start| {
        start.terms = Bytes::new(resign::<Terms>(&start.terms, &servers.statement, |t| t.manifest = Digest::of(&signed))).unwrap();
        start.manifest = Bytes::new(signed.clone()).unwrap();
    });
    assert_both(deliver_between(&processors, &servers, &honest, &tamper), code);
}

#[test]
fn a_manifest_that_does_not_allow_this_delivery_is_refused_by_the_processor_too() {
    let unchanged = |bend: fn(&mut Manifest)| {
        move |_: &World, manifest: &mut Manifest| {
            bend(manifest);
            None
        }
    };
    deliver_under(unchanged(|m| m.format = Format::ElfX8664), Code::ManifestMismatch);
    deliver_under(unchanged(|m| m.version = Text::new("0.9").unwrap()), Code::ManifestMismatch);
    deliver_under(unchanged(|m| m.key_modes = List::new(vec![KeyMode::Common]).unwrap()), Code::ManifestMismatch);
    deliver_under(unchanged(|m| m.classes = List::new(Vec::new()).unwrap()), Code::ClassRefused);
    deliver_under(unchanged(|m| m.plain_size = 1 << 31), Code::TooLarge);
    deliver_under(unchanged(|m| m.minimum_sequence = m.sequence + 1), Code::SequenceTooOld);
}

#[test]
fn a_manifest_by_anybody_but_the_programs_own_vendor_is_refused() {
    deliver_under(|w, _| Some(w.pki.holder(Role::Vendor)), Code::ManifestMismatch);
    deliver_under(|w, _| Some(w.statement.clone()), Code::CertificateRole);
}

#[test]
fn another_manifest_than_the_terms_name_is_refused() {
    let world = World::new();
    let newer = world.vendor.sign(&Manifest { sequence: 2, ..world.manifest.clone() });
    let swap = start(|start| start.manifest = Bytes::new(newer.clone()).unwrap());
    assert_both(deliver(&world, &honest, &swap), Code::ManifestMismatch);
}

#[test]
fn wraps_of_another_mechanism_are_refused() {
    let world = World::new();
    assert_both(deliver(&world, &honest, &start(|s| s.wrap = wrap(Kem::DhkemP256, 1))), Code::WrapInvalid);
    assert_both(deliver(&world, &honest, &start(|s| s.session_wrap = wrap(Kem::DhkemP256, 2))), Code::WrapInvalid);
}

#[test]
fn a_wrap_swapped_under_signed_terms_is_refused() {
    let world = World::new();
    assert_both(deliver(&world, &honest, &start(|s| s.wrap = wrap(SUITE.kem, 9))), Code::SealMismatch);
    assert_both(deliver(&world, &honest, &start(|s| s.session_wrap = wrap(SUITE.kem, 9))), Code::SealMismatch);
    assert_both(deliver(&world, &honest, &start(|s| s.plain_digest = Digest([9; 32]))), Code::SealMismatch);
}

#[test]
fn a_seal_about_anything_else_is_refused() {
    let changes: [fn(&mut Seal); 9] = [
        |s| s.terms = Digest([1; 32]),
        |s| s.wrap = Digest([1; 32]),
        |s| s.session_wrap = Digest([1; 32]),
        |s| s.exchange = Digest([1; 32]),
        |s| s.plain_digest = Digest([1; 32]),
        |s| s.body_root = Digest([1; 32]),
        |s| s.body_size += 1,
        |s| s.table_root = Digest([1; 32]),
        |s| s.table_size += 1,
    ];
    let world = World::new();
    for change in changes {
        let bend = on(Kind::Seal, |message| resign::<Seal>(&message, &world.statement, change));
        assert_both(deliver(&world, &honest, &bend), Code::SealMismatch);
    }
}

#[test]
fn a_seal_by_another_statement_key_is_refused() {
    let world = World::new();
    let second = world.pki.holder_of(&of_server(Role::ServerStatement));
    let bend = on(Kind::Seal, |message| resign::<Seal>(&message, &second, |_| {}));
    assert_both(deliver(&world, &honest, &bend), Code::StatementKeyMismatch);
}

#[test]
fn a_body_changed_before_it_was_sent_is_refused() {
    let world = World::new();
    let flip = on(Kind::Chunk, |mut bytes| {
        bytes[3] ^= 1;
        bytes
    });
    assert_both(deliver(&world, &honest, &flip), Code::SealMismatch);
    let cut = on(Kind::Chunk, |bytes| bytes[..bytes.len() - 1].to_vec());
    assert_both(deliver(&world, &honest, &cut), Code::SealMismatch);
}

#[test]
fn a_server_that_changes_the_vendors_program_is_refused() {
    let mut world = World::new();
    world.change_manifest(|m| m.plain_root = Digest::of(b"what the vendor really signed"));
    assert_both(deliver(&world, &honest, &honest), Code::PlaintextMismatch);
    let mut world = World::new();
    world.change_manifest(|m| m.plain_size = PLAINTEXT.len() as u64 + 1);
    assert_both(deliver(&world, &honest, &honest), Code::PlaintextMismatch);
}

#[test]
fn an_acknowledgement_of_anything_else_is_refused() {
    let changes: [fn(&mut Acknowledgement); 3] =
        [|a| a.order = OrderId([1; 16]), |a| a.terms = Digest([1; 32]), |a| a.seal = Digest([1; 32])];
    let world = World::new();
    for change in changes {
        let bend = on(Kind::Acknowledgement, |message| resign::<Acknowledgement>(&message, &world.processor, change));
        assert_both(deliver(&world, &bend, &honest), Code::AcknowledgementMismatch);
    }
    let other = world.pki.holder(Role::Processor);
    let borrowed = on(Kind::Acknowledgement, |message| resign::<Acknowledgement>(&message, &other, |_| {}));
    assert_both(deliver(&world, &borrowed, &honest), Code::AcknowledgementMismatch);
}

#[test]
fn an_acknowledgement_of_an_earlier_delivery_cannot_be_replayed() {
    let world = World::new();
    let earlier = deliver(&world, &honest, &honest).0.expect("the earlier delivery").acknowledgement;
    let replay = on(Kind::Acknowledgement, |_| earlier.clone());
    assert_both(deliver(&world, &replay, &honest), Code::AcknowledgementMismatch);
}

#[test]
fn the_first_paths_handler_verifies_the_same_acknowledgement_by_itself() {
    let world = World::new();
    let done = deliver(&world, &honest, &honest).0.expect("a delivery");
    let expected = Expected {
        order: world.confirmation.order,
        terms: done.delivery.terms.digest(),
        seal: done.seal.digest(),
        processor: world.processor.id(),
    };
    let trust = world.pki.trust();
    verify_acknowledgement(&done.acknowledgement, &trust, NOW, &expected).expect("the right one");
    let other = Expected { processor: KeyId([1; 32]), ..expected };
    let refusal = verify_acknowledgement(&done.acknowledgement, &trust, NOW, &other).expect_err("another processor's");
    assert_eq!(refusal.code, Code::AcknowledgementMismatch);
}
