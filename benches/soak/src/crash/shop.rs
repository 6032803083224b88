//! One installation whose daemons are killed and started again.

use super::plan::PROGRAMS;
use super::tally::{Tally, locked};
use super::{Database, Size};
use crate::{Outcome, failed};
use chipbound::demo::world::{Daemon, World};
use chipbound::home::Home;
use chipbound_server::config::Config;
use chipbound_server::storage::{Accounts, Books, PaymentState, Payments};
use chipbound_testkit::CardSimulator;
use chipbound_testkit::cards::{API_KEY, Fault, Operation};
use chipbound_testkit::postgres::Cluster;
use chipbound_wire::api::Balance;
use chipbound_wire::documents::Receipt;
use chipbound_wire::signed::read_claims;
use chipbound_wire::{Code, OrderId, Refusal};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// What everybody logs in with.
const PASSWORD: &str = "correct horse battery staple";
/// What every program costs, in minor units, and what a customer has who does not pay by card.
pub(crate) const PRICE: u64 = 100;
pub(crate) const DEPOSIT: u64 = 250;
/// What a later deposit adds, and what is paid out to the vendor of the price of a purchase.
pub(crate) const ADDED: u64 = 70;
pub(crate) const PAID_OUT: u64 = 40;
/// The vendor's user id.
pub(crate) const VENDOR: &str = "vendor";
/// How long a daemon may take to come back, its database included.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the card provider fails, of a thousand requests.
const FAULTS: u32 = 60;
/// How long the card provider lets wait for an answer that is aimed at.
const LATE: Duration = Duration::from_millis(60);

/// One customer's account.
pub(crate) struct Account {
    pub(crate) receipts: Vec<Receipt>,
    /// Minor units.
    pub(crate) available: u64,
    pub(crate) held: u64,
}

/// The installation; everything ends with it.
pub(crate) struct Shop {
    exe: PathBuf,
    folder: PathBuf,
    server: Mutex<Daemon>,
    processors: Vec<Mutex<Daemon>>,
    pub(crate) world: World,
    pub(crate) cards: CardSimulator,
    cluster: Option<(Cluster, String)>,
    pub(crate) runtime: Runtime,
    /// Microseconds that a purchase takes that nobody disturbs.
    usual: AtomicU64,
}

