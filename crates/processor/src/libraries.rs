//! Whose libraries a program may load, and who may answer its system calls.

use crate::connection::Peer;
use crate::filters;
use crate::processor::Program;
use crate::run::{reads_it_anyway, refusal_of};
use chipbound_loader::{AtExec, LoadError};
use chipbound_wire::suite::LoaderVariables;
use chipbound_wire::{Refusal, Result};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// The look at the libraries of a program whose vendor forbids foreign code.
///
/// Nothing is promised to anybody against root and the processor's own user, who need no library to read the code: for them no look is
/// taken.
pub(crate) enum Checked {
    NotWanted,
    /// Where the package lay, and what came of it.
    At(PathBuf, std::result::Result<(), LoadError>),
}

impl Checked {
    /// Taken while the client is on its way to its exec.
    pub(crate) fn new(peer: Peer, package: &File, program: &Program) -> Self {
        if program.loader_variables == LoaderVariables::Allow || reads_it_anyway(peer) {
            return Self::NotWanted;
        }
        let path = std::fs::read_link(format!("/proc/self/fd/{}", package.as_raw_fd())).unwrap_or_default();
        let found = program.libraries.check(&path);
        Self::At(path, found)
    }

    /// Nobody but the kernel answers the process. Its own path decides where its `$ORIGIN` is; where it is another, the look at its libraries
    /// is taken again.
    pub(crate) fn hold_for(&self, stopped: &AtExec, program: &Program) -> Result<()> {
        let Self::At(path, found) = self else { return Ok(()) };
        filters::check(stopped.pid())?;
        let executed = std::fs::read_link(format!("/proc/{}/exe", stopped.pid().as_raw_nonzero()));
        let executed = executed.map_err(|e| Refusal::io("where the package lies", e))?;
        match found {
            Ok(()) if executed == *path => Ok(()),
            _ => program.libraries.check(&executed).map_err(refusal_of),
        }
    }
}
