//! Programs whose package names our interpreter: the kernel begins there, and the loader puts what the program's own headers name in
//! its place. They run as plain, and the kernel's books about them say what they would say of the plain program.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use chipbound_loader::{LoadError, OwnInterpreter, Started, Tracer};
use common::{Case, Client, install, text};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Resource, Rlimit, prlimit};

/// How the loader comes to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// At its exec.
    AtExec,
    /// At its exec, every call by itself.
    OneByOne,
    /// Where it stands in the interpreter and asks.
    TakenOver,
}

/// The interpreter in a case's folder, asking the socket there.
fn interpreter(case: &Case) -> PathBuf {
    let (bytes, path) = (case.dir.path().join("bytes"), case.dir.path().join("interpreter"));
    let mut written = vec![0; chipbound_interpreter::INTERPRETER.len()];
    let socket = case.dir.path().join("socket");
    chipbound_interpreter::slot::write(chipbound_interpreter::INTERPRETER, socket.as_os_str().as_encoded_bytes(), &mut written).unwrap();
    std::fs::write(&bytes, written).unwrap();
    install(&bytes, &path);
    path
}

/// Answers the interpreter by making its process the program.
fn take_over(case: &Case, client: &Client, interpreter: &Path) -> Result<Started, LoadError> {
    let socket = case.dir.path().join("socket");
    let _ = std::fs::remove_file(&socket); // Of a start before.
    let listener = UnixListener::bind(&socket).unwrap();
    client.go();
    let (mut asking, _) = listener.accept().unwrap();
    let mut length = [0; 4];
    asking.read_exact(&mut length).unwrap();
    let mut request = vec![0; u32::from_be_bytes(length) as usize];
    asking.read_exact(&mut request).unwrap();
    // The path, null, array(2), the numbers of the connection and of the package.
    let [.., 0xf6, 0x82, 0x1a, 0, 0, a, b, 0x1a, 0, 0, c, d] = request[..] else { panic!("{request:?}") };
    let own = [[a, b], [c, d]].map(|number| u16::from_be_bytes(number).into()).to_vec();
    let process = socket_peercred(&asking).unwrap().pid;
    assert_eq!(process, client.pid, "no process in between");
    let tracer = Tracer::seize(process)?;
    tracer.take_over(Arc::new(OwnInterpreter::open(interpreter)?), own, Duration::from_secs(10))?.complete(&case.image())
}

fn start(case: &Case, client: &Client, interpreter: &Path, one_by_one: bool) -> Result<(), LoadError> {
    let mut process = client.at_exec()?;
    process.own_interpreter(Arc::new(OwnInterpreter::open(interpreter)?));
    if one_by_one {
        process.one_by_one();
    }
    process.complete(&case.image()).map(drop)
}

fn run(case: &Case, args: &[&str], before: &str, way: Way) -> Output {
    let interpreter = interpreter(case);
    case.place(&interpreter);
    let client = Client::spawn(case, args, before);
    match way {
        Way::TakenOver => drop(take_over(case, &client, &interpreter).unwrap()),
        _ => start(case, &client, &interpreter, way == Way::OneByOne).unwrap(),
    }
    client.output()
}

/// Runs the program plain, and placed in every way, and compares all that a user sees.
fn same(case: &Case, args: &[&str], before: &str) {
    let client = Client::spawn(case, args, before);
    client.go();
    let plain = client.output();
    assert!(!plain.stdout.is_empty(), "{args:?} says nothing, so nothing was compared: {}", text(&plain.stderr));
    for way in [Way::AtExec, Way::OneByOne, Way::TakenOver] {
        let placed = run(case, args, before, way);
        assert_eq!(text(&placed.stdout), text(&plain.stdout), "{way:?}: stdout of {args:?}: {}", text(&placed.stderr));
        assert_eq!(text(&placed.stderr), text(&plain.stderr), "{way:?}: stderr of {args:?}");
        assert_eq!(placed.status.code(), plain.status.code(), "{way:?}: exit code of {args:?}");
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

/// Open descriptors, blocked and pending signals, and the name of the process.
#[test]
fn nothing_of_the_interpreter_is_left_in_the_process() {
    every_link(
        r#"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
int main(void) { char line[4096]; const char *all = "|Name:|SigPnd:|ShdPnd:|SigBlk:|SigIgn:|SigCgt:|TracerPid:|Threads:|";
    for (int fd = 0; fd < 64; fd++) printf("%d", fcntl(fd, F_GETFD));
    FILE *f = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, f)) { char name[4096] = "|"; sscanf(line, "%s", name + 1); strcat(name, "|"); if (strstr(all, name)) fputs(line, stdout); } }"#,
        &[],
    );
}

/// What the kernel leaves in the registers for the first instruction.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_registers_at_the_first_instruction_are_those_of_a_plain_start() {
    let source = r#"
static struct { unsigned long general[15], flags; unsigned mxcsr; unsigned short control; unsigned char vectors[256]; } seen;
__asm__(".globl _start; _start: lea seen(%rip), %rsp;"
    "mov %rax, (%rsp); mov %rbx, 8(%rsp); mov %rcx, 16(%rsp); mov %rdx, 24(%rsp); mov %rsi, 32(%rsp); mov %rdi, 40(%rsp);"
    "mov %rbp, 48(%rsp); mov %r8, 56(%rsp); mov %r9, 64(%rsp); mov %r10, 72(%rsp); mov %r11, 80(%rsp); mov %r12, 88(%rsp);"
    "mov %r13, 96(%rsp); mov %r14, 104(%rsp); mov %r15, 112(%rsp); stmxcsr 128(%rsp); fnstcw 132(%rsp);"
    "movups %xmm0, 134(%rsp); movups %xmm1, 150(%rsp); movups %xmm7, 166(%rsp); movups %xmm15, 182(%rsp);"
    "mov %rsp, %rbx; lea stack+4096(%rip), %rsp; pushfq; popq 120(%rbx); call show");
static char stack[8192] __attribute__((aligned(16), used));
static long call(long n, long a, const void *b, long c) { long r; __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory"); return r; }
__attribute__((used)) void show(void) { static char text[2 * sizeof seen]; const unsigned char *p = (void *)&seen;
    for (unsigned i = 0; i < sizeof seen; i++) text[2 * i] = "0123456789abcdef"[p[i] >> 4], text[2 * i + 1] = "0123456789abcdef"[p[i] & 15];
    call(1, 1, text, sizeof text); call(231, 0, 0, 0); }"#;
    let flags = ["-nostdlib", "-static", "-no-pie", "-fno-pie", "-fno-stack-protector", "-Wl,--build-id"];
    let Some(case) = Case::compiled("registers", source, &flags) else { return };
    same(&case, &[], "");
}

#[test]
fn a_process_that_stands_elsewhere_is_not_taken_over() {
    let case = Case::of("/bin/ls");
    let interpreter = interpreter(&case);
    let own = Arc::new(OwnInterpreter::open(&interpreter).unwrap());
    case.place(&interpreter);
    // A process that stands elsewhere, the client's shell, ends with what was wrong of it, as it would at its exec.
    let client = Client::spawn(&case, &[], "");
    let stopped = Tracer::seize(client.pid).unwrap().take_over(Arc::clone(&own), Vec::new(), Duration::from_secs(10)).unwrap();
    let error = stopped.complete(&case.image()).unwrap_err();
    assert!(matches!(error, LoadError::ProcessMismatch(_)), "{error:?}");
    let output = client.output();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(126), 0), "{}", text(&output.stderr));
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
