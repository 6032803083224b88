//! The way of the memory file into the process: a connection that the process itself opens after it has become non-dumpable.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind,
    getsockname, listen, sendmsg, socket_with,
};
use rustix::process::Pid;

use crate::error::{LoadError, system};

/// How many strangers may queue before the process; kernels cap it by `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// How often the process connects where strangers fill the queue faster than it is emptied.
pub(crate) const CONNECT_TRIES: u32 = 64;

// The scratch area, offsets in bytes: a sockaddr_un, a msghdr (56), its iovec (16) and byte, its control buffer (24), and what the
// process does on a trap (32).
const ADDRESS: usize = 0;
const MESSAGE: usize = 112;
const VECTOR: usize = 168;
const BYTE: usize = 184;
const CONTROL: usize = 192;
const ON_TRAP: usize = 216;
/// Size of the scratch area, bytes.
pub(crate) const SCRATCH: usize = 248;
/// What stands in the place of a descriptor until one was received: no descriptor at all.
const NO_FILE: u32 = u32::MAX;
/// The longest name that has room where the address was, bytes.
pub(crate) const MAX_NAME: usize = MESSAGE - 1;
/// `CMSG_SPACE` of one descriptor, and of two; `CMSG_LEN` of none, and bytes of each.
const CONTROL_SPACE: u64 = 24;
const CONTROL_LEN: u64 = 16;
const DESCRIPTOR: usize = 4;
/// The most descriptors that are handed over: the memory file and a dynamic linker.
const MAX_FILES: usize = 2;
/// Offset of the descriptor in the control buffer.
const FILE: usize = 16;
/// Offset of `msg_flags` in a msghdr.
const MESSAGE_FLAGS: usize = MESSAGE + 48;

/// A socket of this start alone, under an abstract name that the kernel chose.
///
/// It listens only from the moment on when the process is about to connect: until then strangers are refused, not queued.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    name: Vec<u8>,
}

impl Listener {
    pub(crate) fn bind() -> Result<Self, LoadError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(system("no socket for the start"))?;
        bind(&socket, &SocketAddrUnix::new_unnamed()).map_err(system("no name for the socket of the start"))?;
        let address = getsockname(&socket).map_err(system("the socket of the start has no name"))?;
        let address = SocketAddrUnix::try_from(address).map_err(system("the socket of the start has no name"))?;
        let name = address.abstract_name().unwrap_or_default().to_vec();
        Ok(Self { socket, name })
    }

    /// Begins to take connections.
    pub(crate) fn open(&self) -> Result<(), LoadError> {
        listen(&self.socket, BACKLOG).map_err(system("the socket of the start does not listen"))
    }

    /// What the process needs in its memory, to lie at `at`: see the offsets above.
    pub(crate) fn scratch(&self, at: u64) -> [u8; SCRATCH] {
        let mut area = [0; SCRATCH];
        let mut put = |offset: usize, bytes: &[u8]| area[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(ADDRESS, &(libc::AF_UNIX as u16).to_ne_bytes());
        put(ADDRESS + 3, &self.name);
        put(MESSAGE + 16, &(at + VECTOR as u64).to_ne_bytes());
        put(MESSAGE + 24, &1_u64.to_ne_bytes());
        put(MESSAGE + 32, &(at + CONTROL as u64).to_ne_bytes());
        put(MESSAGE + 40, &CONTROL_SPACE.to_ne_bytes());
        (0..MAX_FILES).for_each(|n| put(CONTROL + FILE + n * DESCRIPTOR, &NO_FILE.to_ne_bytes()));
        put(VECTOR, &(at + BYTE as u64).to_ne_bytes());
        put(VECTOR + 8, &1_u64.to_ne_bytes());
        area
    }

    /// Address and length of the socket's name in the scratch area at `at`.
    pub(crate) fn address(&self, at: u64) -> (u64, u64) {
        (at + ADDRESS as u64, 3 + self.name.len() as u64)
    }

    /// Address of the message header in the scratch area at `at`.
    pub(crate) fn message(at: u64) -> u64 {
        at + MESSAGE as u64
    }

    /// Address of the word whose lower half becomes the received descriptor with this number, in the scratch area at `at`. The kernel looks
    /// at no more of a descriptor.
    pub(crate) fn file(at: u64, number: usize) -> u64 {
        at + (CONTROL + FILE + number * DESCRIPTOR) as u64
    }

    /// Address of the room for a `struct sigaction` in the scratch area at `at`.
    pub(crate) fn on_trap(at: u64) -> u64 {
        at + ON_TRAP as u64
    }

    /// Empties the queue, which strangers filled before the process could connect.
    pub(crate) fn dismiss_strangers(&self) {
        for _ in 0..=BACKLOG {
            if accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).is_err() {
                return;
            }
        }
    }

    /// What makes the scratch area at `at` ready for another message, and where it goes. The name, at most [`MAX_NAME`] bytes, comes to
    /// lie at [`Listener::name`], where the address was.
    pub(crate) fn ready_again(&self, at: u64, name: &[u8]) -> (u64, Vec<u8>) {
        let mut area = self.scratch(at);
        area[..MESSAGE].fill(0);
        area[..name.len()].copy_from_slice(name);
        (at, area[..ON_TRAP].to_vec())
    }

    /// Address of a name in the scratch area at `at`.
    pub(crate) fn name(at: u64) -> u64 {
        at
    }

    /// Takes the connection of this very process out of the queue. The process must have connected already.
    pub(crate) fn accept(&self, process: Pid) -> Result<Connection, LoadError> {
        loop {
            let connection = match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(connection) => connection,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(errno) => return Err(LoadError::System { what: "the process did not connect", source: errno.into() }),
            };
            let peer = socket_peercred(&connection).map_err(system("the peer of the start is unknown"))?;
            if peer.pid == process {
                return Ok(Connection(connection));
            }
        }
    }
}

