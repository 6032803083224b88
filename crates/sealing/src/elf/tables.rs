//! Where a file keeps the tables of the dynamic linker, whatever its section headers say: what its dynamic section names. Sizes that the
//! dynamic section does not give are found by walking the tables; what cannot be walked is sealed like code.

use super::{Elf, LE, Range, bytes, many, table};
use chipbound_wire::{Code, Result};
use object::elf::{
    DT_FINI_ARRAY, DT_FINI_ARRAYSZ, DT_GNU_HASH, DT_HASH, DT_INIT_ARRAY, DT_INIT_ARRAYSZ, DT_JMPREL, DT_PLTRELSZ, DT_PREINIT_ARRAY,
    DT_PREINIT_ARRAYSZ, DT_REL, DT_RELA, DT_RELASZ, DT_RELSZ, DT_STRSZ, DT_STRTAB, DT_SYMTAB, DT_VERDEF, DT_VERDEFNUM, DT_VERNEED,
    DT_VERNEEDNUM, DT_VERSYM, Sym64,
};

/// The table of relative relocations and its size (generic ABI), which `object` does not name.
const DT_RELR: u32 = 36;
const DT_RELRSZ: u32 = 35;
/// Tables whose sizes the dynamic section gives.
const SIZED: [(u32, u32); 8] = [
    (DT_STRTAB, DT_STRSZ),
    (DT_RELA, DT_RELASZ),
    (DT_REL, DT_RELSZ),
    (DT_RELR, DT_RELRSZ),
    (DT_JMPREL, DT_PLTRELSZ),
    (DT_INIT_ARRAY, DT_INIT_ARRAYSZ),
    (DT_FINI_ARRAY, DT_FINI_ARRAYSZ),
    (DT_PREINIT_ARRAY, DT_PREINIT_ARRAYSZ),
];
/// Entries of any table that are walked.
const MAX_ENTRIES: u64 = 1 << 20;
/// Bytes of a symbol.
const SYMBOL: usize = 24;

/// The ranges of the tables, not yet checked against the file's size.
pub(super) fn of_dynamic(elf: &Elf<'_>) -> Result<Vec<Range>> {
    let dynamic = elf.dynamic()?;
    let value = |tag: u32| dynamic.iter().find(|d| d.0 == u64::from(tag)).map(|d| d.1);
    let place = |tag: u32| value(tag).and_then(|address| elf.offset_of(address));

    let mut ranges: Vec<Range> = SIZED.iter().filter_map(|(tag, size)| Some(Range { offset: place(*tag)?, len: value(*size)? })).collect();
    let mut symbols = 0;
    let walks: [(u32, Walk); 2] = [(DT_HASH, hash), (DT_GNU_HASH, gnu_hash)];
    for (tag, walk) in walks {
        if let Some((range, count)) = place(tag).map(|at| walked(walk(elf, at))).transpose()?.flatten() {
            ranges.push(range);
            symbols = symbols.max(count);
        }
    }
    ranges.extend(place(DT_SYMTAB).map(|at| table(at, symbols, SYMBOL)));
    ranges.extend(place(DT_VERSYM).map(|at| table(at, symbols, 2)));
    for (tag, count, link) in [(DT_VERNEED, DT_VERNEEDNUM, NEED), (DT_VERDEF, DT_VERDEFNUM, DEFINITION)] {
        if let Some((at, count)) = place(tag).zip(value(count)) {
            ranges.extend(walked(versions(elf, at, count, &link))?);
        }
    }
    Ok(ranges)
}

/// The symbols that the dynamic linker knows.
pub(super) fn symbols(elf: &Elf<'_>) -> Result<Vec<Sym64<LE>>> {
    let dynamic = elf.dynamic()?;
    let place = |tag: u32| dynamic.iter().find(|d| d.0 == u64::from(tag)).and_then(|d| elf.offset_of(d.1));
    let mut count = 0;
    let walks: [(u32, Walk); 2] = [(DT_HASH, hash), (DT_GNU_HASH, gnu_hash)];
    for (tag, walk) in walks {
        if let Some((_, symbols)) = place(tag).map(|at| walk(elf, at)).transpose()? {
            count = count.max(symbols);
        }
    }
    let Some(at) = place(DT_SYMTAB) else { return Ok(Vec::new()) };
    many(&bytes(elf.file, table(at, count, SYMBOL))?, count)
}

