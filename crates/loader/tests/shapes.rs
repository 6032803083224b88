//! Programs of every shape that linkers make run under the loader as they run plainly.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use chipbound_loader::LOADER_VARIABLES;
use common::{Case, text};

const HELLO: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int data[4000] = {1, 2, 3};
static char bss[100000];
const char *names[] = {"alpha", "beta", "gamma"};
int main(int argc, char **argv) {
    for (unsigned i = 0; i < sizeof bss; i++) if (bss[i]) return 99;
    memset(bss, 1, sizeof bss);
    char *p = malloc(1000000); memset(p, 7, 1000000);
    printf("%s %s %d %d %d %s\n", names[argc % 3], argv[1], data[2], bss[99999], p[999999], getenv("HOME") ? "home" : "none");
    fprintf(stderr, "done\n");
    return 42;
}"#;

fn compiled(name: &str, source: &str, flags: &[&str]) {
    if let Some(case) = Case::compiled(name, source, flags) {
        case.same(&["argument"]);
    }
}

#[test]
fn a_dynamic_pie_runs_as_plain() {
    compiled("pie", HELLO, &["-pie", "-fPIE"]);
}

#[test]
fn a_program_at_a_fixed_address_runs_as_plain() {
    compiled("fixed", HELLO, &["-no-pie", "-fno-pie"]);
}

#[test]
fn a_static_program_runs_as_plain() {
    compiled("static", HELLO, &["-static", "-no-pie", "-fno-pie"]);
}

#[test]
fn a_static_pie_runs_as_plain() {
    compiled("static-pie", HELLO, &["-static-pie", "-fPIE"]);
}

#[test]
fn code_in_the_segment_of_the_headers_runs_as_plain() {
    compiled("joined", HELLO, &["-pie", "-fPIE", "-Wl,-z,noseparate-code"]);
    compiled("joined-static", HELLO, &["-static", "-no-pie", "-fno-pie", "-Wl,-z,noseparate-code"]);
}

#[test]
fn full_relro_and_eager_binding_run_as_plain() {
    compiled("relro", HELLO, &["-pie", "-fPIE", "-Wl,-z,relro,-z,now"]);
    compiled("norelro", HELLO, &["-pie", "-fPIE", "-Wl,-z,norelro,-z,lazy"]);
}

#[test]
fn an_executable_stack_stays_one() {
    let source = r#"
#include <stdio.h>
int main(void) { volatile unsigned char code[] = {0xb8, 7, 0, 0, 0, 0xc3}; int (*f)(void) = (void *)code; printf("%d\n", f()); }"#;
    compiled("execstack", source, &["-Wl,-z,execstack"]);
}

#[test]
fn a_program_without_a_writable_segment_runs_as_plain() {
    let source = r#"
__asm__(".globl _start\n_start: mov $1,%eax\n mov $1,%edi\n lea text(%rip),%rsi\n mov $6,%edx\n syscall\n"
        "mov $231,%eax\n mov $5,%edi\n syscall\n .section .rodata\ntext: .ascii \"plain\\n\"\n");"#;
    compiled("readonly", source, &["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"]);
}

#[test]
fn a_program_of_one_writable_segment_without_its_headers_runs_as_plain() {
    let source = r#"
__asm__(".globl _start\n_start: mov $1,%eax\n mov $1,%edi\n lea text(%rip),%rsi\n mov $6,%edx\n syscall\n incl counter(%rip)\n"
        "mov $231,%eax\n mov counter(%rip),%edi\n syscall\n .section .rodata\ntext: .ascii \"plain\\n\"\n .data\ncounter: .long 4\n");"#;
    compiled("omagic", source, &["-nostdlib", "-static", "-no-pie", "-Wl,-N", "-Wl,--build-id=none"]);
}

/// As klibc's programs are: their interpreter is the whole library, linked to an address of its own.
#[test]
fn an_interpreter_at_a_fixed_address_runs_as_plain() {
    let library = r#"
__asm__(".globl _start\n_start: mov %rsp,%rdi\n call entry\n jmp *%rax\n");
long entry(long *s) { s += *s + 2; while (*s++); while (*s != 9) s += 2; return s[1]; }"#;
    let flags = ["-nostdlib", "-static", "-no-pie", "-Wl,-Ttext-segment=0x10000000", "-Wl,--build-id=none"];
    let Some(library) = Case::compiled("library", library, &flags) else { return };
    let source = r#"
__asm__(".section .interp,\"a\"\n .string \"LIBRARY\"\n .text\n.globl _start\n_start: mov $1,%eax\n mov $1,%edi\n lea text(%rip),%rsi\n"
        "mov $6,%edx\n syscall\n mov $231,%eax\n mov $5,%edi\n syscall\n .section .rodata\ntext: .ascii \"plain\\n\"\n");"#;
    let source = source.replace("LIBRARY", library.path.to_str().unwrap());
    compiled("client", &source, &["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"]);
}

