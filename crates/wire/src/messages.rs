//! The messages of the second path (steps 1003-1008), inside its TLS. Each is framed as one byte of type, four bytes of
//! payload length (big endian) and the payload.
//!
//! | step | from | message |
//! |---|---|---|
//! | 1004 | processor | [`Hello`] |
//! | 1005 | server | signed `ServerExchange` |
//! | 1006 | processor | signed `ProcessorExchange` |
//! | S22 | server | `AskCapabilities` (empty) |
//! | S22 | processor | signed `Offer` |
//! | 1007 | server | [`Start`], chunks, signed `Seal` |
//! | 1008 | processor | signed `Acknowledgement` |
//! | 1012 | both | close_notify |
//!
//! Either side may send [`Abort`] in place of its next message and then close.

use crate::bounded::{Bytes, Text, decode, encode};
use crate::certificate::SealingKey;
use crate::documents::Wrap;
use crate::error::{Code, Refusal, Result};
use crate::ids::{Digest, OrderId};
use crate::limits::{MAX_CHUNK, MAX_DOCUMENT, MAX_LAYOUT, MAX_MESSAGE, MAX_NAME, MAX_TEXT, PAGE, TAG};
use minicbor::{Decode, Encode};

/// The ALPN of the second path.
pub const ALPN: &[u8] = b"chipbound/1";

/// Bytes of a frame's head.
pub const FRAME_HEAD: usize = 5;

/// The largest payload of a chunk: its bytes, the tags of the units it closes (at most three to a page: two segments may
/// share one), and its head.
pub const MAX_CHUNK_PAYLOAD: usize = CHUNK_HEAD + MAX_CHUNK + (MAX_CHUNK / PAGE) * 3 * TAG;

/// The types of messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// [`Hello`].
    Hello = 1,
    /// Signed `ServerExchange`.
    ServerExchange = 2,
    /// Signed `ProcessorExchange`.
    ProcessorExchange = 3,
    /// Empty: what can you process?
    AskCapabilities = 4,
    /// Signed `Offer`.
    Offer = 5,
    /// [`Start`].
    Start = 6,
    /// Body bytes and tags, see [`Chunk`].
    Chunk = 7,
    /// Signed `Seal`.
    Seal = 8,
    /// Signed `Acknowledgement`.
    Acknowledgement = 9,
    /// [`Abort`].
    Abort = 15,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Hello,
        Self::ServerExchange,
        Self::ProcessorExchange,
        Self::AskCapabilities,
        Self::Offer,
        Self::Start,
        Self::Chunk,
        Self::Seal,
        Self::Acknowledgement,
        Self::Abort,
    ];

    /// The longest payload of this kind, in bytes.
    #[must_use]
    pub fn limit(self) -> usize {
        match self {
            Self::AskCapabilities => 0,
            Self::Hello | Self::Abort => 4096,
            Self::ServerExchange | Self::ProcessorExchange | Self::Offer | Self::Seal | Self::Acknowledgement => MAX_DOCUMENT,
            Self::Start => MAX_LAYOUT + 4 * MAX_DOCUMENT,
            Self::Chunk => MAX_CHUNK_PAYLOAD,
        }
    }
}

/// The head of a frame: writes type and length.
#[must_use]
pub fn frame_head(kind: Kind, payload: usize) -> [u8; FRAME_HEAD] {
    debug_assert!(payload <= kind.limit());
    let length = u32::try_from(payload).expect("payloads are limited far below 4 GiB").to_be_bytes();
    [kind as u8, length[0], length[1], length[2], length[3]]
}

/// Reads the head of a frame: its kind and the payload's length, checked against the kind's limit.
pub fn read_head(head: [u8; FRAME_HEAD]) -> Result<(Kind, usize)> {
    let kind = Kind::ALL
        .into_iter()
        .find(|k| *k as u8 == head[0])
        .ok_or_else(|| Refusal::new(Code::UnexpectedMessage, format!("a message of unknown type {}", head[0])))?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if length > kind.limit() {
        return Err(Refusal::new(Code::TooLarge, format!("a {kind:?} message of {length} bytes where {} are allowed", kind.limit())));
    }
    Ok((kind, length))
}

/// Step 1004: the processor's challenge Rc, its session sealing key, and the order it comes for.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// The order.
    #[n(0)]
    pub order: OrderId,
    /// Rc.
    #[n(1)]
    pub challenge: Digest,
    /// A sealing key of this session only.
    #[n(2)]
    pub session_key: SealingKey,
}

