//! The processor under a user of its own with CAP_SYS_PTRACE alone, and a customer whose package he may execute but not read: it
//! runs, and none of his ways gets at its code (A20, A25). Each attack is shown to succeed where nothing protects the program.
//!
//! Only root can set that up. The last test shows that everything works under one ordinary user without any capability too.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "own_uid/installed.rs"]
mod installed;

use common::{World, good, in_own_mounts};
use installed::{CUSTOMER, Installed, MARKER, PROCESSOR, compiled, copied, lines, mode, own, root_with_setpriv};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn a_customer_runs_what_he_cannot_read_neither_as_a_file_nor_as_his_process() {
    if !root_with_setpriv() {
        return;
    }
    let installed = Installed::new();
    let (plain, run) = (good(&mut installed.customer(&installed.plain, &[])), good(&mut installed.run(&[])));
    assert_eq!((&run.stdout, &run.stderr), (&plain.stdout, &plain.stderr));
    let direct = good(&mut installed.customer(&installed.package, &[]));
    assert_eq!((direct.stdout, direct.stderr), (plain.stdout, plain.stderr), "executed by its name alone");
    let read = installed.customer("cat", &[installed.package.to_str().unwrap()]).output().unwrap();
    assert!(!read.status.success() && read.stdout.is_empty());

    let daemon = installed.world.daemons.daemons.last().unwrap().pid();
    let status = fs::read_to_string(format!("/proc/{daemon}/status")).unwrap();
    assert!(status.contains(&format!("Uid:\t{PROCESSOR}\t{PROCESSOR}")), "{status}");
    assert!(status.contains("CapEff:\t0000000000080000") && status.contains("CapBnd:\t0000000000080000"), "{status}");

    let plain = installed.waiting(installed.customer(&installed.plain, &[]));
    let every_way = installed.ways_into(plain.id());
    for way in [
        "mem",
        "mem, for writing",
        "maps",
        "map_files",
        "task/",
        "environ",
        "exe",
        "perf",
        "pidfd_getfd",
        "process_vm_writev",
        "ptrace",
        "ptrace, the old way",
        "the code, from mem",
        "the code, by process_vm_readv",
        "the code, by ptrace",
    ] {
        assert!(
            every_way.iter().any(|w| w == way || (way.ends_with('/') && w.starts_with(way))),
            "{way} works against a plain program: {every_way:?}"
        );
    }
    plain.wait_with_output().unwrap();
    let running = installed.waiting(installed.run(&[]));
    assert_eq!(installed.ways_into(running.id()), Vec::<String>::new());
    // The capabilities of a user namespace of one's own reach no process outside it.
    let inside = ["-Ur", installed.attacker.to_str().unwrap(), "try", &running.id().to_string(), &installed.address];
    match installed.customer("unshare", &["-Ur", "true"]).status().unwrap().success() {
        true => assert_eq!(lines(&good(&mut installed.customer("unshare", &inside))), Vec::<String>::new()),
        false => println!("unshare -Ur: not run here, users may not make namespaces"),
    }
    assert!(running.wait_with_output().unwrap().status.success());
    let direct = installed.waiting(installed.customer(&installed.package, &[]));
    assert_eq!(installed.ways_into(direct.id()), Vec::<String>::new());
    assert!(direct.wait_with_output().unwrap().status.success());
    // Nor is the daemon open to its own user without the capability, or to the customer.
    assert_eq!(fs::metadata(format!("/proc/{daemon}/environ")).unwrap().uid(), 0, "it is not dumpable");
    assert_eq!(installed.ways_into(daemon), Vec::<String>::new());
}

