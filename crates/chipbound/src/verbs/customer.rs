//! The customer's verbs.

use super::{bytes, logged_in, parsed, several};
use crate::api::Api;
use crate::cli::Common;
use crate::client::deliver::{Delivered, Wanted, Way, Wish, buy, redownload};
use crate::client::transfer::transfer;
use crate::client::{Device, blocking};
use crate::control;
use crate::home::{Home, Session};
use crate::output::Output;
use crate::receipts;
use chipbound_host::lossy;
use chipbound_processor::line::SLOWEST;
use chipbound_transport::ServerTrust;
use chipbound_wire::api::{Book, Payment};
use chipbound_wire::control::WaitingDelivery;
use chipbound_wire::documents::Receipt;
use chipbound_wire::payment::{CardToken, refuse_card_numbers};
use chipbound_wire::signed::read_claims;
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Amount, Code, KeyId, OrderId, Refusal, Result};
use clap::Subcommand;
use serde_json::json;
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Bytes of a TLS root in PEM, and of a password file.
const MAX_SMALL_FILE: usize = 32 * 1024;

/// How a package comes.
#[derive(clap::Args, Debug)]
pub struct Line {
    /// Let the processor dial the server on a line of its own, past this command
    #[arg(long)]
    own_line: bool,
    /// Take no more than so many bytes a second: 5M, 800K
    #[arg(long, value_name = "RATE", value_parser = rate)]
    limit_rate: Option<u32>,
}

/// The customer's verbs.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Log in at a server
    #[command(after_help = "Example:\n  chipbound login https://127.0.0.1:8443 --user ada --tls-root server/tls-root.pem")]
    Login {
        /// The server's address, https://host:port
        server: String,
        /// The user id
        #[arg(long, value_name = "NAME")]
        user: String,
        /// The server's private TLS root in PEM; without it the public roots are trusted
        #[arg(long, value_name = "FILE")]
        tls_root: Option<PathBuf>,
        /// Read the password from this file's first line; without it, it is asked for (or read from stdin in a pipe)
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Use the API token in this file instead of a password
        #[arg(long, value_name = "FILE", conflicts_with = "password_file")]
        token_file: Option<PathBuf>,
    },
    /// Log out; receipts are kept
    #[command(after_help = "Example:\n  chipbound logout")]
    Logout,
    /// Show what there is to buy
    #[command(visible_alias = "catalog", after_help = "Example:\n  chipbound catalogue")]
    Catalogue,
    /// Give up an order before its program was sent; what is held is given back
    #[command(after_help = "Example:\n  chipbound cancel 7c9e6679f0a34de28b1dd0c1c4e0a9b2")]
    Cancel {
        /// The order's id, as `buy` showed it
        #[arg(value_parser = parsed::<OrderId>)]
        order: OrderId,
    },
    /// Show the money of your account
    #[command(after_help = "Example:\n  chipbound balance")]
    Balance,
    /// Buy a program for this machine's processor
    #[command(
        after_help = "Example:\n  chipbound buy perl --max-price \"10 EUR\" -o ./perl\n  chipbound buy perl jq tar --jobs 2\n\nInterrupted, the same command goes on where it stopped; nothing is charged twice."
    )]
    Buy {
        /// The program's name, or its full id; several are bought at once
        #[arg(required = true, value_name = "PROGRAM")]
        programs: Vec<String>,
        /// The version; the newest without it
        #[arg(long, value_name = "V")]
        version: Option<String>,
        /// Where the package goes [default: the program's name]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// How the content key relates to the processor: direct or common; the server's policy without it
        #[arg(long, value_name = "MODE", value_parser = parsed::<KeyMode>)]
        key_mode: Option<KeyMode>,
        /// How the package comes
        #[command(flatten)]
        line: Line,
        /// Of several programs so many come at once, 1 to 8; they share the rate of --limit-rate
        #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u32).range(1..=8))]
        jobs: u32,
        /// Refuse to pay more than this, for each
        #[arg(long, value_name = "AMOUNT", value_parser = parsed::<Amount>)]
        max_price: Option<Amount>,
        /// Pay for another order of a release that was bought for this processor before
        #[arg(long)]
        again: bool,
        /// How to pay: prepaid, from the account's money, or card:TOKEN, the payment method (pm_…) that the card provider's own form
        /// gave; never a card's number
        #[arg(long, value_name = "HOW", default_value = "prepaid")]
        pay: String,
    },
    /// List the downloads that were cut short or paused and wait on this machine to go on
    #[command(
        after_help = "Example:\n  chipbound downloads\n  chipbound downloads --give-up 7c9e6679f0a34de28b1dd0c1c4e0a9b2\n\nThe command that began a download goes on with it."
    )]
    Downloads {
        /// Throw away what waits of this order; the order itself stays as it is
        #[arg(long, value_name = "ORDER", value_parser = parsed::<OrderId>)]
        give_up: Option<OrderId>,
    },
    /// Download again with a receipt, without a charge
    #[command(after_help = "Example:\n  chipbound redownload 7c9e6679f0a34de28b1dd0c1c4e0a9b2 -o ./perl")]
    Redownload {
        /// A receipt's file, or the order; a receipt that is not kept here is fetched
        receipt: String,
        /// Where the package goes [default: the program's name]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// How the package comes
        #[command(flatten)]
        line: Line,
    },
    /// Move a purchase to another processor: this machine's gives it up for ever, unless it was revoked
    #[command(
        after_help = "Example:\n  chipbound transfer 7c9e6679f0a34de28b1dd0c1c4e0a9b2 --to 52e94d6adab3283efbb3fc1726d8bcb452e94d6adab3283efbb3fc1726d8bcb4\n\nThen, on the other machine: chipbound redownload ORDER. Interrupted, the same command goes on.\n\nA processor's key is taken as it is. As long as nothing was delivered to that processor, as under a mistyped key\nthat none has, the same command with the right key mends it; back to this machine's processor it never comes."
    )]
    Transfer {
        /// A receipt's file, or the order; a receipt that is not kept here is fetched
        receipt: String,
        /// The other processor: its key, as `chipbound processor show` names it, or its socket
        #[arg(long, value_name = "PROCESSOR")]
        to: String,
    },
    /// List your receipts, fetching those that are not kept here yet
    #[command(after_help = "Example:\n  chipbound receipts")]
    Receipts(super::receipts::Listed),
    /// Show, verify and hand on receipts, without a server
    #[command(subcommand)]
    Receipt(super::receipts::Verb),
}

