//! What the client does for the loader before it execs.

use rustix::io::Errno;
use rustix::process::{PTracer, Pid, set_ptracer};

use crate::error::{LoadError, system};

/// Names the process that may trace the calling one, as Yama's `ptrace_scope` 1 asks for it. Returns whether this kernel has Yama;
/// without it there is nothing to allow.
///
/// # Errors
/// [`LoadError::System`] if the kernel knows of Yama and refuses nevertheless.
pub fn allow_tracer(tracer: Pid) -> Result<bool, LoadError> {
    match set_ptracer(PTracer::ProcessID(tracer)) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(errno) => Err(system("the processor cannot be allowed to trace this process")(errno)),
    }
}
