//! The whole system for one test: real daemons as child processes of the built command, a vendor `acme`, a customer `ada` with
//! money, and a folder in which she works. Everything ends with the value.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub(crate) mod plain;

use chipbound::api::Api;
use chipbound::demo::world::{Daemon, World as Daemons};
use chipbound::home::Home;
use chipbound_wire::Code;
use serde_json::Value;
use std::borrow::BorrowMut;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The built command.
pub(crate) const CHIPBOUND: &str = env!("CARGO_BIN_EXE_chipbound");
/// ada's password.
pub(crate) const PASSWORD: &str = "correct horse battery staple";
/// Places of daemons in their list.
pub(crate) const AUTHORITY: usize = 0;
pub(crate) const SERVER: usize = 1;
pub(crate) const PROCESSOR: usize = 2;
/// How often a log is looked at for what must appear in it, and how long between two looks.
const LOOKS: usize = 400;
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What ada has at first.
pub(crate) const DEPOSIT: &str = "100.00 EUR";

/// The system.
pub(crate) struct World {
    /// The daemons; dropped before their folder.
    pub(crate) daemons: Daemons,
    /// Runs what is asynchronous.
    pub(crate) runtime: Runtime,
    /// Everything is in here.
    pub(crate) folder: TempDir,
}

impl World {
    /// One authority, one server with these lines in its `[policy]`, so many processors.
    pub(crate) fn start(policy: &str, processors: usize) -> Self {
        Self::start_by(Path::new(CHIPBOUND), policy, processors)
    }

    /// The same with `exe` in the command's place: something that becomes the command in the end.
    pub(crate) fn start_by(exe: &Path, policy: &str, processors: usize) -> Self {
        Self::start_on(exe, policy, processors, None)
    }

    /// The same with the books in the database of that URL.
    pub(crate) fn start_on(exe: &Path, policy: &str, processors: usize, database: Option<&str>) -> Self {
        let folder = tempfile::Builder::new().prefix("chipbound-test-").tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let daemons = runtime.block_on(async {
            let mut daemons = Daemons::start(exe, folder.path(), processors, policy).await.unwrap();
            if let Some(url) = database {
                move_books(exe, &mut daemons, url).await;
            }
            daemons.account("ada", "customer", PASSWORD, Some(DEPOSIT)).await.unwrap();
            daemons.account("acme", "vendor", PASSWORD, None).await.unwrap();
            daemons.log_in("ada", PASSWORD).await.unwrap();
            daemons.log_in("acme", PASSWORD).await.unwrap();
            let voucher = daemons.voucher("vendor").await.unwrap();
            let arguments = ["vendor", "init", "--authority", &daemons.authority_url, "--voucher", &voucher, "--home"];
            daemons.chipbound(&arguments, &[&daemons.path("home-acme")]).await.unwrap();
            daemons
        });
        std::fs::create_dir(folder.path().join("work")).unwrap();
        Self { daemons, runtime, folder }
    }

    /// A path in the folder in which ada works.
    pub(crate) fn work(&self, name: &str) -> PathBuf {
        self.folder.path().join("work").join(name)
    }

    /// `user`'s home.
    pub(crate) fn home(&self, user: &str) -> Home {
        Home::locate(Some(&self.folder.path().join(format!("home-{user}")))).unwrap()
    }

    /// The API in ada's name.
    pub(crate) fn api(&self) -> Api {
        Api::with(&self.home("ada").session().unwrap()).unwrap()
    }

    /// The command as `user` on the first processor, in ada's working folder, with nothing on stdin.
    pub(crate) fn as_user(&self, user: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(CHIPBOUND);
        command.args(arguments).current_dir(self.work("")).stdin(Stdio::null());
        command.env("CHIPBOUND_HOME", self.home(user).path()).env("CHIPBOUND_PROCESSOR", &self.daemons.sockets[0]);
        command
    }

    /// The command as ada.
    pub(crate) fn ada(&self, arguments: &[&str]) -> Command {
        self.as_user("ada", arguments)
    }

    /// acme publishes a file for 10 EUR.
    pub(crate) fn publish(&self, file: &Path, name: &str, version: &str, more: &[&str]) {
        let mut command = self.as_user("acme", &["publish", "--name", name, "--version", version, "--price", "10 EUR"]);
        good(command.args(["--class", "software"]).args(more).arg(file));
    }

    /// ada buys a program into her working folder.
    pub(crate) fn buy(&self, name: &str, more: &[&str]) -> PathBuf {
        good(self.ada(&["buy", name]).args(more));
        self.work(name)
    }

    /// What ada can spend and what is held, as text.
    pub(crate) fn balance(&self) -> (String, String) {
        let account = json_lines(&good(self.ada(&["--json", "balance"]))).remove(0);
        let text = |name: &str| {
            let amount = &account["balances"][0][name];
            format!(
                "{}.{:02} {}",
                amount["minor"].as_u64().unwrap() / 100,
                amount["minor"].as_u64().unwrap() % 100,
                amount["currency"].as_str().unwrap()
            )
        };
        (text("available"), text("held"))
    }

    /// All orders that the server keeps a receipt for.
    pub(crate) fn receipts(&self) -> usize {
        self.runtime.block_on(async { self.api().receipts(None, 256).await.unwrap().receipts.len() })
    }

