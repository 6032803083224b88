//! Everything that a server keeps as one file, made while it goes on, and back into a server that was made anew.
//!
//! A file is [`MAGIC`], then frames: four bytes of length, big-endian, and that many of CBOR. A head, the rows of the books
//! (`storage::dump`), the programs, each with its bytes after its frame, and the end: the BLAKE3 digest of all before it, sealed under the
//! server's key-encryption key. The file holds no key but sealed ones, and programs in plain text.
//!
//! A restored server goes on under another name than the lost one. What that one signed after the backup nobody here knows: under the old
//! name the same place of its log, and the same number of a receipt, would be signed a second time.

use crate::blobs::Blobs;
use crate::command::books;
use crate::config::Config;
use crate::keys::ServerKeys;
use crate::packing::{content_key_context, parcel_key_context};
use crate::rotation::alone;
use crate::settling::RELEASE_SECRET;
use crate::storage::Books;
use crate::storage::dump::{Kept, Row};
use chipbound_host::files::PRIVATE;
use chipbound_host::{Kek, now};
use chipbound_wire::documents::LogStatement;
use chipbound_wire::signed::read_claims;
use chipbound_wire::{Code, Digest, OrderId, Refusal, Result};
use minicbor::{Decode, Encode};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

/// How a backup begins.
const MAGIC: &[u8; 18] = b"chipbound backup 1";
/// Bytes of a frame: above every row.
const MAX_FRAME: usize = 64 * 1024 * 1024;
/// Bytes of a program that are copied at once.
const CHUNK: usize = 1024 * 1024;
/// What the digest at the end is sealed as.
const END: &str = "end of a backup";

/// What a backup is of.
#[derive(Clone, Debug, Encode, Decode)]
struct Head {
    /// When it was made, in seconds since 1970.
    #[n(0)]
    made_at: u64,
    /// The number of the form of the books.
    #[n(1)]
    form: i64,
    /// The name of the server's log.
    #[n(2)]
    log: String,
}

