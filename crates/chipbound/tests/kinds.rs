//! Programs of kinds that Debian has few of, built here, go the whole way and run as plain: by another C library, without section
//! headers, with thread-local storage, with libraries found beside them, larger than 200 MB, and with manners of their own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::plain::{built, installed, same_as_plain};
use common::{World, good};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What builds a C program with these flags.
fn cc<'a>(compiler: &'a str, flags: &'a [&'a str]) -> impl FnOnce(&Path, &Path) -> Command + 'a {
    move |from, to| {
        let mut cc = Command::new(compiler);
        cc.args(["-x", "c", "-O1", "-w", "-o"]).arg(to).arg(from).args(flags);
        cc
    }
}

/// The program without its section headers and what follows its last segment, as `sstrip` leaves it.
fn without_sections(program: &Path) -> PathBuf {
    let mut bytes = std::fs::read(program).unwrap();
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let (table, count) = (word(32), usize::from(bytes[56]));
    let end = (0..count).map(|n| table + n * 56).map(|at| word(at + 8) + word(at + 32)).max().unwrap();
    bytes.truncate(end);
    bytes[40..48].fill(0); // e_shoff
    bytes[58..64].fill(0); // e_shentsize, e_shnum, e_shstrndx
    let to = program.with_extension("bare");
    std::fs::write(program.with_extension("bytes"), bytes).unwrap();
    good(Command::new("install").args(["-m", "755"]).arg(program.with_extension("bytes")).arg(&to));
    to
}

#[test]
fn programs_of_another_c_library_run_as_plain() {
    let world = World::start("", 1);
    let musl = installed("/usr/bin/musl-gcc", "musl-tools");
    let musl = musl.to_str().unwrap();
    for (name, flags) in [
        ("musl", &["-pthread"][..]),
        ("musl-fixed", &["-no-pie", "-fno-pie"]),
        ("musl-static", &["-static", "-no-pie", "-fno-pie"]),
        ("musl-static-pie", &["-static-pie", "-fPIE"]),
    ] {
        same_as_plain(&world, "", &built(&world, name, STORAGE, cc(musl, flags)), &[(&["a"], b""), (&[], b"")]);
    }
}

#[test]
fn programs_without_sections_or_symbols_run_as_plain() {
    let world = World::start("", 1);
    for (name, flags) in [
        ("stripped", &["-s"][..]),
        ("bare", &["-s"]),
        ("bare-now", &["-s", "-Wl,-z,now,-z,noseparate-code,--hash-style=sysv"]),
        ("bare-static", &["-s", "-static"]),
        ("bare-relr", &["-s", "-static-pie", "-fPIE", "-Wl,-z,pack-relative-relocs"]),
    ] {
        let mut program = built(&world, name, STORAGE, cc("cc", flags));
        if name.starts_with("bare") {
            program = without_sections(&program);
        }
        same_as_plain(&world, "", &program, &[(&["a"], b""), (&[], b"")]);
    }
}

#[test]
fn libraries_beside_the_program_are_found_linked_and_opened() {
    let world = World::start("", 1);
    for (name, source) in [("liblinked.so", LIBRARY), ("libopened.so", LIBRARY)] {
        let library = built(&world, name, source, cc("cc", &["-shared", "-fPIC"]));
        good(Command::new("cp").arg(&library).arg(world.work(name)));
    }
    let folder = world.folder.path().to_str().unwrap();
    let flags = ["-L", folder, "-llinked", "-Wl,-rpath,$ORIGIN,--enable-new-dtags"];
    let program = built(&world, "opener", OPENER, cc("cc", &flags));
    same_as_plain(&world, "", &program, &[(&["libopened.so"], b""), (&["libnothing.so"], b"")]);
}

#[test]
fn a_program_of_more_than_200_megabytes_runs_as_plain() {
    let world = World::start("", 1);
    let filler = world.folder.path().join("filler");
    std::fs::File::create(&filler).unwrap().set_len(210 << 20).unwrap();
    let source = LARGE.replace("FILLER", filler.to_str().unwrap());
    let program = built(&world, "large", &source, cc("cc", &[]));
    std::fs::remove_file(filler).unwrap();
    assert!(program.metadata().unwrap().len() > 200_000_000);
    same_as_plain(&world, "", &program, &[(&[], b"")]);
}

