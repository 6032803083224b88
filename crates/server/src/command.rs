//! The server's verbs: `init`, `run`, `rotate`, `journal`, `audit`, `backup`, `restore`, `account add|deposit|list`.

use crate::accounts::{MAX_PASSWORD, new_account};
use crate::auditing::{self, Source};
use crate::backup::{Counted, backup, restore};
use crate::config::Config;
use crate::init::{Wishes, init};
use crate::openapi;
use crate::reconcile::{Difference, Reconciliation, reconcile, strangers};
use crate::rotation::{Which, rotate};
use crate::run::{existing_books, run};
use crate::statement;
use crate::storage::{Accounts, Books, Journal, Orders, fresh_key};
use chipbound_host::files::read_private;
use chipbound_host::{Speech, lossy, now, process};
use chipbound_wire::api::{AccountRole, Balance};
use chipbound_wire::enrolment::Voucher;
use chipbound_wire::limits::MAX_TEXT;
use chipbound_wire::{Amount, Code, OrderId, Refusal, Result, Time};
use serde_json::json;
use std::io::{BufRead, BufWriter, IsTerminal, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// What the server's operator can do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a new server: three keys certified with one voucher, a private TLS certificate, a database, a configuration.
    #[command(after_help = "Example:\n  chipbound server init --dir shop --authority https://127.0.0.1:7701 --voucher cbv1-…")]
    Init {
        /// The folder to make; it must not be there yet, or be empty.
        #[arg(long)]
        dir: PathBuf,
        /// `https://host:port` of the authority.
        #[arg(long)]
        authority: String,
        /// The voucher that the authority's operator made (`chipbound authority voucher --role server`); `-` reads it from
        /// standard input.
        #[arg(long)]
        voucher: String,
        /// Where the first path (HTTPS) shall listen.
        #[arg(long, default_value = "127.0.0.1:8443")]
        listen: SocketAddr,
        /// Where the second path shall listen on a line of its own.
        #[arg(long, default_value = "127.0.0.1:8444")]
        line: SocketAddr,
        /// A host name under which clients reach the first path; may be repeated.
        #[arg(long = "host-name")]
        host_names: Vec<String>,
    },
    /// Serve until SIGTERM or SIGINT.
    #[command(after_help = "Example:\n  chipbound server run --config shop/server.toml")]
    Run {
        /// The configuration that `init` wrote.
        #[arg(long)]
        config: PathBuf,
    },
    /// Ask the card provider about every payment: list those that stand otherwise there, and what it holds or took for orders that these
    /// books do not know, as after a restored backup. Nothing is changed but what is to be given back.
    #[command(after_help = "Example:\n  chipbound server reconcile --config shop/server.toml\n  \
        chipbound server reconcile --config shop/server.toml --since 2026-11-20 --give-back pi_3MtwBwLkdIwHu7ix28a3tqPa")]
    Reconcile {
        /// The server's configuration.
        #[arg(long)]
        config: PathBuf,
        /// Look through the provider's own payments since this day (UTC) alone, such as 2026-11-01.
        #[arg(long, value_parser = day)]
        since: Option<Time>,
        /// A payment that these books do not know: have the provider give back what it holds or took. May be repeated.
        #[arg(long, value_name = "PAYMENT")]
        give_back: Vec<String>,
    },
    /// Print the description of the first path in OpenAPI 3.1; a running server answers it at /v1/openapi.json.
    #[command(after_help = "Example:\n  chipbound server openapi")]
    Openapi,
    /// Replace one of the server's keys by a fresh one, while the server is stopped; what was signed before stays good.
    #[command(after_help = "Example:\n  chipbound server rotate --config shop/server.toml --key receipt")]
    Rotate {
        /// The server's configuration.
        #[arg(long)]
        config: PathBuf,
        /// Which key.
        #[arg(long)]
        key: Which,
    },
    /// Write the journal of the books, for an auditor, to standard output: all of it as it stands at one moment. It names no user and
    /// holds no secret; a running server goes on meanwhile.
    #[command(after_help = "Example:\n  chipbound server journal --config shop/server.toml | gzip > journal.gz")]
    Journal {
        /// The server's configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Recompute the books from their journal by an auditor of its own, and say what is wrong; the exit code says so too.
    #[command(after_help = "Example:\n  chipbound server audit --config shop/server.toml\n  \
        chipbound server audit --journal journal.jsonl --root root.der")]
    Audit(Audited),
    /// Write everything that a server keeps, but for its keys, into one file: the books as they stand at one moment, and the programs. A
    /// running server goes on meanwhile.
    #[command(after_help = "Example:\n  chipbound server backup --config shop/server.toml /backup/shop-1")]
    Backup {
        /// The server's configuration.
        #[arg(long)]
        config: PathBuf,
        /// The file to make; it must not be there yet. It holds programs in plain text: mode 0600.
        to: PathBuf,
    },
    /// Bring a backup into a new server that `init` made under another name; the kinds of their databases may differ.
    #[command(after_help = "Example:\n  chipbound server restore --config new/server.toml --kek /safe/shop.kek /backup/shop-1")]
    Restore {
        /// The new server's configuration; the server is stopped.
        #[arg(long)]
        config: PathBuf,
        /// The file `kek` of the server that the backup is of (mode 0600).
        #[arg(long)]
        kek: PathBuf,
        /// The backup.
        from: PathBuf,
    },
    /// Accounts and their money, on the server's own machine.
    #[command(subcommand)]
    Account(AccountCommand),
}

/// What is audited.
#[derive(Debug, clap::Args)]
pub struct Audited {
    /// The server's configuration: its books are audited as they stand, under its own authority.
    #[arg(long, required_unless_present = "journal", conflicts_with_all = ["journal", "root"])]
    config: Option<PathBuf>,
    /// A journal that `journal` wrote.
    #[arg(long, requires = "root")]
    journal: Option<PathBuf>,
    /// The root certificate (DER) of the authority under which the journal's documents are to be verified.
    #[arg(long, requires = "journal")]
    root: Option<PathBuf>,
}

/// What the operator does with accounts.
#[derive(Debug, clap::Subcommand)]
pub enum AccountCommand {
    /// Add an account. The password is asked for on a terminal, or read from standard input.
    #[command(after_help = "Example:\n  chipbound account add --config shop/server.toml --user ann")]
    Add {
        /// The server's configuration.
        #[arg(long)]
        config: PathBuf,
        /// The user id.
        #[arg(long)]
        user: String,
        /// What it may do: customer, vendor, operator or auditor.
        #[arg(long, default_value = "customer", value_parser = parse::<AccountRole>)]
        role: AccountRole,
        /// A file (mode 0600) whose first line is the password.
        #[arg(long)]
        password_file: Option<PathBuf>,
    },
    /// Add money that came in from outside.
    #[command(after_help = "Example:\n  chipbound account deposit --config shop/server.toml --user ann --amount '20 EUR'")]
    Deposit {
        /// The server's configuration.
        #[arg(long)]
        config: PathBuf,
        /// The user id.
        #[arg(long)]
        user: String,
        /// The amount, such as '12.50 EUR'.
        #[arg(long, value_parser = parse::<Amount>, allow_hyphen_values = true)]
        amount: Amount,
        /// Names this deposit: the same command with the same key adds the money once, however often it is given. One is made and shown
        /// if left out.
        #[arg(long, value_name = "TEXT", value_parser = key)]
        key: Option<String>,
    },
    /// Pay out to outside: a vendor from what was earned, a customer from what is free.
    #[command(
        after_help = "Example:\n  chipbound account payout --config shop/server.toml --user vera --amount '100 EUR' --note 'transfer 17'"
    )]
    Payout {
        /// The server's configuration.
        #[arg(long)]
        config: PathBuf,
        /// The user id.
        #[arg(long)]
        user: String,
        /// The amount, such as '12.50 EUR'.
        #[arg(long, value_parser = parse::<Amount>, allow_hyphen_values = true)]
        amount: Amount,
        /// What statements say of it.
        #[arg(long, default_value = "", value_parser = note)]
        note: String,
        /// Names this payout: the same command with the same key pays out once, however often it is given. One is made and shown if
        /// left out.
        #[arg(long, value_name = "TEXT", value_parser = key)]
        key: Option<String>,
    },
    /// Give the price of a paid order back to its buyer's account; its receipt buys no re-download any more.
    #[command(after_help = "Example:\n  chipbound account refund --config shop/server.toml --order 7c9e6679f0a34de28b1dd0c1c4e0a9b2")]
    Refund {
        /// The server's configuration.
        #[arg(long)]
        config: PathBuf,
        /// The order's id.
        #[arg(long, value_parser = parse::<OrderId>)]
        order: OrderId,
        /// What statements say of it.
        #[arg(long, default_value = "", value_parser = note)]
        note: String,
    },
    /// Show what happened to the money of an account in a time.
    #[command(
        after_help = "Example:\n  chipbound account statement --config shop/server.toml --user vera --from 2026-11-01 --until 2026-12-01"
    )]
    Statement {
        /// The server's configuration.
        #[arg(long)]
        config: PathBuf,
        /// The user id.
        #[arg(long)]
        user: String,
        /// The first day (UTC), such as 2026-11-01; the beginning if left out.
        #[arg(long, value_parser = day)]
        from: Option<Time>,
        /// The day (UTC) before which it ends; now if left out.
        #[arg(long, value_parser = day)]
        until: Option<Time>,
    },
    /// List all accounts and their money.
    #[command(after_help = "Example:\n  chipbound account list --config shop/server.toml")]
    List {
        /// The server's configuration.
        #[arg(long)]
        config: PathBuf,
    },
}

