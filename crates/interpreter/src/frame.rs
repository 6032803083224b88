//! Two frames of the processor's control protocol by hand: what is asked is always the same, and of the answers one matters.
//!
//! A frame is four bytes of length, big endian, and CBOR (RFC 8949). `docs/chipbound.cddl` is the contract; the tests of
//! `chipbound` compare these bytes with those of its codec.

/// Bytes before the path in the frame of `Request::Run`: length, array(2), 5, array(1) or array(3), byte string of two bytes of length.
pub const HEAD: usize = 10;
/// The most bytes behind the path: null, array(2), two numbers of four bytes.
const MAX_TAIL: usize = 12;
/// Bytes of an answer that are looked at. A refusal's text may be longer; what is beyond is not printed.
pub const MAX_ANSWER: usize = 1024;

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

/// What the processor answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer<'a> {
    /// `Response::Ready`: exec now.
    Ready,
    /// `Response::Refused`: code and detail, the latter perhaps cut.
    Refused(&'a [u8], &'a [u8]),
    /// Something else.
    Other,
}

/// Reads an answer without its length.
#[must_use]
pub fn answer(body: &[u8]) -> Answer<'_> {
    match body {
        [0x82, 5, 0x80] => Answer::Ready,
        [0x82, 8, 0x81, 0xa2, 0, rest @ ..] => refusal(rest).unwrap_or(Answer::Other),
        _ => Answer::Other,
    }
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
    fn nothing_but_ready_is_ready() {
        assert_eq!(answer(&[0x82, 5, 0x80]), Answer::Ready);
        for other in [&[][..], &[0x82, 5], &[0x82, 5, 0x80, 0], &[0x82, 4, 0x80], &[0x82, 8, 0x81, 0xa2, 0], &[0x82, 8, 0x80]] {
            assert_eq!(answer(other), Answer::Other, "{other:?}");
        }
    }
}
