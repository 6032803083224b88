//! A PostgreSQL cluster of the tests' own: in a folder of its own, on a unix socket alone, gone with whoever started it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Makes and runs the cluster until standard input ends, which it does when the process at its other end is gone, however it went. A
/// line there is a signal that ends PostgreSQL, or `start`; each is answered by a line.
const SUPERVISOR: &str = r#"
set -eu
folder=$1 bin=$2 fsync=$3 address=$4 port=$5
begin() {
    "$bin/postgres" -D "$folder/data" -k "$folder" -c listen_addresses="$address" -p "$port" -c fsync="$fsync" -c max_connections=400 \
        >>"$folder/log" 2>&1 &
    server=$!
    # Processes of one that was killed may still hold its memory for a moment: it ends then, and begins once more.
    until "$bin/pg_isready" -q -h "$folder" -p "$port"; do kill -0 $server 2>/dev/null || { sleep 0.1; begin; return; }; sleep 0.05; done
    echo ready
}
"$bin/initdb" -D "$folder/data" -A trust -U chipbound --no-sync -E UTF8 --locale=C >/dev/null
begin
while read -r wanted; do
    if [ "$wanted" = start ]; then begin; else kill -s "$wanted" $server; wait $server 2>/dev/null || true; echo ended; fi
done
kill -QUIT $server 2>/dev/null || true
wait $server 2>/dev/null || true
until rm -rf "$folder" 2>/dev/null; do sleep 0.1; done
"#;

/// A running cluster. Dropped, it ends and leaves nothing.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    supervisor: Child,
    /// To the supervisor and from it; none any more when the cluster ends.
    line: Mutex<Option<(ChildStdin, BufReader<ChildStdout>)>>,
    databases: AtomicU32,
    /// Of its socket, and on 127.0.0.1 where it listens there.
    port: u16,
}

impl Cluster {
    /// Starts a cluster; takes one to two seconds. `durable` asks for commits that reach the disk.
    ///
    /// # Panics
    /// Where PostgreSQL is not installed (`./test` installs it) or does not start.
    #[must_use]
    pub fn start(durable: bool) -> Self {
        Self::start_at(durable, "", 5432)
    }

    /// The same, which also listens on a port of 127.0.0.1 with TLS. What it shows and asks for there are files of `prepare`'s, which is
    /// shown the cluster's folder: `server.pem`, `server.key`, `clients.pem` (whose certificates it takes) and `pg_hba.conf`.
    ///
    /// # Panics
    /// As above.
    #[must_use]
    pub fn start_with_tls(prepare: impl FnOnce(&Path)) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|taken| taken.local_addr()).expect("a free port");
        let cluster = Self::start_at(false, "127.0.0.1", free.port());
        prepare(&cluster.folder);
        if is_root() {
            let owned = Command::new("chown").arg("postgres").arg(cluster.folder.join("server.key")).status().expect("chown runs");
            assert!(owned.success(), "the key is given to the user postgres");
        }
        let rules = cluster.folder.join("pg_hba.conf");
        std::fs::copy(rules, cluster.folder.join("data/pg_hba.conf")).expect("rules");
        for (name, file) in [("ssl_cert_file", "server.pem"), ("ssl_key_file", "server.key"), ("ssl_ca_file", "clients.pem")] {
            let file = cluster.folder.join(file);
            cluster.sql("postgres", &format!("ALTER SYSTEM SET {name} = '{}'", file.display())).expect("a setting");
        }
        cluster.sql("postgres", "ALTER SYSTEM SET ssl = on").expect("a setting");
        cluster.shut_down_at_once();
        cluster.start_again();
        cluster
    }

    fn start_at(durable: bool, address: &str, port: u16) -> Self {
        static CLUSTERS: AtomicU32 = AtomicU32::new(0);
        let bin = binaries().expect("PostgreSQL is not installed: ./test installs it");
        let name = format!("chipbound-postgres-{}-{}", std::process::id(), CLUSTERS.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).expect("a folder for the cluster");
        let mut command = if is_root() {
            // PostgreSQL refuses to run as root.
            let owned = Command::new("chown").arg("postgres").arg(&folder).status().expect("chown runs");
            assert!(owned.success(), "the folder is given to the user postgres");
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "sh"]);
            command
        } else {
            Command::new("sh")
        };
        command.args(["-c", SUPERVISOR, "sh"]).arg(&folder).arg(bin).args([if durable { "on" } else { "off" }, address, &port.to_string()]);
        command.process_group(0); // Whoever kills the tests with their group leaves it to clear up.
        let mut supervisor = command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
        let line = (supervisor.stdin.take().expect("piped"), BufReader::new(supervisor.stdout.take().expect("piped")));
        let cluster = Self { folder, supervisor, line: Mutex::new(Some(line)), databases: AtomicU32::new(0), port };
        cluster.hears("ready");
        cluster
    }

    /// One cluster for all tests of this process; commits do not reach the disk.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(false))
    }

    /// Where its socket is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes an empty database and returns its name.
    pub fn create_database(&self) -> String {
        let name = format!("books_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}")).expect("a database");
        name
    }

    /// The port of its socket, and on 127.0.0.1 where it listens there.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `postgres://…` of a database.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://chipbound@localhost:{}/{database}?host={}", self.port, self.folder.display())
    }

    /// Runs statements in one transaction, by `psql`; the rows that the last one found, one line each, or what PostgreSQL said against it.
    pub fn sql(&self, database: &str, statements: &str) -> Result<String, String> {
        let bin = binaries().expect("PostgreSQL is installed");
        let mut psql = Command::new(bin.join("psql"));
        psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-U", "chipbound", "-d", database, "-c", statements]).arg("-h").arg(&self.folder);
        psql.arg("-p").arg(self.port.to_string());
        let done = psql.stdin(Stdio::null()).output().expect("psql runs");
        match done.status.success() {
            true => Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned()),
            false => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
        }
    }
}

