//! A whole installation in one folder: authority, server and processor as processes of their own, a vendor and a customer, all
//! by the commands that an operator would type.

use crate::nginx::free_port;
use crate::process::{Daemon, output};
use crate::{Outcome, failed};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the vendor's and the customer's accounts log in with.
const PASSWORD: &str = "correct horse battery staple";
/// What each release costs.
const PRICE: &str = "0.01 EUR";
/// What the customer has to spend.
const FUNDS: &str = "1000000.00 EUR";

/// Direct or common key mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeyMode {
    Direct,
    Common,
}

impl KeyMode {
    /// As the command takes it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Common => "common",
        }
    }
}

/// How the second path reaches the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    Tunnel,
    OwnLine,
}

impl Way {
    /// For people.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::OwnLine => "own line",
        }
    }
}

/// The running installation. The daemons end when it is dropped.
pub(crate) struct Lab {
    folder: PathBuf,
    chipbound: PathBuf,
    /// `https://host:port` of the server.
    url: String,
    processor: Option<Daemon>,
    server: Daemon,
    _authority: Daemon,
}

impl Lab {
    /// Sets everything up in `folder` with the command at `chipbound`.
    pub(crate) fn start(folder: &Path, chipbound: &Path) -> Outcome<Self> {
        fs::create_dir_all(folder)?;
        let setup = Setup { folder, chipbound };
        let (authority_port, server_port, line_port) = (free_port()?, free_port()?, free_port()?);
        let (authority_url, server_url) = (format!("https://127.0.0.1:{authority_port}"), format!("https://127.0.0.1:{server_port}"));
        setup.role("authority", &format!("init --dir authority --listen 127.0.0.1:{authority_port}"))?;
        let authority = setup.daemon("authority")?;

        let voucher = setup.voucher("server")?;
        let listen = format!("--listen 127.0.0.1:{server_port} --line 127.0.0.1:{line_port}");
        setup.role("server", &format!("init --dir server --authority {authority_url} --voucher {voucher} {listen}"))?;
        // All customers come from one address here.
        let config = folder.join("server/server.toml");
        let rates = "[admission]\nhandshakes_per_second = 100000\nhandshakes_per_second_of_an_address = 100000";
        fs::write(&config, fs::read_to_string(&config)?.replace("[admission]", rates))?;
        let server = setup.daemon("server")?;

        setup.role("processor", "init --dir processor")?;
        let processor = setup.daemon("processor")?;
        let voucher = setup.voucher("processor")?;
        let enroll = format!("processor enroll --authority {authority_url} --voucher {voucher} --socket processor/processor.sock");
        setup.say(&format!("{enroll} --home customer"))?;

        let voucher = setup.voucher("vendor")?;
        setup.say(&format!("vendor init --authority {authority_url} --voucher {voucher} --home vendor"))?;
        setup.account(&server_url, "vendor", "vendor")?;
        setup.account(&server_url, "customer", "customer")?;
        let (folder, chipbound) = (folder.to_owned(), chipbound.to_owned());
        Ok(Self { folder, chipbound, url: server_url, processor: Some(processor), server, _authority: authority })
    }

