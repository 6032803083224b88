//! Programs whose package names our interpreter: the kernel begins there, and the loader puts what the program's own headers name in
//! its place. They run as plain, and the kernel's books about them say what they would say of the plain program.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use chipbound_loader::{LoadError, OwnInterpreter};
use common::{Case, Client, install, text};
use rustix::process::{Resource, Rlimit, prlimit};

/// The interpreter in a case's folder. Which processor it would ask does not matter here: the loader is there before it runs.
fn interpreter(case: &Case) -> PathBuf {
    let (bytes, path) = (case.dir.path().join("bytes"), case.dir.path().join("interpreter"));
    std::fs::write(&bytes, chipbound_interpreter::INTERPRETER).unwrap();
    install(&bytes, &path);
    path
}

fn start(case: &Case, client: &Client, interpreter: &Path, one_by_one: bool) -> Result<(), LoadError> {
    let mut process = client.at_exec()?;
    process.own_interpreter(Arc::new(OwnInterpreter::open(interpreter)?));
    if one_by_one {
        process.one_by_one();
    }
    process.complete(&case.image()).map(drop)
}

fn run(case: &Case, args: &[&str], before: &str, one_by_one: bool) -> Output {
    let interpreter = interpreter(case);
    case.place(&interpreter);
    let client = Client::spawn(case, args, before);
    start(case, &client, &interpreter, one_by_one).unwrap();
    client.output()
}

/// Runs the program plain, and placed both ways that calls are made, and compares all that a user sees.
fn same(case: &Case, args: &[&str], before: &str) {
    let client = Client::spawn(case, args, before);
    client.go();
    let plain = client.output();
    assert!(!plain.stdout.is_empty(), "{args:?} says nothing, so nothing was compared: {}", text(&plain.stderr));
    for one_by_one in [false, true] {
        let placed = run(case, args, before, one_by_one);
        assert_eq!(text(&placed.stdout), text(&plain.stdout), "stdout of {args:?}: {}", text(&placed.stderr));
        assert_eq!(text(&placed.stderr), text(&plain.stderr), "stderr of {args:?}");
        assert_eq!(placed.status.code(), plain.status.code(), "exit code of {args:?}");
        std::fs::copy(&case.original, case.dir.path().join("again")).unwrap();
    }
}

const LINKS: [(&str, &[&str]); 6] = [
    ("pie", &["-pie", "-fPIE"]),
    ("fixed", &["-no-pie", "-fno-pie"]),
    ("static", &["-static", "-no-pie", "-fno-pie"]),
    ("static-pie", &["-static-pie", "-fPIE"]),
    ("one-segment", &["-pie", "-fPIE", "-Wl,-z,noseparate-code"]),
    ("one-segment-static", &["-static", "-Wl,-z,noseparate-code"]),
];

fn every_link(source: &str, more: &[&str]) {
    for (name, link) in LINKS {
        let Some(case) = Case::compiled(name, source, &[link, more].concat()) else { return };
        same(&case, &["one", "two"], "");
    }
}

#[test]
fn a_program_of_every_link_runs_as_plain() {
    every_link(
        r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static char bss[100000]; static int data[4000] = {1, 2, 3};
int main(int argc, char **argv) { for (unsigned i = 0; i < sizeof bss; i++) if (bss[i]) return 99;
    char *p = malloc(1000000); memset(p, 7, 1000000); printf("%d %s %d %d\n", argc, argv[2], data[2], p[999]); return 42; }"#,
        &[],
    );
}

/// The auxiliary vector on the stack and in /proc, the sizes that the kernel counts, and what lies where.
#[test]
fn the_kernels_books_are_those_of_the_plain_program() {
    let source = r#"
#define _GNU_SOURCE
#include <elf.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
static int show(struct dl_phdr_info *i, size_t n, void *d) {
    printf("%s %d:", i->dlpi_name, i->dlpi_phnum);
    for (int k = 0; k < i->dlpi_phnum; k++) printf(" %x/%x/%lx", i->dlpi_phdr[k].p_type, i->dlpi_phdr[k].p_flags, i->dlpi_phdr[k].p_memsz);
    puts(""); return 0; }
int main(void) {
    char line[4096]; unsigned long pair[2];
    prctl(PR_SET_DUMPABLE, 1); /* As the plain one is: else its /proc is root's. */
    FILE *f = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, f)) if (!strncmp(line, "VmExe", 5) || !strncmp(line, "VmLib", 5)) fputs(line, stdout);
    f = fopen("/proc/self/auxv", "r");
    while (fread(pair, sizeof pair, 1, f) && pair[0]) printf("%lu %d\n", pair[0], getauxval(pair[0]) == pair[1]);
    printf("base %d\n", getauxval(AT_BASE) != 0);
    f = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, f)) if (strstr(line, ".so") || strstr(line, "interpreter")) {
        char *name = strrchr(line, '/'), p[5]; unsigned long a, b, o; sscanf(line, "%lx-%lx %4s %lx", &a, &b, p, &o);
        printf("%lx %s %lx %s", b - a, p, o, name); }
    dl_iterate_phdr(show, 0); }"#;
    every_link(source, &[]);
}

