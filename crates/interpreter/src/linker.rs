//! The rest of the kernel's work for a program that is to be an ordinary one after all.
//!
//! `chipbound` names no dynamic linker (no `PT_INTERP`), so that `run` does not pay for one. For every other verb it is brought here,
//! exactly as the kernel would have: its segments are mapped, and the auxiliary vector says where it lies and where the program
//! begins. It finds the program headers in a copy that has the two entries which a linker leaves out without a `PT_INTERP`, and
//! which it asks for.

use crate::stack::{AT_BASE, AT_ENTRY, AT_PHDR, AT_PHNUM, Stack};
use crate::sys::{Descriptor, PAGE, exit, map_anonymous, map_over, open, seal_memory};
use crate::text::say;
use core::ffi::CStr;

/// The dynamic linker of this system, NUL at the end; `build.rs` says which.
const PATH: &str = concat!(env!("CHIPBOUND_DYNAMIC_LINKER"), "\0");
/// The exit code when there is no dynamic linker, as shells have it for a missing one.
const NOT_FOUND: u8 = 127;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const DT_NULL: usize = 0;
const DT_NEEDED: usize = 1;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const PF_R: u32 = 4;
/// Bytes of an ELF header, which program headers follow in every file that a linker made.
const HEADER: usize = 64;
/// Program headers that are looked at.
const MAX_HEADERS: usize = 32;

/// A program header, as it stands in a file of 64 bits.
#[repr(C)]
#[derive(Clone, Copy)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: usize,
    address: usize,
    physical: usize,
    in_file: usize,
    in_memory: usize,
    alignment: usize,
}

const NO_HEADER: ProgramHeader =
    ProgramHeader { kind: 0, flags: 0, offset: 0, address: 0, physical: 0, in_file: 0, in_memory: 0, alignment: 0 };

/// Where the process goes on as the ordinary program that begins at `ordinary`: there, if it needs no dynamic linker or the kernel has
/// started one already, else in the dynamic linker, which is then mapped.
pub fn load(stack: &mut Stack, ordinary: usize) -> usize {
    let (Some(0) | None, Some(at), Some(count)) = (stack.auxiliary(AT_BASE), stack.auxiliary(AT_PHDR), stack.auxiliary(AT_PHNUM)) else {
        return ordinary;
    };
    // SAFETY: the kernel says that this many program headers lie there, in memory that nobody changes.
    let headers = unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance::<ProgramHeader>(at), count) };
    let first = headers.iter().find(|h| h.kind == PT_LOAD && h.offset == 0);
    let Some(bias) = first.map(|h| at.wrapping_sub(HEADER).wrapping_sub(h.address)) else { return ordinary };
    if !needs_linker(headers, bias) {
        return ordinary;
    }
    match map(stack, headers, bias, ordinary) {
        Some(start) => start,
        None => {
            say([b"chipbound: the dynamic linker of this system cannot be loaded: ", PATH.as_bytes(), b"\n", b""]);
            exit(NOT_FOUND)
        }
    }
}

/// Whether the program asks for a shared library.
fn needs_linker(headers: &[ProgramHeader], bias: usize) -> bool {
    let Some(dynamic) = headers.iter().find(|h| h.kind == PT_DYNAMIC) else { return false };
    let mut entry = core::ptr::with_exposed_provenance::<[usize; 2]>(bias.wrapping_add(dynamic.address));
    loop {
        // SAFETY: the dynamic section of this very program ends in DT_NULL, which is not gone past.
        match unsafe { entry.read()[0] } {
            DT_NEEDED => return true,
            DT_NULL => return false,
            // SAFETY: this entry was not the last.
            _ => entry = unsafe { entry.add(1) },
        }
    }
}

fn map(stack: &mut Stack, headers: &[ProgramHeader], bias: usize, ordinary: usize) -> Option<usize> {
    let path = CStr::from_bytes_with_nul(PATH.as_bytes()).ok()?;
    let file = open(path).ok()?;
    let (base, entry) = map_file(file)?;
    file.close();
    let copy = copy_of(headers, bias, path)?;
    stack.set_auxiliary(AT_PHDR, copy);
    stack.set_auxiliary(AT_PHNUM, headers.len() + 2);
    stack.set_auxiliary(AT_BASE, base);
    stack.set_auxiliary(AT_ENTRY, ordinary);
    Some(entry)
}

