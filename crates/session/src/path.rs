//! The second path over any stream: messages in TLS.

mod records;
#[cfg(test)]
mod tests;

use crate::Channel;
use crate::tls::{ProcessorConfig, ServerConfig, Verdict};
use chipbound_wire::certificate::Certified;
use chipbound_wire::limits::{MAX_CHUNK, PAGE, TAG};
use chipbound_wire::messages::{Abort, Chunk, FRAME_HEAD, Kind, frame_head, payload, read_head, read_payload};
use chipbound_wire::{Code, Digest, Refusal, Result};
use records::Records;
use rustls::Connection;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Messages of the peer that are looked through for its [`Abort`] after a write failed.
const LAST_MESSAGES: usize = 8;
/// Bytes of tags in one chunk: at most three units end in a page.
const MAX_CHUNK_TAGS: usize = (MAX_CHUNK / PAGE) * 3 * TAG;

/// Bytes that went over a path's stream, TLS and all. A shell that enforces a least throughput keeps one and looks at it.
#[derive(Debug, Default)]
pub struct Meter {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Meter {
    /// Bytes received so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// One end of a second path whose TLS handshake is done.
///
/// The stream blocks. Its read and write time-outs are the caller's: `WouldBlock` and `TimedOut` become
/// [`Code::TimedOut`]. End of file without close_notify, also a reset, is [`Code::PathTruncated`]. After any refusal the
/// path is good for [`Path::abort`] and nothing else.
pub struct Path<S> {
    records: Records<S>,
    channel: Channel,
    /// The payload of the last message received.
    message: Vec<u8>,
    /// The peer hears nothing any more, or need not.
    over: bool,
}

impl<S> std::fmt::Debug for Path<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Path(to {} {})", self.channel.peer.role(), self.channel.peer.key_id())
    }
}

impl<S: Read + Write> Path<S> {
    /// The processor's end (step 1003): does the TLS handshake. Refuses with the `certificate_*` code of the server's
    /// certificate. Whether the server takes *our* certificate shows only in the first [`Path::receive`] (in TLS 1.3 the
    /// client is done before the server looked), which then refuses with the code that the server found.
    pub fn connect(stream: S, config: &ProcessorConfig) -> Result<Self> {
        let (tls, verdict) = config.connection()?;
        Self::begin(stream, tls.into(), verdict)
    }

    /// The server's end (step 1003): does the TLS handshake. Refuses with the `certificate_*` code of the processor's
    /// certificate, after the matching alert was sent.
    pub fn accept(stream: S, config: &ServerConfig) -> Result<Self> {
        let (tls, verdict) = config.connection()?;
        Self::begin(stream, tls.into(), verdict)
    }

    fn begin(stream: S, tls: Connection, verdict: Arc<Verdict>) -> Result<Self> {
        let mut records = Records::new(stream, tls, verdict);
        let channel = records.handshake()?;
        let mut path = Self { records, channel, message: Vec::new(), over: false };
        if !path.records.is_ours() {
            let refusal = Refusal::new(Code::NotSupported, "the other side does not speak chipbound/1");
            path.abort(&refusal);
            return Err(refusal);
        }
        Ok(path)
    }

    /// Who the peer proved to be in the TLS handshake.
    #[must_use]
    pub fn peer(&self) -> &Certified {
        &self.channel.peer
    }

    /// The TLS exporter (RFC 8446 §7.5) of this connection.
    #[must_use]
    pub fn exporter(&self) -> Digest {
        self.channel.exporter
    }

    /// Peer and exporter together, for the states.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The stream below, for its time-outs.
    #[must_use]
    pub fn stream(&self) -> &S {
        self.records.stream()
    }

    /// The counter of this path.
    #[must_use]
    pub fn meter(&self) -> Arc<Meter> {
        Arc::clone(self.records.meter())
    }

    /// Sends one message. More than the kind's limit is [`Code::TooLarge`] and nothing is sent. Where the peer has gone
    /// away with an [`Abort`], its refusal is returned.
    pub fn send(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        if payload.len() > kind.limit() {
            return Err(Refusal::new(Code::TooLarge, format!("a {kind:?} message is larger than its limit")));
        }
        self.send_parts(&[&frame_head(kind, payload.len()), payload])
    }

