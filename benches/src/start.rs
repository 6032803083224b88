//! How long a program takes from its start to its end when it does next to nothing: protected, and started by `env`.

use crate::lab::{KeyMode, Lab, Way};
use crate::process::{output, run};
use crate::stats::{Series, Table, at_most};
use crate::{Options, Outcome, samples};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a protected start may take of a plain one.
const TARGET: f64 = 1.5;

/// A program and arguments with which it ends at once.
struct Subject {
    name: &'static str,
    program: PathBuf,
    arguments: &'static [&'static str],
}

/// Measures and prints.
pub(crate) fn measure(options: &Options, folder: &Path) -> Outcome<()> {
    let pairs = options.rounds().unwrap_or(if options.quick { 50 } else { 300 });
    let cold = if options.quick { 3 } else { 15 };
    println!("## Start-up, {pairs} interleaved pairs, {cold} cold starts\n");
    let mut lab = Lab::start(&folder.join("lab"), &options.chipbound()?)?;
    let mut rows = Vec::new();
    for subject in subjects(options, folder)? {
        let package = folder.join(format!("{}.package", subject.name));
        run(&mut lab.publish(&subject.program, subject.name, false))?;
        run(&mut lab.buy(subject.name, KeyMode::Direct, Way::Tunnel, &package))?;
        let first = cold_starts(&mut lab, &subject, &package, cold)?;
        let (plain, protected) = warm_starts(&lab, &subject, &package, pairs)?;
        rows.push((subject, plain, protected, first));
    }
    print(&rows);
    Ok(())
}

/// What is installed of these, and one program with more code than any of them.
fn subjects(options: &Options, folder: &Path) -> Outcome<Vec<Subject>> {
    let mut subjects = Vec::new();
    let mut add = |name, program: PathBuf, arguments| {
        if program.exists() {
            subjects.push(Subject { name, program, arguments });
        }
    };
    add("true", "/bin/true".into(), &[]);
    add("git", "/usr/bin/git".into(), &["--version"]);
    add("python3", "/usr/bin/python3".into(), &["-c", "pass"]);
    if let Ok(root) = output(Command::new("rustc").args(["--print", "sysroot"])) {
        add("cargo", Path::new(&root).join("bin/cargo"), &["--version"]);
    }
    let size = if options.quick { 32 } else { 128 };
    add("made", samples::program(folder, "made", size << 20)?, &[]);
    Ok(subjects)
}

fn plain(subject: &Subject) -> Command {
    let mut command = Command::new("/usr/bin/env");
    command.arg(&subject.program).args(subject.arguments);
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

/// Pairs of starts, the order in a pair changing every time.
fn warm_starts(lab: &Lab, subject: &Subject, package: &Path, pairs: usize) -> Outcome<(Series, Series)> {
    let (mut unprotected, mut started) = (Series::default(), Series::default());
    for pair in 0..pairs + 2 {
        let (mut a, mut b) = (plain(subject), protected(lab, subject, package));
        let (a, b) = if pair % 2 == 0 {
            let a = milliseconds(&mut a)?;
            (a, milliseconds(&mut b)?)
        } else {
            let b = milliseconds(&mut b)?;
            (milliseconds(&mut a)?, b)
        };
        // The first two fill caches.
        if pair >= 2 {
            unprotected.push(a);
            started.push(b);
        }
    }
    Ok((unprotected, started))
}

fn print(rows: &[(Subject, Series, Series, Series)]) {
    let mut table = Table::new(&[
        "program",
        "code and data, MiB",
        "env, ms",
        "chipbound run, ms",
        "ratio of medians",
        "ratio pairwise",
        "cold, ms",
        "cold over env",
    ]);
    for (subject, plain, protected, cold) in rows {
        let size = subject.program.metadata().map_or(0, |m| m.len()) as f64 / f64::from(1 << 20);
        table.row([
            std::iter::once(subject.name).chain(subject.arguments.iter().copied()).collect::<Vec<_>>().join(" "),
            format!("{size:.1}"),
            plain.show(2),
            protected.show(2),
            format!("{:.2}", protected.median() / plain.median()),
            protected.over(plain).show(2),
            cold.show(2),
            format!("{:.2}", cold.median() / plain.median()),
        ]);
    }
    table.print();
    for (subject, plain, protected, _) in rows {
        at_most(subject.name, protected.median() / plain.median(), TARGET);
    }
    println!();
}
