//! Long runs over much: real programs, plain and protected, side by side.
//!
//! Everything goes the whole way that a customer goes: each program is published, bought and started by the commands that people
//! type, on loopback, in one temporary folder.

mod kind;
mod list;
mod outcome;
mod page;
mod runs;
mod shop;
mod table;

use chipbound_soak::{Outcome, crash, failed, simulation};
use chipbound_wire::suite::{Mapping, Profile};
use clap::{Parser, ValueEnum};
use outcome::{Report, Verdict};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Set by SIGINT and SIGTERM: what runs is finished, nothing more is begun.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Runs much, for long, and says what was not as it should be.
#[derive(Parser)]
#[command(
    name = "./soak",
    after_help = "Examples:\n  ./soak corpus\n  ./soak corpus --only git,python3\n  ./soak corpus --mapping anonymous\n  ./soak crash\n  ./soak crash --seed 7 --kills 200\n  ./soak simulation\n  ./soak simulation --seed 7 --seeds 1\n\nPrograms and their arguments are listed in benches/soak/corpus.toml; a package or a call more is a line more there."
)]
struct Options {
    /// What to run.
    #[arg(value_enum)]
    what: What,
    /// Only these programs, by name or by Debian package
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How many programs are under way at once; with crash: purchases at once in each installation
    #[arg(long, default_value_t = 3)]
    parallel: usize,
    /// Seconds that one run of one program may take
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Publish every program with this protection profile
    #[arg(long)]
    profile: Option<Profile>,
    /// Run every program in this way of mapping; none is started directly then
    #[arg(long)]
    mapping: Option<Mapping>,
    /// A word more for each `chipbound run`, once for each
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    run_option: Vec<String>,
    /// A word more for each `chipbound publish`, once for each
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    publish_option: Vec<String>,
    /// The list of programs
    #[arg(long, value_name = "FILE", default_value = "benches/soak/corpus.toml")]
    list: PathBuf,
    /// Where the results are written, with --profile and --mapping a paragraph of their own; with --only and words more they are not
    #[arg(long, value_name = "FILE", default_value = "docs/compatibility.md")]
    document: PathBuf,
    /// The command that starts programs [default: chipbound beside this program]
    #[arg(long, value_name = "FILE")]
    chipbound: Option<PathBuf>,
    /// What is drawn: with crash, purchases and kills, the moments being aimed at anew, not hit to the microsecond [default: the time]; with simulation, every event
    #[arg(long)]
    seed: Option<u64>,
    /// With simulation: how many seeds, from --seed on [default of that: 0]
    #[arg(long, default_value_t = 2000)]
    seeds: u64,
    /// With crash: kills in all
    #[arg(long, default_value_t = 1000)]
    kills: u32,
    /// With crash: installations on each of SQLite and PostgreSQL
    #[arg(long, default_value_t = 2)]
    shops: usize,
}

impl Options {
    /// What is put into each `chipbound run`.
    fn run_words(&self) -> Vec<String> {
        let mapping = self.mapping.map(|mapping| ["--mapping".to_owned(), mapping.to_string()]);
        mapping.into_iter().flatten().chain(self.run_option.clone()).collect()
    }

    /// What is put into each `chipbound publish`.
    fn publish_words(&self) -> Vec<String> {
        let profile = self.profile.map(|profile| ["--profile".to_owned(), profile.to_string()]);
        profile.into_iter().flatten().chain(self.publish_option.clone()).collect()
    }

