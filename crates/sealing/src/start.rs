//! The start record: how a package on a machine's disk names the interpreter of that machine's processor, so that the kernel
//! starts it directly, or, for a shared library, brings the code that asks that processor before anything else of it runs; and how
//! that is undone before anything is verified.
//!
//! A package is delivered without it. Whoever puts it on a disk (step 1011) makes one program header name a path that is appended,
//! and appends the header's original bytes: `delivered package ‖ path ‖ NUL ‖ record ‖ footer`. The record is CBOR; the footer is
//! eight bytes of magic and the record's length, eight bytes, big endian. A library has zeros up to the next page and the stub in
//! the path's place. Nothing of it is signed, and it needs no signature: readers see the delivered bytes, of which every one is
//! compared with the seal, and take no record but the one that [`StartRecord::plan`] or [`StartRecord::plan_library`] itself makes of
//! those bytes and the path or stub. A stub that somebody changed has run before anybody could look: who may write to a
//! library says what runs in the programs that load it, as for any library.

use crate::elf::{self, Changed, Hook, Named};
use crate::read_at::ReadAt;
use chipbound_wire::bounded::{Bytes, List, decode, encode};
use chipbound_wire::limits::MAX_INTERPRETER;
use chipbound_wire::{Code, Refusal, Result};
use minicbor::{Decode, Encode};
use std::io;

/// What a package with a start record ends with, before the record's length.
pub(crate) const START_MAGIC: [u8; 8] = *b"CBSTART\x01";
/// Bytes of the footer.
const FOOTER: usize = 16;
/// Bytes of a record in CBOR.
const MAX_RECORD: u64 = 1024;
/// Changed places in one record, and bytes of each.
const MAX_EDITS: usize = 4;
const MAX_EDIT: usize = 64;
/// Bytes of a stub: far more than it has.
const MAX_STUB: usize = 64 * 1024;
/// Bytes between the delivered package and the record.
const MAX_APPENDED: u64 = MAX_STUB as u64 + PAGE;
/// Bytes of a page: stubs are mapped from the file.
const PAGE: u64 = 4096;

/// What was changed in a delivered package to make the kernel start it directly.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartRecord {
    /// What follows the delivered package: path and NUL, or padding and stub.
    appended: Vec<u8>,
    form: Form,
    /// What stands where the originals stood, in the order of the edits.
    placed: Vec<Vec<u8>>,
}

/// The record as it lies in the file.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
struct Form {
    /// Bytes of the package as it was delivered.
    #[n(0)]
    delivered: u64,
    #[n(1)]
    edits: List<Edit, MAX_EDITS>,
    /// Of a library alone.
    #[n(2)]
    stub: Option<Stub>,
}

/// The plain code that a library has called first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(array)]
struct Stub {
    /// Bytes.
    #[n(0)]
    len: u64,
    /// Where it begins in them.
    #[n(1)]
    entry: u64,
}

/// What the stub of a library has to know of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LibraryPlace {
    /// Where the stub's first byte lies in memory, before the load bias.
    pub address: u64,
    /// Where the library's own `DT_INIT` leads, before the load bias; none where it has none.
    pub init: Option<u64>,
    /// Address and length, before the load bias, of what is to be made read-only before `DT_INIT` is called, where no dynamic linker is
    /// told so any more (PT_GNU_RELRO).
    pub read_only: Option<(u64, u64)>,
}

/// A changed place and the bytes that were there.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(array)]
struct Edit {
    #[n(0)]
    offset: u64,
    #[n(1)]
    original: Bytes<MAX_EDIT>,
}

