//! One connection: how it comes about, what is prepared on it, and statements that go to the server in one message.

use super::tls::{self, Files};
use crate::storage::engine::failed;
use crate::storage::sql::{Cell, Row, Value, unreadable};
use bytes::BytesMut;
use chipbound_wire::{Code, Refusal, Result};
use futures_core::Stream;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use std::collections::HashMap;
use std::error::Error as StdError;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Config, Error, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long a connection may take to come about.
pub(super) const CONNECT: Duration = Duration::from_secs(10);
/// What bounds a statement, a wait for a lock, and a transaction whose server instance stands still. Every statement finds its rows by
/// a key, so that one plan is as good as another: it is made once, also for tables that are small yet. Nothing is written outside of a transaction that says at its
/// beginning that it writes: where that beginning fails, what follows it in one message does too.
const SESSION: [(&str, &str); 7] = [
    ("statement_timeout", "60s"),
    ("lock_timeout", "20s"),
    ("idle_in_transaction_session_timeout", "60s"),
    ("plan_cache_mode", "force_generic_plan"),
    ("default_transaction_read_only", "on"),
    ("enable_seqscan", "off"),
    ("jit", "off"),
];
/// A commit that is answered is on the disk, whatever the server's default is.
const DURABLE: &str = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";

/// A database server, and how to reach it.
pub(super) struct Server {
    config: Config,
    tls: MakeRustlsConnect,
}

impl Server {
    /// The server of these options. [`Code::ConfigInvalid`] where they leave it to the server on a network whether it is spoken to in
    /// clear, or a file that they name does not serve.
    pub(super) fn new(options: &PgConnectOptions) -> Result<Self> {
        let undecided = matches!(options.get_ssl_mode(), PgSslMode::Allow | PgSslMode::Prefer);
        if undecided && options.get_socket().is_none() && !is_here(options.get_host()) {
            let detail = format!(
                "the URL of the database on {} does not say how the connection is secured: end it with ?sslmode=verify-full (and \
                 &sslrootcert=FILE for a root of your own), or with ?sslmode=disable where nobody else is on that network",
                options.get_host()
            );
            return Err(Refusal::new(Code::ConfigInvalid, detail));
        }
        let options = options.clone().options(SESSION);
        let mut config = Config::new();
        match options.get_socket() {
            Some(folder) => config.host_path(folder),
            None => config.host(options.get_host()),
        };
        config.port(options.get_port()).user(options.get_username()).application_name("chipbound-server");
        config.dbname(options.get_database().unwrap_or(options.get_username()));
        config.options(options.get_options().unwrap_or_default()).ssl_mode(match options.get_ssl_mode() {
            PgSslMode::Disable | PgSslMode::Allow => SslMode::Disable,
            PgSslMode::Prefer => SslMode::Prefer,
            PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull => SslMode::Require,
        });
        // What the options do not show they write down.
        let url = options.to_url_lossy();
        if let Some((password, _)) = url.password().and_then(|encoded| form_urlencoded::parse(encoded.as_bytes()).next()) {
            config.password(password.as_bytes());
        }
        let written = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, file)| file.into_owned());
        let named = |name: &str| written(name).map(|file| file.strip_prefix("file: ").map(str::to_owned).unwrap_or(file));
        let files = Files { roots: named("sslrootcert"), certificate: named("sslcert"), key: named("sslkey") };
        Ok(Self { config, tls: MakeRustlsConnect::new(tls::config(options.get_ssl_mode(), &files)?) })
    }

    /// A new connection, driven by the runtime in which this is called. [`Code::DatabaseUnavailable`].
    pub(super) async fn connect(&self) -> Result<Link> {
        let connected = tokio::time::timeout(CONNECT, self.config.connect(self.tls.clone())).await;
        let connected = connected.map_err(|_| Refusal::new(Code::DatabaseUnavailable, "the database server does not answer"))?;
        let (client, connection) = connected
            .map_err(|e| Refusal::new(Code::DatabaseUnavailable, format!("the database server cannot be reached: {}", Told(&e))))?;
        let driver = tokio::spawn(async move { drop(connection.await) }); // How it ends shows in what is asked of it.
        let link = Link { client, driver, prepared: Default::default() };
        link.client.batch_execute(DURABLE).await.map_err(|e| Failure::of(&e).refuse(&e))?;
        Ok(link)
    }
}

/// Whether that host is this machine.
fn is_here(host: &str) -> bool {
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What became of a statement that failed, besides being refused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// PostgreSQL gave the transaction up in favour of another one.
    GivenUp,
    /// The connection is gone, and the transaction with it.
    Disconnected,
    /// It is wrong, and would be again.
    Wrong,
}