    fn setup(&self) -> Setup<'_> {
        Setup { folder: &self.folder, chipbound: &self.chipbound }
    }

    /// The server's process.
    pub(crate) fn server(&self) -> i32 {
        self.server.pid()
    }

    /// The processor's process.
    pub(crate) fn processor(&self) -> Outcome<i32> {
        self.processor.as_ref().map(Daemon::pid).ok_or_else(|| failed("the processor does not run"))
    }

    /// The processor's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("processor/processor.sock")
    }

    /// One more customer with money, logged in; where their home is.
    pub(crate) fn customer(&self, user: &str) -> Outcome<PathBuf> {
        self.setup().account(&self.url, user, "customer")?;
        Ok(self.folder.join(user))
    }

    /// Ends the processor and starts it again, with nothing in its memory.
    pub(crate) fn restart_processor(&mut self) -> Outcome<()> {
        drop(self.processor.take());
        self.processor = Some(self.setup().daemon("processor")?);
        Ok(())
    }

    /// The vendor's command that publishes `file` as `name`.
    pub(crate) fn publish(&self, file: &Path, name: &str, data: bool) -> Command {
        let mut command = self.setup().command("--home vendor publish");
        command.arg(file).args(["--name", name, "--version", "1.0", "--price", PRICE, "--class", "software"]);
        if data {
            command.args(["--format", "data", "--open-to-file"]);
        }
        command
    }

    /// The customer's command that buys `name` into `to`.
    pub(crate) fn buy(&self, name: &str, key_mode: KeyMode, way: Way, to: &Path) -> Command {
        let mut command = self.setup().command(&format!("--home customer --json buy {name} --again --key-mode {}", key_mode.as_str()));
        command.arg("--output").arg(to);
        if way == Way::OwnLine {
            command.arg("--own-line");
        }
        command
    }

    /// The command that opens a package of data to a file.
    pub(crate) fn open(&self, package: &Path, to: &Path) -> Command {
        let mut command = self.setup().command("--home customer open");
        command.arg(package).arg("--output").arg(to);
        command
    }

    /// Any program, in the installation's folder as all of its commands.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder);
        command
    }

    /// The command that runs a package, as short as a user types it.
    pub(crate) fn run(&self, package: &Path) -> Command {
        let mut command = self.setup().command("run --processor processor/processor.sock");
        command.arg(package);
        command
    }

    /// The same with data, `NAME=PACKAGE`.
    pub(crate) fn run_with(&self, data: &str, package: &Path) -> Command {
        let mut command = self.setup().command("run --processor processor/processor.sock --with");
        command.arg(data).arg(package);
        command
    }

    /// The same in this way of mapping.
    pub(crate) fn run_as(&self, mapping: &str, package: &Path) -> Command {
        let mut command = self.setup().command(&format!("run --processor processor/processor.sock --mapping {mapping}"));
        command.arg(package);
        command
    }
}

/// The commands before there is an installation. Their arguments are words without spaces.
struct Setup<'a> {
    folder: &'a Path,
    chipbound: &'a Path,
}

impl Setup<'_> {
    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(self.chipbound);
        command.current_dir(self.folder).args(words.split_whitespace());
        command
    }

    /// The program of one role, beside the command.
    fn role_command(&self, role: &str, words: &str) -> Command {
        let mut command = Command::new(self.chipbound.with_file_name(format!("chipbound-{role}")));
        command.current_dir(self.folder).args(words.split_whitespace());
        command
    }

    fn say(&self, words: &str) -> Outcome<String> {
        output(&mut self.command(words))
    }

    fn role(&self, role: &str, words: &str) -> Outcome<String> {
        output(&mut self.role_command(role, words))
    }

    fn voucher(&self, role: &str) -> Outcome<String> {
        self.role("authority", &format!("voucher --config authority/authority.toml --role {role}"))
    }

    fn daemon(&self, role: &str) -> Outcome<Daemon> {
        let mut command = self.role_command(role, &format!("run --config {role}/{role}.toml"));
        command.env("RUST_LOG", "warn");
        Daemon::start(&mut command, &self.folder.join(format!("{role}.log")))
    }

    /// An account with a password and, for a customer, money; and its log-in.
    fn account(&self, server: &str, user: &str, role: &str) -> Outcome<()> {
        let password = self.folder.join("password");
        fs::write(&password, PASSWORD)?;
        fs::set_permissions(&password, fs::Permissions::from_mode(0o600))?;
        self.role("server", &format!("account add --config server/server.toml --user {user} --role {role} --password-file password"))?;
        self.say(&format!("login {server} --user {user} --tls-root server/tls-root.pem --password-file password --home {user}"))?;
        if role == "customer" {
            let mut deposit = self.role_command("server", &format!("account deposit --config server/server.toml --user {user}"));
            output(deposit.args(["--amount", FUNDS]))?;
        }
        Ok(())
    }
}
