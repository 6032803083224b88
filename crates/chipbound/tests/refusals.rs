//! What the command says when something is refused: code, reason, what to do, exit code; and that nothing was charged for it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound_wire::api::Ticket;
use chipbound_wire::{Code, OrderId};
use common::{DEPOSIT, PASSWORD, PROCESSOR, SERVER, World, flipped, good, json_lines, refused, refused_at};
use std::path::Path;
use std::process::Command;

#[test]
fn nobody_gets_in_with_a_wrong_password_or_without_a_log_in() {
    let world = World::start("", 1);
    let (url, root) = (world.daemons.server_url.clone(), world.daemons.tls_root());
    std::fs::write(world.work("wrong"), "guess\n").unwrap();
    std::fs::write(world.work("right"), PASSWORD).unwrap();
    let login = |user: &str, file: &str, root: Option<&Path>| {
        let mut command = world.as_user("nobody", &["login", &url, "--user", user, "--password-file", file]);
        if let Some(root) = root {
            command.arg("--tls-root").arg(root);
        }
        command
    };
    let wrong = refused_at(&world, &[SERVER], login("ada", "wrong", Some(&root)), Code::WrongCredentials);
    let unknown = refused_at(&world, &[SERVER], login("nobody", "right", Some(&root)), Code::WrongCredentials);
    assert_eq!(wrong, unknown, "whether a user exists is not told");
    refused(login("ada", "right", None), Code::ServerUntrusted);
    refused(world.as_user("nobody", &["balance"]), Code::Unauthenticated);
    good(login("ada", "right", Some(&root)));
    good(world.as_user("nobody", &["balance"]));
    good(world.as_user("nobody", &["logout"]));
    refused(world.as_user("nobody", &["balance"]), Code::Unauthenticated);
    good(world.as_user("nobody", &["logout"]));
    good(world.ada(&["balance"]));
}

#[test]
fn a_token_that_was_logged_out_does_not_count_any_more() {
    let world = World::start("", 1);
    let session = std::fs::read(world.home("ada").path().join("session.json")).unwrap();
    good(world.ada(&["logout"]));
    chipbound_host::files::write_durably(&world.home("ada").path().join("session.json"), &session, 0o600).unwrap();
    refused_at(&world, &[SERVER], world.ada(&["balance"]), Code::Unauthenticated);
}

#[test]
fn what_cannot_be_bought_is_refused_before_anything_is_held() {
    let world = World::start("", 1);
    world.publish(Path::new("/bin/ls"), "busybox", "1", &[]);
    let said = refused(world.ada(&["buy", "busybx"]), Code::UnknownProgram);
    assert!(said.contains("did you mean busybox?"), "{said}");
    refused_at(&world, &[SERVER], world.ada(&["buy", "busybox", "--version", "9"]), Code::UnknownProgram);
    let said = refused(world.ada(&["buy", "busybox", "--max-price", "9.99 EUR"]), Code::PriceExceeded);
    assert!(said.contains("10.00 EUR"), "{said}");
    refused(world.ada(&["buy", "busybox", "--max-price", "50 USD"]), Code::PriceExceeded);
    refused(world.ada(&["buy", "busybox", "--processor", "/nowhere"]), Code::ProcessorUnreachable);
    refused_at(&world, &[SERVER], world.as_user("acme", &["buy", "busybox"]), Code::Forbidden);
    std::fs::write(world.work("busybox"), "mine").unwrap();
    refused(world.ada(&["buy", "busybox"]), Code::Conflict);
    let said = refused(world.ada(&["buy", "busybox", "-o", "/nowhere/busybox"]), Code::Io);
    assert!(said.contains("cannot create /nowhere/busybox"), "{said}");
    refused(world.ada(&["buy", "busybox", "-o", "/dev/null"]), Code::Conflict);
    assert_eq!((world.balance().0.as_str(), world.receipts()), (DEPOSIT, 0), "nothing is held for what could not be stored");
    assert_eq!(std::fs::read(world.work("busybox")).unwrap(), b"mine");
    good(world.ada(&["buy", "busybox", "-o", "bought"])); // Nothing of the wrong places is remembered.
    assert_eq!((world.balance().0.as_str(), world.receipts()), ("90.00 EUR", 1));
}

