//! Bounded memory: a large program passes publication and delivery in a fixed amount.

use crate::daemon::{Installation, buy, log_in};
use crate::processor::Processor;
use crate::world::eur;
use chipbound_testkit::documents;
use chipbound_transport::{Client, Timeouts};
use chipbound_wire::api::*;
use chipbound_wire::documents::Manifest;
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Digest, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::task::spawn_blocking;

/// Bytes of the program: many times what may be in memory.
const SIZE: u64 = 512 << 20;
/// What the server may have in anonymous memory at any time, in bytes.
const LIMIT: u64 = 64 << 20;

/// Watches the anonymous memory of a process; its peak so far, in bytes.
struct Watch {
    done: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn of(pid: u32) -> Self {
        let (done, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ending, highest) = (done.clone(), peak.clone());
        let thread = std::thread::spawn(move || {
            while !ending.load(Ordering::Relaxed) {
                highest.fetch_max(rss_anon(pid), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { done, peak, thread: Some(thread) }
    }

    fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn rss_anon(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_gibibyte_is_published_and_delivered_in_64_mib() {
    let installation = Installation::new().await;
    let daemon = installation.start().await;
    let watch = Watch::of(daemon.pid());
    let client = installation.client(&daemon);
    let (vera, ann) = (log_in(&client, "vera").await, log_in(&client, "ann").await);
    for _ in 0..4 {
        let one = installation.client(&daemon);
        let two = installation.client(&daemon);
        tokio::join!(log_in(&one, "ann"), log_in(&two, "ann")); // Passwords take memory, too.
    }
    println!("log-ins: at most {} KiB", watch.peak() / 1024);

    let vendor = installation.vendor().await;
    let manifest = Manifest { plain_root: root_of_zeros().await, plain_size: SIZE, ..documents::manifest(&vendor.id(), b"") };
    let new = NewRelease { manifest: Base64(vendor.sign(&manifest)), price: eur(1) };
    let upload: Upload = client.post_json("/v1/releases", Some(&vera), &[], &new).await.unwrap();
    let path = format!("/v1/releases/{}", upload.upload);
    client.put_stream::<Published>(&path, Some(&vera), &[], SIZE, tokio::io::repeat(0).take(SIZE)).await.unwrap();
    println!("published: at most {} KiB", watch.peak() / 1024);

    let processor = installation.processor().await;
    for key_mode in [KeyMode::Direct, KeyMode::Common] {
        let order = buy(&client, &ann, processor.id(), Some(key_mode)).await;
        assert_eq!(receive(&client, &ann, order, processor.clone()).await.unwrap(), SIZE);
        println!("delivered {key_mode}: at most {} KiB", watch.peak() / 1024);
    }
    assert!(watch.peak() < LIMIT, "{} MiB", watch.peak() >> 20);
}

async fn root_of_zeros() -> Digest {
    let hashed = spawn_blocking(|| {
        let mut hasher = blake3::Hasher::new();
        let zeros = vec![0; 1 << 20];
        for _ in 0..SIZE >> 20 {
            hasher.update(&zeros);
        }
        Digest(*hasher.finalize().as_bytes())
    });
    hashed.await.unwrap()
}

/// Receives and throws away; how many bytes of plaintext there were.
async fn receive(client: &Client, token: &str, order: Order, processor: Arc<Processor>) -> Result<u64> {
    let ticket: Ticket = client.post_json(&format!("/v1/orders/{}/tickets", order.order), Some(token), &[], &()).await?;
    let ticket = ticket.ticket.to_string();
    let raw = client.upgrade("/v1/second-path", Some(token), &[(TICKET_HEADER, &ticket)]).await?;
    let received = spawn_blocking(move || {
        let mut stream = raw.into_blocking(Timeouts::default())?;
        let mut received = 0;
        let confirmation = &order.confirmation.0;
        processor.receive_into(&mut stream, confirmation, chipbound_host::now(), |_, plain| received += plain.len() as u64)?;
        stream.finish()?;
        Ok(received)
    });
    received.await.unwrap()
}