fn parse<T: std::str::FromStr<Err = Refusal>>(text: &str) -> std::result::Result<T, String> {
    text.parse().map_err(|e: Refusal| e.detail)
}

/// Does what the command says; results go to standard output, the log to standard error.
pub fn execute(command: Command, speech: Speech) -> Result<()> {
    process::no_core_dumps()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers()).enable_all().build();
    let runtime = runtime.map_err(|e| Refusal::io("the asynchronous runtime does not start", e))?;
    runtime.block_on(async {
        match command {
            Command::Init { dir, authority, voucher, listen, line, host_names } => {
                let wishes = Wishes { folder: dir, authority, listen, line: Some(line), names: host_names };
                make(&wishes, &voucher, speech).await
            }
            Command::Run { config } => {
                let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
                // Whoever nests this command may have set up the log already.
                let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
                run(Config::load(&config)?).await
            }
            Command::Reconcile { config, since, give_back } => compare(&config, since.unwrap_or(Time(0)), &give_back, speech).await,
            Command::Openapi => {
                let document = openapi::document::<Books>();
                speech.result(format_args!("{document:#}"), &document)
            }
            Command::Rotate { config, key } => {
                let name = rotate(&Config::load(&config)?, key).await?;
                speech.result(format_args!("Replaced; the new key is {name}. Start the server again."), json!({ "key": name }))
            }
            Command::Journal { config } => {
                let repository = books(&config).await?;
                let written = repository.journal(now(), BufWriter::new(Reader::of_stdout())).await;
                repository.close().await;
                written.map(drop)
            }
            Command::Audit(audited) => auditing::audit(audited.source()?, speech).await,
            Command::Backup { config, to } => {
                let Counted { rows, blobs } = backup(&config, &to).await?;
                let object = json!({ "backup": to, "rows": rows, "blobs": blobs });
                speech.result(format_args!("{}: {rows} rows, {blobs} programs and ciphertexts.", to.display()), object)?;
                speech.note("It is of use with the file `kek` of this server alone: keep a copy of that elsewhere.");
                Ok(())
            }
            Command::Restore { config, kek, from } => {
                let Counted { rows, blobs } = restore(&config, &kek, &from).await?;
                speech.result(
                    format_args!("Restored {rows} rows, {blobs} programs and ciphertexts."),
                    json!({ "rows": rows, "blobs": blobs }),
                )?;
                speech.note("Sessions and API tokens are to be made anew. Start the server; never start the old one again.");
                Ok(())
            }
            Command::Account(command) => account(command, speech).await,
        }
    })
}