    /// What is forced; `None` where everything is as usual.
    fn variant(&self) -> Option<String> {
        let profile = self.profile.map(|profile| format!("--profile {profile}"));
        let mapping = self.mapping.map(|mapping| format!("--mapping {mapping}"));
        let words: Vec<_> = profile.into_iter().chain(mapping).collect();
        if words.is_empty() { None } else { Some(words.join(" ")) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum What {
    /// Real programs of many kinds, plain and protected: what they say, leave and end with is the same
    Corpus,
    /// Server, client, processor and database killed at every step of purchases, releases, transfers, refunds, deposits and payouts: nobody pays twice or for nothing
    Crash,
    /// One shop in simulated time on a simulated network, event after event: what must hold is checked after each
    Simulation,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let well = match options.what {
        What::Corpus => corpus(&options),
        What::Crash => crashes(&options),
        What::Simulation => simulated(&options),
    };
    match well {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The command that is tried.
fn chipbound(options: &Options) -> Outcome<PathBuf> {
    let beside = || Ok::<_, std::io::Error>(std::env::current_exe()?.with_file_name("chipbound"));
    Ok(options.chipbound.clone().map_or_else(beside, Ok)?.canonicalize()?)
}

/// Kills, and checks the books; true if nothing is wrong.
fn crashes(options: &Options) -> Outcome<bool> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let seed = options.seed.unwrap_or(now);
    println!("seed {seed}: ./soak crash --seed {seed} --kills {} --shops {} --parallel {}", options.kills, options.shops, options.parallel);
    end_on_signals()?;
    let size = crash::Size { seed, kills: options.kills, shops: options.shops, lanes: options.parallel, order_seconds: 60 };
    let tally = crash::run(&chipbound(options)?, &size, &ENDING)?;
    println!("{tally}");
    Ok(tally.violations.is_empty() && tally.kills.values().sum::<u32>() >= options.kills)
}

/// Plays seeds; true if everything held in all of them.
fn simulated(options: &Options) -> Outcome<bool> {
    end_on_signals()?;
    let first = options.seed.unwrap_or(0);
    let (next, sums) = (AtomicU64::new(first), Mutex::new((0_u64, 0_u64, 0_u64, 0_u64, 0_u64)));
    std::thread::scope(|scope| {
        for _ in 0..options.parallel.max(1) {
            scope.spawn(|| {
                while !ENDING.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed - first >= options.seeds {
                        return;
                    }
                    let played = simulation::play(seed, &simulation::folder());
                    let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
                    let (seeds, events, paid, ended, violations) = &mut *sums;
                    *seeds += 1;
                    match played {
                        Ok(story) => {
                            *events += story.events.len() as u64;
                            *paid += u64::from(story.paid);
                            *ended += u64::from(story.ended);
                        }
                        Err(error) => {
                            println!("{error}");
                            *violations += 1;
                        }
                    }
                }
            });
        }
    });
    let (seeds, events, paid, ended, violations) = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{seeds} seeds from {first}, {events} events, {paid} orders paid, {ended} came to nothing, violations: {violations}");
    Ok(violations == 0 && seeds == options.seeds)
}

/// Runs the list; true if every program did what the list says of it.
fn corpus(options: &Options) -> Outcome<bool> {
    let list = list::read(&options.list)?;
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    let programs: Vec<_> = list.programs.iter().filter(|p| wanted(&p.name) || wanted(&p.package)).collect();
    let chipbound = chipbound(options)?;
    let folder = tempfile::Builder::new().prefix("chipbound-soak-").tempdir()?;
    end_on_signals()?;
    let shop = shop::Shop::open(&chipbound, folder.path(), &options.run_words(), &options.publish_words())?;
    let (next, reports) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..options.parallel.max(1) {
            scope.spawn(|| {
                while let Some(program) = programs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if ENDING.load(Ordering::Relaxed) {
                        return;
                    }
                    let report = Report { program, kind: kind::of(program), verdict: runs::compare(program, &list, &shop, options) };
                    println!("{report}");
                    reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
                }
            });
        }
    });
    let mut reports = reports.into_inner().unwrap_or_else(PoisonError::into_inner);
    reports.sort_by(|a, b| (&a.program.package, &a.program.name).cmp(&(&b.program.package, &b.program.name)));
    let all = [&options.only, &options.run_option, &options.publish_option].iter().all(|words| words.is_empty());
    if all && reports.len() == programs.len() {
        write_down(options, &reports)?;
    }
    println!("{}", outcome::count(&reports));
    Ok(reports.len() == programs.len() && reports.iter().all(|r| matches!(r.verdict, Verdict::Equal | Verdict::Known { .. })))
}

/// Puts the results into the page, where they take the place of the last ones of the same way.
fn write_down(options: &Options, reports: &[Report<'_>]) -> Outcome<()> {
    let page = std::fs::read_to_string(&options.document)?;
    let page = match options.variant() {
        None => page::with_results(&page, &table::results(reports)),
        Some(variant) => page::with(&page, &variant, &page::paragraph(&variant, &table::made(), reports)),
    };
    let page = page.ok_or_else(|| failed(format!("{} has no heading of results", options.document.display())))?;
    Ok(std::fs::write(&options.document, page)?)
}

fn end_on_signals() -> Outcome<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
        });
        ENDING.store(true, Ordering::Relaxed);
    });
    Ok(())
}
