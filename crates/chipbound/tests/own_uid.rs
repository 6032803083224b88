//! The processor under a user of its own with CAP_SYS_PTRACE alone, and a customer whose package he may execute but not read: it
//! runs, and none of his ways gets at its code (A20, A25). Each attack is shown to succeed where nothing protects the program.
//!
//! Only root can set that up. The last test shows that everything works under one ordinary user without any capability too.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound::demo::world::Daemon;
use common::{CHIPBOUND, World, good};
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Users and a group that no machine gives to anybody.
const PROCESSOR: u32 = 54_421;
const CUSTOMER: u32 = 54_422;
const GROUP: u32 = 54_423;
/// In the code of the program.
const MARKER: &str = "only-the-processor-may-read-this/5d0a6e11c27f43b8a9d1e4c6b7f82035";

/// The system as an administrator would install it.
struct Installed {
    world: World,
    /// The command, where everybody may execute it.
    chipbound: PathBuf,
    attacker: PathBuf,
    /// The plain program, as everybody may read it.
    plain: PathBuf,
    /// The package, root:GROUP 0751.
    package: PathBuf,
    /// Where the marker lies in the running program, in hexadecimal.
    address: String,
}

/// Whether two users can be had here; says so where not.
fn root_with_setpriv() -> bool {
    let able = rustix::process::geteuid().is_root() && Command::new("setpriv").arg("--version").output().is_ok_and(|o| o.status.success());
    if !able {
        println!("not run here: only root with setpriv can give a processor its own user");
    }
    able
}

