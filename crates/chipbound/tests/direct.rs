//! Direct start: a package that was bought or installed is a command like any other. The kernel starts it by the interpreter of this
//! machine's processor, from wherever programs are started, and what runs is the plain program; without its processor it says
//! so, ends with 126, and not one encrypted byte has run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound_wire::Code;
use common::{World, good, json_lines, refused, script};
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Publishes a program and buys it.
fn bought(world: &World, program: &Path, name: &str) -> PathBuf {
    world.publish(program, name, "1", &[]);
    world.buy(name, &[])
}

/// A world with a package of the shell `dash`.
fn with_shell() -> (World, PathBuf) {
    let world = World::start("", 1);
    let shell = bought(&world, Path::new("/bin/dash"), "sh");
    (world, shell)
}

/// Runs a command in ada's folder with an environment of its own.
fn ran(world: &World, mut command: Command) -> Output {
    command.current_dir(world.work("")).env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
    command.stdin(Stdio::null()).output().unwrap()
}

/// The plain program and its package, executed alike, do the same.
#[track_caller]
fn same_as_plain(world: &World, program: &Path, arguments: &[&str]) {
    let name = program.file_name().unwrap().to_str().unwrap();
    let package = bought(world, program, name);
    let mut plain = Command::new(program);
    plain.arg0(&package).args(arguments);
    let plain = ran(world, plain);
    assert!(!plain.stdout.is_empty(), "{name} says nothing, so nothing was compared: {}", text(&plain.stderr));
    let mut direct = Command::new(&package);
    direct.args(arguments);
    let direct = ran(world, direct);
    assert_eq!(text(&direct.stdout), text(&plain.stdout), "{name}: {}", text(&direct.stderr));
    assert_eq!((text(&direct.stderr), direct.status), (text(&plain.stderr), plain.status), "{name}");
}

/// Builds a program in the world's folder; `None`, said so, where the compiler is missing.
fn built(world: &World, name: &str, source: &str, compiler: &[&str]) -> Option<PathBuf> {
    let (from, to) = (world.folder.path().join(name.to_owned() + ".c"), world.folder.path().join(name));
    fs::write(&from, source).unwrap();
    if Command::new(compiler[0]).arg("--version").output().is_err() {
        println!("{name}: not run here, {} is not installed", compiler[0]);
        return None;
    }
    good(Command::new(compiler[0]).args(&compiler[1..]).arg("-w").arg("-o").arg(&to).arg(&from));
    Some(to)
}

/// Says all that a start could get wrong: arguments, environment, data, thread-local storage, constructors, headers, auxiliary vector.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>
extern char **environ;
static __thread int own = 5; static char bss[100000]; static int order;
__attribute__((constructor)) static void early(void) { order++; }
__attribute__((destructor)) static void late(void) { write(1, "bye\n", 4); }
static int show(struct dl_phdr_info *i, size_t n, void *d) { if (*(int *)d) return 0; *(int *)d = 1;
    for (int k = 0; k < i->dlpi_phnum; k++) printf("%x/%x/%lx ", i->dlpi_phdr[k].p_type, i->dlpi_phdr[k].p_flags, i->dlpi_phdr[k].p_memsz);
    return 0; }
int main(int argc, char **argv) { int done = 0;
    for (unsigned i = 0; i < sizeof bss; i++) if (bss[i]) return 99;
    for (int i = 0; i < argc; i++) printf("[%s]", argv[i]);
    for (char **e = environ; *e; e++) printf("{%s}", *e);
    printf("\n%d %d %s %d %d\n", own, order, strrchr((char *)getauxval(AT_EXECFN), '/'), getauxval(AT_SECURE), getauxval(AT_BASE) != 0);
    dl_iterate_phdr(show, &done); puts(""); fflush(stdout); return 42; }
"#;

