//! The ways of mapping as a user meets them: said by --explain, forced by --mapping, and named with what stands in their way.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound_wire::Code;
use common::{World, good, refused};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Becomes the command, whose processors run under a filter that refuses tracing: the number of ptrace stands in the rules.
fn without_ptrace(folder: &Path) -> Option<PathBuf> {
    let source = format!(
        r#"
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) {{
    struct sock_filter rules[] = {{
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ptrace, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    }};
    struct sock_fprog program = {{4, rules}};
    if (argc > 1 && !strcmp(argv[1], "processor")) {{
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 1;
    }}
    argv[0] = "{0}";
    execv(argv[0], argv);
    return 1;
}}"#,
        common::CHIPBOUND
    );
    let (code, program) = (folder.join("filter.c"), folder.join("chipbound"));
    std::fs::write(&code, source).unwrap();
    match Command::new("cc").arg("-o").arg(&program).arg(&code).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(program)
        }
        Err(_) => {
            println!("not run here: there is no C compiler");
            None
        }
    }
}

/// What a command that succeeds says on stdout.
#[track_caller]
fn text_of(command: &mut Command) -> String {
    String::from_utf8(good(command).stdout).unwrap()
}

fn buy_readlink(world: &World) {
    world.publish(Path::new("/usr/bin/readlink"), "readlink", "1", &[]);
    world.buy("readlink", &[]);
}

#[test]
fn each_way_is_said_and_can_be_forced() {
    let world = World::start("", 1);
    buy_readlink(&world);
    let said = text_of(&mut world.as_user("ada", &["run", "--explain", "./readlink", "-f", "."]));
    let lines: Vec<_> = said.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines, ["way here", "sealed-memfd chosen", "anonymous possible", "memfd-exec possible"], "{said}");
    let said = text_of(&mut world.as_user("ada", &["--json", "run", "--explain", "--mapping", "anonymous", "./readlink"]));
    let here: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&here[0]["here"], &here[1]["here"]), (&"possible".into(), &"chosen".into()), "{said}");

    let package = world.work("readlink").canonicalize().unwrap();
    for (way, exe) in [
        ("sealed-memfd", package.to_str().unwrap()),
        ("anonymous", package.to_str().unwrap()),
        ("memfd-exec", "/memfd:chipbound (deleted)"),
    ] {
        let said = text_of(&mut world.as_user("ada", &["run", "--mapping", way, "./readlink", "/proc/self/exe"]));
        assert_eq!(said, format!("{exe}\n"), "{way}");
    }
    let output = world.as_user("ada", &["run", "--mapping", "userfaultfd", "./readlink"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn loader_variables_go_before_a_memory_file_is_executed_too() {
    let world = World::start("", 1);
    world.publish(Path::new("/bin/dash"), "sh", "1", &[]);
    world.buy("sh", &[]);
    let mut command = world.as_user("ada", &["run", "--mapping", "memfd-exec", "./sh", "-c", "echo ${LD_BIND_NOT-gone} $MINE"]);
    let said = text_of(command.env("LD_BIND_NOT", "1").env("MINE", "kept"));
    assert_eq!(said, "gone kept\n");
}

#[test]
fn without_ptrace_a_memory_file_is_executed_and_the_filter_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let Some(command) = without_ptrace(folder.path()) else { return };
    let world = World::start_by(&command, "", 1);
    buy_readlink(&world);
    let said = text_of(&mut world.as_user("ada", &["run", "./readlink", "/proc/self/exe"]));
    assert_eq!(said, "/memfd:chipbound (deleted)\n");
    let said = text_of(&mut world.as_user("ada", &["run", "--explain", "./readlink"]));
    assert!(said.contains("sealed-memfd  impossible  a seccomp filter over the processor forbids ptrace"), "{said}");
    assert!(said.lines().last().unwrap().starts_with("memfd-exec    chosen"), "{said}");
    let refusal = refused(&mut world.as_user("ada", &["run", "--mapping", "anonymous", "./readlink", "x"]), Code::TraceRefused);
    assert!(refusal.contains("seccomp filter"), "{refusal}");
}