type Walk = fn(&Elf<'_>, u64) -> Result<(Range, usize)>;

/// `None` where a table leads out of the file.
fn walked<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(refusal) if refusal.code == Code::UnsupportedProgram => Ok(None),
        other => other.map(Some),
    }
}

/// `N` words of 32 bits at `offset`.
fn words<const N: usize>(elf: &Elf<'_>, offset: u64) -> Result<[u32; N]> {
    let bytes = bytes(elf.file, table(offset, N, 4))?;
    Ok(std::array::from_fn(|i| u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])))
}

/// DT_HASH: its range, and how many symbols there are.
fn hash(elf: &Elf<'_>, at: u64) -> Result<(Range, usize)> {
    let [buckets, chains] = words(elf, at)?;
    let entries = 2 + u64::from(buckets) + u64::from(chains);
    Ok((Range { offset: at, len: entries * 4 }, chains as usize))
}

/// DT_GNU_HASH: its range, and how many symbols there are. The last chain that a bucket begins ends with the last symbol.
fn gnu_hash(elf: &Elf<'_>, at: u64) -> Result<(Range, usize)> {
    let [buckets, first, bloom, _shift] = words(elf, at)?;
    let buckets_at = at.saturating_add(16).saturating_add(u64::from(bloom) * 8);
    let chains_at = buckets_at.saturating_add(u64::from(buckets) * 4);
    let heads = bytes(elf.file, Range { offset: buckets_at, len: u64::from(buckets) * 4 })?;
    let last = heads.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).max().unwrap_or(0);
    let mut symbol = u64::from(last);
    if last < first || last == 0 {
        return Ok((Range::between(at, chains_at), first as usize));
    }
    for _ in 0..MAX_ENTRIES {
        let [link] = words(elf, chains_at.saturating_add((symbol - u64::from(first)) * 4))?;
        symbol += 1;
        if link & 1 != 0 {
            break;
        }
    }
    let end = chains_at.saturating_add((symbol - u64::from(first)) * 4);
    Ok((Range::between(at, end), symbol as usize))
}

/// Where a version record keeps what: byte offsets of its count of auxiliary records (16 bits), of the offset of the first of
/// them, and of the offset of the next record; the record's own size; and the same of an auxiliary record.
struct Link {
    count: u64,
    auxiliary: u64,
    next: u64,
    size: u64,
    auxiliary_next: u64,
    auxiliary_size: u64,
}
const NEED: Link = Link { count: 2, auxiliary: 8, next: 12, size: 16, auxiliary_next: 12, auxiliary_size: 16 };
const DEFINITION: Link = Link { count: 6, auxiliary: 12, next: 16, size: 20, auxiliary_next: 4, auxiliary_size: 8 };

/// DT_VERNEED or DT_VERDEF: from its first record to the end of the last one.
fn versions(elf: &Elf<'_>, start: u64, count: u64, link: &Link) -> Result<Range> {
    let (mut at, mut end) = (start, start);
    let mut budget = MAX_ENTRIES;
    for _ in 0..count.min(MAX_ENTRIES) {
        end = end.max(at.saturating_add(link.size));
        let [counted] = words(elf, at.saturating_add(link.count))?;
        let [auxiliary] = words(elf, at.saturating_add(link.auxiliary))?;
        let mut part = at.saturating_add(u64::from(auxiliary));
        for _ in 0..counted & 0xffff {
            budget = budget.saturating_sub(1);
            end = end.max(part.saturating_add(link.auxiliary_size));
            let [next] = words(elf, part.saturating_add(link.auxiliary_next))?;
            if next == 0 || budget == 0 {
                break;
            }
            part = part.saturating_add(u64::from(next));
        }
        let [next] = words(elf, at.saturating_add(link.next))?;
        if next == 0 || budget == 0 {
            break;
        }
        at = at.saturating_add(u64::from(next));
    }
    Ok(Range::between(start, end))
}