impl Verb {
    /// Whether Ctrl-C pauses it.
    #[must_use]
    pub fn pauses(&self) -> bool {
        matches!(self, Self::Buy { .. } | Self::Redownload { .. })
    }
}

/// Does a customer's verb.
pub async fn execute(verb: Verb, common: &Common, output: &Output) -> Result<()> {
    let home = Home::locate(common.home.as_deref())?;
    match verb {
        Verb::Login { server, user, tls_root, password_file, token_file } => {
            let server = server.trim_end_matches('/').to_owned(); // One server has one name here.
            let tls_root = tls_root.map(|path| read_text(&path)).transpose()?;
            let session = match token_file {
                Some(file) => with_token(server, user, tls_root, &file).await?,
                None => with_password(server, user, tls_root, password_file.as_deref()).await?,
            };
            logged_in_at(&home, output, &session)
        }
        Verb::Logout => logout(&home, output).await,
        Verb::Catalogue => catalogue(&home, output).await,
        Verb::Balance => balance(&home, output).await,
        Verb::Cancel { order } => cancel(&home, output, &order).await,
        Verb::Buy { programs, version, output: target, key_mode, line, jobs, max_price, again, pay } => {
            if programs.len() > 1 && (version.is_some() || target.is_some()) {
                return Err(Refusal::new(Code::ConfigInvalid, "a version and a file are of one program: buy it by itself"));
            }
            let payment = payment(&pay)?;
            let (session, api) = logged_in(&home)?;
            let socket = home.processor(common.processor.as_deref());
            let device = Device { home: &home, session: &session, api: &api, socket: &socket, story: output };
            let wish = |program| {
                let (version, target, line, payment) = (version.clone(), target.clone(), line.wanted(), payment.clone());
                Wish { program, version, key_mode, line, max_price, target, again, payment }
            };
            let mut wishes: Vec<_> = programs.into_iter().map(wish).collect();
            if wishes.len() > 1 {
                return several::buy_all(&device, output, wishes, jobs).await;
            }
            if let Some(wish) = wishes.pop() {
                delivered(output, &buy(&device, &wish).await?);
            }
            Ok(())
        }
        Verb::Redownload { receipt, output: target, line } => {
            let (session, api) = logged_in(&home)?;
            let receipt = receipt_of(&home, &api, &receipt).await?;
            let socket = home.processor(common.processor.as_deref());
            let device = Device { home: &home, session: &session, api: &api, socket: &socket, story: output };
            delivered(output, &redownload(&device, &receipt, line.wanted(), target).await?);
            Ok(())
        }
        Verb::Transfer { receipt, to } => {
            let (session, api) = logged_in(&home)?;
            let receipt = receipt_of(&home, &api, &receipt).await?;
            let (socket, to) = (home.processor(common.processor.as_deref()), destination(to).await?);
            let device = Device { home: &home, session: &session, api: &api, socket: &socket, story: output };
            let (transfer, path) = transfer(&device, &receipt, to).await?;
            let text = format!("order {} is for processor {} from now on; there: chipbound redownload {0}", transfer.order, transfer.to);
            output.result(text, &json!({ "order": transfer.order, "from": transfer.from, "to": transfer.to, "path": lossy(&path) }));
            Ok(())
        }
        Verb::Downloads { give_up: None } => downloads(&home.processor(common.processor.as_deref()), output).await,
        Verb::Downloads { give_up: Some(order) } => give_up(&home.processor(common.processor.as_deref()), output, order).await,
        Verb::Receipts(listed) => super::receipts::list(&home, output, listed).await,
        Verb::Receipt(verb) => super::receipts::execute(verb, &home, output).await,
    }
}

