//! The bytes of a delivery: received and decrypted on one thread, opened, hashed and written on another, with a few buffers
//! going round between them. What an earlier delivery left is opened and hashed first, as if it came now.

use crate::receive::{Progress, Word};
use crate::spool::SpoolFile;
use chipbound_sealing::{Layout, Opened, Opener, PageKeys};
use chipbound_session::Roots;
use chipbound_session::path::Path;
use chipbound_session::processor::Received;
use chipbound_wire::limits::{MAX_CHUNK, TAG};
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
    /// Bytes of the body that an earlier delivery left.
    pub kept: u64,
    /// Roots and sizes.
    pub received: Received,
    /// The payload of the seal message that followed.
    pub seal: Vec<u8>,
}

/// Takes chunks from `path` until the seal comes. Every chunk is opened before its ciphertext is kept. On a refusal that says that
/// bytes are wrong nothing of them is kept; bytes of an earlier delivery that are wrong are [`Code::KeptPartAltered`].
pub fn take_body<S: Read + Write>(
    path: &mut Path<S>,
    layout: Layout,
    keys: &PageKeys,
    spool: SpoolFile,
    progress: Progress<'_>,
) -> Result<Intake> {
    let total = layout.body_size();
    let mut opening = Opening::new(layout, keys, spool)?;
    let from = opening.spool.done();
    if let Err(refusal) = opening.open_kept(from, progress) {
        return Err(opening.give_up(refusal));
    }
    let (full_in, full_out) = sync_channel::<Vec<u8>>(BUFFERS);
    let (empty_in, empty_out) = sync_channel::<Vec<u8>>(BUFFERS);
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            let worked = opening.work(&full_out, &empty_in);
            (opening, worked)
        });
        let pumped = pump(path, full_in, &empty_out, (from, total), progress);
        // The pump has dropped its end, so the worker comes to its end; what it refuses is the reason why the pump stopped.
        let (opening, worked) = worker.join().map_err(|_| Refusal::new(Code::Internal, "the opening thread failed"))?;
        match (worked, pumped) {
            (Err(refusal), _) | (Ok(()), Err(Stop::Path(refusal))) => Err(opening.give_up(refusal)),
            (Ok(()), Err(Stop::Worker)) => Err(Refusal::new(Code::Internal, "the opening thread ended early")),
            (Ok(()), Ok(seal)) => opening.finish(seal),
        }
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
    (from, total): (u64, u64),
    progress: Progress<'_>,
) -> std::result::Result<Vec<u8>, Stop> {
    let (mut made, mut done, mut told) = (0, from, from);
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
            progress(Word::Received { done: done.min(total), total }).map_err(Stop::Path)?;
        }
    }
}

/// Opens chunks and writes their ciphertext.
struct Opening {
    opener: Opener,
    layout: Layout,
    spool: SpoolFile,
    /// Where the next tags go, behind the body.
    tags_at: u64,
    /// Bytes of the body that an earlier delivery left.
    kept: u64,
    plain: Zeroizing<Vec<u8>>,
}

impl Opening {
    fn new(layout: Layout, keys: &PageKeys, spool: SpoolFile) -> Result<Self> {
        let encoded = layout.encode();
        spool.write_at(&encoded, layout.body_size())?;
        let tags_at = layout.body_size() + encoded.len() as u64;
        let opener = Opener::new(layout.clone(), keys)?;
        let (kept, plain) = (spool.done(), Zeroizing::new(Vec::with_capacity(MAX_CHUNK)));
        Ok(Self { opener, layout, spool, tags_at, kept, plain })
    }

    /// Opens what an earlier delivery left, up to `kept`.
    fn open_kept(&mut self, kept: u64, progress: Progress<'_>) -> Result<()> {
        let (mut bytes, mut tags, mut told) = (Vec::new(), Vec::new(), 0);
        let mut offset = 0;
        while offset < kept {
            bytes.resize((kept - offset).min(MAX_CHUNK as u64) as usize, 0);
            tags.resize(self.layout.tags_ending_in(offset, bytes.len()) * TAG, 0);
            self.spool.read_at(&mut bytes, offset)?;
            self.spool.read_at(&mut tags, self.tags_at)?;
            self.opener.open_chunk(&Chunk { offset, tags: &tags, bytes: &bytes }, &mut self.plain)?;
            self.tags_at += tags.len() as u64;
            offset += bytes.len() as u64;
            if offset - told >= PROGRESS_STEP {
                told = offset;
                progress(Word::Checked { done: offset, kept })?;
            }
        }
        Ok(())
    }

    fn work(&mut self, full: &Receiver<Vec<u8>>, empty: &SyncSender<Vec<u8>>) -> Result<()> {
        for buffer in full {
            let chunk = Chunk::parse(&buffer)?;
            self.opener.open_chunk(&chunk, &mut self.plain)?;
            self.spool.write_at(chunk.bytes, chunk.offset)?;
            self.spool.write_at(chunk.tags, self.tags_at)?;
            self.tags_at += chunk.tags.len() as u64;
            self.spool.advance(chunk.offset + chunk.bytes.len() as u64)?;
            let _ = empty.send(buffer); // The other thread may be done already.
        }
        Ok(())
    }

    fn finish(self, seal: Vec<u8>) -> Result<Intake> {
        let Self { opener, spool, kept, .. } = self;
        match opener.finish() {
            Ok(Opened { roots, plain_root, plain_size }) => {
                let chipbound_sealing::Roots { body_root, body_size, table_root, table_size } = roots;
                let roots = Roots { body_root, body_size, table_root, table_size };
                Ok(Intake { spool, kept, received: Received { roots, plain_root, plain_size }, seal })
            }
            Err(refusal) => Err(give_up(spool, kept, refusal)),
        }
    }

    fn give_up(self, refusal: Refusal) -> Refusal {
        give_up(self.spool, self.kept, refusal)
    }
}

/// What becomes of the bytes of a delivery that was refused: where only the way was cut, they wait; where they are wrong, or the disk is
/// full, they go. Wrong bytes of which the first were `kept` from an earlier delivery may be damage of this disk's: that is said in
/// place of what it looks like, so that the delivery begins anew.
pub fn give_up(spool: SpoolFile, kept: u64, refusal: Refusal) -> Refusal {
    let cut = matches!(refusal.code, Code::PathTruncated | Code::TimedOut | Code::Cancelled | Code::Internal | Code::Busy);
    if cut {
        return refusal;
    }
    spool.discard();
    if kept == 0 || refusal.code == Code::DiskFull {
        return refusal;
    }
    let detail = format!("the {kept} bytes that were kept of this delivery are thrown away: {refusal}");
    Refusal::new(Code::KeptPartAltered, detail).because(refusal)
}
