//! A purchase moves to another processor at no charge, and its own never opens it again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound_wire::Code;
use common::{PROCESSOR, SERVER, World, good, json_lines, noise, refused};

/// Two processors, and a purchase for the first: its order, and the key of the second.
fn bought() -> (World, String, String) {
    let world = World::start("", 2);
    noise(&world.work("data"), 70_000);
    world.publish(&world.work("data"), "data", "1", &["--open-to-file"]);
    good(world.ada(&["buy", "data", "-o", "first"]));
    good(world.ada(&["open", "first", "-o", "opened"]));
    let order = json_lines(&good(world.ada(&["--json", "receipts"])))[0]["order"].as_str().unwrap().to_owned();
    let second = world.daemons.sockets[1].to_str().unwrap().to_owned();
    (world, order, second)
}

fn on_the_second(world: &World, order: &str, second: &str, name: &str) {
    good(world.ada(&["redownload", order, "-o", name, "--processor", second]));
    let opened = good(world.ada(&["open", name, "-o", "-", "--processor", second])).stdout;
    assert_eq!(opened, std::fs::read(world.work("data")).unwrap());
    assert_eq!((world.balance().0.as_str(), world.receipts()), ("90.00 EUR", 1), "no second charge");
}

#[test]
fn a_transferred_purchase_opens_on_the_new_processor_and_never_again_on_the_old_one() {
    let (world, order, second) = bought();
    refused(world.ada(&["redownload", &order, "-o", "none", "--processor", &second]), Code::ProcessorMismatch);
    let told = json_lines(&good(world.ada(&["--json", "transfer", &order, "--to", &second])));
    let done = told.last().unwrap();
    assert_eq!(done["order"].as_str(), Some(order.as_str()));
    // A repeat is harmless and says the same, whether it names the processor by its socket or by its key.
    let again = json_lines(&good(world.ada(&["--json", "transfer", &order, "--to", done["to"].as_str().unwrap()])));
    assert_eq!(again.last().unwrap()["to"], done["to"]);
    refused(world.ada(&["open", "first", "-o", "no"]), Code::OrderRetired);
    refused(world.ada(&["redownload", &order, "-o", "none"]), Code::ProcessorMismatch);
    on_the_second(&world, &order, &second, "moved");
    // Nobody pays for it twice by habit, here or there.
    let said = refused(world.ada(&["buy", "data", "-o", "no"]), Code::AlreadyBought);
    assert!(said.contains("which was transferred to processor"), "{said}");
    let said = refused(world.ada(&["buy", "data", "-o", "no", "--processor", &second]), Code::AlreadyBought);
    assert!(said.contains("which is for this processor since it was transferred"), "{said}");
    let verified = world.ada(&["verify", "first"]).output().unwrap();
    assert!(String::from_utf8_lossy(&verified.stderr).contains("does not open here any more"), "{verified:?}");
    // It does not come back: the first gave it up for ever. The second keeps it.
    let first = world.daemons.sockets[0].to_str().unwrap();
    refused(world.ada(&["transfer", &order, "--to", first, "--processor", &second]), Code::OrderRetired);
    good(world.ada(&["open", "moved", "-o", "-", "--processor", &second]));
    assert!(world.log(SERVER).contains("transferred") && world.log(PROCESSOR).contains("gave the order up"));
}

#[test]
fn a_purchase_moved_to_a_mistyped_key_is_moved_on_by_its_buyer() {
    let (world, order, second) = bought();
    let shown = json_lines(&good(world.ada(&["--json", "processor", "show", "--processor", &second])));
    let key = shown.last().unwrap()["processor"].as_str().unwrap().to_owned();
    let mistyped = format!("{}{}", &key[..63], if key.ends_with('0') { '1' } else { '0' });
    good(world.ada(&["transfer", &order, "--to", &mistyped]));
    refused(world.ada(&["redownload", &order, "-o", "none", "--processor", &second]), Code::ProcessorMismatch);
    good(world.ada(&["transfer", &order, "--to", &key]));
    on_the_second(&world, &order, &second, "moved");
    refused(world.ada(&["transfer", &order, "--to", &mistyped, "--processor", &second]), Code::OrderRetired);
}

#[test]
fn a_purchase_of_a_revoked_processor_moves_without_its_word() {
    let (mut world, order, second) = bought();
    let from = json_lines(&good(world.ada(&["--json", "receipts"])))[0]["processor"].as_str().unwrap().to_owned();
    let config = world.folder.path().join("authority/authority.toml");
    let config = config.to_str().unwrap();
    good(world.ada(&["authority", "revoke", "--config", config, "--key", &from]));
    world.daemons.daemons[PROCESSOR].kill(); // Nobody is there to be asked.
    let mut moved = false;
    for _ in 0..400 {
        // Within the time in which the server reads revocation lists.
        moved = world.ada(&["transfer", &order, "--to", &second]).output().unwrap().status.success();
        if moved {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert!(moved, "{}", world.log(SERVER));
    on_the_second(&world, &order, &second, "moved");
}
