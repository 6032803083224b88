//! The client's end of the processor's unix socket: frames of [`chipbound_wire::control`], descriptors beside them.
//! Blocking: `run` has no other shell, and the asynchronous one gives each conversation a thread.

use chipbound_wire::bounded::{Bytes, decode, encode};
use chipbound_wire::certificate::Chain;
use chipbound_wire::control::{MAX_CONTROL, Request, Response, WaitingDelivery};
use chipbound_wire::limits::MAX_WITH;
use chipbound_wire::suite::Class;
use chipbound_wire::{Code, KeyId, OrderId, ProgramId, Refusal, Result, Time};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Descriptors that one frame may bring.
const MAX_DESCRIPTORS: usize = 1 + MAX_WITH;

/// One conversation with the processor.
#[derive(Debug)]
pub struct Conversation {
    stream: UnixStream,
    descriptors: VecDeque<OwnedFd>,
}

/// Who a processor says it is. Only its certificate proves it, to the server; here it is used to ask and to choose.
#[derive(Clone, Debug)]
pub struct Description {
    /// The id of its identity key.
    pub processor: KeyId,
    /// The class of its key store.
    pub class: Class,
    /// Its certificate chain; empty before enrolment.
    pub chain: Chain,
    /// The last second of its certificate's validity.
    pub valid_until: Option<Time>,
    /// The daemon's process id.
    pub pid: u32,
    /// The authority's root certificate that it trusts; empty before enrolment.
    pub root: Vec<u8>,
    /// The path of its interpreter, for packages to name; none where it has none.
    pub interpreter: Option<Vec<u8>>,
}

impl Conversation {
    /// Connects to the processor's socket; [`Code::ProcessorUnreachable`] when nobody answers there.
    pub fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).map_err(|e| {
            let why = match e.kind() {
                ErrorKind::NotFound => "there is no such socket".to_owned(),
                ErrorKind::ConnectionRefused => "no processor serves this socket any more".to_owned(),
                _ => e.to_string(),
            };
            Refusal::new(Code::ProcessorUnreachable, format!("{}: {why}", socket.display())).because(e)
        })?;
        Ok(Self { stream, descriptors: VecDeque::new() })
    }

    /// The process at the other end, as the kernel knows it.
    pub fn peer(&self) -> Result<rustix::process::Pid> {
        Ok(rustix::net::sockopt::socket_peercred(&self.stream).map_err(|e| Refusal::io("the processor's process id", e.into()))?.pid)
    }

    /// A second handle on the same connection, to end it from elsewhere.
    pub fn handle(&self) -> Result<UnixStream> {
        self.stream.try_clone().map_err(|e| Refusal::io("the processor's socket", e))
    }

    /// Sends a request with its descriptors.
    pub fn ask(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let body = encode(request);
        let length = u32::try_from(body.len()).ok().filter(|n| *n as usize <= MAX_CONTROL);
        let length = length.ok_or_else(|| Refusal::new(Code::TooLarge, "a request to the processor is larger than its limit"))?;
        let frame = [&length.to_be_bytes(), body.as_slice()].concat();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut sent = 0;
        while sent < frame.len() {
            let mut beside = SendAncillaryBuffer::new(&mut space);
            if sent == 0 && !descriptors.is_empty() {
                assert!(beside.push(SendAncillaryMessage::ScmRights(descriptors)), "the space holds every request's descriptors");
            }
            match sendmsg(&self.stream, &[IoSlice::new(&frame[sent..])], &mut beside, SendFlags::NOSIGNAL) {
                Ok(n) => sent += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(lost(e.into())),
            }
        }
        Ok(())
    }

    /// The next answer; a refusal of the processor's becomes the error.
    pub fn answer(&mut self) -> Result<Response> {
        let mut head = [0; 4];
        self.fill(&mut head)?;
        let length = u32::from_be_bytes(head) as usize;
        if length > MAX_CONTROL {
            return Err(Refusal::new(Code::TooLarge, "the processor's answer is larger than its limit"));
        }
        let mut body = vec![0; length];
        self.fill(&mut body)?;
        match decode(&body)? {
            Response::Refused { abort } => Err(abort.into_refusal()),
            response => Ok(response),
        }
    }

    /// The answer after any number of progress reports.
    pub fn answer_after(&mut self, mut progress: impl FnMut(u64, u64)) -> Result<Response> {
        loop {
            match self.answer()? {
                Response::Progress { done, total } => progress(done, total),
                response => return Ok(response),
            }
        }
    }

    /// The descriptor that came along with the last answer.
    pub fn descriptor(&mut self) -> Result<OwnedFd> {
        self.descriptors
            .pop_front()
            .ok_or_else(|| Refusal::new(Code::UnexpectedMessage, "the processor's answer came without its descriptor"))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(&mut buffer[filled..])];
            match recvmsg(&self.stream, &mut into, &mut beside, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) if message.bytes == 0 => return Err(lost(ErrorKind::UnexpectedEof.into())),
                Ok(message) => filled += message.bytes,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(lost(e.into())),
            }
            for message in beside.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    self.descriptors.extend(descriptors);
                }
            }
        }
        Ok(())
    }
}

