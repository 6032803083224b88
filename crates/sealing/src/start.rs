//! The start record: how a package on a machine's disk names the interpreter of that machine's processor, so that the kernel
//! starts it directly, and how that is undone before anything is verified.
//!
//! A package is delivered without it. Whoever puts it on a disk (step 1011) makes one program header name a path that is appended,
//! and appends the header's original bytes: `delivered package ‖ path ‖ NUL ‖ record ‖ footer`. The record is CBOR; the footer is
//! eight bytes of magic and the record's length, eight bytes, big endian. Nothing of it is signed, and it needs no signature:
//! readers see the delivered bytes, of which every one is compared with the seal, and take no record but the one that
//! [`StartRecord::plan`] itself makes of those bytes and the path.

use crate::elf::{self, Named};
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

/// What was changed in a delivered package to make the kernel start it directly.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartRecord {
    interpreter: Vec<u8>,
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
        let named = match elf::named(delivered, delivered.size(), interpreter.len() as u64 + 1) {
            Err(refusal) if refusal.code == Code::UnsupportedProgram => return Ok(None),
            other => other?,
        };
        let Some(Named { offset, original, placed }) = named else { return Ok(None) };
        let edits = List::new(vec![Edit { offset, original: Bytes::new(original.to_vec())? }])?;
        let form = Form { delivered: delivered.size(), edits };
        Ok(Some(Self { interpreter: interpreter.to_vec(), form, placed: vec![placed.to_vec()] }))
    }

    /// The record that a file ends with, checked against what the file says without it; `None` where it ends with none.
    /// [`Code::PackageTruncated`] where the path does not lie where the record says, [`Code::PlainPartsAltered`] where the record, or what it accounts for, is not what [`StartRecord::plan`] makes.
    pub fn read(file: &dyn ReadAt) -> Result<Option<Self>> {
        let Some((record_at, form)) = read_form(file)? else { return Ok(None) };
        let moved = || Refusal::new(Code::PackageTruncated, "the package is not as long as its start record says");
        let path = record_at.checked_sub(form.delivered).filter(|len| (2..=MAX_INTERPRETER as u64 + 1).contains(len));
        let path = bytes(file, form.delivered, path.ok_or_else(moved)?)?;
        let interpreter = path.strip_suffix(&[0]).filter(|path| path.starts_with(b"/")).ok_or_else(moved)?;
        let delivered = Delivered::of_form(file, &form);
        let expected = Self::plan(&delivered, interpreter).map_err(|e| altered(&e.detail))?;
        let expected = expected.filter(|record| record.form == form).ok_or_else(|| altered("other places than the interpreter's"))?;
        for (edit, placed) in form.edits.iter().zip(&expected.placed) {
            if bytes(file, edit.offset, placed.len() as u64)? != *placed {
                return Err(altered("the program header of the interpreter"));
            }
        }
        Ok(Some(expected))
    }

    /// The path of the interpreter.
    #[must_use]
    pub fn interpreter(&self) -> &[u8] {
        &self.interpreter
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
        writes.push((self.form.delivered, [&*self.interpreter, &[0], &*record, &START_MAGIC, &length].concat()));
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
