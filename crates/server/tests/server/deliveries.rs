//! Deliveries (steps 1003 to 1008), in both ways, key modes and all suites; and who is not delivered to.

use crate::processor::Processor;
use crate::world::{World, code, dial, read_out, sample, server_identity};
use chipbound_sealing::SealingKeyPair;
use chipbound_server::config::Policy;
use chipbound_server::storage::Orders;
use chipbound_testkit::{Pki, Wanted};
use chipbound_wire::api::Order;
use chipbound_wire::bounded::List;
use chipbound_wire::certificate::{Role, SealingKeys};
use chipbound_wire::suite::{Aead, Class, Format, Kem, KeyMode, Suite};
use chipbound_wire::{Code, Digest, SystemRandom, Time};
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn a_program_arrives_whole_in_the_tunnel_and_on_the_line_in_every_suite_and_mode() {
    let suites =
        [Kem::XWing, Kem::DhkemP256].iter().flat_map(|kem| [Aead::Aes256Gcm, Aead::ChaCha20Poly1305].map(|aead| Suite { kem: *kem, aead }));
    let world = World::new().await;
    let plain = sample(1_300_000); // More than is sealed and sent by one thread.
    world.publish("data", &plain).await;
    let elf = std::fs::read("/bin/ls").unwrap();
    world.publish_elf("ls", &elf).await;
    world.publish("empty", b"").await;
    let ann = world.log_in("ann").await;
    world.repository_deposit("ann", 100_000).await;
    for suite in suites {
        let processor = Processor::only(&world.pki, |c| c.suites = vec![suite]);
        for key_mode in [KeyMode::Direct, KeyMode::Common] {
            for (program, plain) in [("data", &plain), ("ls", &elf), ("empty", &Vec::new())] {
                let order = ann.buy(program, processor.id(), key_mode).await;
                let delivered = match key_mode {
                    KeyMode::Direct => ann.receive(&order, &processor).await.unwrap(),
                    KeyMode::Common => ann.receive_on_line(&order, &processor).await.unwrap(),
                };
                assert!(delivered.plain == *plain, "{program} {suite} {key_mode}");
                assert!(plain.is_empty() || delivered.body != *plain, "it was encrypted");
                assert_eq!((delivered.terms.suite, delivered.terms.key_mode), (suite, key_mode));
                let settled = ann.acknowledge(order.order, &delivered.acknowledgement).await.unwrap();
                assert!(processor.opens(&delivered, &settled.token.0, world.now()).unwrap(), "{program} {suite} {key_mode}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_ciphertext_is_fresh_each_time_and_common_ciphertext_is_made_once() {
    let world = World::new().await;
    let plain = sample(300_000);
    world.publish("tool", &plain).await;
    let ann = world.log_in("ann").await;
    let mut bodies = Vec::new();
    for key_mode in [KeyMode::Direct, KeyMode::Common] {
        for _ in 0..2 {
            let processor = Processor::new(&world.pki);
            let order = ann.buy("tool", processor.id(), key_mode).await;
            bodies.push(ann.receive(&order, &processor).await.unwrap());
        }
    }
    assert!(bodies[0].body != bodies[1].body && bodies[0].content != bodies[1].content, "direct: fresh key, fresh ciphertext");
    assert!(bodies[2].body == bodies[3].body && bodies[2].content == bodies[3].content, "common: one key, one ciphertext");
    assert_ne!(bodies[2].terms.release_commitment, bodies[3].terms.release_commitment, "but each order has its own gate");
    assert!(bodies[2].wrap != bodies[3].wrap);
}

#[tokio::test(flavor = "multi_thread")]
async fn common_deliveries_at_once_share_one_ciphertext() {
    let world = World::new().await;
    world.publish("tool", &sample(200_000)).await;
    let ann = world.log_in("ann").await;
    let (a, b, c) = (Processor::new(&world.pki), Processor::new(&world.pki), Processor::new(&world.pki));
    let mut orders = Vec::new();
    for processor in [&a, &b, &c] {
        orders.push(ann.buy("tool", processor.id(), KeyMode::Common).await);
    }
    let (a, b, c) = tokio::join!(ann.receive(&orders[0], &a), ann.receive(&orders[1], &b), ann.receive(&orders[2], &c));
    let (a, b, c) = (a.unwrap(), b.unwrap(), c.unwrap());
    assert!(a.body == b.body && b.body == c.body);
    let blobs = std::fs::read_dir(world.folder.path().join("blobs/common")).unwrap().count();
    assert_eq!(blobs, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_used_once_in_time_by_its_owner_only() {
    let world = World::new().await;
    world.publish("tool", &sample(1000)).await;
    let processor = Processor::new(&world.pki);
    let (ann, bob) = (world.log_in("ann").await, world.log_in("bob").await);
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    let ticket = ann.ticket(order.order).await.unwrap().ticket;
    assert_eq!(code(bob.receive_with(ticket, &order, &processor).await), Code::TicketInvalid, "a foreign ticket");
    ann.receive_with(ticket, &order, &processor).await.expect("her own, which bob could not use up");
    assert_eq!(code(ann.receive_with(ticket, &order, &processor).await), Code::TicketInvalid, "a replay");
    assert_eq!(code(ann.receive_with(Digest([1; 32]), &order, &processor).await), Code::TicketInvalid, "an invented one");
    let late = ann.ticket(order.order).await.unwrap().ticket;
    world.pass(61);
    assert_eq!(code(ann.receive_with(late, &order, &processor).await), Code::TicketInvalid, "a late one");
    let not_agreed = chipbound_wire::api::NewOrder {
        program: "tool".to_owned(),
        version: None,
        processor: processor.id(),
        key_mode: None,
        again: false,
    };
    let not_agreed = ann.place("not-agreed", &not_agreed).await.unwrap();
    assert_eq!(code(ann.ticket(not_agreed.order).await), Code::OrderState, "without a hold there is no ticket");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_ticket_the_line_says_nothing_and_does_no_handshake() {
    let world = World::new().await;
    world.publish("tool", &sample(1000)).await;
    let processor = Processor::new(&world.pki);
    let ann = world.log_in("ann").await;
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    let used = ann.ticket(order.order).await.unwrap().ticket;
    ann.receive_with(used, &order, &processor).await.unwrap();
    let line = world.line;
    tokio::task::spawn_blocking(move || {
        let client_hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3].repeat(10);
        for (what, greeting) in [
            ("an invented ticket", [b"cbl1".as_slice(), &[9; 32], &client_hello].concat()),
            ("a used ticket", [b"cbl1".as_slice(), &used.0, &client_hello].concat()),
            ("no magic", client_hello.clone()),
        ] {
            let mut tcp = TcpStream::connect(line).unwrap();
            tcp.write_all(&greeting).unwrap();
            assert_eq!(read_out(tcp), b"", "{what}");
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_processor_of_the_order_is_delivered_to() {
    let world = World::new().await;
    world.publish("tool", &sample(1000)).await;
    let (right, wrong) = (Processor::new(&world.pki), Processor::new(&world.pki));
    let ann = world.log_in("ann").await;
    let order = ann.buy("tool", right.id(), KeyMode::Direct).await;
    // An honest processor refuses a confirmation for another one by itself; this one is asked with a confirmation of its own.
    let own = ann.buy("tool", wrong.id(), KeyMode::Direct).await;
    let ticket = ann.ticket(order.order).await.unwrap().ticket;
    assert_eq!(code(ann.receive_with(ticket, &own, &wrong).await), Code::ProcessorMismatch);
    // And the right processor with the ticket of another order:
    let second = ann.buy("tool", right.id(), KeyMode::Direct).await;
    let ticket = ann.ticket(order.order).await.unwrap().ticket;
    assert_eq!(code(ann.receive_with(ticket, &second, &right).await), Code::OrderMismatch);
}

#[tokio::test(flavor = "multi_thread")]
async fn processors_without_a_good_certificate_are_refused_by_name() {
    let world = World::new().await;
    world.publish("tool", &sample(1000)).await;
    let ann = world.log_in("ann").await;
    let pair = || SealingKeyPair::generate(Kem::XWing, &mut SystemRandom);
    let of = |not_before: Option<Time>, not_after: Option<Time>| {
        let pair = pair();
        let sealing = SealingKeys { class: Class::Software, keys: List::new(vec![pair.sealing_key()]).unwrap() };
        let wanted = Wanted { sealing: Some(sealing), not_before, not_after, ..Wanted::role(Role::Processor) };
        Arc::new(Processor::of(world.pki.holder_of(&wanted), vec![pair], world.pki.trust()))
    };
    let now = world.now();
    let revoked = Processor::new(&world.pki);
    world.trust.replace(world.pki.trust().with_revocations(&world.pki.revocations(&[&revoked.holder])).unwrap());
    let stranger = Pki::new(now);
    let foreign = {
        let pair = pair();
        Arc::new(Processor::of(stranger.processor(vec![pair.sealing_key()]), vec![pair], world.pki.trust()))
    };
    for (what, processor, refused) in [
        ("revoked", revoked, Code::CertificateRevoked),
        ("expired", of(Some(Time(now.0 - 100)), Some(Time(now.0 - 1))), Code::CertificateExpired),
        ("not yet valid", of(Some(now.after(1000)), None), Code::CertificateNotYetValid),
        ("foreign", foreign, Code::CertificateForeign),
    ] {
        let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
        assert_eq!(code(ann.receive(&order, &processor).await), refused, "{what}");
    }
    assert_eq!(ann.money().await, (0, 1000), "held, not taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_list_past_its_age_stops_deliveries() {
    let world = World::new().await;
    world.publish("tool", &sample(1000)).await;
    let processor = Processor::new(&world.pki);
    let ann = world.log_in("ann").await;
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    let stale = world.pki.revocations_until(&[], Time(world.now().0 - 1));
    world.trust.replace(world.pki.trust().with_revocations(&stale).unwrap());
    assert_eq!(code(ann.receive(&order, &processor).await), Code::RevocationListStale);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_revoked_after_delivery_brings_no_charge() {
    let world = World::new().await;
    world.publish("tool", &sample(1000)).await;
    let processor = Processor::new(&world.pki);
    let ann = world.log_in("ann").await;
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    let delivered = ann.receive(&order, &processor).await.unwrap();
    world.trust.replace(world.pki.trust().with_revocations(&world.pki.revocations(&[&processor.holder])).unwrap());
    assert_eq!(code(ann.acknowledge(order.order, &delivered.acknowledgement).await), Code::CertificateRevoked);
    assert_eq!(ann.money().await, (750, 250));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_both_sides_cannot_do_is_refused_before_a_byte_is_sealed() {
    let policy = Policy { suites: vec!["x-wing+aes-256-gcm".parse().unwrap()], ..Policy::default() };
    let world = World::with(policy).await;
    world.publish("tool", &sample(1000)).await;
    let ann = world.log_in("ann").await;
    let limited: [(&str, Arc<Processor>, Code); 4] = [
        ("suite", Processor::only(&world.pki, |c| c.suites = vec!["dhkem-p256+aes-256-gcm".parse().unwrap()]), Code::NothingInCommon),
        ("format", Processor::only(&world.pki, |c| c.formats = vec![Format::ElfX8664]), Code::NothingInCommon),
        ("key mode", Processor::only(&world.pki, |c| c.key_modes = vec![KeyMode::Common]), Code::NothingInCommon),
        ("size", Processor::only(&world.pki, |c| c.max_plain_size = 999), Code::TooLarge),
    ];
    for (what, processor, refused) in limited {
        let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
        assert_eq!(code(ann.receive(&order, &processor).await), refused, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_is_the_first_of_the_servers_policy_that_the_processor_offers() {
    let order_of = ["dhkem-p256+chacha20-poly1305", "x-wing+aes-256-gcm"];
    let world = World::with(Policy { suites: order_of.map(|s| s.parse().unwrap()).to_vec(), ..Policy::default() }).await;
    world.publish("tool", &sample(1000)).await;
    let ann = world.log_in("ann").await;
    let all = Processor::new(&world.pki);
    let order = ann.buy("tool", all.id(), KeyMode::Direct).await;
    assert_eq!(ann.receive(&order, &all).await.unwrap().terms.suite.to_string(), order_of[0]);
    let aes = Processor::only(&world.pki, |c| c.suites.retain(|s| s.aead == Aead::Aes256Gcm));
    let order = ann.buy("tool", aes.id(), KeyMode::Direct).await;
    assert_eq!(ann.receive(&order, &aes).await.unwrap().terms.suite.to_string(), order_of[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_beyond_the_limit_are_refused_as_busy_and_keep_their_ticket() {
    let world = World::with(Policy { deliveries: 1, ..Policy::default() }).await;
    world.publish("tool", &sample(1000)).await;
    let processor = Processor::new(&world.pki);
    let ann = world.log_in("ann").await;
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    // A processor that dials, shows its ticket and then says nothing holds the only place.
    let ticket = ann.ticket(order.order).await.unwrap().ticket;
    let silent = dial(world.line, &ticket);
    while world.free_places() > 0 {
        tokio::task::yield_now().await;
    }
    let ticket = ann.ticket(order.order).await.unwrap().ticket;
    assert_eq!(code(ann.receive_with(ticket, &order, &processor).await), Code::Busy);
    drop(silent);
    while world.free_places() == 0 {
        tokio::task::yield_now().await;
    }
    let delivered = ann.receive_with(ticket, &order, &processor).await;
    delivered.expect("with the ticket that was refused as busy before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_changed_the_program_is_found_out_and_nothing_is_charged() {
    let world = World::new().await;
    let plain = sample(100_000);
    world.publish("tool", &plain).await;
    let blob = std::fs::read_dir(world.folder.path().join("blobs/plain")).unwrap().next().unwrap().unwrap().path();
    let mut changed = plain.clone();
    changed[50_000] ^= 1;
    std::fs::write(&blob, changed).unwrap();
    let processor = Processor::new(&world.pki);
    let ann = world.log_in("ann").await;
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    assert_eq!(code(ann.receive(&order, &processor).await), Code::PlaintextMismatch);
    let order: Order = ann.get(&format!("/v1/orders/{}", order.order)).await.unwrap();
    assert!(order.receipt.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_replaced_between_two_deliveries_sign_the_next_one() {
    let world = World::new().await;
    world.publish("tool", &sample(1000)).await;
    let processor = Processor::new(&world.pki);
    let ann = world.log_in("ann").await;
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await;
    ann.receive(&order, &processor).await.unwrap();
    let second = server_identity(&world.pki, Role::ServerSecondPath, "shop");
    let before = world.keys.get();
    world.keys.renewed(Role::ServerSecondPath, before.second_path.chain.clone());
    assert_ne!(second.key.key_id(), before.second_path.key.key_id());
    ann.receive(&order, &processor).await.expect("a renewed chain of the same key");
}

/// One end of a wire in memory.
struct Wire {
    out: std::sync::mpsc::Sender<Vec<u8>>,
    incoming: std::sync::mpsc::Receiver<Vec<u8>>,
    rest: std::io::Cursor<Vec<u8>>,
}

impl Wire {
    fn pair() -> (Self, Self) {
        let ((a, b), (c, d)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
        let end = |out, incoming| Self { out, incoming, rest: std::io::Cursor::default() };
        (end(a, d), end(c, b))
    }
}

impl std::io::Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.rest.read(buf)?;
        if n > 0 || buf.is_empty() {
            return Ok(n);
        }
        match self.incoming.recv() {
            Ok(bytes) => self.rest = std::io::Cursor::new(bytes),
            Err(_) => return Ok(0),
        }
        self.rest.read(buf)
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.out.send(buf.to_vec()).map(|()| buf.len()).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_runs_over_any_stream_and_both_ends_name_the_same_refusal() {
    let world = World::new().await;
    let plain = sample(500_000);
    world.publish("tool", &plain).await;
    let ann = world.log_in("ann").await;
    let good = Processor::new(&world.pki);
    let poor = Processor::only(&world.pki, |c| c.max_plain_size = 1);
    let order = ann.buy("tool", good.id(), KeyMode::Direct).await;
    let second = ann.buy("tool", poor.id(), KeyMode::Direct).await;
    for (order, processor, refused) in [(order, good, None), (second, poor, Some(Code::TooLarge))] {
        let account = ann.get::<chipbound_wire::api::Account>("/v1/account").await.unwrap().account;
        let ticket = Digest::of(&ann.ticket(order.order).await.unwrap().ticket.0);
        let stored = world.repository.redeem_ticket(ticket, Some(account), world.now()).await.unwrap();
        let (ours, theirs) = Wire::pair();
        let (server, runtime, now) = (world.server.clone(), tokio::runtime::Handle::current(), world.now());
        let delivering = tokio::task::spawn_blocking(move || chipbound_server::deliver::deliver(&server, &stored, ours, &runtime));
        let receiving = tokio::task::spawn_blocking(move || processor.receive(theirs, &order.confirmation.0, now));
        let (delivered, received) = (delivering.await.unwrap(), receiving.await.unwrap());
        match (delivered, received) {
            (Ok(()), Ok(received)) => assert!(refused.is_none() && received.plain == plain),
            (Err(ours), Err(theirs)) => {
                assert_eq!((Some(ours.code), Some(theirs.code)), (refused, refused));
                assert_eq!(ours.detail, theirs.detail, "in the same words");
            }
            (delivered, received) => panic!("only one end refused: {delivered:?}, {:?}", received.map(drop)),
        }
    }
}
