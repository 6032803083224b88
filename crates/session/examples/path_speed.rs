//! Measures the path alone: one thread sends chunks, one receives them, over a unix socket pair; prints MB/s and the CPU
//! seconds that each thread spent on a gigabyte.
//!
//! `cargo run --release -p chipbound-session --example path_speed -- [GB] [ROUNDS]`

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be set up should fail")]

use chipbound_session::path::Path;
use chipbound_session::tls::{DefaultTimeProvider, Identity, SharedTrust, processor_config, server_config};
use chipbound_testkit::{Holder, Pki};
use chipbound_wire::Time;
use chipbound_wire::certificate::Role;
use chipbound_wire::limits::MAX_CHUNK;
use chipbound_wire::messages::{Chunk, Kind};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// CPU seconds of this thread so far.
fn spent() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<u64>().unwrap() as f64 / 1e9
}

fn round(gigabytes: usize) {
    let pki = Pki::new(Time(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()));
    let trust = SharedTrust::new(pki.trust());
    let identity = |holder: &Holder| Identity { key: Arc::new(holder.key.clone()), chain: holder.chain.clone() };
    let (processor, server) = (identity(&pki.holder(Role::Processor)), identity(&pki.holder(Role::ServerSecondPath)));
    let client = processor_config(&processor, trust.clone(), Arc::new(DefaultTimeProvider)).unwrap();
    let accepting = server_config(&server, trust, Arc::new(DefaultTimeProvider)).unwrap();
    let (a, b) = UnixStream::pair().unwrap();
    let chunks = gigabytes * 1_000_000_000 / MAX_CHUNK;
    let sending = std::thread::spawn(move || {
        let mut path = Path::accept(b, &accepting).unwrap();
        let (bytes, tags) = (vec![0x5a; MAX_CHUNK], vec![1; MAX_CHUNK / 4096 * 16]);
        let before = spent();
        for chunk in 0..chunks {
            path.send_chunk(&Chunk { offset: (chunk * MAX_CHUNK) as u64, tags: &tags, bytes: &bytes }).unwrap();
        }
        let spent = spent() - before;
        path.close().unwrap();
        spent
    });
    let mut path = Path::connect(a, &client).unwrap();
    let (before, start) = (spent(), Instant::now());
    for _ in 0..chunks {
        let chunk = Chunk::parse(path.expect(Kind::Chunk).unwrap()).unwrap();
        assert_eq!(chunk.bytes.len(), MAX_CHUNK);
    }
    let (received, elapsed) = (spent() - before, start.elapsed().as_secs_f64());
    path.close().unwrap();
    let (sent, gigabytes) = (sending.join().unwrap(), gigabytes as f64);
    let speed = gigabytes * 1000.0 / elapsed;
    println!("{speed:6.0} MB/s   CPU-s/GB: send {:.3}, receive {:.3}", sent / gigabytes, received / gigabytes);
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse().unwrap());
    let (gigabytes, rounds) = (arguments.next().unwrap_or(1), arguments.next().unwrap_or(5));
    for _ in 0..rounds {
        round(gigabytes);
    }
}