#[test]
fn without_money_nothing_is_delivered_and_with_it_the_same_order_goes_on() {
    let world = World::start("", 1);
    let dear = |more: &[&str]| {
        let mut command = world.as_user("acme", &["publish", "/bin/ls", "--name", "ls", "--version", "1", "--price", "150 EUR"]);
        good(command.args(["--class", "software"]).args(more));
    };
    dear(&[]);
    refused_at(&world, &[SERVER], world.ada(&["buy", "ls"]), Code::InsufficientFunds);
    assert_eq!(world.balance(), ("100.00 EUR".into(), "0.00 EUR".into()));
    let config = world.folder.path().join("server/server.toml");
    good(world.ada(&["account", "deposit", "--user", "ada", "--amount", "60 EUR", "--config"]).arg(&config));
    world.buy("ls", &[]);
    assert_eq!(world.balance(), ("10.00 EUR".into(), "0.00 EUR".into()));
}

#[test]
fn a_purchase_that_a_receipt_would_give_for_nothing_is_refused_and_the_receipt_gives_it() {
    let world = World::start("", 2);
    world.publish(Path::new("/bin/ls"), "ls", "1", &[]);
    world.buy("ls", &[]);
    let said = refused(world.ada(&["buy", "ls", "-o", "second"]), Code::AlreadyBought);
    let order = said.split("order ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    for (number, (named, way)) in [(order.as_str(), &[][..]), ("1", &["--own-line"])].into_iter().enumerate() {
        good(world.ada(&["redownload", named, "-o", &format!("again-{number}")]).args(way));
        good(world.ada(&["run", &format!("./again-{number}"), "--version"]));
        assert_eq!((world.balance().0.as_str(), world.receipts()), ("90.00 EUR", 1), "no second charge, no second receipt");
    }

    refused(world.ada(&["redownload", "2", "-o", "none"]), Code::UnknownOrder);
    let second = world.daemons.sockets[1].to_str().unwrap();
    let second = world.ada(&["redownload", &order, "-o", "stolen", "--processor", second]);
    refused_at(&world, &[PROCESSOR + 1], second, Code::ProcessorMismatch);
    let kept = world.home("ada").receipt_path(&order.parse::<OrderId>().unwrap());
    world.runtime.block_on(async {
        world.daemons.account("eve", "customer", PASSWORD, Some("100 EUR")).await.unwrap();
        world.daemons.log_in("eve", PASSWORD).await.unwrap();
    });
    let stolen = world.as_user("eve", &["redownload", kept.to_str().unwrap(), "-o", "stolen"]);
    refused_at(&world, &[SERVER], stolen, Code::AccountMismatch);
    let size = std::fs::metadata(&kept).unwrap().len() as usize;
    flipped(&kept, &world.work("altered"), size - 1);
    refused_at(&world, &[SERVER], world.ada(&["redownload", "altered", "-o", "stolen"]), Code::SignatureInvalid);
    assert!(!world.work("stolen").exists());

    good(world.ada(&["buy", "ls", "--again", "-o", "paid-again"]));
    assert_eq!((world.balance().0.as_str(), world.receipts()), ("80.00 EUR", 2));
}

