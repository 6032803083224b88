//! Why a program was not started.

use std::io;

/// Why a program was not started. Whoever gets one of these can rely on it that not one byte of the program has run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Not a program that can be started this way: wrong format or machine, or headers that the loader does not follow.
    #[error("this program cannot be started here: {0}")]
    Unsupported(String),
    /// The original program could not be read.
    #[error("the original program could not be read")]
    Source(#[source] io::Error),
    /// The kernel does not let this process trace the client: another tracer, Yama, or another user without `CAP_SYS_PTRACE`.
    #[error("the kernel refused to trace the client")]
    TraceRefused(#[source] io::Error),
    /// The client ended by itself; its exit code, or minus the signal that ended it.
    #[error("the client ended before its program was started (status {status})")]
    ClientEnded {
        /// The exit code (0 to 255), or minus the number of the signal.
        status: i32,
    },
    /// The deadline passed.
    #[error("the client did not get to its program in time")]
    TimedOut,
    /// The process at the exec stop is not the program that was verified; what differs.
    #[error("the process is not the verified program: {0}")]
    ProcessMismatch(String),
    /// Somebody else than the administrator could put code of his own into the program: which file or folder, and why.
    #[error("a library of this program could be anybody's: {0}")]
    ForeignLibrary(String),
    /// The program would run with privileges that its caller does not have.
    #[error("set-user-id and set-group-id programs are not started")]
    Privileged,
    /// The process reaches no socket of this one: another network namespace, or a sandbox that forbids it.
    #[error("the process cannot reach the processor: it is in another network namespace or in a sandbox")]
    OutOfReach(#[source] io::Error),
    /// The process may not open as many more files for a moment as a start needs (`ulimit -n`): a connection and the code, and the dynamic linker
    /// where a dynamic package is started directly.
    #[error(
        "the process may not open the two more files that a start needs, three where a dynamic package is started by its name (ulimit -n)"
    )]
    TooFewDescriptors,
    /// A call made on behalf of the process went wrong.
    #[error("{call} in the process failed: {detail}")]
    Injection {
        /// The system call.
        call: &'static str,
        /// What came back instead of success.
        detail: String,
    },
    /// The machine refused something this process needs.
    #[error("{what}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Names what was being done when the kernel refused.
pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> LoadError {
    move |source| LoadError::System { what, source: source.into() }
}
