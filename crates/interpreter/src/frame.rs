//! A few frames of the processor's control protocol by hand: what is asked is always the same, and few answers matter.
//!
//! A frame is four bytes of length, big endian, and CBOR (RFC 8949). `docs/chipbound.cddl` is the contract; the tests of
//! `chipbound` compare these bytes with those of its codec.

/// Bytes before the path in the frame of `Request::Run`: length, array(2), 5, array(1) or array(3), byte string of two bytes of length.
pub const HEAD: usize = 10;
/// The most bytes behind the path: null, array(2), two numbers of four bytes.
const MAX_TAIL: usize = 12;
/// Bytes of an answer that are looked at. A refusal's text may be longer; what is beyond is not printed.
pub const MAX_ANSWER: usize = 1024;
/// Bytes of the length before an answer, which does not count itself.
pub const PREFIX: usize = 4;

/// The beginning of `Request::Run` for a path of that many bytes; the path follows it, and `tail`. None for what is no path.
#[must_use]
pub fn run_head(path: usize, tail: &[u8]) -> Option<[u8; HEAD]> {
    let length = u16::try_from(path).ok().filter(|n| (1..=4096).contains(n))?;
    let [a, b] = (length + (HEAD - 4 + tail.len().min(MAX_TAIL)) as u16).to_be_bytes();
    let [c, d] = length.to_be_bytes();
    Some([0, 0, a, b, 0x82, 5, if tail.is_empty() { 0x81 } else { 0x83 }, 0x59, c, d])
}

/// What follows the path where the asking process stands in the interpreter and can become the program there.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    bytes: [u8; MAX_TAIL],
    length: usize,
}

impl Begun {
    /// With one or two descriptors that are the interpreter's own.
    #[must_use]
    pub fn new(first: i32, second: Option<i32>) -> Self {
        let [a, b, c, d] = first.to_be_bytes();
        let [e, f, g, h] = second.unwrap_or(0).to_be_bytes();
        let (count, length) = if second.is_some() { (0x82, MAX_TAIL) } else { (0x81, MAX_TAIL - 5) };
        Self { bytes: [0xf6, count, 0x1a, a, b, c, d, 0x1a, e, f, g, h], length }
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// `Request::Library` for the library with this address inside it: length, array(2), 16, array(1), unsigned integer of eight bytes.
#[must_use]
pub fn library_request(address: u64) -> [u8; 16] {
    let mut frame = [0, 0, 0, 12, 0x82, 16, 0x81, 0x1b, 0, 0, 0, 0, 0, 0, 0, 0];
    for (byte, value) in frame.iter_mut().skip(8).zip(address.to_be_bytes()) {
        *byte = value;
    }
    frame
}

/// What the processor answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer<'a> {
    /// `Response::Ready`: exec now.
    Ready,
    /// `Response::Refused`: code and detail, the latter perhaps cut.
    Refused(&'a [u8], &'a [u8]),
    /// `Response::Knock`: the name of the socket on which the answer comes.
    Knock(&'a [u8]),
    /// `Response::Library`: what to map.
    Library(Pieces<'a>),
    /// Something else.
    Other,
}

/// Reads an answer without its length.
#[must_use]
pub fn answer(body: &[u8]) -> Answer<'_> {
    match body {
        [0x82, 5, 0x80] => Answer::Ready,
        [0x82, 8, 0x81, 0xa2, 0, rest @ ..] => refusal(rest).unwrap_or(Answer::Other),
        [0x82, 17, 0x81, 0x58, 32, name @ ..] if name.len() == 32 => Answer::Knock(name),
        [0x82, 18, 0x81, rest @ ..] => pieces(rest).unwrap_or(Answer::Other),
        _ => Answer::Other,
    }
}

/// A piece of a library's memory and where its bytes are in the file that came along.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Its first byte, before the load bias.
    pub address: usize,
    /// Bytes, whole pages.
    pub length: usize,
    /// Offset in the file.
    pub at: usize,
    /// Whether it is code; the rest is read.
    pub executable: bool,
}

/// The pieces of an answer that was looked through to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pieces<'a>(&'a [u8]);

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let (piece, rest) = piece(self.0)?;
        self.0 = rest;
        Some(piece)
    }
}

