//! At the exec stop: the process is examined, gets its program and goes on, or is turned away.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Stat, fstat, stat};
use rustix::mm::ProtFlags;
use rustix::process::Pid;

use crate::direct::{MAP_SIZE, OwnInterpreter, Replacement, first_stack};
use crate::error::{LoadError, system};
use crate::handover::{CONNECT_TRIES, Connection, Listener, MAX_NAME, SCRATCH, received, trap_action};
use crate::image::{Image, Part};
use crate::inject::{CallError, Injector, Memory};
use crate::layout::{Expected, mismatch};
use crate::script::{Argument, Call, Results, Script, TABLE_SIZE};
use crate::stack::FreshStack;
use crate::sys::arch::{Registers, reset_floats};
use crate::trace::{Traced, open_exe, proc_text};

/// The exit code of a process whose program was not started, as shells use it for "found but not executable".
pub const NOT_STARTED: i32 = 126;
/// The longest message that [`AtExec::refuse`] prints, bytes; the rest is cut off.
pub const MAX_MESSAGE: usize = 1024;

/// Which file a process executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Device of the file system.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Length, bytes.
    pub size: u64,
    /// Last change of the contents: seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// Last change of the inode: seconds and nanoseconds since 1970.
    pub changed: (i64, i64),
}

impl From<Stat> for Identity {
    fn from(stat: Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size.cast_unsigned(),
            modified: (stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
            changed: (stat.st_ctime, stat.st_ctime_nsec.cast_signed()),
        }
    }
}

impl Identity {
    /// The identity of an open file, to be compared with [`AtExec::exe_identity`].
    ///
    /// # Errors
    /// Whatever fstat(2) says.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        Ok(fstat(file)?.into())
    }
}

/// A program that runs by itself.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// The process.
    pub pid: Pid,
    /// From the exec stop to the end of the tracing.
    pub stopped: Duration,
}

/// A file that the program is to find open for reading.
#[derive(Debug)]
pub struct Given {
    /// The number of its descriptor in the program. One that the client holds by then is replaced.
    pub number: u32,
    /// The file, or a folder.
    pub file: OwnedFd,
    /// The name of the file in the folder, at most [`Given::MAX_NAME`] bytes: the process itself opens it. The folder is not given.
    pub name: Option<Vec<u8>>,
}

impl Given {
    /// The longest name, bytes.
    pub const MAX_NAME: usize = MAX_NAME;
}

/// A process at the end of its execve, before the first instruction of the program or its dynamic linker.
///
/// Dropped here, the process dies: a program is started whole or not at all.
#[derive(Debug)]
pub struct AtExec {
    traced: Traced,
    memory: Memory,
    registers: Registers,
    listener: Listener,
    injector: Option<Injector>,
    one_by_one: bool,
    huge_pages: bool,
    given: Vec<Given>,
    own: Option<Arc<OwnInterpreter>>,
    leftover: Vec<u32>,
    since: Instant,
}

impl AtExec {
    pub(crate) fn new(traced: Traced, listener: Listener, since: Instant) -> Result<Self, LoadError> {
        let registers = registers_of(&traced)?.after_exec();
        let memory = Memory::open(&traced);
        Ok(Self::with(traced, memory, registers, listener, since))
    }

    /// A process that runs in `own`, as it was at the end of its exec.
    pub(crate) fn begun_in(
        own: Arc<OwnInterpreter>,
        leftover: Vec<u32>,
        traced: Traced,
        listener: Listener,
        since: Instant,
    ) -> Result<Self, LoadError> {
        let memory = Memory::open(&traced);
        let stack = first_stack(&stat_of(&traced)?).ok_or_else(|| mismatch("its state is unreadable"))?;
        let base = FreshStack::read(&memory, stack)?.auxiliary(libc::AT_BASE);
        let registers = registers_of(&traced)?.at_entry(base.wrapping_add(own.file().program.entry), stack);
        reset_floats(traced.pid()).map_err(system("the registers of the process cannot be changed"))?;
        Ok(Self { own: Some(own), leftover, ..Self::with(traced, memory, registers, listener, since) })
    }

    fn with(traced: Traced, memory: Memory, registers: Registers, listener: Listener, since: Instant) -> Self {
        let (one_by_one, huge_pages, given, own, leftover) = (false, false, Vec::new(), None, Vec::new());
        Self { traced, memory, registers, listener, injector: None, one_by_one, huge_pages, given, own, leftover, since }
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.traced.pid()
    }