impl Line {
    fn wanted(&self) -> Wanted {
        Wanted { way: if self.own_line { Way::OwnLine } else { Way::Tunnel }, rate: self.limit_rate }
    }
}

/// A receipt by its file, its number, or its order; that of an order that is not kept here is fetched.
async fn receipt_of(home: &Home, api: &Api, name: &str) -> Result<Vec<u8>> {
    match (receipts::find(home, name), name.parse::<OrderId>()) {
        (Err(refusal), Ok(order)) if refusal.code == Code::UnknownOrder => {
            let not_paid = || Refusal::new(Code::OrderState, format!("order {order} has no receipt: it is not paid"));
            let receipt = api.order_state(&order).await?.receipt.ok_or_else(not_paid)?;
            if read_claims::<Receipt>(&receipt.0)?.order != order {
                return Err(Refusal::new(Code::OrderMismatch, "the server shows the receipt of another order"));
            }
            home.store_receipt(&order, &receipt.0)?;
            Ok(receipt.0)
        }
        (found, _) => found.map(|found| found.receipt),
    }
}

/// A processor by its key, or by its socket on this machine.
async fn destination(named: String) -> Result<KeyId> {
    match named.parse::<KeyId>() {
        Ok(key) => Ok(key),
        Err(_) => blocking(move || control::describe(Path::new(&named))).await.map(|description| description.processor),
    }
}

/// Lists what waits in the processor.
async fn downloads(socket: &Path, output: &Output) -> Result<()> {
    let socket = socket.to_owned();
    let waiting = blocking(move || control::waiting(&socket)).await?;
    let row = |w: &WaitingDelivery| {
        let percent = w.done * 100 / w.size.max(1);
        vec![
            w.title.to_string(),
            format!("{percent} %"),
            format!("{} of {}", bytes(w.done), bytes(w.size)),
            receipts::moment(w.until),
            w.order.to_string(),
        ]
    };
    let rows: Vec<_> = waiting.iter().map(row).collect();
    let value = |w: &WaitingDelivery| json!({ "program": &*w.title, "done": w.done, "bytes": w.size, "until": w.until, "order": w.order });
    let values: Vec<_> = waiting.iter().map(value).collect();
    output.table(&["PROGRAM", "HERE", "BYTES", "WAITS UNTIL", "ORDER"], &rows, &values);
    Ok(())
}

