//! The daemon's own verbs, used by the thin binary and by `chipbound processor`.

use crate::config::Config;
use crate::confine::{self, Confinement};
use crate::daemon;
use crate::data;
use crate::interpreter;
use crate::processor::Processor;
use crate::vault::Vault;
use chipbound_host::{files, process};
use chipbound_wire::Result;
use chipbound_wire::signature::Sign;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the daemon can be told on the command line.
#[derive(Clone, PartialEq, Eq, Debug, clap::Subcommand)]
pub enum Command {
    /// Make a new processor: its keys and a configuration.
    #[command(after_help = "Example:\n  chipbound-processor init --dir processor")]
    Init {
        /// The folder to make; nothing that is there is overwritten.
        #[arg(long)]
        dir: PathBuf,
        /// Serve every user of this machine, at /run/chipbound/processor.sock: for a daemon with a user of its own.
        #[arg(long)]
        everyone: bool,
    },
    /// Serve clients until SIGTERM.
    #[command(after_help = "Example:\n  chipbound-processor run --config processor/processor.toml")]
    Run {
        /// The configuration that `init` wrote.
        #[arg(long)]
        config: PathBuf,
    },
}

/// Does what the command says.
pub fn execute(command: Command) -> Result<()> {
    process::no_core_dumps()?;
    match command {
        Command::Init { dir, everyone } => init(&dir, everyone),
        Command::Run { config } => run(&config),
    }
}

fn init(dir: &Path, everyone: bool) -> Result<()> {
    files::create_new_installation(dir)?;
    let path = dir.join("processor.toml");
    files::write_new(&path, Config::template(everyone).as_bytes(), files::PUBLIC)?;
    let config = Config::load(&path)?;
    let vault = Vault::create(&config.state)?;
    println!("processor {}", vault.keys().key_id());
    println!("class     software: keys in sealed files, protected at rest and from other users, not from root");
    println!("wrote     {}", path.display());
    match interpreter::ensure(&config) {
        Ok(Some(path)) => println!("wrote     {}, which packages on this machine name", path.display()),
        Ok(None) => {}
        Err(refusal) => println!("no interpreter yet: {} (the daemon tries again when it starts)", refusal.detail),
    }
    println!("next      chipbound processor run --config {}", path.display());
    println!("then      chipbound processor enroll --socket {} --authority https://HOST:PORT --voucher VOUCHER", config.socket.display());
    Ok(())
}

fn run(config: &Path) -> Result<()> {
    log_to_stderr();
    let us = Processor::open(Config::load(config)?)?;
    let mounted = data::kernel::mount(&us.config);
    let confinement = confine::process(&us.config)?;
    match confinement {
        Confinement { calls: true, folders: true } => tracing::info!(%confinement, "confined"),
        _ => tracing::warn!(%confinement, "confined as far as this kernel can"),
    }
    us.serve_data(mounted);
    tracing::info!(processor = %us.vault.keys().key_id(), packages = us.vault.remembered(), "opened");
    daemon::serve(Arc::new(us))
}

/// The log, filtered by RUST_LOG. A second call in one process changes nothing.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
