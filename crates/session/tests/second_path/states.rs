//! The states alone, with neither TLS nor messages around them.

use crate::common::{NOW, PLAINTEXT, World, roots};
use chipbound_session::{Channel, Context, processor, server};
use chipbound_wire::certificate::Trust;
use chipbound_wire::documents::{Kept, Terms};
use chipbound_wire::signed::Signer;
use chipbound_wire::{Code, Digest, SystemRandom};

fn context<'a>(trust: &'a Trust, signer: &'a Signer<'a>) -> Context<'a> {
    Context { trust, now: NOW, signer }
}

/// Both ends after step 1006.
pub(crate) fn processor_authenticated(world: &World) -> (processor::Authenticated, server::Authenticated) {
    let (to_server, to_processor) = world.channels();
    authenticated(world, &to_server, &to_processor).expect("an honest exchange")
}

fn authenticated(
    world: &World,
    to_server: &Channel,
    to_processor: &Channel,
) -> chipbound_wire::Result<(processor::Authenticated, server::Authenticated)> {
    let trust = world.pki.trust();
    let (mine, theirs) = (world.processor.signer(), world.server.signer());
    let (mine, theirs) = (context(&trust, &mine), context(&trust, &theirs));
    let confirmation = world.statement.sign(&world.confirmation);
    let (client, hello) =
        processor::begin(to_server, &confirmation, world.session_key.clone(), world.capabilities.clone(), &mine, &mut SystemRandom)?;
    let (serving, exchange) = server::begin(to_processor, world.purpose())?.hello(&hello, &theirs, &mut SystemRandom)?;
    let (client, exchange) = client.server_exchange(&exchange, &mine)?;
    Ok((client, serving.processor_exchange(&exchange, &theirs)?))
}

#[test]
fn a_whole_delivery_needs_neither_stream_nor_clock() {
    let world = World::new();
    let trust = world.pki.trust();
    let (mine, theirs) = (world.processor.signer(), world.server.signer());
    let (mine, theirs) = (context(&trust, &mine), context(&trust, &theirs));
    let (client, serving) = processor_authenticated(&world);
    let (client, offer) = client.asked(&[], None, &mine).expect("the question");
    let serving = serving.offer(&offer, &theirs).expect("the offer");
    let choice = serving.choose(&world.policy, &world.manifest).expect("something in common");
    let terms = Terms { suite: choice.suite, format: choice.format, key_mode: choice.key_mode, ..world.terms.clone() };
    let consignment = world.consignment(&terms, serving.session_key());
    let (serving, start) = serving.start(consignment, &theirs).expect("our own terms");
    let client = client.start(&start, &mine).expect("terms as agreed");
    assert_eq!(client.delivery().terms.bytes(), serving.terms().bytes());
    let (serving, seal) = serving.seal(&roots(PLAINTEXT), &world.statement.signer()).expect("the seal");
    let plain_root = Digest::of(PLAINTEXT);
    let received = processor::Received { roots: roots(PLAINTEXT), plain_root, plain_size: PLAINTEXT.len() as u64 };
    let client = client.seal(&seal, &received, &mine).expect("the same bytes");
    let (_, acknowledgement) = client.acknowledge(&mine).expect("the last word");
    serving.acknowledgement(&acknowledgement, &theirs).expect("received");
}

#[test]
fn two_exporters_make_two_connections() {
    let world = World::new();
    let (to_server, mut to_processor) = world.channels();
    to_processor.exporter = Digest([6; 32]);
    let refusal = authenticated(&world, &to_server, &to_processor).expect_err("another exporter");
    assert_eq!(refusal.code, Code::ExchangeMismatch);
}

/// A consignment gone wrong, and the code with which it is not sent.
type Bend = (fn(&World, &mut server::Consignment), Code);

#[test]
fn a_server_does_not_start_what_its_processor_would_refuse() {
    let bends: [Bend; 5] = [
        (|w, c| c.terms = w.pki.holder(chipbound_wire::certificate::Role::ServerStatement).sign(&w.terms), Code::StatementKeyMismatch),
        (|w, c| c.terms = w.statement.sign(&Terms { order: chipbound_wire::OrderId([1; 16]), ..w.terms.clone() }), Code::TermsMismatch),
        (|w, c| c.terms = w.statement.sign(&Terms { manifest: Digest([1; 32]), ..w.terms.clone() }), Code::ManifestMismatch),
        (
            |w, c| {
                let format = chipbound_wire::suite::Format::ElfX8664;
                c.terms = w.statement.sign(&Terms { format, ..w.terms.clone() });
            },
            Code::NothingInCommon,
        ),
        (|_, c| c.layout = vec![0; chipbound_wire::limits::MAX_LAYOUT + 1], Code::TooLarge),
    ];
    for (bend, code) in bends {
        let world = World::new();
        let trust = world.pki.trust();
        let (mine, theirs) = (world.processor.signer(), world.server.signer());
        let (client, serving) = processor_authenticated(&world);
        let (_, offer) = client.asked(&[], None, &context(&trust, &mine)).expect("the question");
        let serving = serving.offer(&offer, &context(&trust, &theirs)).expect("the offer");
        let mut consignment = world.consignment(&world.terms, serving.session_key());
        bend(&world, &mut consignment);
        assert_eq!(serving.start(consignment, &context(&trust, &theirs)).expect_err("bent").code, code);
    }
}