#[test]
fn signals_limits_tracing_and_code_made_at_run_time_are_as_plain() {
    let world = World::start("", 1);
    for (name, flags) in [("manners", &["-pthread"][..]), ("manners-static", &["-pthread", "-static"])] {
        let program = built(&world, name, MANNERS, cc("cc", flags));
        let calls: Vec<[&str; 1]> = MANNERS.split("is(\"").skip(1).map(|rest| [rest.split('"').next().unwrap()]).collect();
        assert_eq!(calls.len(), 9);
        let calls: Vec<(&[&str], &[u8])> = calls.iter().map(|call| (&call[..], &b""[..])).collect();
        same_as_plain(&world, "", &program, &calls);
    }
}

/// Through the kernel alone: nobody types `chipbound run` for the second of them.
#[test]
fn programs_that_start_themselves_and_other_packages_run_as_plain() {
    let world = World::start("", 1);
    world.publish(Path::new("/bin/echo"), "other", "1", &[]);
    let other = world.buy("other", &[]);
    let other = other.to_str().unwrap();
    for (name, flags) in [("starter", &[][..]), ("starter-static", &["-static"])] {
        let program = built(&world, name, STARTER, cc("cc", flags));
        let calls: [(&[&str], &[u8]); 4] =
            [(&["itself", "3"], b""), (&["spawns", other, "one", "two"], b""), (&["becomes", other, "three"], b""), (&["forks", "5"], b"")];
        same_as_plain(&world, "", &program, &calls);
    }
}

/// Thread-local variables, with and without initial values, aligned further than a page's words.
const STORAGE: &str = r#"
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
static _Thread_local int first = 7;
static _Thread_local _Alignas(256) char block[5000] = "initial";
static _Thread_local long zero;
static int shared;
static void *work(void *n) {
    first += (long)n; zero += first;
    __atomic_fetch_add(&shared, first + zero + block[0] + (int)((uintptr_t)block % 256), __ATOMIC_SEQ_CST);
    return 0;
}
int main(int argc, char **argv) {
    pthread_t t[8];
    for (long n = 0; n < 8; n++) pthread_create(&t[n], 0, work, (void *)n);
    for (int n = 0; n < 8; n++) pthread_join(t[n], 0);
    printf("%d %s %ld %d %s\n", first, block, zero, shared, argc > 1 ? argv[1] : "none");
    return argc;
}"#;

const LIBRARY: &str = r#"
#include <stdio.h>
static _Thread_local int counter = 40;
__attribute__((constructor)) static void begin(void) { puts("library begins"); }
__attribute__((destructor)) static void end(void) { puts("library ends"); }
int next(void) { return ++counter; }"#;

const OPENER: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
int next(void);
int main(int argc, char **argv) {
    printf("%d %d\n", next(), next());
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) { puts("not opened"); return 3; }
    int (*opened)(void) = (int (*)(void))dlsym(library, "next");
    printf("%d %d\n", opened(), opened != next);
    return dlclose(library);
}"#;

const STARTER: &str = r#"
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
extern char **environ;
int main(int argc, char **argv) {
    char left[16]; int status; pid_t pid;
    if (!strcmp(argv[1], "itself")) {
        printf("%s to go\n", argv[2]); fflush(stdout);
        sprintf(left, "%d", atoi(argv[2]) - 1);
        if (atoi(argv[2])) execl("/proc/self/exe", "named otherwise", "itself", left, (char *)0);
        return 6;
    }
    if (!strcmp(argv[1], "spawns")) {
        posix_spawn(&pid, argv[2], 0, 0, argv + 2, environ); waitpid(pid, &status, 0);
        printf("it ended with %d\n", WEXITSTATUS(status)); return 4;
    }
    if (!strcmp(argv[1], "forks")) {
        for (int n = 0; n < atoi(argv[2]); n++) if (!fork()) { execl("/proc/self/exe", "child", "itself", "0", (char *)0); _exit(9); }
        for (int sum = 0; ; ) { if (wait(&status) < 0) return sum; sum += WEXITSTATUS(status); }
    }
    execv(argv[2], argv + 2);
    return 9;
}"#;

