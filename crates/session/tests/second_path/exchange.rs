//! Steps 1004 to 1006: relays, reflections and replays fail at the signed exchange.

use crate::common::{
    NOW, Standing, World, assert_both, deliver, deliver_between, honest, identity, of_server, on, processor_role, resign, server_role,
    streams, x_wing,
};
use chipbound_session::path::Path;
use chipbound_session::tls::{processor_config, server_config};
use chipbound_testkit::Holder;
use chipbound_wire::certificate::Role;
use chipbound_wire::documents::{ExchangeFacts, ProcessorExchange, ServerExchange};
use chipbound_wire::messages::{Abort, Hello, Kind, payload, read_payload};
use chipbound_wire::{Code, Digest, KeyId, OrderId, Refusal};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

/// A false fact, and the code with which it is refused.
type Lie = (fn(&mut ExchangeFacts), Code);

/// Every way to be about something else.
fn lies() -> [Lie; 7] {
    [
        (|f| f.exporter = Digest([1; 32]), Code::ExchangeMismatch),
        (|f| f.processor_challenge = Digest([1; 32]), Code::ExchangeMismatch),
        (|f| f.session_key = x_wing(), Code::ExchangeMismatch),
        (|f| f.processor = KeyId([1; 32]), Code::IdentityMismatch),
        (|f| f.server = KeyId([1; 32]), Code::IdentityMismatch),
        (|f| f.order = OrderId([1; 16]), Code::OrderMismatch),
        (|f| f.server_challenge = f.processor_challenge, Code::ExchangeMismatch),
    ]
}

#[test]
fn a_server_that_signs_anything_else_is_refused() {
    let world = World::new();
    for (lie, code) in lies() {
        let bend = on(Kind::ServerExchange, |m| resign::<ServerExchange>(&m, &world.server, |e| lie(&mut e.facts)));
        assert_both(deliver(&world, &honest, &bend), code);
    }
}

#[test]
fn a_processor_that_signs_anything_else_is_refused() {
    let world = World::new();
    let statement: Lie = (|f| f.statement_key = KeyId([1; 32]), Code::ExchangeMismatch);
    for (lie, code) in lies().into_iter().chain([statement]) {
        let bend = on(Kind::ProcessorExchange, |m| resign::<ProcessorExchange>(&m, &world.processor, |e| lie(&mut e.facts)));
        assert_both(deliver(&world, &bend, &honest), code);
    }
}

#[test]
fn an_exchange_by_another_certified_key_than_tls_proved_is_refused() {
    let world = World::new();
    let server = world.pki.holder_of(&of_server(Role::ServerSecondPath));
    let bend = on(Kind::ServerExchange, |m| resign::<ServerExchange>(&m, &server, |_| {}));
    assert_both(deliver(&world, &honest, &bend), Code::IdentityMismatch);
    let processor = world.pki.holder(Role::Processor);
    let bend = on(Kind::ProcessorExchange, |m| resign::<ProcessorExchange>(&m, &processor, |_| {}));
    assert_both(deliver(&world, &bend, &honest), Code::IdentityMismatch);
}

#[test]
fn an_exchange_in_the_wrong_role_is_refused() {
    let world = World::new();
    let bend = on(Kind::ServerExchange, |m| resign::<ServerExchange>(&m, &world.statement, |_| {}));
    assert_both(deliver(&world, &honest, &bend), Code::CertificateRole);
    let bend = on(Kind::ProcessorExchange, |m| resign::<ProcessorExchange>(&m, &world.vendor, |_| {}));
    assert_both(deliver(&world, &bend, &honest), Code::CertificateRole);
}

#[test]
fn an_exchange_reflected_to_its_signer_is_refused() {
    let world = World::new();
    let servers_own = Mutex::new(Vec::new());
    let keep = on(Kind::ServerExchange, |message| {
        servers_own.lock().unwrap().clone_from(&message);
        message
    });
    let reflect = on(Kind::ProcessorExchange, |_| servers_own.lock().unwrap().clone());
    assert_both(deliver(&world, &reflect, &keep), Code::WrongDocument);
    // To the processor its own half, of an earlier session, comes back in the server's place.
    let processors_own = Mutex::new(Vec::new());
    let keep = on(Kind::ProcessorExchange, |message| {
        processors_own.lock().unwrap().clone_from(&message);
        message
    });
    deliver(&world, &keep, &honest).0.expect("an honest delivery");
    let reflect = on(Kind::ServerExchange, |_| processors_own.lock().unwrap().clone());
    assert_both(deliver(&world, &honest, &reflect), Code::WrongDocument);
}

#[test]
fn messages_of_an_earlier_session_are_refused() {
    let world = World::new();
    let kept = Mutex::new(Vec::new());
    let keep = |kind: Kind, message: Vec<u8>| {
        kept.lock().unwrap().push((kind, message.clone()));
        message
    };
    let (processor, server) = deliver(&world, &keep, &keep);
    processor.expect("the earlier session");
    server.expect("the earlier session");
    let earlier = |kind: Kind| {
        let kept = kept.lock().unwrap();
        let message = kept.iter().find(|(k, _)| *k == kind).expect("it was sent").1.clone();
        on(kind, move |_| message.clone())
    };
    assert_both(deliver(&world, &earlier(Kind::ProcessorExchange), &honest), Code::ExchangeMismatch);
    assert_both(deliver(&world, &earlier(Kind::Offer), &honest), Code::ExchangeMismatch);
    assert_both(deliver(&world, &honest, &earlier(Kind::ServerExchange)), Code::ExchangeMismatch);
    assert_both(deliver(&world, &honest, &earlier(Kind::Seal)), Code::SealMismatch);
}

