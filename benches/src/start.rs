//! How long a program takes from its start to its end when it does next to nothing: started by `env`, by `chipbound run`, and as the
//! package itself, where the processor has an interpreter for that.

use crate::lab::{KeyMode, Lab, Way};
use crate::process::{output, run};
use crate::stats::{Series, Table, at_most};
use crate::{Options, Outcome, opening, samples};
use chipbound_sealing::Package;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How large a program is, and so what a protected start may take of a plain one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Size {
    Small,
    Medium,
    Large,
}

impl Size {
    /// With the processor's memory of it, and without.
    fn targets(self) -> (f64, f64) {
        match self {
            Self::Small => (1.10, 1.3),
            Self::Medium | Self::Large => (1.05, 1.5),
        }
    }
}

/// A program and arguments with which it ends at once.
struct Subject {
    name: &'static str,
    size: Size,
    program: PathBuf,
    arguments: &'static [&'static str],
}

/// What was measured of one.
struct Row {
    subject: Subject,
    plain: Series,
    run: Series,
    direct: Series,
    cold: Series,
    /// The hash and the AEAD alone.
    bare: Series,
}

/// Measures and prints.
pub(crate) fn measure(options: &Options, folder: &Path) -> Outcome<()> {
    let pairs = options.rounds().unwrap_or(if options.quick { 50 } else { 300 });
    let cold = if options.quick { 3 } else { 15 };
    println!("## Start-up, {pairs} interleaved rounds, {cold} cold starts\n");
    let mut lab = Lab::start(&folder.join("lab"), &options.chipbound()?)?;
    let mut rows = Vec::new();
    for subject in subjects(options, folder)? {
        let package = folder.join(format!("{}.package", subject.name));
        run(&mut lab.publish(&subject.program, subject.name, false))?;
        run(&mut lab.buy(subject.name, KeyMode::Direct, Way::Tunnel, &package))?;
        let bare = bare_work(&package, cold)?;
        let cold = cold_starts(&mut lab, &subject, &package, cold)?;
        let [plain, run, direct] = warm_starts(&lab, &subject, &package, pairs)?;
        rows.push(Row { subject, plain, run, direct, cold, bare });
    }
    print(&rows);
    Ok(())
}

/// What is installed of these, and one program with more code than any of them.
fn subjects(options: &Options, folder: &Path) -> Outcome<Vec<Subject>> {
    let mut subjects = Vec::new();
    let mut add = |name, size, program: PathBuf, arguments| {
        if program.exists() {
            subjects.push(Subject { name, size, program, arguments });
        }
    };
    add("true", Size::Small, "/bin/true".into(), &[]);
    add("git", Size::Medium, "/usr/bin/git".into(), &["--version"]);
    add("python3", Size::Medium, "/usr/bin/python3".into(), &["-c", "pass"]);
    if let Some(postgres) = newest_postgres() {
        add("postgres", Size::Large, postgres, &["--version"]);
    }
    if let Ok(root) = output(Command::new("rustc").args(["--print", "sysroot"])) {
        add("cargo", Size::Large, Path::new(&root).join("bin/cargo"), &["--version"]);
    }
    let size = if options.quick { 32 } else { 128 };
    add("made", Size::Large, samples::program(folder, "made", size << 20)?, &[]);
    Ok(subjects)
}

/// Where Debian puts PostgreSQL's server: a folder for each version.
fn newest_postgres() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    versions.filter_map(|entry| Some(entry.ok()?.path().join("bin/postgres"))).filter(|path| path.exists()).max()
}

fn plain(lab: &Lab, subject: &Subject) -> Command {
    by_env(lab, subject, &subject.program)
}

/// The package as a program of its own, started as the plain one is.
fn direct(lab: &Lab, subject: &Subject, package: &Path) -> Command {
    by_env(lab, subject, package)
}

fn by_env(lab: &Lab, subject: &Subject, program: &Path) -> Command {
    let mut command = lab.command("/usr/bin/env");
    command.arg(program).args(subject.arguments);
    command
}

