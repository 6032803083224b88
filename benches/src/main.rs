//! Measures a whole installation on this machine, each figure beside what it is to be compared with, in one run.
//!
//! Nothing is asserted: `met` and `missed` come from the measured ratios, and only a measurement that could not be made is a
//! failure. Everything happens on loopback and in one temporary folder.

mod cold;
mod data;
mod database;
mod delivery;
mod instances;
mod lab;
mod ledger;
mod machine;
mod memory;
mod nginx;
mod opening;
mod primitives;
mod process;
mod running;
mod samples;
mod small;
mod start;
mod stats;
mod steady;

use clap::{Parser, ValueEnum};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What a measurement gives, or why it could not be made.
type Outcome<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A failure in words.
fn failed(why: impl Into<String>) -> Box<dyn std::error::Error> {
    why.into().into()
}

/// Bytes of the large files, and with --quick.
const LARGE: u64 = 1 << 30;
const LARGE_QUICK: u64 = 128 << 20;
/// The largest multiple of the large files that lies on the disk at once.
const FOOTPRINT: u64 = 9;

/// Measures chipbound on this machine, side by side with what it is compared with.
#[derive(Parser)]
#[command(
    name = "./bench",
    after_help = "Example:\n  ./bench delivery --rounds 9 | tee delivery.md\n\nAll of it takes five to ten minutes, 9 GiB in the folder of $TMPDIR, and a machine that does nothing else."
)]
struct Options {
    /// What to measure.
    #[arg(value_enum, default_value_t = What::All)]
    what: What,
    /// Rounds of delivery and ledger, deliveries of small, pairs of start; each has its own number if left out
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Fewer rounds and smaller files: to see that everything runs
    #[arg(long)]
    quick: bool,
    /// The command to measure [default: chipbound beside this program]
    #[arg(long, value_name = "FILE")]
    chipbound: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum What {
    /// 1 GiB delivered to the disk, against nginx serving it to curl: MB/s, and CPU seconds per GB of each process
    Delivery,
    /// 100 KB deliveries: server CPU of one against the primitives that it consists of
    Small,
    /// Protected programs against plain ones: both of the following parts
    Loader,
    /// Starting a protected program against /usr/bin/env: small, medium and large, cached and cold
    Start,
    /// Protected programs while they run, while their pages are opened, and two instances in memory
    Running,
    /// Data of 8 GiB read by a protected program, a protected library loaded by one, and the check of profiles; 40 GiB in the folder of $TMPDIR
    Data,
    /// Peak memory of each program while 1 GiB is published, delivered, opened and run
    Memory,
    /// Settled orders per second on SQLite and PostgreSQL with 32 clients, against their bare commits
    Ledger,
    /// Everything but data
    All,
}

/// What `loader` measures.
const LOADER: &[What] = &[What::Start, What::Running];

impl Options {
    /// Bytes of a large file.
    fn large(&self) -> u64 {
        if self.quick { LARGE_QUICK } else { LARGE }
    }

    /// How often, where the command line says it.
    fn rounds(&self) -> Option<usize> {
        self.rounds.map(usize::from)
    }

    /// The command that is measured.
    fn chipbound(&self) -> Outcome<PathBuf> {
        let beside = || Ok::<_, std::io::Error>(std::env::current_exe()?.with_file_name("chipbound"));
        let path = self.chipbound.clone().map_or_else(beside, Ok)?;
        path.canonicalize().map_err(|e| failed(format!("{}: {e}; build it with: cargo build --release -p chipbound", path.display())))
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    match measure(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Outcome<()> {
    let folder = tempfile::Builder::new().prefix("chipbound-bench-").tempdir()?;
    end_on_signals(folder.path())?;
    check_space(folder.path(), options)?;
    machine::print(folder.path());
    type Measure = fn(&Options, &Path) -> Outcome<()>;
    let all: [(What, &str, Measure); 7] = [
        (What::Delivery, "delivery", delivery::measure),
        (What::Small, "small", small::measure),
        (What::Start, "start", start::measure),
        (What::Running, "running", running::measure),
        (What::Data, "data", data::measure),
        (What::Memory, "memory", memory::measure),
        (What::Ledger, "ledger", ledger::measure),
    ];
    for (what, name, measure) in all {
        let part_of_all = options.what == What::All && what != What::Data;
        if options.what == what || part_of_all || (options.what == What::Loader && LOADER.contains(&what)) {
            let room = folder.path().join(name);
            std::fs::create_dir(&room)?;
            measure(options, &room)?;
            std::fs::remove_dir_all(&room)?;
        }
    }
    Ok(())
}

/// Refuses to begin what would fill the disk.
fn check_space(folder: &Path, options: &Options) -> Outcome<()> {
    let disk = rustix::fs::statvfs(folder)?;
    let needed = if options.what == What::Data { data::footprint(options) } else { FOOTPRINT * options.large() };
    let free = disk.f_bavail * disk.f_frsize;
    if free < needed {
        let gib = |bytes: u64| bytes.div_ceil(1 << 30);
        return Err(failed(format!(
            "{} GiB are free in {}, {} are needed; name another folder with TMPDIR",
            gib(free),
            folder.display(),
            gib(needed)
        )));
    }
    Ok(())
}

/// On SIGINT and SIGTERM the children are asked to end and the folder goes.
fn end_on_signals(folder: &Path) -> Outcome<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let folder = folder.to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
        });
        process::end_children();
        std::thread::sleep(std::time::Duration::from_millis(500));
        let _ = std::fs::remove_dir_all(folder); // Whatever is left lies in the system's temporary folder.
        std::process::exit(130);
    });
    Ok(())
}