    /// Sends one chunk of the body, at most [`MAX_CHUNK`] bytes and the tags that belong to them.
    /// Refuses as [`Path::send`] does.
    pub fn send_chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        if chunk.bytes.len() > MAX_CHUNK || chunk.tags.len() > MAX_CHUNK_TAGS {
            return Err(Refusal::new(Code::TooLarge, "a chunk is larger than its limit"));
        }
        self.send_parts(&[&chunk.heads(), chunk.tags, chunk.bytes])
    }

    fn send_parts(&mut self, parts: &[&[u8]]) -> Result<()> {
        let sent = parts.iter().try_for_each(|part| self.records.write(part)).and_then(|()| self.records.flush());
        sent.map_err(|refusal| self.why_gone(refusal))
    }

    /// A peer that stops reading has usually said why: looks for its [`Abort`] or alert among what it sent last.
    fn why_gone(&mut self, refusal: Refusal) -> Refusal {
        self.over = true;
        if refusal.code != Code::PathTruncated {
            return refusal;
        }
        for _ in 0..LAST_MESSAGES {
            match self.receive() {
                Ok(_) => {}
                Err(said) if said.code != Code::PathTruncated => return said,
                Err(_) => break,
            }
        }
        refusal
    }

    /// Receives one message; the payload lies in a buffer that the next call uses again. An [`Abort`] becomes the peer's
    /// refusal. Close_notify in place of a message, or within one, is [`Code::PathTruncated`] as well: it says that the peer
    /// has no more to send, while more is expected.
    pub fn receive(&mut self) -> Result<(Kind, &[u8])> {
        self.receive_if(|_| true)
    }

    /// Gives away the payload of the message received last, in exchange for a buffer that the next one is read into.
    pub fn swap_payload(&mut self, buffer: &mut Vec<u8>) {
        std::mem::swap(&mut self.message, buffer);
    }

    /// Receives one message of this kind; any other is [`Code::UnexpectedMessage`] before its payload is read. Refuses as
    /// [`Path::receive`] does.
    pub fn expect(&mut self, kind: Kind) -> Result<&[u8]> {
        self.receive_if(|k| k == kind).map(|(_, payload)| payload)
    }

    fn receive_if(&mut self, wanted: impl Fn(Kind) -> bool) -> Result<(Kind, &[u8])> {
        let received = self.read_message(wanted);
        self.over |= received.as_ref().is_err_and(|r| matches!(r.code, Code::PathTruncated));
        received.map(|kind| (kind, &*self.message))
    }

    fn read_message(&mut self, wanted: impl Fn(Kind) -> bool) -> Result<Kind> {
        self.message.clear();
        self.read_exactly(FRAME_HEAD)?;
        let head = *self.message.first_chunk::<FRAME_HEAD>().expect("a whole head was read");
        let (kind, length) = read_head(head)?;
        if kind != Kind::Abort && !wanted(kind) {
            return Err(Refusal::new(Code::UnexpectedMessage, format!("a {kind:?} message where another was expected")));
        }
        self.message.clear();
        self.message.reserve(length);
        self.read_exactly(length)?;
        if kind == Kind::Abort {
            self.over = true;
            return Err(read_payload::<Abort>(&self.message)?.into_refusal());
        }
        Ok(kind)
    }

    fn read_exactly(&mut self, length: usize) -> Result<()> {
        if self.records.read_to(&mut self.message, length)? {
            return Ok(());
        }
        Err(Refusal::new(Code::PathTruncated, "the other side closed the second path before it had said everything"))
    }

    /// Ends the path for the reason `refusal`: tells the peer, unless it was the peer that said so or is gone, and closes.
    /// Best effort, as there is nobody to complain to; takes at most the stream's write time-out for each write.
    pub fn abort(&mut self, refusal: &Refusal) {
        if std::mem::replace(&mut self.over, true) {
            let _ = self.records.send_close_notify();
            return;
        }
        let said = payload(Kind::Abort, &Abort::of(refusal)).and_then(|payload| {
            self.records.write(&frame_head(Kind::Abort, payload.len()))?;
            self.records.write(&payload)
        });
        if said.is_ok() {
            let _ = self.records.send_close_notify();
        }
    }

    /// Closes cleanly (step 1012): close_notify both ways. A message of the peer in its place is
    /// [`Code::UnexpectedMessage`], its [`Abort`] is its refusal, end of file is [`Code::PathTruncated`].
    pub fn close(mut self) -> Result<()> {
        self.farewell()
    }

    /// The same for whoever still holds the path; it is good for nothing then but [`Path::abort`] after a refusal.
    pub fn farewell(&mut self) -> Result<()> {
        self.records.send_close_notify().map_err(|refusal| self.why_gone(refusal))?;
        self.message.clear();
        if !self.records.read_to(&mut self.message, 1)? {
            return Ok(());
        }
        self.read_exactly(FRAME_HEAD)?;
        let (kind, length) = read_head(*self.message.first_chunk().expect("a whole head was read"))?;
        if kind != Kind::Abort {
            return Err(Refusal::new(Code::UnexpectedMessage, format!("a {kind:?} message after the last one")));
        }
        self.message.clear();
        self.read_exactly(length)?;
        Err(read_payload::<Abort>(&self.message)?.into_refusal())
    }
}