impl Audited {
    fn source(self) -> Result<Source> {
        match self {
            Self { config: Some(config), .. } => Ok(Source::Server(config)),
            Self { journal: Some(journal), root: Some(root), .. } => Ok(Source::File { journal, root }),
            _ => Err(Refusal::new(Code::ConfigInvalid, "name a configuration, or a journal and the root of its authority")),
        }
    }
}

/// Threads for the first path: half of the processors, at least two. The books and every delivery have threads of their own, and
/// more of these would only wake one another.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |all| (all.get() / 2).max(2))
}

/// Does an account verb; for a command that has `account` at its top.
pub fn execute_account(command: AccountCommand, speech: Speech) -> Result<()> {
    execute(Command::Account(command), speech)
}

async fn make(wishes: &Wishes, voucher: &str, speech: Speech) -> Result<()> {
    let voucher = match voucher {
        "-" => first_line(&mut std::io::stdin().lock())?.parse::<Voucher>()?,
        text => text.parse::<Voucher>()?,
    };
    let made = init(wishes, &voucher).await?;
    let config = made.config.display();
    let lines = [
        format!("Made the server {:?} in {}:", made.subject, wishes.folder.display()),
        format!("  configuration  {config}"),
        format!("  TLS root       {} (clients pass it as --tls-root)", made.tls_root.display()),
        String::new(),
        "Next:".to_owned(),
        format!("  chipbound server run --config {config}"),
        format!("  chipbound account add --config {config} --user NAME"),
    ];
    speech.result(
        lines.join("\n"),
        json!({ "server": made.subject, "configuration": lossy(&made.config), "tls_root": lossy(&made.tls_root) }),
    )
}

