//! System calls, each with the types that it deserves. Nothing here allocates, and nothing needs libc.

use core::ffi::CStr;

#[cfg(target_arch = "aarch64")]
#[path = "sys/aarch64.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "sys/x86_64.rs"]
mod arch;

/// `AT_FDCWD`: relative paths are relative to the working folder.
const HERE: usize = (-100_isize).cast_unsigned();
const O_CLOEXEC: usize = 0o2_000_000;
const O_NONBLOCK: usize = 0o4_000;
const O_NOCTTY: usize = 0o400;
const AF_UNIX: u16 = 1;
const SOCK_STREAM_CLOEXEC: usize = 1 | O_CLOEXEC;
const SOL_SOCKET: usize = 1;
const SO_PEERCRED: usize = 17;
const SCM_RIGHTS: i32 = 1;
const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
const MSG_CTRUNC: usize = 8;
const MADV_DONTDUMP: usize = 16;
const MSG_NOSIGNAL: usize = 0x4000;
const PR_SET_PTRACER: usize = 0x5961_6d61;
const PROT_WRITE: usize = 2;
const MAP_PRIVATE: usize = 2;
const MAP_FIXED: usize = 0x10;
const MAP_ANONYMOUS: usize = 0x20;
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const X_OK: usize = 1;

/// Bytes of the longest path of a unix socket, its NUL not counted.
pub const MAX_SOCKET_PATH: usize = 107;
/// Bytes of the longest path, its NUL counted.
pub const MAX_PATH: usize = 4096;
/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Memory may be read.
pub const PROT_READ: usize = 1;
/// Memory may be executed.
pub const PROT_EXEC: usize = 4;
/// Standard error.
pub const STDERR: Descriptor = Descriptor(2);

/// The number of an error, as `errno` has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

impl Errno {
    /// No such file.
    pub const ENOENT: Self = Self(2);
    /// Interrupted by a signal.
    pub const EINTR: Self = Self(4);
    /// Not allowed by the file's mode.
    pub const EACCES: Self = Self(13);
    /// A word that this kernel does not know.
    pub const EINVAL: Self = Self(22);
    /// This process may open no more descriptors.
    pub const EMFILE: Self = Self(24);
    /// The other side closed the connection.
    pub const ECONNRESET: Self = Self(104);
    /// Nobody listens.
    pub const ECONNREFUSED: Self = Self(111);
    /// A name does not fit its place.
    pub const ENAMETOOLONG: Self = Self(36);
}

/// What a system call came to.
pub type Result<T> = core::result::Result<T, Errno>;

/// An open descriptor. Not closed when dropped: what opens one either becomes another program, which closes it, or ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor(i32);

/// Which file this is, and whether it is a regular one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct File {
    device: u64,
    inode: u64,
    /// Whether it is a regular file.
    pub regular: bool,
}

impl Descriptor {
    fn argument(self) -> usize {
        self.0 as isize as usize
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0
    }

    /// Closes it.
    pub fn close(self) {
        // SAFETY: no pointers.
        let _ = unsafe { call(arch::CLOSE, [self.argument(), 0, 0, 0, 0, 0]) };
    }