/// Step 1007, first part: everything the processor needs before the first chunk.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Start {
    /// The signed `Terms`.
    #[n(0)]
    pub terms: Bytes<MAX_DOCUMENT>,
    /// The vendor's signed `Manifest`.
    #[n(1)]
    pub manifest: Bytes<MAX_DOCUMENT>,
    /// The main wrap; nothing of this session can open it.
    #[n(2)]
    pub wrap: Wrap,
    /// The wrap to the session's sealing key, for the comparison of step 1008.
    #[n(3)]
    pub session_wrap: Wrap,
    /// The layout of the package in CBOR (`sealing::Layout`).
    #[n(4)]
    pub layout: Bytes<MAX_LAYOUT>,
    /// The plain digest that the body will prove to have.
    #[n(5)]
    pub plain_digest: Digest,
    /// Bytes of the body that are not sent, because the processor offered to have kept them under these terms; absent: none.
    #[n(6)]
    pub from: Option<u64>,
}

/// Why the other side stops.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Abort {
    /// A code of the table in `error.rs`.
    #[n(0)]
    pub code: Text<MAX_NAME>,
    /// The detail, without secrets.
    #[n(1)]
    pub detail: Text<MAX_TEXT>,
}

impl Abort {
    /// The refusal as it travels.
    #[must_use]
    pub fn of(refusal: &Refusal) -> Self {
        Self { code: Text::cut(refusal.code.as_str()), detail: Text::cut(&refusal.detail) }
    }

    /// The refusal that the other side reports. A code unknown here becomes [`Code::PeerRefused`].
    #[must_use]
    pub fn into_refusal(self) -> Refusal {
        match Code::parse(&self.code) {
            Some(code) => Refusal::new(code, self.detail.to_string()),
            None => Refusal::new(Code::PeerRefused, format!("{}: {}", self.code, self.detail)),
        }
    }
}

/// One chunk of the body: the offset of its first byte (eight bytes, big endian), the length of the tags (four bytes, big
/// endian), the tags of all sealed units that *end* in it, in order, then its bytes (1 to [`MAX_CHUNK`]). Whoever opens it
/// checks offset and number of tags against the layout.
#[derive(Clone, Copy)]
pub struct Chunk<'a> {
    /// Offset in the body.
    pub offset: u64,
    /// Tags, [`TAG`] bytes each.
    pub tags: &'a [u8],
    /// Body bytes.
    pub bytes: &'a [u8],
}

/// Bytes before the tags in a chunk's payload.
const CHUNK_HEAD: usize = 12;

impl<'a> Chunk<'a> {
    /// Takes a payload apart.
    pub fn parse(payload: &'a [u8]) -> Result<Self> {
        let bad = || Refusal::new(Code::Malformed, "a chunk that does not hold what it says");
        let (offset, rest) = payload.split_first_chunk::<8>().ok_or_else(bad)?;
        let (tags, rest) = rest.split_first_chunk::<4>().ok_or_else(bad)?;
        let (tags, bytes) = rest.split_at_checked(u32::from_be_bytes(*tags) as usize).ok_or_else(bad)?;
        if tags.len() % TAG != 0 || bytes.is_empty() || bytes.len() > MAX_CHUNK {
            return Err(bad());
        }
        Ok(Self { offset: u64::from_be_bytes(*offset), tags, bytes })
    }

    /// Frame head and chunk head together, to be followed by [`Self::tags`] and [`Self::bytes`].
    #[must_use]
    pub fn heads(&self) -> [u8; FRAME_HEAD + CHUNK_HEAD] {
        let mut heads = [0; FRAME_HEAD + CHUNK_HEAD];
        heads[..FRAME_HEAD].copy_from_slice(&frame_head(Kind::Chunk, CHUNK_HEAD + self.tags.len() + self.bytes.len()));
        heads[FRAME_HEAD..FRAME_HEAD + 8].copy_from_slice(&self.offset.to_be_bytes());
        let tags = u32::try_from(self.tags.len()).expect("tags of one chunk are few");
        heads[FRAME_HEAD + 8..].copy_from_slice(&tags.to_be_bytes());
        heads
    }
}

/// Encodes the payload of a message that is a CBOR value, within its kind's limit.
pub fn payload<T: Encode<()>>(kind: Kind, value: &T) -> Result<Vec<u8>> {
    let bytes = encode(value);
    if bytes.len() > kind.limit() {
        return Err(Refusal::new(Code::TooLarge, format!("a {kind:?} message is larger than its limit")));
    }
    Ok(bytes)
}

/// Decodes the payload of a message that is a CBOR value.
pub fn read_payload<T: for<'b> Decode<'b, ()>>(bytes: &[u8]) -> Result<T> {
    if bytes.len() > MAX_MESSAGE + MAX_LAYOUT + MAX_DOCUMENT {
        return Err(Refusal::new(Code::TooLarge, "a message larger than any limit"));
    }
    decode(bytes)
}