/// A connection that was found to be the process's own.
#[derive(Debug)]
pub(crate) struct Connection(OwnedFd);

impl Connection {
    /// Hands files over, in one message.
    pub(crate) fn hand_over(&self, files: &[BorrowedFd<'_>]) -> Result<(), LoadError> {
        send(self.0.as_fd(), files).map_err(system("a file cannot be handed over"))
    }
}

fn send(connection: BorrowedFd<'_>, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(files)), "there is room for all files of a start");
    sendmsg(connection, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The first descriptor that the kernel wrote into the scratch area, unless one of so many was dropped for want of room in the process's
/// table.
pub(crate) fn received(area: &[u8; SCRATCH], files: usize) -> Option<u32> {
    let word = |offset: usize| u32::from_ne_bytes(area[offset..offset + 4].try_into().expect("four bytes"));
    let long = u64::from_ne_bytes(area[CONTROL..CONTROL + 8].try_into().expect("eight bytes"));
    let whole = word(MESSAGE_FLAGS) & libc::MSG_CTRUNC as u32 == 0 && long == CONTROL_LEN + (files * DESCRIPTOR) as u64;
    let kind = word(CONTROL + 8) == libc::SOL_SOCKET as u32 && word(CONTROL + 12) == libc::SCM_RIGHTS as u32;
    (whole && kind).then(|| word(CONTROL + FILE))
}

/// What the process does on a trap, as the kernel wrote it into the scratch area.
pub(crate) fn trap_action(area: &[u8; SCRATCH]) -> [u8; SCRATCH - ON_TRAP] {
    area[ON_TRAP..].try_into().expect("the end of the area")
}

#[cfg(test)]
mod tests {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, connect, recvmsg, socket};
    use rustix::process::{getpid, getppid};

    use super::*;

    fn connected(listener: &Listener) -> OwnedFd {
        let stranger = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        connect(&stranger, &SocketAddrUnix::new_abstract_name(&listener.name).unwrap()).unwrap();
        stranger
    }

    /// How many bytes and descriptors a connection got before its end.
    fn got(connection: &OwnedFd) -> (usize, usize) {
        let (mut byte, mut space) = ([0], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let bytes = recvmsg(connection, &mut [io::IoSliceMut::new(&mut byte)], &mut control, RecvFlags::DONTWAIT).unwrap().bytes;
        let files = control.drain().map(|message| if let RecvAncillaryMessage::ScmRights(files) = message { files.count() } else { 0 });
        (bytes, files.sum())
    }

    /// Whoever holds or makes another connection, the client with a duplicate included, is not the process that was asked.
    #[test]
    fn a_stranger_gets_no_memory_file() {
        let listener = Listener::bind().unwrap();
        listener.open().unwrap();
        let strangers = [connected(&listener), connected(&listener)];
        let process = getppid().unwrap();
        listener.accept(process).unwrap_err();
        for stranger in &strangers {
            assert_eq!(got(stranger), (0, 0), "only the end of the connection");
        }
    }

    /// A stranger's connection stays in the queue when he has closed his end.
    #[test]
    fn a_queue_that_strangers_filled_is_emptied_for_the_process() {
        let listener = Listener::bind().unwrap();
        listener.open().unwrap();
        let name = SocketAddrUnix::new_abstract_name(&listener.name).unwrap();
        let knock = || {
            let stranger = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
            connect(&stranger, &name).map(|()| stranger)
        };
        let full = (0..=BACKLOG + 1).find_map(|_| knock().err());
        assert_eq!(full, Some(Errno::AGAIN));
        listener.dismiss_strangers();
        let process = knock().unwrap();
        listener.accept(getpid()).unwrap().hand_over(&[std::fs::File::open("/dev/null").unwrap().as_fd()]).unwrap();
        assert_eq!(got(&process), (1, 1));
    }

    #[test]
    fn the_process_itself_gets_the_memory_file() {
        let listener = Listener::bind().unwrap();
        listener.open().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let process = connected(&listener);
        let kept = listener.accept(getpid()).unwrap();
        kept.hand_over(&[file.as_fd()]).unwrap();
        assert_eq!(got(&process), (1, 1));
        drop(kept);
    }

    #[test]
    fn a_dropped_descriptor_is_noticed() {
        let mut area = [0; SCRATCH];
        area[CONTROL..CONTROL + 8].copy_from_slice(&20_u64.to_ne_bytes());
        area[CONTROL + 8] = libc::SOL_SOCKET as u8;
        area[CONTROL + 12] = libc::SCM_RIGHTS as u8;
        area[CONTROL + 16] = 4;
        assert_eq!(received(&area, 1), Some(4));
        assert_eq!(received(&area, 2), None, "the second is missing");
        area[MESSAGE_FLAGS] = libc::MSG_CTRUNC as u8;
        assert_eq!(received(&area, 1), None);
        area[MESSAGE_FLAGS] = 0;
        area[CONTROL] = 16;
        assert_eq!(received(&area, 1), None);
    }
}