async fn account(command: AccountCommand, speech: Speech) -> Result<()> {
    match command {
        AccountCommand::Add { config, user, role, password_file } => {
            let password = password(password_file.as_deref())?;
            let repository = books(&config).await?;
            // Here nobody sent anything: what was typed is to be mended.
            let new = new_account(&user, role, &password, now()).map_err(|refusal| Refusal::new(Code::ConfigInvalid, refusal.detail))?;
            repository.add_account(&new).await?;
            repository.close().await;
            let object = json!({ "account": new.account, "user": user, "role": role.as_str() });
            speech.result(format_args!("Added the {} {user}, account {}.", role.as_str(), new.account), object)
        }
        AccountCommand::Deposit { config, user, amount, key } => {
            let repository = books(&config).await?;
            let key = said(key, speech);
            let Balance { available, held } = repository.deposit(&user, amount, &key, now()).await?;
            repository.close().await;
            let object = json!({ "user": user, "deposited": amount, "available": available, "held": held, "key": key });
            speech.result(format_args!("Added {amount} to {user}: {available} available, {held} held."), object)
        }
        AccountCommand::Payout { config, user, amount, note, key } => {
            let repository = books(&config).await?;
            let key = said(key, speech);
            repository.payout(&user, amount, &note, &key, now()).await?;
            repository.close().await;
            speech.result(format_args!("Paid {amount} out to {user}."), json!({ "user": user, "paid_out": amount, "key": key }))
        }
        AccountCommand::Refund { config, order, note } => {
            let repository = books(&config).await?;
            let refunded = repository.refund(order, &note, now()).await?;
            repository.close().await;
            let object = json!({ "order": order, "refunded": refunded.price, "account": refunded.account });
            let line = format!("Order {order} is refunded: {} went back to account {}.", refunded.price, refunded.account);
            speech.result(line, object)
        }
        AccountCommand::Statement { config, user, from, until } => {
            let (from, until) = (from.unwrap_or(Time(0)), until.unwrap_or(now().after(1)));
            if from >= until {
                return Err(Refusal::new(Code::ConfigInvalid, "the statement would end before it begins: see --from and --until"));
            }
            let repository = books(&config).await?;
            let statement = repository.statement(&user, from, until).await?;
            repository.close().await;
            match (speech, statement::objects(&statement)) {
                (Speech::Json, objects) if objects.is_empty() => Ok(()),
                (_, objects) => speech.result(statement::text(&user, &statement), objects.join("\n")),
            }
        }
        AccountCommand::List { config } => {
            let repository = books(&config).await?;
            for principal in repository.accounts("", u32::MAX).await? {
                let balances = repository.balances(principal.account).await?;
                let mut money: Vec<_> = balances.iter().map(|b| format!("{} available, {} held", b.available, b.held)).collect();
                let books = repository.books_of(principal.account).await?;
                money.extend(books.iter().filter_map(statement::standing));
                let (account, user, role) = (principal.account, &principal.user, principal.role.as_str());
                let object =
                    json!({ "account": account, "user": user, "role": role, "balances": balances, "books": statement::sums(&books) });
                speech.result(format_args!("{account}  {role:<8}  {user}  {}", money.join("; ")), object)?;
            }
            repository.close().await;
            Ok(())
        }
    }
}