fn own(path: &Path, user: u32) {
    chown(path, Some(user), Some(user)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| own(&entry.unwrap().path(), user));
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Copies the command, by another process: a descriptor of our own could live on in a child of another test, and a file that is open
/// for writing cannot be executed.
fn copied(to: &Path) {
    good(Command::new("cp").arg(CHIPBOUND).arg(to));
    mode(to, 0o755);
}

/// Compiles one of the programs beside this file.
fn compiled(name: &str, options: &[&str], to: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/own_uid").join(name);
    good(Command::new("cc").args(["-O1", "-w"]).args(options).arg("-o").arg(to).arg(source));
    mode(to, 0o755);
}

impl Installed {
    fn new() -> Self {
        let mut world = World::start("", 0);
        let root = world.folder.path().to_owned();
        mode(&root, 0o755);
        let bin = root.join("bin");
        fs::create_dir(&bin).unwrap();
        let chipbound = bin.join("chipbound");
        copied(&chipbound);
        Self::start_processor(&mut world, &chipbound);
        let (plain, attacker) = (bin.join("sold"), bin.join("attacker"));
        compiled("program.c", &["-no-pie"], &plain);
        compiled("attacker.c", &[], &attacker);
        let address = String::from_utf8(good(Command::new(&plain).arg("address")).stdout).unwrap().trim().to_owned();
        let package = bin.join("package");
        let installed = Self { world, chipbound, attacker, plain, package, address };
        installed.buy();
        installed
    }

    /// The daemon under its own user, in the group of the packages, with one capability.
    fn start_processor(world: &mut World, chipbound: &Path) {
        let folder = world.folder.path().join("processor");
        good(Command::new(chipbound).args(["processor", "init", "--dir"]).arg(&folder));
        let toml = folder.join("processor.toml");
        let text = fs::read_to_string(&toml).unwrap().replace("clients = \"own-user\"", "clients = \"everyone\"");
        fs::write(&toml, text).unwrap();
        own(&folder, PROCESSOR);
        mode(&folder, 0o755);
        let (user, group) = (PROCESSOR.to_string(), GROUP.to_string());
        let (caps, bounds) = ("-all,+sys_ptrace", "--bounding-set");
        let mut arguments = vec!["--reuid", &user, "--regid", &user, "--groups", &group, "--inh-caps", caps, "--ambient-caps", caps];
        arguments.extend([bounds, caps, "--", chipbound.to_str().unwrap(), "processor", "run", "--config", toml.to_str().unwrap()]);
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        let log = world.folder.path().join("processor.log");
        let (daemon, _) = world.runtime.block_on(Daemon::start(Path::new("setpriv"), &arguments, &log)).unwrap();
        world.daemons.daemons.push(daemon);
        let socket = folder.join("processor.sock");
        let voucher = world.runtime.block_on(world.daemons.voucher("processor")).unwrap();
        let mut enroll = Command::new(chipbound);
        enroll.args(["processor", "enroll", "--authority", &world.daemons.authority_url, "--voucher", &voucher, "--socket"]).arg(&socket);
        good(enroll.arg("--home").arg(world.folder.path().join("operator")));
        world.daemons.sockets.push(socket);
    }

    /// The customer buys; the administrator installs.
    fn buy(&self) {
        self.world.publish(&self.plain, "sold", "1", &[]);
        own(&self.world.folder.path().join("home-ada"), CUSTOMER);
        own(&self.world.work(""), CUSTOMER);
        good(&mut self.customer(&self.chipbound, &["buy", "sold"]));
        fs::rename(self.world.work("sold"), &self.package).unwrap();
        chown(&self.package, Some(0), Some(GROUP)).unwrap();
        mode(&self.package, 0o751);
    }

    /// A command of the customer: his user, no groups, no capabilities.
    fn customer(&self, program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).uid(CUSTOMER).gid(CUSTOMER).current_dir(self.world.work("")).stdin(Stdio::null());
        command.env("CHIPBOUND_HOME", self.world.home("ada").path()).env("CHIPBOUND_PROCESSOR", &self.world.daemons.sockets[0]);
        command
    }

    /// The customer runs his package.
    fn run(&self, arguments: &[&str]) -> Command {
        let mut command = self.customer(&self.chipbound, &["run", self.package.to_str().unwrap()]);
        command.args(arguments);
        command
    }

    /// Starts a program that says hello and waits.
    fn waiting(&self, mut command: Command) -> Child {
        let mut child = command.arg("wait").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut hello = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello\n");
        child
    }

    /// The ways by which the customer got at a process.
    fn ways_into(&self, pid: u32) -> Vec<String> {
        lines(&good(&mut self.customer(&self.attacker, &["try", &pid.to_string(), &self.address])))
    }

    /// Races against so many starts. How many ran, were refused, ended otherwise; what was opened, traced, duplicated; how many
    /// strange connections were taken; how many descriptors came; how often the code was read.
    fn race(&self, way: &str, rounds: u32, command: &[&Path]) -> [u64; 9] {
        let mut attacker = self.customer(&self.attacker, &["race", way, &rounds.to_string(), &self.address]);
        let output = good(attacker.args(command));
        let words = lines(&output).pop().unwrap();
        println!("{way}: {words}\n{}", String::from_utf8_lossy(&output.stderr)); // What refused starts said.
        let numbers: Vec<u64> = words.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        numbers.try_into().unwrap()
    }

    fn race_run(&self, way: &str, rounds: u32) -> [u64; 9] {
        self.race(way, rounds, &[&self.chipbound, Path::new("run"), &self.package])
    }
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8(output.stdout.clone()).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_customer_runs_what_he_cannot_read_neither_as_a_file_nor_as_his_process() {
    if !root_with_setpriv() {
        return;
    }
    let installed = Installed::new();
    let (plain, run) = (good(&mut installed.customer(&installed.plain, &[])), good(&mut installed.run(&[])));
    assert_eq!((run.stdout, run.stderr), (plain.stdout, plain.stderr));
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
        "maps",
        "environ",
        "exe",
        "pidfd_getfd",
        "ptrace",
        "the code, from mem",
        "the code, by process_vm_readv",
        "the code, by ptrace",
    ] {
        assert!(every_way.iter().any(|w| w == way), "{way} works against a plain program: {every_way:?}");
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
    // The plain program is readable, so that the kernel dumps it, with the pages of its file where it is asked to.
    let plain = format!("sh -c 'echo 0x7f > /proc/self/coredump_filter; exec {} crash'", installed.plain.display());
    let (dumped, dumps) = crash(&plain, "plain");
    match dumps.first() {
        Some(dump) => assert!(dumped && memchr::memmem::find(dump, MARKER.as_bytes()).is_some()),
        None => println!("the control: not run here, this kernel gives its dumps elsewhere or nowhere"),
    }
}

#[test]
fn whoever_races_against_hundreds_of_starts_never_reads_the_code() {
    if !root_with_setpriv() {
        return;
    }
    let installed = Installed::new();
    let [ran, .., leaked] = installed.race("memory", 20, &[&installed.plain]);
    assert!(ran == 20 && leaked > 0, "the race is won against a plain program: {ran} {leaked}");
    let [ran, _, _, opened, .., leaked] = installed.race_run("memory", 300);
    assert!(opened > 0, "the client itself is open, before it becomes the program");
    assert_eq!((ran, leaked), (300, 0));
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