#[test]
fn a_machine_that_lost_its_receipts_pays_nothing_twice_and_fetches_them() {
    let world = World::start("", 2);
    world.publish(Path::new("/bin/ls"), "ls", "1", &[]);
    world.buy("ls", &[]);
    let order = json_lines(&good(world.ada(&["--json", "receipts"])))[0]["order"].as_str().unwrap().to_owned();
    let receipts = world.home("ada").receipt_path(&order.parse::<OrderId>().unwrap()).parent().unwrap().to_owned();
    std::fs::remove_dir_all(&receipts).unwrap();
    let said = refused(world.ada(&["buy", "ls", "-o", "second"]), Code::AlreadyBought);
    assert!(said.contains(&order) && said.contains("chipbound redownload"), "{said}");
    good(world.ada(&["redownload", &order, "-o", "second"]));
    good(world.ada(&["run", "./second", "--version"]));
    // The other processor's is another copy, for another price. Once the order moved there, it is not.
    let second = world.daemons.sockets[1].to_str().unwrap();
    std::fs::remove_dir_all(&receipts).unwrap();
    good(world.ada(&["transfer", &order, "--to", second]));
    std::fs::remove_dir_all(&receipts).unwrap();
    let said = refused(world.ada(&["buy", "ls", "-o", "third", "--processor", second]), Code::AlreadyBought);
    assert!(said.contains("since it was transferred"), "{said}");
    good(world.ada(&["redownload", &order, "-o", "third", "--processor", second]));
    assert_eq!((world.balance().0.as_str(), world.receipts()), ("90.00 EUR", 1), "no second charge");
    refused(world.ada(&["redownload", &"0".repeat(32), "-o", "none"]), Code::UnknownOrder);
}

#[test]
fn what_was_given_back_is_bought_again_like_anything_else() {
    let world = World::start("", 1);
    world.publish(Path::new("/bin/ls"), "ls", "1", &[]);
    world.buy("ls", &[]);
    let order = json_lines(&good(world.ada(&["--json", "receipts"])))[0]["order"].as_str().unwrap().to_owned();
    let config = world.folder.path().join("server/server.toml");
    good(world.ada(&["account", "refund", "--order", &order, "--config"]).arg(&config));
    let said = refused(world.ada(&["redownload", &order, "-o", "no"]), Code::OrderRefunded);
    assert!(said.contains("chipbound buy"), "{said}");
    assert_eq!(world.balance().0, DEPOSIT);
    good(world.ada(&["buy", "ls", "-o", "second"]));
    assert_eq!((world.balance().0.as_str(), world.receipts()), ("90.00 EUR", 2));
    refused(world.ada(&["buy", "ls", "-o", "third"]), Code::AlreadyBought);
}

#[test]
fn a_copy_for_one_processor_is_refused_by_the_other_and_damage_by_both_names() {
    let world = World::start("", 2);
    world.publish(Path::new("/bin/ls"), "ls", "1", &[]);
    let package = world.buy("ls", &[]);
    let second = world.daemons.sockets[1].to_str().unwrap();
    refused_at(&world, &[PROCESSOR + 1], world.ada(&["run", "--processor", second, "./ls"]), Code::ProcessorMismatch);
    refused_at(&world, &[PROCESSOR + 1], world.ada(&["inspect", "--processor", second, "./ls"]), Code::ProcessorMismatch);

    let here = |command: Command, code| drop(refused_at(&world, &[PROCESSOR], command, code));
    let sealed = chipbound_sealing::Package::read(&std::fs::File::open(&package).unwrap()).unwrap().layout;
    let range = sealed.sealed()[0];
    flipped(&package, &world.work("in-sealed"), (range.offset + range.len / 2) as usize);
    here(world.ada(&["run", "./in-sealed"]), Code::PageAltered);
    flipped(&package, &world.work("in-plain"), sealed.body_size() as usize - 1);
    here(world.ada(&["run", "./in-plain"]), Code::PlainPartsAltered);
    let bytes = std::fs::read(&package).unwrap();
    std::fs::write(world.work("short"), &bytes[..bytes.len() - 1]).unwrap();
    here(world.ada(&["run", "./short"]), Code::NotAPackage);
    std::fs::write(world.work("text"), "not a package").unwrap();
    here(world.ada(&["run", "./text"]), Code::NotAPackage);
    here(world.ada(&["run", "/bin/ls"]), Code::NotAPackage);
    refused(world.ada(&["run", "/tmp"]), Code::NotAPackage);
}