#[test]
fn every_kind_of_program_starts_directly_as_the_plain_one() {
    let world = World::start("", 1);
    let kinds: [(&str, &[&str]); 8] = [
        ("pie", &["cc"]),
        ("fixed", &["cc", "-no-pie"]),
        ("static", &["cc", "-static"]),
        ("static-pie", &["cc", "-static-pie"]),
        ("one-segment", &["cc", "-Wl,-z,noseparate-code"]),
        ("stripped", &["cc", "-s"]),
        ("musl", &["musl-gcc"]),
        ("musl-static", &["musl-gcc", "-static"]),
    ];
    for (name, compiler) in kinds {
        let Some(program) = built(&world, name, PROGRAM, compiler) else { continue };
        let package = bought(&world, &program, name);
        // Executed under one name, one after the other: AT_EXECFN is the same.
        let plain = world.folder.path().join("plain").join(name);
        fs::create_dir_all(plain.parent().unwrap()).unwrap();
        good(Command::new("cp").args([&program, &plain]));
        let run = |path: &Path| {
            let mut command = Command::new(path);
            command.arg0("zero").args(["one", ""]);
            ran(&world, command)
        };
        let (plain, direct) = (run(&plain), run(&package));
        assert_eq!(plain.status.code(), Some(42), "{name}: {}", text(&plain.stderr));
        assert_eq!(text(&direct.stdout), text(&plain.stdout), "{name}: {}", text(&direct.stderr));
        assert_eq!((text(&direct.stderr), direct.status), (text(&plain.stderr), plain.status), "{name}");
    }
}

#[test]
fn real_programs_start_directly_as_the_plain_ones() {
    let world = World::start("", 1);
    let real: [(&str, &[&str]); 6] = [
        ("/bin/ls", &["-d", "/"]),
        ("/usr/bin/python3", &["-I", "-c", "import sys, subprocess; print(sys.argv, subprocess.run(['true']).returncode); sys.exit(3)"]),
        ("/bin/busybox", &["sh", "-c", "for i in 1 2; do echo $i | md5sum; done; exit 4"]),
        ("/usr/bin/git", &["--version"]),
        ("/usr/bin/openssl", &["version"]),
        ("/usr/bin/perl", &["-e", "print 6 * 7; fork or exit; wait; exit 5"]),
    ];
    for (program, arguments) in real {
        let program = fs::canonicalize(program).unwrap_or_else(|e| panic!("{program}: {e}; ./test installs it"));
        same_as_plain(&world, &program, arguments);
    }
    let source = "package main\nimport (\"fmt\"; \"os\"; \"runtime\")\nfunc main() { c := make(chan int); for i := 0; i < 9; i++ { go func(i int) { runtime.Gosched(); c <- i }(i) }\n s := 0; for i := 0; i < 9; i++ { s += <-c }; fmt.Println(s, os.Args[1:]); os.Exit(6) }\n";
    let (from, to) = (world.folder.path().join("main.go"), world.folder.path().join("goprogram"));
    fs::write(&from, source).unwrap();
    let mut go = Command::new("go");
    go.args(["build", "-o"]).arg(&to).arg(&from).env("HOME", world.folder.path()).env("GOFLAGS", "-mod=mod").env("CGO_ENABLED", "0");
    match go.env("GOCACHE", world.folder.path().join("gocache")).output() {
        Ok(output) if output.status.success() => same_as_plain(&world, &to, &["a", "b"]),
        Ok(output) => panic!("{}", text(&output.stderr)),
        Err(_) => println!("goprogram: not run here, go is not installed"),
    }
    let textrel = r#"
#include <stdio.h>
const char message[] = "relocated";
__asm__(".text\n.globl pointer\n.type pointer,@object\npointer: .quad message\n.size pointer,8\n");
extern const char *const pointer;
int main(void) { const char *const *volatile p = &pointer; printf("%s\n", *p); }"#;
    let program = built(&world, "textrel", textrel, &["cc", "-fPIE", "-pie", "-Wl,-z,notext"]).unwrap();
    same_as_plain(&world, &program, &[]);
}