#[test]
fn resolvers_threads_text_relocations_and_children_run_as_plain() {
    every_link(
        r#"
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
static int fast(void) { return 11; }
static void *choose(void) { return fast; }
int chosen(void) __attribute__((ifunc("choose")));
static __thread int own = 5; static _Atomic int sum; static int order;
__attribute__((constructor(101))) static void first(void) { order = order * 10 + 1; }
__attribute__((constructor(102))) static void second(void) { order = order * 10 + 2; }
static void *work(void *n) { own += (long)n; for (int i = 0; i < 1000; i++) sum += own; return 0; }
int main(void) { pthread_t t[4]; for (long i = 0; i < 4; i++) pthread_create(t + i, 0, work, (void *)i);
    for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
    int status; if (!fork()) { if (!vfork()) { execl("/bin/true", "true", (char *)0); _exit(9); } wait(&status); _exit(status); } wait(&status);
    printf("%d %d %d %d\n", chosen(), order, sum, status); }"#,
        &["-pthread"],
    );
    let source = r#"
#include <stdio.h>
const char message[] = "relocated";
__asm__(".text\n.globl pointer\n.type pointer,@object\npointer: .quad message\n.size pointer,8\n");
extern const char *const pointer;
int main(void) { const char *const *volatile p = &pointer; printf("%s\n", *p); }"#;
    let Some(case) = Case::compiled("textrel", source, &["-fPIE", "-pie", "-Wl,-z,notext"]) else { return };
    same(&case, &[], "");
}

#[test]
fn installed_programs_run_as_plain() {
    let programs: [(&str, &[&str]); 5] = [
        ("/bin/ls", &["-d", "/"]),
        ("/usr/bin/python3", &["-c", "import json, sys; print(json.dumps(sys.argv))", "x"]),
        ("/bin/bash", &["-c", "echo $((6 * 7)); ls -d /; (exit 3)"]),
        ("/usr/bin/openssl", &["version"]),
        ("/usr/bin/git", &["--version"]),
    ];
    for (program, args) in programs {
        if Path::new(program).exists() {
            same(&Case::of(std::fs::canonicalize(program).unwrap()), args, "");
        } else {
            println!("{program}: not run here, it is not installed");
        }
    }
}

/// Without a limit of the stack the kernel maps upwards.
#[test]
fn a_process_that_the_kernel_lays_out_upwards_runs_as_plain() {
    same(&Case::of("/bin/ls"), &["-d", "/"], "ulimit -s unlimited;");
}

#[test]
fn a_process_that_may_not_open_the_files_of_a_start_is_refused() {
    let case = Case::of("/bin/ls");
    let interpreter = interpreter(&case);
    case.place(&interpreter);
    for room in [3, 4, 5] {
        let client = Client::spawn(&case, &[], "");
        let mut process = client.at_exec().unwrap();
        process.own_interpreter(Arc::new(OwnInterpreter::open(&interpreter).unwrap()));
        prlimit(Some(client.pid), Resource::Nofile, Rlimit { current: Some(room), maximum: Some(room) }).unwrap();
        let error = process.complete(&case.image()).unwrap_err();
        assert!(matches!(error, LoadError::TooFewDescriptors), "{room}: {error:?}");
        let output = client.output();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(126), 0), "{}", text(&output.stderr));
    }
}

/// Another interpreter than ours, even the same bytes in another file, is not taken for ours.
#[test]
fn a_foreign_interpreter_is_refused() {
    let case = Case::of("/bin/ls");
    let ours = interpreter(&case);
    let foreign = case.dir.path().join("foreign");
    install(&ours, &foreign);
    case.place(&foreign);
    let client = Client::spawn(&case, &[], "");
    assert!(matches!(start(&case, &client, &ours, false), Err(LoadError::ProcessMismatch(_))));
    let output = client.output();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(126), 0));
    // And without any of our own, ours is a foreign one too.
    case.place(&ours);
    let client = Client::spawn(&case, &[], "");
    assert!(matches!(client.start(&case.image()), Err(LoadError::ProcessMismatch(_))));
    assert_eq!(client.output().status.code(), Some(126));
}
