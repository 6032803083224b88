//! Packages under a name in a bin folder: installed, listed, taken away; and whether one is whole, opens here and starts by itself.

use super::package::{ask, file};
use crate::bins;
use crate::cli::Common;
use crate::client::blocking;
use crate::client::placing::name_interpreter;
use crate::client::store::copy;
use crate::control::{Description, describe, unexpected};
use crate::home::Home;
use crate::output::Output;
use chipbound_host::files::{Pending, open_at_once};
use chipbound_host::lossy;
use chipbound_sealing::{Package, is_library};
use chipbound_wire::bounded::Bytes;
use chipbound_wire::control::{Request, Response};
use chipbound_wire::documents::{Receipt, Terms};
use chipbound_wire::signed::read_claims;
use chipbound_wire::suite::Format;
use chipbound_wire::{Code, OrderId, ProgramId, Refusal, Result};
use clap::Subcommand;
use rustix::fs::{Access, access};
use serde_json::json;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// What is done with installed packages.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Install a package as a command: a copy under a name in a bin folder, which the kernel starts directly
    #[command(
        after_help = "Example:\n  chipbound install ./perl\n  chipbound install ./perl --name perl5 --bin /opt/bin\n\nAn earlier installation of the same program is replaced, whatever its version. Another program under that name is not, unless --replace is given.\nRoot installs to /usr/local/bin, for the group chipbound where there is one: others may then execute and not read it.\nAnybody else installs to ~/.local/bin."
    )]
    Install {
        /// The package
        package: PathBuf,
        /// The command's name [default: the package's]
        #[arg(long)]
        name: Option<String>,
        /// The folder
        #[arg(long, value_name = "DIR")]
        bin: Option<PathBuf>,
        /// Replace another program that is installed under that name
        #[arg(long)]
        replace: bool,
    },
    /// List the packages that are installed as commands
    #[command(after_help = "Example:\n  chipbound list\n  chipbound list --bin /opt/bin")]
    List {
        /// The folder [default: ~/.local/bin and /usr/local/bin]
        #[arg(long, value_name = "DIR")]
        bin: Option<PathBuf>,
    },
    /// Take an installed package away; its receipt stays, and downloads it again
    #[command(after_help = "Example:\n  chipbound uninstall perl")]
    Uninstall {
        /// The command's name
        name: String,
        /// The folder [default: as for install]
        #[arg(long, value_name = "DIR")]
        bin: Option<PathBuf>,
    },
    /// Say of a package, or of an installed command, whether it is whole, opens here and starts directly
    #[command(after_help = "Example:\n  chipbound verify ./perl\n  chipbound verify perl")]
    Verify {
        /// The package's file, or the command's name
        package: PathBuf,
    },
}

/// Does it.
pub async fn execute(verb: Verb, common: &Common, output: &Output) -> Result<()> {
    let home = Home::locate(common.home.as_deref())?;
    let socket = home.processor(common.processor.as_deref());
    match verb {
        Verb::Install { package, name, bin, replace } => {
            let place = Place { name, bin, replace };
            install(&socket, output, &package, place).await
        }
        Verb::List { bin } => list(&home, output, bin.as_deref()),
        Verb::Uninstall { name, bin } => uninstall(output, &name, bin.as_deref()),
        Verb::Verify { package } => verify(&socket, output, &package).await,
    }
}

/// Where a package is installed: under a name in a folder, and whether it takes another program's place there.
struct Place {
    name: Option<String>,
    bin: Option<PathBuf>,
    replace: bool,
}

/// The order and format of a package, the interpreter that it names, and whether it is a shared library.
struct Parts {
    terms: Terms,
    interpreter: Option<PathBuf>,
    library: Option<Library>,
}

/// A package of a shared library.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Library {
    /// It asks a processor when it is loaded.
    Placed,
    Unplaced,
}

fn parts(package: &File) -> Result<Parts> {
    let library = is_library(package)?;
    let package = Package::read(package)?;
    let terms = read_claims(&package.documents.terms)?;
    let library = library.then(|| if package.start.is_some() { Library::Placed } else { Library::Unplaced });
    Ok(Parts { terms, interpreter: package.start.and_then(|record| record.interpreter().map(path)), library })
}

fn path(bytes: &[u8]) -> PathBuf {
    OsStr::from_bytes(bytes).into()
}