impl Failure {
    pub(super) fn of(error: &Error) -> Self {
        match error.code() {
            Some(code) if *code == SqlState::T_R_SERIALIZATION_FAILURE || *code == SqlState::T_R_DEADLOCK_DETECTED => Self::GivenUp,
            // Ended by an operator, with its server, or for having stood still.
            Some(code) if matches!(code.code(), "57P01" | "57P02" | "57P03" | "25P03") => Self::Disconnected,
            // What was prepared before a newer version made a table wider; a new connection prepares it anew.
            Some(code) if *code == SqlState::FEATURE_NOT_SUPPORTED => Self::Disconnected,
            Some(_) => Self::Wrong,
            None => Self::Disconnected,
        }
    }

    pub(super) fn refuse(self, error: &Error) -> Refusal {
        match self {
            Self::Disconnected => broke(&Told(error)),
            Self::GivenUp | Self::Wrong => failed(&Told(error)),
        }
    }
}

/// The connection is gone.
pub(super) fn broke(how: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Code::DatabaseUnavailable, format!("the connection to the database broke: {how}"))
}

/// An error with what it was made of: alone it only says where it happened.
struct Told<'e>(&'e Error);

impl std::fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0.as_db_error(), self.0.source()) {
            (Some(said), _) => f.write_str(said.message()), // Its details name values.
            (None, Some(source)) => write!(f, "{}: {source}", self.0),
            (None, None) => write!(f, "{}", self.0),
        }
    }
}

/// A connection.
pub(super) struct Link {
    client: Client,
    driver: JoinHandle<()>,
    /// Of one row of values each, and of many.
    prepared: [HashMap<&'static str, Statement>; 2],
}

/// A statement with its values, ready to be sent.
pub(super) struct Part {
    pub(super) statement: Statement,
    pub(super) values: Vec<Bound>,
}

impl Part {
    /// The bytes of its values.
    pub(super) fn bytes(&self) -> usize {
        self.values.iter().map(Bound::bytes).sum()
    }
}

/// What a statement found or changed.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) rows: Vec<tokio_postgres::Row>,
    pub(super) changed: u64,
}

impl Link {
    /// Whether the server was seen to have closed it.
    pub(super) async fn is_closed(&self) -> bool {
        // Once to hear from the network, once for the connection to take it in.
        for _ in 0..2 {
            tokio::task::yield_now().await;
        }
        self.client.is_closed()
    }

    /// Closes it at once, and with it ends a transaction that is open.
    pub(super) async fn close(self) {
        self.driver.abort();
        let _ = self.driver.await; // It was aborted.
    }

    /// The statement for such values, if it was prepared before.
    pub(super) fn known(&self, statement: &str, values: &[Bound]) -> Option<Statement> {
        self.prepared[usize::from(is_of_many(values))].get(statement).cloned()
    }

    /// Prepares a statement that is seen for the first time with such values.
    pub(super) async fn prepare(&mut self, statement: &'static str, values: &[Bound]) -> std::result::Result<Statement, Error> {
        let kinds: Vec<_> = values.iter().map(Bound::kind).collect();
        let many = is_of_many(values);
        let prepared = match many && !statement.starts_with("SELECT") {
            true => self.client.prepare_typed(&of_many(statement, kinds.len()), &kinds).await?,
            false => self.client.prepare_typed(statement, &kinds).await?,
        };
        self.prepared[usize::from(many)].insert(statement, prepared.clone());
        Ok(prepared)
    }

    /// Sends all parts in one message, and waits for all answers; that of the part at `wanted`. The first that fails counts, with its
    /// place: those after it fail for it.
    pub(super) async fn send(&self, parts: Vec<Part>, wanted: usize) -> std::result::Result<Answer, (usize, Error)> {
        let mut asked: Vec<_> = parts.into_iter().map(|part| Box::pin(self.ask(part))).collect();
        // Each is in the message once it was polled.
        let mut early = poll_fn(|context| {
            let ready = asked.iter_mut().map(|asked| match asked.as_mut().poll(context) {
                Poll::Ready(answer) => Some(answer),
                Poll::Pending => None,
            });
            Poll::Ready(ready.collect::<Vec<_>>())
        })
        .await;
        let (mut found, mut failure) = (Answer::default(), None);
        for (at, (early, asked)) in early.iter_mut().zip(asked).enumerate() {
            let answer = match early.take() {
                Some(answer) => answer,
                None => asked.await,
            };
            match answer {
                Ok(answer) if at == wanted => found = answer,
                Ok(_) => {}
                Err(error) => failure = failure.or(Some((at, error))),
            }
        }
        failure.map_or(Ok(found), Err)
    }

