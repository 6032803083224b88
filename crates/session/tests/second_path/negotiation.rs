//! Row S22: what can be processed, what is chosen, and that nobody thins it out on the way (A8).

use crate::common::{P256, World, assert_both, deliver, honest, of_server, on, resign, wrap};
use chipbound_testkit::documents::SUITE;
use chipbound_testkit::pki::idle_sealing_keys;
use chipbound_wire::bounded::List;
use chipbound_wire::certificate::Role;
use chipbound_wire::documents::{Offer, Terms};
use chipbound_wire::messages::{Kind, Start, payload, read_payload};
use chipbound_wire::suite::{Format, KeyMode, Suite};
use chipbound_wire::{Code, Digest};

fn chosen(world: &World) -> (Suite, KeyMode) {
    let (processor, server) = deliver(world, &honest, &honest);
    server.expect("the server's end");
    let terms = processor.expect("the processor's end").delivery.terms;
    (terms.suite, terms.key_mode)
}

#[test]
fn the_servers_order_decides_among_what_the_processor_offers() {
    let mut world = World::new();
    assert_eq!(chosen(&world), (SUITE, KeyMode::Direct));
    world.policy.suites.reverse();
    world.policy.key_modes.reverse();
    assert_eq!(chosen(&world), (P256, KeyMode::Common));
    world.capabilities.suites = vec![SUITE];
    world.capabilities.key_modes = vec![KeyMode::Direct];
    assert_eq!(chosen(&world), (SUITE, KeyMode::Direct));
}

#[test]
fn a_suite_without_a_certified_sealing_key_is_not_chosen() {
    let mut world = World::new();
    world.processor = world.pki.processor(idle_sealing_keys().keys.to_vec());
    world.confirmation.processor = world.processor.id();
    world.terms.processor = world.processor.id();
    assert_eq!(chosen(&world).0, P256, "the first choice needs an X-Wing key");
    world.policy.suites = vec![SUITE];
    assert_both(deliver(&world, &honest, &honest), Code::NothingInCommon);
}

#[test]
fn nothing_in_common_is_said_on_both_ends() {
    let worlds: [fn(&mut World); 6] = [
        |w| w.capabilities.suites = Vec::new(),
        |w| w.capabilities.formats = vec![Format::ElfX8664],
        |w| w.capabilities.key_modes = Vec::new(),
        |w| w.policy.suites = Vec::new(),
        |w| w.policy.key_modes = Vec::new(),
        |w| w.change_manifest(|m| m.key_modes = List::new(Vec::new()).unwrap()),
    ];
    for change in worlds {
        let mut world = World::new();
        change(&mut world);
        assert_both(deliver(&world, &honest, &honest), Code::NothingInCommon);
    }
}

#[test]
fn a_program_larger_than_the_processor_takes_is_not_sent() {
    let mut world = World::new();
    world.capabilities.max_plain_size = world.manifest.plain_size - 1;
    assert_both(deliver(&world, &honest, &honest), Code::TooLarge);
}

#[test]
fn a_class_that_the_vendor_does_not_name_gets_nothing() {
    let mut world = World::new();
    world.change_manifest(|m| m.classes = List::new(Vec::new()).unwrap());
    assert_both(deliver(&world, &honest, &honest), Code::ClassRefused);
}

#[test]
fn an_offer_thinned_on_the_way_no_longer_verifies() {
    let world = World::new();
    // The weaker suite stays, the stronger one is cut out; the signature is still the processor's.
    let thin = |message: Vec<u8>| {
        let strong = chipbound_wire::bounded::encode(&SUITE);
        let weak = chipbound_wire::bounded::encode(&P256);
        let at = message.windows(strong.len()).position(|w| w == strong).expect("the offer names the suite");
        [&message[..at], weak.as_slice(), &message[at + strong.len()..]].concat()
    };
    assert_both(deliver(&world, &on(Kind::Offer, thin), &honest), Code::SignatureInvalid);
}

#[test]
fn an_offer_of_another_processor_is_refused() {
    let world = World::new();
    let other = world.pki.holder(Role::Processor);
    let replace = on(Kind::Offer, |message| resign::<Offer>(&message, &other, |_| {}));
    assert_both(deliver(&world, &replace, &honest), Code::IdentityMismatch);
}

#[test]
fn an_offer_of_another_session_is_refused() {
    let world = World::new();
    let replay = on(Kind::Offer, |message| resign::<Offer>(&message, &world.processor, |o| o.exchange = Digest([9; 32])));
    assert_both(deliver(&world, &replay, &honest), Code::ExchangeMismatch);
}

#[test]
fn terms_with_what_was_never_offered_are_refused() {
    let changes: [fn(&mut Terms); 3] = [|t| t.suite = P256, |t| t.format = Format::ElfX8664, |t| t.key_mode = KeyMode::Common];
    for change in changes {
        let mut world = World::new();
        world.capabilities.suites = vec![SUITE];
        world.capabilities.formats = vec![Format::Data];
        world.capabilities.key_modes = vec![KeyMode::Direct];
        let downgrade = on(Kind::Start, |message| {
            let mut start: Start = read_payload(&message).unwrap();
            let terms = resign::<Terms>(&start.terms, &world.statement, change);
            start.terms = chipbound_wire::bounded::Bytes::new(terms).unwrap();
            start.wrap = wrap(P256.kem, 1);
            payload(Kind::Start, &start).unwrap()
        });
        assert_both(deliver(&world, &honest, &downgrade), Code::OfferAltered);
    }
}

#[test]
fn a_question_with_a_payload_is_refused() {
    let world = World::new();
    let (state, _) = crate::states::processor_authenticated(&world);
    let signer = world.processor.signer();
    let trust = world.pki.trust();
    let context = chipbound_session::Context { trust: &trust, now: crate::common::NOW, signer: &signer };
    assert_eq!(state.asked(b"?", None, &context).expect_err("a payload").code, Code::Malformed);
}

#[test]
fn a_server_of_one_name_cannot_speak_for_another() {
    let mut world = World::new();
    world.server =
        world.pki.holder_of(&chipbound_testkit::Wanted { subject: "other.example".to_owned(), ..of_server(Role::ServerSecondPath) });
    assert_both(deliver(&world, &honest, &honest), Code::StatementKeyMismatch);
}
