//! The vendor's verbs: an identity certified by the authority, and releases signed with it.

use super::{bytes, logged_in, parsed};
use crate::cli::Common;
use crate::client::{Story, blocking};
use crate::home::Home;
use crate::output::Output;
use crate::vendor::{Identity, plain_root};
use chipbound_host::lossy;
use chipbound_host::process::now;
use chipbound_sealing::{Layout, is_library};
use chipbound_wire::api::{Base64, NewRelease};
use chipbound_wire::bounded::{List, Text};
use chipbound_wire::documents::Manifest;
use chipbound_wire::limits::MAX_NAME;
use chipbound_wire::signed::Signer;
use chipbound_wire::suite::{Class, Format, KeyMode, LoaderVariables, Profile};
use chipbound_wire::{Amount, Code, KeyId, ProgramId, Refusal, Result};
use clap::Subcommand;
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, Seek};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};

/// An example of `publish`.
pub const PUBLISH_EXAMPLE: &str = "Example:\n  chipbound publish /usr/bin/perl --name perl --version 5.36 --price \"12.50 EUR\" --class software\n\nNeeds the vendor's identity (chipbound vendor init) and a log-in whose account is a vendor's.";

/// How often the progress of an upload is shown.
const TICK: Duration = Duration::from_millis(100);

