//! The daemon's own verbs, used by the thin binary and by `chipbound processor`.

use crate::config::Config;
use crate::confine::{self, Confinement};
use crate::daemon;
use crate::data;
use crate::interpreter;
use crate::processor::Processor;
use crate::vault::Vault;
use chipbound_host::{Speech, files, lossy, process};
use chipbound_wire::signature::Sign;
use chipbound_wire::{Code, Refusal, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde_json::{Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

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
pub fn execute(command: Command, speech: Speech) -> Result<()> {
    process::no_core_dumps()?;
    match command {
        Command::Init { dir, everyone } => init(&dir, everyone, speech),
        Command::Run { config } => run(&config),
    }
}

fn init(dir: &Path, everyone: bool, speech: Speech) -> Result<()> {
    files::create_new_installation(dir)?;
    let (lines, object) = make(dir, everyone).inspect_err(|_| files::clear_installation(dir))?;
    speech.result(lines.join("\n"), object)
}

/// What is said of it, for people and for machines.
fn make(dir: &Path, everyone: bool) -> Result<(Vec<String>, Value)> {
    let path = dir.join("processor.toml");
    files::write_new(&path, Config::template(everyone).as_bytes(), files::PUBLIC)?;
    let config = Config::load(&path)?;
    let vault = Vault::create(&config.state)?;
    let (key, socket) = (vault.keys().key_id(), config.socket.display());
    let mut lines = vec![
        format!("processor {key}"),
        "class     software: keys in sealed files, protected at rest and from other users, not from root".to_owned(),
        format!("wrote     {}", path.display()),
    ];
    let interpreter = interpreter::ensure(&config);
    match &interpreter {
        Ok(Some(path)) => lines.push(format!("wrote     {}, which packages on this machine name", path.display())),
        Ok(None) => {}
        Err(refusal) => lines.push(format!("no interpreter yet: {} (the daemon tries again when it starts)", refusal.detail)),
    }
    lines.push(format!("next      chipbound processor run --config {}", path.display()));
    lines.push(format!("then      chipbound processor enroll --socket {socket} --authority https://HOST:PORT --voucher VOUCHER"));
    let interpreter = interpreter.ok().flatten();
    let object = json!({ "processor": key, "class": "software", "configuration": lossy(&path), "interpreter": interpreter.as_deref().map(lossy),
            "socket": lossy(&config.socket) });
    Ok((lines, object))
}

fn run(config: &Path) -> Result<()> {
    log_to_stderr();
    let config = Config::load(config)?;
    let _alone = alone(&config.state)?;
    let us = Processor::open(config)?;
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

/// How often, and how long after one another, a lock is asked for that a daemon may still hold which was killed and has not ended yet.
const TRIES: u32 = 20;
const BETWEEN: Duration = Duration::from_millis(100);

/// Locks the folder of keys for as long as the result lives. [`Code::Conflict`] while another daemon works on it, whatever socket that one
/// serves: each would overwrite what the other remembers.
fn alone(folder: &Path) -> Result<File> {
    let failed = |e: std::io::Error| Refusal::io(format_args!("cannot lock {}", folder.display()), e);
    let handle = File::open(folder).map_err(failed)?;
    for _ in 0..TRIES {
        match flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(handle),
            Err(Errno::WOULDBLOCK) => thread::sleep(BETWEEN),
            Err(e) => return Err(failed(e.into())),
        }
    }
    Err(Refusal::new(Code::Conflict, format!("another daemon has the keys in {}", folder.display())))
}

/// The log, filtered by RUST_LOG. A second call in one process changes nothing.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
