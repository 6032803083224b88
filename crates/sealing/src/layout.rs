//! Which bytes of a body are sealed, and how they are cut into units of one AEAD operation each.

use crate::elf;
use crate::read_at::{ReadAt, Recent};
use chipbound_wire::bounded::{List, decode, encode};
use chipbound_wire::limits::{DATA_CHUNK, MAX_CHUNK, MAX_LAYOUT, MAX_PROGRAM, PAGE, TAG};
use chipbound_wire::suite::{Format, Profile};
use chipbound_wire::{Code, Refusal, Result};
use minicbor::{Decode, Encode};

/// Sealed ranges in one layout.
pub const MAX_RANGES: usize = 2048;
/// Changed bytes in one layout.
pub const MAX_PATCHES: usize = 256;
/// Every chunk but the last is a multiple of this, in bytes, so that no unit lies in two chunks.
pub const CHUNK_STEP: usize = DATA_CHUNK;
/// The bit (PF_X) that packages clear in the flags of executable segments.
const EXECUTE: u8 = 1;
/// Sealed pieces that may lie in one page: the wire's limit on the tags of a chunk counts on it.
const UNITS_IN_A_PAGE: usize = 3;

/// Which bytes of a body are sealed. Checked: whoever has one knows that its ranges are in order, apart and inside the body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    form: Form,
    /// The ordinal of the first unit of each range.
    firsts: Vec<u64>,
    units: u64,
    sealed_bytes: u64,
}

/// The layout as it travels.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
struct Form {
    #[n(0)]
    format: Format,
    #[n(1)]
    body_size: u64,
    #[n(2)]
    sealed: List<Range, MAX_RANGES>,
    #[n(3)]
    patches: List<Patch, MAX_PATCHES>,
}

/// A range of bytes of the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(array)]
pub struct Range {
    /// Offset of the first byte.
    #[n(0)]
    pub offset: u64,
    /// Bytes, at least one.
    #[n(1)]
    pub len: u64,
}

impl Range {
    /// The range from `start` up to `end`.
    pub(crate) fn between(start: u64, end: u64) -> Self {
        Self { offset: start, len: end - start }
    }
    /// Offset after the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// A plain byte that the package changes: the low byte of the flags of an executable segment, whose PF_X is cleared in the
/// package, so that without a processor not one sealed byte can run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(array)]
pub struct Patch {
    /// Its offset in the body.
    #[n(0)]
    pub offset: u64,
    /// The byte in the plaintext; PF_X is set in it.
    #[n(1)]
    pub original: u8,
}

impl Patch {
    /// The byte in the package.
    #[must_use]
    pub fn packaged(&self) -> u8 {
        self.original & !EXECUTE
    }
}

/// A run of plain bytes, or one sealed unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) len: usize,
    /// The unit's ordinal, which is its nonce; `None` for plain bytes.
    pub(crate) unit: Option<u64>,
}

impl Piece {
    /// What the unit's AEAD operation authenticates besides the bytes: ordinal, offset and length.
    pub(crate) fn aad(&self, ordinal: u64) -> [u8; 20] {
        let mut aad = [0; 20];
        aad[..8].copy_from_slice(&ordinal.to_be_bytes());
        aad[8..16].copy_from_slice(&self.offset.to_be_bytes());
        aad[16..].copy_from_slice(&(self.len as u32).to_be_bytes());
        aad
    }
    /// Where the piece lies in a buffer that begins at `base`.
    pub(crate) fn within(&self, base: u64) -> std::ops::Range<usize> {
        let start = (self.offset - base) as usize;
        start..start + self.len
    }
}

impl Layout {
    /// The layout for a file: executable segments of a supported ELF program (x86-64, source \[49\]), all of anything else, in
    /// chunks of 64 KiB (source \[63\]). Fails only where reading fails or the file is larger than [`MAX_PROGRAM`].
    pub fn detect(file: &dyn ReadAt) -> Result<Self> {
        match elf::layout(file, false) {
            Err(refusal) if refusal.code == Code::UnsupportedProgram => Self::data(file.size()),
            other => other,
        }
    }