fn lost(error: std::io::Error) -> Refusal {
    let why = match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "it closed the connection".to_owned(),
        _ => error.to_string(),
    };
    Refusal::new(Code::ProcessorUnreachable, format!("the processor does not answer any more: {why}")).because(error)
}

/// What was answered is not what was asked for.
#[must_use]
pub fn unexpected(response: &Response) -> Refusal {
    let name = format!("{response:?}");
    let name = name.split([' ', '(']).next().unwrap_or_default();
    Refusal::new(Code::UnexpectedMessage, format!("the processor answered {name}, which was not asked for"))
}

/// Asks the processor at `socket` one thing that it answers with its description.
fn described(socket: &Path, request: &Request) -> Result<Description> {
    let mut conversation = Conversation::open(socket)?;
    conversation.ask(request, &[])?;
    match conversation.answer()? {
        Response::Description { processor, class, chain, valid_until, pid, root, interpreter } => {
            let (root, interpreter) = (root.into_vec(), interpreter.map(chipbound_wire::bounded::Bytes::into_vec));
            Ok(Description { processor, class, chain, valid_until, pid, root, interpreter })
        }
        other => Err(unexpected(&other)),
    }
}

/// Asks the processor at `socket` who it is.
pub fn describe(socket: &Path) -> Result<Description> {
    described(socket, &Request::Describe)
}

/// Has the processor at `socket` enroll at `authority` with a voucher.
pub fn enroll(socket: &Path, authority: &str, voucher: &str) -> Result<Description> {
    use chipbound_wire::bounded::Text;
    described(socket, &Request::Enroll { authority: Text::new(authority)?, voucher: Text::new(voucher.trim())? })
}

/// Has the processor at `socket` drop what it opened, of one program or of all, from its memory: builds and bytes.
pub fn forget(socket: &Path, program: Option<ProgramId>) -> Result<(u64, u64)> {
    let mut conversation = Conversation::open(socket)?;
    conversation.ask(&Request::Forget { program }, &[])?;
    match conversation.answer()? {
        Response::Forgotten { builds, bytes } => Ok((builds, bytes)),
        other => Err(unexpected(&other)),
    }
}

/// The deliveries of this user's that wait at the processor at `socket`; of all users for root.
pub fn waiting(socket: &Path) -> Result<Vec<WaitingDelivery>> {
    let mut conversation = Conversation::open(socket)?;
    conversation.ask(&Request::Waiting, &[])?;
    match conversation.answer()? {
        Response::Waiting { deliveries } => Ok(deliveries.to_vec()),
        other => Err(unexpected(&other)),
    }
}

/// Has the processor at `socket` throw away what waits of this order; [`Code::UnknownOrder`] where nothing of this user's does.
pub fn give_up(socket: &Path, order: OrderId) -> Result<()> {
    let mut conversation = Conversation::open(socket)?;
    conversation.ask(&Request::GiveUp { order }, &[])?;
    match conversation.answer()? {
        Response::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

/// Has the processor at `socket` give an order up, as the server's signed request says; its signed retirement.
pub fn retire(socket: &Path, request: Vec<u8>) -> Result<Vec<u8>> {
    let mut conversation = Conversation::open(socket)?;
    conversation.ask(&Request::Retire { request: Bytes::new(request)? }, &[])?;
    match conversation.answer()? {
        Response::Retired { retirement } => Ok(retirement.into_vec()),
        other => Err(unexpected(&other)),
    }
}