/// The key of an instruction; a fresh one is said before anything is done under it.
fn said(key: Option<String>, speech: Speech) -> String {
    key.unwrap_or_else(|| {
        let key = fresh_key();
        match speech {
            Speech::Lines => eprintln!("Should no answer come, the same command with --key {key} does it once at most."),
            Speech::Json => eprintln!("{}", json!({ "key": key })),
        }
        key
    })
}

/// Whoever reads stdout; when nobody does any more (`| head`), the rest is for nobody.
struct Reader {
    stdout: std::io::Stdout,
    gone: bool,
}

impl Reader {
    fn of_stdout() -> Self {
        Self { stdout: std::io::stdout(), gone: false }
    }

    fn unless_gone<T>(&mut self, outcome: std::io::Result<T>, instead: T) -> std::io::Result<T> {
        match outcome {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {
                self.gone = true;
                Ok(instead)
            }
            other => other,
        }
    }
}

impl std::io::Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = if self.gone { Ok(bytes.len()) } else { self.stdout.write(bytes) };
        self.unless_gone(written, bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let flushed = if self.gone { Ok(()) } else { self.stdout.flush() };
        self.unless_gone(flushed, ())
    }
}

/// 1 to 128 visible ASCII characters.
fn key(text: &str) -> std::result::Result<String, String> {
    match (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err("a key is 1 to 128 visible ASCII characters".to_owned()),
    }
}

/// One line of at most [`MAX_TEXT`] bytes.
fn note(text: &str) -> std::result::Result<String, String> {
    match text.len() <= MAX_TEXT && !text.chars().any(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err(format!("a note is one line of at most {MAX_TEXT} bytes")),
    }
}

/// The beginning of a day, as YYYY-MM-DD, UTC.
fn day(text: &str) -> std::result::Result<Time, String> {
    let date: jiff::civil::Date = text.parse().map_err(|e| format!("{text:?} is not a day, YYYY-MM-DD: {e}"))?;
    let start = date.to_zoned(jiff::tz::TimeZone::UTC).map_err(|e| e.to_string())?;
    u64::try_from(start.timestamp().as_second()).map(Time).map_err(|_| format!("{text} is before 1970"))
}