#[test]
fn a_package_starts_from_wherever_programs_are_started() {
    let (world, shell) = with_shell();
    let shell = shell.to_str().unwrap();
    symlink("sh", world.work("link")).unwrap();
    script(&world.work("script"), &format!("#!{shell} -e\necho \"$0 $1\"; exit 8"));
    let c = r#"
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
extern char **environ;
int main(int n, char **a) { char *args[] = {"sh", "-c", "echo by C; exit 8", 0}, *none[] = {0};
    if (n == 3) { execve(a[1], none, environ); return 1; }
    if (n == 4) { fexecve(open(a[1], O_RDONLY | O_CLOEXEC), args, environ); return 1; }
    pid_t p; int s; if (posix_spawn(&p, a[1], 0, 0, args, environ)) return 1; waitpid(p, &s, 0); return WEXITSTATUS(s); }"#;
    let helper = built(&world, "helper", c, &["cc"]).unwrap();
    let helper = helper.to_str().unwrap();
    let script_path = world.work("script");
    let (name, from_c) = (format!("{}/script 1\n", world.work("").display()), "by C\n");
    let ways: [(&str, &[&str], &str); 9] = [
        ("/bin/sh", &["-c", "./sh -c 'echo direct; exit 8'"], "direct\n"),
        ("/bin/sh", &["-c", "PATH=.:$PATH; sh -c 'echo by PATH; exit 8'"], "by PATH\n"),
        ("/bin/sh", &["-c", "exec ./link -c 'echo linked; exit 8'"], "linked\n"),
        ("/usr/bin/env", &["./sh", "-c", "echo by env; exit 8"], "by env\n"),
        (script_path.to_str().unwrap(), &["1"], &name.replace("//", "/")),
        (helper, &[shell], from_c),
        (helper, &[shell, "fexecve", "it"], from_c),
        // One protected program starts another, and that itself again.
        (shell, &["-c", "./sh -c './sh -c \"echo nested; exit 8\"'"], "nested\n"),
        (shell, &["-c", "exec ./sh -c 'echo in its place; exit 8'"], "in its place\n"),
    ];
    for (program, arguments, said) in ways {
        let mut command = Command::new(program);
        command.args(arguments);
        let output = ran(&world, command);
        assert_eq!((text(&output.stdout).as_str(), output.status.code()), (said, Some(8)), "{arguments:?}: {}", text(&output.stderr));
    }
    // Without a single argument the shell reads its stdin.
    let mut bare = Command::new(helper);
    bare.args([shell, "bare"]);
    let output = ran(&world, bare);
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

#[test]
fn what_the_program_sees_of_its_start_is_nothing() {
    let (world, shell) = with_shell();
    let looks: [&str; 6] = [
        "export -p; set -- \"$@\"; echo $#",
        "ls /proc/$$/fd; umask; ulimit -n",
        "grep -E '^(Name|SigBlk|SigIgn|SigCgt|Threads|TracerPid|NoNewPrivs|Seccomp):' /proc/self/status",
        "trap 'echo caught; exit 3' TERM; kill -TERM $$; sleep 5",
        "cat /proc/$$/comm; pwd; cat",
        "kill -KILL $$",
    ];
    for look in looks {
        let run = |program: &Path| {
            let mut command = Command::new(program);
            command.arg0("sh").args(["-c", look, "sh", "a", "b"]);
            ran(&world, command)
        };
        let (plain, direct) = (run(&world_shell(&world)), run(&shell));
        assert_eq!(text(&direct.stdout), text(&plain.stdout), "{look}: {}", text(&direct.stderr));
        assert_eq!((text(&direct.stderr), direct.status), (text(&plain.stderr), plain.status), "{look}");
    }
}

/// The plain shell under the name of the package.
fn world_shell(world: &World) -> PathBuf {
    let path = world.folder.path().join("plain/sh");
    if !path.exists() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        good(Command::new("cp").arg("/bin/dash").arg(&path));
    }
    path
}