async fn install(socket: &Path, output: &Output, package: &Path, place: Place) -> Result<()> {
    let from = file(package)?;
    let Parts { terms, library, .. } = parts(&from)?;
    let Description { processor, interpreter, .. } = describe(socket)?;
    if terms.processor != processor {
        let detail = format!("the package is bound to processor {}, the one here is {processor}", terms.processor);
        return Err(Refusal::new(Code::ProcessorMismatch, detail));
    }
    if terms.format != Format::ElfX8664 {
        return Err(Refusal::new(Code::UnsupportedProgram, "the package holds data; open it with `chipbound open`"));
    }
    if library.is_some() && interpreter.is_none() {
        let detail = "the package is a shared library, and asks by the interpreter of a processor; this one has none";
        return Err(Refusal::new(Code::NoDirectStart, detail));
    }
    let usual = package.file_name().map(|n| n.to_string_lossy().into_owned());
    let name = place.name.or(usual).ok_or_else(|| Refusal::new(Code::ConfigInvalid, format!("{} names no file", package.display())))?;
    let target = named(&bins::folder(place.bin.as_deref())?, &name)?;
    let there = replaceable(&target)?.filter(|_| !place.replace);
    let new = program(socket, output, &from).await?; // What is damaged takes no place, least of all that of a whole one.
    if let Some(there) = there {
        // One that is damaged gives way to its own release.
        if parts(&there)?.terms.manifest != terms.manifest {
            check_same_program(socket, output, &target, (&there, &new)).await?;
        }
    }
    let owned = bins::ownership(library.is_some());
    let written = target.clone();
    let direct = blocking(move || write(&from, &written, interpreter.as_deref(), owned)).await?;
    if library.is_some() {
        let text = format!("{}: installed (a shared library: programs load it)", target.display());
        output.result(text, &json!({ "installed": lossy(&target), "library": true }));
        return Ok(());
    }
    let bins::Ownership { group, mode } = owned;
    let folder = target.parent().unwrap_or(Path::new("."));
    let start = match (direct, bins::in_path(folder)) {
        (true, true) => name,
        (true, false) => target.display().to_string(),
        (false, _) => format!("chipbound run {}", target.display()),
    };
    let who = if group.is_some() { "; others may execute it and not read it" } else { "" };
    let text = format!("{}: installed (mode {mode:04o}{who}); start it with: {start}", target.display());
    output.result(text, &json!({ "installed": lossy(&target), "mode": format!("{mode:04o}"), "direct_start": direct, "start": start }));
    Ok(())
}

/// A file of that name in a folder; a name with a folder in it is refused.
fn named(folder: &Path, name: &str) -> Result<PathBuf> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(Refusal::new(Code::ConfigInvalid, format!("{name:?} is no name for a command")));
    }
    Ok(std::path::absolute(folder).map_err(|e| Refusal::io(folder.display(), e))?.join(name))
}

/// The package that would be replaced, if one is there. What is no package is never replaced by one.
fn replaceable(target: &Path) -> Result<Option<File>> {
    let other = |what: &str| Refusal::new(Code::Conflict, format!("{} is {what}; choose another --name or --bin", target.display()));
    match target.symlink_metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Refusal::io(target.display(), e)),
        Ok(meta) if !meta.is_file() => Err(other("there already and is no file")),
        Ok(_) => {
            let there = file(target)?;
            Package::read(&there).map_err(|_| other("there already and is no package"))?;
            Ok(Some(there))
        }
    }
}

/// Refuses to put a package of the program `new` in the place of another program's, by what the processor says of that one.
async fn check_same_program(socket: &Path, output: &Output, target: &Path, (there, new): (&File, &ProgramId)) -> Result<()> {
    let what = match program(socket, output, there).await {
        Ok(there) if there == *new => return Ok(()),
        Ok(there) => format!("the command of {there}"),
        Err(refusal) => format!("a package that does not open here ({refusal})"),
    };
    let shown = target.display();
    Err(Refusal::new(Code::Conflict, format!("{shown} is {what}, not of {new}; choose another --name or --bin, or --replace it")))
}

/// The program of a package that is whole and opens here.
async fn program(socket: &Path, output: &Output, package: &File) -> Result<ProgramId> {
    let package = package.try_clone().map_err(|e| Refusal::io("the package's descriptor", e))?;
    match ask(socket.to_owned(), output, Request::Inspect { path: None }, vec![package.into()]).await? {
        Response::Inspected { program, .. } => Ok(program),
        other => Err(unexpected(&other)),
    }
}

/// The copy: whole under its name with its owner and mode, or not there at all.
fn write(from: &File, target: &Path, interpreter: Option<&[u8]>, owned: bins::Ownership) -> Result<bool> {
    let bins::Ownership { group, mode } = owned;
    let failed = |e| Refusal::io(target.display(), e);
    std::fs::create_dir_all(target.parent().unwrap_or(Path::new("."))).map_err(failed)?;
    let size = from.metadata().map_err(failed)?.len();
    let mut pending = Pending::create_anew(target, 0o600)?;
    let to = pending.file();
    copy(from, to, size).map_err(failed)?;
    let direct = name_interpreter(to, interpreter)?;
    if group.is_some() {
        fchown(&*to, None, group).map_err(failed)?;
    }
    to.set_permissions(Permissions::from_mode(mode)).map_err(failed)?;
    pending.keep()?;
    Ok(direct)
}

