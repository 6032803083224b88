//! What a second instance of a program costs in memory.

use crate::lab::Lab;
use crate::process::{Daemon, run};
use crate::running::protect;
use crate::stats::{Table, at_most};
use crate::{Options, Outcome, failed, samples};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What a second instance may add to the machine's shared and its own anonymous memory, as a part of the code.
const TARGET: f64 = 0.05;
/// Bytes of a KiB, in which the kernel counts.
const KIB: f64 = 1024.0;

/// Reads all its code, so that every page of it is mapped, says so, and waits.
const WAIT: &str = r#"
#include <stdio.h>
#include <unistd.h>
extern char code_begin[], code_end[];
int main(void) {
    unsigned sum = 0;
    for (volatile char *p = code_begin; p < code_end; p += 4096) sum += *p;
    printf("ready %u\n", sum);
    fflush(stdout);
    pause();
}"#;

/// Memory that one more instance brought, MiB.
struct Costs {
    /// Of the machine: shared memory (`Shmem`).
    shared: f64,
    /// Of the process: `RssAnon`.
    own: f64,
    /// Of the process: `RssShmem`, which others may have as well.
    mapped: f64,
}

/// Measures and prints.
pub(crate) fn measure(options: &Options, folder: &Path, lab: &Lab) -> Outcome<()> {
    let code = if options.quick { 16_u64 } else { 64 };
    println!("## Memory of two instances of a program with {code} MiB of code, all of it touched, MiB\n");
    let (filler, source, assembly, program) = (folder.join("wait.bin"), folder.join("wait.c"), folder.join("wait.s"), folder.join("wait"));
    samples::random_file(&filler, code << 20)?;
    fs::write(&source, WAIT)?;
    fs::write(
        &assembly,
        format!(
            ".section .note.GNU-stack,\"\",@progbits\n.section .text\n.p2align 12\n.globl code_begin,code_end\ncode_begin:\n.incbin \"{}\"\ncode_end:\n",
            filler.display()
        ),
    )?;
    run(Command::new("cc").arg("-O1").arg("-o").args([&program, &source, &assembly]))?;
    let package = protect(lab, &program, "wait")?;
    let mut table =
        Table::new(&["way", "instance", "shared memory of the machine", "anonymous memory of the process", "shared memory it maps"]);
    let mut second = 0.0;
    for way in ["sealed-memfd", "anonymous"] {
        let (first, one) = instance(lab, way, &package, folder)?;
        let (next, two) = instance(lab, way, &package, folder)?;
        drop((first, next));
        for (number, costs) in [("first", &one), ("second", &two)] {
            let mib = |value: f64| format!("{value:.1}");
            table.row([way.to_owned(), number.to_owned(), mib(costs.shared), mib(costs.own), mib(costs.mapped)]);
        }
        if way == "sealed-memfd" {
            second = two.shared + two.own;
        }
    }
    table.print();
    at_most("sealed-memfd, memory of the second instance over the code", second / code as f64, TARGET);
    println!();
    Ok(())
}

/// Starts one instance and looks at what it costs.
fn instance(lab: &Lab, way: &str, package: &Path, folder: &Path) -> Outcome<(Daemon, Costs)> {
    let before = field("/proc/meminfo", "Shmem")?;
    let running = Daemon::start(&mut lab.run_as(way, package), &folder.join("wait.log"))?;
    let status = format!("/proc/{}/status", running.pid());
    let costs =
        Costs { shared: field("/proc/meminfo", "Shmem")? - before, own: field(&status, "RssAnon")?, mapped: field(&status, "RssShmem")? };
    Ok((running, costs))
}

/// A line of a file in /proc that counts in KiB; in MiB.
fn field(path: &str, name: &str) -> Outcome<f64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(number.ok_or_else(|| failed(format!("{path} has no {name}")))? / KIB)
}