#[test]
fn forty_start_at_once_and_each_is_its_own() {
    let (world, shell) = with_shell();
    let children: Vec<_> = (0..40)
        .map(|n| {
            let mut command = Command::new(&shell);
            command.args(["-c", &format!("echo {n}; exit {n}")]).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for (n, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(n as i32), format!("{n}\n")), "{}", text(&output.stderr));
    }
    drop(world);
}

#[test]
fn limits_and_new_privileges_forbidden_are_no_hindrance_and_too_few_descriptors_are_said() {
    let (world, _) = with_shell();
    let ways = [
        ("exec setpriv --no-new-privs ./sh -c 'echo ok; exit 9'", true),
        ("ulimit -l 0; exec ./sh -c 'echo ok; exit 9'", true),
        ("ulimit -s 64; exec ./sh -c 'echo ok; exit 9'", true),
        ("ulimit -s unlimited; exec ./sh -c 'echo ok; exit 9'", true),
        ("ulimit -c 0; exec ./sh -c 'echo ok; exit 9' <&- 2>&-", true),
        ("ulimit -n 4; exec ./sh -c 'echo ok; exit 9'", false),
    ];
    for (line, starts) in ways {
        let mut command = Command::new("/bin/bash");
        command.args(["-c", line]);
        let output = ran(&world, command);
        let (code, said) = if starts { (9, "ok\n") } else { (126, "") };
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(code), said), "{line}: {}", text(&output.stderr));
        assert!(starts || !output.stderr.is_empty(), "{line}: a refusal is said");
    }
}

#[test]
fn without_its_processor_it_says_so_with_126_and_running_ones_go_on() {
    let (mut world, shell) = with_shell();
    let mut command = Command::new(&shell);
    let mut running = command.args(["-c", "echo up; read line; echo \"$line\"; exit 4"]);
    running = running.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = running.spawn().unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(running.stdout.as_mut().unwrap(), &mut up).unwrap();
    world.daemons.daemons[2].stop();
    let mut command = Command::new(&shell);
    command.args(["-c", "echo ran"]);
    let output = ran(&world, command);
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(126), 0), "{said}");
    assert!(said.starts_with("chipbound: ") && said.contains(world.daemons.sockets[0].to_str().unwrap()), "{said}");
    std::io::Write::write_all(running.stdin.as_mut().unwrap(), b"still here\n").unwrap();
    let output = running.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(4), "still here\n"));
}

#[test]
fn without_its_interpreter_it_is_not_found_and_verify_says_why() {
    let (world, shell) = with_shell();
    let verified = good(world.ada(&["verify", "./sh"]));
    assert!(text(&verified.stdout).contains("direct start: yes, by "), "{}", text(&verified.stdout));
    let description = chipbound::control::describe(&world.daemons.sockets[0]).unwrap();
    let interpreter = PathBuf::from(String::from_utf8(description.interpreter.unwrap()).unwrap());
    fs::remove_file(&interpreter).unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "./sh -c 'echo ran'"]);
    let output = ran(&world, command);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(127), 0), "{}", text(&output.stderr));
    let output = world.ada(&["verify", "./sh"]).output().unwrap();
    let said = text(&output.stderr);
    assert!(said.contains("error[no_direct_start]: ") && said.contains(interpreter.to_str().unwrap()), "{said}");
    assert_eq!(output.status.code(), Some(i32::from(Code::NoDirectStart.fault().exit_code())));
    assert!(text(&output.stdout).contains("whole: every byte"), "what is good is said too");
    drop(shell);
}

