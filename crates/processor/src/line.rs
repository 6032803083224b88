//! The line under a second path: a socket with time-outs whose bytes are counted, and the watch that ends it when the client goes
//! away or the server only trickles (A12, A16).

use crate::connection::Connection;
use chipbound_wire::api::LINE_MAGIC;
use chipbound_wire::control::Line;
use chipbound_wire::{Code, Digest, Refusal, Result};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_type};
use rustix::net::{Shutdown, SocketType, shutdown};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Scope, Thread};
use std::time::{Duration, Instant};

/// Bytes that must come or go within each time of silence that is allowed.
const LEAST_BYTES: u64 = 64 * 1024;

/// The slowest rate that may be asked for, in bytes a second: below it the server gives a delivery up.
pub const SLOWEST: u32 = 16 * 1024;

/// Between two looks of the watch.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A socket that blocks, with its bytes counted.
#[derive(Debug)]
pub struct Stream {
    socket: File,
    moved: Arc<AtomicU64>,
    pace: Option<Pace>,
}

impl Stream {
    /// Reaches the server: over the client's descriptor, or by dialling.
    pub fn open(line: &Line, descriptor: Option<OwnedFd>, silence: Duration) -> Result<Self> {
        let socket: OwnedFd = match (line, descriptor) {
            (Line::Tunnel, Some(descriptor)) => check_socket(descriptor)?,
            (Line::Own { address, ticket }, None) => dial(address, ticket, silence)?.into(),
            _ => return Err(Refusal::new(Code::Malformed, "a tunnel comes with one descriptor, a line of its own with none")),
        };
        for timeout in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, timeout, Some(silence)).map_err(|e| Refusal::io("the line to the server", e.into()))?;
        }
        Ok(Self { socket: socket.into(), moved: Arc::default(), pace: None })
    }

    /// Takes no more than `rate` bytes a second, at least [`SLOWEST`]; as many as come where none are told.
    #[must_use]
    pub fn slowed_to(self, rate: Option<u32>) -> Self {
        let pace = rate.map(|rate| Pace { rate: rate.max(SLOWEST), since: Instant::now(), taken: 0 });
        Self { pace, ..self }
    }

    /// What keeps the watch from taking work for silence.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        Pulse(Arc::clone(&self.moved))
    }

    /// Watches the line until the result is dropped: it is shut down when the client's connection ends or too little moves.
    pub fn watch<'scope>(&self, connection: &Connection, silence: Duration, scope: &'scope Scope<'scope, '_>) -> Result<Watch> {
        let failed = |e| Refusal::io("watching the line", e);
        let line = self.socket.try_clone().map_err(failed)?;
        let client = connection.watched().map_err(failed)?;
        let (moved, over, cancelled) = (Arc::clone(&self.moved), Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let watched = (Arc::clone(&over), Arc::clone(&cancelled));
        let watching = scope.spawn(move || {
            let (mut since, mut then) = (Instant::now(), 0);
            while !over.load(Ordering::Relaxed) {
                thread::park_timeout(LOOK_EVERY);
                let now = moved.load(Ordering::Relaxed);
                if now - then >= LEAST_BYTES {
                    (since, then) = (Instant::now(), now);
                }
                let gone = client.is_gone();
                if gone || since.elapsed() > silence {
                    cancelled.store(gone, Ordering::Relaxed);
                    let _ = shutdown(line.as_fd(), Shutdown::Both); // Fails only where the line has ended already.
                    return;
                }
            }
        });
        Ok(Watch { over: watched.0, cancelled: watched.1, thread: watching.thread().clone() })
    }
}

/// A rate that is not exceeded, over a second or so.
#[derive(Debug)]
struct Pace {
    rate: u32,
    since: Instant,
    taken: u64,
}

impl Pace {
    /// Waits until `n` more bytes are within the rate. What a slow second did not use is not made up for.
    fn take(&mut self, n: usize) {
        self.taken += n as u64;
        let due = Duration::from_secs_f64(self.taken as f64 / f64::from(self.rate));
        let elapsed = self.since.elapsed();
        match due.checked_sub(elapsed) {
            Some(early) => thread::sleep(early),
            None if elapsed - due > LOOK_EVERY => (self.since, self.taken) = (Instant::now(), 0),
            None => {}
        }
    }
}

/// Says that there is work to do before more is taken from the line.
#[derive(Debug)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// There was some just now.
    pub fn beat(&self) {
        self.0.fetch_add(LEAST_BYTES, Ordering::Relaxed);
    }
}

/// Ends the watching when it is dropped.
#[derive(Debug)]
pub struct Watch {
    over: Arc<AtomicBool>,
    cancelled: Arc<AtomicBool>,
    thread: Thread,
}

impl Watch {
    /// Whether the client went away.
    #[must_use]
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.unpark(); // The delivery must not wait for the next look.
    }
}

/// A descriptor from the client must be a connected stream socket: on anything else the time-outs would not hold.
fn check_socket(descriptor: OwnedFd) -> Result<OwnedFd> {
    match socket_type(&descriptor) {
        Ok(SocketType::STREAM) => Ok(descriptor),
        _ => Err(Refusal::new(Code::Malformed, "the descriptor of the tunnel is not a stream socket")),
    }
}

/// Dials the server's own line and shows the ticket.
fn dial(address: &str, ticket: &Digest, patience: Duration) -> Result<TcpStream> {
    let unreachable = |e: io::Error| Refusal::new(Code::ServerUnreachable, format!("{address}: {e}")).because(e);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for place in address.to_socket_addrs().map_err(unreachable)? {
        match TcpStream::connect_timeout(&place, patience) {
            Ok(mut line) => {
                line.set_nodelay(true).map_err(unreachable)?;
                line.write_all(&[LINE_MAGIC.as_slice(), &ticket.0].concat()).map_err(unreachable)?;
                return Ok(line);
            }
            Err(error) => last = error,
        }
    }
    Err(unreachable(last))
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.socket.read(buf)?;
        if let Some(pace) = &mut self.pace {
            pace.take(n);
        }
        self.moved.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.socket.write(buf)?;
        self.moved.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let n = self.socket.write_vectored(bufs)?;
        self.moved.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