/// The vendor's identity.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Make a signing key and have the authority certify it as a vendor's
    #[command(
        after_help = "Example:\n  chipbound vendor init --authority https://127.0.0.1:7701 --voucher cbv1-…\n\nThe authority's operator makes the voucher: chipbound authority voucher --role vendor"
    )]
    Init {
        /// The identity's folder [default: vendor in the folder of --home]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// The authority's address, https://host:port
        #[arg(long, value_name = "URL")]
        authority: String,
        /// The voucher, or - for the first line of stdin
        #[arg(long, value_name = "VOUCHER")]
        voucher: String,
    },
    /// Show the vendor's key and certificate
    #[command(after_help = "Example:\n  chipbound vendor show")]
    Show {
        /// The identity's folder [default: vendor in the folder of --home]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// `publish`.
#[derive(clap::Args, Debug)]
pub struct Publish {
    /// The program or other file
    file: PathBuf,
    /// The program's name: 1 to 64 characters of a-z 0-9 . _ + -
    #[arg(long, value_parser = program_name)]
    name: String,
    /// The version's name
    #[arg(long, value_parser = version)]
    version: Text<MAX_NAME>,
    /// The price, such as "12.50 EUR"
    #[arg(long, value_name = "AMOUNT", value_parser = parsed::<Amount>, allow_hyphen_values = true)]
    price: Amount,
    /// data or elf; found out from the file without it
    #[arg(long, value_parser = format)]
    format: Option<Format>,
    /// What of a program is sealed: code, or code+constants, which is all that nobody writes to while it runs [default: code]
    #[arg(long, value_name = "PROFILE", value_parser = parsed::<Profile>)]
    profile: Option<Profile>,
    /// A class of key store that may open it, once for each; software only where you name it
    #[arg(long, value_name = "CLASS", required = true, value_parser = parsed::<Class>)]
    class: Vec<Class>,
    /// A key mode that the server may use, once for each; every mode without it
    #[arg(long, value_name = "MODE", value_parser = parsed::<KeyMode>)]
    key_mode: Vec<KeyMode>,
    /// Let processors open it to a file (data)
    #[arg(long)]
    open_to_file: bool,
    /// A program that data may be given to with `run --with`, by its name or by another vendor's whole id, once for each; all of
    /// yours without it. Data that may be opened to a file may be given to any
    #[arg(long, value_name = "PROGRAM", value_parser = reader)]
    reader: Vec<String>,
    /// What happens to LD_* and GLIBC_TUNABLES when it starts: forbid or allow
    #[arg(long, value_name = "POLICY", default_value = "forbid", value_parser = parsed::<LoaderVariables>)]
    loader_variables: LoaderVariables,
    /// The release's place in the order of releases; one above the newest without it
    #[arg(long, value_name = "N")]
    sequence: Option<u64>,
    /// The smallest sequence number that may still be opened
    #[arg(long, value_name = "N", default_value_t = 0)]
    minimum_sequence: u64,
    /// The vendor's identity [default: vendor in the folder of --home]
    #[arg(long, value_name = "DIR")]
    vendor: Option<PathBuf>,
}

fn format(text: &str) -> std::result::Result<Format, String> {
    match text {
        "elf" => Ok(Format::ElfX8664),
        other => parsed(other),
    }
}

/// What can follow the vendor in a program's id.
fn program_name(text: &str) -> std::result::Result<String, String> {
    ProgramId::new(&KeyId([0; 32]), text).map(|id| id.name().to_owned()).map_err(|refusal| refusal.detail)
}

/// A version's name, which is not empty.
fn version(text: &str) -> std::result::Result<Text<MAX_NAME>, String> {
    match text {
        "" => Err("a version has a name".to_owned()),
        text => Text::new(text).map_err(|refusal| refusal.detail),
    }
}

/// A program's name or whole id.
fn reader(text: &str) -> std::result::Result<String, String> {
    match text.contains('/') {
        true => parsed::<ProgramId>(text).map(|id| id.to_string()),
        false => program_name(text),
    }
}

/// Does a verb of the vendor's identity.
pub async fn execute(verb: Verb, common: &Common, output: &Output) -> Result<()> {
    let home = Home::locate(common.home.as_deref())?;
    let folder = |dir: Option<PathBuf>| dir.unwrap_or_else(|| home.path().join("vendor"));
    let identity = match verb {
        Verb::Init { dir, authority, voucher } => Identity::enroll(&folder(dir), &authority, &super::voucher(voucher)?).await?,
        Verb::Show { dir } => Identity::load(&folder(dir))?,
    };
    let certified = identity.certified(now())?;
    let until = crate::receipts::moment(certified.validity().1);
    let text = format!(
        "vendor {}\nkey {}\ncertified until {until}\nidentity in {}",
        certified.subject(),
        certified.key_id(),
        identity.folder().display()
    );
    let value = json!({ "vendor": certified.subject(), "key": certified.key_id(), "valid_until": certified.validity().1, "folder": lossy(identity.folder()) });
    output.result(text, &value);
    Ok(())
}

/// Signs a release's manifest and hands both to the server.
pub async fn publish(arguments: Publish, common: &Common, output: &Output) -> Result<()> {
    let home = Home::locate(common.home.as_deref())?;
    let (_, api) = logged_in(&home)?;
    let folder = arguments.vendor.clone().unwrap_or_else(|| home.path().join("vendor"));
    let identity = Identity::load(&folder)?.renewed_if_due(now()).await?;
    let program = ProgramId::new(&identity.certified(now())?.key_id(), &arguments.name)?;
    let newest = api.programs().await?.into_iter().find(|r| r.program == program).map_or(0, |r| r.sequence);

    let failed = |e| Refusal::io(arguments.file.display(), e);
    // Asked before it is opened: opening a pipe would wait for its writer.
    if !fs::metadata(&arguments.file).map_err(failed)?.is_file() {
        return Err(Refusal::new(Code::UnsupportedProgram, format!("{} is no file", arguments.file.display())));
    }
    let mut file = File::open(&arguments.file).map_err(failed)?;
    let manifest = manifest(&arguments, program, newest + 1, &file).await?;
    let (size, price) = (manifest.plain_size, arguments.price);
    let signed = Signer { key: identity.key(), chain: identity.chain() }.sign(&manifest)?;
    let upload = api.announce(&NewRelease { manifest: Base64(signed), price }).await?;

    file.rewind().map_err(failed)?;
    let sent = Arc::new(AtomicU64::new(0));
    let source = Counted { file: tokio::fs::File::from_std(file), sent: sent.clone() };
    let mut uploading = std::pin::pin!(api.upload(&upload, size, source));
    let published = loop {
        tokio::select! {
            published = &mut uploading => break published?,
            () = tokio::time::sleep(TICK) => output.progress(sent.load(Ordering::Relaxed), size),
        }
    };
    let release = &published.release;
    let text = format!(
        "{} {} published for {}: {}, {} sealed\nid {}",
        release.program.name(),
        release.version,
        release.price,
        bytes(release.size),
        bytes(published.sealed_bytes),
        release.program
    );
    output.result(text, &json!(published));
    Ok(())
}

async fn manifest(arguments: &Publish, program: ProgramId, next: u64, file: &File) -> Result<Manifest> {
    let read = file.try_clone().map_err(|e| Refusal::io(arguments.file.display(), e))?;
    let (format, profile) = (arguments.format, arguments.profile);
    let what = arguments.file.display().to_string();
    let (layout, library, profile, plain_root, plain_size) = blocking(move || {
        let (layout, profile) = sealed(format, profile, &read)?;
        let library = layout.format() != Format::Data && is_library(&read)?;
        let (root, size) = plain_root(read).map_err(|e| Refusal::io(what, e))?;
        Ok((layout, library, profile, root, size))
    })
    .await?;
    let sequence = arguments.sequence.unwrap_or(next);
    refuse_without_meaning(arguments, layout.format(), library, sequence)?;
    let readers = arguments.reader.iter().map(|reader| reader_id(reader, &program)).collect::<Result<Vec<_>>>()?;
    let key_modes = if arguments.key_mode.is_empty() { KeyMode::ALL.to_vec() } else { arguments.key_mode.clone() };
    Ok(Manifest {
        program,
        version: arguments.version.clone(),
        sequence,
        format: layout.format(),
        plain_root,
        plain_size,
        profile,
        loader_variables: arguments.loader_variables,
        classes: List::new(arguments.class.clone())?,
        open_to_file: arguments.open_to_file,
        minimum_sequence: arguments.minimum_sequence,
        key_modes: List::new(key_modes)?,
        readers: if readers.is_empty() { None } else { Some(List::new(readers)?) },
    })
}

/// Options that would say nothing of such a file, or forbid the release itself, are [`Code::ConfigInvalid`]: whoever gives them
/// expects what they do not do.
fn refuse_without_meaning(arguments: &Publish, format: Format, library: bool, sequence: u64) -> Result<()> {
    let data = format == Format::Data;
    let detail = match () {
        () if arguments.open_to_file && !data => "--open-to-file is for data, and this is a program".to_owned(),
        () if !arguments.reader.is_empty() && !data && !library => "--reader is for data and libraries, and this is a program".to_owned(),
        () if arguments.loader_variables == LoaderVariables::Allow && data => {
            "--loader-variables is for programs, and this is data".to_owned()
        }
        () if arguments.minimum_sequence > sequence => {
            format!("--minimum-sequence {} is above this release's own place, {sequence}: nobody could open it", arguments.minimum_sequence)
        }
        () => return Ok(()),
    };
    Err(Refusal::new(Code::ConfigInvalid, detail))
}

/// What of the file is sealed, in the format and with the profile that the vendor says; a file of neither is what it looks like.
fn sealed(format: Option<Format>, profile: Option<Profile>, file: &File) -> Result<(Layout, Profile)> {
    let profile = match (format, profile) {
        (Some(Format::Data), None) => Profile::Whole,
        (Some(Format::ElfX8664), None) => Profile::Code,
        // A library that cannot be protected is no data unless its vendor says so.
        (None, None) if is_library(file)? => Profile::Code,
        (None, None) => match Layout::detect(file)?.format() {
            Format::Data => Profile::Whole,
            Format::ElfX8664 => Profile::Code,
        },
        (Some(format), Some(profile)) if (format == Format::Data) != (profile == Profile::Whole) => {
            return Err(Refusal::new(Code::NotSupported, format!("the profile {profile} for the format {format}")));
        }
        (_, Some(profile)) => profile,
    };
    Ok((Layout::of(profile, file)?, profile))
}

/// A program by its whole id, or one of the same vendor as `program` by its name.
fn reader_id(reader: &str, program: &ProgramId) -> Result<ProgramId> {
    match program.as_str().split_once('/') {
        Some((vendor, _)) if !reader.contains('/') => format!("{vendor}/{reader}").parse(),
        _ => reader.parse(),
    }
}

/// A file that counts what was read of it.
struct Counted {
    file: tokio::fs::File,
    sent: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.file).poll_read(cx, buf);
        self.sent.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        outcome
    }
}
