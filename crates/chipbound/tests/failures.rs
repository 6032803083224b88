//! When something fails while a program is started, it is the right program or none: a refusal with its code, never half a program,
//! never other code, and nothing is left behind, neither processes nor plaintext.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound::demo::world::Daemon;
use chipbound_wire::Code;
use common::{CHIPBOUND, World, good, json_lines, noise, refused, script};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// In the code of the program that is started, and nowhere in the clear but in the vendor's own file and the server's store.
const MARKER: &[u8] = b"the-code-of-a-program-that-fails-to-start/61c0aa5e";

/// What it prints and its exit code when it runs.
const WHOLE: (&str, i32) = ("whole\n", 7);

/// A system and the package `app` in ada's folder.
fn world() -> World {
    world_by(Path::new(CHIPBOUND))
}

fn world_by(exe: &Path) -> World {
    let world = World::start_by(exe, "", 1);
    let (source, program) = (world.folder.path().join("app.c"), world.folder.path().join("app"));
    let marker = str::from_utf8(MARKER).unwrap();
    let code = format!(
        "#include <stdio.h>\n__asm__(\".text\\n.ascii \\\"{marker}\\\"\\n.p2align 12\\n.space 65536, 0x90\\n\");\nint main(void) {{ puts(\"whole\"); return 7; }}\n"
    );
    fs::write(&source, code).unwrap();
    good(Command::new("cc").arg("-o").args([&program, &source]));
    world.publish(&program, "app", "1", &[]);
    world.buy("app", &[]);
    world
}

/// Starts the processor of a world whose processor was ended.
fn restart(world: &mut World, exe: &Path) {
    let config = world.folder.path().join("processor-1/processor.toml");
    let arguments = ["processor".as_ref(), "run".as_ref(), "--config".as_ref(), config.as_os_str()];
    let log = world.folder.path().join("again.log");
    let (daemon, _) = world.runtime.block_on(Daemon::start(exe, &arguments, &log)).unwrap();
    world.daemons.daemons[2] = daemon;
}

/// How a start ended, in one word; what is neither the program nor a refusal with its code fails the test.
fn outcome(output: &Output) -> String {
    let (said, out) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    match (output.status.code(), output.status.signal()) {
        (Some(code), _) if (out.as_ref(), code) == WHOLE && said.is_empty() => "whole".to_owned(),
        (Some(126), _) if out.is_empty() => match said.split("error[").nth(1).and_then(|rest| rest.split(']').next()) {
            Some(code) => Code::parse(code).unwrap_or_else(|| panic!("{said}")).to_string(),
            None => panic!("no reason: {said}"),
        },
        // A process whose processor dies while it holds it dies too.
        (None, Some(9)) if out.is_empty() => "killed".to_owned(),
        other => panic!("{other:?}: {out} {said}"),
    }
}

/// No process executes anything of the world's working folder any more, and none waits for its parent here.
#[track_caller]
fn nothing_runs(world: &World) {
    let work = fs::canonicalize(world.work("")).unwrap();
    for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let exe = fs::read_link(entry.path().join("exe"));
        assert!(!exe.as_ref().is_ok_and(|exe| exe.starts_with(&work)), "{exe:?} still runs");
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let mut fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ')).into_iter().flatten();
        let (state, parent) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let ours = world.daemons.daemons.iter().any(|d| d.pid().to_string() == parent);
        assert!(state != "Z" || !ours, "a daemon left a zombie: {stat}");
    }
}

/// The program's code lies in no file of the customer or the processor.
#[track_caller]
fn no_plaintext(world: &World) {
    let mut folders: Vec<PathBuf> = ["work", "processor-1", "home-ada"].iter().map(|name| world.folder.path().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap()) {
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => {
                    let found = memchr::memmem::find(&fs::read(entry.path()).unwrap_or_default(), MARKER);
                    assert_eq!(found, None, "{}", entry.path().display());
                }
                _ => {}
            }
        }
    }
}

