//! The system as an administrator would install it: the processor under a user of its own with CAP_SYS_PTRACE alone, and a customer
//! whose package he may execute but not read. Only root can set that up.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use super::common::{CHIPBOUND, World, good};
use chipbound::demo::world::Daemon;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Users and a group that no machine gives to anybody.
pub(crate) const PROCESSOR: u32 = 54_421;
pub(crate) const CUSTOMER: u32 = 54_422;
pub(crate) const GROUP: u32 = 54_423;
/// In the code of the program.
pub(crate) const MARKER: &str = "only-the-processor-may-read-this/5d0a6e11c27f43b8a9d1e4c6b7f82035";

/// The system as an administrator would install it.
pub(crate) struct Installed {
    pub(crate) world: World,
    /// The command, where everybody may execute it.
    pub(crate) chipbound: PathBuf,
    pub(crate) attacker: PathBuf,
    /// The plain program, as everybody may read it.
    pub(crate) plain: PathBuf,
    /// The package, root:GROUP 0751.
    pub(crate) package: PathBuf,
    /// Where the marker lies in the running program, in hexadecimal.
    pub(crate) address: String,
}

/// Whether two users can be had here; says so where not.
pub(crate) fn root_with_setpriv() -> bool {
    let able = rustix::process::geteuid().is_root() && Command::new("setpriv").arg("--version").output().is_ok_and(|o| o.status.success());
    if !able {
        println!("not run here: only root with setpriv can give a processor its own user");
    }
    able
}

pub(crate) fn own(path: &Path, user: u32) {
    chown(path, Some(user), Some(user)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| own(&entry.unwrap().path(), user));
    }
}

pub(crate) fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Copies the command, by another process: a descriptor of our own could live on in a child of another test, and a file that is open
/// for writing cannot be executed.
pub(crate) fn copied(to: &Path) {
    good(Command::new("cp").arg(CHIPBOUND).arg(to));
    mode(to, 0o755);
}

/// Compiles one of the programs beside this file.
pub(crate) fn compiled(name: &str, options: &[&str], to: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/own_uid").join(name);
    good(Command::new("cc").args(["-O1", "-w"]).args(options).arg("-o").arg(to).arg(source));
    mode(to, 0o755);
}

impl Installed {
    pub(crate) fn new() -> Self {
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
        installed.install(&installed.plain, "sold", &installed.package, &[]);
        installed
    }

    /// The daemon under its own user, in the group of the packages, with one capability.
    pub(crate) fn start_processor(world: &mut World, chipbound: &Path) {
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

    /// The vendor publishes, the customer buys, the administrator installs.
    pub(crate) fn install(&self, plain: &Path, name: &str, to: &Path, more: &[&str]) {
        self.world.publish(plain, name, "1", more);
        own(&self.world.folder.path().join("home-ada"), CUSTOMER);
        own(&self.world.work(""), CUSTOMER);
        good(&mut self.customer(&self.chipbound, &["buy", name]));
        fs::rename(self.world.work(name), to).unwrap();
        chown(to, Some(0), Some(GROUP)).unwrap();
        mode(to, 0o751);
    }

    /// A command of the customer: his user, no groups, no capabilities.
    pub(crate) fn customer(&self, program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).uid(CUSTOMER).gid(CUSTOMER).current_dir(self.world.work("")).stdin(Stdio::null());
        command.env("CHIPBOUND_HOME", self.world.home("ada").path()).env("CHIPBOUND_PROCESSOR", &self.world.daemons.sockets[0]);
        command
    }

    /// The customer runs his package.
    pub(crate) fn run(&self, arguments: &[&str]) -> Command {
        self.run_package(&self.package, arguments)
    }

    /// The customer runs another package.
    pub(crate) fn run_package(&self, package: &Path, arguments: &[&str]) -> Command {
        let mut command = self.customer(&self.chipbound, &["run", package.to_str().unwrap()]);
        command.args(arguments);
        command
    }

    /// Starts a program that says hello and waits.
    pub(crate) fn waiting(&self, mut command: Command) -> Child {
        command.arg("wait");
        self.waiting_as(command)
    }

    /// The same for a command that says so itself.
    pub(crate) fn waiting_as(&self, mut command: Command) -> Child {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut hello = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello\n");
        child
    }

    /// The ways by which the customer got at a process.
    pub(crate) fn ways_into(&self, pid: u32) -> Vec<String> {
        lines(&good(&mut self.customer(&self.attacker, &["try", &pid.to_string(), &self.address])))
    }

    /// Races against so many starts. How many ran, were refused, ended otherwise; what was opened, traced, duplicated; how many
    /// strange connections were taken; how many descriptors came; how often the code was read.
    pub(crate) fn race(&self, way: &str, rounds: u32, command: &[&Path]) -> [u64; 9] {
        self.race_in(way, rounds, Path::new("/lib64/ld-linux-x86-64.so.2"), command)
    }

    /// The same for programs that begin in this interpreter.
    pub(crate) fn race_in(&self, way: &str, rounds: u32, interpreter: &Path, command: &[&Path]) -> [u64; 9] {
        let mut attacker = self.customer(&self.attacker, &["race", way, &rounds.to_string(), &self.address]);
        let output = good(attacker.args(command).env("INTERPRETER", interpreter));
        let words = lines(&output).pop().unwrap();
        println!("{way}: {words}\n{}", String::from_utf8_lossy(&output.stderr)); // What refused starts said.
        let numbers: Vec<u64> = words.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        numbers.try_into().unwrap()
    }

    pub(crate) fn race_run(&self, way: &str, rounds: u32) -> [u64; 9] {
        self.race(way, rounds, &[&self.chipbound, Path::new("run"), &self.package])
    }

    /// As [`race_run`](Self::race_run), against the package executed by its own name.
    pub(crate) fn race_direct(&self, way: &str, rounds: u32) -> [u64; 9] {
        self.race(way, rounds, &[&self.package])
    }
}

pub(crate) fn lines(output: &Output) -> Vec<String> {
    String::from_utf8(output.stdout.clone()).unwrap().lines().map(str::to_owned).collect()
}
