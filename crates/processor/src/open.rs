//! Opening data packages (source \[63\]) and inspecting packages.

use crate::connection::Connection;
use crate::processor::Processor;
use crate::run::check_file;
use chipbound_sealing::ReadAt;
use chipbound_trusted_core::{OpenedPackage, open_package};
use chipbound_wire::bounded::{Bytes, Text};
use chipbound_wire::control::Response;
use chipbound_wire::documents::Manifest;
use chipbound_wire::suite::Format;
use chipbound_wire::{Code, Refusal, Result};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// Bytes of plaintext in memory at once.
const STEP: usize = 256 * 1024;

/// The shortest time between two words of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

fn verify(file: File, us: &Processor, at_once: bool) -> Result<OpenedPackage<File>> {
    let enrolment = us.vault.enrolment()?;
    open_package(file, &us.vault, &*us.vault.keys(), &enrolment.root, at_once)
}

/// Verifies the package whole, then writes its plaintext to `output`, when the vendor allows that. Gives the bytes written.
pub fn open(connection: &mut Connection, package: OwnedFd, output: OwnedFd, us: &Processor) -> Result<u64> {
    let file = check_file(File::from(package))?;
    let room = us.room.take(file.size());
    let opened = verify(file, us, room.is_some())?;
    if !opened.manifest.open_to_file {
        let Manifest { program, format, .. } = &*opened.manifest;
        let what = if *format == Format::Data { "given to programs (chipbound run --with)" } else { "run" };
        return Err(Refusal::new(Code::UseForbidden, format!("{program} may be {what}, but not opened to a file")));
    }
    let total = opened.plaintext.size();
    let mut output = File::from(output);
    let mut buffer = Zeroizing::new(vec![0; STEP]);
    let (mut done, mut told) = (0, Instant::now());
    while done < total {
        let step = &mut buffer[..STEP.min(usize::try_from(total - done).unwrap_or(STEP))];
        opened.plaintext.read_exact_at(step, done).map_err(|e| read_refusal(&opened, e))?;
        output.write_all(step).map_err(written)?;
        done += step.len() as u64;
        if told.elapsed() >= PROGRESS_EVERY {
            told = Instant::now();
            connection.send(&Response::Progress { done, total }, None)?;
        }
    }
    Ok(total)
}

/// Is this package whole, and can it be opened here?
pub fn inspect(package: File, us: &Processor) -> Result<Response> {
    let opened = verify(package, us, false)?; // Hardly a byte is read after that.
    let Manifest { program, version, profile, .. } = &*opened.manifest;
    let title = Text::cut(&format!("{program} {}", &**version));
    let named = opened.start.as_ref().and_then(|record| record.interpreter());
    let interpreter = named.map(|path| Bytes::new(path.to_vec())).transpose()?;
    Ok(Response::Inspected { manifest: opened.manifest.digest(), title, interpreter, profile: *profile, program: program.clone() })
}

fn read_refusal<F>(_: &OpenedPackage<F>, error: std::io::Error) -> Refusal {
    Refusal::new(Code::PageAltered, format!("the package changed while it was opened: {error}")).because(error)
}

/// A reader that went away is the caller's wish, not a fault of the machine.
fn written(error: std::io::Error) -> Refusal {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Refusal::new(Code::Cancelled, "nobody reads the output any more").because(error),
        _ => Refusal::io("writing the output", error),
    }
}
