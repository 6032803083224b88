//! The whole system in one folder: authority, server and processors as child processes of one executable, over real sockets on
//! loopback. The demo lives in it, and so do the command's own tests.

use crate::api::Api;
use crate::client::blocking;
use crate::home::{Home, Session};
use chipbound_transport::ServerTrust;
use chipbound_wire::{Code, Refusal, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a daemon may take to be ready, and to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a daemon that is to end is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// One daemon, ended when it is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `exe arguments…` and waits until it says `ready`; what it says after that word comes along. Its log goes to the
    /// file `log`, where the reason stands if it does not get that far.
    pub async fn start(exe: &Path, arguments: &[&OsStr], log: &Path) -> Result<(Self, String)> {
        let failed = |e| Refusal::io(log.display(), e);
        let to = File::options().create(true).append(true).open(log).map_err(failed)?;
        let mut command = Command::new(exe);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(to);
        let mut child = command.spawn().map_err(|e| Refusal::io(exe.display(), e))?;
        let stdout = child.stdout.take().expect("stdout is piped");
        let daemon = Self { child, log: log.to_owned() };
        let ready = tokio::time::timeout(PATIENCE, blocking(move || ready_line(stdout))).await;
        match ready {
            Ok(Ok(Some(line))) => Ok((daemon, line)),
            Ok(Ok(None)) | Err(_) => Err(daemon.failure(arguments)),
            Ok(Err(refusal)) => Err(refusal),
        }
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its log goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Ends the daemon as an operator would, by SIGTERM, and waits for it; by force when it does not end.
    pub fn stop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if matches!(self.child.try_wait(), Ok(None))
            && let Some(pid) = pid
        {
            let _ = kill_process(pid, Signal::TERM); // It may have ended in between.
        }
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Ends the daemon in the middle of whatever it does (SIGKILL).
    pub fn kill(&mut self) {
        let _ = self.child.kill(); // It may have ended in between.
        let _ = self.child.wait();
    }

    fn failure(&self, arguments: &[&OsStr]) -> Refusal {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it says nothing");
        let name = arguments.iter().take(2).map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ");
        Refusal::new(Code::StartFailed, format!("chipbound {name} did not get ready: {last}"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a daemon says after `ready`; None when it ends without that. Whatever it says later is read and let go, so that it
/// never waits for a reader.
fn ready_line(stdout: ChildStdout) -> Result<Option<String>> {
    let mut lines = BufReader::new(stdout).lines();
    let ready = lines.by_ref().map_while(|l| l.ok()).find_map(|l| l.strip_prefix("ready").map(|rest| rest.trim().to_owned()));
    std::thread::spawn(move || lines.map_while(|l| l.ok()).for_each(drop));
    Ok(ready)
}

/// Runs `exe arguments…` to its end; it ends too when this is cancelled. Fails only where it cannot be started.
pub async fn run(exe: &Path, arguments: &[OsString], folder: &Path) -> Result<(Output, Duration)> {
    let begun = Instant::now();
    let mut command = tokio::process::Command::new(exe);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(|e| Refusal::io(exe.display(), e))?;
    Ok((output, begun.elapsed()))
}

/// The system.
#[derive(Debug)]
pub struct World {
    exe: PathBuf,
    folder: PathBuf,
    /// The authority's address.
    pub authority_url: String,
    /// The server's address.
    pub server_url: String,
    /// The processors' sockets.
    pub sockets: Vec<PathBuf>,
    /// The daemons: authority, server, then the processors.
    pub daemons: Vec<Daemon>,
}

/// The server's private TLS root, below the world's folder.
const TLS_ROOT: &str = "server/tls-root.pem";

impl World {
    /// Makes an authority, a server and so many processors in `folder`, starts them as children of `exe`, and enrolls them.
    /// `policy` is appended to the server's configuration; its table `[policy]` must be opened there.
    pub async fn start(exe: &Path, folder: &Path, processors: usize, policy: &str) -> Result<Self> {
        let (exe, folder) = (exe.to_owned(), folder.to_owned());
        let mut world =
            Self { exe, folder, authority_url: String::new(), server_url: String::new(), sockets: Vec::new(), daemons: Vec::new() };
        let authority = world.path("authority");
        world.chipbound(&["authority", "init", "--listen", "127.0.0.1:0", "--dir"], &[&authority]).await?;
        let ready = world.daemon("authority", &authority.join("authority.toml")).await?;
        world.authority_url = first_url(&ready)?;

        let server = world.path("server");
        let voucher = world.voucher("server").await?;
        let (url, both) = (world.authority_url.clone(), "127.0.0.1:0");
        let arguments = ["server", "init", "--authority", &url, "--voucher", &voucher, "--listen", both, "--line", both, "--dir"];
        world.chipbound(&arguments, &[&server]).await?;
        append(&server.join("server.toml"), policy)?;
        let ready = world.daemon("server", &server.join("server.toml")).await?;
        world.server_url = first_url(&ready)?;

        for number in 1..=processors {
            world.processor(&format!("processor-{number}")).await?;
        }
        Ok(world)
    }

    /// Makes, starts and enrolls one more processor.
    pub async fn processor(&mut self, name: &str) -> Result<PathBuf> {
        let folder = self.path(name);
        self.chipbound(&["processor", "init", "--dir"], &[&folder]).await?;
        self.daemon_of("processor", name, &folder.join("processor.toml")).await?;
        let socket = folder.join("processor.sock");
        let (url, voucher) = (self.authority_url.clone(), self.voucher("processor").await?);
        let home = self.path("operator");
        let arguments = ["processor", "enroll", "--authority", &url, "--voucher", &voucher, "--socket"];
        self.chipbound(&arguments, &[&socket, Path::new("--home"), &home]).await?;
        self.sockets.push(socket.clone());
        Ok(socket)
    }

    /// A one-use voucher for that role.
    pub async fn voucher(&self, role: &str) -> Result<String> {
        let config = self.path("authority/authority.toml");
        let output = self.chipbound(&["authority", "voucher", "--role", role, "--config"], &[&config]).await?;
        Ok(output.lines().next().unwrap_or_default().trim().to_owned())
    }

    /// Makes an account at the server, as its operator does, and puts money on it.
    pub async fn account(&self, user: &str, role: &str, password: &str, deposit: Option<&str>) -> Result<()> {
        let config = self.path("server/server.toml");
        let file = self.path(&format!("{user}.password"));
        chipbound_host::files::write_durably(&file, password.as_bytes(), 0o600)?;
        let arguments = ["server", "account", "add", "--user", user, "--role", role, "--config"];
        self.chipbound(&arguments, &[&config, Path::new("--password-file"), &file]).await?;
        if let Some(amount) = deposit {
            self.chipbound(&["server", "account", "deposit", "--user", user, "--amount", amount, "--config"], &[&config]).await?;
        }
        Ok(())
    }

    /// Logs a user in; the session is in the home that comes back.
    pub async fn log_in(&self, user: &str, password: &str) -> Result<Home> {
        let home = Home::locate(Some(&self.path(&format!("home-{user}"))))?;
        let root = chipbound_host::files::read(&self.path(TLS_ROOT), 16 * 1024)?;
        let granted = Api::log_in(&self.server_url, ServerTrust::root_from_pem(&root)?, user, password).await?;
        let tls_root = Some(String::from_utf8_lossy(&root).into_owned());
        let session = Session {
            server: self.server_url.clone(),
            user: user.to_owned(),
            token: granted.token,
            expires_at: Some(granted.expires_at),
            tls_root,
        };
        home.store_session(&session)?;
        Ok(home)
    }

    /// A path below the world's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The server's private TLS root.
    #[must_use]
    pub fn tls_root(&self) -> PathBuf {
        self.path(TLS_ROOT)
    }

    /// Runs one command to its end and returns what it said; a failure is a refusal with its first words.
    pub async fn chipbound(&self, arguments: &[&str], paths: &[&Path]) -> Result<String> {
        let name = arguments.iter().take(3).copied().collect::<Vec<_>>().join(" ");
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).chain(paths.iter().map(|p| p.as_os_str().to_owned())).collect();
        let (output, _) = run(&self.exe, &arguments, &self.folder).await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().find(|l| !l.is_empty()).unwrap_or("failed without a word");
        Err(Refusal::new(Code::StartFailed, format!("chipbound {name}: {said}")))
    }

    async fn daemon(&mut self, role: &str, config: &Path) -> Result<String> {
        self.daemon_of(role, role, config).await
    }

    async fn daemon_of(&mut self, role: &str, name: &str, config: &Path) -> Result<String> {
        let arguments = [OsStr::new(role), OsStr::new("run"), OsStr::new("--config"), config.as_os_str()];
        let (daemon, ready) = Daemon::start(&self.exe, &arguments, &self.path(&format!("{name}.log"))).await?;
        self.daemons.push(daemon);
        Ok(ready)
    }
}

fn append(path: &Path, text: &str) -> Result<()> {
    let failed = |e| Refusal::io(path.display(), e);
    File::options().append(true).open(path).and_then(|mut f| f.write_all(text.as_bytes())).map_err(failed)
}

fn first_url(ready: &str) -> Result<String> {
    let url = ready.split_whitespace().find(|word| word.starts_with("https://"));
    url.map(str::to_owned).ok_or_else(|| Refusal::new(Code::StartFailed, format!("no address in {ready:?}")))
}
