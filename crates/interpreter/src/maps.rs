//! Where this process finds the file that a piece of its own memory is of: `/proc/self/maps` (proc_pid_maps(5)).

use crate::sys::{Errno, Result, open};
use core::ffi::CStr;

/// The list of this process's mappings. It may be read although the process cannot be dumped.
const MAPS: &CStr = c"/proc/self/maps";
/// What the kernel writes behind a path that leads there no more.
const DELETED: &[u8] = b" (deleted)";

/// The path of the file that is mapped at `address`, as the kernel names it. `room` is for a piece of the list, longer than any path.
///
/// # Errors
/// What opening or reading the list says; [`Errno::ENOENT`] where no file is mapped there, or it was removed since.
pub fn file_at(address: usize, room: &mut [u8]) -> Result<&CStr> {
    let maps = open(MAPS)?;
    let found = search(|room| maps.read(room), address, room);
    maps.close();
    let (start, end) = found?;
    CStr::from_bytes_with_nul(room.get(start..end).unwrap_or_default()).map_err(|_| Errno::ENOENT)
}

/// Where the path with a NUL behind it lies in `room`.
fn search(mut read: impl FnMut(&mut [u8]) -> Result<usize>, address: usize, room: &mut [u8]) -> Result<(usize, usize)> {
    let mut filled = 0;
    loop {
        let read = read(room.get_mut(filled..).unwrap_or_default())?;
        if read == 0 {
            return Err(Errno::ENOENT);
        }
        filled += read;
        let mut line = 0;
        while let Some(end) = room.get(line..filled).unwrap_or_default().iter().position(|byte| *byte == b'\n').map(|n| line + n) {
            if let Some(path) = path_in(room.get(line..end).unwrap_or_default(), address) {
                if let Some(newline) = room.get_mut(end) {
                    *newline = 0;
                }
                return path.map(|length| (end - length, end + 1)).ok_or(Errno::ENOENT);
            }
            line = end + 1;
        }
        room.copy_within(line..filled, 0);
        filled -= line;
    }
}

/// Of the line for `address` the length of the path at its end, if there is one; None for other lines.
#[expect(clippy::option_option, reason = "another line and a line without a path are two things")]
fn path_in(line: &[u8], address: usize) -> Option<Option<usize>> {
    let (start, rest) = hexadecimal(line)?;
    let (end, _) = hexadecimal(rest.strip_prefix(b"-")?)?;
    if !(start..end).contains(&address) {
        return None;
    }
    let path = line.iter().position(|byte| *byte == b'/').and_then(|at| line.get(at..));
    Some(path.filter(|path| !path.ends_with(DELETED)).map(<[u8]>::len))
}

/// A number at the beginning, and what follows.
fn hexadecimal(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let length = bytes.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, rest) = bytes.split_at_checked(length)?;
    let value = |digit: &u8| (*digit as char).to_digit(16).map_or(0, |digit| digit as usize);
    (1..=16).contains(&length).then(|| (digits.iter().fold(0_usize, |number, digit| number << 4 | value(digit)), rest))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    const LIST: &[u8] = b"1000-2000 r--p 00000000 fe:00 12      /usr/lib/lib a.so\n2000-3000 rw-p 00000000 00:00 0 \n\
        3000-4000 r-xp 00001000 fe:00 13    /gone.so (deleted)\n7f0000000000-7f0000001000 r-xp 0 fe:00 14 /b.so\n";

    /// The list in pieces of at most `piece` bytes.
    fn searched(address: usize, piece: usize) -> Result<std::vec::Vec<u8>> {
        let (mut rest, mut room) = (LIST, [0; 128]);
        let read = |into: &mut [u8]| {
            let (now, later) = rest.split_at(piece.min(rest.len()).min(into.len()));
            into[..now.len()].copy_from_slice(now);
            rest = later;
            Ok(now.len())
        };
        search(read, address, &mut room).map(|(start, end)| room[start..end].to_vec())
    }

    #[test]
    fn the_file_at_an_address_is_found_however_the_list_is_cut() {
        for piece in 1..=LIST.len() {
            assert_eq!(searched(0x1000, piece).unwrap(), b"/usr/lib/lib a.so\0");
            assert_eq!(searched(0x7f00_0000_0fff, piece).unwrap(), b"/b.so\0");
            for address in [0, 0xfff, 0x2000, 0x3fff, 0x4000, usize::MAX] {
                assert_eq!(searched(address, piece), Err(Errno::ENOENT), "{address:x}");
            }
        }
    }

    #[test]
    fn a_function_of_this_test_lies_in_the_file_that_it_executes() {
        let mut room = [0; 8192];
        let path = file_at(searched as *const () as usize, &mut room).unwrap();
        assert_eq!(path.to_bytes(), std::env::current_exe().unwrap().as_os_str().as_encoded_bytes());
    }
}
