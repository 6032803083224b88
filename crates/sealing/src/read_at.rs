//! Bytes that can be read at any offset: a file, a slice, or what a package opens to.

use std::cell::RefCell;
use std::io;
use zeroize::Zeroizing;

/// Bytes of a known size that can be read at any offset, without a cursor.
pub trait ReadAt {
    /// How many bytes there are. A file whose size cannot be learned counts as empty.
    fn size(&self) -> u64;

    /// Fills `buf` with the bytes at `offset`; `UnexpectedEof` where there are fewer.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for std::fs::File {
    fn size(&self) -> u64 {
        self.metadata().map_or(0, |m| m.len())
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buf, offset)
    }
}

impl ReadAt for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset)
            .ok()
            .and_then(|at| self.get(at..)?.get(..buf.len()))
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        buf.copy_from_slice(from);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        self.as_slice().size()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(buf, offset)
    }
}

/// Keeps the 64 KiB that were read last, for who reads a few bytes at a time of a source whose reads cost much.
pub(crate) struct Recent<'a> {
    of: &'a dyn ReadAt,
    /// The offset of the block, and its bytes.
    kept: RefCell<(u64, Zeroizing<Vec<u8>>)>,
}

/// Bytes of a block.
const BLOCK: u64 = 64 * 1024;

impl<'a> Recent<'a> {
    pub(crate) fn new(of: &'a dyn ReadAt) -> Self {
        Self { of, kept: RefCell::new((0, Zeroizing::new(Vec::new()))) }
    }
}

impl ReadAt for Recent<'_> {
    fn size(&self) -> u64 {
        self.of.size()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let base = offset - offset % BLOCK;
        let len = self.size().saturating_sub(base).min(BLOCK);
        if offset - base + buf.len() as u64 > len {
            return self.of.read_exact_at(buf, offset); // Of two blocks, or beyond the end.
        }
        let mut kept = self.kept.borrow_mut();
        if kept.0 != base || kept.1.is_empty() {
            kept.1.clear(); // What a read that fails leaves is nothing.
            let mut block = Zeroizing::new(vec![0; len as usize]);
            self.of.read_exact_at(&mut block, base)?;
            *kept = (base, block);
        }
        let from = (offset - base) as usize;
        buf.copy_from_slice(&kept.1[from..from + buf.len()]);
        Ok(())
    }
}

macro_rules! through {
    ($($pointer:ty),+) => {$(
        impl<T: ReadAt + ?Sized> ReadAt for $pointer {
            fn size(&self) -> u64 {
                (**self).size()
            }
            fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
                (**self).read_exact_at(buf, offset)
            }
        }
    )+};
}
through!(&T, Box<T>, std::sync::Arc<T>);

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_and_a_slice_give_the_same_bytes_and_refuse_the_same_reads() {
        let bytes: Vec<u8> = (0..100).collect();
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&bytes).expect("written");
        let sources: [&dyn ReadAt; 3] = [&file, &bytes, &std::sync::Arc::new(bytes.clone())];
        for source in sources {
            assert_eq!(source.size(), 100);
            let mut part = [0; 10];
            source.read_exact_at(&mut part, 90).expect("the last ten");
            assert_eq!(part, bytes[90..]);
            let recent = Recent::new(source);
            for (offset, len) in [(0, 3), (97, 3), (100, 0)] {
                let mut part = vec![0; len];
                recent.read_exact_at(&mut part, offset as u64).expect("of the block");
                assert_eq!(part, bytes[offset..offset + len]);
            }
            for offset in [91, 100, 101, u64::MAX] {
                assert!(recent.read_exact_at(&mut part, offset).is_err(), "{offset}");
                assert!(source.read_exact_at(&mut part, offset).is_err(), "{offset}");
            }
        }
    }
}