fn begin(world: &World) -> Child {
    world.ada(&["run", "./app"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// By `chipbound run` and directly, in turn. What the kernel refuses to execute at all, because somebody writes to it, is not begun.
fn begin_either(world: &World, turn: u32) -> Option<Child> {
    if turn.is_multiple_of(2) {
        return Some(begin(world));
    }
    let mut direct = Command::new("./app");
    direct.current_dir(world.work("")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    direct.spawn().inspect_err(|e| assert_eq!(e.kind(), std::io::ErrorKind::ExecutableFileBusy)).ok()
}

#[test]
fn a_processor_killed_at_any_moment_of_a_start_leaves_the_program_or_none() {
    let mut world = world();
    assert!(memchr::memmem::find(&fs::read(world.folder.path().join("app")).unwrap(), MARKER).is_some(), "the search finds it");
    let begun = Instant::now();
    assert_eq!(outcome(&begin(&world).wait_with_output().unwrap()), "whole");
    let (cold, rounds) = (begun.elapsed(), 80);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..rounds {
        world.daemons.daemons[2].stop();
        restart(&mut world, Path::new(CHIPBOUND));
        let child = begin_either(&world, round).unwrap();
        std::thread::sleep(cold * round * 2 / rounds);
        world.daemons.daemons[2].kill();
        *seen.entry(outcome(&child.wait_with_output().unwrap())).or_default() += 1;
        nothing_runs(&world);
    }
    println!("{seen:?}");
    assert!(seen.len() > 1, "it was killed before, while or after: {seen:?}");
    no_plaintext(&world);
    restart(&mut world, Path::new(CHIPBOUND));
    assert_eq!(outcome(&begin(&world).wait_with_output().unwrap()), "whole");
}

/// A15: whoever may write to the package does so all the time.
#[test]
fn a_package_that_is_altered_while_it_is_started_is_the_program_or_a_refusal() {
    let world = world();
    let (package, original) = (world.work("app"), fs::read(world.work("app")).unwrap());
    let ended = AtomicBool::new(false);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let flips = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut flips, mut state) = (0_u64, 88_172_645_463_325_252_u64);
            while !ended.load(Ordering::Relaxed) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                // Behind what the kernel itself parses: what it makes of broken headers is its own, and other tests'.
                let at = 1024 + state as usize % (original.len() - 1024);
                // A file that is just being executed cannot be opened for writing.
                let write =
                    |byte| File::options().write(true).open(&package).is_ok_and(|file| file.write_all_at(&[byte], at as u64).is_ok());
                let flipped = write(original[at] ^ (1 << (state >> 61)));
                flips += u64::from(flipped);
                // Altered for shorter than whole, or else hardly a start would see both.
                std::thread::sleep(Duration::from_micros(state % 2000));
                while flipped && !write(original[at]) {}
                std::thread::sleep(Duration::from_micros(state % 10_000));
            }
            // Whole again, or else the next start would not be.
            while File::options().write(true).open(&package).and_then(|f| f.write_all_at(&original, 0)).is_err() {}
            flips
        });
        for turn in 0..150 {
            let Some(child) = begin_either(&world, turn) else { continue };
            *seen.entry(outcome(&child.wait_with_output().unwrap())).or_default() += 1;
        }
        ended.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    println!("{flips} flips: {seen:?}");
    assert!(flips > 5 && seen.len() > 1 && seen.contains_key("whole"), "{flips} flips: {seen:?}");
    assert!(seen.keys().all(|k| k != "killed"), "{seen:?}");
    nothing_runs(&world);
    no_plaintext(&world);
    assert_eq!(outcome(&begin(&world).wait_with_output().unwrap()), "whole");
}

/// The same path names another file from one moment to the next.
#[test]
fn a_package_that_is_replaced_while_it_is_started_is_the_program_or_a_refusal() {
    let world = world();
    let other = world.work("other");
    good(Command::new("cp").args(["/bin/false"]).arg(&other));
    good(Command::new("cp").arg("--preserve=mode").arg(world.work("app")).arg(world.work("kept")));
    let ended = AtomicBool::new(false);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut turn = 0_u32;
            while !ended.load(Ordering::Relaxed) {
                let from = if turn.is_multiple_of(2) { world.work("other") } else { world.work("kept") };
                let _ = fs::remove_file(world.work("link")); // The last turn renamed it.
                fs::hard_link(from, world.work("link")).unwrap();
                fs::rename(world.work("link"), world.work("app")).unwrap();
                turn += 1;
                std::thread::sleep(Duration::from_micros(u64::from(turn % 7) * 400));
            }
        });
        for _ in 0..100 {
            *seen.entry(outcome(&begin(&world).wait_with_output().unwrap())).or_default() += 1;
        }
        ended.store(true, Ordering::Relaxed);
    });
    println!("{seen:?}");
    assert!(seen.contains_key(Code::NotAPackage.as_str()), "the other file was refused: {seen:?}");
    nothing_runs(&world);
}

