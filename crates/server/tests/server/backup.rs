//! A server's backup, made by its operator's verb while customers buy, and brought into another server, on either engine.

use crate::daemon::{Daemon, Installation, buy, log_in, operator, receive};
use crate::processor::Processor;
use crate::world::sample;
use chipbound_testkit::postgres::Cluster;
use chipbound_transport::Client;
use chipbound_wire::api::*;
use chipbound_wire::documents::Receipt;
use chipbound_wire::signed::read_claims;
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Code, OrderId, Result};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::task::spawn_blocking;

/// What a verb of the operator's says, or the code by which it refuses.
pub(crate) async fn verb(arguments: &[&str]) -> std::result::Result<String, String> {
    let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
    let run = move || operator(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), "");
    spawn_blocking(run).await.unwrap().map_err(|(_, said)| said)
}

pub(crate) async fn refused(arguments: &[&str], code: Code) {
    let said = verb(arguments).await.expect_err("it was not refused");
    assert!(said.contains(code.as_str()), "{said}");
}

pub(crate) async fn settle(client: &Client, user: &str, order: OrderId, acknowledgement: Vec<u8>) -> Result<Settled> {
    let acknowledge = Acknowledge { acknowledgement: Base64(acknowledgement) };
    client.post_json(&format!("/v1/orders/{order}/acknowledgement"), Some(user), &[], &acknowledge).await
}

/// One purchase from beginning to end; the receipt.
async fn purchase(client: &Client, processor: &Arc<Processor>, key_mode: KeyMode) -> Vec<u8> {
    let ann = log_in(client, "ann").await;
    let order = buy(client, &ann, processor.id(), Some(key_mode)).await;
    let acknowledgement = receive(client, &ann, &order, processor).await.unwrap();
    settle(client, &ann, order.order, acknowledgement).await.unwrap().receipt.0
}

