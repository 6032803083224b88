//! What makes the kernel start a package on this machine's disk: its start record names the processor's interpreter.

use chipbound_sealing::StartRecord;
use chipbound_wire::{Refusal, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Makes the package in a file name this interpreter, or none, whatever it named before; gives whether it names one now. Data and
/// programs without a header to spare name none. The file is one that nobody uses yet: it is changed in place.
pub fn name_interpreter(package: &File, interpreter: Option<&[u8]>) -> Result<bool> {
    let failed = |e| Refusal::io("writing the package's start record", e);
    if let Some(record) = StartRecord::read(package)? {
        package.set_len(record.delivered()).map_err(failed)?;
        write(package, &record.undo())?;
    }
    let record = match interpreter {
        Some(interpreter) => StartRecord::plan(package, interpreter)?,
        None => None,
    };
    if let Some(record) = &record {
        write(package, &record.writes())?;
    }
    Ok(record.is_some())
}

fn write(package: &File, writes: &[(u64, Vec<u8>)]) -> Result<()> {
    for (offset, bytes) in writes {
        package.write_all_at(bytes, *offset).map_err(|e| Refusal::io("writing the package's start record", e))?;
    }
    Ok(())
}
