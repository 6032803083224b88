//! The promises, each checked on what the story made.

use super::teller::Promise;
use super::{Story, balance, ended, protected, same};
use crate::client::Device;
use crate::client::deliver::{Wanted, Way, redownload};
use crate::client::placing::name_interpreter;
use crate::receipts;
use chipbound_host::files::{PRIVATE, write_durably};
use chipbound_sealing::Package;
use chipbound_wire::{Code, Refusal, Result};
use object::elf::{DT_NEEDED, FileHeader64, PF_X, PT_LOAD};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, elf};
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Output;

/// Checks them all; each is told as soon as it is known.
pub(crate) async fn check_all(story: &Story<'_>) -> Result<Vec<Promise>> {
    let mut promises = Vec::new();
    let mut seen = |promise: Promise| {
        story.teller.promise(&promise);
        promises.push(promise);
    };
    seen(the_same_output(story));
    seen(it_is_a_command(story).await?);
    seen(nothing_runs_without_the_processor(story).await?);
    seen(another_processor_refuses(story).await?);
    for promise in flipped_bytes_are_refused(story).await? {
        seen(promise);
    }
    seen(an_altered_receipt_is_refused(story)?);
    seen(the_receipt_downloads_again(story).await?);
    for promise in tools_still_read_it(story).await? {
        seen(promise);
    }
    Ok(promises)
}

fn the_same_output(story: &Story<'_>) -> Promise {
    let (plain, size) = (story.plain, story.plain.stdout.len());
    let differing = story.protected.iter().filter(|output| !same(plain, output)).count();
    Promise {
        name: "same_output",
        text: "the package does what the plain program does".to_owned(),
        held: differing == 0,
        evidence: format!("{}, {size} bytes on stdout; {differing} of {} starts differed", ended(plain.status), story.protected.len()),
    }
}

/// The package executed like any file: the kernel starts it by the processor's interpreter.
async fn it_is_a_command(story: &Story<'_>) -> Result<Promise> {
    let package = &story.delivered.package;
    let named = Package::read(&open(package)?)?
        .start
        .and_then(|record| record.interpreter().map(|path| String::from_utf8_lossy(path).into_owned()));
    let (output, _) = super::world::run(package, &story.program.arguments, &story.world.path("bought")).await?;
    Ok(Promise {
        name: "direct_start",
        text: "executed like any command, without `chipbound run`, it does the same".to_owned(),
        held: named.is_some() && same(story.plain, &output),
        evidence: format!("{}; started by {}", ended(output.status), named.as_deref().unwrap_or("nothing")),
    })
}

/// Copies executed where no processor helps: one names an interpreter whose processor is not there, and says so; one is as it was
/// delivered, and stops at its first instruction, for none of its segments may be executed.
async fn nothing_runs_without_the_processor(story: &Story<'_>) -> Result<Promise> {
    let executable = segments(&story.delivered.package)?.into_iter().filter(|flags| flags & PF_X != 0).count();
    let interpreter = story.world.path("interpreter-of-none");
    let bytes = chipbound_processor::interpreter::for_socket(&story.world.path("no-processor.sock"))?;
    write_durably(&interpreter, &bytes, PRIVATE)?;
    std::fs::set_permissions(&interpreter, Permissions::from_mode(0o755)).map_err(|e| Refusal::io(interpreter.display(), e))?;
    let alone = copied(story, "alone", Some(interpreter.as_os_str().as_encoded_bytes())).await?;
    let delivered = copied(story, "as-delivered", None).await?;
    let told = alone.status.code() == Some(126) && !alone.stderr.is_empty();
    let stopped = delivered.status.signal() == Some(Signal::SEGV.as_raw());
    let silent = alone.stdout.is_empty() && delivered.stdout.is_empty();
    Ok(Promise {
        name: "nothing_runs_without_the_processor",
        text: "executed without the processor, it stops before one encrypted byte runs".to_owned(),
        held: told && stopped && silent && executable == 0,
        evidence: format!("{executable} executable segments; {}, as delivered {}", ended(alone.status), ended(delivered.status)),
    })
}