async fn give_up(socket: &Path, output: &Output, order: OrderId) -> Result<()> {
    let socket = socket.to_owned();
    blocking(move || control::give_up(&socket, order)).await?;
    output.result(format!("what waited of order {order} is gone"), &json!({ "given_up": order }));
    Ok(())
}

/// Bytes a second, as people write them: a number, and K, M or G for powers of 1024.
fn rate(text: &str) -> std::result::Result<u32, String> {
    let (number, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let rate = number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).and_then(|n| u32::try_from(n).ok());
    rate.filter(|rate| *rate >= SLOWEST).ok_or_else(|| "a rate is a number of bytes a second, such as 5M or 800K; at least 16K".to_owned())
}

/// `prepaid` or `card:TOKEN`. A card's number is refused before anything is sent, and the text is never repeated.
fn payment(text: &str) -> Result<Payment> {
    refuse_card_numbers("--pay", text)?;
    match text.strip_prefix("card:") {
        Some(token) => Ok(Payment::Card(token.parse::<CardToken>()?.as_str().to_owned())),
        None if text == "prepaid" => Ok(Payment::Prepaid),
        None => Err(Refusal::new(Code::ConfigInvalid, "--pay is prepaid or card:TOKEN")),
    }
}

pub(super) fn delivered(output: &Output, delivered: &Delivered) {
    let Delivered { package, size, receipt, receipt_path, chosen } = delivered;
    let (package, receipt_path) = (package.display(), receipt_path.display());
    output.result(
        format!("{package}: {} ({}); receipt {} for {} in {receipt_path}", bytes(*size), chosen, receipt.number, receipt.amount),
        &json!({ "delivered": package.to_string(), "bytes": size, "chosen": chosen, "receipt": receipts::value(receipt),
            "receipt_path": receipt_path.to_string() }),
    );
}

async fn with_password(server: String, user: String, tls_root: Option<String>, file: Option<&Path>) -> Result<Session> {
    let trust = tls_root.as_ref().map_or(Ok(ServerTrust::WebPki), |pem| ServerTrust::root_from_pem(pem.as_bytes()))?;
    let password = password(&user, &server, file)?;
    let granted = Api::log_in(&server, trust, &user, &password).await?;
    Ok(Session { server, user, token: granted.token.clone(), expires_at: Some(granted.expires_at), tls_root })
}

/// The session of an API token; the server says whether it is that user's. Its end is the server's to know.
async fn with_token(server: String, user: String, tls_root: Option<String>, file: &Path) -> Result<Session> {
    let text = Zeroizing::new(chipbound_host::files::read_private(file, MAX_SMALL_FILE)?);
    let token = std::str::from_utf8(&text).ok().and_then(|text| text.lines().next()).unwrap_or_default().to_owned();
    let session = Session { server, user, token, expires_at: None, tls_root };
    let account = Api::with(&session)?.account().await?;
    if account.user != session.user {
        return Err(Refusal::new(Code::AccountMismatch, format!("the API token is of {}", account.user)));
    }
    Ok(session)
}

fn logged_in_at(home: &Home, output: &Output, session: &Session) -> Result<()> {
    home.store_session(session)?;
    let until = session.expires_at.map_or("its API token ends".to_owned(), receipts::moment);
    let value = json!({ "server": session.server, "user": session.user, "expires_at": session.expires_at });
    output.result(format!("logged in at {} as {} until {until}", session.server, session.user), &value);
    Ok(())
}

/// The password: from the file, from the terminal without showing it, or from stdin in a pipe.
fn password(user: &str, server: &str, file: Option<&Path>) -> Result<Zeroizing<String>> {
    let failed = |e| Refusal::io("the password", e);
    let text = match file {
        Some(path) => Zeroizing::new(read_text(path)?),
        None if std::io::stdin().is_terminal() => {
            Zeroizing::new(rpassword::prompt_password(format!("Password of {user} at {server}: ")).map_err(failed)?)
        }
        None => {
            let mut line = Zeroizing::new(String::new());
            std::io::stdin().lock().read_line(&mut line).map_err(failed)?;
            line
        }
    };
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = chipbound_host::files::read(path, MAX_SMALL_FILE)?;
    String::from_utf8(bytes).map_err(|_| Refusal::new(Code::Malformed, format!("{} is not text", path.display())))
}

