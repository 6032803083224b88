//! Data for programs (source \[63\]): a program is started with the plaintext of packages of data open for reading.
//!
//! The kernel asks this daemon for what is read of them ([`files`]), so that a package of any size is ready at once, is opened and
//! verified in ranges, can be mapped into memory, and is never held whole. Where a machine has no FUSE for the daemon, data up to
//! `limits.data_in_memory_bytes` is opened into a sealed memory file instead.
//!
//! The customer never has the descriptor: the program gets it in its start, when nobody can take it from there
//! ([`chipbound_loader::AtExec::give`]).

pub mod files;
pub mod kernel;

use crate::cache::Opened;
use crate::confine::{self, Work};
use crate::processor::{Processor, Program};
use crate::readers;
use crate::room::Taken;
use chipbound_loader::{Given, Identity};
use chipbound_sealing::ReadAt;
use chipbound_trusted_core::{OpenedPackage, open_data, open_package};
use chipbound_wire::documents::Manifest;
use chipbound_wire::suite::Format;
use chipbound_wire::{Code, ProgramId, Refusal, Result};
use files::{Announced, Files, Served};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, open};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Bytes of plaintext outside the memory file while it is filled.
const STEP: usize = 256 * 1024;

/// Data that was opened whole, in a memory file that nobody can change.
#[derive(Debug)]
pub struct InMemory {
    file: File,
    size: u64,
    program: ProgramId,
    sequence: u64,
}

impl Opened for InMemory {
    fn memory(&self) -> u64 {
        self.size
    }
    fn program(&self) -> &ProgramId {
        &self.program
    }
    fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// Data that a program may have, until its start is over.
#[derive(Debug)]
pub struct Ready(Way);

#[derive(Debug)]
enum Way {
    Served(Announced),
    InMemory(Arc<InMemory>),
}

/// Opens the package of data in `file` for `program`, once its vendor's manifest allows that.
///
/// # Errors
/// [`Code::UseForbidden`], [`Code::UnsupportedProgram`] for a program, [`Code::DataUnavailable`] where this machine has no way for
/// data of that size, and what opening a package refuses with.
pub fn ready(file: File, program: &Program, us: &Processor) -> Result<Ready> {
    match us.files() {
        Ok(files) => served(file, program, files, us).map(|announced| Ready(Way::Served(announced))),
        Err(why) => in_memory(&file, program, why, us).map(|data| Ready(Way::InMemory(data))),
    }
}

fn served(file: File, program: &Program, files: &Files, us: &Processor) -> Result<Announced> {
    confine::thread(Work::Start)?; // What is parsed now was written by anybody.
    let enrolment = us.vault.enrolment()?;
    let identity = Identity::of(&file).map_err(|e| Refusal::io("the package of data", e))?;
    let opened = open_data(file, &us.vault, &*us.vault.keys(), &enrolment.root)?;
    check(&opened.manifest, program)?;
    let served = files.share(&identity, || {
        tracing::info!(program = %opened.manifest.program, bytes = opened.plaintext.size(), "data is served");
        Served::new(opened.plaintext, opened.manifest.program.clone())
    });
    files.announce(&served)
}

fn in_memory(file: &File, program: &Program, why: &str, us: &Processor) -> Result<Arc<InMemory>> {
    let limit = us.config.limits.data_in_memory_bytes;
    let identity = Identity::of(file).map_err(|e| Refusal::io("the package of data", e))?;
    confine::thread(Work::Start)?; // As above.
    let enrolment = us.vault.enrolment()?;
    let keys = us.vault.keys();
    // Who may have it is asked each time: what is kept was opened for another program, perhaps.
    let manifest = open_data(file, &us.vault, &*keys, &enrolment.root)?.manifest;
    check(&manifest, program)?;
    if manifest.plain_size > limit {
        let detail = format!("{} bytes of {}, and {limit} is what is opened in memory; {why}", manifest.plain_size, manifest.program);
        return Err(Refusal::new(Code::DataUnavailable, detail));
    }
    let verify = || {
        let room = us.room.take(file.size());
        let opened = open_package(file, &us.vault, &*keys, &enrolment.root, room.is_some())?;
        Ok((opened.manifest.digest(), (opened, room)))
    };
    us.data.get(
        &identity,
        verify,
        |_| Ok(()),
        |(opened, _room): (OpenedPackage<&File>, Option<Taken<'_>>)| {
            tracing::info!(program = %opened.manifest.program, bytes = opened.plaintext.size(), "data is in memory");
            fill(&opened)
        },
    )
}

/// Whether the vendor of the data lets `program` have it. Data that may be opened to a file may be had by any program. Other data by
/// those programs alone that its manifest names, or by all of the same vendor where it names none; and only by such as let
/// nobody bring code of his own into them.
fn check(data: &Manifest, program: &Program) -> Result<()> {
    if data.format != Format::Data {
        return Err(Refusal::new(Code::UnsupportedProgram, format!("{} is a program, no data", data.program)));
    }
    if data.open_to_file {
        return Ok(());
    }
    readers::check(&data.program, &data.readers, &program.program)?;
    readers::check_closed(&data.program, &program.program, program.loader_variables)
}

fn fill(opened: &OpenedPackage<&File>) -> Result<InMemory> {
    let failed = |e: std::io::Error| Refusal::io("a memory file for data", e);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match memfd_create("chipbound-data", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(rustix::io::Errno::INVAL) => memfd_create("chipbound-data", flags), // Kernels before 6.3.
        other => other,
    };
    let mut file = File::from(file.map_err(|e| failed(e.into()))?);
    let size = opened.plaintext.size();
    let mut buffer = Zeroizing::new(vec![0; STEP]);
    let mut done = 0;
    while done < size {
        let step = &mut buffer[..STEP.min(usize::try_from(size - done).unwrap_or(STEP))];
        opened.plaintext.read(step, done)?;
        file.write_all(step).map_err(failed)?;
        done += step.len() as u64;
    }
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals).map_err(|e| failed(e.into()))?;
    let (program, sequence) = (opened.manifest.program.clone(), opened.manifest.sequence);
    Ok(InMemory { file, size, program, sequence })
}

impl Ready {
    /// What the program is given under `number`: open for reading only, at its beginning, shared with nobody.
    pub fn given(&self, number: u32) -> Result<Given> {
        let failed = |e: rustix::io::Errno| Refusal::io("the data for the program", e.into());
        match &self.0 {
            Way::Served(announced) => {
                Ok(Given { number, file: announced.folder().map_err(failed)?, name: Some(announced.name().as_bytes().to_vec()) })
            }
            Way::InMemory(data) => {
                let path = format!("/proc/self/fd/{}", data.file.as_raw_fd());
                let file: OwnedFd = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
                Ok(Given { number, file, name: None })
            }
        }
    }
}