    async fn ask(&self, part: Part) -> std::result::Result<Answer, Error> {
        let mut rows = pin!(self.client.query_raw(&part.statement, part.values).await?);
        let mut answer = Answer::default();
        while let Some(row) = poll_fn(|context| rows.as_mut().poll_next(context)).await {
            answer.rows.push(row?);
        }
        answer.changed = rows.rows_affected().unwrap_or_default();
        Ok(answer)
    }
}

/// A value of our own, so that it can wait; or a column of them, one for each row.
#[derive(Debug)]
pub(super) enum Bound {
    Integer(Option<i64>),
    Text(Option<String>),
    Blob(Option<Vec<u8>>),
    Integers(Vec<Option<i64>>),
    Texts(Vec<Option<String>>),
    Blobs(Vec<Option<Vec<u8>>>),
}

/// One row of values.
pub(super) fn bound(values: &[Value<'_>]) -> Vec<Bound> {
    let one = |value: &Value<'_>| match value {
        Value::Integer(number) => Bound::Integer(*number),
        Value::Text(text) => Bound::Text(text.map(str::to_owned)),
        Value::Blob(bytes) => Bound::Blob(bytes.map(<[u8]>::to_vec)),
    };
    values.iter().map(one).collect()
}

/// Rows of values of the same kinds, column by column.
pub(super) fn columns(rows: &[Vec<Value<'_>>]) -> Vec<Bound> {
    let column = |at: usize| {
        let mut column = match rows[0][at] {
            Value::Integer(_) => Bound::Integers(Vec::with_capacity(rows.len())),
            Value::Text(_) => Bound::Texts(Vec::with_capacity(rows.len())),
            Value::Blob(_) => Bound::Blobs(Vec::with_capacity(rows.len())),
        };
        for row in rows {
            match (&mut column, &row[at]) {
                (Bound::Integers(numbers), Value::Integer(number)) => numbers.push(*number),
                (Bound::Texts(texts), Value::Text(text)) => texts.push(text.map(str::to_owned)),
                (Bound::Blobs(blobs), Value::Blob(bytes)) => blobs.push(bytes.map(<[u8]>::to_vec)),
                _ => unreachable!("rows of one statement have the same kinds"),
            }
        }
        column
    };
    (0..rows.first().map_or(0, Vec::len)).map(column).collect()
}

fn is_of_many(values: &[Bound]) -> bool {
    matches!(values.first(), Some(Bound::Integers(_) | Bound::Texts(_) | Bound::Blobs(_)))
}

/// A statement for one row of `parameters` values as one for any number of rows, whose values come column by column.
fn of_many(statement: &str, parameters: usize) -> String {
    let list = |mark: &str| (1..=parameters).map(|n| format!("{mark}{n}")).collect::<Vec<_>>().join(", ");
    let from = format!(" FROM unnest({}) AS row_of ({})", list("$"), list("v"));
    let mut each = statement.to_owned();
    for n in (1..=parameters).rev() {
        each = each.replace(&format!("${n}"), &format!("row_of.v{n}"));
    }
    match each.split_once(" VALUES (") {
        Some((into, row)) => format!("{into} SELECT {}{from}", row.trim_end_matches(')')),
        None => each.replacen(" WHERE ", &format!("{from} WHERE "), 1),
    }
}

impl Bound {
    fn kind(&self) -> Type {
        match self {
            Self::Integer(_) => Type::INT8,
            Self::Text(_) => Type::TEXT,
            Self::Blob(_) => Type::BYTEA,
            Self::Integers(_) => Type::INT8_ARRAY,
            Self::Texts(_) => Type::TEXT_ARRAY,
            Self::Blobs(_) => Type::BYTEA_ARRAY,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Integer(_) => size_of::<i64>(),
            Self::Text(text) => text.as_ref().map_or(0, String::len),
            Self::Blob(bytes) => bytes.as_ref().map_or(0, Vec::len),
            Self::Integers(numbers) => size_of_val(numbers.as_slice()),
            Self::Texts(texts) => texts.iter().flatten().map(String::len).sum(),
            Self::Blobs(blobs) => blobs.iter().flatten().map(Vec::len).sum(),
        }
    }
}

impl ToSql for Bound {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> std::result::Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match self {
            Self::Integer(number) => number.to_sql(kind, out),
            Self::Text(text) => text.to_sql(kind, out),
            Self::Blob(bytes) => bytes.to_sql(kind, out),
            Self::Integers(numbers) => numbers.to_sql(kind, out),
            Self::Texts(texts) => texts.to_sql(kind, out),
            Self::Blobs(blobs) => blobs.to_sql(kind, out),
        }
    }

    fn accepts(kind: &Type) -> bool {
        matches!(*kind, Type::INT8 | Type::TEXT | Type::BYTEA | Type::INT8_ARRAY | Type::TEXT_ARRAY | Type::BYTEA_ARRAY)
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Cell<'a> {
    fn from_sql(kind: &Type, bytes: &'a [u8]) -> std::result::Result<Self, Box<dyn StdError + Sync + Send>> {
        match *kind {
            Type::INT8 => i64::from_sql(kind, bytes).map(Cell::Integer),
            Type::INT4 => i32::from_sql(kind, bytes).map(|number| Cell::Integer(number.into())),
            Type::TEXT => <&str>::from_sql(kind, bytes).map(Cell::Text),
            _ => Ok(Cell::Blob(bytes)),
        }
    }

    fn from_sql_null(_: &Type) -> std::result::Result<Self, Box<dyn StdError + Sync + Send>> {
        Ok(Cell::Null)
    }

    fn accepts(kind: &Type) -> bool {
        matches!(*kind, Type::INT8 | Type::INT4 | Type::TEXT | Type::BYTEA)
    }
}

impl Row for tokio_postgres::Row {
    fn cell(&self, column: &str) -> Result<Cell<'_>> {
        self.try_get(column).map_err(|_| unreadable())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_postgres::config::Host;

    #[test]
    fn everything_that_a_url_says_reaches_the_connection() {
        let options: PgConnectOptions =
            "postgres://ann@db.example:5433/books?sslmode=verify-full&options=-c%20geqo%3Doff".parse().expect("a URL");
        let server = Server::new(&options.password("p%40 +&=ü/")).expect("a server");
        let config = &server.config;
        assert_eq!(config.get_password(), Some("p%40 +&=ü/".as_bytes()));
        assert_eq!((config.get_hosts(), config.get_ports()), (&[Host::Tcp("db.example".to_owned())][..], &[5433][..]));
        assert_eq!((config.get_user(), config.get_dbname()), (Some("ann"), Some("books")));
        assert_eq!(config.get_ssl_mode(), SslMode::Require);
        let options = config.get_options().expect("options");
        assert!(options.contains("geqo=off") && options.contains("default_transaction_read_only=on"), "{options}");
        let plain: PgConnectOptions = "postgres://ann@h/books?sslmode=disable".parse().expect("a URL");
        assert_eq!(Server::new(&plain).expect("a server").config.get_ssl_mode(), SslMode::Disable);
        let unreadable: PgConnectOptions = "postgres://ann@h/books?sslmode=require&sslrootcert=/nowhere/at-all.pem".parse().expect("a URL");
        assert_eq!(Server::new(&unreadable).err().map(|refusal| refusal.code), Some(Code::ConfigInvalid));
    }

    #[test]
    fn a_server_on_a_network_is_not_left_to_decide_whether_it_is_spoken_to_in_clear() {
        let server = |url: &str| Server::new(&url.parse::<PgConnectOptions>().expect("a URL")).map(drop);
        for near in ["localhost", "127.0.0.1", "[::1]", "%2Frun%2Fpostgresql"] {
            server(&format!("postgres://ann@{near}/books")).expect(near);
        }
        for far in ["db.example", "10.0.0.7", "[fd00::7]", "localhost.example"] {
            for undecided in ["", "?sslmode=prefer", "?sslmode=allow"] {
                let refusal = server(&format!("postgres://ann@{far}/books{undecided}")).expect_err(far);
                assert!(refusal.code == Code::ConfigInvalid && refusal.detail.contains("sslmode=verify-full"), "{refusal}");
            }
            for said in ["disable", "require", "verify-ca", "verify-full"] {
                server(&format!("postgres://ann@{far}/books?sslmode={said}")).expect(said);
            }
        }
    }

    #[test]
    fn a_statement_for_one_row_becomes_one_for_many() {
        let insert = of_many("INSERT INTO t (a, b) VALUES ($1, $2)", 2);
        assert_eq!(insert, "INSERT INTO t (a, b) SELECT row_of.v1, row_of.v2 FROM unnest($1, $2) AS row_of (v1, v2)");
        let update = of_many("UPDATE t SET a = $1, b = coalesce(b, $2) WHERE c = $3", 3);
        let expected =
            "UPDATE t SET a = row_of.v1, b = coalesce(b, row_of.v2) FROM unnest($1, $2, $3) AS row_of (v1, v2, v3) WHERE c = row_of.v3";
        assert_eq!(update, expected);
    }
}
