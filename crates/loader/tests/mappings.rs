//! Each way of mapping runs programs as they run plainly, and says what stands in its way where it cannot.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use chipbound_loader::{Mapping, Pid, Tracer, trace_obstacle};
use common::{Case, Client, text};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::geteuid;

/// Code of 8 MiB, of which two places are called, and what the kernel says about the pages it lies on.
const LARGE: &str = r#"
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
__asm__(".text\n.globl first,last\nfirst: mov $40,%eax\n ret\n .skip 8<<20,0x90\nlast: add $2,%edi\n mov %edi,%eax\n ret\n");
int first(void), last(int);
int main(int argc, char **argv) {
    printf("%d\n", last(first()));
    if (argc < 2) return 0;
    char line[4096]; int inside = 0;
    FILE *f = fopen("/proc/self/smaps", "r");
    if (!f) { perror("smaps"); return 1; }
    while (fgets(line, sizeof line, f)) {
        unsigned long a, b;
        if (sscanf(line, "%lx-%lx ", &a, &b) == 2) inside = a <= (unsigned long)first && (unsigned long)first < b;
        else if (inside && (strstr(line, "AnonHugePages") == line || strstr(line, "Anonymous") == line)) fputs(line, stdout);
    }
    return 0;
}"#;

/// Runs the package with its code in anonymous memory.
fn copied(case: &Case, args: &[&str]) -> Output {
    let client = Client::spawn(case, args, "");
    let mut at = client.at_exec().unwrap();
    at.in_huge_pages();
    at.complete(&case.image()).unwrap();
    client.output()
}

/// Runs the executable memory file of a program that lies sealed on the disk.
fn executed(case: &Case, args: &[&str]) -> Output {
    let file = case.image().executable().unwrap();
    Command::new(format!("/proc/self/fd/{}", file.as_raw_fd())).arg0(&case.path).args(args).output().unwrap()
}

#[test]
fn code_in_anonymous_memory_runs_as_plain() {
    for (program, args) in
        [("/bin/ls", &["-la", "/usr"][..]), ("/usr/bin/python3", &["-c", "print(6 * 7)"]), ("/bin/busybox", &["echo", "one"])]
    {
        let Ok(program) = fs::canonicalize(program) else { continue };
        let case = Case::of(program);
        let plain = case.plain(args);
        case.seal();
        let helped = copied(&case, args);
        assert_eq!((text(&helped.stdout), helped.status.code()), (text(&plain.stdout), plain.status.code()));
    }
}

