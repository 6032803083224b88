//! Every length that bytes from outside may have, by name. Sizes are in bytes unless the name says otherwise.

/// A signed document (COSE_Sign1 with its certificate chain).
pub const MAX_DOCUMENT: usize = 16 * 1024;
/// One X.509 certificate in DER.
pub const MAX_CERTIFICATE: usize = 4 * 1024;
/// Certificates in a chain, leaf first, the root left out.
pub const MAX_CHAIN: usize = 3;
/// A certificate revocation list in DER.
pub const MAX_REVOCATION_LIST: usize = 4 * 1024 * 1024;
/// A short text: a name, a version, a title.
pub const MAX_NAME: usize = 128;
/// A text for people: conditions, the detail of an error.
pub const MAX_TEXT: usize = 1024;
/// A public key or an encapsulated key of any supported KEM.
pub const MAX_KEM_BYTES: usize = 2 * 1024;
/// Suites, formats, classes or keys in one list.
pub const MAX_CHOICES: usize = 16;
/// The payload of one message of the second path that is not a chunk.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Package bytes in one chunk message.
pub const MAX_CHUNK: usize = 256 * 1024;
/// The layout of a package in CBOR.
pub const MAX_LAYOUT: usize = 64 * 1024;
/// The path of an interpreter that a placed package names, its closing NUL left out.
pub const MAX_INTERPRETER: usize = 255;
/// One request or response on the processor's unix socket.
pub const MAX_CONTROL: usize = 256 * 1024;
/// Deliveries that wait to go on, in one list.
pub const MAX_WAITING: usize = 256;
/// Packages of data that one program is started with.
pub const MAX_WITH: usize = 8;
/// Segments of a library that are only read or executed.
pub const MAX_PIECES: usize = 16;
/// A JSON request body of the first path.
pub const MAX_JSON: usize = 64 * 1024;
/// A program or data file, in bytes (1 TiB).
pub const MAX_PROGRAM: u64 = 1 << 40;
/// The origin of a log of receipts.
pub const MAX_ORIGIN: usize = 512;
/// A signed checkpoint of a log, signatures of others included.
pub const MAX_NOTE: usize = 16 * 1024;
/// A proof of one entry with its checkpoint and the statement on the log's key.
pub const MAX_PROOF_FILE: usize = 48 * 1024;
/// Bytes of a page of a program package.
pub const PAGE: usize = 4096;
/// Bytes of a chunk of a data package.
pub const DATA_CHUNK: usize = 64 * 1024;
/// Bytes of an AEAD tag.
pub const TAG: usize = 16;
