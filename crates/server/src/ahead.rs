//! The ciphertext of one order on its way to the disk and to the processor at once. It is sealed ahead of what is being sent, so that a
//! delivery that is cut short goes on with the same bytes: an encryption is made once, to its end or not at all (design §4).

use chipbound_sealing::{Layout, PageKeys, Sealer};
use chipbound_session::Roots;
use chipbound_wire::limits::{MAX_CHUNK, TAG};
use chipbound_wire::messages::Chunk;
use chipbound_wire::{Code, Refusal, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How far the ciphertext has come, and who is still at it.
#[derive(Default)]
struct Stand {
    /// Bytes of the body that lie in the file, their tags included.
    sealed: u64,
    /// Once there is no more to come.
    outcome: Option<Result<Roots>>,
    /// Whether anybody still sends.
    sent: Option<bool>,
}

/// What the one that seals and the one that sends know of each other.
#[derive(Default)]
pub(crate) struct Ahead {
    stand: Mutex<Stand>,
    changed: Condvar,
}

impl Ahead {
    fn stand(&self) -> MutexGuard<'_, Stand> {
        self.stand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Stand)) {
        change(&mut self.stand());
        self.changed.notify_all();
    }

    /// Seals all of `plain` into `file`: for each chunk its tags, then its bytes.
    pub(crate) fn seal(&self, plain: &File, layout: &Layout, keys: &PageKeys, file: &File) {
        let outcome = self.seal_all(plain, layout, keys, file);
        self.change(|stand| stand.outcome = Some(outcome));
    }

    fn seal_all(&self, plain: &File, layout: &Layout, keys: &PageKeys, file: &File) -> Result<Roots> {
        let mut sealer = Sealer::new(layout, keys)?;
        let (mut bytes, mut tags, mut at, mut place) = (vec![0; MAX_CHUNK], Vec::new(), 0, 0);
        while at < layout.body_size() {
            bytes.resize((layout.body_size() - at).min(MAX_CHUNK as u64) as usize, 0);
            tags.clear();
            plain.read_exact_at(&mut bytes, at).map_err(|e| Refusal::io("reading a program", e))?;
            sealer.seal_chunk(&mut bytes, &mut tags)?;
            for part in [&tags, &bytes] {
                file.write_all_at(part, place).map_err(|e| Refusal::io("the store of programs", e))?;
                place += part.len() as u64;
            }
            at += bytes.len() as u64;
            self.change(|stand| stand.sealed = at);
        }
        sealer.finish().map(crate::packing::roots)
    }

    /// Waits until the first `end` bytes of the body lie in the file; refuses where they will not.
    pub(crate) fn wait_for(&self, end: u64) -> Result<()> {
        let mut stand = self.stand();
        while stand.sealed < end {
            match &stand.outcome {
                Some(Err(refusal)) => return Err(Refusal::new(refusal.code, refusal.detail.clone())),
                Some(Ok(_)) => return Err(Refusal::new(Code::Internal, "the ciphertext ended early")),
                None => stand = self.changed.wait(stand).unwrap_or_else(PoisonError::into_inner),
            }
        }
        Ok(())
    }

    /// Whoever sends has come to an end: well, or cut short.
    pub(crate) fn sent(&self, well: bool) {
        self.change(|stand| stand.sent = Some(well));
    }

    /// After everything was sealed: whether the ciphertext will be needed again. That is known when the sending has ended; one that goes on
    /// for longer than `patience` may be cut short yet.
    pub(crate) fn is_needed(&self, patience: Duration) -> bool {
        let waiting = self.changed.wait_timeout_while(self.stand(), patience, |stand| stand.sent.is_none());
        waiting.unwrap_or_else(PoisonError::into_inner).0.sent != Some(true)
    }

    /// The roots, once everything is sealed.
    pub(crate) fn roots(&self) -> Result<Roots> {
        let mut stand = self.stand();
        loop {
            match &stand.outcome {
                Some(Ok(roots)) => return Ok(*roots),
                Some(Err(refusal)) => return Err(Refusal::new(refusal.code, refusal.detail.clone())),
                None => stand = self.changed.wait(stand).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Gives `send` each chunk of a body that lies in `sealed` as [`Ahead::seal`] writes it, from the byte `from` of the body on. `wait` is
/// asked before each whether it is there.
pub(crate) fn send_sealed(
    sealed: &File,
    layout: &Layout,
    from: u64,
    wait: impl Fn(u64) -> Result<()>,
    mut send: impl FnMut(&Chunk<'_>) -> Result<()>,
) -> Result<()> {
    let mut buffer = Vec::new();
    let mut offset = from;
    let mut place = place_of(layout, from);
    while offset < layout.body_size() {
        let len = (layout.body_size() - offset).min(MAX_CHUNK as u64) as usize;
        let tags = layout.tags_ending_in(offset, len) * TAG;
        buffer.resize(tags + len, 0);
        wait(offset + len as u64)?;
        sealed.read_exact_at(&mut buffer, place).map_err(|e| Refusal::io("reading ciphertext", e))?;
        send(&Chunk { offset, tags: &buffer[..tags], bytes: &buffer[tags..] })?;
        offset += len as u64;
        place += buffer.len() as u64;
    }
    Ok(())
}

/// Where in the file the chunk at this byte of the body begins.
fn place_of(layout: &Layout, offset: u64) -> u64 {
    let before = usize::try_from(offset).expect("a body of at most 1 TiB on a 64-bit machine");
    offset + (layout.tags_ending_in(0, before) * TAG) as u64
}