/// A list of as many pieces as it says, and nothing behind it.
fn pieces(body: &[u8]) -> Option<Answer<'_>> {
    let (0x80, count, all) = head(body)? else { return None };
    let mut rest = all;
    for _ in 0..count {
        rest = piece(rest)?.1;
    }
    rest.is_empty().then_some(Answer::Library(Pieces(all)))
}

fn piece(bytes: &[u8]) -> Option<(Piece, &[u8])> {
    let rest = bytes.strip_prefix(&[0x84])?;
    let (0, address, rest) = head(rest)? else { return None };
    let (0, length, rest) = head(rest)? else { return None };
    let (0, at, rest) = head(rest)? else { return None };
    let (executable, rest) = rest.split_first()?;
    let executable = match executable {
        0xf4 => false,
        0xf5 => true,
        _ => return None,
    };
    Some((Piece { address, length, at, executable }, rest))
}

/// The major type of an item, in its own bits, its number, and what follows.
fn head(bytes: &[u8]) -> Option<(u8, usize, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let length = match first & 0x1f {
        short @ 0..=23 => return Some((first & 0xe0, short.into(), rest)),
        long @ 24..=27 => 1 << (long - 24),
        _ => return None,
    };
    let (number, rest) = rest.split_at_checked(length)?;
    Some((first & 0xe0, number.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)), rest))
}

fn refusal(body: &[u8]) -> Option<Answer<'_>> {
    let (code, rest) = text(body)?;
    let (detail, _) = text(rest.strip_prefix(&[1])?)?;
    Some(Answer::Refused(code, detail))
}

/// A text string, or as much of it as there is, and what follows.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = match bytes {
        [short @ 0x60..=0x77, rest @ ..] => (usize::from(short - 0x60), rest),
        [0x78, length, rest @ ..] => (usize::from(*length), rest),
        [0x79, high, low, rest @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        _ => return None,
    };
    Some(rest.split_at_checked(length).unwrap_or((rest, &[])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_its_own_length() {
        // 15 bytes follow: array(2), 5, array(1), byte string of 9 bytes.
        assert_eq!(run_head(9, &[]), Some([0, 0, 0, 15, 0x82, 5, 0x81, 0x59, 0, 9]));
        assert_eq!(run_head(9, &[0xf6, 0x81, 0]), Some([0, 0, 0, 18, 0x82, 5, 0x83, 0x59, 0, 9]));
        assert_eq!(run_head(0, &[]), None);
        assert_eq!(run_head(4097, &[]), None);
    }

    #[test]
    fn a_refusal_is_read_even_where_its_end_is_missing() {
        let whole = b"\x82\x08\x81\xa2\x00\x64busy\x01\x78\x1das many as this processor take";
        assert_eq!(answer(whole), Answer::Refused(b"busy", b"as many as this processor take".get(..29).unwrap_or_default()));
        assert_eq!(answer(&whole[..20]), Answer::Refused(b"busy", b"as many"));
    }

    #[test]
    fn the_pieces_of_a_library_are_read_and_no_cut_of_them_is() {
        let whole =
            [0x82, 18, 0x81, 0x82, 0x84, 0x19, 0x10, 0, 0x1a, 0, 1, 0, 0, 0, 0xf5, 0x84, 0x1b, 0, 0, 0, 1, 0, 0, 0, 0, 0x18, 64, 23, 0xf4];
        let Answer::Library(mut pieces) = answer(&whole) else { panic!("{:?}", answer(&whole)) };
        assert_eq!(pieces.next(), Some(Piece { address: 0x1000, length: 0x10000, at: 0, executable: true }));
        assert_eq!(pieces.next(), Some(Piece { address: 1 << 32, length: 64, at: 23, executable: false }));
        assert_eq!(pieces.next(), None);
        for cut in 0..whole.len() {
            assert_eq!(answer(&whole[..cut]), Answer::Other, "{cut}");
        }
        assert_eq!(answer(&[0x82, 18, 0x81, 0x80, 0]), Answer::Other, "something behind it");
    }

    #[test]
    fn nothing_but_ready_is_ready() {
        assert_eq!(answer(&[0x82, 5, 0x80]), Answer::Ready);
        for other in [&[][..], &[0x82, 5], &[0x82, 5, 0x80, 0], &[0x82, 4, 0x80], &[0x82, 8, 0x81, 0xa2, 0], &[0x82, 8, 0x80]] {
            assert_eq!(answer(other), Answer::Other, "{other:?}");
        }
    }
}