#[test]
fn threads_run_as_plain() {
    let source = r#"
#include <pthread.h>
#include <stdio.h>
static __thread int own = 5; static _Atomic int sum;
static void *work(void *n) { own += (long)n; for (int i = 0; i < 10000; i++) sum += own; return 0; }
int main(void) { pthread_t t[8]; for (long i = 0; i < 8; i++) pthread_create(t + i, 0, work, (void *)i);
    for (int i = 0; i < 8; i++) pthread_join(t[i], 0); printf("%d\n", sum); }"#;
    compiled("threads", source, &["-pthread"]);
    compiled("threads-static", source, &["-pthread", "-static"]);
}

#[test]
fn resolvers_and_constructors_run_as_plain() {
    let source = r#"
#include <stdio.h>
static int fast(void) { return 11; }
static void *choose(void) { return fast; }
int chosen(void) __attribute__((ifunc("choose")));
static int order;
__attribute__((constructor(101))) static void first(void) { order = order * 10 + 1; }
__attribute__((constructor(102))) static void second(void) { order = order * 10 + 2; }
__attribute__((destructor)) static void last(void) { puts("bye"); }
int main(void) { printf("%d %d\n", chosen(), order); return 0; }"#;
    compiled("ifunc", source, &[]);
    compiled("ifunc-static", source, &["-static"]);
    compiled("ifunc-static-pie", source, &["-static-pie", "-fPIE"]);
}

#[test]
fn text_relocations_run_as_plain() {
    let source = r#"
#include <stdio.h>
const char message[] = "relocated";
__asm__(".text\n.globl pointer\n.type pointer,@object\npointer: .quad message\n.size pointer,8\n");
extern const char *const pointer;
int main(void) { const char *const *volatile p = &pointer; printf("%s\n", *p); }"#;
    compiled("textrel", source, &["-fPIE", "-pie", "-Wl,-z,notext"]);
}

#[test]
fn the_program_sees_its_original_headers() {
    let source = r#"
#define _GNU_SOURCE
#include <link.h>
#include <stdio.h>
static int show(struct dl_phdr_info *i, size_t n, void *d) {
    if (*(int *)d) return 0; *(int *)d = 1;
    for (int k = 0; k < i->dlpi_phnum; k++) printf("%x %x %lx\n", i->dlpi_phdr[k].p_type, i->dlpi_phdr[k].p_flags, i->dlpi_phdr[k].p_memsz);
    return 0; }
int main(void) { int done = 0; dl_iterate_phdr(show, &done); }"#;
    compiled("headers", source, &[]);
    compiled("headers-static", source, &["-static"]);
}

#[test]
fn unwinding_runs_as_plain() {
    let source = r#"
#include <execinfo.h>
#include <stdio.h>
__attribute__((noinline)) static int deep(int n) { void *f[64]; if (n) return deep(n - 1) + 1; return backtrace(f, 64) > 8 ? 100 : 0; }
int main(void) { printf("%d\n", deep(10)); }"#;
    compiled("unwind", source, &["-fno-optimize-sibling-calls"]);
}

#[test]
fn pages_that_the_program_gives_up_come_back() {
    let source = r#"
#include <stdio.h>
#include <sys/mman.h>
extern char __executable_start, etext;
int main(void) { char *s = &__executable_start; int r = madvise(s, &etext - s, MADV_DONTNEED); printf("%d\n", r); }"#;
    compiled("dontneed", source, &["-no-pie", "-fno-pie"]);
}

#[test]
fn children_of_every_kind_run_as_plain() {
    let source = r#"
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
extern char **environ;
int main(void) {
    int status; fflush(stdout);
    if (!fork()) { if (!fork()) { write(1, "grandchild\n", 11); _exit(0); } wait(0); _exit(3); }
    wait(&status); printf("fork %d\n", WEXITSTATUS(status)); fflush(stdout);
    if (!vfork()) { execl("/bin/echo", "echo", "vfork", (char *)0); _exit(1); }
    wait(&status);
    pid_t pid; char *args[] = {"echo", "spawn", 0}; posix_spawn(&pid, "/bin/echo", 0, 0, args, environ);
    waitpid(pid, &status, 0); printf("spawn %d\n", status); fflush(stdout);
    execl("/bin/echo", "echo", "exec", (char *)0); return 9; }"#;
    compiled("children", source, &[]);
}

#[test]
fn a_rust_program_runs_as_plain() {
    Case::of(std::env::current_exe().unwrap()).same(&["--list"]);
}