    /// The layout for a file with the profile that its vendor chose; [`Code::UnsupportedProgram`] says why a file is no supported
    /// program.
    pub fn of(profile: Profile, file: &dyn ReadAt) -> Result<Self> {
        match profile {
            Profile::Whole => Self::data(file.size()),
            Profile::Code => elf::layout(file, false),
            Profile::CodeAndConstants => elf::layout(file, true),
        }
    }

    /// Whether this layout seals every byte that `profile` seals of `plaintext`, and takes the execute flag from every segment that has it.
    /// It may seal more. [`Code::ProfileMismatch`] where it does not; refuses as [`Layout::of`] what is no supported program.
    pub fn check_profile(&self, profile: Profile, plaintext: &dyn ReadAt) -> Result<()> {
        if self.form.format == Format::Data {
            return Ok(()); // All of it is sealed, whatever the profile.
        }
        let wanted = Self::of(profile, &Recent::new(plaintext))?;
        let mismatch = |why: String| Err(Refusal::new(Code::ProfileMismatch, why));
        if let Some(range) = elf::subtract(wanted.sealed(), self.sealed()).first() {
            return mismatch(format!(
                "{} bytes at offset {} are plain, which the vendor's profile {profile} seals",
                range.len, range.offset
            ));
        }
        match wanted.patches().iter().find(|patch| !self.patches().contains(patch)) {
            Some(patch) => mismatch(format!("the segment whose flags lie at offset {} could be executed while it is sealed", patch.offset)),
            None => Ok(()),
        }
    }

    /// The layout of `size` bytes of data, all sealed.
    pub fn data(size: u64) -> Result<Self> {
        let sealed = if size == 0 { Vec::new() } else { vec![Range { offset: 0, len: size }] };
        Self::new(Format::Data, size, sealed, Vec::new())
    }

    /// Checks the parts and makes them a layout; [`Code::Malformed`] or [`Code::TooLarge`].
    pub(crate) fn new(format: Format, body_size: u64, sealed: Vec<Range>, patches: Vec<Patch>) -> Result<Self> {
        Self::check(Form { format, body_size, sealed: List::new(sealed)?, patches: List::new(patches)? })
    }