/// The program headers with `PT_PHDR` and `PT_INTERP` before them, in memory of their own.
fn copy_of(headers: &[ProgramHeader], bias: usize, path: &'static CStr) -> Option<usize> {
    let length = (headers.len() + 2) * size_of::<ProgramHeader>();
    if length > PAGE {
        return None;
    }
    let at = map_anonymous(PAGE).ok()?;
    let header = |kind, start: usize, length| ProgramHeader {
        kind,
        flags: PF_R,
        address: start.wrapping_sub(bias),
        in_file: length,
        in_memory: length,
        alignment: 1,
        ..NO_HEADER
    };
    let own = [header(PT_PHDR, at, length), header(PT_INTERP, path.as_ptr().addr(), path.count_bytes() + 1)];
    let copy = core::ptr::with_exposed_provenance_mut::<ProgramHeader>(at);
    // Some linkers leave PT_PHDR in; there is to be one.
    let others = headers.iter().map(|h| if h.kind == PT_PHDR { NO_HEADER } else { *h });
    for (i, header) in own.into_iter().chain(others).enumerate() {
        // SAFETY: the page is fresh, and all of them fit in.
        unsafe { copy.add(i).write(header) };
    }
    // SAFETY: everything is written.
    unsafe { seal_memory(at, PAGE) }.ok().map(|()| at)
}

/// Maps the segments of the dynamic linker; where it lies and where it begins.
fn map_file(file: Descriptor) -> Option<(usize, usize)> {
    #[repr(C)]
    struct Head {
        header: [u8; HEADER],
        programs: [ProgramHeader; MAX_HEADERS],
    }
    let mut head = Head { header: [0; HEADER], programs: [NO_HEADER; MAX_HEADERS] };
    // SAFETY: the structure is plain numbers without gaps, of that many bytes.
    let bytes = unsafe { core::slice::from_raw_parts_mut((&raw mut head).cast::<u8>(), size_of::<Head>()) };
    let read = file.read(bytes).ok()?;
    let word = |at: usize| head.header.get(at..at + 8).and_then(|w| w.try_into().ok()).map(usize::from_ne_bytes);
    let count = head.header.get(56..58).and_then(|w| w.try_into().ok()).map(u16::from_ne_bytes).map(usize::from)?;
    // \x7fELF, 64 bits, little endian; the program headers follow the header.
    let good = head.header.starts_with(b"\x7fELF\x02\x01") && word(32)? == HEADER && read >= HEADER + count * size_of::<ProgramHeader>();
    let segments = head.programs.get(..count).filter(|_| good)?;
    let end = segments.iter().filter(|s| s.kind == PT_LOAD).map(|s| s.address + s.in_memory).max()?;
    // One mapping over all, so that nothing else comes to lie between the segments.
    let base = map_anonymous(end.next_multiple_of(PAGE)).ok()?;
    for segment in segments.iter().filter(|s| s.kind == PT_LOAD) {
        map_segment(file, base, segment)?;
    }
    Some((base, base + word(24)?))
}

fn map_segment(file: Descriptor, base: usize, segment: &ProgramHeader) -> Option<()> {
    let before = segment.address % PAGE;
    let start = base + segment.address - before;
    let protection = [(PF_R, 1), (PF_W, 2), (PF_X, 4)].iter().filter(|(flag, _)| segment.flags & flag != 0).map(|(_, bit)| bit).sum();
    let offset = segment.offset.checked_sub(before)?;
    let in_file = before + segment.in_file;
    // SAFETY: this lies in the mapping that was made for the segments, and they do not overlap.
    unsafe { map_over(start, in_file, protection, Some((file, offset))) }.ok()?;
    let (mapped, whole) = (in_file.next_multiple_of(PAGE), (before + segment.in_memory).next_multiple_of(PAGE));
    if segment.in_memory > segment.in_file {
        // SAFETY: the rest of the last page of a writable segment, which nobody uses yet; other segments have none.
        unsafe { core::ptr::with_exposed_provenance_mut::<u8>(start + in_file).write_bytes(0, mapped - in_file) };
    }
    if whole > mapped {
        // SAFETY: as above.
        unsafe { map_over(start + mapped, whole - mapped, protection, None) }.ok()?;
    }
    Some(())
}