#[derive(Encode, Decode)]
enum Frame {
    #[n(0)]
    Head(#[n(0)] Head),
    #[n(1)]
    Row(#[n(0)] Row),
    /// A program or ciphertext, and how many bytes of it follow.
    #[n(2)]
    Blob(#[n(0)] String, #[n(1)] u64),
    #[n(3)]
    End(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
}

/// How much was kept or brought back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counted {
    /// Rows of the books.
    pub(crate) rows: u64,
    /// Programs and their ciphertext.
    pub(crate) blobs: u64,
}

/// Writes a backup of the server with this configuration to `to`, which must not be there yet ([`Code::Conflict`]). The file has its name
/// when it is whole and on the disk; whatever happens before, nothing of it is left.
pub(crate) async fn backup(config: &Path, to: &Path) -> Result<Counted> {
    let loaded = Config::load(config)?;
    let kek = Kek::load(&loaded.kek())?;
    let log = ServerKeys::load(&loaded.keys(), &kek)?.log.key().origin().to_owned();
    let unnamed = Unnamed::create(to)?;
    let mut out = Writer { out: BufWriter::with_capacity(CHUNK, unnamed.file.try_clone().map_err(writing)?), hash: blake3::Hasher::new() };
    out.put(MAGIC)?;
    out.frame(&Frame::Head(Head { made_at: now().0, form: Books::form(), log }))?;
    let repository = books(config).await?;
    let rows = repository.dump(Rows { out, blobs: Vec::new(), count: 0 }, Rows::put).await?;
    repository.close().await;
    // What the rows name was there before them, and stays.
    let (blobs, handle) = (Blobs::open(&loaded.blobs())?, Handle::current());
    let finish = move || {
        let Rows { mut out, blobs: names, count } = rows;
        for name in &names {
            out.blob(name, handle.block_on(blobs.read(name))?)?;
        }
        out.end(&kek)?;
        unnamed.keep()?;
        Ok(Counted { rows: count, blobs: names.len() as u64 })
    };
    spawn_blocking(finish).await.map_err(lost)?
}

/// Brings a backup into the server with this configuration: one that `init` made, stopped, with a name of its own. `kek` is the file of
/// the key-encryption key of the server that the backup is of.
///
/// # Errors
/// [`Code::Unsealable`] and [`Code::Malformed`] where the backup was changed, cut off, or is another server's; [`Code::DatabaseSchema`]
/// where it is of another version's form; [`Code::Conflict`] where this server has a name that the backup's log had, or has books already;
/// [`Code::Busy`] while it runs. Nothing was touched then.
pub(crate) async fn restore(config: &Path, kek: &Path, from: &Path) -> Result<Counted> {
    let loaded = Config::load(config)?;
    let _alone = alone(&loaded.keys())?;
    let (own, theirs) = (Kek::load(&loaded.kek())?, Kek::load(kek)?);
    let log = ServerKeys::load(&loaded.keys(), &own)?.log.key().origin().to_owned();
    let (from, handle) = (from.to_owned(), Handle::current());
    let mut known = false;
    let head = walk(&from, &theirs, &mut |frame, _| {
        if let Frame::Row(mut row) = frame
            && row.table == "log_statements"
        {
            known |= *read_claims::<LogStatement>(blob(&mut row, "statement")?)?.origin == *log;
        }
        Ok(())
    })?;
    if head.form != Books::form() {
        let detail =
            format!("the backup has the form {}, this version's is {}: restore it with the version that made it", head.form, Books::form());
        return Err(Refusal::new(Code::DatabaseSchema, detail));
    }
    if known || head.log == log {
        let detail = format!("{log} was signed before this backup, and maybe after it: make a server with another name for it");
        return Err(Refusal::new(Code::Conflict, detail));
    }
    let repository = Books::open(&loaded.database()?).await?;
    if !repository.are_new().await? {
        return Err(Refusal::new(Code::Conflict, "the server has books already; nothing in them was touched"));
    }
    let blobs = Blobs::open(&loaded.blobs())?;
    let programs = move || -> Result<_> {
        let mut count = 0;
        walk(&from, &theirs, &mut |frame, bytes| {
            let Frame::Blob(name, _) = frame else { return Ok(()) };
            count += 1;
            handle.block_on(blobs.restore(&name, bytes))
        })?;
        Ok((from, theirs, count))
    };
    let (from, theirs, blobs) = spawn_blocking(programs).await.map_err(lost)??;
    let rows = Arc::new(AtomicU64::new(0));
    let counted = rows.clone();
    let source = move |put: &mut dyn FnMut(Row) -> Result<()>| {
        rows.store(0, Ordering::Relaxed);
        let mut take = |frame, _: &mut dyn Read| {
            let Frame::Row(mut row) = frame else { return Ok(()) };
            rows.fetch_add(1, Ordering::Relaxed);
            seal_anew(&mut row, &theirs, &own)?;
            put(row)
        };
        walk(&from, &theirs, &mut take).map(drop)
    };
    repository.fill(source).await?;
    repository.close().await;
    Ok(Counted { rows: counted.load(Ordering::Relaxed), blobs })
}

/// What lies sealed in a row is sealed under this server's key.
fn seal_anew(row: &mut Row, theirs: &Kek, own: &Kek) -> Result<()> {
    let again = |sealed: &mut Vec<u8>, context: &str| {
        // Versions before parcels kept no content key.
        if !sealed.is_empty() {
            *sealed = own.seal(context, &theirs.open(context, sealed)?);
        }
        Ok(())
    };
    match row.table.as_str() {
        "common_packages" => {
            let package = Digest::from_slice(blob(row, "package_id")?)?;
            again(blob(row, "content_key")?, &content_key_context(&package))
        }
        "deliveries" => {
            let order = blob(row, "order_id")?.as_slice().try_into().map_err(|_| malformed())?;
            again(blob(row, "content_key")?, &parcel_key_context(&OrderId(order)))?;
            again(blob(row, "release_secret")?, RELEASE_SECRET)
        }
        _ => Ok(()),
    }
}

fn blob<'r>(row: &'r mut Row, column: &str) -> Result<&'r mut Vec<u8>> {
    if let Some(Kept::Blob(bytes)) = row.column(column) { Ok(bytes) } else { Err(malformed()) }
}

/// Shows `take` every frame of a backup between head and end, and the bytes after it; verifies the whole at its end.
fn walk(from: &Path, kek: &Kek, take: &mut dyn FnMut(Frame, &mut dyn Read) -> Result<()>) -> Result<Head> {
    let file = File::open(from).map_err(|e| Refusal::io(from.display(), e))?;
    let mut reader = Reader { file: BufReader::with_capacity(CHUNK, file), hash: blake3::Hasher::new() };
    let mut magic = [0; MAGIC.len()];
    reader.file.read_exact(&mut magic).map_err(cut)?;
    if magic != *MAGIC {
        return Err(malformed());
    }
    reader.hash.update(&magic);
    let Frame::Head(head) = reader.frame()? else { return Err(malformed()) };
    loop {
        let before = *reader.hash.finalize().as_bytes();
        match reader.frame()? {
            Frame::End(sealed) => {
                let own = |_| {
                    Refusal::new(
                        Code::Unsealable,
                        "the backup does not open with this kek: it is another server's, or the backup was changed",
                    )
                };
                let whole = *kek.open(END, &sealed).map_err(own)? == before;
                let ended = reader.file.read(&mut [0]).map_err(cut)? == 0;
                return if whole && ended { Ok(head) } else { Err(Refusal::new(Code::Unsealable, "the backup is not as it was made")) };
            }
            Frame::Head(_) => return Err(malformed()),
            frame => {
                let size = if let Frame::Blob(_, size) = &frame { *size } else { 0 };
                let mut bytes = Read::take(&mut reader, size);
                take(frame, &mut bytes)?;
                std::io::copy(&mut bytes, &mut std::io::sink()).map_err(cut)?;
                if bytes.limit() != 0 {
                    return Err(malformed());
                }
            }
        }
    }
}

/// Reads a backup and hashes what it reads.
struct Reader {
    file: BufReader<File>,
    hash: blake3::Hasher,
}

impl Reader {
    fn frame(&mut self) -> Result<Frame> {
        let mut length = [0; 4];
        self.read_exact(&mut length).map_err(cut)?;
        let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| malformed())?;
        if length > MAX_FRAME {
            return Err(malformed());
        }
        let mut bytes = vec![0; length];
        self.read_exact(&mut bytes).map_err(cut)?;
        minicbor::decode(&bytes).map_err(|e| malformed().because(e))
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

/// Writes a backup and hashes what it writes.
struct Writer {
    out: BufWriter<File>,
    hash: blake3::Hasher,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes).map_err(writing)
    }