    /// Reads a layout, at most [`MAX_LAYOUT`] bytes in the one encoding that [`Layout::encode`] gives.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_LAYOUT {
            return Err(Refusal::new(Code::TooLarge, "the layout is larger than its limit"));
        }
        let layout = Self::check(decode(bytes)?)?;
        if layout.encode() != bytes {
            return Err(malformed("is not in its shortest encoding"));
        }
        Ok(layout)
    }

    /// The layout in CBOR.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(&self.form)
    }

    fn check(form: Form) -> Result<Self> {
        if form.body_size > MAX_PROGRAM {
            return Err(Refusal::new(Code::TooLarge, format!("{} bytes where {MAX_PROGRAM} are allowed", form.body_size)));
        }
        check_ranges(&form)?;
        check_patches(&form)?;
        let unit = unit_size(form.format);
        let mut layout = Self { firsts: Vec::with_capacity(form.sealed.len()), units: 0, sealed_bytes: 0, form };
        for range in layout.form.sealed.iter() {
            layout.firsts.push(layout.units);
            layout.units += range.end().div_ceil(unit) - range.offset / unit;
            layout.sealed_bytes += range.len;
        }
        Ok(layout)
    }

    /// What the plaintext is.
    #[must_use]
    pub fn format(&self) -> Format {
        self.form.format
    }
    /// Bytes of the body, which are as many as the plaintext has.
    #[must_use]
    pub fn body_size(&self) -> u64 {
        self.form.body_size
    }
    /// How many units, and so how many tags, there are.
    #[must_use]
    pub fn units(&self) -> u64 {
        self.units
    }
    /// Bytes of all tags.
    #[must_use]
    pub fn tags_size(&self) -> u64 {
        self.units * TAG as u64
    }
    /// How many bytes are sealed.
    #[must_use]
    pub fn sealed_bytes(&self) -> u64 {
        self.sealed_bytes
    }
    /// The sealed ranges, in order.
    #[must_use]
    pub fn sealed(&self) -> &[Range] {
        &self.form.sealed
    }
    /// The plain bytes that the package changes, in order.
    #[must_use]
    pub fn patches(&self) -> &[Patch] {
        &self.form.patches
    }

    /// How many units end in the chunk of `len` bytes at `offset`.
    #[must_use]
    pub fn tags_ending_in(&self, offset: u64, len: usize) -> usize {
        (self.units_ending_by(offset.saturating_add(len as u64)) - self.units_ending_by(offset)) as usize
    }

    /// How many units end at or before `offset`.
    pub(crate) fn units_ending_by(&self, offset: u64) -> u64 {
        let unit = unit_size(self.form.format);
        let after = self.form.sealed.partition_point(|r| r.offset < offset);
        let Some(last) = after.checked_sub(1) else { return 0 };
        let range = &self.form.sealed[last];
        if range.end() <= offset {
            return self.firsts.get(after).copied().unwrap_or(self.units);
        }
        self.firsts[last] + offset / unit - range.offset / unit
    }

    /// The pieces from `start` to `end`, neither of which may lie inside a unit: both are multiples of [`CHUNK_STEP`] or the
    /// body's end.
    pub(crate) fn pieces(&self, start: u64, end: u64) -> Pieces<'_> {
        let range = self.form.sealed.partition_point(|r| r.end() <= start);
        Pieces { layout: self, range, at: start, end: end.min(self.form.body_size) }
    }

    /// The patches from `start` to `end`.
    pub(crate) fn patches_in(&self, start: u64, end: u64) -> &[Patch] {
        let patches = &self.form.patches;
        &patches[patches.partition_point(|p| p.offset < start)..patches.partition_point(|p| p.offset < end)]
    }

    /// Where a chunk of `len` bytes at `offset` ends, once it was checked that such a chunk may be.
    pub(crate) fn chunk_end(&self, offset: u64, len: usize) -> Result<u64> {
        let end = offset + len as u64;
        if len == 0 || end > self.form.body_size {
            return Err(Refusal::new(Code::PackageTruncated, "more bytes follow than the body has"));
        }
        if len > MAX_CHUNK || (!len.is_multiple_of(CHUNK_STEP) && end != self.form.body_size) {
            return Err(Refusal::new(Code::Malformed, format!("{len} bytes are no chunk")));
        }
        Ok(end)
    }
}

/// Bytes of a whole unit.
fn unit_size(format: Format) -> u64 {
    match format {
        Format::Data => DATA_CHUNK as u64,
        Format::ElfX8664 => PAGE as u64,
    }
}

fn malformed(why: &str) -> Refusal {
    Refusal::new(Code::Malformed, format!("the layout {why}"))
}

fn check_ranges(form: &Form) -> Result<()> {
    let mut at = 0;
    for range in form.sealed.iter() {
        let end = range.offset.checked_add(range.len).ok_or_else(|| malformed("overflows"))?;
        if range.len == 0 || range.offset < at || end > form.body_size {
            return Err(malformed("has ranges out of order or outside the body"));
        }
        at = end;
    }
    match form.format {
        Format::Data if form.sealed.iter().map(|r| r.len).sum::<u64>() != form.body_size => Err(malformed("leaves data plain")),
        Format::Data if form.sealed.len() > 1 => Err(malformed("cuts data into ranges")),
        Format::ElfX8664 if form.sealed.is_empty() => Err(malformed("seals nothing")),
        Format::ElfX8664 => check_pages(&form.sealed),
        Format::Data => Ok(()),
    }
}