/// A9, A10: what a customer can do to the file on his disk; the ends are his terminal and his processor's log.
#[test]
fn a_package_edited_on_its_disk_does_not_start_and_terminal_and_log_say_the_same() {
    use object::{Object, ObjectSection};
    let world = World::start("", 1);
    world.publish(Path::new("/bin/ls"), "ls", "1", &[]);
    let package = std::fs::read(world.buy("ls", &[])).unwrap();
    let file = object::File::parse(&package[..]).unwrap();
    let at = |name: &str| file.section_by_name(name).unwrap_or_else(|| panic!("{name}")).file_range().unwrap().0 as usize;
    let code = at(".text") + 8192;
    let edit = |edited: &mut Vec<u8>, at: usize| edited[at] ^= 1;
    let swap = |edited: &mut Vec<u8>, _: usize| edited[code & !4095..(code & !4095) + 8192].rotate_left(4096);
    let drop_page = |edited: &mut Vec<u8>, at: usize| drop(edited.drain(at & !4095..(at & !4095) + 4096));
    type Edit<'a> = &'a dyn Fn(&mut Vec<u8>, usize);
    let edits: [(&str, Edit<'_>, usize, Code); 7] = [
        ("data", &edit, at(".data"), Code::PlainPartsAltered),
        ("init-array", &edit, at(".init_array"), Code::PlainPartsAltered),
        ("interpreter", &edit, at(".interp"), Code::PlainPartsAltered),
        ("relocations", &edit, at(".rela.dyn"), Code::PlainPartsAltered),
        ("flipped", &edit, code, Code::PageAltered),
        ("swapped", &swap, code, Code::PageAltered),
        ("dropped", &drop_page, code, Code::PackageTruncated),
    ];
    for (name, edit, at, code) in edits {
        let mut edited = package.clone();
        edit(&mut edited, at);
        std::fs::write(world.work(name), edited).unwrap();
        refused_at(&world, &[PROCESSOR], world.ada(&["run", &format!("./{name}")]), code);
    }
}

#[test]
fn a_ticket_opens_one_path_once_and_not_after_its_time() {
    let world = World::start("ticket_seconds = 1\n", 1);
    world.publish(Path::new("/bin/ls"), "ls", "1", &[]);
    let api = world.api();
    world.runtime.block_on(async {
        let processor = chipbound::control::describe(&world.daemons.sockets[0]).unwrap().processor;
        let wish = chipbound_wire::api::NewOrder { program: "ls".into(), version: None, processor, key_mode: None, again: false };
        let order = api.order("a-key", &wish).await.unwrap();
        assert_eq!(api.ticket(&order.order).await.expect_err("nothing is agreed to yet").code, Code::OrderState);
        api.agree(&order.order, chipbound_wire::Digest::of(&order.confirmation.0), chipbound_wire::api::Payment::Prepaid).await.unwrap();
        let other = chipbound_wire::api::NewOrder { key_mode: Some(chipbound_wire::suite::KeyMode::Common), ..wish.clone() };
        assert_eq!(api.order("a-key", &other).await.expect_err("another wish").code, Code::IdempotencyConflict);
        assert_eq!(api.order("a-key", &wish).await.unwrap().order, order.order);

        let ticket = api.ticket(&order.order).await.unwrap();
        let tunnel = api.tunnel(&ticket).await.unwrap();
        assert_eq!(api.tunnel(&ticket).await.err().expect("it was used").code, Code::TicketInvalid);
        drop(tunnel);
        let late = api.ticket(&order.order).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
        assert_eq!(api.tunnel(&late).await.err().expect("it ran out").code, Code::TicketInvalid);
        let forged = Ticket { ticket: chipbound_wire::Digest([7; 32]), ..late };
        assert_eq!(api.tunnel(&forged).await.err().expect("nobody issued it").code, Code::TicketInvalid);
    });
}

#[test]
fn errors_are_json_where_json_was_asked_for() {
    let world = World::start("", 1);
    let output = world.ada(&["--json", "buy", "nothing"]).output().unwrap();
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["code"], "unknown_program");
    assert!(error["error"]["advice"].as_str().unwrap().contains("chipbound catalogue"));
    assert!(json_lines(&output).iter().all(|line| line["step"] == 1001));
}