impl Cluster {
    /// From now on nobody reaches it, and whoever did is cut off, until [`Self::come_back`].
    ///
    /// # Panics
    /// Where it is away already.
    pub fn go_away(&self) {
        std::fs::rename(self.socket(), self.folder.join("away")).expect("the socket is there");
        let others =
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
        std::fs::hard_link(self.folder.join("away"), self.socket()).expect("another way in");
        let cut = self.sql("postgres", others);
        std::fs::remove_file(self.socket()).expect("it goes again");
        cut.expect("they are cut off");
    }

    /// It is reached again.
    ///
    /// # Panics
    /// Where it was not away.
    pub fn come_back(&self) {
        std::fs::rename(self.folder.join("away"), self.socket()).expect("it was away");
    }

    /// Shuts it down in the middle of whatever it does: whoever is connected is cut off, nothing is finished, and it begins from its log.
    ///
    /// # Panics
    /// Where it does not run.
    pub fn shut_down_at_once(&self) {
        self.says("QUIT");
        self.hears("ended");
    }

    /// Kills its first process (SIGKILL); the others notice that and end.
    ///
    /// # Panics
    /// Where it does not run.
    pub fn kill(&self) {
        self.says("KILL");
        self.hears("ended");
    }

    /// Starts it again, and returns when it has recovered and serves.
    ///
    /// # Panics
    /// Where it was not ended.
    pub fn start_again(&self) {
        self.says("start");
        self.hears("ready");
    }

    fn says(&self, wanted: &str) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let (to, _) = line.as_mut().expect("it ends with the cluster");
        writeln!(to, "{wanted}").expect("the supervisor reads");
    }

    fn hears(&self, wanted: &str) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, from) = line.as_mut().expect("it ends with the cluster");
        let mut heard = String::new();
        from.read_line(&mut heard).expect("a line");
        assert_eq!(heard.trim_end(), wanted, "PostgreSQL's supervisor");
    }

    fn socket(&self) -> PathBuf {
        self.folder.join(format!(".s.PGSQL.{}", self.port))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        *self.line.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        let _ = self.supervisor.wait(); // It ends by itself.
    }
}

/// The folder of the newest PostgreSQL's programs, if one is installed.
#[must_use]
pub fn binaries() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    versions
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter_map(|path| Some((version(&path)?, path.join("bin"))))
        .max()
        .map(|v| v.1)
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Set for the process that is killed.
    const KILLED: &str = "CHIPBOUND_TEST_THAT_IS_KILLED";

    #[test]
    fn a_cluster_leaves_nothing_where_the_whole_group_of_its_test_is_killed() {
        if std::env::var_os(KILLED).is_some() {
            let cluster = Cluster::start(false);
            eprintln!("cluster {}", cluster.folder().display());
            loop {
                std::thread::park();
            }
        }
        let name = "postgres::tests::a_cluster_leaves_nothing_where_the_whole_group_of_its_test_is_killed";
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["--exact", name, "--nocapture"]).env(KILLED, "1").stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let mut test = command.spawn().expect("the test once more");
        let lines = BufReader::new(test.stderr.take().expect("piped")).lines();
        let folder = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("cluster ").map(PathBuf::from)).expect("a cluster");
        assert!(folder.join("data/postmaster.pid").exists());
        let group = Command::new("kill").args(["-KILL", "--", &format!("-{}", test.id())]).status().expect("kill runs");
        assert!(group.success() && !test.wait().expect("it ended").success());
        while folder.exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
