//! Attacks on the whole system that need its real daemons; what one room can show alone is in that room's own tests
//! (docs/source-map.md has the list).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound_wire::Code;
use common::{AUTHORITY, CHIPBOUND, PROCESSOR, SERVER, World, good, json_lines, refused, refused_at, script};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A processor that is genuine elsewhere: another authority certified it (A4, A5). The command finds out before it agrees; how server
/// and processor refuse each other is in `session`'s tests.
#[test]
fn for_a_processor_of_another_authority_nothing_is_agreed_to_and_nothing_held() {
    let (world, other) = (World::start("", 1), World::start("", 1));
    world.publish(Path::new("/bin/ls"), "ls", "1", &[]);
    let foreign = other.daemons.sockets[0].to_str().unwrap();
    for line in [&[][..], &["--own-line"]] {
        refused(world.ada(&["buy", "ls", "--processor", foreign]).args(line), Code::CertificateForeign);
        assert_eq!(world.balance(), ("100.00 EUR".into(), "0.00 EUR".into()));
    }
    good(world.ada(&["buy", "ls"]));
}

/// Whoever has no voucher, or one for something else, gets no certificate (A4, A28).
#[test]
fn a_processor_without_a_good_voucher_is_certified_by_nobody_and_all_three_say_so() {
    let world = World::start("", 1);
    let voucher = |role| world.runtime.block_on(world.daemons.voucher(role)).unwrap();
    let mut made_up = voucher("processor");
    made_up.replace_range(5..6, if &made_up[5..6] == "a" { "b" } else { "a" });
    for voucher in [made_up, voucher("vendor")] {
        let socket = world.daemons.sockets[0].to_str().unwrap();
        let enroll = ["processor", "enroll", "--authority", &world.daemons.authority_url, "--voucher", &voucher, "--socket", socket];
        refused_at(&world, &[AUTHORITY, PROCESSOR], world.ada(&enroll), Code::VoucherInvalid);
    }
}

/// A processor that was withdrawn after it was enrolled (A5, A24).
#[test]
fn a_revoked_processor_buys_nothing_and_both_ends_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let impatient = folder.path().join("chipbound");
    let text = format!(
        "#!/bin/sh\nif [ \"$1 $2\" = 'server run' ]; then sed -i 's/^# refresh_seconds.*/refresh_seconds = 1/' \"$4\"; fi\nexec '{CHIPBOUND}' \"$@\""
    );
    script(&impatient, &text);
    let world = World::start_by(&impatient, "", 2);
    world.publish(Path::new("/bin/ls"), "ls", "1", &[]);
    let shown = json_lines(&good(world.ada(&["--json", "processor", "show"]))).remove(0);
    let list = world.folder.path().join("server/keys/revocations.der");
    let before = fs::read(&list).unwrap();
    let mut revoke = world.as_user("root", &["authority", "revoke", "--key", shown["processor"].as_str().unwrap(), "--config"]);
    good(revoke.arg(world.folder.path().join("authority/authority.toml")));
    while fs::read(&list).unwrap() == before {
        std::thread::sleep(Duration::from_millis(50));
    }
    for line in [&[][..], &["--own-line"]] {
        let before = world.log(SERVER).len();
        // The server looked; an alert told the processor, which told the customer.
        let said = refused_at(&world, &[PROCESSOR], world.ada(&["buy", "ls"]).args(line), Code::CertificateRevoked);
        assert!(said.contains("the other side says: our certificate was revoked"), "{said}");
        let own = |line: &str| line.contains("a delivery ended early") && line.contains("=certificate_revoked: ");
        world.awaits(SERVER, before, own, "certificate_revoked");
        // A hold that runs out goes back; nothing is taken.
        assert_eq!((world.balance().1.as_str(), world.receipts(), world.names().len()), ("10.00 EUR", 0, 0));
    }
    good(world.ada(&["buy", "ls", "--processor", world.daemons.sockets[1].to_str().unwrap()]));
}

/// Whoever broke into the server changes the vendor's program where it lies (A21).
#[test]
fn a_program_changed_on_the_servers_disk_is_not_acknowledged_and_not_charged() {
    let world = World::start("", 1);
    world.publish(Path::new("/bin/ls"), "ls", "1", &[]);
    let plain = world.folder.path().join("server/blobs/plain");
    let blob = fs::read_dir(plain).unwrap().next().unwrap().unwrap().path();
    let mut program = fs::read(&blob).unwrap();
    let middle = program.len() / 2;
    program[middle] ^= 1;
    fs::write(&blob, &program).unwrap();
    for mode in ["direct", "common"] {
        refused_at(&world, &[SERVER, PROCESSOR], world.ada(&["buy", "ls", "--key-mode", mode]), Code::PlaintextMismatch);
        assert_eq!((world.receipts(), world.names().len()), (0, 0));
    }
    program[middle] ^= 1;
    fs::write(&blob, &program).unwrap();
    good(world.ada(&["buy", "ls", "--key-mode", "direct"]));
    assert_eq!((world.balance().0.as_str(), world.receipts()), ("80.00 EUR", 1), "10 EUR taken, 10 EUR still held for the other wish");
}
