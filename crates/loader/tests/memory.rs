//! A large program costs the processor its memory file and little else. A test program of its own, because it looks at its own memory.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chipbound_loader::{Image, PageSource, Workshop};

/// Size of the segment, bytes.
const SEGMENT: u64 = 256 << 20;
/// What a build may hold outside the memory file, KiB.
const ALLOWED: u64 = 16 << 10;

/// A program of one executable segment that is not stored anywhere.
struct Large {
    headers: Vec<u8>,
    peak: AtomicU64,
}

impl Large {
    fn new() -> Self {
        let mut headers = fs::read("/bin/true").unwrap()[..120].to_vec();
        let mut put = |at: usize, value: u64, size: usize| headers[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        for (at, value) in [(24, 0x1000), (32, 64), (72, 0), (80, 0), (88, 0), (96, SEGMENT), (104, SEGMENT), (112, 4096)] {
            put(at, value, 8);
        }
        put(56, 1, 2);
        put(64, 1, 4);
        put(68, 5, 4);
        Self { headers, peak: AtomicU64::new(0) }
    }
}

/// Anonymous memory of this process, KiB.
fn anonymous() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let field = |name| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    field("RssAnon:") + field("RssShmem:")
}

impl PageSource for Large {
    fn len(&self) -> u64 {
        SEGMENT
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(0x90);
        if offset == 0 || offset == 64 {
            let start = usize::try_from(offset).unwrap();
            let size = buf.len().min(self.headers.len() - start);
            buf[..size].copy_from_slice(&self.headers[start..start + size]);
        }
        self.peak.fetch_max(anonymous(), Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn a_large_program_is_built_in_little_memory() {
    let source = Arc::new(Large::new());
    let before = anonymous();
    let image = Image::build(Arc::clone(&source) as Arc<dyn PageSource>, &Workshop::default()).unwrap();
    assert_eq!(image.memory(), SEGMENT);
    let grown = source.peak.load(Ordering::Relaxed).max(anonymous()) - before;
    println!("{} MiB of program, {grown} KiB of memory beside its memory file", SEGMENT >> 20);
    assert!(grown < ALLOWED, "{grown} KiB");
}