impl StartRecord {
    /// What has to be changed in a delivered package so that the kernel starts it by `interpreter`, an absolute path of at most
    /// [`MAX_INTERPRETER`] bytes ([`Code::ConfigInvalid`]). `None` where the package is no program, or has no header to spare: it
    /// can be started by `chipbound run` alone.
    pub fn plan(delivered: &dyn ReadAt, interpreter: &[u8]) -> Result<Option<Self>> {
        if interpreter.first() != Some(&b'/') || interpreter.len() > MAX_INTERPRETER || interpreter.contains(&0) {
            let detail = format!("{:?} is no absolute path of at most {MAX_INTERPRETER} bytes", String::from_utf8_lossy(interpreter));
            return Err(Refusal::new(Code::ConfigInvalid, detail));
        }
        let named = || match elf::hook(delivered)? {
            Some(_) => Ok(None),
            None => elf::named(delivered, delivered.size(), interpreter.len() as u64 + 1),
        };
        let Some(Named { offset, original, placed }) = if_elf(named())? else { return Ok(None) };
        let changes = [Changed { offset, original: original.to_vec(), placed: placed.to_vec() }];
        Self::of(delivered.size(), &changes, None, [interpreter, &[0]].concat()).map(Some)
    }

    /// Where a stub would lie in a delivered package of a shared library; `None` for anything else.
    pub fn library_place(delivered: &dyn ReadAt) -> Result<Option<LibraryPlace>> {
        Ok(if_elf(elf::hook(delivered))?.map(|Hook { address, init, read_only, .. }| LibraryPlace { address, init, read_only }))
    }

    /// What has to be changed in a delivered package of a shared library so that dynamic linkers call `stub`, at most 64 KiB, at its byte
    /// `entry` before anything else of it. `None` for anything else.
    pub fn plan_library(delivered: &dyn ReadAt, stub: &[u8], entry: u64) -> Result<Option<Self>> {
        if stub.is_empty() || stub.len() > MAX_STUB || entry >= stub.len() as u64 {
            return Err(Refusal::new(Code::Internal, "a library's stub is none, or larger than any is"));
        }
        let Some(hook) = if_elf(elf::hook(delivered))? else { return Ok(None) };
        let at = delivered.size().next_multiple_of(PAGE);
        let changes = hook.changes(at, stub.len() as u64, entry);
        let mut appended = vec![0; (at - delivered.size()) as usize];
        appended.extend(stub);
        let stub = Stub { len: stub.len() as u64, entry };
        Self::of(delivered.size(), &changes, Some(stub), appended).map(Some)
    }

    fn of(delivered: u64, changes: &[Changed], stub: Option<Stub>, appended: Vec<u8>) -> Result<Self> {
        let edit = |c: &Changed| Ok(Edit { offset: c.offset, original: Bytes::new(c.original.clone())? });
        let edits = List::new(changes.iter().map(edit).collect::<Result<Vec<_>>>()?)?;
        let placed = changes.iter().map(|c| c.placed.clone()).collect();
        Ok(Self { appended, form: Form { delivered, edits, stub }, placed })
    }

    /// The record that a file ends with, checked against what the file says without it; `None` where it ends with none.
    /// [`Code::PackageTruncated`] where the path does not lie where the record says, [`Code::PlainPartsAltered`] where the record, or what it accounts for, is not what [`StartRecord::plan`] makes.
    pub fn read(file: &dyn ReadAt) -> Result<Option<Self>> {
        let Some((record_at, form)) = read_form(file)? else { return Ok(None) };
        let moved = || Refusal::new(Code::PackageTruncated, "the package is not as long as its start record says");
        let delivered = Delivered::of_form(file, &form);
        let length = record_at.checked_sub(form.delivered).filter(|len| *len <= MAX_APPENDED).ok_or_else(moved)?;
        let appended = bytes(file, form.delivered, length)?;
        let expected = match form.stub {
            None => {
                let path = appended.strip_suffix(&[0]).filter(|path| path.starts_with(b"/")).ok_or_else(moved)?;
                Self::plan(&delivered, path)
            }
            Some(stub) => {
                let padding = form.delivered.next_multiple_of(PAGE) - form.delivered;
                let held = appended.split_at_checked(padding as usize).filter(|(_, held)| held.len() as u64 == stub.len);
                Self::plan_library(&delivered, held.ok_or_else(moved)?.1, stub.entry)
            }
        };
        let expected = expected.map_err(|e| altered(&e.detail))?;
        let other = || altered("other places than an interpreter's or a library's");
        let expected = expected.filter(|record| record.form == form && record.appended == appended).ok_or_else(other)?;
        for (edit, placed) in form.edits.iter().zip(&expected.placed) {
            if bytes(file, edit.offset, placed.len() as u64)? != *placed {
                return Err(altered("what stands in the places that it names"));
            }
        }
        Ok(Some(expected))
    }