/// Executes a copy of the package that names another interpreter, or none.
async fn copied(story: &Story<'_>, name: &str, interpreter: Option<&[u8]>) -> Result<Output> {
    let copy = story.world.path("bought").join(name);
    let failed = |e| Refusal::io(copy.display(), e);
    std::fs::copy(&story.delivered.package, &copy).map_err(failed)?;
    let file = File::options().read(true).write(true).open(&copy).map_err(failed)?;
    name_interpreter(&file, interpreter)?;
    drop(file);
    Ok(super::world::run(&copy, &story.program.arguments, &story.world.path("bought")).await?.0)
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Refusal::io(path.display(), e))
}

async fn another_processor_refuses(story: &Story<'_>) -> Result<Promise> {
    let (output, _) = protected(story.exe, story.world, 1, &story.delivered.package, &story.program.arguments).await?;
    let name = "another_processor_refuses";
    Ok(refused(name, "the second processor refuses it".to_owned(), &output, &[Code::ProcessorMismatch]))
}

/// One byte of a sealed page and one plain byte, flipped in copies.
async fn flipped_bytes_are_refused(story: &Story<'_>) -> Result<Vec<Promise>> {
    let package = &story.delivered.package;
    let layout = Package::read(&open(package)?)?.layout;
    let sealed = layout.sealed().first().ok_or_else(|| Refusal::new(Code::NotAPackage, "nothing of the package is sealed"))?;
    let plain = (0..layout.body_size()).rev().find(|at| !layout.sealed().iter().any(|r| (r.offset..r.end()).contains(at)));
    let plain = plain.ok_or_else(|| Refusal::new(Code::NotAPackage, "nothing of the package is plain"))?;
    let places = [("sealed", sealed.offset + sealed.len / 2, Code::PageAltered), ("plain", plain, Code::PlainPartsAltered)];
    let mut promises = Vec::new();
    for (which, at, code) in places {
        let copy = story.world.path(&format!("bought/{which}-flipped"));
        flip(package, &copy, at)?;
        let (output, _) = protected(story.exe, story.world, 0, &copy, &story.program.arguments).await?;
        let text = format!("byte {at}, {which}, flipped in a copy: refused by name");
        promises.push(refused(if which == "sealed" { "flipped_sealed_byte" } else { "flipped_plain_byte" }, text, &output, &[code]));
    }
    Ok(promises)
}

/// The first line of a refusal with one of those codes, and no word of the program.
fn refused(name: &'static str, text: String, output: &Output, codes: &[Code]) -> Promise {
    let said = String::from_utf8_lossy(&output.stderr);
    let by_name = codes.iter().any(|code| said.contains(&format!("error[{code}]")));
    let held = by_name && output.stdout.is_empty() && output.status.code() == Some(126);
    let said = said.lines().next().unwrap_or("not a word");
    Promise { name, text, held, evidence: format!("{}: {said}", ended(output.status)) }
}

fn flip(package: &Path, copy: &Path, at: u64) -> Result<()> {
    let failed = |e| Refusal::io(copy.display(), e);
    std::fs::copy(package, copy).map_err(failed)?;
    let file = File::options().read(true).write(true).open(copy).map_err(failed)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).and_then(|()| file.write_all_at(&[byte[0] ^ 1], at)).map_err(failed)
}

fn an_altered_receipt_is_refused(story: &Story<'_>) -> Result<Promise> {
    let roots = story.home.authorities()?;
    let genuine = receipts::verify(story.delivered.receipt.bytes(), &roots).is_ok();
    let mut altered = story.delivered.receipt.bytes().to_vec();
    let last = altered.len() - 1;
    altered[last] ^= 1;
    let refusal = receipts::verify(&altered, &roots).err();
    Ok(Promise {
        name: "altered_receipt",
        text: "the receipt verifies without a server, an altered one does not".to_owned(),
        held: genuine && refusal.as_ref().is_some_and(|r| r.code == Code::SignatureInvalid),
        evidence: refusal.map_or_else(|| "the altered receipt was accepted".to_owned(), |r| r.to_string()),
    })
}

async fn the_receipt_downloads_again(story: &Story<'_>) -> Result<Promise> {
    let before = balance(story.api).await?;
    let target = story.world.path("bought/again");
    let device = Device { home: story.home, session: story.session, api: story.api, socket: &story.world.sockets[0], story: &Silent };
    let again = redownload(&device, story.delivered.receipt.bytes(), Wanted { way: Way::OwnLine, rate: None }, Some(target)).await?;
    let after = balance(story.api).await?;
    let (output, _) = protected(story.exe, story.world, 0, &again.package, &story.program.arguments).await?;
    let same_receipt = again.receipt.bytes() == story.delivered.receipt.bytes();
    Ok(Promise {
        name: "redownload",
        text: "the same receipt downloads it again, and the balance stays".to_owned(),
        held: before == after && same_receipt && same(&output, story.plain),
        evidence: format!(
            "{} bytes on a line of its own; balance {before} before, {after} after; it runs: {}",
            again.size,
            ended(output.status)
        ),
    })
}