/// strip throws the end of the package away, and with it all that opens it.
#[test]
fn a_stripped_package_starts_nothing() {
    let (world, shell) = with_shell();
    let stripped = world.work("stripped");
    let strip = Command::new("strip").arg("-o").arg(&stripped).arg(&shell).output().unwrap();
    if !strip.status.success() {
        println!("strip refuses a package: {}", text(&strip.stderr));
        return;
    }
    mode(&stripped, 0o755);
    let mut command = Command::new(&stripped);
    command.args(["-c", "echo ran"]).current_dir(world.work("")).stdin(Stdio::null());
    let started = command.output().map_or_else(
        |_| Vec::new(),
        |output| {
            assert!(!output.status.success(), "{output:?}");
            output.stdout
        },
    );
    assert!(started.is_empty(), "nothing of it runs");
    refused(world.ada(&["verify", "./stripped"]), Code::NotAPackage);
    refused(world.ada(&["run", "./stripped"]), Code::NotAPackage);
}

#[test]
fn a_package_with_more_rights_than_its_caller_is_refused() {
    let (world, shell) = with_shell();
    let nobody = 65_534;
    if !rustix::process::geteuid().is_root() {
        println!("not run here: only root can make another user's program set-user-id");
        return;
    }
    for folder in [world.folder.path(), world.daemons.sockets[0].parent().unwrap(), &world.work("")] {
        mode(folder, 0o755);
    }
    mode(&shell, 0o4755);
    let mut command = Command::new(&shell);
    command.args(["-c", "echo ran"]).uid(nobody).gid(nobody);
    let output = ran(&world, command);
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(126), 0), "{said}");
    assert!(said.contains("more rights"), "{said}");
}

/// Whoever changes the header, the path or the record: nothing runs (A10).
#[test]
fn a_package_that_names_another_interpreter_is_refused() {
    let (world, shell) = with_shell();
    let bytes = fs::read(&shell).unwrap();
    let record = chipbound_sealing::Package::read(&bytes).unwrap().start.unwrap();
    // A copy of the interpreter's own bytes elsewhere is still not the processor's.
    let ours = PathBuf::from(String::from_utf8(record.interpreter().unwrap().to_vec()).unwrap());
    let foreign = world.work("foreign");
    good(Command::new("cp").args([&ours, &foreign]));
    let mut delivered = bytes[..record.delivered() as usize].to_vec();
    for (offset, original) in record.undo() {
        delivered[offset as usize..offset as usize + original.len()].copy_from_slice(&original);
    }
    let named = chipbound_sealing::StartRecord::plan(&delivered, foreign.as_os_str().as_encoded_bytes()).unwrap().unwrap();
    let mut placed = delivered;
    for (offset, written) in named.writes() {
        let end = offset as usize + written.len();
        placed.resize(placed.len().max(end), 0);
        placed[offset as usize..end].copy_from_slice(&written);
    }
    let (data, package) = (world.work("data"), world.work("hostile"));
    fs::write(&data, placed).unwrap();
    good(Command::new("install").args(["-m", "755"]).args([&data, &package]));
    let mut direct = Command::new(&package);
    direct.args(["-c", "echo ran"]);
    let output = ran(&world, direct);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(126), 0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("interpreter"), "{}", text(&output.stderr));
    refused_verify(&world, "./hostile");
    // The header pointed at other bytes of the file.
    let (offset, _) = record.writes().remove(0);
    let mut edited = bytes.clone();
    edited[offset as usize + 8] ^= 1;
    fs::write(&data, edited).unwrap();
    good(Command::new("install").args(["-m", "755"]).args([&data, &package]));
    let mut direct = Command::new(&package);
    direct.args(["-c", "echo ran"]).current_dir(world.work("")).stdin(Stdio::null());
    let ran = direct.output().map_or_else(|_| Vec::new(), |output| output.stdout);
    assert!(ran.is_empty());
    refused(world.ada(&["run", "./hostile"]), Code::PlainPartsAltered);
}

#[track_caller]
fn refused_verify(world: &World, package: &str) {
    let output = world.ada(&["verify", package]).output().unwrap();
    assert!(text(&output.stderr).contains("error[no_direct_start]: "), "{}", text(&output.stderr));
}

