//! One connection on the control socket: frames of `wire::control`, descriptors beside them, and who is on the other side.

use chipbound_wire::bounded::{decode, encode};
use chipbound_wire::control::{MAX_CONTROL, Request, Response};
use chipbound_wire::limits::MAX_WITH;
use chipbound_wire::messages::Abort;
use chipbound_wire::{Code, Refusal, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
    sendmsg,
};
use rustix::process::Pid;
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Descriptors beside one frame at most.
const MAX_DESCRIPTORS: usize = 1 + MAX_WITH;

/// How long the client may take to read one answer.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// Who connected, as the kernel recorded it (SO_PEERCRED).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// The process.
    pub pid: Pid,
    /// Its effective user at that moment.
    pub uid: u32,
}

/// A request and what came with it.
#[derive(Debug)]
pub struct Asked {
    /// The request.
    pub request: Request,
    /// Its descriptors, in order.
    pub descriptors: Vec<OwnedFd>,
}

/// One client's connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    peer: Peer,
}

impl Connection {
    /// Takes an accepted connection.
    pub fn new(stream: UnixStream) -> Result<Self> {
        let credentials = socket_peercred(&stream).map_err(|e| Refusal::io("who connected", e.into()))?;
        stream.set_write_timeout(Some(SEND_TIMEOUT)).map_err(|e| Refusal::io("the control socket", e))?;
        Ok(Self { stream, peer: Peer { pid: credentials.pid, uid: credentials.uid.as_raw() } })
    }

    /// Who is on the other side.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The next request, which has to begin within `patience`; None when the client closed the connection between requests.
    /// Refuses with [`Code::Malformed`], [`Code::TooLarge`], [`Code::TimedOut`].
    pub fn receive(&mut self, patience: Duration) -> Result<Option<Asked>> {
        self.stream.set_read_timeout(Some(patience)).map_err(|e| Refusal::io("the control socket", e))?;
        let mut descriptors = Vec::new();
        let mut head = [0; 4];
        if !self.fill(&mut head, &mut descriptors, true)? {
            return Ok(None);
        }
        let length = u32::from_be_bytes(head) as usize;
        if length > MAX_CONTROL {
            return Err(Refusal::new(Code::TooLarge, format!("a request of {length} bytes where {MAX_CONTROL} are allowed")));
        }
        let mut body = vec![0; length];
        self.fill(&mut body, &mut descriptors, false)?;
        Ok(Some(Asked { request: decode(&body)?, descriptors }))
    }

    /// Sends an answer, with a descriptor beside it where one is given.
    pub fn send(&mut self, response: &Response, descriptor: Option<BorrowedFd<'_>>) -> Result<()> {
        let body = encode(response);
        let length = u32::try_from(body.len()).ok().filter(|l| *l as usize <= MAX_CONTROL);
        let head = length.ok_or_else(|| Refusal::new(Code::TooLarge, "an answer larger than its limit"))?.to_be_bytes();
        let frame = [head.as_slice(), &body].concat();
        let gone = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => {
                Refusal::new(Code::Cancelled, "the client closed its connection").because(e)
            }
            _ => Refusal::io("answering the client", e),
        };
        let sent = match descriptor {
            None => 0,
            Some(descriptor) => send_with(&self.stream, &frame, descriptor).map_err(gone)?,
        };
        self.stream.write_all(&frame[sent..]).map_err(gone)
    }

    /// Sends a refusal.
    pub fn refuse(&mut self, refusal: &Refusal) -> Result<()> {
        self.send(&Response::Refused { abort: Abort::of(refusal) }, None)
    }

    /// Another handle of the connection, to see when the client closes it.
    pub fn watched(&self) -> std::io::Result<Watched> {
        self.stream.try_clone().map(Watched)
    }

    /// Fills `buffer`, collecting descriptors. False at an end of file before the first byte where `may_end`.
    fn fill(&self, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>, may_end: bool) -> Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            let n = receive_with(self.stream.as_fd(), &mut buffer[filled..], descriptors)?;
            if n == 0 && filled == 0 && may_end {
                return Ok(false);
            }
            if n == 0 {
                return Err(Refusal::new(Code::Malformed, "the request ends before its length"));
            }
            filled += n;
        }
        Ok(true)
    }
}

/// Looks whether a client is still there.
#[derive(Debug)]
pub struct Watched(UnixStream);

impl Watched {
    /// Whether the client has closed its connection, or ended.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let mut watched = [PollFd::new(&self.0, PollFlags::RDHUP)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut watched, Some(&at_once)), Ok(n) if n > 0)
    }
}

fn send_with(stream: &UnixStream, frame: &[u8], descriptor: BorrowedFd<'_>) -> std::io::Result<usize> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "the space is for one descriptor");
    Ok(sendmsg(stream, &[IoSlice::new(frame)], &mut control, SendFlags::NOSIGNAL)?)
}

fn receive_with(stream: BorrowedFd<'_>, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other.map_err(|e| Refusal::io("the control socket", e.into()))?,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > MAX_DESCRIPTORS {
        return Err(Refusal::new(Code::Malformed, format!("more than {MAX_DESCRIPTORS} descriptors came with the request")));
    }
    Ok(received.bytes)
}
