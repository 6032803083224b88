//! What is done with a package: run it, open it, look at it.

use super::bytes;
use crate::cli::Common;
use crate::client::{Story, blocking};
use crate::control::{Conversation, unexpected};
use crate::home::Home;
use crate::output::Output;
use crate::run::Wishes;
use chipbound_host::files::{Pending, open_at_once};
use chipbound_host::lossy;
use chipbound_sealing::Package;
use chipbound_wire::control::{Request, Response};
use chipbound_wire::documents::Terms;
use chipbound_wire::signed::read_claims;
use chipbound_wire::{Code, Refusal, Result};
use clap::Subcommand;
use serde_json::json;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// What is done with a package.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Run a package; everything after its name is the program's own
    #[command(
        after_help = "Example:\n  chipbound run ./perl -e 'print 6 * 7, qq(\\n)'\n  chipbound run --with MODEL=./weights ./infer --prompt hello\n  chipbound run --explain ./perl\n  chipbound run --mapping anonymous ./perl -v\n\nIn the second, infer finds the path of the opened weights in the environment variable MODEL, and nobody else can open it."
    )]
    Run {
        /// How it starts.
        #[command(flatten)]
        wishes: Wishes,
        /// The package, then the program's arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_names = ["PACKAGE", "ARGS"])]
        package: Vec<OsString>,
    },
    /// Open a package of data to a file or to stdout, where its vendor allows that
    #[command(after_help = "Example:\n  chipbound open ./songs -o songs.tar\n  chipbound open ./songs -o - | tar t")]
    Open {
        /// The package
        package: PathBuf,
        /// The file, or - for stdout
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Ask the processor whether a package is whole and can be opened here
    #[command(after_help = "Example:\n  chipbound inspect ./perl")]
    Inspect {
        /// The package
        package: PathBuf,
    },
}

/// Does it; `run` has its own way.
pub async fn execute(verb: Verb, common: &Common, output: &Output) -> Result<()> {
    let socket = Home::locate(common.home.as_deref())?.processor(common.processor.as_deref());
    match verb {
        Verb::Run { wishes, package } => crate::run::run(&socket, &wishes, &package, output).map_err(|(refusal, _)| refusal),
        Verb::Open { package, output: target } => open(socket, output, &package, &target).await,
        Verb::Inspect { package } => inspect(socket, output, &package).await,
    }
}

/// A file that may be a package, open for reading.
pub(crate) fn file(path: &Path) -> Result<File> {
    let failed = |e| Refusal::io(path.display(), e);
    let file = open_at_once(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Refusal::new(Code::NotAPackage, format!("{} is not a regular file", path.display())));
    }
    Ok(file)
}

async fn open(socket: PathBuf, output: &Output, package: &Path, target: &Path) -> Result<()> {
    let package = file(package)?;
    let failed = |e| Refusal::io(target.display(), e);
    if target == Path::new("-") {
        let to = std::io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
        return match ask(socket, output, Request::Open, vec![package.into(), to]).await.and_then(opened) {
            Err(refusal) if refusal.code == Code::Cancelled => Ok(()), // A reader that went away is no error.
            other => other.map(drop),
        };
    }
    let mut pending = Pending::create_anew(target, 0o666)?;
    let to = pending.file().try_clone().map_err(failed)?;
    let size = opened(ask(socket, output, Request::Open, vec![package.into(), to.into()]).await?)?;
    pending.keep()?;
    let text = format!("{}: {}", target.display(), bytes(size));
    output.result(text, &json!({ "opened": lossy(target), "bytes": size }));
    Ok(())
}

fn opened(response: Response) -> Result<u64> {
    match response {
        Response::Opened { size } => Ok(size),
        other => Err(unexpected(&other)),
    }
}

async fn inspect(socket: PathBuf, output: &Output, package: &Path) -> Result<()> {
    let opened = file(package)?;
    let parts = Package::read(&opened)?;
    match ask(socket, output, Request::Inspect { path: None }, vec![opened.into()]).await? {
        Response::Inspected { manifest, title, profile, .. } => {
            // The processor has just verified these documents.
            let terms: Terms = read_claims(&parts.documents.terms)?;
            let (title, size, sealed) = (&*title, parts.layout.body_size(), parts.layout.sealed_bytes());
            let text = format!(
                "{}: {title}, whole, can be opened by this processor\n{} of {}, {} sealed ({profile}; {}, {} key)\norder {}\nmanifest {manifest}",
                package.display(),
                terms.format,
                bytes(size),
                bytes(sealed),
                terms.suite,
                terms.key_mode,
                terms.order
            );
            let value = json!({ "package": lossy(package), "title": title, "manifest": manifest, "format": terms.format, "profile": profile, "order": terms.order,
                "bytes": size, "sealed_bytes": sealed, "suite": terms.suite, "key_mode": terms.key_mode });
            output.result(text, &value);
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

/// One request with its descriptors, its progress shown, and its answer.
pub(super) async fn ask(socket: PathBuf, output: &Output, request: Request, descriptors: Vec<OwnedFd>) -> Result<Response> {
    let (tell, mut told) = mpsc::unbounded_channel();
    let answer = tokio::spawn(blocking(move || {
        let mut conversation = Conversation::open(&socket)?;
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        conversation.ask(&request, &descriptors)?;
        conversation.answer_after(|done, total| {
            let _ = tell.send((done, total)); // Nobody listens any more when the command was cancelled.
        })
    }));
    while let Some((done, total)) = told.recv().await {
        output.progress(done, total);
    }
    answer.await.map_err(|e| Refusal::new(Code::Internal, "a thread of the command ended").because(e))?
}
