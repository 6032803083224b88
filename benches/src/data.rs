//! What protection costs a program where it asks for something while it runs: its data, and a library that it loads. And what a start
//! spends on the vendor's profile.

use crate::cold::forget;
use crate::lab::{KeyMode, Lab, Way};
use crate::process::{output, run};
use crate::running::protect;
use crate::stats::{Series, Table};
use crate::{Options, Outcome, failed, samples, start};
use chipbound_sealing::Layout;
use chipbound_wire::suite::Profile;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Bytes of the data: this many times a large file, where nothing else is measured beside it.
const LARGE_FILES: u64 = 8;
/// Reads of 4 KiB at random.
const RANDOM_READS: &str = "20000";
/// Bytes of code of the library.
const LIBRARY: u64 = 1 << 20;

/// Reads the file that `DATA` names: its first byte, all of it, or 4 KiB at places of which none follows from the last; and prints the
/// nanoseconds and the bytes.
const READ: &str = r#"
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv) {
    static char buffer[1 << 20]; struct timespec a, b; long bytes = 0, got; uint64_t x = 88172645463325252u;
    int fd = open(getenv("DATA"), O_RDONLY); off_t size = lseek(fd, 0, SEEK_END);
    if (fd < 0 || size < 4096) return 1;
    if (!strcmp(argv[1], "first")) return pread(fd, buffer, 1, 0) != 1;
    clock_gettime(CLOCK_MONOTONIC, &a);
    if (!strcmp(argv[1], "all")) {
        while ((got = pread(fd, buffer, sizeof buffer, bytes)) > 0) bytes += got;
        if (got || bytes != size) return 1;
    } else for (long i = atol(argv[2]); i; i--, bytes += 4096) {
        x ^= x << 13; x ^= x >> 7; x ^= x << 17;
        if (pread(fd, buffer, 4096, x % (uint64_t)(size / 4096) * 4096) != 4096) return 1;
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    printf("%ld %ld\n", (b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec, bytes);
    return 0;
}"#;

/// Loads a library, calls it, and prints the nanoseconds that loading took.
const LOAD: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#include <time.h>
int main(int argc, char **argv) {
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    void *library = dlopen(argv[1], RTLD_NOW);
    clock_gettime(CLOCK_MONOTONIC, &b);
    int (*far_away)(void) = library ? dlsym(library, "far_away") : 0;
    if (!far_away || far_away() != 42) return 1;
    printf("%ld 0\n", (b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec);
    return 0;
}"#;

/// Measures and prints.
pub(crate) fn measure(options: &Options, folder: &Path) -> Outcome<()> {
    let mut lab = Lab::start(&folder.join("lab"), &options.chipbound()?)?;
    loading(options, folder, &mut lab)?;
    profiles(options, folder)?;
    reading(options, folder, &lab)
}

/// How many bytes the data have.
pub(crate) fn size(options: &Options) -> u64 {
    LARGE_FILES * options.large()
}

/// The bytes that lie on the disk at once: plain, at the server twice, received, and bought.
pub(crate) fn footprint(options: &Options) -> u64 {
    5 * size(options)
}

fn reading(options: &Options, folder: &Path, lab: &Lab) -> Outcome<()> {
    let (rounds, size) = (options.rounds().unwrap_or(3), size(options));
    println!("## Data of {} MiB by `run --with`, {rounds} interleaved rounds, files not in the page cache\n", size >> 20);
    let program = compile(folder, "reads", READ, &[])?;
    let package = protect(lab, &program, "reads")?;
    let (plain, data) = (folder.join("data"), folder.join("data.package"));
    samples::random_file(&plain, size)?;
    run(&mut lab.publish(&plain, "data", true))?;
    run(&mut lab.buy("data", KeyMode::Common, Way::OwnLine, &data))?;
    let by_env = |arguments: &[&str]| {
        let mut command = lab.command("/usr/bin/env");
        command.arg(format!("DATA={}", plain.display())).arg(&program).args(arguments);
        command
    };
    let protected = |arguments: &[&str]| {
        let mut command = lab.run_with(&format!("DATA={}", data.display()), &package);
        command.args(arguments);
        command
    };
    let mut series: [[Series; 2]; 3] = Default::default();
    for _ in 0..rounds {
        for (what, arguments) in [&["first"][..], &["all"], &["random", RANDOM_READS]].into_iter().enumerate() {
            for (side, mut command) in [by_env(arguments), protected(arguments)].into_iter().enumerate() {
                forget(&plain)?;
                forget(&data)?;
                series[what][side].push(match what {
                    0 => start::milliseconds(&mut command)?,
                    1 => said(&mut command).map(|(nanoseconds, bytes)| bytes / nanoseconds)?,
                    _ => said(&mut command).map(|(nanoseconds, bytes)| bytes / 4096.0 / nanoseconds * 1e9)?,
                });
            }
        }
    }
    let mut table = Table::new(&["", "plain file", "package", "package over plain"]);
    for ((what, digits), [plain, package]) in
        [("start to end with the first byte read, ms", 2), ("all of it, GB/s", 2), ("4 KiB at random, reads/s", 0)].into_iter().zip(&series)
    {
        table.row([what.to_owned(), plain.show(digits), package.show(digits), package.over(plain).show(2)]);
    }
    table.print();
    Ok(())
}

fn loading(options: &Options, folder: &Path, lab: &mut Lab) -> Outcome<()> {
    let rounds = options.rounds().unwrap_or(if options.quick { 5 } else { 101 });
    println!("## dlopen of a library with {} MiB of code by a protected program, {rounds} interleaved rounds, µs\n", LIBRARY >> 20);
    let program = compile(folder, "loads", LOAD, &["-ldl"])?;
    let package = protect(lab, &program, "loads")?;
    let plain = samples::library(folder, "library", LIBRARY)?;
    let library = protect(lab, &plain, "library")?;
    let time = |lab: &Lab, library: &Path| Ok::<_, Box<dyn std::error::Error>>(said(lab.run(&package).arg(library))?.0 / 1e3);
    let (mut open, mut opened, mut first) = (Series::default(), Series::default(), Series::default());
    for round in 0..rounds {
        if round % 10 == 0 {
            lab.restart_processor()?;
            time(lab, &plain)?; // The program itself is opened.
            first.push(time(lab, &library)?);
        }
        open.push(time(lab, &plain)?);
        opened.push(time(lab, &library)?);
    }
    let mut table = Table::new(&["plain library", "protected library", "over plain", "protected, first time after the processor's start"]);
    table.row([open.show_interval(0), opened.show_interval(0), opened.over(&open).show(2), first.show_interval(0)]);
    table.print();
    Ok(())
}

/// A layout that shows nothing of what its profile seals is computed anew from the program's headers and compared.
fn profiles(options: &Options, folder: &Path) -> Outcome<()> {
    let rounds = options.rounds().unwrap_or(101);
    println!("## What a first start spends on the vendor's profile, {rounds} rounds, µs\n");
    let mut table = Table::new(&["program", "code", "code+constants"]);
    for subject in start::subjects(options, folder)? {
        let program = fs::read(&subject.program)?;
        let mut cells = vec![subject.name.to_owned()];
        for profile in [Profile::Code, Profile::CodeAndConstants] {
            let layout = Layout::of(profile, &program)?;
            let check = |_| {
                let begun = Instant::now();
                layout.check_profile(profile, &program).map(|()| begun.elapsed().as_secs_f64() * 1e6)
            };
            cells.push((0..rounds).map(check).collect::<Result<Series, _>>()?.show_interval(1));
        }
        table.row::<3>(cells.try_into().map_err(|_| failed("three cells"))?);
    }
    table.print();
    Ok(())
}

fn compile(folder: &Path, name: &str, source: &str, more: &[&str]) -> Outcome<PathBuf> {
    let (code, program) = (folder.join(format!("{name}.c")), folder.join(name));
    fs::write(&code, source)?;
    run(Command::new("cc").arg("-O2").arg("-o").args([&program, &code]).args(more))?;
    Ok(program)
}

/// The two numbers that a program prints.
fn said(command: &mut Command) -> Outcome<(f64, f64)> {
    let said = output(command)?;
    let mut numbers = said.split(' ').filter_map(|word| word.parse::<f64>().ok());
    numbers.next().zip(numbers.next()).ok_or_else(|| failed(format!("no numbers in: {said}")))
}
