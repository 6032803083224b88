//! The ways in which a program's code gets into a process, and what of this machine stands in the way of each.

use std::fmt;
use std::fs::read_to_string;
use std::io;
use std::os::fd::AsFd;
use std::str::FromStr;

use rustix::mm::ProtFlags;
use rustix::process::Pid;

use crate::image::{create_executable, create_memory};
use crate::sys::{ptrace_is_forbidden, try_anonymous_code, try_mapping};
use crate::trace::proc_text;

/// A way in which a program's code gets into a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mapping {
    /// Every segment is mapped privately from one sealed memory file that all instances share. The usual way.
    SealedMemfd,
    /// Code is copied into anonymous memory, in huge pages where the kernel has them: for large code that jumps about, which they make
    /// faster. Each instance has a copy of its own, and a program that throws its own code away (`MADV_DONTNEED`) loses it.
    Anonymous,
    /// The client executes a memory file with the whole program, which its user may not read (mode 0111). Needs no ptrace. The program
    /// sees `/memfd:…` as its `/proc/self/exe` and finds nothing beside it by `$ORIGIN`; nobody takes loader variables away from it.
    MemfdExec,
}

impl Mapping {
    /// All ways, the preferred first.
    pub const ALL: [Self; 3] = [Self::SealedMemfd, Self::Anonymous, Self::MemfdExec];

    /// Its name on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SealedMemfd => "sealed-memfd",
            Self::Anonymous => "anonymous",
            Self::MemfdExec => "memfd-exec",
        }
    }

    /// Whether the process is traced for it.
    #[must_use]
    pub fn traces(self) -> bool {
        self != Self::MemfdExec
    }

    /// What keeps this process, on this machine, from this way: `None` if nothing does. Tried, not looked up; the kernel setting that is
    /// known to be the cause is named; one's own seccomp filter is better set afterwards. Whether a certain client may be traced is another question.
    #[must_use]
    pub fn obstacle(self) -> Option<String> {
        match self {
            Self::SealedMemfd => match create_memory() {
                Err(error) => Some(no_memory_file(&error)),
                Ok(file) => try_mapping(file.as_fd(), ProtFlags::READ | ProtFlags::EXEC)
                    .err()
                    .map(|error| format!("memory files cannot be mapped as code: {error}{}", executable_memory())),
            },
            Self::Anonymous => match create_memory() {
                Err(error) => Some(no_memory_file(&error)),
                Ok(_) => try_anonymous_code().err().map(|error| format!("memory cannot become code: {error}{}", executable_memory())),
            },
            Self::MemfdExec => create_executable().err().map(|error| match memfd_noexec() {
                Some(2) => format!("vm.memfd_noexec = 2 forbids memory files that can be executed ({error})"),
                _ => no_memory_file(&error),
            }),
        }
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|way| way.name() == text).ok_or_else(|| format!("{text} is none of {}", known()))
    }
}

/// Why the kernel does not let this process trace another one, after it said so: names the setting that forbids it, where one can be seen.
#[must_use]
pub fn trace_obstacle(client: Pid, error: &io::Error) -> String {
    let status = |pid: &str, field: &str| {
        let status = proc_text(format!("/proc/{pid}/status")).ok()?;
        Some(status.lines().find_map(|line| line.strip_prefix(field))?.trim().to_owned())
    };
    let tracer = status(&client.as_raw_nonzero().to_string(), "TracerPid:");
    if let Some(tracer) = tracer.filter(|pid| pid != "0") {
        return format!("process {tracer} traces the client already");
    }
    match read_to_string("/proc/sys/kernel/yama/ptrace_scope").as_deref().map(str::trim) {
        Ok("3") => return format!("kernel.yama.ptrace_scope = 3 forbids tracing ({error})"),
        Ok(scope @ ("1" | "2")) => {
            return format!("kernel.yama.ptrace_scope = {scope} forbids it to a processor without CAP_SYS_PTRACE ({error})");
        }
        _ => {}
    }
    if ptrace_is_forbidden() {
        return format!("a seccomp filter over the processor forbids ptrace ({error})");
    }
    format!("the kernel refused to trace the client ({error}); a processor of another user needs CAP_SYS_PTRACE")
}

fn no_memory_file(error: &io::Error) -> String {
    let cause = if filtered() { "; a seccomp filter over the processor may forbid memfd_create" } else { "" };
    format!("the kernel gives no memory file: {error}{cause}")
}

/// What is known to forbid memory that is written first and executed then.
fn executable_memory() -> &'static str {
    if read_to_string("/sys/fs/selinux/enforce").is_ok_and(|enforcing| enforcing.trim() == "1") {
        "; SELinux is enforcing: execmem and execmod must be allowed to the processor"
    } else if filtered() {
        "; a seccomp filter over the processor may forbid it"
    } else {
        ""
    }
}

fn memfd_noexec() -> Option<u32> {
    read_to_string("/proc/sys/vm/memfd_noexec").ok()?.trim().parse().ok()
}

/// Whether a seccomp filter watches this process (`Seccomp: 2` in proc(5)).
fn filtered() -> bool {
    read_to_string("/proc/self/status").is_ok_and(|status| status.lines().any(|line| line == "Seccomp:\t2"))
}