fn list(home: &Home, output: &Output, bin: Option<&Path>) -> Result<()> {
    let bought: Vec<Receipt> = home.receipts()?.iter().filter_map(|(_, bytes)| read_claims(bytes).ok()).collect();
    let (mut rows, mut values) = (Vec::new(), Vec::new());
    for folder in bins::folders(bin) {
        for path in bins::programs(&folder)? {
            let Some(found) = look(&path) else { continue };
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let program = found.order.map_or_else(|| FOR_EXECUTION.to_owned(), |order| title(&bought, order));
            let direct = found.direct.map_or("ask verify", |direct| if direct { "yes" } else { "no" });
            values.push(
                json!({ "name": name, "path": lossy(&path), "order": found.order, "program": program, "direct_start": found.direct }),
            );
            rows.push(vec![name, program, direct.to_owned(), path.display().to_string()]);
        }
    }
    output.table(&["NAME", "PROGRAM", "DIRECT", "PATH"], &rows, &values);
    Ok(())
}

/// What stands in place of a program's name that only the processor can read.
const FOR_EXECUTION: &str = "(may be executed, not read)";

/// What can be seen of an installed package: nothing but that it is there, where it may only be executed.
struct Seen {
    order: Option<OrderId>,
    direct: Option<bool>,
}

fn look(path: &Path) -> Option<Seen> {
    match open_at_once(path) {
        Ok(package) => {
            let Parts { terms, interpreter, library } = parts(&package).ok()?;
            Some(Seen { order: Some(terms.order), direct: library.is_none().then(|| interpreter.is_some_and(|i| can_execute(&i))) })
        }
        Err(e) if e.kind() == ErrorKind::PermissionDenied && bins::for_execution_alone(path) => Some(Seen { order: None, direct: None }),
        Err(_) => None,
    }
}

fn can_execute(path: &Path) -> bool {
    path.is_file() && access(path, Access::EXEC_OK).is_ok()
}

fn title(bought: &[Receipt], order: OrderId) -> String {
    let receipt = bought.iter().find(|receipt| receipt.order == order);
    receipt.map_or_else(|| format!("order {order}"), |r| format!("{} {}", r.program.name(), &*r.version))
}

fn uninstall(output: &Output, name: &str, bin: Option<&Path>) -> Result<()> {
    let target = named(&bins::folder(bin)?, name)?;
    let package = open_at_once(&target).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Refusal::new(Code::NotFound, format!("{} is not there; where it is, chipbound list says", target.display())),
        _ => Refusal::io(target.display(), e),
    })?;
    parts(&package)?; // What is no package is none of ours.
    std::fs::remove_file(&target).map_err(|e| Refusal::io(target.display(), e))?;
    output.result(format!("{}: taken away", target.display()), &json!({ "uninstalled": lossy(&target) }));
    Ok(())
}

async fn verify(socket: &Path, output: &Output, package: &Path) -> Result<()> {
    let target = find(package)?;
    let shown = target.display().to_string();
    let (known, opened) = match open_at_once(&target) {
        Ok(file) => (parts(&file).ok(), vec![file.into()]),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => (None, Vec::new()), // The processor looks by itself.
        Err(e) => return Err(Refusal::io(&shown, e)),
    };
    let whole = std::path::absolute(&target).map_err(|e| Refusal::io(&shown, e))?;
    let request = Request::Inspect { path: Some(Bytes::new(whole.as_os_str().as_bytes().to_vec())?) };
    let (title, named) = match ask(socket.to_owned(), output, request, opened).await {
        Ok(Response::Inspected { title, interpreter, .. }) => (title, interpreter.map(|i| path(&i))),
        Ok(other) => return Err(unexpected(&other)),
        Err(refusal) => {
            output.note(&format!("{shown}: {}", doubt(refusal.code)));
            return Err(refusal);
        }
    };
    let ours = describe(socket)?.interpreter.map(|i| path(&i));
    let (works, direct) = direct_start(named.as_deref(), ours.as_deref());
    let title = &*title;
    let data = known.as_ref().is_some_and(|parts| parts.terms.format == Format::Data);
    let library = known.and_then(|parts| parts.library);
    let last = match library {
        None if data => {
            "data: nothing starts it; programs have it by chipbound run --with, or chipbound open where its vendor allows".to_owned()
        }
        None => format!("direct start: {direct}"),
        Some(Library::Placed) => "shared library: it asks this machine's processor when a program loads it".to_owned(),
        Some(Library::Unplaced) => "shared library: it asks no processor, so that no program can load it; chipbound install it".to_owned(),
    };
    let text = format!("{shown}: {title}\nwhole: every byte is the one that was sealed\nopens here: it is bound to this processor\n{last}");
    let value = json!({ "package": lossy(&target), "title": title, "whole": true, "opens_here": true, "direct_start": works,
        "interpreter": named.as_deref().map(lossy),
        "library": library.is_some() });
    output.result(text, &value);
    if std::fs::read(SUID_DUMPABLE).is_ok_and(|value| value.trim_ascii() == b"1") {
        output.note(
            "fs.suid_dumpable is 1: the kernel lets users trace and dump programs that they may not read (sysctl fs.suid_dumpable=0)",
        );
    }
    match named {
        Some(_) if !works => Err(Refusal::new(Code::NoDirectStart, direct)),
        _ => Ok(()),
    }
}

