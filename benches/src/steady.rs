//! How fast a program runs once it has started: one that computes, and one whose code is large and jumps about at random.

use crate::lab::Lab;
use crate::process::{output, run};
use crate::running::protect;
use crate::stats::{Series, Table, at_most};
use crate::{Options, Outcome, failed};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the time of a program that computes may be of the plain one's.
const COMPUTING: f64 = 1.01;
/// What the time of one with large code may be, its code in huge pages.
const JUMPING: f64 = 1.0;

/// A generator of numbers, nothing else. Prints the nanoseconds of CPU that it took.
const COMPUTE: &str = r#"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
int main(int argc, char **argv) {
    long rounds = atol(argv[1]); uint64_t x = 88172645463325252u; struct timespec a, b;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    for (long i = 0; i < rounds; i++) { x ^= x << 13; x ^= x >> 7; x ^= x << 17; x += (uint64_t)i * 0x9e3779b97f4a7c15u; }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
    printf("%ld %d\n", (b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec, (int)(x & 1));
}"#;

/// 65536 functions of 256 bytes, each called by an address that follows from the last one's result. Every function is called once before
/// the clock runs, so that all pages are there.
const JUMP: &str = r#"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
__asm__(".text\n.p2align 12\n.globl all\nall:\n.rept 65536\n lea 7(%rdi,%rdi,4),%rax\n ret\n.p2align 8\n.endr\n");
extern char all[];
typedef uint64_t function(uint64_t);
int main(int argc, char **argv) {
    long rounds = atol(argv[1]); uint64_t x = 1; struct timespec a, b;
    for (long i = 0; i < 65536; i++) x = ((function *)(all + i * 256))(x);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    for (long i = 0; i < rounds; i++) x = ((function *)(all + ((x >> 20) & 65535) * 256))(x) * 0x9e3779b97f4a7c15u;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
    printf("%ld %d\n", (b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec, (int)(x & 1));
}"#;

/// Measures and prints.
pub(crate) fn measure(options: &Options, folder: &Path, lab: &Lab) -> Outcome<()> {
    let rounds = options.rounds().unwrap_or(if options.quick { 3 } else { 21 });
    println!("## Steady state, {rounds} interleaved rounds\n");
    let mut table = Table::new(&["program", "plain, ms", "sealed-memfd, ms", "anonymous, ms", "sealed over plain", "anonymous over plain"]);
    let mut ratios = Vec::new();
    for (name, source, count) in [("computes", COMPUTE, "200000000"), ("random calls in 16 mb", JUMP, "20000000")] {
        let program = compile(folder, name, source)?;
        let package = protect(lab, &program, &name.replace(' ', "-"))?;
        let (mut plain, mut sealed, mut copied) = (Series::default(), Series::default(), Series::default());
        for _ in 0..rounds {
            plain.push(milliseconds(Command::new(&program).arg(count))?);
            sealed.push(milliseconds(lab.run_as("sealed-memfd", &package).arg(count))?);
            copied.push(milliseconds(lab.run_as("anonymous", &package).arg(count))?);
        }
        let ratio = |series: &Series| series.median() / plain.median();
        ratios.push((ratio(&sealed), ratio(&copied)));
        table.row([
            name.to_owned(),
            plain.show(1),
            sealed.show(1),
            copied.show(1),
            sealed.over(&plain).show(3),
            copied.over(&plain).show(3),
        ]);
    }
    table.print();
    at_most("computing, sealed-memfd over plain", ratios[0].0, COMPUTING);
    at_most("random calls in 16 mb, anonymous over plain", ratios[1].1, JUMPING);
    println!();
    Ok(())
}

fn compile(folder: &Path, name: &str, source: &str) -> Outcome<PathBuf> {
    let name = name.replace(' ', "-");
    let (code, program) = (folder.join(format!("{name}.c")), folder.join(&name));
    fs::write(&code, source)?;
    run(Command::new("cc").arg("-O2").arg("-o").args([&program, &code]))?;
    Ok(program)
}

/// What the program says about its own time.
fn milliseconds(command: &mut Command) -> Outcome<f64> {
    let said = output(command)?;
    let nanoseconds = said.split(' ').next().and_then(|word| word.parse::<f64>().ok());
    Ok(nanoseconds.ok_or_else(|| failed(format!("no time in: {said}")))? / 1e6)
}