const LARGE: &str = r#"
#include <stdio.h>
__asm__(".text\n.globl far\n.p2align 12\n.incbin \"FILLER\"\n.p2align 4\nfar: mov $42, %eax\nret\n");
int far(void);
int main(void) { printf("%d\n", far()); return 0; }"#;

const MANNERS: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
static char stack[65536];
static volatile int ticks;
static sigjmp_buf back;
static void overflowed(int s) { write(1, "on the other stack\n", 19); _exit(7); }
static void ticked(int s) { ticks++; }
static void jump(int s) { siglongjmp(back, 1); }
static int deeper(int n) { volatile char room[4096]; room[0] = n; return deeper(n + 1) + room[0]; }
__attribute__((noinline)) static int five(void) { __asm__(""); return 5; }
static void handle(int s, void (*f)(int)) { struct sigaction a = { .sa_handler = f, .sa_flags = SA_ONSTACK }; sigaction(s, &a, 0); }
static const unsigned char code[] = { 0xb8, 42, 0, 0, 0, 0xc3 };
int main(int argc, char **argv) {
#define is(name) if (!strcmp(argv[1], name))
    is("stack") { stack_t s = { .ss_sp = stack, .ss_size = sizeof stack }; sigaltstack(&s, 0); handle(SIGSEGV, overflowed); return deeper(0); }
    is("timer") { struct itimerval t = { { 0, 2000 }, { 0, 2000 } }; handle(SIGALRM, ticked); setitimer(ITIMER_REAL, &t, 0);
        while (ticks < 20); puts("twenty ticks"); return 0; }
    is("jump") { handle(SIGSEGV, jump); if (!sigsetjmp(back, 1)) *(volatile int *)8 = 1; puts("jumped back"); return 0; }
    is("crash") { *(volatile int *)8 = 1; }
    is("made") { unsigned char *p = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); memcpy(p, code, sizeof code);
        mprotect(p, 4096, PROT_READ | PROT_EXEC); printf("%d\n", ((int (*)(void))p)()); mprotect(p, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
        p[1] = 43; printf("%d\n", ((int (*)(void))p)()); return 0; }
    is("patched") { unsigned char *page = (void *)((unsigned long)five & ~4095UL), *p = (void *)five;
        printf("%d\n", mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC)); memcpy(p, code, sizeof code);
        printf("%d\n", ((int (*volatile)(void))five)()); return 0; }
    is("limits") { struct rlimit r = { 12, 12 }, c = { 0, 0 }, s = { 1 << 20, 1 << 20 }; setrlimit(RLIMIT_NOFILE, &r); setrlimit(RLIMIT_CORE, &c);
        setrlimit(RLIMIT_STACK, &s); int n = 0; while (open("/dev/null", O_RDONLY) >= 0) n++; getrlimit(RLIMIT_STACK, &s);
        printf("%d %lu\n", n, (long)s.rlim_cur); execl("/bin/sh", "sh", "-c", "ulimit -s; ulimit -c", (char *)0); }
    is("traces") { int status; fflush(0); pid_t pid = fork();
        if (!pid) { ptrace(PTRACE_TRACEME, 0, 0, 0); execl("/bin/echo", "echo", "traced", (char *)0); _exit(1); }
        waitpid(pid, &status, 0); struct user_regs_struct r; long got = ptrace(PTRACE_GETREGS, pid, 0, &r);
        printf("%d %ld %d\n", WSTOPSIG(status), got, ptrace(PTRACE_PEEKDATA, pid, r.rip, 0) != -1); fflush(0);
        ptrace(PTRACE_CONT, pid, 0, 0); waitpid(pid, &status, 0); printf("%d\n", WEXITSTATUS(status)); return 0; }
    is("forks") { int status; fflush(0); pid_t pid = fork(); if (!pid) { ptrace(PTRACE_TRACEME, 0, 0, 0); raise(SIGSTOP); _exit(five()); }
        waitpid(pid, &status, 0); struct user_regs_struct r; printf("%d %ld\n", WSTOPSIG(status), ptrace(PTRACE_GETREGS, pid, 0, &r));
        ptrace(PTRACE_CONT, pid, 0, 0); waitpid(pid, &status, 0); printf("%d\n", WEXITSTATUS(status)); return 0; }
    return 99;
}"#;
