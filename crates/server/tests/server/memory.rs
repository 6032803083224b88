//! Bounded memory: a large program passes publication and delivery in a fixed amount.

use crate::processor::Processor;
use crate::world::{World, eur};
use chipbound_transport::Timeouts;
use chipbound_wire::api::*;
use chipbound_wire::documents::Manifest;
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Digest, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::task::spawn_blocking;

/// Bytes of the program: many times what may be in memory.
const SIZE: u64 = 512 << 20;
/// What client, server and processor together may have in memory beyond what they had before, in bytes.
const LIMIT: u64 = 64 << 20;

/// Anonymous memory of this process in bytes.
fn rss_anon() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Runs alone in a process of its own: the memory of other tests would count.
#[test]
fn half_a_gibibyte_is_published_and_delivered_in_64_mib() {
    if std::env::var_os("CHIPBOUND_MEMORY_TEST").is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "memory::half_a_gibibyte_is_published_and_delivered_in_64_mib", "--nocapture"])
            .env("CHIPBOUND_MEMORY_TEST", "1")
            .env("MALLOC_ARENA_MAX", "2")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(pass_a_large_program());
}

async fn pass_a_large_program() {
    let world = World::new().await;
    let (vera, ann) = (world.log_in("vera").await, world.log_in("ann").await);
    let processor = Processor::new(&world.pki);
    let before = rss_anon();
    let (done, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let watching = {
        let (done, peak) = (done.clone(), peak.clone());
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(rss_anon(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        })
    };

    let root = spawn_blocking(|| {
        let mut hasher = blake3::Hasher::new();
        let zeros = vec![0; 1 << 20];
        for _ in 0..SIZE >> 20 {
            hasher.update(&zeros);
        }
        Digest(*hasher.finalize().as_bytes())
    })
    .await
    .unwrap();
    let manifest = Manifest { plain_root: root, plain_size: SIZE, ..world.manifest("large", "1.0", 1, b"") };
    let new = NewRelease { manifest: Base64(world.vendor.sign(&manifest)), price: eur(1) };
    let upload: Upload = vera.post("/v1/releases", &new).await.unwrap();
    let path = format!("/v1/releases/{}", upload.upload);
    let source = tokio::io::repeat(0).take(SIZE);
    world.client.put_stream::<Published>(&path, Some(&vera.token), &[], SIZE, source).await.unwrap();
    for key_mode in [KeyMode::Direct, KeyMode::Common] {
        let order = ann.buy("large", processor.id(), key_mode).await;
        let ticket = ann.ticket(order.order).await.unwrap().ticket.to_string();
        let raw = world.client.upgrade("/v1/second-path", Some(&ann.token), &[(TICKET_HEADER, &ticket)]).await.unwrap();
        let (processor, now) = (processor.clone(), world.now());
        let received: Result<u64> = spawn_blocking(move || {
            let mut stream = raw.into_blocking(Timeouts::default())?;
            let mut received = 0;
            let confirmation = &order.confirmation.0;
            processor.receive_into(&mut stream, confirmation, now, |_, plain| received += plain.len() as u64)?;
            stream.finish()?;
            Ok(received)
        })
        .await
        .unwrap();
        assert_eq!(received.unwrap(), SIZE);
    }

    done.store(true, Ordering::Relaxed);
    watching.join().unwrap();
    let grown = peak.load(Ordering::Relaxed).saturating_sub(before);
    println!("grew by {} KiB", grown / 1024);
    assert!(grown < LIMIT, "memory grew by {} MiB", grown >> 20);
}