#[test]
fn an_installed_package_is_a_command_that_is_listed_verified_and_taken_away() {
    let (world, shell) = with_shell();
    let bin = world.folder.path().join("bin");
    let bin_text = bin.to_str().unwrap();
    let said = good(world.ada(&["install", "./sh", "--name", "psh", "--bin", bin_text]));
    let command = bin.join("psh");
    assert!(text(&said.stdout).contains(command.to_str().unwrap()), "{}", text(&said.stdout));
    let mut by_name = Command::new("/bin/sh");
    by_name.args(["-c", "PATH=$1:$PATH; psh -c 'echo installed; exit 7'", "sh", bin_text]);
    let output = ran(&world, by_name);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(7), "installed\n"), "{}", text(&output.stderr));

    let listed = json_lines(&good(world.ada(&["--json", "list", "--bin", bin_text])));
    assert_eq!((listed.len(), listed[0]["name"].as_str(), listed[0]["program"].as_str()), (1, Some("psh"), Some("sh 1")));
    assert_eq!(listed[0]["direct_start"], true);
    let verified = json_lines(&good(world.ada(&["--json", "verify", command.to_str().unwrap()])));
    assert!(["whole", "opens_here", "direct_start"].iter().all(|q| verified[0][*q] == true), "{verified:?}");

    // Installed again it is replaced whole; what is no package is not touched.
    good(world.ada(&["install", "./sh", "--name", "psh", "--bin", bin_text]));
    script(&bin.join("mine"), "#!/bin/sh");
    refused(world.ada(&["install", "./sh", "--name", "mine", "--bin", bin_text]), Code::Conflict);
    refused(world.ada(&["uninstall", "mine", "--bin", bin_text]), Code::NotAPackage);
    refused(world.ada(&["install", "/bin/ls", "--bin", bin_text]), Code::NotAPackage);
    good(world.ada(&["uninstall", "psh", "--bin", bin_text]));
    assert!(!command.exists() && bin.join("mine").exists() && shell.exists());
    refused(world.ada(&["uninstall", "psh", "--bin", bin_text]), Code::NotFound);
    assert_eq!(fs::read_dir(&bin).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn another_version_takes_an_installed_commands_place_and_another_program_does_not_by_itself() {
    let (world, _) = with_shell();
    let bin = world.folder.path().join("bin");
    let installed = |package: &str, more: &[&str]| {
        let mut command = world.ada(&["install", package, "--name", "tool", "--bin", bin.to_str().unwrap()]);
        command.args(more);
        command
    };
    good(installed("./sh", &[]));
    world.publish(Path::new("/bin/bash"), "sh", "2", &[]);
    good(world.ada(&["buy", "sh", "-o", "sh2"]));
    good(installed("./sh2", &[]));
    let second = fs::read(bin.join("tool")).unwrap();

    bought(&world, Path::new("/bin/true"), "true");
    let why = refused(installed("./true", &[]), Code::Conflict);
    assert!(why.contains("/sh, not of ") && why.contains("--replace"), "{why}");
    assert!(fs::read(bin.join("tool")).unwrap() == second, "it is what it was");
    // What cannot be told apart is not replaced either: a package that opens nowhere any more.
    let layout = chipbound_sealing::Package::read(&fs::File::open(bin.join("tool")).unwrap()).unwrap().layout;
    common::flipped(&bin.join("tool"), &bin.join("tool"), (layout.sealed()[0].offset + 100) as usize);
    assert!(refused(installed("./sh", &[]), Code::Conflict).contains("a package that does not open here (page_altered"));
    good(installed("./sh2", &[])); // The very release that it was before it was damaged.
    common::flipped(&world.work("sh2"), &world.work("damaged"), (layout.sealed()[0].offset + 100) as usize);
    for more in [&[][..], &["--replace"]] {
        refused(installed("./damaged", more), Code::PageAltered);
        assert!(fs::read(bin.join("tool")).unwrap() == second, "a whole one does not give way to one that is damaged");
    }
    good(installed("./true", &["--replace"]));
    assert!(fs::read(bin.join("tool")).unwrap() != second);
    script(&bin.join("mine"), "#!/bin/sh");
    refused(world.ada(&["install", "./true", "--name", "mine", "--replace", "--bin", bin.to_str().unwrap()]), Code::Conflict);
}

#[test]
fn an_install_that_is_killed_before_its_end_leaves_the_old_command_and_nothing_that_stays() {
    let (world, _) = with_shell();
    let bin = world.folder.path().join("bin");
    let install = ["install", "./sh", "--bin", bin.to_str().unwrap()];
    good(world.ada(&install));
    let whole = fs::read(bin.join("sh")).unwrap();
    let command = world.ada(&install);
    let mut killed = Command::new("strace");
    killed.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=rename,renameat,renameat2:error=EIO:signal=KILL"]);
    killed.arg(command.get_program()).args(command.get_args()).current_dir(world.work("")).stdin(Stdio::null());
    killed.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = killed.output().expect("strace is installed: ./test installs it");
    assert_eq!(output.status.signal(), Some(9), "{}", text(&output.stderr));
    assert_eq!(fs::read_dir(&bin).unwrap().count(), 2, "what it was writing is there");
    assert!(fs::read(bin.join("sh")).unwrap() == whole);
    let listed = json_lines(&good(world.ada(&["--json", "list", "--bin", bin.to_str().unwrap()])));
    assert_eq!(listed.len(), 1, "{listed:?}");
    good(world.ada(&install));
    assert_eq!(fs::read_dir(&bin).unwrap().count(), 1, "and is cleared up by the next");
}

/// Names that look like what the kernel writes beside them, and bytes that are no text.
#[test]
fn a_package_under_any_name_and_in_any_folder_is_the_plain_program() {
    let (world, shell) = with_shell();
    let folder = world.work("").join(OsStr::from_bytes(b"d\xe9 [stack]"));
    fs::create_dir(&folder).unwrap();
    for name in [&b"\xff\xfe"[..], b"x [vdso]", b"x [stack]", b"x (deleted)", b"a) R 1", b"new\nline", b"-x", b"\xf0\x9f\x92\xa3 x"] {
        let name = OsStr::from_bytes(name);
        let package = folder.join(name);
        fs::copy(&shell, &package).unwrap();
        let said = |mut command: Command| {
            let output = command.args(["-c", "echo $0; exit 3"]).current_dir(&folder).output().unwrap();
            assert_eq!((output.status.code(), output.stderr.is_empty()), (Some(3), true), "{name:?}: {output:?}");
            output.stdout
        };
        let mut plain = Command::new("/bin/dash");
        plain.arg0(&package);
        let plain = said(plain);
        assert_eq!(said(Command::new(&package)), plain, "{name:?}");
        let mut run = world.ada(&["run"]);
        run.arg(&package);
        assert_eq!(said(run), plain, "{name:?}");
        for verb in ["verify", "inspect"] {
            good(world.ada(&["--json", verb]).arg(&package));
        }
        good(world.ada(&["install", "--bin"]).arg(folder.join("bin")).arg(&package));
    }
    assert_eq!(json_lines(&good(world.ada(&["--json", "list", "--bin"]).arg(folder.join("bin")))).len(), 8);
    good(world.ada(&["buy", "sh", "--again", "-o"]).arg(folder.join(OsStr::from_bytes(b"\xfe"))));
    assert!(folder.join(OsStr::from_bytes(b"\xfe")).is_file());
}

#[test]
fn verify_says_of_a_damaged_package_that_it_is_not_whole_and_of_a_foreign_one_that_it_does_not_open() {
    let world = World::start("", 2);
    let package = bought(&world, Path::new("/bin/true"), "true");
    let layout = chipbound_sealing::Package::read(&fs::File::open(&package).unwrap()).unwrap().layout;
    common::flipped(&package, &world.work("damaged"), (layout.sealed()[0].offset + 100) as usize);
    assert!(refused(world.ada(&["verify", "./damaged"]), Code::PageAltered).contains("not whole"));
    let second = world.daemons.sockets[1].to_str().unwrap();
    assert!(refused(world.ada(&["verify", "--processor", second, "./true"]), Code::ProcessorMismatch).contains("does not open here"));
    refused(world.ada(&["install", "--processor", second, "./true", "--bin", "nowhere"]), Code::ProcessorMismatch);
    assert!(!world.work("nowhere").exists());
}

/// As a scheduler starts commands: a session of its own, no terminal, no environment at all, no folder but the root.
#[test]
fn a_package_starts_with_nothing_around_it() {
    let (world, shell) = with_shell();
    let shell = shell.to_str().unwrap();
    let words = ["-i", "setsid", "--wait"];
    for program in ["/bin/dash", shell] {
        let mut command = Command::new("env");
        command.args(words).arg(program).args(["-c", "pwd; exit 6"]).current_dir("/").stdin(Stdio::null());
        let output = command.output().unwrap();
        assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str(), output.status.code()), ("/\n", "", Some(6)), "{program}");
    }
    drop(world);
}

