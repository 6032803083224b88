//! How second paths come in: through the tunnel of the first path, or on a line of their own (source \[31\]). Each delivery has a
//! thread; strangers cost neither a thread nor a handshake.

use crate::deliver::deliver;
use crate::places::Place;
use crate::server::Server;
use crate::storage::{Repository, StoredOrder};
use chipbound_transport::{RawStream, Timeouts, network_of, refusal_of};
use chipbound_wire::api::LINE_MAGIC;
use chipbound_wire::{Code, Digest, Refusal, Result};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

/// How long a newcomer on the line may take for its magic and ticket.
const TICKET_TIME: Duration = Duration::from_secs(5);
/// Newcomers at once, in all and of one address.
const NEWCOMERS: usize = 256;
const NEWCOMERS_OF_A_PEER: usize = 32;
/// How long the line rests when the system has no file descriptor for it.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// How long one read or write may bring or take nothing.
const STILL: Timeouts = Timeouts { read: Duration::from_secs(120), write: Duration::from_secs(30) };
/// After that many seconds a delivery must have moved [`FLOOR`] bytes for each second since its start (attack A12).
const GRACE: Duration = Duration::from_secs(120);
/// Bytes per second.
const FLOOR: u64 = 4 * 1024;

impl<R: Repository> Server<R> {
    /// Delivers `order` through the tunnel that `stream` becomes.
    pub(crate) fn deliver_in_tunnel(
        self: &Arc<Self>,
        order: StoredOrder,
        place: Place,
        stream: impl Future<Output = Result<RawStream>> + Send + 'static,
    ) {
        let server = self.clone();
        tokio::spawn(async move {
            let stream = match stream.await.and_then(|raw| raw.into_blocking(STILL)) {
                Ok(stream) => stream,
                Err(refusal) => return tracing::info!(order = %order.order, %refusal, "a tunnel did not come about"),
            };
            server.on_a_thread(order, place, move |server, order, runtime| {
                let mut stream = stream;
                let delivered = deliver(server, order, Paced::new(&mut stream), runtime);
                // The first path is closed in any case (step 1012); why the second one ended matters more.
                let closed = stream.finish();
                delivered.and(closed)
            });
        });
    }

    fn on_a_thread(
        self: Arc<Self>,
        order: StoredOrder,
        place: Place,
        role: impl FnOnce(&Self, &StoredOrder, &Handle) -> Result<()> + Send + 'static,
    ) {
        let runtime = Handle::current();
        let thread = self.threads.clone().run(move || {
            let _place = place;
            match role(&self, &order, &runtime) {
                Ok(()) => tracing::info!(order = %order.order, "delivered"),
                Err(refusal) => tracing::info!(order = %order.order, %refusal, "a delivery ended early"),
            }
        });
        if let Err(error) = thread {
            tracing::error!(%error, "no thread for a delivery");
        }
    }
}

/// Serves the line of its own: magic and ticket first, within `TICKET_TIME`; without a good ticket the connection is closed and
/// no public-key operation was spent on it. Never returns.
pub async fn serve_line<R: Repository>(server: Arc<Server<R>>, listener: TcpListener) {
    let door = Arc::new(Door::default());
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => match door.admit(network_of(peer.ip())) {
                Some(newcomer) => drop(tokio::spawn(admit(server.clone(), tcp, peer, newcomer))),
                None => tracing::debug!(%peer, "turned away: too many newcomers on the line"),
            },
            Err(error) => {
                tracing::warn!(%error, "accepting a connection on the line failed");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

async fn admit<R: Repository>(server: Arc<Server<R>>, mut tcp: TcpStream, peer: SocketAddr, newcomer: Newcomer) {
    let admitted = async {
        let ticket = tokio::time::timeout(TICKET_TIME, read_ticket(&mut tcp)).await;
        let ticket = ticket.map_err(|e| Refusal::new(Code::TimedOut, "no ticket in time").because(e))??;
        // What a stranger invented costs one look, and no place that somebody could use.
        server.check_ticket(&ticket).await?;
        let place = server.places.take()?;
        let order = server.redeem_ticket(&ticket, None).await?;
        let place = server.places.give(place, order.account)?;
        Ok::<_, Refusal>((order, place, blocking(tcp)?))
    };
    match admitted.await {
        Ok((order, place, tcp)) => {
            drop(newcomer);
            server.on_a_thread(order, place, move |server, order, runtime| deliver(server, order, Paced::new(tcp), runtime));
        }
        Err(refusal) => tracing::info!(%peer, %refusal, "not admitted on the line"),
    }
}

async fn read_ticket(tcp: &mut TcpStream) -> Result<Digest> {
    let mut greeting = [0; LINE_MAGIC.len() + 32];
    tcp.read_exact(&mut greeting).await.map_err(|e| refusal_of("reading a ticket", e))?;
    match greeting.strip_prefix(LINE_MAGIC.as_slice()) {
        Some(ticket) => Digest::from_slice(ticket),
        None => Err(Refusal::new(Code::UnexpectedMessage, "not the greeting of a line")),
    }
}

fn blocking(tcp: TcpStream) -> Result<std::net::TcpStream> {
    let prepared = tcp.into_std().and_then(|tcp| {
        tcp.set_nonblocking(false)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(STILL.read))?;
        tcp.set_write_timeout(Some(STILL.write))?;
        Ok(tcp)
    });
    prepared.map_err(|e| Refusal::io("preparing a connection", e))
}

/// Counts newcomers.
#[derive(Default)]
struct Door(Mutex<(usize, HashMap<IpAddr, usize>)>);

impl Door {
    fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Newcomer> {
        let mut door = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = door.1.get(&peer).copied().unwrap_or(0);
        if door.0 >= NEWCOMERS || of_peer >= NEWCOMERS_OF_A_PEER {
            return None;
        }
        door.0 += 1;
        door.1.insert(peer, of_peer + 1);
        Some(Newcomer { door: self.clone(), peer })
    }
}

/// A newcomer that is counted until it is dropped.
struct Newcomer {
    door: Arc<Door>,
    peer: IpAddr,
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        let mut door = self.door.0.lock().unwrap_or_else(PoisonError::into_inner);
        door.0 -= 1;
        match door.1.get(&self.peer).copied() {
            Some(n) if n > 1 => drop(door.1.insert(self.peer, n - 1)),
            _ => drop(door.1.remove(&self.peer)),
        }
    }
}

/// A stream that refuses a peer which keeps the connection alive but moves next to nothing.
struct Paced<S> {
    stream: S,
    since: Instant,
    moved: u64,
}

impl<S> Paced<S> {
    fn new(stream: S) -> Self {
        Self { stream, since: Instant::now(), moved: 0 }
    }

    fn note(&mut self, n: usize) -> io::Result<usize> {
        self.moved += n as u64;
        let elapsed = self.since.elapsed();
        if elapsed > GRACE && self.moved < FLOOR * elapsed.as_secs() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer is slower than the least throughput"));
        }
        Ok(n)
    }
}

impl<S: Read> Read for Paced<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.stream.read(buf)?;
        self.note(n)
    }
}

impl<S: Write> Write for Paced<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.stream.write(buf)?;
        self.note(n)
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let n = self.stream.write_vectored(bufs)?;
        self.note(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
