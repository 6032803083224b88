//! The authority's verbs: `init`, `run`, `voucher`, `revoke`, `list`.

use crate::authority::Authority;
use crate::config::{Config, Span};
use crate::installation::{self, Paths};
use crate::store::{Certificate, Kind, Store, Target, Voucher};
use crate::{http, issuing};
use chipbound_host::process::ServiceManager;
use chipbound_host::{Speech, files, lossy, now, process};
use chipbound_wire::enrolment::{Subject, Voucher as VoucherText};
use chipbound_wire::limits::MAX_CERTIFICATE;
use chipbound_wire::random::fresh;
use chipbound_wire::{Code, Digest, Hex, KeyId, Refusal, Result, SystemRandom, Time};
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// What the authority's operator can do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a new authority: its keys, certificates, state and configuration.
    #[command(after_help = "Example:\n  chipbound authority init --dir authority")]
    Init {
        /// The folder to make; it must not be there yet, or be empty.
        #[arg(long)]
        dir: PathBuf,
        /// Where HTTPS will be served.
        #[arg(long, default_value = "127.0.0.1:7701")]
        listen: SocketAddr,
        /// The authority's name in its certificates.
        #[arg(long, default_value = "chipbound authority")]
        name: String,
    },
    /// Serve enrolments, renewals and the revocation list until SIGTERM or SIGINT.
    #[command(after_help = "Example:\n  chipbound authority run --config authority/authority.toml")]
    Run {
        /// The configuration that `init` wrote.
        #[arg(long)]
        config: PathBuf,
    },
    /// Make a one-use voucher and print it. It is a secret until it is used.
    #[command(after_help = "Example:\n  chipbound authority voucher --config authority/authority.toml --role processor")]
    Voucher {
        /// The configuration that `init` wrote.
        #[arg(long)]
        config: PathBuf,
        /// What is to be certified with it.
        #[arg(long, value_enum)]
        role: Kind,
        /// The subject of the certificates; a new one is made up if left out.
        #[arg(long)]
        name: Option<String>,
        /// How long it can be used, such as 12h or 7d.
        #[arg(long, default_value = "7d", value_parser = parse_span)]
        valid: Span,
    },
    /// Withdraw certificates, for good. A running authority serves the new revocation list at once.
    #[command(
        after_help = "Example:\n  chipbound authority revoke --config authority/authority.toml --serial 52e94d6adab3283efbb3fc1726d8bcb4"
    )]
    #[command(group(clap::ArgGroup::new("what").required(true)))]
    Revoke {
        /// The configuration that `init` wrote.
        #[arg(long)]
        config: PathBuf,
        /// Withdraw every certificate of the key with this id.
        #[arg(long, group = "what")]
        key: Option<KeyId>,
        /// Withdraw the one certificate with this serial number, in hexadecimal.
        #[arg(long, group = "what")]
        serial: Option<String>,
        /// Withdraw every certificate of this name, and its vouchers.
        #[arg(long, group = "what")]
        name: Option<String>,
    },
    /// Print the vouchers and certificates of this authority.
    #[command(after_help = "Example:\n  chipbound authority list --config authority/authority.toml")]
    List {
        /// The configuration that `init` wrote.
        #[arg(long)]
        config: PathBuf,
    },
}

/// Does what the command says; texts for people go to standard error, results to standard output.
pub fn execute(command: Command, speech: Speech) -> Result<()> {
    process::no_core_dumps()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| Refusal::io("the asynchronous runtime does not start", e))?;
    runtime.block_on(async {
        match command {
            Command::Init { dir, listen, name } => init(dir, listen, &name, speech).await,
            Command::Run { config } => run(Config::load(&config)?).await,
            Command::Voucher { config, role, name, valid } => voucher(config, role, name, valid, speech).await,
            Command::Revoke { config, key, serial, name } => {
                let serial = serial.as_deref().map(parse_serial).transpose()?.map(Target::Serial);
                revoke(&Config::load(&config)?, key.map(Target::Key).or(serial).or(name.map(Target::Name)), speech).await
            }
            Command::List { config } => list(&Config::load(&config)?, speech).await,
        }
    })
}

