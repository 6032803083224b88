//! One installation for the whole run: authority, server, processor, a vendor and a customer, all by the commands that people type.

use chipbound::demo::world::World;
use chipbound_soak::{Outcome, failed};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What both accounts log in with.
const PASSWORD: &str = "correct horse battery staple";
/// What a program costs, and what the customer has.
const PRICE: &str = "0.01 EUR";
const FUNDS: &str = "1000000.00 EUR";

/// The running installation; its daemons end with it.
pub(crate) struct Shop {
    chipbound: PathBuf,
    pub(crate) folder: PathBuf,
    world: World,
    run_options: Vec<String>,
    publish_options: Vec<String>,
}

impl Shop {
    /// Sets everything up in `folder` with the command at `chipbound`; what is put into each of its `run` and `publish` more.
    pub(crate) fn open(chipbound: &Path, folder: &Path, run: &[String], publish: &[String]) -> Outcome<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let world = runtime.block_on(async {
            let world = World::start(chipbound, folder, 1, "").await?;
            world.account("customer", "customer", PASSWORD, Some(FUNDS)).await?;
            world.account("vendor", "vendor", PASSWORD, None).await?;
            world.log_in("customer", PASSWORD).await?;
            world.log_in("vendor", PASSWORD).await?;
            let voucher = world.voucher("vendor").await?;
            let arguments = ["vendor", "init", "--authority", &world.authority_url, "--voucher", &voucher, "--home"];
            world.chipbound(&arguments, &[&world.path("home-vendor")]).await?;
            Ok::<_, chipbound_wire::Refusal>(world)
        })?;
        Ok(Self {
            chipbound: chipbound.to_owned(),
            folder: folder.to_owned(),
            world,
            run_options: run.to_owned(),
            publish_options: publish.to_owned(),
        })
    }

    /// Publishes `file` as `name` and buys it to `to`.
    pub(crate) fn buy(&self, file: &Path, name: &str, to: &Path) -> Outcome<()> {
        let mut publish = self.command("vendor", &["publish", "--name", name, "--version", "1", "--price", PRICE, "--class", "software"]);
        good("publish", &publish.args(&self.publish_options).arg(file).output()?)?;
        good("buy", &self.command("customer", &["buy", name, "--output"]).arg(to).output()?)
    }

    fn command(&self, user: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.chipbound);
        command.args(arguments).current_dir(&self.folder).stdin(Stdio::null());
        command.env("CHIPBOUND_HOME", self.folder.join(format!("home-{user}"))).env("CHIPBOUND_PROCESSOR", &self.world.sockets[0]);
        command
    }

    /// The command that starts a package, its environment still to be set.
    pub(crate) fn run(&self, package: &Path) -> Command {
        let mut command = Command::new(&self.chipbound);
        command.arg("run").arg("--processor").arg(&self.world.sockets[0]).args(&self.run_options).arg(package);
        command
    }
}

fn good(verb: &str, output: &Output) -> Outcome<()> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(format!("{verb}: {}", said.lines().find(|l| !l.trim().is_empty()).unwrap_or("failed without a word"))))
}