async fn again(client: &Client, processor: &Arc<Processor>, receipt: &[u8]) -> Result<Settled> {
    let ann = log_in(client, "ann").await;
    let request = Redownload { receipt: Base64(receipt.to_vec()) };
    let order: Order = client.post_json("/v1/redownloads", Some(&ann), &[], &request).await?;
    let acknowledgement = receive(client, &ann, &order, processor).await?;
    settle(client, &ann, order.order, acknowledgement).await
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

async fn is_clean(config: &Path) {
    let said = verb(&["audit", "--config", text(config)]).await;
    assert!(said.is_ok(), "{said:?}");
}

pub(crate) async fn restore(config: &Path, kek: &Path, from: &Path) -> std::result::Result<String, String> {
    verb(&["restore", "--config", text(config), "--kek", text(kek), text(from)]).await
}

async fn is_restored_from(first: Option<String>, second: Option<String>) {
    let installation = Installation::new_on(first).await;
    let shop = installation.config.parent().unwrap().to_owned();
    let daemon = installation.start().await;
    let client = installation.client(&daemon);
    installation.publish(&client, &sample(300_000)).await;
    let processor = installation.processor().await;
    let deposit = ["account", "deposit", "--config", text(&installation.config), "--user", "ann", "--amount", "5000 EUR"];
    verb(&deposit).await.unwrap();
    let before = [purchase(&client, &processor, KeyMode::Direct).await, purchase(&client, &processor, KeyMode::Common).await];

    // Customers buy while the backup is made, and after it.
    let done = Arc::new(AtomicBool::new(false));
    let buying: Vec<_> = (0..3)
        .map(|_| {
            let (client, processor, done) = (installation.client(&daemon), processor.clone(), done.clone());
            tokio::spawn(async move {
                let mut receipts = Vec::new();
                while !done.load(Ordering::Relaxed) || receipts.len() < 2 {
                    receipts.push(purchase(&client, &processor, KeyMode::Direct).await);
                }
                receipts
            })
        })
        .collect();
    let backup = shop.join("backup");
    let said = verb(&["backup", "--config", text(&installation.config), text(&backup)]).await.unwrap();
    assert!(said.contains("2 programs"), "{said}");
    done.store(true, Ordering::Relaxed);
    let mut sold = before.to_vec();
    for buyer in buying {
        sold.extend(buyer.await.unwrap());
    }
    let after = purchase(&client, &processor, KeyMode::Direct).await;
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&backup).unwrap().permissions()) & 0o777, 0o600);
    refused(&["backup", "--config", text(&installation.config), text(&backup)], Code::Conflict).await;
    drop(daemon);

    let (config, kek) = (installation.second(second).await, shop.join("kek"));
    let own_kek = config.with_file_name("kek");
    let restore_refused = async |config: &Path, kek: &Path, from: &Path, code: Code| {
        let said = restore(config, kek, from).await.expect_err("it was not refused");
        assert!(said.contains(code.as_str()), "{said}");
    };
    // What is not whole, not of that server, or for a server of the same name is refused, and nothing was touched.
    let bytes = std::fs::read(&backup).unwrap();
    let damaged = shop.join("damaged");
    for (altered, code) in [(bytes.len() - 150_000, Code::Unsealable), (20, Code::Malformed)] {
        let mut bytes = bytes.clone();
        bytes[altered] ^= 0x55;
        std::fs::write(&damaged, bytes).unwrap();
        restore_refused(&config, &kek, &damaged, code).await;
    }
    std::fs::write(&damaged, &bytes[..bytes.len() - 7]).unwrap();
    restore_refused(&config, &kek, &damaged, Code::Malformed).await;
    std::fs::write(&damaged, [&bytes[..], b"x"].concat()).unwrap();
    restore_refused(&config, &kek, &damaged, Code::Unsealable).await;
    restore_refused(&config, &own_kek, &backup, Code::Unsealable).await;
    restore_refused(&installation.config, &kek, &backup, Code::Conflict).await;
    let said = restore(&config, &kek, &backup).await.unwrap();
    assert!(said.contains("2 programs"), "{said}");
    restore_refused(&config, &kek, &backup, Code::Conflict).await;
    is_clean(&config).await;

    // The old receipts buy the program again from the new server; those that it never saw do not, and nothing else is lost.
    std::fs::rename(&shop, shop.with_file_name("lost")).unwrap();
    let daemon = Daemon::start_with(&config, &installation.log()).await;
    let client = installation.client_of(&config, &daemon);
    for receipt in &before {
        assert_eq!(again(&client, &processor, receipt).await.unwrap().receipt.0, *receipt);
    }
    for receipt in sold.iter().skip(before.len()) {
        match again(&client, &processor, receipt).await {
            Ok(settled) => assert_eq!(settled.receipt.0, *receipt, "in the backup"),
            Err(refusal) => assert_eq!(refusal.code, Code::ReceiptMismatch, "given after it"),
        }
    }
    assert_eq!(again(&client, &processor, &after).await.unwrap_err().code, Code::ReceiptMismatch);
    let new = purchase(&client, &processor, KeyMode::Common).await;
    let (new, old): (Receipt, Receipt) = (read_claims(&new).unwrap(), read_claims(&after).unwrap());
    let place = |receipt: &Receipt| receipt.log.clone().unwrap();
    assert_ne!(*place(&new).origin, *place(&old).origin, "the lost server's log is not signed on");
    is_clean(&config).await;

    // Nor under its old name by books that were restored once.
    let (kek, backup) = (config.with_file_name("kek"), config.with_file_name("backup"));
    verb(&["backup", "--config", text(&config), text(&backup)]).await.unwrap();
    let said = restore(&shop.with_file_name("lost").join("server.toml"), &kek, &backup).await.expect_err("it was not refused");
    assert!(said.contains(Code::Conflict.as_str()) && said.contains("another name"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_made_under_load_is_restored_into_another_server() {
    is_restored_from(None, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_moves_a_shop_from_one_engine_to_the_other_and_back() {
    let database = || Some(Cluster::shared().url(&Cluster::shared().create_database()));
    is_restored_from(None, database()).await;
    is_restored_from(database(), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_killed_or_finds_no_room_leaves_nothing() {
    let installation = Installation::new().await;
    let daemon = installation.start().await;
    let client = installation.client(&daemon);
    installation.publish(&client, &sample(60_000_000)).await;
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("backup");
    let command = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chipbound-server"));
        command.args(["backup", "--config", text(&installation.config), text(&to)]);
        command
    };
    // Killed as soon as some of the file is on its way.
    let mut child = command().spawn().unwrap();
    let writing = || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", child.id())).into_iter().flatten().flatten();
        files
            .filter_map(|fd| std::fs::metadata(fd.path()).ok())
            .any(|meta| meta.len() > 0 && std::os::unix::fs::MetadataExt::nlink(&meta) == 0)
    };
    while !writing() {
        assert!(child.id() > 0 && !to.exists(), "it was done before it was killed");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

    if !rustix::process::geteuid().is_root() {
        println!("not run here: mounting a small tmpfs needs root");
        return;
    }
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(folder.path()).status().unwrap();
    assert!(mounted.success());
    let output = command().output();
    let left = std::fs::read_dir(folder.path()).map(Iterator::count);
    assert!(Command::new("umount").arg(folder.path()).status().unwrap().success());
    let said = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(said.contains(Code::DiskFull.as_str()), "{said}");
    assert_eq!(left.unwrap(), 0);
}