impl Shop {
    /// Sets everything up: one processor for each lane and a spare one, a vendor with two programs.
    pub(crate) fn open(exe: &Path, folder: &Path, database: Database, size: &Size) -> Outcome<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let cards = runtime.block_on(CardSimulator::start());
        chipbound_host::files::write_new(&folder.join("card-key"), API_KEY.as_bytes(), 0o600)?;
        chipbound_host::files::write_new(&folder.join("card-root.pem"), cards.root_pem().as_bytes(), 0o600)?;
        let at = folder.display();
        let more = format!(
            "order_seconds = {}\n[payment.cards]\nurl = \"{}\"\nkey_file = \"{at}/card-key\"\ntls_root = \"{at}/card-root.pem\"\n",
            size.order_seconds,
            cards.url()
        );
        let mut world = runtime.block_on(World::start(exe, folder, size.lanes + 1, &more))?;
        let cluster = (database == Database::Postgres).then(|| {
            let cluster = Cluster::start(false);
            let name = cluster.create_database();
            (cluster, name)
        });
        let url = cluster.as_ref().map(|(cluster, name)| cluster.url(name));
        settle_down(&world, url.as_deref())?;
        let mut daemons = world.daemons.drain(1..).map(Mutex::new).collect::<Vec<_>>();
        let server = daemons.remove(0);
        let (exe, folder, usual) = (exe.to_owned(), folder.to_owned(), AtomicU64::new(0));
        let shop = Self { exe, folder, server, processors: daemons, world, cards, cluster, runtime, usual };
        shop.kill_server(Duration::ZERO)?; // It has another configuration from now on.
        shop.publish()?;
        shop.cards.draw_faults(size.seed, FAULTS);
        Ok(shop)
    }

    fn publish(&self) -> Outcome<()> {
        self.runtime.block_on(async {
            self.world.account(VENDOR, "vendor", PASSWORD, None).await?;
            self.world.log_in(VENDOR, PASSWORD).await?;
            let voucher = self.world.voucher("vendor").await?;
            let arguments = ["vendor", "init", "--authority", &self.world.authority_url, "--voucher", &voucher, "--home"];
            self.world.chipbound(&arguments, &[&self.world.path("home-vendor")]).await
        })?;
        for program in &PROGRAMS {
            let price = price(PRICE);
            let arguments = ["publish", "--name", program.name, "--version", "1", "--class", "software", "--price", &price, program.file];
            let output = self.command(&self.folder.join("home-vendor"), 0, &arguments).output()?;
            if !output.status.success() {
                return Err(failed(format!("publish: {}", String::from_utf8_lossy(&output.stderr))));
            }
        }
        Ok(())
    }

    /// A new customer with money or without, logged in: her name, which begins with `name`, and where she works.
    pub(crate) fn customer(&self, name: &str, money: bool) -> Outcome<(String, PathBuf)> {
        let deposit = price(DEPOSIT);
        let mut user = name.to_owned();
        self.again("an account", || {
            let made = self.runtime.block_on(self.world.account(&user, "customer", PASSWORD, money.then_some(deposit.as_str())));
            // Interrupted in between, that one may be there and have money, or not: nobody uses it.
            made.inspect_err(|_| user.push('+'))?;
            Ok(user.clone())
        })?;
        self.again("a log-in", || self.runtime.block_on(self.world.log_in(&user, PASSWORD)))?;
        let work = self.folder.join(format!("work-{user}"));
        std::fs::create_dir(&work)?;
        Ok((user, work))
    }

    /// Does what may fail while others kill.
    fn again<T>(&self, what: &str, mut attempt: impl FnMut() -> chipbound_wire::Result<T>) -> Outcome<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(refusal) if Instant::now() > deadline => return Err(failed(format!("{what}: {refusal}"))),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    pub(crate) fn home(&self, user: &str) -> PathBuf {
        self.folder.join(format!("home-{user}"))
    }

    /// The command, in a home, on a lane's processor.
    pub(crate) fn command(&self, home: &Path, lane: usize, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.exe);
        command.args(arguments).current_dir(&self.folder).stdin(Stdio::null());
        command.env("CHIPBOUND_HOME", home).env("CHIPBOUND_PROCESSOR", &self.world.sockets[lane]);
        command
    }

    /// What a customer sees of her own account.
    pub(crate) fn account(&self, user: &str) -> Outcome<Account> {
        let api = chipbound::api::Api::with(&Home::locate(Some(&self.home(user)))?.session()?)?;
        let both = async {
            let mut page = api.receipts(None, 256).await?;
            let mut receipts = page.receipts;
            while let Some(next) = page.next {
                page = api.receipts(Some(&next), 256).await?;
                receipts.append(&mut page.receipts);
            }
            Ok::<_, chipbound_wire::Refusal>((api.account().await?, receipts))
        };
        let (account, receipts) = self.runtime.block_on(both)?;
        let receipts = receipts.iter().map(|bytes| read_claims(&bytes.0)).collect::<Result<_, _>>()?;
        let minor = |of: fn(&Balance) -> u64| account.balances.first().map_or(0, of);
        Ok(Account { receipts, available: minor(|b| b.available.minor), held: minor(|b| b.held.minor) })
    }

    /// What a verb of the server's operator says, and whether it ended well.
    pub(crate) fn operator(&self, verb: &str) -> Outcome<(bool, String)> {
        let config = self.folder.join("server/server.toml");
        let output = self.command(&self.home("operator"), 0, &["server", verb, "--config"]).arg(config).output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    /// Orders of which the server does not know yet whether the card provider ever heard of them.
    pub(crate) fn asked(&self) -> Outcome<Vec<String>> {
        self.read_books(async |books| {
            let (mut asked, mut after) = (Vec::new(), OrderId([0; 16]));
            while let some = books.all_payments(after).await?
                && let Some(last) = some.last()
            {
                after = last.order;
                asked.extend(some.iter().filter(|p| p.state == PaymentState::Asked).map(|p| p.order.to_string()));
            }
            Ok(asked)
        })
    }

    /// What the vendor earned and was not paid out yet, minor units.
    pub(crate) fn earned(&self) -> Outcome<i64> {
        self.read_books(async |books| {
            let vendor = books.credentials(VENDOR).await?.ok_or_else(|| Refusal::new(Code::NotFound, "there is no vendor"))?;
            let standing = books.books_of(vendor.account).await?;
            Ok(standing.iter().filter(|b| b.book == "revenue").map(|b| b.minor).sum())
        })
    }

    fn read_books<T>(&self, read: impl AsyncFnOnce(&Books) -> chipbound_wire::Result<T>) -> Outcome<T> {
        let location = Config::load(&self.folder.join("server/server.toml"))?.database()?;
        let opened = async {
            let books = Books::open(&location).await?;
            let found = read(&books).await;
            books.close().await;
            found
        };
        Ok(self.runtime.block_on(opened)?)
    }

    /// Kills the server, and starts it again after a while.
    pub(crate) fn kill_server(&self, away: Duration) -> Outcome<()> {
        self.kill(&self.server, away, &["server", "run"], &self.folder.join("server/server.toml"), "server")
    }

    /// Kills a lane's processor, and starts it again after a while.
    pub(crate) fn kill_processor(&self, lane: usize, away: Duration) -> Outcome<()> {
        let name = format!("processor-{}", lane + 1);
        self.kill(&self.processors[lane], away, &["processor", "run"], &self.folder.join(&name).join("processor.toml"), &name)
    }

    fn kill(&self, daemon: &Mutex<Daemon>, away: Duration, verb: &[&str], config: &Path, name: &str) -> Outcome<()> {
        let mut daemon = locked(daemon);
        daemon.kill();
        std::thread::sleep(away);
        let arguments: Vec<_> = verb.iter().map(OsStr::new).chain([OsStr::new("--config"), config.as_os_str()]).collect();
        let log = self.folder.join(format!("{name}.log"));
        *daemon = self.again(name, || self.runtime.block_on(Daemon::start(&self.exe, &arguments, &log)))?.0;
        Ok(())
    }

    /// The number of the processor that is no lane's.
    pub(crate) fn spare(&self) -> usize {
        self.processors.len() - 1
    }

    /// Whether the database is one that can be killed.
    pub(crate) fn has_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// Kills one process of the database that serves the server; PostgreSQL ends all others then and begins anew from its log.
    pub(crate) fn kill_database(&self) {
        let Some((cluster, name)) = &self.cluster else { return };
        let find = format!("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname = '{name}' LIMIT 1");
        let found = cluster.sql("postgres", &find).ok().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = found {
            let _ = kill_process(pid, Signal::KILL); // It may have ended in between.
        }
    }

    /// The next request of that kind is answered late, so that there is a time in which only the card provider knows what it did.
    pub(crate) fn answer_late(&self, operation: Operation) {
        self.cards.plan(operation, Fault::Late(LATE));
    }

    /// How many prices the card provider ever held, and how many of them it took.
    pub(crate) fn held_and_taken(&self) -> (usize, usize) {
        let payments = self.cards.payments();
        (payments.len(), payments.iter().filter(|p| p.captures > 0).count())
    }

    /// How long a purchase takes that nobody disturbs.
    pub(crate) fn usual(&self) -> Duration {
        match self.usual.load(Ordering::Relaxed) {
            0 => Duration::from_millis(150),
            micros => Duration::from_micros(micros),
        }
    }

    pub(crate) fn undisturbed(&self, took: Duration) {
        let (took, before) = (took.as_micros() as u64, self.usual.load(Ordering::Relaxed));
        self.usual.store(if before == 0 { took } else { (before * 7 + took) / 8 }, Ordering::Relaxed);
    }

    /// What the daemons' logs say that they never should.
    pub(crate) fn check_logs(&self, tally: &mut Tally) -> Outcome<()> {
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "log") {
                let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
                let bad = text.lines().filter(|line| line.contains("panicked at") || line.contains("code=internal"));
                tally.violations.extend(bad.map(|line| format!("{}: {line}", path.display())));
            }
        }
        Ok(())
    }
}

/// Minor units as an amount.
pub(crate) fn price(minor: u64) -> String {
    format!("{}.{:02} EUR", minor / 100, minor % 100)
}

/// Gives the server the port that it has for good, and its database.
fn settle_down(world: &World, database: Option<&str>) -> Outcome<()> {
    let path = world.path("server/server.toml");
    let text = std::fs::read_to_string(&path)?;
    let address = world.server_url.trim_start_matches("https://");
    let mut text = text.replacen("listen = \"127.0.0.1:0\"", &format!("listen = \"{address}\""), 1);
    if let Some(url) = database {
        text = text.replacen("# url = \"sqlite:server.db\"", &format!("url = \"{url}\""), 1);
    }
    Ok(std::fs::write(&path, text)?)
}
