//! `chipbound demo`: the whole way of one program in one command, each role a process of its own, and every promise checked.
//! Nothing that it prints is known beforehand: all figures are measured, all verdicts are seen.

mod promises;
mod teller;
pub mod world;

use crate::api::Api;
use crate::cli::in_shell;
use crate::client::Device;
use crate::client::deliver::{Delivered, Wanted, Wish, buy};
use crate::home::{Home, Session};
use crate::receipts;
use crate::verbs::bytes;
use chipbound_host::lossy;
use chipbound_wire::api::{Payment, Published};
use chipbound_wire::random::fresh;
use chipbound_wire::suite::Format;
use chipbound_wire::{Code, Hex, Refusal, Result, SystemRandom};
use serde_json::json;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::time::{Duration, Instant};
use teller::Teller;
use world::World;

/// What the demo is told.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  chipbound demo\n  chipbound demo --program /usr/bin/openssl -- version -a")]
pub struct Arguments {
    /// The program that is published, bought and run; one that every Debian has, without it
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Keep everything that was made in this new folder
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// The program's arguments
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

/// Programs of every Debian, and something that they can show.
const USUAL: [(&str, &[&str]); 2] = [
    ("/usr/bin/perl", &["-e", r"printf qq(perl %vd counts primes: @{[grep { (1 x $_) !~ /^(11+?)\1+$/ } 2..60]}\n), $^V"]),
    ("/bin/ls", &["--version"]),
];
/// What the customer has, and what the program costs.
const DEPOSIT: &str = "100.00 EUR";
const PRICE: &str = "12.50 EUR";

/// The program of the story.
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) name: String,
}

/// What the story made, for the promises.
pub(crate) struct Story<'a> {
    pub(crate) world: &'a World,
    pub(crate) exe: &'a Path,
    pub(crate) home: &'a Home,
    pub(crate) session: &'a Session,
    pub(crate) api: &'a Api,
    pub(crate) program: &'a Program,
    pub(crate) delivered: &'a Delivered,
    pub(crate) plain: &'a Output,
    pub(crate) protected: &'a [Output],
    pub(crate) teller: &'a Teller,
}

/// Tells the story. Fails when any promise did not hold.
pub fn execute(arguments: Arguments, json: bool) -> Result<()> {
    let teller = Teller::new(json);
    in_shell(|| async {
        let exe = std::env::current_exe().map_err(|e| Refusal::io("this program's own file", e))?;
        let folder = tempfile::Builder::new().prefix("chipbound-demo-").tempdir().map_err(|e| Refusal::io("a temporary folder", e))?;
        match &arguments.keep {
            None => tell(&teller, &exe, folder.path(), &arguments).await,
            Some(keep) => {
                chipbound_host::files::create_new_installation(keep)?;
                let keep = std::path::absolute(keep).map_err(|e| Refusal::io(keep.display(), e))?;
                let outcome = tell(&teller, &exe, &keep, &arguments).await;
                teller.fact("kept", &format!("kept in {}", keep.display()), json!({ "folder": lossy(&keep) }));
                outcome
            }
        }
    })
}

async fn tell(teller: &Teller, exe: &Path, folder: &Path, arguments: &Arguments) -> Result<()> {
    let begun = Instant::now();
    let program = choose(arguments)?;
    let world = parties(teller, exe, folder).await?;
    let ada = accounts(teller, &world).await?;
    let published = publish(teller, &world, &program).await?;
    if published.release.format != Format::ElfX8664 {
        let detail = format!("{} is no ELF program of the supported kinds; publish it as data by hand", program.path.display());
        return Err(Refusal::new(Code::UnsupportedProgram, detail));
    }

    let session = ada.session()?;
    let api = Api::with(&session)?;
    let before = balance(&api).await?;
    teller.part(&format!("ada has {before} and buys it for processor 1"));
    let wish = Wish {
        program: program.name.clone(),
        version: None,
        key_mode: None,
        line: Wanted::default(),
        max_price: Some(PRICE.parse()?),
        target: Some(world.path(&format!("bought/{}", program.name))),
        again: false,
        payment: Payment::Prepaid,
    };
    chipbound_host::files::create_private_folder(&world.path("bought"))?;
    let socket = world.sockets[0].clone();
    let device = Device { home: &ada, session: &session, api: &api, socket: &socket, story: teller };
    let delivered = buy(&device, &wish).await?;
    let after = balance(&api).await?;
    teller.fact("balance", &format!("balance {before} before, {after} after"), json!({ "before": before, "after": after }));
    show_receipt(teller, &delivered)?;

    let (plain, protected) = runs(teller, exe, &world, &program, &delivered).await?;
    teller.part("What was promised");
    let story = Story {
        world: &world,
        exe,
        home: &ada,
        session: &session,
        api: &api,
        program: &program,
        delivered: &delivered,
        plain: &plain,
        protected: &protected,
        teller,
    };
    let promises = promises::check_all(&story).await?;
    drop(world);
    let held = promises.iter().filter(|p| p.held).count();
    let (all, seconds) = (promises.len(), begun.elapsed().as_secs_f64());
    teller.part(&format!("{held} of {all} promises held"));
    let text = format!("{seconds:.1} s in all; the daemons have ended");
    teller.fact("end", &text, json!({ "held": held, "promises": all, "seconds": seconds }));
    if held == all { Ok(()) } else { Err(Refusal::new(Code::Internal, format!("{} of {all} promises did not hold", all - held))) }
}