    /// Opens the file that the process executes, whatever its path says by now.
    ///
    /// # Errors
    /// `PermissionDenied` if this side may not read it.
    pub fn exe(&self) -> io::Result<File> {
        open_exe(&self.traced)
    }

    /// Which file the process executes; needs no right to read it.
    ///
    /// # Errors
    /// [`LoadError::System`] if the kernel does not tell.
    pub fn exe_identity(&self) -> Result<Identity, LoadError> {
        self.exe_stat().map(Into::into)
    }

    /// Takes the variables that begin like one of these names, for example the [`LOADER_VARIABLES`](crate::LOADER_VARIABLES), out of the
    /// environment of the process, as if they had never been set, and returns how many there were. Its children do not inherit
    /// them either. Of a name at most 32 bytes count.
    ///
    /// # Errors
    /// [`LoadError::ProcessMismatch`] or [`LoadError::System`] if its stack cannot be read or written.
    pub fn drop_variables(&mut self, names: &[&str]) -> Result<usize, LoadError> {
        FreshStack::read(&self.memory, self.registers.stack())?.drop_variables(&self.memory, names)
    }

    /// Takes a process that the kernel began in this interpreter for one of a package that names it: what the program's own headers
    /// name is put in its place. Without this only processes are accepted that began as these headers say.
    pub fn own_interpreter(&mut self, own: Arc<OwnInterpreter>) {
        self.own = Some(own);
    }

    /// Makes every system call of this start by itself, each with two stops of the process, as the loader does where it can place no
    /// code of its own in the process. Takes longer and does the same.
    pub fn one_by_one(&mut self) {
        self.one_by_one = true;
    }

    /// Copies the code into anonymous memory of the process, in huge pages where the kernel has them:
    /// [`Mapping::Anonymous`](crate::Mapping::Anonymous).
    pub fn in_huge_pages(&mut self) {
        self.huge_pages = true;
    }

    /// Gives the program a file in its start, after nobody else can take it from there. The descriptor is closed in whatever the
    /// program execs.
    ///
    /// # Panics
    /// If the name is longer than [`Given::MAX_NAME`] or has a zero in it.
    pub fn give(&mut self, given: Given) {
        let name = given.name.as_deref().unwrap_or_default();
        assert!(name.len() <= MAX_NAME && !name.contains(&0), "names of given files are made by the caller");
        self.given.push(given);
    }

    /// Makes the process the verified program and lets it go: the sequence of the crate's documentation, from step 4 on. Whether
    /// [`exe_identity`](Self::exe_identity) is the verified package the caller has compared before.
    ///
    /// # Errors
    /// On every error the process has printed the reason to its standard error and has ended with [`NOT_STARTED`], or was killed
    /// if it could not even do that; not one byte of the program has run.
    pub fn complete(self, image: &Image) -> Result<Started, LoadError> {
        self.complete_or_say(image, |error| format!("chipbound: {error}\n"))
    }