/// Builds the program that runs another one with one system call missing, as an older kernel or a container has it.
fn without_calls(world: &Path) -> PathBuf {
    let (source, program) = (world.join("without.c"), world.join("without"));
    fs::write(&source, WITHOUT).unwrap();
    good(Command::new("cc").arg("-o").args([&program, &source]));
    program
}

#[test]
fn where_the_kernel_lacks_a_call_the_program_runs_or_the_refusal_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let without = without_calls(folder.path());
    let mut world = world();
    // Numbers of x86-64; the word that the refusal must hold where the start cannot do without.
    for (name, number, needed) in [
        ("memfd_create", 319, Some("memfd_create")),
        // Without these two the client executes a memory file instead.
        ("ptrace", 101, None),
        ("pidfd_open", 434, None),
        ("process_vm_readv", 310, None),
        ("process_vm_writev", 311, None),
        ("mseal", 462, None),
        ("memfd_secret", 447, None),
        ("landlock_create_ruleset", 444, None),
        ("mlock", 149, None),
        ("mlockall", 151, None),
    ] {
        let exe = folder.path().join(name);
        script(&exe, &format!("#!/bin/sh\nexec '{}' {number} '{CHIPBOUND}' \"$@\"", without.display()));
        world.daemons.daemons[2].stop();
        restart(&mut world, &exe);
        let output = begin(&world).wait_with_output().unwrap();
        let (seen, said) = (outcome(&output), String::from_utf8_lossy(&output.stderr).into_owned());
        match needed {
            None => assert_eq!(seen, "whole", "{name}: {said}"),
            Some(word) => assert!(seen != "whole" && seen != "killed" && said.contains(word), "{name}: {seen}: {said}"),
        }
        nothing_runs(&world);
    }
    no_plaintext(&world);
}

/// A file system in a user's process.
struct Fuse(Child, PathBuf);

impl Fuse {
    /// bindfs, over a folder.
    fn bound(from: &Path, at: PathBuf, options: &[&str]) -> Option<Self> {
        let mut bindfs = Command::new("bindfs");
        bindfs.arg("-f").args(options).arg(from);
        Self::mount(bindfs, at)
    }