fn parse_span(text: &str) -> std::result::Result<Span, String> {
    text.parse().map_err(|e: Refusal| e.detail)
}

async fn init(dir: PathBuf, listen: SocketAddr, name: &str, speech: Speech) -> Result<()> {
    let installation::Made { paths, root } = installation::create(&dir, listen, name, now()).await?;
    let config = paths.config.display();
    let lines = [
        format!("Made an authority in {}:", dir.display()),
        format!("  configuration  {config}"),
        format!("  root           {} (fingerprint {root})", paths.root.display()),
        format!("  root key       {} (move this folder off line; nothing here needs it)", paths.offline.display()),
        String::new(),
        "Next:".to_owned(),
        format!("  chipbound authority run --config {config}"),
        format!("  chipbound authority voucher --config {config} --role server"),
    ];
    let object = json!({ "authority": lossy(&dir), "configuration": lossy(&paths.config), "root": lossy(&paths.root), "fingerprint": root, "root_key": lossy(&paths.offline) });
    speech.result(lines.join("\n"), object)
}

async fn run(config: Config) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    // Whoever nests this command may have set up the log already.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| Refusal::io("cannot wait for SIGTERM", e))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| Refusal::io("cannot wait for SIGINT", e))?;

    let listen = config.listen;
    let authority = Arc::new(Authority::open(config).await?);
    let listener = TcpListener::bind(listen).await.map_err(|e| Refusal::io(format_args!("cannot listen on {listen}"), e))?;
    let address = listener.local_addr().map_err(|e| Refusal::io(format_args!("cannot listen on {listen}"), e))?;
    ServiceManager::find()?.ready(&format!("https://{address} root {}", Digest::of(authority.root())))?;

    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    http::run(authority.clone(), listener, shutdown).await?;
    authority.store().close().await;
    Ok(())
}

async fn voucher(path: PathBuf, kind: Kind, name: Option<String>, valid: Span, speech: Speech) -> Result<()> {
    let config = Config::load(&path)?;
    let (text, voucher) = new_voucher(&config, kind, name, valid, now()).await?;
    let authority = address(&config);
    let text = text.to_text();
    let object =
        json!({ "voucher": text, "role": kind.as_str(), "name": voucher.name, "until": voucher.expires_at, "authority": authority });
    speech.result(&text, object)?;
    let until = date(voucher.expires_at);
    speech.note(format_args!(
        "One-use voucher for {}, good until {until}. Whoever holds it can enroll: hand it over in secret.",
        voucher.name
    ));
    let verb = match kind {
        Kind::Processor => "processor enroll",
        Kind::Server => "server init --dir FOLDER",
        Kind::Vendor => "vendor init",
    };
    speech.note(format_args!("Next: chipbound {verb} --authority {authority} --voucher VOUCHER"));
    Ok(())
}

/// Under which address clients on this machine reach the authority.
fn address(config: &Config) -> String {
    match (config.listen.ip().is_unspecified(), config.names.first()) {
        (true, Some(name)) => format!("https://{name}:{}", config.listen.port()),
        _ => format!("https://{}", config.listen),
    }
}

/// Makes a voucher in the installation of `config` and remembers its digest.
///
/// # Errors
/// [`Code::Conflict`] when the name is that of a living voucher or certificate.
pub async fn new_voucher(config: &Config, kind: Kind, name: Option<String>, valid: Span, now: Time) -> Result<(VoucherText, Voucher)> {
    let paths = Paths::of(&config.folder);
    let root = Digest::of(&files::read(&paths.root, MAX_CERTIFICATE)?);
    let name = name.unwrap_or_else(|| format!("{kind}-{}", Hex(&fresh::<4>(&mut SystemRandom))));
    if name.is_empty() {
        return Err(Refusal::new(Code::Malformed, "a name has at least one character"));
    }
    let name = Subject::new(name)?.to_string();
    let text = VoucherText { secret: fresh(&mut SystemRandom), root };
    let voucher =
        Voucher { digest: Digest::of(&text.secret), kind, name, created_at: now, expires_at: now.after(valid.0), used_for: Vec::new() };
    let store = Store::open(&paths.state).await?;
    let added = store.add_voucher(&voucher).await;
    store.close().await;
    added.map(|()| (text, voucher))
}