fn choose(arguments: &Arguments) -> Result<Program> {
    let (path, own) = match &arguments.program {
        Some(path) => (path.clone(), arguments.arguments.clone()),
        None => {
            let usual = USUAL.iter().find(|(path, _)| Path::new(path).is_file());
            let (path, own) = usual.ok_or_else(|| Refusal::new(Code::ConfigInvalid, "name a program with --program PATH"))?;
            (PathBuf::from(path), own.iter().map(OsString::from).collect())
        }
    };
    let path = path.canonicalize().map_err(|e| Refusal::io(path.display(), e))?;
    let name: String = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '-' }).take(64).collect();
    Ok(Program { path, arguments: own, name: name.trim_start_matches('.').to_owned() })
}

async fn parties(teller: &Teller, exe: &Path, folder: &Path) -> Result<World> {
    teller.part("The parties, each a process of its own (under this one user, against whom a processor promises nothing)");
    let world = World::start(exe, folder, 2, "").await?;
    let pid = |number: usize| world.daemons[number].pid();
    let said = |role: &str, place: String, pid: u32| {
        teller.fact("party", &format!("{role:12} {place} (process {pid})"), json!({ "role": role, "place": place, "pid": pid }));
    };
    said("authority", world.authority_url.clone(), pid(0));
    said("server", world.server_url.clone(), pid(1));
    said("processor 1", world.sockets[0].display().to_string(), pid(2));
    said("processor 2", world.sockets[1].display().to_string(), pid(3));
    Ok(world)
}

/// Makes a vendor's and a customer's account and logs the customer in.
async fn accounts(teller: &Teller, world: &World) -> Result<Home> {
    let password = || Hex(&fresh::<16>(&mut SystemRandom)).to_string();
    let (ada, acme) = (password(), password());
    world.account("ada", "customer", &ada, Some(DEPOSIT)).await?;
    world.account("acme", "vendor", &acme, None).await?;
    world.log_in("acme", &acme).await?;
    let home = world.log_in("ada", &ada).await?;
    let facts = json!({ "customer": "ada", "deposit": DEPOSIT, "vendor": "acme" });
    teller.fact("accounts", &format!("accounts: ada, a customer with {DEPOSIT}; acme, a vendor"), facts);
    Ok(home)
}

async fn publish(teller: &Teller, world: &World, program: &Program) -> Result<Published> {
    teller.part(&format!("The vendor acme publishes {}", program.path.display()));
    let home = world.path("home-acme");
    let (authority, voucher) = (world.authority_url.clone(), world.voucher("vendor").await?);
    world.chipbound(&["vendor", "init", "--authority", &authority, "--voucher", &voucher, "--home"], &[&home]).await?;
    let arguments = ["--json", "publish", "--name", &program.name, "--version", "1.0", "--price", PRICE, "--class", "software", "--home"];
    let said = world.chipbound(&arguments, &[&home, &program.path]).await?;
    let published: Published =
        serde_json::from_str(said.trim()).map_err(|e| Refusal::new(Code::Internal, "what publish printed cannot be read").because(e))?;
    let release = &published.release;
    let text = format!(
        "{} {} for {}: {}, of which {} will be sealed",
        release.program.name(),
        release.version,
        release.price,
        bytes(release.size),
        bytes(published.sealed_bytes)
    );
    teller.fact("published", &text, json!(published));
    Ok(published)
}

pub(crate) async fn balance(api: &Api) -> Result<String> {
    let lines: Vec<_> = api.account().await?.balances.iter().map(|b| b.available.to_string()).collect();
    Ok(lines.join(", "))
}

fn show_receipt(teller: &Teller, delivered: &Delivered) -> Result<()> {
    let receipt = &delivered.receipt;
    teller.part("The receipt");
    let lines: Vec<_> = receipts::lines(receipt).into_iter().map(|(name, value)| format!("{name:18}{value}")).collect();
    teller.fact("receipt", &lines.join("\n  "), receipts::value(receipt));
    Ok(())
}

/// Runs the plain program, and the package twice: the second start finds its code opened.
async fn runs(teller: &Teller, exe: &Path, world: &World, program: &Program, delivered: &Delivered) -> Result<(Output, [Output; 2])> {
    teller.part("It runs");
    let (plain, plain_time) = world::run(&program.path, &program.arguments, &world.path("bought")).await?;
    let (first, first_time) = protected(exe, world, 0, &delivered.package, &program.arguments).await?;
    let (second, second_time) = protected(exe, world, 0, &delivered.package, &program.arguments).await?;
    let one = |which: &str, output: &Output, time: Duration| {
        let ms = time.as_secs_f64() * 1000.0;
        let facts = json!({ "which": which, "ms": ms, "ended": ended(output.status), "stdout": String::from_utf8_lossy(&output.stdout),
            "stderr": String::from_utf8_lossy(&output.stderr) });
        teller.fact("run", &format!("{which:24} {:10} {ms:7.1} ms", ended(output.status)), facts);
    };
    one("the plain program", &plain, plain_time);
    one("the package", &first, first_time);
    one("the package once more", &second, second_time);
    teller.quote(&String::from_utf8_lossy(&first.stdout));
    teller.quote(&String::from_utf8_lossy(&first.stderr));
    Ok((plain, [first, second]))
}

/// `chipbound run` with processor number `processor`.
pub(crate) async fn protected(
    exe: &Path,
    world: &World,
    processor: usize,
    package: &Path,
    arguments: &[OsString],
) -> Result<(Output, Duration)> {
    let mut all: Vec<OsString> = vec!["run".into(), "--processor".into(), world.sockets[processor].clone().into(), package.into()];
    all.extend_from_slice(arguments);
    world::run(exe, &all, &world.path("bought")).await
}

/// The same exit and the same bytes on stdout and stderr.
pub(crate) fn same(one: &Output, other: &Output) -> bool {
    (one.status, &one.stdout, &one.stderr) == (other.status, &other.stdout, &other.stderr)
}

/// How a process ended, for people.
pub(crate) fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