fn check_pages(sealed: &[Range]) -> Result<()> {
    let page = PAGE as u64;
    let crowded = sealed.windows(UNITS_IN_A_PAGE + 1).any(|w| (w[0].end() - 1) / page == w[UNITS_IN_A_PAGE].offset / page);
    if crowded { Err(malformed("seals too many pieces of one page")) } else { Ok(()) }
}

fn check_patches(form: &Form) -> Result<()> {
    if form.format == Format::Data && !form.patches.is_empty() {
        return Err(malformed("changes data"));
    }
    let mut at = 0;
    for patch in form.patches.iter() {
        let after = form.sealed.partition_point(|r| r.end() <= patch.offset);
        let sealed = form.sealed.get(after).is_some_and(|r| r.offset <= patch.offset);
        if patch.offset < at || patch.offset >= form.body_size || sealed || patch.original & EXECUTE == 0 {
            return Err(malformed("changes bytes out of order, outside the plain parts, or to no end"));
        }
        at = patch.offset + 1;
    }
    Ok(())
}

/// Walks over the pieces of a part of a body.
pub(crate) struct Pieces<'a> {
    layout: &'a Layout,
    range: usize,
    at: u64,
    end: u64,
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.at >= self.end {
            return None;
        }
        let unit = unit_size(self.layout.form.format);
        let offset = self.at;
        let (end, ordinal) = match self.layout.form.sealed.get(self.range) {
            Some(range) if range.offset <= offset => {
                let end = range.end().min((offset / unit + 1) * unit);
                let ordinal = self.layout.firsts[self.range] + offset / unit - range.offset / unit;
                self.range += usize::from(end == range.end());
                (end, Some(ordinal))
            }
            Some(range) => (range.offset.min(self.end), None),
            None => (self.end, None),
        };
        self.at = end;
        Some(Piece { offset, len: (end - offset) as usize, unit: ordinal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layouts of programs with ranges at all kinds of places, from a reproducible sequence.
    fn layouts() -> impl Iterator<Item = Layout> {
        let mut state = 5_u64;
        let mut next = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        (0..300).filter_map(move |_| {
            let (mut at, mut sealed) = (0, Vec::new());
            for _ in 0..=next(12) {
                let offset = at + next(30_000);
                let len = 1 + next(200_000);
                sealed.push(Range { offset, len });
                at = offset + len;
            }
            Layout::new(Format::ElfX8664, at + next(100_000), sealed, Vec::new()).ok()
        })
    }

    #[test]
    fn pieces_cover_the_body_once_and_no_two_units_share_a_nonce() {
        let data = [0, 1, 65_536, 700_000].map(|size| Layout::data(size).expect("data"));
        for layout in layouts().chain(data) {
            let (mut at, mut units, mut sealed) = (0, 0, 0);
            for start in (0..layout.body_size()).step_by(MAX_CHUNK) {
                for piece in layout.pieces(start, start + MAX_CHUNK as u64) {
                    assert_eq!(piece.offset, at);
                    at += piece.len as u64;
                    if let Some(ordinal) = piece.unit {
                        assert_eq!(ordinal, units);
                        assert_eq!(piece.offset / unit_size(layout.format()), (at - 1) / unit_size(layout.format()));
                        assert!(layout.sealed().iter().any(|r| r.offset <= piece.offset && at <= r.end()));
                        units += 1;
                        sealed += piece.len as u64;
                    }
                }
            }
            assert_eq!((at, units, sealed), (layout.body_size(), layout.units(), layout.sealed_bytes()));
        }
    }

    #[test]
    fn the_tags_that_end_in_each_chunk_are_all_tags() {
        for layout in layouts() {
            for step in [CHUNK_STEP, MAX_CHUNK] {
                let mut tags = 0;
                for start in (0..layout.body_size()).step_by(step) {
                    let end = (start + step as u64).min(layout.body_size());
                    let pieces = layout.pieces(start, end).filter(|p| p.unit.is_some()).count();
                    assert_eq!(layout.tags_ending_in(start, (end - start) as usize), pieces);
                    tags += pieces as u64;
                }
                assert_eq!(tags, layout.units());
            }
        }
    }
}
