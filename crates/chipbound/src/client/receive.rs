//! Steps 1105, 1107 and 1113 (1003-1008, 1010): the processor's side of a delivery, as its client sees it.

use super::deliver::{Wanted, Way};
use super::relay::{LAST_WORDS, relay};
use super::{Device, blocking};
use crate::control::{Conversation, unexpected};
use chipbound_transport::refusal_of;
use chipbound_wire::api::Ticket;
use chipbound_wire::bounded::{Bytes, Text};
use chipbound_wire::control::{Line, Request, Response};
use chipbound_wire::documents::Confirmation;
use chipbound_wire::signed::Verified;
use chipbound_wire::{Code, OrderId, Refusal, Result};
use indicatif::HumanBytes;
use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};
use serde_json::json;
use std::fs::File;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Bytes that the kernel may hold between relay and processor.
const SOCKET_BUFFER: usize = 1024 * 1024;
/// How long the two ends of the second path may take to close it after the acknowledgement.
const FAREWELL: Duration = Duration::from_secs(30);
/// How often the progress of a tunnel is shown.
const TICK: Duration = Duration::from_millis(100);

/// What the processor says at step 1008.
pub struct Received {
    /// Goes on with the release token.
    pub conversation: Conversation,
    /// The signed acknowledgement.
    pub acknowledgement: Vec<u8>,
    /// Bytes of the package's body.
    pub body_size: u64,
    /// Suite and key mode, for people.
    pub chosen: String,
    /// Bytes that were relayed to the processor; none on a line of its own.
    pub relayed: Option<u64>,
}

/// Has the processor receive: through the tunnel, whose bytes are relayed here, or on its own line. `size` is about how many
/// bytes will come, for people.
pub async fn receive(
    device: &Device<'_>,
    confirmation: &Verified<Confirmation>,
    ticket: &Ticket,
    line: Wanted,
    size: u64,
) -> Result<Received> {
    let confirmation = Bytes::new(confirmation.bytes().to_vec())?;
    let rate = line.rate;
    match line.way {
        Way::OwnLine => {
            let address = ticket.line.clone().ok_or_else(|| Refusal::new(Code::NotSupported, "this server has no line of its own"))?;
            let text = format!("second path on a line of its own to {address}");
            device.story.step(1003, &text, json!({ "way": "own-line", "address": address }));
            let line = Line::Own { address: Text::new(address)?, ticket: ticket.ticket };
            converse(device, Request::Receive { confirmation, line, rate }, None, &AtomicU64::new(0)).await
        }
        Way::Tunnel => {
            let tunnel = device.api.tunnel(ticket).await?;
            device.story.step(1003, "second path inside the first, relayed as opaque bytes", json!({ "way": "tunnel" }));
            let (near, far) = socket_pair()?;
            let carried = Arc::new(AtomicU64::new(0));
            let relaying = tokio::spawn(relay(tunnel, near, carried.clone()));
            let kept = AtomicU64::new(0);
            let conversing = converse(device, Request::Receive { confirmation, line: Line::Tunnel, rate }, Some(far), &kept);
            let received = watched(device, conversing, (&kept, &carried), size).await;
            let received = farewell(relaying, received).await?;
            Ok(Received { relayed: Some(carried.load(Ordering::Relaxed)), ..received })
        }
    }
}

/// Shows how many bytes are there while the delivery goes on: those that were kept of an earlier one, and those that were carried; in
/// the tunnel the client counts for itself, TLS and all. A size of 0 is one that nobody said.
async fn watched<T>(device: &Device<'_>, delivery: impl Future<Output = T>, (kept, carried): (&AtomicU64, &AtomicU64), size: u64) -> T {
    let mut delivery = std::pin::pin!(delivery);
    let so_far = || match kept.load(Ordering::Relaxed) + carried.load(Ordering::Relaxed) {
        done if size == 0 => done,
        done => done.min(size),
    };
    device.story.progress(0, size); // The rate counts from here.
    loop {
        tokio::select! {
            ended = &mut delivery => return ended,
            () = tokio::time::sleep(TICK) => device.story.progress(so_far(), size),
        }
    }
}

