//! How long a program takes from its start to its end when it does next to nothing: started by `env`, by `chipbound run`, and as the
//! package itself, where the processor has an interpreter for that.

use crate::cold::{Cold, cold_starts};
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
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    size: Size,
    pub(crate) program: PathBuf,
    arguments: &'static [&'static str],
}

/// What was measured of one.
struct Row {
    subject: Subject,
    plain: Series,
    run: Series,
    direct: Series,
    cold: Cold,
    /// The hash and the AEAD alone.
    bare: Series,
}

/// Measures and prints.
pub(crate) fn measure(options: &Options, folder: &Path) -> Outcome<()> {
    let pairs = options.rounds().unwrap_or(if options.quick { 50 } else { 300 });
    let cold = if options.quick { 3 } else { 31 };
    println!("## Start-up, {pairs} interleaved rounds, {cold} of cold starts\n");
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
pub(crate) fn subjects(options: &Options, folder: &Path) -> Outcome<Vec<Subject>> {
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

pub(crate) fn by_env(lab: &Lab, subject: &Subject, program: &Path) -> Command {
    let mut command = lab.command("/usr/bin/env");
    command.arg(program).args(subject.arguments);
    command
}

pub(crate) fn protected(lab: &Lab, subject: &Subject, package: &Path) -> Command {
    let mut command = lab.run(package);
    command.args(subject.arguments);
    command
}

pub(crate) fn milliseconds(command: &mut Command) -> Outcome<f64> {
    Ok(run(command)?.wall.as_secs_f64() * 1e3)
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
    print_warm(rows);
    print_cold(rows);
    for Row { subject, plain, run, direct, cold, .. } in rows {
        let (cached, uncached) = subject.size.targets();
        let name = subject.name;
        at_most(name, run.median() / plain.median(), cached);
        at_most(&format!("{name}, cold, files not in the page cache on either side"), cold.over_plain(), uncached);
        at_most(&format!("{name}, first start, files in the page cache"), cold.first.median() / plain.median(), uncached);
        if direct.is_empty() {
            println!("{name}, direct: not run here: this processor has no interpreter");
        } else {
            at_most(&format!("{name}, direct"), direct.median() / plain.median(), cached);
        }
    }
    println!();
}

/// With the processor's memory of the program.
fn print_warm(rows: &[Row]) {
    let mut table = Table::new(&["program", "MiB", "env", "chipbound run", "over env", "./package by env", "over env"]);
    for Row { subject, plain, run, direct, .. } in rows {
        let size = subject.program.metadata().map_or(0, |m| m.len()) as f64 / f64::from(1 << 20);
        table.row([
            std::iter::once(subject.name).chain(subject.arguments.iter().copied()).collect::<Vec<_>>().join(" "),
            format!("{size:.1}"),
            plain.show_interval(2),
            run.show_interval(2),
            ratio(run, plain),
            direct.show_interval(2),
            ratio(direct, plain),
        ]);
    }
    table.print();
}

/// Without it.
fn print_cold(rows: &[Row]) {
    println!(
        "Each after the processor's own start; *cold*: files not in the page cache on either side; *first*: files in the page cache.\n"
    );
    let columns = ["program", "env, cold", "chipbound run, cold", "over env, cold", "first", "over env", "env, hash and AEAD, over env"];
    let mut table = Table::new(&columns);
    for Row { subject, plain, cold, bare, .. } in rows {
        table.row([
            subject.name.to_owned(),
            cold.plain.show_interval(2),
            cold.run.show_interval(2),
            ratio(&cold.run, &cold.plain),
            cold.first.show_interval(2),
            format!("{:.2}", cold.first.median() / plain.median()),
            format!("{:.2}", 1.0 + bare.median() / plain.median()),
        ]);
    }
    table.print();
}

/// Ratio of medians, and the interval of the ratios of each round.
fn ratio(series: &Series, plain: &Series) -> String {
    let (low, high) = series.over(plain).interval();
    let ratio = series.median() / plain.median();
    if series.is_empty() { "-".to_owned() } else { format!("{ratio:.2} [{low:.2}-{high:.2}]") }
}
