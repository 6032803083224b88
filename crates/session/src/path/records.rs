//! TLS over a blocking stream: what is below the messages. Reads and writes in large pieces, whatever the size of records.

use super::Meter;
use crate::Channel;
use crate::tls::Verdict;
use chipbound_wire::documents::EXPORTER_LABEL;
use chipbound_wire::messages::ALPN;
use chipbound_wire::{Code, Digest, Refusal, Result};
use rustls::Connection;
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of the first reads from the stream; an end that only ever receives documents needs no more.
const SMALL_READ: usize = 32 * 1024;
/// Bytes of the reads from the stream once one small read was filled.
const LARGE_READ: usize = 256 * 1024;

/// Pieces of what the peer sent last that are looked through for its alert after a write failed.
const LAST_RECORDS: usize = 8;

/// One TLS connection and the stream below it.
pub(super) struct Records<S> {
    stream: S,
    tls: Connection,
    verdict: Arc<Verdict>,
    /// TLS bytes read from the stream, of which `unread` were not yet given to TLS.
    incoming: Vec<u8>,
    unread: Range<usize>,
    meter: Arc<Meter>,
}

impl<S: Read + Write> Records<S> {
    pub(super) fn new(stream: S, mut tls: Connection, verdict: Arc<Verdict>) -> Self {
        tls.set_buffer_limit(None);
        Self { stream, tls, verdict, incoming: vec![0; SMALL_READ], unread: 0..0, meter: Arc::default() }
    }

    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    pub(super) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Bytes set aside for reading.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.incoming.capacity()
    }

    /// The handshake, and who the peer proved to be.
    pub(super) fn handshake(&mut self) -> Result<Channel> {
        while self.tls.is_handshaking() {
            if self.tls.wants_write() {
                self.flush().map_err(|refusal| self.last_alert(refusal))?;
            } else {
                self.advance()?;
            }
        }
        self.flush().map_err(|refusal| self.last_alert(refusal))?;
        let mut exporter = Digest([0; 32]);
        self.tls
            .export_keying_material(&mut exporter.0, EXPORTER_LABEL, Some(&[]))
            .map_err(|e| Refusal::new(Code::Internal, format!("TLS exports nothing: {e}")).because(e))?;
        Ok(Channel { peer: self.verdict.peer()?, exporter })
    }

    /// A peer that hangs up within the handshake has usually said why: looks for its alert among what it sent last.
    fn last_alert(&mut self, refusal: Refusal) -> Refusal {
        if refusal.code != Code::PathTruncated {
            return refusal;
        }
        (0..LAST_RECORDS).find_map(|_| self.advance().err()).filter(|said| said.code != Code::PathTruncated).unwrap_or(refusal)
    }

    /// Whether both ends agreed on this protocol.
    pub(super) fn is_ours(&self) -> bool {
        self.tls.alpn_protocol() == Some(ALPN)
    }

    /// Appends plaintext to `out` until `out` holds `until` bytes; false where the peer closed (close_notify) before.
    pub(super) fn read_to(&mut self, out: &mut Vec<u8>, until: usize) -> Result<bool> {
        while out.len() < until {
            let mut reader = self.tls.reader();
            let ready = match reader.fill_buf() {
                Ok([]) => return Ok(false),
                Ok(plain) => plain,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.advance()?;
                    continue;
                }
                Err(e) => return Err(stream_refusal("reading", e)),
            };
            let taken = ready.len().min(until - out.len());
            out.extend_from_slice(&ready[..taken]);
            reader.consume(taken);
        }
        Ok(true)
    }

    /// Gives TLS at least one more byte of the stream.
    fn advance(&mut self) -> Result<()> {
        if self.unread.is_empty() {
            self.read_stream()?;
        }
        let mut unread = &self.incoming[self.unread.clone()];
        let taken = self.tls.read_tls(&mut unread).map_err(|e| stream_refusal("reading", e))?;
        self.unread.start += taken;
        // Nothing is sent from here but an alert: after a failed write the peer's last word must still be readable.
        self.tls.process_new_packets().map(|_| ()).map_err(|error| {
            // Whether the alert arrives is the network's affair.
            let _ = self.flush();
            self.verdict.explain(error)
        })
    }

    fn read_stream(&mut self) -> Result<()> {
        if self.unread.end == self.incoming.len() && self.incoming.len() < LARGE_READ {
            self.incoming.resize(LARGE_READ, 0);
        }
        loop {
            match self.stream.read(&mut self.incoming) {
                Ok(0) => return Err(Refusal::new(Code::PathTruncated, "the second path ended without close_notify")),
                Ok(read) => {
                    self.meter.received.fetch_add(read as u64, Ordering::Relaxed);
                    self.unread = 0..read;
                    return Ok(());
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(stream_refusal("reading", e)),
            }
        }
    }

    /// Encrypts `plain`; [`Self::flush`] sends.
    pub(super) fn write(&mut self, plain: &[u8]) -> Result<()> {
        self.tls.writer().write_all(plain).map_err(|e| stream_refusal("writing", e))
    }

    /// Sends what was encrypted.
    pub(super) fn flush(&mut self) -> Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.stream) {
                Ok(0) => return Err(stream_refusal("writing", io::Error::from(ErrorKind::WriteZero))),
                Ok(sent) => {
                    self.meter.sent.fetch_add(sent as u64, Ordering::Relaxed);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(stream_refusal("writing", e)),
            }
        }
        self.stream.flush().map_err(|e| stream_refusal("writing", e))
    }

    /// Says that nothing more will be sent.
    pub(super) fn send_close_notify(&mut self) -> Result<()> {
        self.tls.send_close_notify();
        self.flush()
    }
}

/// The refusal for a failed read or write: a stream that is gone was cut, one that blocks was too slow.
fn stream_refusal(doing: &str, error: io::Error) -> Refusal {
    use ErrorKind as K;
    match error.kind() {
        K::UnexpectedEof | K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe | K::NotConnected | K::WriteZero => {
            Refusal::new(Code::PathTruncated, format!("the second path was cut while {doing}: {error}")).because(error)
        }
        _ => Refusal::io(format_args!("{doing} on the second path"), error),
    }
}