#[test]
fn large_code_lies_on_huge_pages() {
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let Some(case) = Case::compiled("large", LARGE, &[]) else { return };
    case.seal();
    let output = text(&copied(&case, &["show"]).stdout);
    assert!(output.starts_with("42\n"), "{output}");
    if geteuid().is_root() {
        let amount = |field| {
            let line = output.lines().find(|line| line.starts_with(field)).unwrap();
            line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        assert!(amount("Anonymous:") >= 8 << 10, "{output}");
        if enabled.contains("[always]") || enabled.contains("[madvise]") {
            assert!(amount("AnonHugePages:") >= 4 << 10, "{output}");
        }
    }
    assert_eq!(text(&case.helped(&[]).stdout), "42\n");
}

#[test]
fn the_executable_file_of_a_program_runs_as_plain_but_for_its_own_name() {
    if Mapping::MemfdExec.obstacle().is_some() {
        return;
    }
    for (program, args) in
        [("/bin/ls", &["-la", "/usr"][..]), ("/usr/bin/python3", &["-c", "print(6 * 7)"]), ("/bin/busybox", &["echo", "one"])]
    {
        let Ok(program) = fs::canonicalize(program) else { continue };
        let case = Case::of(program);
        let plain = case.plain(args);
        case.seal();
        let file = executed(&case, args);
        assert_eq!((text(&file.stdout), file.status.code()), (text(&plain.stdout), plain.status.code()));
    }
    let named = executed(&Case::of("/bin/readlink"), &["/proc/self/exe"]);
    assert_eq!(text(&named.stdout), "/memfd:chipbound (deleted)\n", "as the documentation says");
}

#[test]
fn another_user_executes_the_file_and_cannot_read_it() {
    if !geteuid().is_root() || Mapping::MemfdExec.obstacle().is_some() {
        println!("not run here: needs root and memory files that can be executed");
        return;
    }
    let case = Case::of("/bin/echo");
    let file = case.image().executable().unwrap();
    fcntl_setfd(&file, FdFlags::empty()).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let script = format!("{path} ran; cat {path}; chmod 755 {path}");
    let output = Command::new("sh").args(["-c", &script]).uid(65534).gid(65534).output().unwrap();
    assert_eq!(text(&output.stdout), "ran\n");
    let said = text(&output.stderr);
    assert_eq!((said.matches("Permission denied").count(), said.matches("not permitted").count()), (1, 1), "{said}");
}

#[test]
fn the_executable_file_cannot_be_changed() {
    let Ok(file) = Case::of("/bin/echo").image().executable() else { return };
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::OpenOptions::new().write(true).open(&path).and_then(|f| f.set_len(0)).unwrap_err();
    fs::write(path, b"changed").unwrap_err();
}

#[test]
fn this_machine_has_the_usual_way() {
    assert_eq!(Mapping::SealedMemfd.obstacle(), None);
    assert_eq!(Mapping::Anonymous.obstacle(), None);
    for way in Mapping::ALL {
        assert_eq!(way.name().parse(), Ok(way));
    }
    "userfaultfd".parse::<Mapping>().unwrap_err();
}

/// The obstacles as a process sees them that `command` starts: this very program, with one test.
fn obstacles(mut command: Command) -> String {
    command.arg(std::env::current_exe().unwrap()).args(["--exact", "says_the_obstacles", "--ignored", "--nocapture"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
#[ignore = "is started by other tests in places where something is forbidden"]
fn says_the_obstacles() {
    for way in Mapping::ALL {
        println!("{way}: {}", way.obstacle().unwrap_or_else(|| "nothing".into()));
    }
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Its answer says that its exec is over: who is traced in the middle of one is no client and dies.
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let pid = Pid::from_child(&child);
    match Tracer::seize(pid) {
        Ok(_) => println!("\ntracing: nothing"),
        Err(error) => {
            let source = std::error::Error::source(&error).unwrap().downcast_ref().unwrap();
            println!("\ntracing: {}", trace_obstacle(pid, source));
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn forbidden_executable_memory_files_are_named_with_their_setting() {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "sh", "-c", "echo 2 >/proc/sys/vm/memfd_noexec && exec \"$@\"", "sh"]);
    if !geteuid().is_root() || !std::path::Path::new("/proc/sys/vm/memfd_noexec").exists() {
        println!("not run here: needs root and a kernel that knows vm.memfd_noexec");
        return;
    }
    let said = obstacles(command);
    assert!(said.contains("memfd-exec: vm.memfd_noexec = 2 forbids"), "{said}");
    assert!(said.contains("sealed-memfd: nothing") && said.contains("anonymous: nothing"), "{said}");
}

/// Runs its arguments under a filter that refuses the system call of its first one.
const FILTER: &str = r#"
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, atoi(argv[1]), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {4, rules};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) { perror("seccomp"); return 1; }
    execvp(argv[2], argv + 2);
    perror(argv[2]);
    return 1;
}"#;

#[test]
fn a_filter_that_forbids_tracing_or_memory_files_is_named() {
    let Some(filter) = Case::compiled("filter", FILTER, &[]) else { return };
    let under = |call: i64| {
        let mut command = Command::new(&filter.path);
        command.arg(call.to_string());
        obstacles(command)
    };
    let said = under(libc::SYS_ptrace);
    assert!(said.contains("tracing: a seccomp filter over the processor forbids ptrace"), "{said}");
    assert!(said.contains("sealed-memfd: nothing"), "{said}");
    let said = under(libc::SYS_memfd_create);
    assert_eq!(said.matches("the kernel gives no memory file: Operation not permitted").count(), 3, "{said}");
    assert!(said.contains("tracing: nothing"), "{said}");
}