    fn mount(mut command: Command, at: PathBuf) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let device = fs::metadata(&at).unwrap().dev();
        let spawned = command.arg(&at).stdin(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = spawned.inspect_err(|e| println!("not run here: {command:?}: {e}")).ok()?;
        while fs::metadata(&at).unwrap().dev() == device {
            if child.try_wait().unwrap().is_some() {
                println!("not run here: this machine mounts no FUSE");
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(Self(child, at))
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = unmount(&self.1, UnmountFlags::DETACH);
    }
}

#[test]
fn a_package_on_a_fuse_mount_runs_and_is_refused_when_its_file_system_is_gone() {
    let mut world = world();
    let Some(mut fuse) = Fuse::bound(&world.work(""), world.folder.path().join("mounted"), &[]) else { return };
    let start = |world: &World, fuse: &Fuse| world.ada(&["run", "./app"]).current_dir(&fuse.1).output().unwrap();
    for _ in 0..3 {
        assert_eq!(outcome(&start(&world, &fuse)), "whole");
        assert_eq!(outcome(&Command::new(fuse.1.join("app")).output().unwrap()), "whole", "started directly");
    }
    // One byte changes behind the mount, which need not tell: what was opened before may still run, but nothing else.
    let original = fs::read(world.work("app")).unwrap();
    File::options().write(true).open(world.work("app")).unwrap().write_all_at(&[original[5000] ^ 1], 5000).unwrap();
    let seen = outcome(&start(&world, &fuse));
    assert_ne!(seen, "killed");
    world.daemons.daemons[2].stop();
    restart(&mut world, Path::new(CHIPBOUND));
    let seen = outcome(&start(&world, &fuse));
    assert!(seen.ends_with("_altered"), "opened afresh, it is refused as on every file system: {seen}");
    let path = fuse.1.join("app");
    fuse.0.kill().unwrap();
    fuse.0.wait().unwrap();
    let output = world.ada(&["run", path.to_str().unwrap()]).output().unwrap();
    assert!([126, 127].contains(&output.status.code().unwrap()) && output.stdout.is_empty(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("error["), "{output:?}");
    nothing_runs(&world);
}

/// As a server of files that is lost: what is read comes slowly, nothing of it is remembered, and in the middle of a start reads fail.
#[test]
fn a_file_system_that_goes_away_in_the_middle_of_a_start_leaves_the_program_or_none() {
    let mut world = world();
    let at = world.folder.path().join("mounted");
    let mut in_reading = 0;
    // While the processor reads it, in the exec, and after.
    for (rate, after) in [("150k", 60), ("150k", 200), ("150k", 350), ("600k", 60), ("600k", 120), ("600k", 400)] {
        let slow = [&format!("--read-rate={rate}"), "-o", "attr_timeout=0,entry_timeout=0"];
        world.daemons.daemons[2].stop();
        restart(&mut world, Path::new(CHIPBOUND));
        let Some(mut fuse) = Fuse::bound(&world.work(""), at.clone(), &slow) else { return };
        let mut command = world.ada(&["run", "./app"]);
        command.current_dir(&at).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after));
        fuse.0.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        // Where reads fail after the kernel has taken the old program down for an exec, it ends the process so, of plain programs too.
        let in_exec = output.status.signal() == Some(11) && output.stdout.is_empty();
        let seen = if in_exec { "ended in its exec".to_owned() } else { outcome(&output) };
        println!("{rate} {after}: {seen}: {}", String::from_utf8_lossy(&output.stderr));
        in_reading +=
            u32::from(world.log(common::PROCESSOR).lines().any(|line| line.contains("refused") && line.contains("reading a package")));
        drop(fuse);
        nothing_runs(&world);
    }
    assert!(in_reading > 0, "it was lost at other moments each time");
    no_plaintext(&world);
    assert_eq!(outcome(&begin(&world).wait_with_output().unwrap()), "whole", "from its own file system");
}

/// A folder of this machine over the network: sshfs, by TCP on loopback to an SFTP server of its own.
fn sshfs(from: &Path, at: PathBuf) -> Option<(Fuse, Child)> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = std::thread::spawn(move || {
        let connection = OwnedFd::from(listener.accept().unwrap().0);
        let output = connection.try_clone().unwrap();
        Command::new("/usr/lib/openssh/sftp-server").stdin(connection).stdout(output).spawn().unwrap()
    });
    let mut sshfs = Command::new("sshfs");
    sshfs.args(["-f", "-o", &format!("directport={port}")]).arg(format!("127.0.0.1:{}", from.display()));
    Some((Fuse::mount(sshfs, at)?, serving.join().unwrap()))
}

