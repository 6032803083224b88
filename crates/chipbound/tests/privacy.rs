//! More ways of a customer to his program's code, beside those in `own_uid.rs`: signals and debuggers that dump it, variables and
//! libraries that look at it from inside, a launcher that asks to be traced, swap. The processor has a user of its own with CAP_SYS_PTRACE
//! alone, the package is root:GROUP 0751. Each attack is shown to succeed where nothing protects the program.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "own_uid/installed.rs"]
mod installed;

use common::good;
use installed::{CUSTOMER, Installed, MARKER, compiled, lines, mode, own, root_with_setpriv};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

/// A folder of the customer's own.
fn customers_folder(installed: &Installed, name: &str) -> PathBuf {
    let folder = installed.world.work(name);
    fs::create_dir(&folder).unwrap();
    own(&folder, CUSTOMER);
    folder
}

fn contents(folder: &Path) -> Vec<Vec<u8>> {
    fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
}

fn shows_the_code(dump: &[u8]) -> bool {
    memchr::memmem::find(dump, MARKER.as_bytes()).is_some()
}

/// Sends a signal and waits for the end.
fn ended_by(mut child: Child, signal: Signal) -> bool {
    kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), signal).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(signal.as_raw()));
    status.core_dumped()
}

#[test]
fn no_signal_makes_the_kernel_dump_the_code() {
    if !root_with_setpriv() {
        return;
    }
    let installed = Installed::new();
    let folder = customers_folder(&installed, "dumps");
    let unlimited = |program: &Path, arguments: &str| {
        let script = format!("ulimit -c unlimited; echo 0x7f >/proc/self/coredump_filter; exec {} {arguments} wait", program.display());
        let mut command = installed.customer("sh", &["-c", &script]);
        command.current_dir(&folder);
        command
    };
    let run = format!("run {}", installed.package.display());
    for signal in [Signal::ABORT, Signal::QUIT, Signal::TRAP, Signal::SYS, Signal::BUS] {
        let child = installed.waiting_as(unlimited(&installed.chipbound, &run));
        assert!(!ended_by(child, signal), "{signal:?} dumps");
        assert_eq!(contents(&folder), Vec::<Vec<u8>>::new(), "{signal:?}");
    }
    let dumped = ended_by(installed.waiting_as(unlimited(&installed.plain, "")), Signal::QUIT);
    match contents(&folder).first() {
        Some(dump) => assert!(dumped && shows_the_code(dump)),
        None => println!("the control: not run here, this kernel gives its dumps elsewhere or nowhere"),
    }
}

#[test]
fn a_debugger_of_the_customer_dumps_a_plain_program_and_not_a_protected_one() {
    if !root_with_setpriv() {
        return;
    }
    if !Command::new("gdb").arg("--version").output().is_ok_and(|o| o.status.success()) {
        println!("not run here: there is no gdb");
        return;
    }
    let installed = Installed::new();
    let folder = customers_folder(&installed, "dumps");
    let dump = |child: &Child| {
        let (pid, at) = (child.id().to_string(), &installed.address);
        let mut gdb = installed.customer("gdb", &["-nx", "--batch", "-iex", "set debuginfod enabled off", "-p", &pid]);
        gdb.args(["-ex", "gcore core", "-ex", &format!("dump binary memory code 0x{at} 0x{at}+66")]);
        gdb.current_dir(&folder).env("HOME", &folder).output().unwrap()
    };
    let protected = installed.waiting(installed.run(&[]));
    let said = dump(&protected);
    assert_eq!(contents(&folder), Vec::<Vec<u8>>::new(), "{said:?}");
    assert!(protected.wait_with_output().unwrap().status.success());
    let plain = installed.waiting(installed.customer(&installed.plain, &[]));
    let said = dump(&plain);
    assert!(folder.join("core").exists() && contents(&folder).iter().any(|dump| shows_the_code(dump)), "the control: {said:?}");
    plain.wait_with_output().unwrap();
}

