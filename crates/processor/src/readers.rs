//! Which programs may have what a vendor gives to programs alone: data that may not be opened to a file, and shared libraries.

use chipbound_wire::bounded::List;
use chipbound_wire::limits::MAX_CHOICES;
use chipbound_wire::suite::LoaderVariables;
use chipbound_wire::{Code, ProgramId, Refusal, Result};

/// The programs that a manifest names; where it names none, all of the same vendor.
pub type Readers = Option<List<ProgramId, MAX_CHOICES>>;

/// Whether `program` may have `what`, by the manifest of the latter.
pub(crate) fn check(what: &ProgramId, readers: &Readers, program: &ProgramId) -> Result<()> {
    let named = match readers {
        Some(readers) => readers.contains(program),
        None => what.is_of_vendor_of(program),
    };
    if named { Ok(()) } else { Err(Refusal::new(Code::UseForbidden, format!("{what} is not for {program}"))) }
}

/// Refuses a program into which its caller may bring code of his own, which would see `what` too.
pub(crate) fn check_closed(what: &ProgramId, program: &ProgramId, loader_variables: LoaderVariables) -> Result<()> {
    if loader_variables == LoaderVariables::Allow {
        let detail = format!("{what} is for programs that take no code from their caller; {program} allows loader variables");
        return Err(Refusal::new(Code::UseForbidden, detail));
    }
    Ok(())
}