#[test]
fn a_package_on_a_network_mount_runs_waits_for_a_server_that_stalls_and_is_refused_when_it_is_gone() {
    let world = world();
    let [first, second, third] = ["app", "second", "third"].map(|name| world.work(name));
    fs::copy(&first, &second).unwrap();
    fs::copy(&first, &third).unwrap();
    let Some((mounted, mut server)) = sshfs(&world.work(""), world.folder.path().join("mounted")) else { return };
    let run = |name: &str| {
        let mut command = world.ada(&["run"]);
        command.arg(mounted.1.join(name)).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    for _ in 0..3 {
        assert_eq!(outcome(&run("app").output().unwrap()), "whole");
        assert_eq!(outcome(&Command::new(mounted.1.join("app")).output().unwrap()), "whole", "started directly");
    }
    let pid = Pid::from_child(&server);
    kill_process(pid, Signal::STOP).unwrap();
    let mut waiting = run("second").spawn().unwrap();
    assert_eq!(outcome(&begin(&world).wait_with_output().unwrap()), "whole", "others start meanwhile");
    assert!(waiting.try_wait().unwrap().is_none(), "it waits, as a plain program would");
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(outcome(&waiting.wait_with_output().unwrap()), "whole");
    server.kill().unwrap();
    server.wait().unwrap();
    let output = run("third").output().unwrap();
    assert!([126, 127].contains(&output.status.code().unwrap()) && output.stdout.is_empty(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("error["), "{output:?}");
    nothing_runs(&world);
    no_plaintext(&world);
}

/// As on network file systems without a server of locks.
#[test]
fn where_a_purchase_cannot_be_locked_it_is_refused_and_later_charged_once() {
    let world = world();
    let without = without_calls(world.folder.path());
    world.publish(&world.folder.path().join("app"), "other", "1", &[]);
    let mut buy = world.ada(&["buy", "other"]);
    let mut unlocked = Command::new(without);
    unlocked.arg(format!("{}:{}", FLOCK, rustix::io::Errno::NOLCK.raw_os_error())).arg(CHIPBOUND).args(buy.get_args());
    unlocked.current_dir(world.work("")).envs(buy.get_envs().filter_map(|(name, value)| Some((name, value?))));
    refused(&mut unlocked, Code::Io);
    assert_eq!((world.balance(), world.receipts()), (("90.00 EUR".into(), "0.00 EUR".into()), 1), "nothing was held for it");
    good(&mut buy);
    assert_eq!((world.balance(), world.receipts()), (("80.00 EUR".into(), "0.00 EUR".into()), 2));
}

/// As containers have it: the package's device and inode are not those that the kernel shows for its mappings.
#[test]
fn a_package_on_an_overlay_runs_and_starts_directly_from_either_layer() {
    let world = world();
    let [upper, scratch, merged] = ["upper", "scratch", "merged"].map(|name| world.folder.path().join(name));
    let base = world.folder.path().join("layers");
    fs::create_dir(&base).unwrap();
    // An overlay over an overlay's own folders is refused by most kernels.
    if let Err(e) = mount("tmpfs", &base, "tmpfs", MountFlags::empty(), None) {
        println!("not run here: mounting needs root ({e})");
        return;
    }
    let _base = Small(base.clone());
    let [upper, scratch] = [upper, scratch].map(|path| base.join(path.file_name().unwrap()));
    for folder in [&upper, &scratch, &merged] {
        fs::create_dir(folder).unwrap();
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", world.work("").display(), upper.display(), scratch.display());
    let options = std::ffi::CString::new(options).unwrap();
    if let Err(e) = mount("overlay", &merged, "overlay", MountFlags::empty(), options.as_c_str()) {
        println!("not run here: this machine mounts no overlay ({e})");
        return;
    }
    let _merged = Small(merged.clone());
    for _layer in ["lower", "upper"] {
        assert_eq!(outcome(&world.ada(&["run", "./app"]).current_dir(&merged).output().unwrap()), "whole");
        assert_eq!(outcome(&Command::new(merged.join("app")).output().unwrap()), "whole", "started directly");
        good(Command::new("touch").arg(merged.join("app"))); // Copied to the upper layer.
    }
    assert!(upper.join("app").exists());
    nothing_runs(&world);
}

/// Neither the processor nor the client may lock memory; the processor says what that means.
#[test]
fn without_a_right_to_lock_memory_programs_run_and_the_log_says_what_can_be_swapped() {
    let folder = tempfile::tempdir().unwrap();
    let limited = folder.path().join("chipbound");
    script(&limited, &format!("#!/bin/sh\nulimit -l 0; exec setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock {CHIPBOUND} \"$@\""));
    if !rustix::process::geteuid().is_root() || Command::new("setpriv").arg("--version").output().is_err() {
        println!("not run here: only root with setpriv can take the right to lock memory from root");
        return;
    }
    let world = world_by(&limited);
    // By whatever way it is started first.
    for (started, way) in ["memfd-exec", "sealed-memfd", "anonymous"].into_iter().enumerate() {
        good(world.ada(&["processor", "forget"]));
        let before = world.log(common::PROCESSOR).len();
        let output = world.ada(&["run", "--mapping", way, "./app"]).output().unwrap();
        assert_eq!(outcome(&output), "whole", "{way}");
        let said = |line: &str| line.contains("its code can be swapped out: raise the lock limit");
        world.awaits(common::PROCESSOR, before, said, "the warning");
        let output = begin_either(&world, started as u32).unwrap().wait_with_output().unwrap();
        assert_eq!(outcome(&output), "whole");
    }
    nothing_runs(&world);
}

/// A small file system at a folder that exists, with what was in it.
struct Small(PathBuf);

impl Small {
    fn over(at: PathBuf, size: u64) -> Option<Self> {
        let kept = at.with_extension("kept");
        good(Command::new("cp").arg("-a").args([&at, &kept]));
        let options = std::ffi::CString::new(format!("size={size},mode=700")).unwrap();
        match mount("tmpfs", &at, "tmpfs", MountFlags::empty(), options.as_c_str()) {
            Ok(()) => {
                good(Command::new("cp").arg("-a").arg(kept.join(".")).arg(&at));
                Some(Self(at))
            }
            Err(e) => {
                println!("not run here: mounting a small file system needs root ({e})");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Where the processor keeps deliveries, and what it must remember, in turn.
#[test]
fn a_processor_whose_disk_is_full_takes_nothing_and_goes_on_when_there_is_room() {
    for folder in ["spool", "state"] {
        let mut world = World::start("", 1);
        noise(&world.folder.path().join("data"), 4 << 20);
        world.publish(&world.folder.path().join("data"), "data", "1", &["--open-to-file"]);
        world.daemons.daemons[2].stop();
        let at = world.folder.path().join("processor-1").join(folder);
        let Some(small) = Small::over(at.clone(), 2 << 20) else { return };
        let filler = at.join("filler");
        if folder == "state" {
            let mut fill = Command::new("sh");
            fill.args(["-c", r#"cat /dev/zero > "$1"; test $? -ne 0"#, "sh"]).arg(&filler).stderr(Stdio::null());
            good(&mut fill);
        }
        restart(&mut world, Path::new(CHIPBOUND));
        refused(world.ada(&["buy", "data"]), Code::DiskFull);
        assert!(world.names().is_empty(), "{:?}", world.names());
        assert_eq!((world.balance(), world.receipts()), (("90.00 EUR".into(), "10.00 EUR".into()), 0), "held, not taken: {folder}");
        let spooled = fs::read_dir(world.folder.path().join("processor-1/spool")).unwrap().count();
        // With its state full, the processor has the package whole and cannot say so; that goes on without a byte of it.
        assert_eq!(spooled, if folder == "spool" { 0 } else { 2 }, "nothing half-written is left");
        match folder {
            "state" => fs::remove_file(filler).unwrap(),
            _ => {
                world.daemons.daemons[2].stop();
                drop(small);
                restart(&mut world, Path::new(CHIPBOUND));
            }
        }
        let steps = json_lines(&good(world.ada(&["--json", "buy", "data"])));
        assert!(!steps.is_empty());
        assert_eq!((world.balance(), world.receipts()), (("90.00 EUR".into(), "0.00 EUR".into()), 1), "{folder}");
        good(world.ada(&["open", "data", "-o", "opened"]));
        let same = fs::read(world.work("opened")).unwrap() == fs::read(world.folder.path().join("data")).unwrap();
        assert!(same, "the package holds what was published");
        world.daemons.daemons[2].stop();
    }
}

/// The number of flock on x86-64.
const FLOCK: u32 = 73;

/// Runs a program in which the call of a number fails: with ENOSYS, or with the error behind a colon.
const WITHOUT: &str = r#"
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
int main(int argc, char **argv) {
    char *colon = strchr(argv[1], ':');
    int error = colon ? atoi(colon + 1) : ENOSYS;
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, atoi(argv[1]), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof rules / sizeof *rules, rules };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 99;
    execv(argv[2], argv + 2);
    return 98;
}"#;