#[test]
fn a_launcher_that_asks_to_be_traced_never_shows_the_code() {
    if !root_with_setpriv() {
        return;
    }
    let installed = Installed::new();
    let [.., traced, _, _, _, leaked] = installed.race("asked", 3, &[&installed.plain]);
    assert!(traced > 0 && leaked > 0, "a plain program is traced: {traced} {leaked}");
    let [ran, refused, others, _, traced, _, _, _, leaked] = installed.race_run("asked", 20);
    assert!(traced > 0 && ran == 0, "{traced} stops, {ran} ran");
    assert_eq!((refused + others, leaked), (20, 0));
    let [ran, refused, others, _, traced, _, _, _, leaked] = installed.race_direct("asked", 20);
    assert!(traced > 0 && ran == 0, "{traced} stops, {ran} ran");
    assert_eq!((refused + others, leaked), (20, 0), "started directly");
    good(&mut installed.run(&[]));
}

/// Who traces a process over its exec moves its registers, even where he cannot read its memory: he makes it open itself to him, closes
/// it again and lets it go. So the process of a direct start execs once more, with the processor as its tracer.
#[test]
fn whoever_held_the_process_at_its_exec_has_nothing_of_it_when_the_program_begins() {
    if !root_with_setpriv() {
        return;
    }
    let installed = Installed::new();
    // A plain program that its user may execute and not read.
    let unreadable = installed.world.folder.path().join("bin/unreadable");
    good(Command::new("cp").arg(&installed.plain).arg(&unreadable));
    mode(&unreadable, 0o711);
    let [ran, _, _, opened, traced, .., leaked] = installed.race("held", 5, &[&unreadable]);
    assert!(leaked > 0, "the control: {ran} ran, {opened} opened, {traced} traced, {leaked} leaked");
    let interpreter = installed.world.folder.path().join("processor/interpreter");
    let [ran, _, _, opened, traced, .., leaked] = installed.race_in("held", 50, &interpreter, &[&installed.package]);
    assert_eq!((ran, opened, traced, leaked), (50, 50, 50, 0));
}

/// A filter of system calls whose owner answers in the kernel's place: with a socket of which he keeps a duplicate.
#[test]
fn under_a_filter_whose_owner_answers_its_calls_no_program_starts_that_forbids_foreign_code() {
    if !root_with_setpriv() {
        return;
    }
    let installed = Installed::new();
    let open = installed.world.folder.path().join("bin/open.package");
    installed.install(&installed.plain, "open", &open, &["--loader-variables", "allow"]);
    let [.., sockets, _, descriptors, leaked] = installed.race("answered", 5, &[&open]);
    assert!(sockets > 0 && descriptors > 0 && leaked > 0, "the control: {sockets} sockets, {descriptors} descriptors, {leaked} leaked");
    for command in [&[&*installed.package][..], &[&installed.chipbound, Path::new("run"), &installed.package]] {
        let [ran, refused, others, .., descriptors, leaked] = installed.race("answered", 20, command);
        assert_eq!((ran, refused, others, descriptors, leaked), (0, 20, 0, 0, 0), "{command:?}");
    }
    let log = fs::read_to_string(installed.world.folder.path().join("processor.log")).unwrap();
    assert!(log.contains("foreign_filter"), "the processor names the reason");
    good(&mut installed.run(&[]));
}

/// What the dynamic linkers of glibc and musl read, and of glibc's own list what changes which code runs or what it takes for its own.
const VARIABLES: &[&str] = &[
    "LD_ASSUME_KERNEL",
    "LD_AUDIT",
    "LD_BIND_NOT",
    "LD_BIND_NOW",
    "LD_DEBUG",
    "LD_DEBUG_OUTPUT",
    "LD_DYNAMIC_WEAK",
    "LD_HWCAP_MASK",
    "LD_LIBRARY_PATH",
    "LD_ORIGIN_PATH",
    "LD_POINTER_GUARD",
    "LD_PRELOAD",
    "LD_PREFER_MAP_32BIT_EXEC",
    "LD_PROFILE",
    "LD_PROFILE_OUTPUT",
    "LD_SHOW_AUXV",
    "LD_USE_LOAD_BIAS",
    "LD_WARN",
    "GLIBC_TUNABLES",
    "GCONV_PATH",
    "LOCPATH",
    "MUSL_LOCPATH",
    "NLSPATH",
    "MALLOC_TRACE",
];