#[test]
fn a_crash_of_the_program_leaves_no_dump_with_its_code() {
    if !root_with_setpriv() {
        return;
    }
    let installed = Installed::new();
    let crash = |command: &str, name: &str| {
        let folder = installed.world.work(name);
        fs::create_dir(&folder).unwrap();
        own(&folder, CUSTOMER);
        let script = format!("ulimit -c unlimited; exec {command} crash");
        let output = installed.customer("sh", &["-c", &script]).current_dir(&folder).output().unwrap();
        assert_eq!(output.status.signal(), Some(11), "{output:?}");
        let dumps = fs::read_dir(&folder).unwrap().map(|e| fs::read(e.unwrap().path()).unwrap());
        (output.status.core_dumped(), dumps.collect::<Vec<_>>())
    };
    let run = format!("{} run {}", installed.chipbound.display(), installed.package.display());
    assert_eq!(crash(&run, "protected"), (false, Vec::new()));
    assert_eq!(crash(installed.package.to_str().unwrap(), "direct"), (false, Vec::new()));
    // The plain program is readable, so that the kernel dumps it, with the pages of its file where it is asked to.
    let plain = format!("sh -c 'echo 0x7f > /proc/self/coredump_filter; exec {} crash'", installed.plain.display());
    let (dumped, dumps) = crash(&plain, "plain");
    match dumps.first() {
        Some(dump) => assert!(dumped && memchr::memmem::find(dump, MARKER.as_bytes()).is_some()),
        None => println!("the control: not run here, this kernel gives its dumps elsewhere or nowhere"),
    }
}

/// fs.suid_dumpable=1 opens processes of unreadable files to their users. The setting is the whole machine's, where other programs run:
/// another file stands in its place here, for the processor of this test alone.
#[test]
fn where_the_kernel_dumps_what_is_unreadable_nothing_starts_that_its_customer_may_not_read() {
    let name = "where_the_kernel_dumps_what_is_unreadable_nothing_starts_that_its_customer_may_not_read";
    if !root_with_setpriv() || !in_own_mounts(name) {
        return;
    }
    let setting = tempfile::NamedTempFile::new().unwrap();
    fs::write(&setting, "1\n").unwrap();
    mode(setting.path(), 0o644);
    good(Command::new("mount").args(["--bind"]).arg(setting.path()).arg("/proc/sys/fs/suid_dumpable"));
    let installed = Installed::new();
    let said = "fs.suid_dumpable is 1";
    let log = fs::read_to_string(installed.world.folder.path().join("processor.log")).unwrap();
    assert!(log.contains(said), "{log}");
    let refused = |command: &mut Command| {
        let output = command.output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(126) && output.stdout.is_empty() && words.contains(said), "{output:?}");
    };
    refused(&mut installed.run(&[]));
    refused(&mut installed.customer(&installed.package, &[]));
    let package = installed.package.to_str().unwrap();
    let explained = good(&mut installed.customer(&installed.chipbound, &["run", "--explain", package]));
    assert_eq!(String::from_utf8_lossy(&explained.stdout).matches(said).count(), 3, "{explained:?}");
    let verified = good(&mut installed.customer(&installed.chipbound, &["verify", package]));
    assert!(String::from_utf8_lossy(&verified.stderr).contains(said), "{verified:?}");
    // Where nothing is promised, nothing is refused: to its vendor's wish, and to whoever may read the file.
    let open = installed.package.with_file_name("open");
    installed.install(&installed.plain, "open", &open, &["--loader-variables", "allow"]);
    good(&mut installed.run_package(&open, &[]));
    mode(&installed.package, 0o755);
    good(&mut installed.run(&[]));
    mode(&installed.package, 0o751);
    fs::write(setting.path(), "2\n").unwrap();
    good(&mut installed.run(&[]));
    fs::write(setting.path(), "0\n").unwrap();
    good(&mut installed.customer(&installed.package, &[]));
}

#[test]
fn whoever_races_against_thousands_of_starts_never_reads_the_code() {
    if !root_with_setpriv() {
        return;
    }
    let installed = Installed::new();
    let [ran, .., leaked] = installed.race("memory", 20, &[&installed.plain]);
    assert!(ran == 20 && leaked > 0, "the race is won against a plain program: {ran} {leaked}");
    let [ran, _, _, opened, .., leaked] = installed.race_run("memory", 2500);
    assert!(opened > 0, "the client itself is open, before it becomes the program");
    assert_eq!((ran, leaked), (2500, 0));
    let [ran, .., leaked] = installed.race_direct("memory", 2500);
    assert_eq!((ran, leaked), (2500, 0), "started directly");
}