async fn compare(config: &Path, since: Time, give_back: &[String], speech: Speech) -> Result<()> {
    let loaded = Config::load(config)?;
    let cards = loaded.payment.open(&loaded.folder)?;
    let cards = cards.ok_or_else(|| Refusal::new(Code::ConfigInvalid, "the configuration names no card provider: [payment.cards]"))?;
    let repository = books(config).await?;
    let Reconciliation { compared, differences } = reconcile(&repository, &*cards.provider).await?;
    for Difference { ours, theirs } in &differences {
        let (order, reference, amount, here) = (ours.order, &ours.reference, ours.amount, ours.state.as_str());
        let object = json!({ "order": order, "payment": reference, "amount": amount, "here": here, "there": theirs.to_string() });
        speech.result(format_args!("{order}  {reference}  {amount}  here: {here}  there: {theirs}"), object)?;
    }
    let strangers = strangers(&repository, &*cards.provider, since).await?;
    repository.close().await;
    for stranger in &strangers {
        let here = if stranger.order_is_here { "the order without it" } else { "no such order" };
        let (order, reference, there) = (stranger.order, &stranger.reference, stranger.standing());
        let object = json!({ "order": order, "payment": reference, "here": here, "there": there });
        speech.result(format_args!("{order}  {reference}  {there}  here: {here}"), object)?;
    }
    let (unknown, differ) = (strangers.len(), differences.len());
    let object = json!({ "compared": compared, "not_known_here": unknown, "differ": differ });
    speech.result(format_args!("{compared} payments compared, {unknown} not known here, {differ} differ"), object)?;
    for reference in give_back {
        let unknown =
            || Refusal::new(Code::NotFound, format!("{reference} is no payment there that is not known here: nothing was given back"));
        let stranger = strangers.iter().find(|s| s.reference == *reference).ok_or_else(unknown)?;
        let done = stranger.give_back(&*cards.provider).await?;
        let line = format!("{reference} {} given back", if done { "is" } else { "is being" });
        speech.result(line, json!({ "payment": reference, "given_back": done }))?;
    }
    Ok(())
}

pub(crate) async fn books(config: &Path) -> Result<Books> {
    existing_books(&Config::load(config)?).await
}

/// The password: from its file, or asked for twice on a terminal, or the first line of standard input. Never an argument.
fn password(file: Option<&Path>) -> Result<Zeroizing<String>> {
    if let Some(file) = file {
        let bytes = Zeroizing::new(read_private(file, MAX_PASSWORD + 2)?);
        return first_line(&mut bytes.as_slice());
    }
    if !std::io::stdin().is_terminal() {
        return first_line(&mut std::io::stdin().lock());
    }
    let ask =
        |prompt: &str| rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(|e| Refusal::io("cannot ask for the password", e));
    let password = ask("Password: ")?;
    if *ask("Again: ")? != *password {
        return Err(Refusal::new(Code::ConfigInvalid, "the two passwords differ"));
    }
    Ok(password)
}

fn first_line(source: &mut impl BufRead) -> Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::with_capacity(MAX_PASSWORD + 2));
    source.take(MAX_PASSWORD as u64 + 2).read_line(&mut line).map_err(|e| Refusal::io("cannot read the first line", e))?;
    let length = line.trim_end_matches(['\n', '\r']).len();
    line.truncate(length);
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Arguments {
        #[command(subcommand)]
        command: Command,
    }

    #[test]
    fn the_verbs_parse_and_no_argument_takes_a_password() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
        let line = ["server", "account", "add", "--config", "c", "--user", "ann", "--password", "secret"];
        assert!(Arguments::try_parse_from(line).is_err());
        let line = ["server", "account", "deposit", "--config", "c", "--user", "ann", "--amount", "12.505 EUR"];
        assert!(Arguments::try_parse_from(line).is_err(), "an amount is never rounded");
        let line = ["server", "account", "deposit", "--config", "c", "--user", "ann", "--amount", "12.50 EUR"];
        assert!(matches!(Arguments::try_parse_from(line).map(|a| a.command), Ok(Command::Account(AccountCommand::Deposit { .. }))));
    }

    #[test]
    fn a_password_is_the_first_line_of_its_private_file() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "correct horse\nignored\n").expect("written");
        assert_eq!(*password(Some(file.path())).expect("a password"), "correct horse");
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).expect("opened to all");
        assert_eq!(password(Some(file.path())).expect_err("readable by others").code, Code::InsecurePermissions);
    }
}
