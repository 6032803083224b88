//! What makes the kernel start a package on this machine's disk: its start record names the processor's interpreter, or brings what
//! asks the processor when a shared library is loaded.

use chipbound_host::files;
use chipbound_interpreter::{LIBRARY, LIBRARY_ENTRY, hook, slot};
use chipbound_sealing::{LibraryPlace, StartRecord};
use chipbound_wire::{Code, Refusal, Result};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The largest interpreter that is read, in bytes.
const MAX_INTERPRETER_FILE: usize = 1 << 20;

/// Makes the package in a file start by this interpreter, or by none, whatever it started by before; gives whether it does now. A shared
/// library is loaded as it asks the same processor. Data and programs without a header to spare start by none. The file is one that
/// nobody uses yet: it is changed in place.
pub fn name_interpreter(package: &File, interpreter: Option<&[u8]>) -> Result<bool> {
    let failed = |e| Refusal::io("writing the package's start record", e);
    if let Some(record) = StartRecord::read(package)? {
        package.set_len(record.delivered()).map_err(failed)?;
        write(package, &record.undo())?;
    }
    let record = match (interpreter, StartRecord::library_place(package)?) {
        (Some(interpreter), Some(place)) => library_record(package, place, interpreter)?,
        (Some(interpreter), None) => StartRecord::plan(package, interpreter)?,
        (None, _) => None,
    };
    if let Some(record) = &record {
        write(package, &record.writes())?;
    }
    Ok(record.is_some())
}

/// The record of a shared library, whose stub asks the processor that this interpreter asks.
fn library_record(package: &File, place: LibraryPlace, interpreter: &[u8]) -> Result<Option<StartRecord>> {
    let path = Path::new(OsStr::from_bytes(interpreter));
    let file = files::read(path, MAX_INTERPRETER_FILE)?;
    let none = || Refusal::new(Code::ConfigInvalid, format!("{} is no interpreter of a processor", path.display()));
    let socket = slot::socket_in(&file).ok_or_else(none)?;
    let mut stub = vec![0; LIBRARY.len()];
    let LibraryPlace { address, init, read_only } = place;
    let known = hook::Known { socket, address, init: init.unwrap_or(0), read_only: read_only.unwrap_or((0, 0)) };
    hook::write(LIBRARY, known, &mut stub).ok_or_else(none)?;
    StartRecord::plan_library(package, &stub, LIBRARY_ENTRY)
}

fn write(package: &File, writes: &[(u64, Vec<u8>)]) -> Result<()> {
    for (offset, bytes) in writes {
        package.write_all_at(bytes, *offset).map_err(|e| Refusal::io("writing the package's start record", e))?;
    }
    Ok(())
}
