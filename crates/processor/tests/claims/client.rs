//! A client of the control socket, and the daemon as a process.

use crate::world::World;
use chipbound_wire::bounded::{Bytes, decode, encode};
use chipbound_wire::control::{Line, Request, Response};
use chipbound_wire::messages::Abort;
use chipbound_wire::{Code, Refusal, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Long enough for the slowest machine; nothing waits for it unless something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the daemon's socket");
        Self::of(stream)
    }

    pub(crate) fn of(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        Self { stream, descriptors: Vec::new() }
    }

    pub(crate) fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(beside.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        match sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut beside, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::PIPE) => {} // Refused before it was asked: the refusal is there to be read.
            sent => assert_eq!(sent.expect("sent"), bytes.len()),
        }
    }

    pub(crate) fn ask(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) {
        self.send(&frame(&encode(request)), descriptors);
    }

    /// The next answer; None at the end of the connection.
    pub(crate) fn next(&mut self) -> Option<Result<Response>> {
        let mut head = [0; 4];
        if !self.fill(&mut head) {
            return None;
        }
        let mut body = vec![0; u32::from_be_bytes(head) as usize];
        assert!(self.fill(&mut body), "an answer that ends early");
        match decode(&body).expect("an answer of the contract") {
            Response::Refused { abort } => Some(Err(Abort::into_refusal(abort))),
            other => Some(Ok(other)),
        }
    }

    pub(crate) fn answer(&mut self) -> Result<Response> {
        self.next().expect("an answer")
    }

    pub(crate) fn descriptor(&mut self) -> OwnedFd {
        self.descriptors.remove(0)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> bool {
        let mut filled = 0;
        while filled < buffer.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(&mut buffer[filled..])];
            let Ok(received) = recvmsg(&self.stream, &mut into, &mut beside, RecvFlags::CMSG_CLOEXEC) else { return false };
            for message in beside.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    self.descriptors.extend(rights);
                }
            }
            if received.bytes == 0 {
                assert_eq!(filled, 0, "an answer that ends early");
                return false;
            }
            filled += received.bytes;
        }
        true
    }
}

pub(crate) fn frame(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).expect("small").to_be_bytes(), body].concat()
}

pub(crate) fn receive(confirmation: &[u8], line: Line) -> Request {
    Request::Receive { confirmation: bytes(confirmation), line, rate: None }
}

pub(crate) fn bytes<const MAX: usize>(bytes: &[u8]) -> Bytes<MAX> {
    Bytes::new(bytes.to_vec()).expect("within its limit")
}

/// The daemon, ended with SIGTERM at the latest when dropped.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) socket: PathBuf,
    pub(crate) log: PathBuf,
}

impl Daemon {
    /// Starts the daemon of an installation and waits until it is ready.
    pub(crate) fn start(folder: &Path) -> Self {
        Self::try_start(folder).expect("ready")
    }

    /// The same; what it said where it ended instead.
    pub(crate) fn try_start(folder: &Path) -> std::result::Result<Self, String> {
        let command = Command::new(env!("CARGO_BIN_EXE_chipbound-processor"));
        Self::launch(command, folder)
    }

    /// Starts `command`, which gets the daemon's arguments.
    pub(crate) fn launch(mut command: Command, folder: &Path) -> std::result::Result<Self, String> {
        let log = folder.join("log");
        let errors = std::fs::File::create(&log).expect("a log");
        let config = folder.join("processor.toml");
        command.arg("run").arg("--config").arg(&config).env("RUST_LOG", "trace").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().expect("the daemon's binary");
        let mut line = String::new();
        let output = child.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut line).expect("its output");
        if !line.starts_with("ready ") {
            child.wait().expect("ended");
            return Err(std::fs::read_to_string(&log).expect("the log"));
        }
        Ok(Self { child, socket: folder.join("processor.sock"), log })
    }

    pub(crate) fn of(world: &World) -> Self {
        Self::start(&world.folder.path().join("processor"))
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Ends it as an operator does.
    pub(crate) fn stop(mut self) -> ExitStatus {
        kill_process(self.pid(), Signal::TERM).expect("it runs");
        self.child.wait().expect("ended")
    }

    /// Ends it as a power failure does.
    pub(crate) fn kill(mut self) {
        kill_process(self.pid(), Signal::KILL).expect("it runs");
        self.child.wait().expect("ended");
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process(self.pid(), Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(std::time::Instant::now() < end, "{what} did not come to pass");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Everything that a descriptor holds.
pub(crate) fn read_all(descriptor: OwnedFd) -> Vec<u8> {
    let mut content = Vec::new();
    std::fs::File::from(descriptor).read_to_end(&mut content).expect("readable");
    content
}

/// The code of a refusal.
pub(crate) fn code<T: std::fmt::Debug>(answer: Result<T>) -> Code {
    answer.map_err(|e: Refusal| e.code).expect_err("a refusal")
}
