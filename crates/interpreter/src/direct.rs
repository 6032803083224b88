//! Direct start: somebody executed a package, and the kernel started this program in its place, because the package's
//! `PT_INTERP` names it. It asks the processor, which puts the real dynamic linker, or none, in this program's place: at once where
//! nothing is promised against this user, else at another exec of the package, of which the processor is the tracer from its first
//! instruction on. Same process, no launcher in between.

use crate::ask::{NO_ANSWER, Refused, attach};
use crate::slot::Slot;
use crate::stack::{AT_EXECFN, AT_SECURE, Stack};
use crate::sys::{Errno, execute, exit, open, read_link, stat};
use crate::text::{PathBuffer, reason, say};
use core::ffi::CStr;

/// The exit code when a program cannot be executed, as shells have it.
pub const CANNOT_EXECUTE: u8 = 126;
/// Set in the environment of a second exec. Whoever finds it in this program was let go by the processor before its exec; the
/// processor takes it out of the environment of a program that it starts.
pub const MARK: &CStr = c"CHIPBOUND_STARTING=1";
/// What [`MARK`] begins with.
pub const MARK_NAME: &str = "CHIPBOUND_STARTING=";
/// The file that this process executes, whatever its path says by now.
const SELF: &CStr = c"/proc/self/exe";

/// From the kernel's start of this program to the processor's taking over, to the package's second exec, or to a message and
/// [`CANNOT_EXECUTE`].
pub fn start(mut stack: Stack, slot: &Slot) -> ! {
    let mut link = PathBuffer::default();
    if let Ok(length) = read_link(SELF, link.spare()) {
        link.grow(length);
    }
    let package = link.path().unwrap_or(SELF);
    if stack.auxiliary(AT_SECURE) != Some(0) {
        refuse(
            b"unsupported_program",
            package,
            [b"a package is not started with more rights than its caller has (set-user-id, capabilities)", b"", b""],
        );
    }
    if stack.variable(MARK_NAME.as_bytes()).is_some() {
        refuse(b"start_failed", package, [b"the processor let it go before it was started; try again", b"", b""]);
    }
    let Some(socket) = slot.path() else {
        refuse(
            b"config_invalid",
            package,
            [b"this interpreter names no processor; `chipbound-processor init` writes one that does", b"", b""],
        );
    };
    let mut space = NO_ANSWER;
    // Open only where this user may read it; otherwise the processor opens the path itself.
    let file = open(SELF).ok();
    if let Err(why) = attach(socket, [b"", b"", package.to_bytes()], file, true, &mut space) {
        explain(why, socket, package);
    }
    let name = name(&stack, package);
    stack.add_variable(MARK);
    // SAFETY: both arrays are the kernel's own, and the added variable is a string with another null behind it.
    let error = unsafe { execute(name, stack.arguments_from(0), stack.environment()) };
    refuse(b"start_failed", package, [b"it cannot be executed", b": ", reason(error)])
}

/// How the package is executed again: as it was, so that the program finds the same name in its auxiliary vector and its `comm`; as
/// the link says where that name leads elsewhere (a script names itself there); else by the link itself.
fn name<'a>(stack: &Stack, link: &'a CStr) -> &'a CStr {
    let leads_here = |path: &CStr| stat(SELF).is_ok_and(|this| stat(path) == Ok(this));
    stack.auxiliary_string(AT_EXECFN).filter(|name| leads_here(name)).unwrap_or(if leads_here(link) { link } else { SELF })
}

fn explain(why: Refused<'_>, socket: &[u8], package: &CStr) -> ! {
    match why {
        Refused::Unreachable(Errno::ENOENT | Errno::ECONNREFUSED) => {
            refuse(b"processor_unreachable", package, [b"it is bound to a processor, and none serves ", socket, b": is it running?"])
        }
        Refused::Unreachable(error) => {
            refuse(b"processor_unreachable", package, [socket, b": its processor cannot be reached: ", reason(error)])
        }
        Refused::Lost(error) => {
            refuse(b"processor_unreachable", package, [socket, b": its processor does not answer any more: ", reason(error)])
        }
        Refused::Refused(code, detail) => {
            say([b"chipbound: error[", code, b"]: ", detail]);
            advise(package)
        }
        Refused::Unintelligible => refuse(b"malformed", package, [socket, b": its processor answers what this version does not know", b""]),
    }
}

/// Says a refusal of this side; `code` is one of the table of `chipbound-wire`.
fn refuse(code: &[u8], package: &CStr, what: [&[u8]; 3]) -> ! {
    say([b"chipbound: error[", code, b"]: ", package.to_bytes()]);
    let [first, second, third] = what;
    say([b": ", first, second, third]);
    advise(package)
}

fn advise(package: &CStr) -> ! {
    say([b"\nwhat to do: chipbound verify ", package.to_bytes(), b"\n", b""]);
    exit(CANNOT_EXECUTE)
}