    /// The log of a daemon: [`AUTHORITY`], [`SERVER`], [`PROCESSOR`], or the next processors after it.
    pub(crate) fn log(&self, daemon: usize) -> String {
        std::fs::read_to_string(self.daemons.daemons[daemon].log()).unwrap()
    }

    /// Waits for a line of the daemon's log, after its first `before` bytes, that is `wanted`.
    #[track_caller]
    pub(crate) fn awaits(&self, daemon: usize, before: usize, wanted: impl Fn(&str) -> bool, what: &str) {
        for _ in 0..LOOKS {
            if self.log(daemon)[before..].lines().any(&wanted) {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        panic!("{what:?} is not in the log of daemon {daemon}:\n{}", &self.log(daemon)[before..]);
    }

    /// The names in ada's working folder.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.work("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Starts the server, which has nothing yet, anew: under the address that it had, with its books in another database.
async fn move_books(exe: &Path, daemons: &mut Daemons, url: &str) {
    let config = daemons.path("server/server.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let address = daemons.server_url.trim_start_matches("https://");
    let moved = text.replacen("listen = \"127.0.0.1:0\"", &format!("listen = \"{address}\""), 1);
    let moved = moved.replacen("# url = \"sqlite:server.db\"", &format!("url = \"{url}\""), 1);
    std::fs::write(&config, moved).unwrap();
    daemons.daemons[SERVER].stop();
    let arguments = ["server".as_ref(), "run".as_ref(), "--config".as_ref(), config.as_os_str()];
    daemons.daemons[SERVER] = Daemon::start(exe, &arguments, &daemons.path("server.log")).await.unwrap().0;
}

/// The auditor finds nothing in the books.
#[track_caller]
pub(crate) fn audited(world: &World) {
    let config = world.folder.path().join("server/server.toml");
    let audit = good(Command::new(CHIPBOUND).args(["--json", "server", "audit", "--config"]).arg(config));
    assert_eq!(json_lines(&audit).last().unwrap()["clean"], true);
}

/// True in a process whose mounts are its own. Elsewhere it runs the test of that name once more in such a process, and the test has nothing
/// left to do.
#[track_caller]
pub(crate) fn in_own_mounts(test: &str) -> bool {
    const INSIDE: &str = "CHIPBOUND_TEST_OWN_MOUNTS";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !rustix::process::geteuid().is_root() {
        println!("not run here: only root makes mounts");
        return false;
    }
    let mut again = Command::new("unshare");
    again.args(["-m", "--"]).arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let output = good(&mut again);
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    false
}

/// Writes a script that can be executed. Another process writes it: a descriptor of our own could live on in a child of another test,
/// and a file that is open for writing cannot be executed.
pub(crate) fn script(path: &Path, text: &str) {
    good(Command::new("sh").args(["-c", r#"printf '%s\n' "$1" > "$2"; chmod 755 "$2""#, "sh", text]).arg(path));
}

/// Runs a command that must succeed.
#[track_caller]
pub(crate) fn good(mut command: impl BorrowMut<Command>) -> Output {
    let command = command.borrow_mut();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {:?}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs a command that must be refused with that code, in words and in its exit code; returns what it said.
#[track_caller]
pub(crate) fn refused(mut command: impl BorrowMut<Command>, code: Code) -> String {
    let command = command.borrow_mut();
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("error[{code}]: ")), "{command:?}: {:?}\n{said}", output.status);
    assert!(said.contains(&format!("what to do: {}", code.advice())), "{said}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    let started = command.get_args().next() == Some(OsStr::new("run"));
    let expected = if started { 126 } else { i32::from(code.fault().exit_code()) };
    assert_eq!(output.status.code(), Some(expected), "{said}");
    said
}

/// Runs a command that must be refused as [`refused`] says, and finds the same refusal in the log of each of these daemons, in the
/// words that stand on the terminal.
#[track_caller]
pub(crate) fn refused_at(world: &World, daemons: &[usize], command: impl BorrowMut<Command>, code: Code) -> String {
    let before: Vec<_> = daemons.iter().map(|daemon| world.log(*daemon).len()).collect();
    let said = refused(command, code);
    let words = said.lines().find_map(|line| line.strip_prefix(&format!("error[{code}]: "))).unwrap();
    assert!(!words.is_empty(), "{said}");
    // As a field in quotes, or after its code.
    let forms = [format!("code={code} detail={words:?}"), format!("={code}: {words}")];
    for (daemon, before) in daemons.iter().zip(before) {
        world.awaits(*daemon, before, |line| forms.iter().any(|form| line.contains(form)), &forms[1]);
    }
    said
}

/// The lines of stdout as JSON.
pub(crate) fn json_lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// A file of so many bytes that repeat nothing.
pub(crate) fn noise(path: &Path, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(path.as_os_str().as_encoded_bytes()).finalize_xof().fill(&mut bytes);
    std::fs::File::create(path).unwrap().write_all(&bytes).unwrap();
    bytes
}

/// A copy with one bit flipped.
pub(crate) fn flipped(file: &Path, copy: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 1;
    std::fs::write(copy, bytes).unwrap();
    std::fs::set_permissions(copy, std::fs::metadata(file).unwrap().permissions()).unwrap();
}