async fn revoke(config: &Config, target: Option<Target>, speech: Speech) -> Result<()> {
    let target = target.ok_or_else(|| Refusal::new(Code::ConfigInvalid, "name a key, a serial number or a name"))?;
    let store = Store::open(&Paths::of(&config.folder).state).await?;
    let revoked = store.revoke(&target, now()).await;
    store.close().await;
    let revoked = revoked?;
    if revoked.is_empty() {
        speech.note("No certificate was left to withdraw.");
    }
    for Certificate { role, subject, serial, .. } in revoked {
        let serial = Hex(&serial).to_string();
        let object = json!({ "withdrawn": serial, "role": role.as_str(), "name": subject });
        speech.result(format_args!("withdrawn: {role} of {subject}, serial {serial}"), object)?;
    }
    Ok(())
}

fn parse_serial(text: &str) -> Result<Vec<u8>> {
    data_encoding::HEXLOWER_PERMISSIVE
        .decode(text.as_bytes())
        .map_err(|e| Refusal::new(Code::ConfigInvalid, format!("{text:?} is no serial number in hexadecimal")).because(e))
}

async fn list(config: &Config, speech: Speech) -> Result<()> {
    let store = Store::open(&Paths::of(&config.folder).state).await?;
    let (vouchers, certificates) = (store.vouchers().await, store.certificates().await);
    store.close().await;
    let now = now();
    let (mut lines, mut objects) = (vec![format!("{:<10} {:<24} {:<17} STATE", "VOUCHER", "NAME", "UNTIL")], Vec::new());
    for v in vouchers? {
        let (role, state) = (v.kind.as_str(), voucher_state(&v, now));
        lines.push(format!("{role:<10} {:<24} {:<17} {state}", v.name, date(v.expires_at)));
        objects.push(json!({ "voucher": role, "name": v.name, "until": v.expires_at, "state": state }).to_string());
    }
    lines.push(format!("\n{:<18} {:<24} {:<17} {:<9} {:<32} KEY", "CERTIFICATE", "NAME", "UNTIL", "STATE", "SERIAL"));
    for c in certificates? {
        let (role, state, serial) = (c.role.as_str(), certificate_state(&c, now), Hex(&c.serial).to_string());
        lines.push(format!("{role:<18} {:<24} {:<17} {state:<9} {serial} {}", c.subject, date(c.not_after), c.key_id));
        let object =
            json!({ "certificate": role, "name": c.subject, "until": c.not_after, "state": state, "serial": serial, "key": c.key_id });
        objects.push(object.to_string());
    }
    match (speech, objects.is_empty()) {
        (Speech::Json, true) => Ok(()),
        _ => speech.result(lines.join("\n"), objects.join("\n")),
    }
}

fn voucher_state(voucher: &Voucher, now: Time) -> String {
    let left = voucher.kind.roles().len() - voucher.used_for.len();
    match left {
        0 => "used".to_owned(),
        _ if now > voucher.expires_at => "expired".to_owned(),
        left if left == voucher.kind.roles().len() => "open".to_owned(),
        left => format!("{left} roles open"),
    }
}

fn certificate_state(certificate: &Certificate, now: Time) -> &'static str {
    match certificate {
        c if c.revoked_at.is_some() => "revoked",
        c if now > c.not_after => "expired",
        c if now < c.not_before => "early",
        _ => "valid",
    }
}

/// `2026-11-22 13:05Z`.
fn date(at: Time) -> String {
    let at = issuing::date(at);
    format!("{:04}-{:02}-{:02} {:02}:{:02}Z", at.year(), u8::from(at.month()), at.day(), at.hour(), at.minute())
}
