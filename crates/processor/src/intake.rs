//! The bytes of a delivery: received and decrypted on one thread, opened, hashed and written on another, with a few buffers
//! going round between them.

use crate::receive::Progress;
use crate::spool::SpoolFile;
use chipbound_sealing::{Layout, Opened, Opener, PageKeys};
use chipbound_session::Roots;
use chipbound_session::path::Path;
use chipbound_session::processor::Received;
use chipbound_wire::limits::MAX_CHUNK;
use chipbound_wire::messages::{Chunk, Kind, MAX_CHUNK_PAYLOAD};
use chipbound_wire::{Code, Refusal, Result};
use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use zeroize::Zeroizing;

/// Chunks between the two threads, each at most [`MAX_CHUNK_PAYLOAD`] bytes (about 260 KiB).
const BUFFERS: usize = 6;

/// How many bytes pass between two words of progress.
const PROGRESS_STEP: u64 = 4 * 1024 * 1024;

/// A body that lies in the spool with its table behind it, and what was measured of it.
#[derive(Debug)]
pub struct Intake {
    /// Body and table.
    pub spool: SpoolFile,
    /// Roots and sizes.
    pub received: Received,
    /// The payload of the seal message that followed.
    pub seal: Vec<u8>,
}

/// Takes chunks from `path` until the seal comes. Every chunk is opened before its ciphertext is kept. On a refusal the spool file
/// goes.
pub fn take_body<S: Read + Write>(
    path: &mut Path<S>,
    layout: Layout,
    keys: &PageKeys,
    spool: SpoolFile,
    progress: Progress<'_>,
) -> Result<Intake> {
    let total = layout.body_size();
    let mut opening = Opening::new(layout, keys, spool)?;
    let (full_in, full_out) = sync_channel::<Vec<u8>>(BUFFERS);
    let (empty_in, empty_out) = sync_channel::<Vec<u8>>(BUFFERS);
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            opening.work(&full_out, &empty_in)?;
            Ok(opening)
        });
        let pumped = pump(path, full_in, &empty_out, total, progress);
        // The pump has dropped its end, so the worker comes to its end; what it refuses is the reason why the pump stopped.
        let opened = worker.join().unwrap_or_else(|_| Err(Refusal::new(Code::Internal, "the opening thread failed")));
        let seal = match (pumped, &opened) {
            (Err(Stop::Worker), Ok(_)) => return Err(Refusal::new(Code::Internal, "the opening thread ended early")),
            (Err(Stop::Path(refusal)), Ok(_)) => return Err(refusal),
            (Err(_), Err(_)) | (Ok(_), Err(_)) => Vec::new(),
            (Ok(seal), Ok(_)) => seal,
        };
        opened?.finish(seal)
    })
}

/// Why no more chunks are taken.
enum Stop {
    Path(Refusal),
    Worker,
}

/// Passes chunks on until the seal comes.
fn pump<S: Read + Write>(
    path: &mut Path<S>,
    full: SyncSender<Vec<u8>>,
    empty: &Receiver<Vec<u8>>,
    total: u64,
    progress: Progress<'_>,
) -> std::result::Result<Vec<u8>, Stop> {
    let (mut made, mut done, mut told) = (0, 0, 0);
    loop {
        let (kind, payload) = path.receive().map_err(Stop::Path)?;
        match kind {
            Kind::Chunk => {
                let mut buffer = match empty.try_recv() {
                    Ok(buffer) => buffer,
                    Err(_) if made < BUFFERS => {
                        made += 1;
                        Vec::with_capacity(MAX_CHUNK_PAYLOAD)
                    }
                    Err(_) => empty.recv().map_err(|_| Stop::Worker)?,
                };
                done += payload.len() as u64;
                path.swap_payload(&mut buffer);
                full.send(buffer).map_err(|_| Stop::Worker)?;
            }
            Kind::Seal => return Ok(payload.to_vec()),
            other => return Err(Stop::Path(Refusal::new(Code::UnexpectedMessage, format!("a {other:?} message among the chunks")))),
        }
        if done - told >= PROGRESS_STEP {
            told = done;
            progress(done.min(total), total).map_err(Stop::Path)?;
        }
    }
}

/// Opens chunks and writes their ciphertext.
struct Opening {
    opener: Opener,
    spool: SpoolFile,
    /// Where the next tags go, behind the body.
    tags_at: u64,
    plain: Zeroizing<Vec<u8>>,
}

impl Opening {
    fn new(layout: Layout, keys: &PageKeys, spool: SpoolFile) -> Result<Self> {
        let encoded = layout.encode();
        spool.write_at(&encoded, layout.body_size())?;
        let tags_at = layout.body_size() + encoded.len() as u64;
        Ok(Self { opener: Opener::new(layout, keys)?, spool, tags_at, plain: Zeroizing::new(Vec::with_capacity(MAX_CHUNK)) })
    }

    fn work(&mut self, full: &Receiver<Vec<u8>>, empty: &SyncSender<Vec<u8>>) -> Result<()> {
        for buffer in full {
            let chunk = Chunk::parse(&buffer)?;
            self.opener.open_chunk(&chunk, &mut self.plain)?;
            self.spool.write_at(chunk.bytes, chunk.offset)?;
            self.spool.write_at(chunk.tags, self.tags_at)?;
            self.tags_at += chunk.tags.len() as u64;
            let _ = empty.send(buffer); // The other thread may be done already.
        }
        Ok(())
    }

    fn finish(self, seal: Vec<u8>) -> Result<Intake> {
        let Opened { roots, plain_root, plain_size } = self.opener.finish()?;
        let chipbound_sealing::Roots { body_root, body_size, table_root, table_size } = roots;
        let roots = Roots { body_root, body_size, table_root, table_size };
        Ok(Intake { spool: self.spool, received: Received { roots, plain_root, plain_size }, seal })
    }
}