/// glibc takes tunables from its environment before anything else runs; a vendor who allows that gets it by a direct start too.
#[test]
fn tunables_reach_a_program_whose_vendor_allows_them_and_no_other() {
    let world = World::start("", 1);
    for (policy, said) in [("allow", "glibc.malloc.check=3\n"), ("forbid", "\n")] {
        world.publish(Path::new("/bin/dash"), policy, "1", &["--loader-variables", policy]);
        let package = world.buy(policy, &[]);
        let script = ["-c", "echo $GLIBC_TUNABLES"];
        let mut direct = Command::new(&package);
        let mut run = world.ada(&["run", package.to_str().unwrap()]);
        for command in [&mut direct, &mut run] {
            let output = good(command.args(script).env("GLIBC_TUNABLES", "glibc.malloc.check=3"));
            assert_eq!(text(&output.stdout), said, "{policy}");
        }
    }
}

#[test]
fn a_systemd_unit_starts_a_package() {
    let (world, shell) = with_shell();
    // A manager of the test's own is no way: by root it moves all processes of the machine into a control group of its own.
    if !Path::new("/run/systemd/system").exists() {
        println!("not run here: this machine was not started by systemd");
        return;
    }
    let output = Command::new("systemd-run").args(["--wait", "--pipe", "--quiet"]).arg(&shell).args(["-c", "echo unit; exit 5"]).output();
    let output = output.unwrap();
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(5), "unit\n"), "{}", text(&output.stderr));
    drop(world);
}

/// A package as it is delivered, before it is put on a disk, is what it was: it stops at the first fetch.
#[test]
fn a_package_without_a_start_record_stops_at_its_first_instruction_and_runs_by_the_command() {
    let (world, shell) = with_shell();
    let file = fs::File::options().read(true).write(true).open(&shell).unwrap();
    assert!(!chipbound::client::placing::name_interpreter(&file, None).unwrap());
    drop(file);
    let delivered = world.work("delivered");
    good(Command::new("install").args(["-m", "755"]).args([&shell, &delivered])); // No descriptor of ours is open for writing.
    let mut direct = Command::new(&delivered);
    direct.args(["-c", "echo ran"]);
    let output = ran(&world, direct);
    assert_eq!((output.status.signal(), output.stdout.len()), (Some(11), 0), "{output:?}");
    let output = world.ada(&["run", "./delivered", "-c", "echo ran; exit 3"]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(3), "ran\n"));
    let verified = good(world.ada(&["verify", "./delivered"]));
    assert!(text(&verified.stdout).contains("direct start: no"), "{}", text(&verified.stdout));
}