/// Where the kernel keeps whether it lets users dump and trace processes of files that they may not read.
const SUID_DUMPABLE: &str = "/proc/sys/fs/suid_dumpable";

/// Which of the questions a refusal answers with no.
fn doubt(code: Code) -> &'static str {
    match code {
        Code::PageAltered | Code::PlainPartsAltered | Code::PackageTruncated | Code::SealMismatch | Code::ManifestMismatch => {
            "not whole: it is not what was sealed"
        }
        Code::ProfileMismatch => "not sealed as its vendor wants",
        Code::NotAPackage => "not a package, or one whose end was cut off",
        Code::ProcessorMismatch | Code::NotReceived | Code::NotReleased | Code::TokenMismatch | Code::WrapInvalid => {
            "does not open here: this processor did not receive it, or it was not released"
        }
        Code::OrderRetired => "does not open here any more: the purchase was transferred",
        Code::ClassRefused | Code::SequenceTooOld | Code::UseForbidden => "does not open here: its vendor does not allow it",
        _ => "it could not be found out whether it is whole and opens here",
    }
}

/// Whether a package that names this interpreter is started directly on a machine whose processor has that one, and why not.
fn direct_start(named: Option<&Path>, ours: Option<&Path>) -> (bool, String) {
    match (named, ours) {
        (None, None) => (false, "no; this processor has no interpreter: start it with chipbound run".to_owned()),
        (None, Some(_)) => (false, "no; it names no interpreter: start it with chipbound run, or chipbound install it".to_owned()),
        (Some(named), ours) if ours != Some(named) => {
            let ours = ours.map_or("none".to_owned(), |ours| ours.display().to_string());
            (false, format!("no; it names the interpreter {}, and this processor's is {ours}", named.display()))
        }
        (Some(named), _) if !can_execute(named) => {
            (false, format!("no; its interpreter {} is not there, or may not be executed", named.display()))
        }
        (Some(named), _) => (true, format!("yes, by {}", named.display())),
    }
}

/// A package's file; for a name alone that is no file here, the installed command, or what the shell would find.
fn find(package: &Path) -> Result<PathBuf> {
    if package.as_os_str().as_bytes().contains(&b'/') || package.exists() {
        return Ok(package.to_owned());
    }
    let searched =
        bins::folders(None).into_iter().chain(std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect::<Vec<_>>());
    let found = searched.map(|folder| folder.join(package)).find(|path| path.is_file());
    found.ok_or_else(|| Refusal::new(Code::NotFound, format!("{}: there is no such package or command", package.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_start_works_by_the_processors_own_interpreter_alone() {
        let here = Path::new("/bin/sh");
        assert!(direct_start(Some(here), Some(here)).0);
        for (named, ours) in [(None, None), (None, Some(here)), (Some(here), None), (Some(here), Some(Path::new("/bin/ls")))] {
            assert!(!direct_start(named, ours).0, "{named:?} {ours:?}");
        }
        let missing = Path::new("/nowhere/interpreter");
        let (works, why) = direct_start(Some(missing), Some(missing));
        assert!(!works && why.contains("/nowhere/interpreter is not there"), "{why}");
    }

    #[test]
    fn a_name_of_a_command_leads_out_of_no_folder() {
        for name in ["", ".", "..", "a/b", "/bin/sh"] {
            assert_eq!(named(Path::new("/bin"), name).expect_err("no name").code, Code::ConfigInvalid, "{name}");
        }
        assert_eq!(named(Path::new("/bin"), "perl").expect("a name"), Path::new("/bin/perl"));
    }
}