/// Hears nothing: the promise says what was seen.
struct Silent;

impl crate::client::Story for Silent {
    fn step(&self, _: u16, _: &str, _: serde_json::Value) {}
    fn progress(&self, _: u64, _: u64) {}
}

/// The import region stays plain (source \[65\]).
async fn tools_still_read_it(story: &Story<'_>) -> Result<Vec<Promise>> {
    let (plain, package) = (&story.program.path, &story.delivered.package);
    let mut promises = vec![match (tool(story, "readelf", plain).await?, tool(story, "readelf", package).await?) {
        (Some(plain), Some(package)) => {
            let lines = String::from_utf8_lossy(&package.stdout).lines().count();
            compared("readelf", plain.stdout == package.stdout && package.status.success(), format!("{lines} lines, the same for both"))
        }
        _ => {
            let (plain, package) = (needed(plain)?, needed(package)?);
            let evidence = format!("readelf is not installed; the object crate reads {} needed libraries from both", package.len());
            compared("readelf", plain == package, evidence)
        }
    }];
    if let (Some(plain), Some(package)) = (tool(story, "ldd", plain).await?, tool(story, "ldd", package).await?) {
        let (plain, package) = (libraries(&plain), libraries(&package));
        let evidence = if package.is_empty() { "no dynamic program".to_owned() } else { package.join(", ") };
        promises.push(compared("ldd", plain == package, evidence));
    }
    Ok(promises)
}

fn compared(name: &'static str, held: bool, evidence: String) -> Promise {
    let tool = if name == "readelf" { "readelf -d" } else { name };
    Promise { name, text: format!("{tool} still reads the package"), held, evidence }
}

/// What the tool says of a file; None where it is not installed.
async fn tool(story: &Story<'_>, name: &str, file: &Path) -> Result<Option<Output>> {
    let found = std::env::var_os("PATH").and_then(|path| std::env::split_paths(&path).map(|p| p.join(name)).find(|p| p.is_file()));
    let Some(tool) = found else { return Ok(None) };
    let arguments: Vec<OsString> = if name == "readelf" { vec!["-d".into(), file.into()] } else { vec![file.into()] };
    Ok(Some(super::world::run(&tool, &arguments, &story.world.path("bought")).await?.0))
}

/// The libraries that ldd names, without the addresses, which change from run to run.
fn libraries(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Refusal::io(path.display(), e))
}

fn not_elf(path: &Path) -> impl FnOnce(object::Error) -> Refusal {
    let path: PathBuf = path.to_owned();
    move |e| Refusal::new(Code::UnsupportedProgram, format!("{}: {e}", path.display())).because(e)
}

/// The flags of all segments that are loaded.
fn segments(path: &Path) -> Result<Vec<u32>> {
    let bytes = read(path)?;
    let header = FileHeader64::<Endianness>::parse(&*bytes).map_err(not_elf(path))?;
    let endian = header.endian().map_err(not_elf(path))?;
    let headers = header.program_headers(endian, &*bytes).map_err(not_elf(path))?;
    Ok(headers.iter().filter(|h| h.p_type(endian) == PT_LOAD).map(|h| h.p_flags(endian)).collect())
}

/// How many libraries the dynamic section asks for, and where their names are.
fn needed(path: &Path) -> Result<Vec<u64>> {
    let bytes = read(path)?;
    let header = FileHeader64::<Endianness>::parse(&*bytes).map_err(not_elf(path))?;
    let endian = header.endian().map_err(not_elf(path))?;
    let mut names = Vec::new();
    for segment in header.program_headers(endian, &*bytes).map_err(not_elf(path))? {
        let entries: Option<&[elf::Dyn64<Endianness>]> = segment.dynamic(endian, &*bytes).map_err(not_elf(path))?;
        let wanted = entries.unwrap_or_default().iter().filter(|d| d.tag32(endian) == Some(DT_NEEDED));
        names.extend(wanted.map(|d| d.d_val(endian)));
    }
    Ok(names)
}