#[test]
fn no_variable_of_a_dynamic_linker_reaches_the_program_and_none_leaves_a_trace() {
    if !root_with_setpriv() {
        return;
    }
    let installed = Installed::new();
    let folder = customers_folder(&installed, "traces");
    let asked = |mut command: Command| {
        command.arg("variables").args(VARIABLES).arg("TZDIR").env("TZDIR", "/nowhere");
        command.envs(VARIABLES.iter().map(|name| (name, "")));
        let mut found = lines(&good(&mut command));
        found.retain(|line| VARIABLES.contains(&line.as_str()) || line == "TZDIR"); // LD_SHOW_AUXV has things to say as well.
        found
    };
    assert_eq!(asked(installed.customer(&installed.plain, &[])).len(), VARIABLES.len() + 1, "the control");
    assert_eq!(asked(installed.run(&[])), ["TZDIR"]);
    assert_eq!(asked(installed.customer(&installed.package, &[])), ["TZDIR"], "started directly");
    // Told to, the dynamic linker of a plain program writes down what it does, and measures a library.
    let traced = |mut command: Command| {
        let output = folder.join("trace");
        command.env("LD_DEBUG", "all").env("LD_DEBUG_OUTPUT", &output).env("LD_PROFILE", "libc.so.6").env("LD_PROFILE_OUTPUT", &folder);
        let pid = installed.waiting(command).wait_with_output().map(drop);
        pid.unwrap();
        let found = contents(&folder);
        fs::read_dir(&folder).unwrap().for_each(|entry| fs::remove_file(entry.unwrap().path()).unwrap());
        found.iter().filter(|text| memchr::memmem::find(text, b"transferring control: ").is_some()).cloned().collect::<Vec<_>>()
    };
    let of = |found: Vec<Vec<u8>>, program: &Path| {
        let line = format!("transferring control: {}\n", program.display());
        found.iter().any(|text| memchr::memmem::find(text, line.as_bytes()).is_some())
    };
    assert!(of(traced(installed.customer(&installed.plain, &[])), &installed.plain), "the control");
    assert!(!of(traced(installed.run(&[])), &installed.package), "the protected program's own linker says nothing");
    assert!(!of(traced(installed.customer(&installed.package, &[])), &installed.package), "nor where it is started directly");
}

/// A program with a library that needs another, as an administrator would install them: program in `bin`, libraries in `lib`.
struct Linked {
    installed: Installed,
    package: PathBuf,
    lib: PathBuf,
    /// Where the marker lies.
    address: String,
    /// A library of the customer's in the place of the vendor's.
    spy: PathBuf,
}

impl Linked {
    fn new(run_path: &str, more: &[&str]) -> Self {
        let installed = Installed::new();
        let root = installed.world.folder.path().to_owned();
        let lib = root.join("lib");
        fs::create_dir(&lib).unwrap();
        let shared = ["-shared", "-fPIC", "-L", lib.to_str().unwrap()];
        compiled("second.c", &shared, &lib.join("libsecond.so"));
        compiled_late("helper.c", &[&shared[..], &["-Wl,-rpath,$ORIGIN"]].concat(), &["-lsecond"], &lib.join("libhelper.so"));
        let (plain, package) = (root.join("bin/linked"), root.join("bin/linked.package"));
        let path = format!("-Wl,-rpath,{run_path}");
        let link = ["-L", lib.to_str().unwrap(), "-Wl,-rpath-link", lib.to_str().unwrap()];
        compiled_late("linked.c", &[&["-no-pie", &path], &link[..]].concat(), &["-lhelper"], &plain);
        installed.install(&plain, "linked", &package, more);
        let address = lines(&good(installed.customer(&plain, &["address"]).env("LD_LIBRARY_PATH", &lib))).remove(0);
        let spy = customers_folder(&installed, "own").join("libhelper.so");
        compiled("library.c", &["-shared", "-fPIC"], &spy);
        own(&spy, CUSTOMER);
        Self { installed, package, lib, address, spy }
    }