fn protected(lab: &Lab, subject: &Subject, package: &Path) -> Command {
    let mut command = lab.run(package);
    command.args(subject.arguments);
    command
}

fn milliseconds(command: &mut Command) -> Outcome<f64> {
    Ok(run(command)?.wall.as_secs_f64() * 1e3)
}

/// The first start after the processor's: it verifies the whole package and opens all its code.
fn cold_starts(lab: &mut Lab, subject: &Subject, package: &Path, times: usize) -> Outcome<Series> {
    (0..times)
        .map(|_| {
            lab.restart_processor()?;
            milliseconds(&mut protected(lab, subject, package))
        })
        .collect::<Outcome<Vec<_>>>()
        .map(Series::from_iter)
}

/// What nobody who verifies and opens a whole package before its start can do without, everything in memory: its hash and its AEAD.
fn bare_work(package: &Path, rounds: usize) -> Outcome<Series> {
    let mut body = std::fs::read(package)?;
    let layout = Package::read(&body)?.layout;
    body.truncate(usize::try_from(layout.body_size())?);
    opening::bare(&body, usize::try_from(layout.sealed_bytes())?, rounds)
}

/// Rounds of one start of each kind: plain, by `run`, and direct where that works. Who begins changes from round to round.
fn warm_starts(lab: &Lab, subject: &Subject, package: &Path, rounds: usize) -> Outcome<[Series; 3]> {
    let kinds = if run(&mut direct(lab, subject, package)).is_ok() { 3 } else { 2 };
    let mut all = [Series::default(), Series::default(), Series::default()];
    for round in 0..rounds + WARMING {
        for turn in 0..kinds {
            let kind = (round + turn) % kinds;
            let mut command = match kind {
                0 => plain(lab, subject),
                1 => protected(lab, subject, package),
                _ => direct(lab, subject, package),
            };
            let time = milliseconds(&mut command)?;
            if round >= WARMING {
                all[kind].push(time);
            }
        }
    }
    Ok(all)
}

/// Rounds that fill caches.
const WARMING: usize = 3;

fn print(rows: &[Row]) {
    println!("Milliseconds: median [its 95 % interval]; ratios of medians [interval of the ratios of each round].\n");
    let columns = [
        "program",
        "MiB",
        "env",
        "chipbound run",
        "over env",
        "./package by env",
        "over env",
        "cold",
        "over env",
        "env, hash and AEAD, over env",
    ];
    let mut table = Table::new(&columns);
    for Row { subject, plain, run, direct, cold, bare } in rows {
        let size = subject.program.metadata().map_or(0, |m| m.len()) as f64 / f64::from(1 << 20);
        let ratio = |series: &Series| {
            let (low, high) = series.over(plain).interval();
            let ratio = series.median() / plain.median();
            if series.is_empty() { "-".to_owned() } else { format!("{ratio:.2} [{low:.2}-{high:.2}]") }
        };
        table.row([
            std::iter::once(subject.name).chain(subject.arguments.iter().copied()).collect::<Vec<_>>().join(" "),
            format!("{size:.1}"),
            plain.show_interval(2),
            run.show_interval(2),
            ratio(run),
            direct.show_interval(2),
            ratio(direct),
            cold.show_interval(2),
            format!("{:.2}", cold.median() / plain.median()),
            format!("{:.2}", 1.0 + bare.median() / plain.median()),
        ]);
    }
    table.print();
    for Row { subject, plain, run, direct, cold, .. } in rows {
        let (cached, uncached) = subject.size.targets();
        at_most(subject.name, run.median() / plain.median(), cached);
        at_most(&format!("{}, cold", subject.name), cold.median() / plain.median(), uncached);
        if direct.is_empty() {
            println!("{}, direct: not run here: this processor has no interpreter", subject.name);
        } else {
            at_most(&format!("{}, direct", subject.name), direct.median() / plain.median(), cached);
        }
    }
    println!();
}