    fn frame(&mut self, frame: &Frame) -> Result<()> {
        let bytes = minicbor::to_vec(frame).map_err(|e| Refusal::new(Code::Internal, "a row cannot be written").because(e))?;
        let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= MAX_FRAME);
        let length = length.ok_or_else(|| Refusal::new(Code::TooLarge, "a row is larger than a backup holds"))?;
        self.put(&length.to_be_bytes())?;
        self.put(&bytes)
    }

    fn blob(&mut self, name: &str, mut file: File) -> Result<()> {
        let failed = |e| Refusal::io("the store of programs", e);
        let mut left = file.metadata().map_err(failed)?.len();
        self.frame(&Frame::Blob(name.to_owned(), left))?;
        let mut buffer = vec![0; CHUNK];
        while left > 0 {
            let some = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            file.read_exact(&mut buffer[..some]).map_err(failed)?;
            self.put(&buffer[..some])?;
            left -= some as u64;
        }
        Ok(())
    }

    fn end(mut self, kek: &Kek) -> Result<()> {
        let digest = *self.hash.finalize().as_bytes();
        self.frame(&Frame::End(kek.seal(END, &digest)))?;
        self.out.flush().map_err(writing)
    }
}

/// Where the rows go.
struct Rows {
    out: Writer,
    blobs: Vec<String>,
    count: u64,
}

impl Rows {
    fn put(&mut self, mut row: Row) -> Result<()> {
        if let "releases" | "common_packages" = row.table.as_str()
            && let Some(Kept::Text(name)) = row.column("blob")
        {
            self.blobs.push(name.clone());
        }
        self.count += 1;
        self.out.frame(&Frame::Row(row))
    }
}

/// A file that has no name yet, and is gone with this process until it has.
struct Unnamed {
    file: File,
    folder: PathBuf,
    target: PathBuf,
}

impl Unnamed {
    fn create(target: &Path) -> Result<Self> {
        if target.symlink_metadata().is_ok() {
            return Err(Refusal::new(Code::Conflict, format!("{} is there already", target.display())));
        }
        let folder = target.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let mode = Mode::from_raw_mode(PRIVATE);
        let file = openat(CWD, folder, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, mode);
        let file = file.map_err(|e| Refusal::io(format_args!("cannot make a file in {}", folder.display()), e.into()))?;
        Ok(Self { file: file.into(), folder: folder.to_owned(), target: target.to_owned() })
    }

    fn keep(self) -> Result<()> {
        self.file.sync_all().map_err(writing)?;
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(CWD, own, CWD, &self.target, AtFlags::SYMLINK_FOLLOW)
            .map_err(|e| Refusal::io(format_args!("cannot make {}", self.target.display()), e.into()))?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(writing)
    }
}

fn writing(error: std::io::Error) -> Refusal {
    Refusal::io("writing the backup", error)
}

fn cut(error: std::io::Error) -> Refusal {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => malformed().because(error),
        _ => Refusal::io("reading the backup", error),
    }
}

fn malformed() -> Refusal {
    Refusal::new(Code::Malformed, "the file is no whole backup")
}

fn lost(error: tokio::task::JoinError) -> Refusal {
    Refusal::new(Code::Internal, "the work ended without an answer").because(error)
}
