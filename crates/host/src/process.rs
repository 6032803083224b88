//! This process and the clock.

use chipbound_wire::{Refusal, Result, Time};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{SystemTime, UNIX_EPOCH};

/// Turns core dumps off, and with them reading this process through /proc and ptrace by its own user.
pub fn no_core_dumps() -> Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|e| Refusal::io("cannot turn core dumps off", e.into()))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| Refusal::io("cannot turn core dumps off", e.into()))
}

/// The service manager that started this process and waits for it to be ready (`Type=notify`, sd_notify(3)); usually there is none.
#[derive(Debug)]
pub struct ServiceManager(Option<File>);

impl ServiceManager {
    /// Connects to the socket that the environment names.
    pub fn find() -> Result<Self> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(Self(None)) };
        let failed = |e| Refusal::io(format_args!("NOTIFY_SOCKET {}", name.display()), e);
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
            path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
        };
        let socket = UnixDatagram::unbound().map_err(failed)?;
        socket.connect_addr(&address.map_err(failed)?).map_err(failed)?;
        Ok(Self(Some(File::from(OwnedFd::from(socket)))))
    }

    /// Prints `ready` and these words on a line, and tells the manager. One call of write(2) for each, which every confinement allows.
    pub fn ready(mut self, words: &str) -> Result<()> {
        let mut output = std::io::stdout();
        let printed = writeln!(output, "ready {words}").and_then(|()| output.flush());
        printed.map_err(|e| Refusal::io("cannot write to standard output", e))?;
        let told = self.0.as_mut().map_or(Ok(()), |manager| manager.write_all(b"READY=1"));
        told.map_err(|e| Refusal::io("the service manager does not listen", e))
    }
}

/// The time by the system's clock.
#[must_use]
pub fn now() -> Time {
    Time(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
}
