//! Has the books audited: the journal goes through a pipe to the auditor, which knows nothing of this server's code, or over the first
//! path to an auditor elsewhere.

use crate::command::books;
use crate::config::Config;
use crate::server::Server;
use crate::standing::load_trust;
use crate::storage::{Journal, Repository};
use bytes::Bytes;
use chipbound_auditor::Report;
use chipbound_host::files::read;
use chipbound_host::{Speech, now};
use chipbound_wire::certificate::Trust;
use chipbound_wire::limits::MAX_CERTIFICATE;
use chipbound_wire::{Code, Refusal, Result};
use futures_core::Stream;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Error, ErrorKind, Write};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

/// What is audited.
#[derive(Debug)]
pub(crate) enum Source {
    /// The books of the server with this configuration, as they stand.
    Server(PathBuf),
    /// A journal, under the authority with this root certificate.
    File {
        /// The journal.
        journal: PathBuf,
        /// The certificate in DER.
        root: PathBuf,
    },
}

/// Audits, prints the result, and refuses with [`Code::BooksInconsistent`] where there are findings.
pub(crate) async fn audit(source: Source, speech: Speech) -> Result<()> {
    let report = match source {
        Source::Server(config) => of_server(config).await?,
        Source::File { journal, root } => {
            let trust = Trust::new(&read(&root, MAX_CERTIFICATE)?)?;
            let file = File::open(&journal).map_err(|e| Refusal::io(journal.display(), e))?;
            audited(BufReader::new(file), trust).await?
        }
    };
    speech.result(report.text(), report.value())?;
    match report.count() {
        0 => Ok(()),
        findings => Err(Refusal::new(Code::BooksInconsistent, format!("the audit has {findings} findings"))),
    }
}

async fn of_server(config: PathBuf) -> Result<Report> {
    let trust = load_trust(&Config::load(&config)?.keys())?;
    let repository = books(&config).await?;
    let (reader, writer) = std::io::pipe().map_err(|e| Refusal::io("a pipe for the journal", e))?;
    let journal = repository.journal(now(), BufWriter::new(writer));
    let (written, report) = tokio::join!(async { journal.await.map(drop) }, audited(BufReader::new(reader), trust));
    repository.close().await;
    match (written, report) {
        // Where the auditor stopped reading, the journal cannot be written to its end; where the books cannot be read, it is cut off.
        (Err(refusal), Err(audit)) => Err(if refusal.code == Code::Io { audit } else { refusal }),
        (Err(refusal), Ok(_)) => Err(refusal),
        (Ok(()), report) => report,
    }
}

async fn audited(journal: impl BufRead + Send + 'static, trust: Trust) -> Result<Report> {
    let audit = spawn_blocking(move || chipbound_auditor::audit(journal, &trust)).await;
    audit.map_err(|e| Refusal::new(Code::Internal, "the audit ended without a result").because(e))?
}

/// Bytes that are sent at once.
const CHUNK: usize = 64 * 1024;
/// Chunks that wait for the auditor.
const WAITING: usize = 4;

impl<R: Repository> Server<R> {
    /// The journal on its way to an auditor. It breaks off where the books cannot be read; without its last line it is none.
    /// [`Code::Busy`] while another one is on its way.
    pub(crate) fn journal(&self) -> Result<Chunks> {
        let place = self.journals.clone().try_acquire_owned();
        let place = place.map_err(|_| Refusal::new(Code::Busy, "another journal is on its way"))?;
        let (sender, chunks) = mpsc::channel(WAITING);
        let (repository, now) = (self.repository.clone(), self.now());
        tokio::spawn(async move {
            let out = BufWriter::with_capacity(CHUNK, Sending(sender.clone()));
            let written = repository.journal(now, out).await.map(drop);
            drop(place);
            if let Err(refusal) = written {
                tracing::warn!(%refusal, "a journal broke off");
                let _ = sender.send(Err(Error::other("the journal broke off"))).await; // Unless nobody listens.
            }
        });
        Ok(Chunks(chunks))
    }
}

/// What is sent, as it is made.
pub(crate) struct Chunks(mpsc::Receiver<std::io::Result<Bytes>>);

impl Stream for Chunks {
    type Item = std::io::Result<Bytes>;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

/// Hands chunks over from a thread that may wait.
struct Sending(mpsc::Sender<std::io::Result<Bytes>>);

impl Write for Sending {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let gone = |_| Error::new(ErrorKind::BrokenPipe, "nobody listens any more");
        self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes))).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
