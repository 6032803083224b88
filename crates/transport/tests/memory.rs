//! Memory under bulk; alone in its process, so that the high-water mark is this test's.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use axum::Router;
use axum::routing::put;
use chipbound_transport::ServeLimits;
use chipbound_transport::extract::{Json, Upload};
use common::Site;
use tokio::io::AsyncReadExt;

/// KiB that the process ever had in memory.
fn high_water() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_upload_of_256_mib_takes_neither_end_more_than_a_few_mib() {
    const BULK: u64 = 256 << 20;
    let count = async |upload: Upload| Json(tokio::io::copy(&mut upload.into_reader(), &mut tokio::io::sink()).await.unwrap());
    let running = Site::new().start(Router::new().route("/upload", put(count)), ServeLimits::default()).await;
    let client = running.client();
    let warm: u64 = client.put_stream("/upload", None, &[], 1 << 20, tokio::io::repeat(1).take(1 << 20)).await.unwrap();
    let before = high_water();
    let counted: u64 = client.put_stream("/upload", None, &[], BULK, tokio::io::repeat(1).take(BULK)).await.unwrap();
    assert_eq!((warm, counted), (1 << 20, BULK));
    let grown = high_water() - before;
    assert!(grown < 8 * 1024, "{grown} KiB more");
}
