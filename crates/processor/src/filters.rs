//! Who answers the system calls of a program.
//!
//! A filter of system calls (seccomp) can hand a call to a process outside, which answers in the kernel's place: with a socket of its own, of
//! which it keeps a duplicate, or with a library of its own (`SECCOMP_RET_USER_NOTIF`, `SECCOMP_IOCTL_NOTIF_ADDFD`). Anybody can put such
//! a filter over himself, it survives every exec, and nobody can see from outside what it does. So a program whose vendor forbids
//! foreign code starts under those filters alone that all of this system is under: those of its first process.

use chipbound_loader::Pid;
use chipbound_wire::{Code, Refusal, Result};
use std::fs::File;
use std::io::{self, Read};
use std::sync::OnceLock;

/// The first process of this system, or of this container.
const FIRST: &str = "1";
/// More than the status of a process has, bytes.
const MAX_STATUS: usize = 4096;

/// Refuses a process that is under more filters than this system's first process, with [`Code::ForeignFilter`]. To be asked at the exec
/// stop: from there on the process can get no other.
pub(crate) fn check(process: Pid) -> Result<()> {
    static EVERYBODYS: OnceLock<u32> = OnceLock::new();
    // Where the first process is not to be seen, nothing is taken for everybody's.
    let everybodys = *EVERYBODYS.get_or_init(|| of(FIRST).unwrap_or(0));
    let its = of(&process.as_raw_nonzero().to_string()).map_err(|e| Refusal::io("the client's filters of system calls", e))?;
    if its > everybodys {
        let detail = "a filter of system calls (seccomp) is over the program, whose owner could answer in the kernel's place";
        return Err(Refusal::new(Code::ForeignFilter, detail));
    }
    Ok(())
}

/// How many filters are over a process.
fn of(process: &str) -> io::Result<u32> {
    let mut status = [0; MAX_STATUS];
    let length = File::open(format!("/proc/{process}/status"))?.read(&mut status)?;
    Ok(counted(&String::from_utf8_lossy(&status[..length])))
}

/// The count as proc(5) has it; before Linux 5.9 it says only whether there is one, and without filters nothing.
fn counted(status: &str) -> u32 {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok());
    field("Seccomp_filters:").or_else(|| field("Seccomp:").map(|mode| u32::from(mode != 0))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_counted_or_known_to_be_there() {
        assert_eq!(counted("NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\n"), 3);
        assert_eq!(counted("Seccomp:\t2\n"), 1);
        assert_eq!(counted("Seccomp:\t0\n"), 0);
        assert_eq!(counted("Name:\tx\n"), 0);
    }
}
