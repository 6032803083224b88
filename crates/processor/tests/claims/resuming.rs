//! Deliveries that were cut short and go on, and what hostile disks and servers make of that.

use crate::world::{Lies, Prepared, Shipment, World, sample};
use chipbound_processor::spool::KEPT_FROM;
use chipbound_trusted_core::open_package;
use chipbound_wire::Code;
use chipbound_wire::limits::MAX_CHUNK;
use std::path::PathBuf;
use std::sync::Arc;

/// Chunks of the body, and those that come before the line is cut.
const CHUNKS: usize = 9;
const CAME: usize = 5;

/// A world in which a delivery was cut short, its order, and its one encryption.
fn cut_short() -> (World, Shipment, Arc<Prepared>) {
    let mut world = World::new();
    let shipment = world.ship(&sample((CHUNKS - 1) * MAX_CHUNK + 5000), |_| {});
    let prepared = world.prepare(&shipment);
    assert_eq!(prepared.chunks.len(), CHUNKS);
    let lies = Lies { cut_after: Some(CAME), ..again(&prepared) };
    let (held, _) = world.deliver(&shipment, &lies);
    assert_eq!(held.expect_err("cut").code, Code::TimedOut);
    world.restart();
    let [waiting] = &world.us.spool.waiting().expect("read")[..] else { panic!("one waits") };
    assert_eq!((waiting.order, waiting.done), (shipment.order, (CAME * MAX_CHUNK) as u64));
    assert_eq!((waiting.goods.size, waiting.goods.uid, waiting.goods.title.as_str()), (shipment.plaintext.len() as u64, 7, "tool 1.0"));
    (world, shipment, prepared)
}

fn again(prepared: &Arc<Prepared>) -> Lies {
    Lies { prepared: Some(Arc::clone(prepared)), ..Lies::default() }
}

/// The file in the spool with this extension.
fn spooled(world: &World, extension: &str) -> PathBuf {
    let found = world.spool().into_iter().find(|p| p.extension().is_some_and(|e| e == extension));
    found.expect("it is there")
}

/// The delivery comes to its end and the package opens.
fn ends_well(world: &World, shipment: &Shipment, lies: &Lies) {
    let (held, delivered) = world.deliver(shipment, lies);
    let (mut held, delivered) = (held.expect("received"), delivered.expect("delivered"));
    let token = world.token(shipment, &delivered, |_| {});
    let (mut file, _) = held.release(&token, &world.us).expect("released");
    let mut package = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut package).expect("read");
    let opened = open_package(package.as_slice(), &world.us.vault, &*world.us.vault.keys(), &world.root(), true).expect("opens");
    let mut plain = vec![0; shipment.plaintext.len()];
    chipbound_sealing::ReadAt::read_exact_at(&opened.plaintext, &mut plain, 0).expect("read");
    assert!(plain == shipment.plaintext);
    held.taken();
    assert!(world.spool().is_empty(), "nothing stays in the spool");
}

#[test]
fn a_delivery_goes_on_after_a_restart_with_the_chunks_that_are_missing() {
    let (world, shipment, prepared) = cut_short();
    // The server of the test sends what follows the offered bytes: were they fewer, these would not be enough.
    let lies = Lies { cut_after: Some(CHUNKS - CAME), ..again(&prepared) };
    ends_well(&world, &shipment, &lies);
}

#[test]
fn a_body_that_is_whole_gets_a_new_seal_and_no_byte_more() {
    let mut world = World::new();
    let shipment = world.ship(&sample(5 * MAX_CHUNK), |_| {});
    let prepared = world.prepare(&shipment);
    let (held, first) = world.deliver(&shipment, &again(&prepared));
    drop(held.expect("received")); // The client was killed before it had the token.
    world.restart();
    let lies = Lies { cut_after: Some(0), ..again(&prepared) };
    let (held, second) = world.deliver(&shipment, &lies);
    let (first, second) = (first.expect("delivered"), second.expect("delivered"));
    assert!(first.terms == second.terms && first.seal != second.seal, "only the seal names the session");
    drop(held);
    ends_well(&world, &shipment, &lies);
}

#[test]
fn a_server_that_begins_anew_is_followed_and_what_was_kept_goes() {
    let (world, shipment, _) = cut_short();
    let others = world.prepare(&shipment);
    ends_well(&world, &shipment, &again(&others));
}

/// What somebody makes of the files of a delivery that was cut short.
type Attack<'a> = &'a dyn Fn(&World, &Shipment);

#[test]
fn what_was_changed_on_the_disk_is_thrown_away_by_name() {
    let flip = |path: PathBuf, at: usize| {
        let mut bytes = std::fs::read(&path).expect("read");
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).expect("written");
    };
    let table = |world: &World, shipment: &Shipment| {
        let layout = chipbound_sealing::Layout::of(shipment.profile, &shipment.plaintext).expect("a layout");
        flip(spooled(world, "delivery"), shipment.plaintext.len() + layout.encode().len() + 3);
    };
    let claim_more = |world: &World, _: &Shipment| {
        let path = spooled(world, "progress");
        let mut bytes = std::fs::read(&path).expect("read");
        bytes[40..48].copy_from_slice(&((CAME as u64 + 2) * MAX_CHUNK as u64).to_be_bytes());
        std::fs::write(&path, bytes).expect("written");
    };
    let attacks: [(&str, Attack<'_>); 3] =
        [("a byte", &|world, _| flip(spooled(world, "delivery"), MAX_CHUNK + 9)), ("a tag", &table), ("more than came", &claim_more)];
    for (what, attack) in attacks {
        let (world, shipment, prepared) = cut_short();
        attack(&world, &shipment);
        let (held, _) = world.deliver(&shipment, &again(&prepared));
        assert_eq!(held.expect_err(what).code, Code::KeptPartAltered, "{what}");
        assert!(world.spool().is_empty() && world.us.vault.remembered() == 0, "{what}");
        ends_well(&world, &shipment, &again(&prepared));
    }
}

#[test]
fn wrong_bytes_after_what_was_kept_are_refused_and_nothing_is_acknowledged() {
    let (world, shipment, prepared) = cut_short();
    let flip = |mut chunks: Vec<crate::world::Sent>| {
        chunks[CAME + 1].bytes[5] ^= 1;
        chunks
    };
    let (held, _) = world.deliver(&shipment, &Lies { chunks: flip, ..again(&prepared) });
    let refusal = held.expect_err("a flipped byte");
    assert_eq!(refusal.code, Code::KeptPartAltered);
    assert!(refusal.detail.contains("page_altered"), "{refusal}");
    assert!(world.spool().is_empty() && world.us.vault.remembered() == 0);
}

#[test]
fn a_small_delivery_is_not_kept() {
    let world = World::new();
    let shipment = world.ship(&sample(KEPT_FROM as usize - 1), |_| {});
    let prepared = world.prepare(&shipment);
    let (held, _) = world.deliver(&shipment, &Lies { cut_after: Some(2), ..again(&prepared) });
    assert_eq!(held.expect_err("cut").code, Code::TimedOut);
    assert!(world.spool().is_empty());
}