    /// The path of the interpreter; none for a library, which brings the code that asks the processor.
    #[must_use]
    pub fn interpreter(&self) -> Option<&[u8]> {
        if self.form.stub.is_some() { None } else { self.appended.strip_suffix(&[0]) }
    }

    /// Bytes of the package as it was delivered.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.form.delivered
    }

    /// What to write where: the changed places and, at the delivered package's end, all that is appended.
    #[must_use]
    pub fn writes(&self) -> Vec<(u64, Vec<u8>)> {
        let mut writes: Vec<_> = self.form.edits.iter().zip(&self.placed).map(|(edit, placed)| (edit.offset, placed.clone())).collect();
        let record = encode(&self.form);
        let length = (record.len() as u64).to_be_bytes();
        writes.push((self.form.delivered, [&*self.appended, &*record, &START_MAGIC, &length].concat()));
        writes
    }

    /// What to write where to have the delivered package again, once the file was cut to [`StartRecord::delivered`] bytes.
    #[must_use]
    pub fn undo(&self) -> Vec<(u64, Vec<u8>)> {
        self.form.edits.iter().map(|edit| (edit.offset, edit.original.to_vec())).collect()
    }
}

/// A package as it was delivered, read from a file that may have a start record.
#[derive(Debug)]
pub(crate) struct Delivered<F> {
    file: F,
    size: u64,
    edits: Vec<(u64, Vec<u8>)>,
}

impl<F: ReadAt> Delivered<F> {
    /// The view without the record that was read from the same file.
    pub(crate) fn new(file: F, record: Option<&StartRecord>) -> Self {
        match record {
            Some(record) => Self::of_form(file, &record.form),
            None => Self { size: file.size(), file, edits: Vec::new() },
        }
    }

    fn of_form(file: F, form: &Form) -> Self {
        Self { file, size: form.delivered, edits: form.edits.iter().map(|e| (e.offset, e.original.to_vec())).collect() }
    }
}

impl<F: ReadAt> ReadAt for Delivered<F> {
    fn size(&self) -> u64 {
        self.size
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.size).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.file.read_exact_at(buf, offset)?;
        for (at, original) in &self.edits {
            let (from, to) = ((*at).max(offset), at.saturating_add(original.len() as u64).min(end));
            if from < to {
                buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(&original[(from - at) as usize..(to - at) as usize]);
            }
        }
        Ok(())
    }
}

/// What is no program of the usual form has no record.
fn if_elf<T>(found: Result<Option<T>>) -> Result<Option<T>> {
    match found {
        Err(refusal) if refusal.code == Code::UnsupportedProgram => Ok(None),
        other => other,
    }
}

/// Where the record lies, and what it says: an allegation in which only the sizes were checked.
fn read_form(file: &dyn ReadAt) -> Result<Option<(u64, Form)>> {
    let Some(footer_at) = file.size().checked_sub(FOOTER as u64) else { return Ok(None) };
    let footer = bytes(file, footer_at, FOOTER as u64)?;
    let Some(length) = footer.strip_prefix(&START_MAGIC) else { return Ok(None) };
    let length = u64::from_be_bytes(std::array::from_fn(|i| length[i]));
    let record_at = footer_at.checked_sub(length).filter(|_| length <= MAX_RECORD).ok_or_else(|| altered("its length"))?;
    let record = bytes(file, record_at, length)?;
    let form: Form = decode(&record).map_err(|e| altered("its form").because(e))?;
    if encode(&form) != record {
        return Err(altered("its form"));
    }
    Ok(Some((record_at, form)))
}

fn altered(what: &str) -> Refusal {
    Refusal::new(Code::PlainPartsAltered, format!("the package's start record does not fit: {what}"))
}

/// Bytes whose number was checked against a limit.
fn bytes(file: &dyn ReadAt, offset: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, offset).map_err(|e| Refusal::io("reading a package", e))?;
    Ok(bytes)
}