#[test]
fn a_seal_by_another_key_than_was_announced_is_not_even_made() {
    let world = World::new();
    let trust = world.pki.trust();
    let (mine, theirs) = (world.processor.signer(), world.server.signer());
    let (client, serving) = processor_authenticated(&world);
    let (_, offer) = client.asked(&[], None, &context(&trust, &mine)).expect("the question");
    let serving = serving.offer(&offer, &context(&trust, &theirs)).expect("the offer");
    let consignment = world.consignment(&world.terms, serving.session_key());
    let (serving, _) = serving.start(consignment, &context(&trust, &theirs)).expect("our own terms");
    let refusal = serving.seal(&roots(PLAINTEXT), &world.server.signer()).expect_err("another key");
    assert_eq!(refusal.code, Code::StatementKeyMismatch);
}

#[test]
fn random_bytes_in_place_of_any_message_are_refused_and_never_panic() {
    use chipbound_wire::Random;
    let world = World::new();
    let trust = world.pki.trust();
    let (mine, theirs) = (world.processor.signer(), world.server.signer());
    let (mine, theirs) = (context(&trust, &mine), context(&trust, &theirs));
    let mut random = chipbound_testkit::Repeatable::new(1);
    for length in (0..300).step_by(7) {
        let mut noise = vec![0; length];
        random.fill(&mut noise);
        let (to_server, to_processor) = world.channels();
        let confirmation = world.statement.sign(&world.confirmation);
        let key = world.session_key.clone();
        let begin = |bytes: &[u8]| processor::begin(&to_server, bytes, key.clone(), world.capabilities.clone(), &mine, &mut SystemRandom);
        assert!(begin(&noise).is_err());
        assert!(begin(&confirmation).expect("the confirmation").0.server_exchange(&noise, &mine).is_err());
        let hello = begin(&confirmation).expect("the confirmation").1;
        let fresh = || server::begin(&to_processor, world.purpose()).expect("the processor");
        assert!(fresh().hello(&noise, &theirs, &mut SystemRandom).is_err());
        let (serving, _) = fresh().hello(&hello, &theirs, &mut SystemRandom).expect("the hello");
        assert!(serving.processor_exchange(&noise, &theirs).is_err());
        let (client, serving) = processor_authenticated(&world);
        assert!(serving.offer(&noise, &theirs).is_err());
        let (client, _) = client.asked(&[], None, &mine).expect("the question");
        assert!(client.start(&noise, &mine).is_err());
    }
}

#[test]
fn our_own_challenge_sent_back_is_no_challenge() {
    let world = World::new();
    let trust = world.pki.trust();
    let (mine, theirs) = (world.processor.signer(), world.server.signer());
    let (mine, theirs) = (context(&trust, &mine), context(&trust, &theirs));
    let (to_server, to_processor) = world.channels();
    let confirmation = world.statement.sign(&world.confirmation);
    let (key, capabilities) = (world.session_key.clone(), world.capabilities.clone());
    // Both ends draw the same bytes.
    let random = || chipbound_testkit::Repeatable::new(3);
    let (client, hello) = processor::begin(&to_server, &confirmation, key, capabilities, &mine, &mut random()).expect("a hello");
    let serving = server::begin(&to_processor, world.purpose()).expect("the processor");
    let (_, exchange) = serving.hello(&hello, &theirs, &mut random()).expect("the hello");
    assert_eq!(client.server_exchange(&exchange, &mine).expect_err("reflected").code, Code::ExchangeMismatch);
}

#[test]
fn a_delivery_goes_on_only_where_the_processor_offered_to_and_under_the_same_terms() {
    let world = World::new();
    let trust = world.pki.trust();
    let (mine, theirs) = (world.processor.signer(), world.server.signer());
    let (mine, theirs) = (context(&trust, &mine), context(&trust, &theirs));
    let signed = world.statement.sign(&world.terms);
    let kept = |terms: &[u8], bytes| Kept { terms: Digest::of(terms), bytes };
    let go_on = |offered: Option<Kept>, from: u64| {
        let (client, serving) = processor_authenticated(&world);
        let (client, offer) = client.asked(&[], offered, &mine).expect("the question");
        let serving = serving.offer(&offer, &theirs).expect("the offer");
        assert_eq!(serving.kept(), offered);
        let consignment = server::Consignment { terms: signed.clone(), from, ..world.consignment(&world.terms, serving.session_key()) };
        serving.start(consignment, &theirs).and_then(|(_, start)| Ok(client.start(&start, &mine)?.from()))
    };
    assert_eq!(go_on(Some(kept(&signed, 1 << 20)), 1 << 20).expect("as offered"), 1 << 20);
    assert_eq!(go_on(Some(kept(&signed, 1 << 20)), 0).expect("anew"), 0);
    assert_eq!(go_on(None, 0).expect("anew"), 0);
    for (offered, from) in [(None, 1 << 20), (Some(kept(&signed, 1 << 20)), 1 << 19), (Some(kept(b"other terms", 1 << 20)), 1 << 20)] {
        assert_eq!(go_on(offered, from).expect_err("never offered").code, Code::OfferAltered);
    }
}