#[test]
fn challenges_and_hellos_never_repeat() {
    let world = World::new();
    let seen = Mutex::new(std::collections::HashSet::new());
    let note = |kind: Kind, message: Vec<u8>| {
        let challenge = match kind {
            Kind::Hello => read_payload::<Hello>(&message).unwrap().challenge,
            Kind::ServerExchange => chipbound_wire::signed::read_claims::<ServerExchange>(&message).unwrap().facts.server_challenge,
            _ => return message,
        };
        assert!(seen.lock().unwrap().insert(challenge), "a challenge came twice");
        message
    };
    for _ in 0..20 {
        deliver(&world, &note, &note).0.expect("a delivery");
    }
    assert_eq!(seen.lock().unwrap().len(), 40);
}

#[test]
fn a_hello_for_another_order_or_with_a_misshapen_key_is_refused() {
    let world = World::new();
    let hello = |change: fn(&mut Hello)| {
        on(Kind::Hello, move |message| {
            let mut hello: Hello = read_payload(&message).unwrap();
            change(&mut hello);
            payload(Kind::Hello, &hello).unwrap()
        })
    };
    assert_both(deliver(&world, &hello(|h| h.order = OrderId([1; 16])), &honest), Code::OrderMismatch);
    let short = hello(|h| h.session_key.public = chipbound_wire::bounded::Bytes::new(vec![4; 64]).unwrap());
    assert_both(deliver(&world, &short, &honest), Code::Malformed);
}

#[test]
fn a_session_sealing_key_substituted_in_the_hello_is_refused() {
    let world = World::new();
    let substitute = on(Kind::Hello, |message| {
        let mut hello: Hello = read_payload(&message).unwrap();
        hello.session_key = x_wing();
        payload(Kind::Hello, &hello).unwrap()
    });
    assert_both(deliver(&world, &substitute, &honest), Code::ExchangeMismatch);
}

#[test]
fn a_processor_that_the_order_is_not_for_is_refused() {
    let world = World::new();
    let mut other = World::new();
    other.pki = chipbound_testkit::Pki::new(NOW);
    other.processor = world.pki.holder(Role::Processor);
    other.confirmation.processor = other.processor.id();
    other.statement = world.statement.clone();
    other.processor_trust = world.processor_trust.clone();
    assert_both(deliver_between(&other, &world, &honest, &honest), Code::ProcessorMismatch);
}

#[test]
fn a_confirmation_for_another_processor_or_by_nobody_entitled_is_refused() {
    let mut world = World::new();
    world.confirmation.processor = KeyId([1; 32]);
    assert_both(deliver(&world, &honest, &honest), Code::ProcessorMismatch);
    let mut processors = World::new();
    let servers = World::new();
    processors.statement = processors.pki.holder_of(&of_server(Role::ServerStatement));
    processors.processor_trust = servers.processor_trust.clone();
    processors.processor = servers.processor.clone();
    // The confirmation's signer is certified by another authority than the one that both ends trust.
    assert_both(deliver_between(&processors, &servers, &honest, &honest), Code::CertificateForeign);
    processors.statement = servers.pki.holder_of(&of_server(Role::ServerReceipt));
    assert_both(deliver_between(&processors, &servers, &honest, &honest), Code::CertificateRole);
}

/// Passes messages on between two connections, as somebody in the middle who reads them all.
fn bridge(processor: UnixStream, server: UnixStream, world: &World, as_server: &Holder, as_processor: &Holder) {
    let clock = Arc::new(Standing(NOW));
    let front = server_config(&identity(as_server), world.server_trust.clone(), clock.clone()).unwrap();
    let back = processor_config(&identity(as_processor), world.processor_trust.clone(), clock).unwrap();
    let Ok(mut front) = Path::accept(processor, &front) else { return };
    let Ok(mut back) = Path::connect(server, &back) else { return };
    let ended = (|| -> Result<(), (Refusal, bool)> {
        for kind in [Kind::Hello, Kind::ServerExchange, Kind::ProcessorExchange] {
            let (from, to, forth) =
                if kind == Kind::ServerExchange { (&mut back, &mut front, false) } else { (&mut front, &mut back, true) };
            let message = from.expect(kind).map_err(|r| (r, forth))?.to_vec();
            to.send(kind, &message).map_err(|r| (r, !forth))?;
        }
        Ok(())
    })();
    if let Err((refusal, from_processor)) = ended {
        let other = if from_processor { &mut back } else { &mut front };
        let said = payload(Kind::Abort, &Abort::of(&refusal)).unwrap();
        let _ = other.send(Kind::Abort, &said);
    }
}

fn relayed(world: &World, as_server: &Holder, as_processor: &Holder) -> crate::common::Outcome {
    let ((processor, front), (back, server)) = (streams(), streams());
    std::thread::scope(|scope| {
        let served = scope.spawn(|| server_role(world, server, &honest));
        scope.spawn(|| bridge(front, back, world, as_server, as_processor));
        (processor_role(world, processor, &honest), served.join().unwrap())
    })
}

#[test]
fn two_bridged_connections_are_told_apart_by_their_exporters_even_with_both_keys_stolen() {
    let world = World::new();
    let (server, processor) = (world.server.clone(), world.processor.clone());
    assert_both(relayed(&world, &server, &processor), Code::ExchangeMismatch);
}

#[test]
fn a_relay_with_certified_keys_of_its_own_is_refused_on_both_ends() {
    let world = World::new();
    let server = world.pki.holder_of(&of_server(Role::ServerSecondPath));
    assert_both(relayed(&world, &server, &world.processor), Code::IdentityMismatch);
    let processor = world.pki.holder(Role::Processor);
    assert_both(relayed(&world, &world.server, &processor), Code::ProcessorMismatch);
}