#[test]
fn a_client_traced_by_its_customer_is_refused_or_never_shows_the_code() {
    if !root_with_setpriv() {
        return;
    }
    let installed = Installed::new();
    let [.., traced, _, _, _, leaked] = installed.race("trace", 20, &[&installed.plain]);
    assert!(traced > 0 && leaked > 0, "a plain program is traced: {traced} {leaked}");
    let [ran, refused, others, _, traced, _, _, _, leaked] = installed.race_run("trace", 150);
    assert!(traced > 0 && refused > 0, "{traced} traced, {refused} refused");
    assert_eq!((ran + refused + others, leaked), (150, 0));
    let log = fs::read_to_string(installed.world.folder.path().join("processor.log")).unwrap();
    assert!(log.contains("trace_refused"), "the processor names the reason too");
    let [ran, refused, others, .., leaked] = installed.race_direct("trace", 150);
    assert_eq!((ran + refused + others, leaked), (150, 0), "started directly");
    good(&mut installed.run(&[]));
}

#[test]
fn duplicates_of_the_clients_sockets_and_strange_connections_get_no_descriptor() {
    if !root_with_setpriv() {
        return;
    }
    let installed = Installed::new();
    let [ran, _, _, _, _, sockets, strangers, descriptors, leaked] = installed.race_run("socket", 200);
    assert!(sockets > 0 && strangers > 0, "{sockets} duplicates of the client's sockets, {strangers} connections to the starts");
    assert_eq!((ran, descriptors, leaked), (200, 0, 0));
    let [ran, .., strangers, descriptors, leaked] = installed.race_direct("socket", 200);
    assert!(strangers > 0, "{strangers} connections to the starts");
    assert_eq!((ran, descriptors, leaked), (200, 0, 0), "started directly");
}

#[test]
fn a_customers_library_does_not_see_the_code_from_inside() {
    if !root_with_setpriv() {
        return;
    }
    let installed = Installed::new();
    let library = installed.world.folder.path().join("bin/library.so");
    compiled("library.c", &["-shared", "-fPIC"], &library);
    for variable in ["LD_PRELOAD", "LD_AUDIT"] {
        let with = |mut command: Command| {
            let output = good(command.env(variable, &library).env("MARKER_AT", &installed.address));
            String::from_utf8(output.stdout).unwrap()
        };
        let plain = with(installed.customer(&installed.plain, &[]));
        assert!(plain.contains(&MARKER[..64]), "{variable} works against a plain program: {plain}");
        assert_eq!(with(installed.run(&[])), "hello\n", "{variable}");
        assert_eq!(with(installed.customer(&installed.package, &[])), "hello\n", "{variable}, started directly");
    }
}

#[test]
fn where_the_kernel_has_yama_the_client_names_its_tracer() {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    let Ok(scope) = scope else {
        println!("not run here: this kernel has no Yama");
        return;
    };
    // The daemon is no ancestor of the client; under Yama it may attach only because it was named.
    let world = World::start("", 1);
    world.publish(Path::new("/bin/true"), "true", "1", &[]);
    world.buy("true", &[]);
    assert!(scope.trim() != "3", "with 3 nothing can be traced");
    good(world.ada(&["run", "./true"]));
}

#[test]
fn everything_works_under_one_ordinary_user_and_the_daemons_are_closed_even_to_him() {
    let folder = tempfile::tempdir().unwrap();
    let chipbound = folder.path().join("chipbound");
    copied(&chipbound);
    mode(folder.path(), 0o755);
    let temporary = folder.path().join("temporary");
    fs::create_dir(&temporary).unwrap();
    let mut demo = if rustix::process::geteuid().is_root() {
        own(&temporary, CUSTOMER);
        let mut setpriv = Command::new("setpriv");
        let user = CUSTOMER.to_string();
        setpriv.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]);
        setpriv.arg(&chipbound);
        setpriv
    } else {
        Command::new(&chipbound)
    };
    demo.args(["demo", "--json"]).env("TMPDIR", &temporary).env("HOME", &temporary).current_dir(&temporary);
    let mut child = demo.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told: Vec<serde_json::Value> = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        if line["step"] == "party" {
            let pid = line["pid"].as_u64().unwrap();
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let user = if rustix::process::geteuid().is_root() { CUSTOMER } else { rustix::process::geteuid().as_raw() };
            assert!(status.contains(&format!("Uid:\t{user}\t{user}")) && status.contains("CapEff:\t0000000000000000"), "{status}");
            assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0, "not dumpable: {line}");
        }
        told.push(line);
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{told:#?}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(told.iter().filter(|l| l["step"] == "party").count(), 4);
    let promises: Vec<_> = told.iter().filter(|l| l["step"] == "promise").collect();
    assert!(promises.len() >= 8 && promises.iter().all(|p| p["held"] == true), "{promises:#?}");
}
