//! A raw TLS stream with blocking reads and writes, made for bulk: a role of the second path is a plain function on a thread.

use crate::admission::Admitted;
use crate::tunnel::refusal_of;
use bytes::{Buf, Bytes};
use chipbound_wire::{Code, Refusal, Result};
use rustls::Connection;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// Plaintext bytes taken by one write, encrypted and handed to the kernel with one system call where it takes them.
const WRITE_AT_ONCE: usize = 256 * 1024;
/// Ciphertext bytes asked of the kernel by one read.
const READ_AT_ONCE: usize = 128 * 1024;

/// How long one read or write may block; [`Code::TimedOut`] after that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// Waiting for the first byte of a read.
    pub read: Duration,
    /// Waiting for the peer to take anything of a write.
    pub write: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { read: Duration::from_secs(60), write: Duration::from_secs(60) }
    }
}

/// A TLS connection with blocking reads and writes.
///
/// Reads yield `Ok(0)` only after the peer's close_notify; an end of file without it is an error of kind
/// [`ErrorKind::UnexpectedEof`], which [`refusal_of`] names [`Code::PathTruncated`]. Every write is on its way when it
/// returns: nothing waits for a flush. After an error other than [`ErrorKind::Interrupted`] the connection is of no use.
pub struct BlockingTls {
    socket: TcpStream,
    received: Received,
    head: Bytes,
    connection: Connection,
    /// A failure behind bytes that a read gave out first.
    failed: Option<io::Error>,
    _place: Option<Admitted>,
}

/// Ciphertext read from the socket that TLS has not taken yet.
struct Received {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Received {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

impl BlockingTls {
    /// Joins what was read of the connection already: `ciphertext` that TLS has not seen, and `head`, plaintext that came
    /// before anything in `connection`.
    pub(crate) fn new(
        socket: tokio::net::TcpStream,
        ciphertext: Vec<u8>,
        head: Bytes,
        mut connection: Connection,
        timeouts: Timeouts,
        place: Option<Admitted>,
    ) -> Result<Self> {
        let blocking = |socket: tokio::net::TcpStream| {
            let socket = socket.into_std()?;
            socket.set_nonblocking(false)?;
            socket.set_read_timeout(Some(timeouts.read))?;
            socket.set_write_timeout(Some(timeouts.write))?;
            Ok(socket)
        };
        let socket = blocking(socket).map_err(|e| Refusal::io("making the connection blocking", e))?;
        connection.set_buffer_limit(None); // A write is cut to WRITE_AT_ONCE here and sent before the next is taken.
        let end = ciphertext.len();
        let mut buffer = vec![0; READ_AT_ONCE.max(end)]; // Of the kernel's zeroes: what is never read into takes no memory.
        buffer[..end].copy_from_slice(&ciphertext);
        Ok(Self { socket, received: Received { buffer, start: 0, end }, head, connection, failed: None, _place: place })
    }

    /// The TLS connection, for its exporter (RFC 8446 §7.5) and negotiated parameters.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Says close_notify and waits for the peer's, within the read time-out.
    ///
    /// # Errors
    /// [`Code::PathTruncated`] when the peer goes without close_notify, [`Code::UnexpectedMessage`] when it goes on sending.
    pub fn finish(mut self) -> Result<()> {
        let farewell = |stream: &mut Self| {
            stream.connection.send_close_notify();
            stream.send()?;
            let more = stream.read(&mut [0; 1])?;
            stream.socket.shutdown(Shutdown::Both).or_else(|e| if e.kind() == ErrorKind::NotConnected { Ok(()) } else { Err(e) })?;
            Ok(more)
        };
        match farewell(&mut self).map_err(|e| refusal_of("closing the path", e))? {
            0 => Ok(()),
            _ => Err(Refusal::new(Code::UnexpectedMessage, "bytes came where the path should be closed")),
        }
    }

    /// Sends all ciphertext that is ready.
    fn send(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut self.socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(late("the peer takes nothing any more")),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Gives TLS more ciphertext, from the buffer or else from the socket.
    fn receive(&mut self) -> io::Result<()> {
        if self.received.is_empty() {
            self.received.start = 0;
            self.received.end = loop {
                match self.socket.read(&mut self.received.buffer) {
                    Ok(n) => break n,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(late("the peer sends nothing any more")),
                    Err(e) => return Err(e),
                }
            };
        }
        let mut unread = &self.received.buffer[self.received.start..self.received.end];
        self.received.start += self.connection.read_tls(&mut unread)?;
        if let Err(error) = self.connection.process_new_packets() {
            let _ = self.send(); // The alert; what is reported is why it was sent.
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        self.send()
    }
}

fn late(what: &str) -> io::Error {
    io::Error::new(ErrorKind::TimedOut, what)
}

impl Read for BlockingTls {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.head.is_empty() {
            let n = self.head.len().min(buf.len());
            self.head.copy_to_slice(&mut buf[..n]);
            return Ok(n);
        }
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut filled = 0;
        loop {
            match self.connection.reader().read(&mut buf[filled..]) {
                Ok(0) => return Ok(filled),
                Ok(n) => filled += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock && filled == 0 => self.receive()?,
                Err(e) if e.kind() == ErrorKind::WouldBlock && !self.received.is_empty() => self.failed = self.receive().err(),
                Err(_) if filled > 0 => return Ok(filled),
                Err(e) => return Err(e),
            }
            if filled > 0 && (self.received.is_empty() || self.failed.is_some()) {
                // What is there is given out before the socket is waited for, or before a failure that came behind it.
                return self.connection.reader().read(&mut buf[filled..]).map_or(Ok(filled), |n| Ok(filled + n));
            }
        }
    }
}

impl Write for BlockingTls {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let taken = self.connection.writer().write(&buf[..buf.len().min(WRITE_AT_ONCE)])?;
        self.send()?;
        Ok(taken)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut room = WRITE_AT_ONCE;
        let mut whole = 0;
        while whole < bufs.len() && bufs[whole].len() <= room {
            room -= bufs[whole].len();
            whole += 1;
        }
        if whole == 0 {
            return bufs.first().map_or(Ok(0), |first| self.write(first));
        }
        let taken = self.connection.writer().write_vectored(&bufs[..whole])?;
        self.send()?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.connection.writer().flush()?;
        self.send()
    }
}