    /// As [`complete`](Self::complete), but in the caller's words, of which at most [`MAX_MESSAGE`] bytes are printed.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub fn complete_or_say(mut self, image: &Image, words: impl FnOnce(&LoadError) -> String) -> Result<Started, LoadError> {
        match self.start(image) {
            Ok(()) => Ok(Started { pid: self.pid(), stopped: self.since.elapsed() }),
            Err(error) => {
                if let Some(status) = self.traced.ended() {
                    return Err(LoadError::ClientEnded { status });
                }
                self.turn_away(&words(&error), NOT_STARTED);
                Err(error)
            }
        }
    }

    /// Prints a message to the standard error of the process and ends it with an exit code of 0 to 255; its parent gets that code.
    ///
    /// # Errors
    /// [`LoadError::Injection`] if the process could not be brought to say so and was killed instead.
    pub fn refuse(mut self, message: &str, code: i32) -> Result<(), LoadError> {
        if self.turn_away(message, code) {
            return Ok(());
        }
        Err(LoadError::Injection { call: "exit_group", detail: "the process was killed instead".into() })
    }

    fn exe_stat(&self) -> Result<Stat, LoadError> {
        stat(self.traced.proc_path("exe")).map_err(system("the file of the process cannot be examined"))
    }

    fn maps(&self) -> Result<String, LoadError> {
        proc_text(self.traced.proc_path("maps")).map_err(system("the mappings of the process cannot be read"))
    }

    fn start(&mut self, image: &Image) -> Result<(), LoadError> {
        // 4. The process is what the verified program's headers say.
        let maps = self.maps()?;
        let (bias, replacement) = self.check(image, &maps)?;

        // 5. Its signals wait; what it will need to receive lies below its stack, and the tables of its calls below that.
        let injector = Injector::begin(&self.traced, &self.memory, &maps, self.registers, self.one_by_one)?;
        let at = injector.scratch(SCRATCH + MAP_SIZE);
        self.injector = Some(injector);
        let mut below = [0; TABLE_SIZE + SCRATCH + MAP_SIZE];
        self.memory.read(at - TABLE_SIZE as u64, &mut below)?;
        self.memory.write(at, &self.listener.scratch(at))?;

        // 6. From here on nobody else of its user reads it. 7. It fetches its memory file itself.
        let socket = self.connect(at)?;
        let connection = self.listener.accept(self.traced.pid())?;
        for given in std::mem::take(&mut self.given) {
            self.hand(&given, &connection, socket, at)?;
        }
        let linker = replacement.as_ref().and_then(Replacement::file);
        let files: Vec<_> = [image.descriptor()].into_iter().chain(linker).collect();
        connection.hand_over(&files)?;

        // 8. Every segment is mapped over, and what the program's headers name takes our interpreter's place.
        self.map(image, bias, replacement.as_ref(), socket, at)?;
        drop(connection);

        // 9. Everything is as it was, and it goes.
        self.memory.write(at - TABLE_SIZE as u64, &below)?;
        let mut injector = self.injector.take().expect("made in step 5");
        if let Some(replacement) = replacement {
            injector.go_on_at(replacement.begin);
        }
        injector.finish(&mut self.traced, &self.memory, at)
    }

    /// The load bias of a process that is what it must be, and what takes the place of our interpreter if it began there.
    fn check(&self, image: &Image, maps: &str) -> Result<(u64, Option<Replacement>), LoadError> {
        let auxiliary = FreshStack::read(&self.memory, self.registers.stack())?;
        let own = self.own.as_ref().map(|own| own.file());
        let expected = Expected { image, exe: self.exe_stat()?, entry: self.registers.instruction(), auxiliary: &auxiliary, maps, own };
        let found = expected.check(|| self.exe().ok())?;
        let replacement = match own.zip(found.own) {
            Some((own, base)) => {
                let stat = stat_of(&self.traced)?;
                Some(Replacement::plan(image, &own.program, (found.bias, base), &auxiliary, maps, &stat)?)
            }
            None => None,
        };
        Ok((found.bias, replacement))
    }

    /// Makes the process private, connects it and returns its socket. Strangers can fill the queue before it, and are sent away.
    fn connect(&mut self, at: u64) -> Result<u64, LoadError> {
        self.listener.open()?;
        let (address, length) = self.listener.address(at);
        let kind = (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
        let mut script = Script::default();
        script.call("prctl", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 0].map(Argument::Is));
        let trap = [libc::SIGTRAP as u64, 0, Listener::on_trap(at), 8];
        script.call("rt_sigaction", libc::SYS_rt_sigaction, trap.map(Argument::Is));
        let socket = script.call("socket", libc::SYS_socket, [libc::AF_UNIX as u64, kind].map(Argument::Is));
        let connected = script.try_call("connect", libc::SYS_connect, [socket.into(), address.into(), length.into()]);
        let results = self.run(&script, at)?;
        script.check(&results).map_err(out_of_reach)?;
        let socket = results.value(socket);
        let mut result = results.of(connected);
        for _ in 1..CONNECT_TRIES {
            if result != -i64::from(libc::EAGAIN) {
                break;
            }
            self.listener.dismiss_strangers();
            let mut script = Script::default();
            let again = script.try_call("connect", libc::SYS_connect, [socket, address, length].map(Argument::Is));
            result = self.run(&script, at)?.of(again);
        }
        match result {
            0 => Ok(socket),
            error => Err(out_of_reach(("connect", CallError::Refused(io::Error::from_raw_os_error(-(error as i32)))))),
        }
    }

    /// Makes a file one of the process's descriptors.
    fn hand(&mut self, given: &Given, connection: &Connection, socket: u64, at: u64) -> Result<(), LoadError> {
        connection.hand_over(&[given.file.as_fd()])?;
        let (place, ready) = self.listener.ready_again(at, given.name.as_deref().unwrap_or_default());
        self.memory.write(place, &ready)?;
        let received = Argument::At(Listener::file(at, 0));
        let (number, closed) = (u64::from(given.number), libc::O_CLOEXEC as u64);
        let mut script = Script::default();
        let flags = (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as u64;
        script.call("recvmsg", libc::SYS_recvmsg, [socket, Listener::message(at), flags].map(Argument::Is));
        let mut file = received;
        if given.name.is_some() {
            let how = (libc::O_RDONLY | libc::O_NOCTTY | libc::O_CLOEXEC) as u64;
            file = script.call("openat", libc::SYS_openat, [received, Listener::name(at).into(), how.into()]).into();
            script.call("close", libc::SYS_close, [received]);
        }
        script.call("dup3", libc::SYS_dup3, [file, number.into(), closed.into()]);
        script.call("close", libc::SYS_close, [file]);
        self.run_received(&script, 1, &[], at)?;
        let (place, ready) = self.listener.ready_again(at, &[]);
        self.memory.write(place, &ready)
    }

    /// Receives the files, maps every segment over, makes the replacement and closes all descriptors.
    fn map(&mut self, image: &Image, bias: u64, replacement: Option<&Replacement>, socket: u64, at: u64) -> Result<(), LoadError> {
        let [file, linker] = [0, 1].map(|number| Argument::At(Listener::file(at, number)));
        let files = 1 + usize::from(replacement.is_some_and(|r| r.file().is_some()));
        let (mut script, mut copied) = (Script::default(), Vec::new());
        let flags = (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as u64;
        script.call("recvmsg", libc::SYS_recvmsg, [socket, Listener::message(at), flags].map(Argument::Is));
        for part in image.parts() {
            if script.room() < CALLS_AT_ONCE {
                self.run_received(&std::mem::take(&mut script), files, &std::mem::take(&mut copied), at)?;
            }
            let address = bias + part.address;
            if self.huge_pages && part.protection.contains(ProtFlags::EXEC) {
                copied.extend(add_copy(&mut script, part, address, file));
            } else {
                add_part(&mut script, part, address, file);
            }
        }
        for (name, number, arguments) in replacement.map(|r| r.steps(linker)).unwrap_or_default() {
            if script.room() < CALLS_AT_ONCE {
                self.run_received(&std::mem::take(&mut script), files, &std::mem::take(&mut copied), at)?;
            }
            script.call(name, number, arguments);
        }
        if script.room() < CALLS_AT_ONCE {
            self.run_received(&std::mem::take(&mut script), files, &std::mem::take(&mut copied), at)?;
        }
        if let Some(replacement) = replacement {
            let (base_at, base) = replacement.base();
            self.memory.write(base_at, &base)?;
            self.memory.write(at + SCRATCH as u64, &replacement.map)?;
            let (name, number, arguments) = Replacement::books(at + SCRATCH as u64);
            script.try_call(name, number, arguments);
        }
        script.call("close", libc::SYS_close, [Argument::Is(socket)]);
        for file in [file, linker].into_iter().take(files) {
            script.call("close", libc::SYS_close, [file]);
        }
        for number in std::mem::take(&mut self.leftover) {
            script.call("close", libc::SYS_close, [Argument::Is(number.into())]);
        }
        self.run_received(&script, files, &copied, at)?;
        for (address, count) in replacement.iter().flat_map(|r| r.zeros()) {
            self.memory.write(address, &vec![0; count])?;
        }
        Ok(())
    }

    /// Runs a script that uses the received files. Without them its calls have done nothing: no descriptor has the number that stands
    /// in their place. Each call in `copied` must have copied so many bytes.
    fn run_received(&mut self, script: &Script, files: usize, copied: &[(Call, u64)], at: u64) -> Result<(), LoadError> {
        let results = self.run(script, at)?;
        let mut area = [0; SCRATCH];
        self.memory.read(at, &mut area)?;
        received(&area, files).ok_or(LoadError::TooFewDescriptors)?;
        self.injector.as_mut().expect("made in step 5").keep_trap(trap_action(&area));
        script.check(&results).map_err(|(name, error)| error.of(name))?;
        if copied.iter().any(|(call, length)| results.value(*call) != *length) {
            return Err(LoadError::Injection { call: "pread64", detail: "code was copied in part".into() });
        }
        Ok(())
    }

    fn run(&mut self, script: &Script, at: u64) -> Result<Results, LoadError> {
        let injector = self.injector.as_mut().expect("scripts run only after step 5");
        injector.run(&mut self.traced, &self.memory, script, at)
    }

    fn call(&mut self, name: &'static str, number: i64, arguments: [u64; 6]) -> Result<u64, LoadError> {
        self.try_call(number, arguments).map_err(|error| error.of(name))
    }

    fn try_call(&mut self, number: i64, arguments: [u64; 6]) -> Result<u64, CallError> {
        let injector = self.injector.as_mut().expect("calls are made only after step 5");
        injector.call(&mut self.traced, &self.memory, number, arguments)
    }

    /// Whether the process said so and ended by itself; else it is killed.
    fn turn_away(&mut self, message: &str, code: i32) -> bool {
        let ended = self.traced.is_stopped()
            && matches!(self.say_and_exit(message, code), Err(LoadError::ClientEnded { status }) if status == code);
        if !ended {
            self.traced.kill();
        }
        ended
    }

    /// Never returns `Ok`: the last call ends the process.
    fn say_and_exit(&mut self, message: &str, code: i32) -> Result<(), LoadError> {
        if self.injector.is_none() {
            let maps = self.maps()?;
            self.injector = Some(Injector::begin(&self.traced, &self.memory, &maps, self.registers, true)?);
        }
        let text = &message.as_bytes()[..message.len().min(MAX_MESSAGE)];
        let at = self.injector.as_ref().expect("made above").scratch(MAX_MESSAGE);
        if self.memory.write(at, text).is_ok() {
            // A closed or full standard error does not keep the process from ending.
            match self.try_call(libc::SYS_write, [libc::STDERR_FILENO as u64, at, text.len() as u64, 0, 0, 0]) {
                Ok(_) | Err(CallError::Refused(_)) => {}
                Err(CallError::Lost(error)) => return Err(error),
            }
        }
        self.call("exit_group", libc::SYS_exit_group, [u64::from(code.cast_unsigned()), 0, 0, 0, 0, 0]).map(drop)
    }
}

fn registers_of(traced: &Traced) -> Result<Registers, LoadError> {
    Registers::of(traced.pid()).map_err(system("the registers of the process cannot be read"))
}

fn stat_of(traced: &Traced) -> Result<String, LoadError> {
    proc_text(traced.proc_path("stat")).map_err(system("the state of the process cannot be read"))
}

/// The most calls that are added to a script between two looks at its room.
const CALLS_AT_ONCE: usize = 2 + 4 + COPIES;
/// The most calls that copy one segment, and the bytes that one of them copies: the kernel stops before 2 GiB.
const COPIES: usize = 8;
const COPY: u64 = 1 << 30;

/// Maps one segment over, and leaves code out of core dumps. `MAP_FIXED` gives this address or an error.
fn add_part(script: &mut Script, part: &Part, address: u64, file: Argument) {
    let flags = (libc::MAP_PRIVATE | libc::MAP_FIXED) as u64;
    let [start, length, protection, flags, offset] =
        [address, part.length, u64::from(part.protection.bits()), flags, part.at].map(Argument::Is);
    script.call("mmap", libc::SYS_mmap, [start, length, protection, flags, file, offset]);
    if part.protection.contains(ProtFlags::EXEC) {
        script.call("madvise", libc::SYS_madvise, [start, length, Argument::Is(libc::MADV_DONTDUMP as u64)]);
    }
}

/// Copies one segment into anonymous memory, which becomes code when it is full. Returns which calls copy how much.
fn add_copy(script: &mut Script, part: &Part, address: u64, file: Argument) -> Vec<(Call, u64)> {
    let flags = (libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_ANONYMOUS) as u64;
    let writable = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    script.call("mmap", libc::SYS_mmap, [address, part.length, writable, flags, u64::MAX, 0].map(Argument::Is));
    let mut advise = |advice: i32| script.try_call("madvise", libc::SYS_madvise, [address, part.length, advice as u64].map(Argument::Is));
    advise(libc::MADV_HUGEPAGE); // Kernels without huge pages refuse: then they are small ones.
    advise(libc::MADV_DONTDUMP);
    let mut copied = Vec::new();
    let mut done = 0;
    while done < part.length && copied.len() < COPIES {
        let step = if copied.len() + 1 == COPIES { part.length - done } else { COPY.min(part.length - done) };
        let [to, length, from] = [address + done, step, part.at + done].map(Argument::Is);
        copied.push((script.call("pread64", libc::SYS_pread64, [file, to, length, from]), step));
        done += step;
    }
    let protection = u64::from(part.protection.bits());
    script.call("mprotect", libc::SYS_mprotect, [address, part.length, protection].map(Argument::Is));
    copied
}

/// What it means when the process gets no connection to this side.
fn out_of_reach((call, error): (&'static str, CallError)) -> LoadError {
    match error {
        CallError::Refused(error) => match error.raw_os_error() {
            Some(libc::EMFILE) => LoadError::TooFewDescriptors,
            Some(libc::ECONNREFUSED | libc::EPERM | libc::EACCES | libc::ENOENT) => LoadError::OutOfReach(error),
            _ => LoadError::Injection { call, detail: error.to_string() },
        },
        lost @ CallError::Lost(_) => lost.of(call),
    }
}