async fn logout(home: &Home, output: &Output) -> Result<()> {
    let Some(session) = home.session_if_any()? else {
        output.result("nobody was logged in", &json!({ "logged_out": false }));
        return Ok(());
    };
    // The token is forgotten here whatever the server says; there it ends by itself. An API token is not ended by a log-out.
    let told = match session.expires_at {
        Some(_) => Api::with(&session)?.log_out().await,
        None => Ok(()),
    };
    home.forget_session()?;
    if let Err(refusal) = told {
        output.note(&format!("the server was not told ({refusal}); the session ends by itself"));
    }
    output.result(format!("logged out of {}", session.server), &json!({ "logged_out": true, "server": session.server }));
    Ok(())
}

async fn catalogue(home: &Home, output: &Output) -> Result<()> {
    let (_, api) = logged_in(home)?;
    let programs = api.programs().await?;
    let row = |r: &chipbound_wire::api::Release| {
        vec![
            r.program.name().to_owned(),
            r.version.clone(),
            r.price.to_string(),
            bytes(r.size),
            r.format.to_string(),
            r.program.to_string(),
        ]
    };
    let rows: Vec<_> = programs.iter().map(row).collect();
    let values: Vec<_> = programs.iter().map(|r| json!(r)).collect();
    output.table(&["NAME", "VERSION", "PRICE", "SIZE", "FORMAT", "ID"], &rows, &values);
    Ok(())
}

async fn cancel(home: &Home, output: &Output, order: &OrderId) -> Result<()> {
    let (_, api) = logged_in(home)?;
    let cancelled = api.cancel(order).await?;
    output.result(format!("order {} is cancelled; nothing is held for it", cancelled.order), &json!(cancelled));
    Ok(())
}

async fn balance(home: &Home, output: &Output) -> Result<()> {
    let (_, api) = logged_in(home)?;
    let account = api.account().await?;
    let mut lines: Vec<_> = account.balances.iter().map(|b| format!("{} ({} held)", b.available, b.held)).collect();
    lines.extend(account.sales.iter().map(sales));
    let text = if lines.is_empty() { "no money yet".to_owned() } else { lines.join("\n") };
    output.result(text, &json!(account));
    Ok(())
}

/// What a vendor's sales came to, in one of its books.
fn sales(Book { book, currency, minor }: &Book) -> String {
    let amount = Amount { minor: minor.unsigned_abs(), currency: *currency };
    let sign = if *minor < 0 { "-" } else { "" };
    let what = match book.as_str() {
        "revenue" => "earned and not paid out",
        "tax" => "taxes in what was sold",
        "fees" => "the house's share",
        other => other,
    };
    format!("{sign}{amount} {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_vendor_earned_is_said_with_its_sign() {
        let book = |book: &str, minor| Book { book: book.to_owned(), currency: "EUR".parse().expect("a currency"), minor };
        assert_eq!(sales(&book("revenue", 1650)), "16.50 EUR earned and not paid out");
        assert_eq!(sales(&book("revenue", -5)), "-0.05 EUR earned and not paid out");
    }

    #[test]
    fn a_payment_is_the_accounts_or_a_token_and_a_cards_number_is_refused_without_being_repeated() {
        assert_eq!(payment("prepaid").expect("the account's"), Payment::Prepaid);
        assert_eq!(payment("card:pm_card_visa").expect("a token"), Payment::Card("pm_card_visa".to_owned()));
        for text in ["card:4242424242424242", "4242 4242 4242 4242", "card:pm_4242424242424242"] {
            let refusal = payment(text).expect_err(text);
            assert!(refusal.code == Code::CardNumber && !refusal.detail.contains("4242"), "{refusal}");
        }
        for text in ["card", "card:", "cash", ""] {
            payment(text).expect_err(text);
        }
    }
}