/// The second path has ended well only when both ends said so.
async fn farewell(mut relaying: JoinHandle<std::io::Result<()>>, received: Result<Received>) -> Result<Received> {
    let received = match received {
        Ok(received) => received,
        Err(refusal) => {
            // The server shall hear why as well.
            if tokio::time::timeout(LAST_WORDS, &mut relaying).await.is_err() {
                relaying.abort();
            }
            return Err(refusal);
        }
    };
    match tokio::time::timeout(FAREWELL, &mut relaying).await {
        Ok(Ok(Ok(()))) => Ok(received),
        Ok(Ok(Err(e))) => Err(refusal_of("the second path", e)),
        Ok(Err(e)) => Err(Refusal::new(Code::Internal, "the relay ended").because(e)),
        Err(_) => {
            relaying.abort();
            Err(Refusal::new(Code::TimedOut, "the second path was not closed after the acknowledgement"))
        }
    }
}

/// A pair of stream sockets with room for bulk: our asynchronous end, and the one that goes to the processor.
fn socket_pair() -> Result<(tokio::net::UnixStream, UnixStream)> {
    let failed = |e| Refusal::io("a pair of sockets", e);
    let (near, far) = UnixStream::pair().map_err(failed)?;
    for end in [&near, &far] {
        // Beyond the system's limit only with CAP_NET_ADMIN; less room costs speed alone.
        let _ = set_socket_send_buffer_size_force(end, SOCKET_BUFFER).or_else(|_| set_socket_send_buffer_size(end, SOCKET_BUFFER));
    }
    near.set_nonblocking(true).map_err(failed)?;
    Ok((tokio::net::UnixStream::from_std(near).map_err(failed)?, far))
}

/// Ends the conversation when it is dropped before its time, so that neither processor nor thread waits for us.
struct HangUp(Option<UnixStream>);

impl Drop for HangUp {
    fn drop(&mut self) {
        if let Some(stream) = self.0.take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// What the processor tells before its answer.
enum Told {
    GoesOn { kept: u64, total: u64 },
    Progress { done: u64, total: u64 },
}

/// Has the processor receive, and passes on what it tells; how much it kept of an earlier delivery goes into `kept`.
async fn converse(device: &Device<'_>, request: Request, far: Option<UnixStream>, kept: &AtomicU64) -> Result<Received> {
    let socket = device.socket.to_owned();
    let mut conversation = blocking(move || Conversation::open(&socket)).await?;
    let mut hang_up = HangUp(Some(conversation.handle()?));
    let (tell, mut told) = mpsc::unbounded_channel(); // The processor reports a few times a second at most.
    let work = tokio::task::spawn_blocking(move || {
        let descriptors: Vec<_> = far.iter().map(AsFd::as_fd).collect();
        conversation.ask(&request, &descriptors)?;
        drop(far); // The processor has its own now; the tunnel must end when that one is closed.
        let tell = |told| drop(tell.send(told)); // Nobody listens to a delivery that was cancelled.
        loop {
            match conversation.answer()? {
                Response::GoesOn { kept, total } => tell(Told::GoesOn { kept, total }),
                Response::Progress { done, total } => tell(Told::Progress { done, total }),
                Response::Received { acknowledgement, body_size, chosen } => {
                    let (acknowledgement, chosen) = (acknowledgement.into_vec(), chosen.to_string());
                    return Ok(Received { conversation, acknowledgement, body_size, chosen, relayed: None });
                }
                other => return Err(unexpected(&other)),
            }
        }
    });
    while let Some(told) = told.recv().await {
        match told {
            Told::Progress { done, total } => device.story.progress(done, total),
            Told::GoesOn { kept: there, total } => {
                kept.store(there, Ordering::Relaxed);
                let text = format!("going on where it stopped: {} of {} are here", HumanBytes(there), HumanBytes(total));
                device.story.step(1007, &text, json!({ "kept": there, "bytes": total }));
            }
        }
    }
    let received = work.await.map_err(|e| Refusal::new(Code::Internal, "a thread of the client ended").because(e))?;
    hang_up.0 = None;
    received
}

/// Step 1113 (1010): hands the token in; the package's descriptor and size come back.
pub fn release(conversation: &mut Conversation, order: OrderId, token: Vec<u8>) -> Result<(File, u64)> {
    conversation.ask(&Request::Release { token: Bytes::new(token)? }, &[])?;
    match conversation.answer_after(|_, _| ())? {
        Response::Released { size, order: released } if released == order => Ok((File::from(conversation.descriptor()?), size)),
        Response::Released { .. } => Err(Refusal::new(Code::OrderMismatch, "the processor released another order's package")),
        other => Err(unexpected(&other)),
    }
}

/// Tells the processor that the package is on this disk.
pub fn taken(conversation: &mut Conversation) -> Result<()> {
    conversation.ask(&Request::Taken, &[])?;
    match conversation.answer()? {
        Response::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}
