//! Has the books audited: the journal goes through a pipe to the auditor, which knows nothing of this server's code.

use crate::command::books;
use crate::config::Config;
use crate::standing::load_trust;
use chipbound_auditor::Report;
use chipbound_host::files::read;
use chipbound_host::now;
use chipbound_wire::certificate::Trust;
use chipbound_wire::limits::MAX_CERTIFICATE;
use chipbound_wire::{Code, Refusal, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter};
use std::path::PathBuf;
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
pub(crate) async fn audit(source: Source, json: bool) -> Result<()> {
    let report = match source {
        Source::Server(config) => of_server(config).await?,
        Source::File { journal, root } => {
            let trust = Trust::new(&read(&root, MAX_CERTIFICATE)?)?;
            let file = File::open(&journal).map_err(|e| Refusal::io(journal.display(), e))?;
            audited(BufReader::new(file), trust).await?
        }
    };
    if json {
        println!("{}", report.value())
    } else {
        print!("{}", report.text())
    }
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