    fn run(&self) -> Output {
        self.installed.run_package(&self.package, &[]).env("MARKER_AT", &self.address).output().unwrap()
    }

    #[track_caller]
    fn runs(&self) {
        assert_eq!(lines(&good(&mut self.installed.run_package(&self.package, &[]))), ["the vendor's"]);
    }

    #[track_caller]
    fn is_refused_for(&self, named: &Path) {
        let output = self.run();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(126), true), "{output:?}");
        assert!(said.contains("foreign_library") && said.contains(&format!("{}", named.display())), "{said}");
    }
}

/// As `compiled`, with libraries behind the source.
fn compiled_late(name: &str, options: &[&str], libraries: &[&str], to: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/own_uid").join(name);
    good(Command::new("cc").args(["-O1", "-w"]).args(options).arg("-o").arg(to).arg(source).args(libraries));
    mode(to, 0o755);
}

#[test]
fn a_library_or_folder_that_could_be_the_customers_is_refused_by_name_and_origin_works() {
    if !root_with_setpriv() {
        return;
    }
    let linked = Linked::new("$ORIGIN/../lib", &[]);
    let (helper, second) = (linked.lib.join("libhelper.so"), linked.lib.join("libsecond.so"));
    linked.runs();
    for library in [&helper, &second] {
        mode(library, 0o777);
        linked.is_refused_for(library);
        mode(library, 0o755);
        chown(library, Some(CUSTOMER), None).unwrap();
        linked.is_refused_for(library);
        chown(library, Some(0), None).unwrap();
    }
    for bits in [0o777, 0o775, 0o1777] {
        mode(&linked.lib, bits);
        linked.is_refused_for(&linked.lib);
    }
    mode(&linked.lib, 0o755);
    linked.runs();
    // By a link into a folder of the customer's.
    let kept = linked.lib.join("kept.so");
    fs::rename(&helper, &kept).unwrap();
    symlink(&linked.spy, &helper).unwrap();
    linked.is_refused_for(&linked.installed.world.folder.path().join("work"));
    fs::remove_file(&helper).unwrap();
    fs::rename(&kept, &helper).unwrap();
    linked.runs();
    // A folder for better processors inside the administrator's.
    let better = linked.lib.join("glibc-hwcaps");
    fs::create_dir(&better).unwrap();
    own(&better, CUSTOMER);
    linked.is_refused_for(&better);
    fs::remove_dir(&better).unwrap();
    linked.runs();
    // The customer's variable does not help him.
    let mut tried = linked.installed.run_package(&linked.package, &[]);
    tried.env("LD_LIBRARY_PATH", linked.spy.parent().unwrap()).env("MARKER_AT", &linked.address);
    assert_eq!(lines(&good(&mut tried)), ["the vendor's"]);
}

#[test]
fn a_library_path_that_the_customer_chooses_is_refused() {
    if !root_with_setpriv() {
        return;
    }
    let linked = Linked::new("lib:$ORIGIN/../lib", &[]);
    linked.is_refused_for(Path::new("lib depends on the folder in which the program is started"));
}

#[test]
fn where_the_vendor_allows_it_the_customers_library_is_loaded() {
    if !root_with_setpriv() {
        return;
    }
    let linked = Linked::new("$ORIGIN/../lib", &["--loader-variables", "allow"]);
    linked.runs();
    for mut command in [linked.installed.run_package(&linked.package, &[]), linked.installed.customer(&linked.package, &[])] {
        let output = good(command.env("LD_LIBRARY_PATH", linked.spy.parent().unwrap()).env("MARKER_AT", &linked.address));
        assert!(memchr::memmem::find(&output.stdout, &MARKER.as_bytes()[..64]).is_some(), "{output:?}");
    }
}