    /// Reads at most as much as there is room for; 0 at the end.
    pub fn read(self, into: &mut [u8]) -> Result<usize> {
        loop {
            // SAFETY: the kernel writes at most the length of the slice.
            match unsafe { call(arch::READ, [self.argument(), into.as_mut_ptr().addr(), into.len(), 0, 0, 0]) } {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }

    /// Reads until there is no room left; [`Errno::ECONNRESET`] where the end comes before.
    pub fn fill(self, mut into: &mut [u8]) -> Result<()> {
        while !into.is_empty() {
            match self.read(into)? {
                0 => return Err(Errno::ECONNRESET),
                read => into = into.get_mut(read..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    /// Writes some of these bytes and says how many.
    pub fn write(self, bytes: &[u8]) -> Result<usize> {
        // SAFETY: the kernel reads at most the length of the slice.
        unsafe { call(arch::WRITE, [self.argument(), bytes.as_ptr().addr(), bytes.len(), 0, 0, 0]) }
    }
}

/// Opens a file for reading; closed by the next exec.
pub fn open(path: &CStr) -> Result<Descriptor> {
    let flags = O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    // SAFETY: the path ends in NUL.
    unsafe { call(arch::OPENAT, [HERE, path.as_ptr().addr(), flags, 0, 0, 0]) }.map(descriptor)
}

/// Which file a path leads to.
pub fn stat(path: &CStr) -> Result<File> {
    let mut stat = [0; arch::STAT_WORDS];
    // SAFETY: the path ends in NUL, and there is room for a whole `struct stat`.
    unsafe { call(arch::NEWFSTATAT, [HERE, path.as_ptr().addr(), stat.as_mut_ptr().addr(), 0, 0, 0]) }?;
    let (device, inode, mode) = arch::stat_fields(&stat);
    Ok(File { device, inode, regular: mode & S_IFMT == S_IFREG })
}

/// Whether this process may execute the file.
pub fn may_execute(path: &CStr) -> bool {
    // SAFETY: the path ends in NUL.
    unsafe { call(arch::FACCESSAT, [HERE, path.as_ptr().addr(), X_OK, 0, 0, 0]) }.is_ok()
}

/// Where a symbolic link leads, in front of `into`; its length.
pub fn read_link(path: &CStr, into: &mut [u8]) -> Result<usize> {
    // SAFETY: the path ends in NUL; the kernel writes at most the length of the slice.
    unsafe { call(arch::READLINKAT, [HERE, path.as_ptr().addr(), into.as_mut_ptr().addr(), into.len(), 0, 0]) }
}

/// The working folder in front of `into`, without a NUL; its length.
pub fn working_folder(into: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most the length of the slice. The length that it returns counts the NUL.
    unsafe { call(arch::GETCWD, [into.as_mut_ptr().addr(), into.len(), 0, 0, 0, 0]) }.map(|length| length.saturating_sub(1))
}

/// Connects to the unix socket at this path; closed by the next exec.
pub fn connect(path: &[u8]) -> Result<Descriptor> {
    connect_to(path, 0, path.len() + 1)
}

/// Connects to the unix socket of this name in the kernel's own name space (unix(7), "abstract"); closed by the next exec.
pub fn connect_abstract(name: &[u8]) -> Result<Descriptor> {
    connect_to(name, 1, name.len() + 1)
}

/// `at` is where the name begins in the address, `length` how much of the address counts.
fn connect_to(name: &[u8], at: usize, length: usize) -> Result<Descriptor> {
    #[repr(C)]
    struct Address {
        family: u16,
        path: [u8; MAX_SOCKET_PATH + 1],
    }
    let mut address = Address { family: AF_UNIX, path: [0; MAX_SOCKET_PATH + 1] };
    let place = address.path.get_mut(at..at + name.len()).filter(|_| length <= MAX_SOCKET_PATH + 1);
    place.ok_or(Errno::ENAMETOOLONG)?.copy_from_slice(name);
    // SAFETY: no pointers.
    let socket = unsafe { call(arch::SOCKET, [AF_UNIX.into(), SOCK_STREAM_CLOEXEC, 0, 0, 0, 0]) }.map(descriptor)?;
    loop {
        // SAFETY: the kernel reads at most the length, which lies within the address.
        match unsafe { call(arch::CONNECT, [socket.argument(), (&raw const address).addr(), size_of::<u16>() + length, 0, 0, 0]) } {
            Ok(_) => return Ok(socket),
            Err(Errno::EINTR) => {} // A signal came before there was a connection.
            Err(error) => {
                socket.close();
                return Err(error);
            }
        }
    }
}

/// The process at the other end of a unix socket, as the kernel recorded it.
pub fn peer(socket: Descriptor) -> Result<i32> {
    let mut credentials = [0_i32; 3];
    let mut length = size_of_val(&credentials) as u32;
    let (credentials_at, length_at) = (credentials.as_mut_ptr().addr(), (&raw mut length).addr());
    // SAFETY: there is room for a whole `struct ucred`, whose first field is the process id.
    unsafe { call(arch::GETSOCKOPT, [socket.argument(), SOL_SOCKET, SO_PEERCRED, credentials_at, length_at, 0]) }?;
    Ok(credentials[0])
}

/// Lets this process be traced by that one where Yama asks for it; other kernels know no such call and allow it anyway.
pub fn allow_tracer(process: i32) -> Result<()> {
    // SAFETY: no pointers.
    match unsafe { call(arch::PRCTL, [PR_SET_PTRACER, process as isize as usize, 0, 0, 0, 0]) } {
        Ok(_) | Err(Errno::EINVAL) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A control message with one descriptor (cmsg(3)).
#[repr(C)]
#[derive(Default)]
struct Control {
    length: usize,
    level: i32,
    kind: i32,
    descriptor: i32,
    padding: i32,
}

/// Bytes of a control message with one descriptor, its padding not counted.
const CONTROL: usize = 20;

/// Sends these parts as one, with a descriptor beside them where one is given. All of it, or an error.
pub fn send(socket: Descriptor, parts: &[&[u8]; 5], beside: Option<Descriptor>) -> Result<()> {
    let control = beside.map(|d| Control { length: CONTROL, level: SOL_SOCKET as i32, kind: SCM_RIGHTS, descriptor: d.0, padding: 0 });
    let control_length = control.as_ref().map_or(0, size_of_val);
    let control_at = control.as_ref().map_or(0, |c| (&raw const *c).addr());
    let vector = parts.map(|part| [part.as_ptr().addr(), part.len()]);
    // struct msghdr: name, its length, vector, its length, control, its length, flags.
    let message = [0, 0, vector.as_ptr().addr(), vector.len(), control_at, control_length, 0];
    loop {
        // SAFETY: the message leads to the parts, the control message and nothing else; the kernel only reads them.
        match unsafe { call(arch::SENDMSG, [socket.argument(), message.as_ptr().addr(), MSG_NOSIGNAL, 0, 0, 0]) } {
            Err(Errno::EINTR) => {} // A signal came before anything was sent.
            Ok(sent) if sent < parts.iter().map(|part| part.len()).sum() => return Err(Errno::ECONNRESET),
            other => return other.map(drop),
        }
    }
}

/// Fills `into`, with one descriptor beside its first byte; closed by the next exec. [`Errno::ECONNRESET`] where the end comes before,
/// or no descriptor does; [`Errno::EMFILE`] where this process may have no more.
pub fn receive_descriptor(socket: Descriptor, into: &mut [u8]) -> Result<Descriptor> {
    let (mut control, part) = (Control::default(), [into.as_mut_ptr().addr(), into.len()]);
    let mut message = [0, 0, (&raw const part).addr(), 1, (&raw mut control).addr(), size_of_val(&control), 0];
    let read = loop {
        // SAFETY: the message leads to the buffer and the control message; the kernel writes to these and to the message itself.
        match unsafe { call(arch::RECVMSG, [socket.argument(), message.as_mut_ptr().addr(), MSG_CMSG_CLOEXEC, 0, 0, 0]) } {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    if message[6] & MSG_CTRUNC != 0 {
        return Err(Errno::EMFILE);
    }
    if control.length != CONTROL || control.level != SOL_SOCKET as i32 || control.kind != SCM_RIGHTS {
        return Err(Errno::ECONNRESET);
    }
    socket.fill(into.get_mut(read..).unwrap_or_default())?;
    Ok(Descriptor(control.descriptor))
}

/// Becomes another program; returns only the error.
///
/// # Safety
/// `arguments` and `environment` are arrays of strings that end in NUL, and end in null themselves.
pub unsafe fn execute(path: &CStr, arguments: *const *const u8, environment: *const *const u8) -> Errno {
    // SAFETY: the path ends in NUL; the caller answers for the arrays.
    let result = unsafe { call(arch::EXECVE, [path.as_ptr().addr(), arguments.addr(), environment.addr(), 0, 0, 0]) };
    result.err().unwrap_or(Errno::EINVAL)
}

/// Ends this process.
pub fn exit(code: u8) -> ! {
    loop {
        // SAFETY: no pointers.
        let _ = unsafe { call(arch::EXIT_GROUP, [code.into(), 0, 0, 0, 0, 0]) };
    }
}

/// Fresh memory of zeros for reading and writing.
pub fn map_anonymous(length: usize) -> Result<usize> {
    // SAFETY: the kernel chooses where, so that nothing is mapped over.
    unsafe { call(arch::MMAP, [0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, usize::MAX, 0]) }
}

/// Maps over what lies at `address`: a piece of a file, private, or zeros where there is none.
///
/// # Safety
/// Nothing that is in use lies there.
pub unsafe fn map_over(address: usize, length: usize, protection: usize, file: Option<(Descriptor, usize)>) -> Result<()> {
    let (kind, descriptor, offset) = match file {
        Some((file, offset)) => (0, file.argument(), offset),
        None => (MAP_ANONYMOUS, usize::MAX, 0),
    };
    // SAFETY: the caller answers for what lies there.
    unsafe { call(arch::MMAP, [address, length, protection, MAP_PRIVATE | MAP_FIXED | kind, descriptor, offset]) }.map(drop)
}

/// Makes memory of this process read-only.
///
/// # Safety
/// Nobody writes there any more.
pub unsafe fn seal_memory(address: usize, length: usize) -> Result<()> {
    // SAFETY: the caller answers for what lies there.
    unsafe { call(arch::MPROTECT, [address, length, PROT_READ, 0, 0, 0]) }.map(drop)
}

/// Memory that was mapped.
///
/// # Safety
/// So many bytes are mapped there for reading and writing, hold what u8 may hold, and nobody else refers to them as long as the slice
/// is used.
pub unsafe fn memory<'a>(address: usize, length: usize) -> &'a mut [u8] {
    // SAFETY: the caller answers for it.
    unsafe { core::slice::from_raw_parts_mut(core::ptr::with_exposed_provenance_mut(address), length) }
}

/// Gives memory back.
///
/// # Safety
/// Nothing refers to it any more.
pub unsafe fn unmap(address: usize, length: usize) {
    // SAFETY: the caller answers for what lies there.
    let _ = unsafe { call(arch::MUNMAP, [address, length, 0, 0, 0, 0]) };
}

/// Leaves memory out of core dumps.
pub fn keep_out_of_dumps(address: usize, length: usize) {
    // SAFETY: the advice changes nothing that the memory holds.
    let _ = unsafe { call(arch::MADVISE, [address, length, MADV_DONTDUMP, 0, 0, 0]) };
}

fn descriptor(number: usize) -> Descriptor {
    Descriptor(number as i32)
}

/// # Safety
/// As of the system call.
unsafe fn call(number: usize, arguments: [usize; 6]) -> Result<usize> {
    // SAFETY: the caller answers for the arguments.
    match unsafe { arch::syscall(number, arguments) } {
        error @ -4095..=-1 => Err(Errno(-error as i32)),
        result => Ok(result.cast_unsigned()),
    }
}