#[test]
fn arguments_environment_and_folder_are_the_callers() {
    let source = r#"
#include <limits.h>
#include <stdio.h>
#include <unistd.h>
extern char **environ;
int main(int argc, char **argv) { char d[PATH_MAX], e[PATH_MAX] = {0}; int n = 0; for (char **p = environ; *p; p++) n++;
    printf("%d %s %s %d\n", argc, argv[0], argv[argc - 1], n); readlink("/proc/self/exe", e, sizeof e - 1); puts(getcwd(d, sizeof d)); puts(e); }"#;
    let Some(case) = Case::compiled("seen", source, &[]) else { return };
    let many: Vec<String> = (0..3000).map(|n| format!("argument number {n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    case.same(&many);
    compiled("seen", source, &[]);
}

#[test]
fn a_small_stack_is_enough() {
    let Some(case) = Case::compiled("small", HELLO, &[]) else { return };
    case.seal();
    let client = common::Client::spawn(&case, &["x"], "ulimit -s 64;");
    client.start(&case.image()).unwrap();
    let output = client.output();
    assert_eq!((text(&output.stderr).as_str(), output.status.code()), ("done\n", Some(42)));
}

#[test]
fn loader_variables_can_be_taken_away() {
    let source = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
extern char **environ;
int main(void) { for (char **p = environ; *p; p++) if (strstr(*p, "LD_") == *p || strstr(*p, "MINE") == *p || strstr(*p, "GLIBC") == *p) puts(*p);
    printf("%d %d\n", getauxval(AT_PAGESZ) == 4096, getauxval(AT_RANDOM) != 0); }"#;
    for flags in [&[][..], &["-static"]] {
        let Some(case) = Case::compiled("variables", source, flags) else { return };
        case.seal();
        let set = "unset LD_LIBRARY_PATH; export LD_PRELOAD=/no/such.so LD_BIND_NOW=1 MINE_LD_=kept GLIBC_TUNABLES=glibc.malloc.check=0;";
        let client = common::Client::spawn(&case, &[], set);
        let mut at = client.at_exec().unwrap();
        assert_eq!(at.drop_variables(LOADER_VARIABLES).unwrap(), 3);
        assert_eq!(at.drop_variables(LOADER_VARIABLES).unwrap(), 0);
        at.complete(&case.image()).unwrap();
        let output = client.output();
        // The shells of the client have noticed the variables; the program has not.
        assert_eq!(text(&output.stdout), "MINE_LD_=kept\n1 1\n");
    }
}

#[test]
fn registers_and_stack_are_given_back_as_they_were() {
    let source = r#"
__asm__(".globl _start\n_start: or %rbx,%rax\n or %rcx,%rax\n or %rdx,%rax\n or %rsi,%rax\n or %rdi,%rax\n or %rbp,%rax\n"
        "or %r8,%rax\n or %r9,%rax\n or %r10,%rax\n or %r11,%rax\n or %r12,%rax\n or %r13,%rax\n or %r14,%rax\n or %r15,%rax\n"
        "mov $1,%edi\n lea dirty(%rip),%rsi\n mov $1023,%ecx\n"
        "again: or -8192(%rsp,%rcx,8),%rax\n dec %ecx\n jns again\n"
        "test %rax,%rax\n jnz say\n lea clean(%rip),%rsi\n"
        "say: mov $1,%eax\n mov $6,%edx\n syscall\n mov $231,%eax\n xor %edi,%edi\n syscall\n"
        ".section .rodata\nclean: .ascii \"clean\\n\"\ndirty: .ascii \"dirty\\n\"\n");"#;
    let Some(case) = Case::compiled("registers", source, &["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"]) else { return };
    assert_eq!(text(&case.plain(&[]).stdout), "clean\n", "the kernel gives them so");
    case.seal();
    assert_eq!(text(&case.helped(&[]).stdout), "clean\n", "the loader gives them back so");
    let client = common::Client::spawn(&case, &[], "");
    let mut at = client.at_exec().unwrap();
    at.one_by_one();
    at.complete(&case.image()).unwrap();
    assert_eq!(text(&client.output().stdout), "clean\n", "call by call as well");
}

#[test]
fn the_kernels_own_code_in_the_process_is_as_it_was() {
    let source = r#"
#include <stdio.h>
#include <sys/auxv.h>
int main(void) { const unsigned char *v = (void *)getauxval(AT_SYSINFO_EHDR); unsigned long sum = 0;
    for (int i = 0; i < 4096; i++) sum = sum * 31 + v[i]; printf("%lx %.3s\n", sum, v + 1); }"#;
    compiled("vdso", source, &[]);
}

/// More segments than one script of calls maps.
#[test]
fn a_program_of_forty_segments_runs_as_plain() {
    let count = 40;
    let data: String = (0..count).map(|n| format!("__attribute__((section(\"s{n}\"))) int v{n} = {n};\n")).collect();
    let sum: Vec<String> = (0..count).map(|n| format!("v{n}")).collect();
    let source = format!("#include <stdio.h>\n{data}int main(void) {{ printf(\"%d\\n\", {}); }}", sum.join(" + "));
    let starts: Vec<String> = (0..count).map(|n| format!("-Wl,--section-start=s{n}={:#x}", 0x1000_0000 + n * 0x10_0000)).collect();
    let mut flags: Vec<&str> = vec!["-no-pie", "-fno-pie", "-O0"];
    flags.extend(starts.iter().map(String::as_str));
    let Some(case) = Case::compiled("segments", &source, &flags) else { return };
    case.same(&[]);
    assert_eq!(text(&case.helped(&[]).stdout), "780\n");
}
