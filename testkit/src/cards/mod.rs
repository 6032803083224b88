//! A simulator of a card provider in the shape of Stripe's PaymentIntents: an HTTPS server on loopback with a book of its own.
//!
//! It knows what `docs/protocol.md` says of the provider: payments with manual capture, `Idempotency-Key`, refunds, lists, signed
//! events. Faults are planned by a test or drawn from a seed. Payment methods are the provider's test tokens: `pm_card_visa`
//! holds, `pm_card_chargeDeclined` is declined, `pm_card_authenticationRequired` needs its holder, `pm_card_processing` stays
//! undecided until [`CardSimulator::decide`].

mod bank;
mod faults;
pub mod webhooks;

pub use bank::{Payment, Status};
pub use faults::{Fault, Operation};

use bank::{Asked, Bank, Reply};
use bytes::Bytes;
use chipbound_transport::tls::ALPN_HTTP1;
use chipbound_transport::{ServerTrust, server_config};
use faults::Plan;
use http::header::{AUTHORIZATION, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// The API key that the simulator takes.
pub const API_KEY: &str = "sk_test_simulator";
/// The secret of its webhooks.
pub const WEBHOOK_SECRET: &str = "whsec_simulator";
/// Bytes of a request.
const MAX_REQUEST: usize = 64 * 1024;

/// A running simulator; dropped, it ends.
pub struct CardSimulator {
    address: SocketAddr,
    root: CertificateDer<'static>,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

struct Shared {
    bank: Mutex<Bank>,
    plan: Mutex<Plan>,
}

impl Drop for CardSimulator {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl CardSimulator {
    /// Starts one on a free port of loopback, with an empty book and no faults. Must be called in a runtime.
    ///
    /// # Panics
    /// When loopback cannot be listened on: a test cannot go on then.
    pub async fn start() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name").self_signed(&key).expect("signed");
        let root = certificate.der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let tls = server_config(vec![root.clone()], key, &[ALPN_HTTP1]).expect("TLS");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared { bank: Mutex::default(), plan: Mutex::new(Plan::new()) });
        let serving = tokio::spawn(accept(listener, TlsAcceptor::from(tls), shared.clone()));
        Self { address, root, shared, serving }
    }

    /// `https://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Whom its clients trust.
    #[must_use]
    pub fn trust(&self) -> ServerTrust {
        ServerTrust::Root(self.root.clone())
    }

    /// Its certificate in PEM, for a configuration file.
    #[must_use]
    pub fn root_pem(&self) -> String {
        let text = data_encoding::BASE64.encode(&self.root);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }

    /// The next request of that kind meets this fault. Faults of one kind come in the order in which they were planned.
    pub fn plan(&self, operation: Operation, fault: Fault) {
        lock(&self.shared.plan).add(operation, fault);
    }

    /// From now on `per_mille` of all requests meet a fault that depends on the seed.
    pub fn draw_faults(&self, seed: u64, per_mille: u32) {
        lock(&self.shared.plan).draw_from(seed, per_mille);
    }

    /// From now on everything works.
    pub fn no_more_faults(&self) {
        lock(&self.shared.plan).clear();
    }

    /// All payments, the oldest first.
    #[must_use]
    pub fn payments(&self) -> Vec<Payment> {
        lock(&self.shared.bank).payments.values().cloned().collect()
    }

    /// Decides on a payment that was processing, or ends a hold, as the provider does in its own time.
    pub fn decide(&self, id: &str, status: Status) {
        lock(&self.shared.bank).decide(id, status);
    }

    /// What happened, the oldest first, as webhooks tell it.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        lock(&self.shared.bank).events.clone()
    }

    /// Every path and field that was ever sent here.
    #[must_use]
    pub fn heard(&self) -> Vec<String> {
        lock(&self.shared.bank).heard.clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        connections.spawn(converse(tcp, tls.clone(), shared.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(tcp: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>) {
    let _ = tcp.set_zero_linger(); // A connection that is dropped is reset.
    let Ok(stream) = tls.accept(tcp).await else { return };
    let service = service_fn(|request| answer(&shared, request));
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// One request; an error resets the connection.
async fn answer(shared: &Shared, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
    let entitled = request.headers().get(AUTHORIZATION).is_some_and(|v| v.as_bytes() == format!("Bearer {API_KEY}").as_bytes());
    let asked = parse(request).await?;
    if !entitled {
        return Ok(written(&Reply::error(StatusCode::UNAUTHORIZED, "invalid_request_error", "api_key_invalid")));
    }
    let Some((operation, _)) = asked.operation() else {
        return Ok(written(&Reply::error(StatusCode::NOT_FOUND, "invalid_request_error", "unknown_route")));
    };
    let fault = lock(&shared.plan).next(operation);
    let reset = || Err(io::ErrorKind::ConnectionReset.into());
    match fault {
        Some(Fault::RequestLost) => return reset(),
        Some(Fault::Unavailable) => return Ok(written(&Reply::error(StatusCode::SERVICE_UNAVAILABLE, "api_error", "unavailable"))),
        Some(Fault::TooMany) => {
            let mut response = written(&Reply::error(StatusCode::TOO_MANY_REQUESTS, "invalid_request_error", "rate_limit"));
            response.headers_mut().insert(RETRY_AFTER, http::HeaderValue::from_static("1"));
            return Ok(response);
        }
        _ => {}
    }
    let reply = carry_out(&mut lock(&shared.bank), &asked, fault);
    match fault {
        Some(Fault::Late(time)) => {
            let _under_way = UnderWay { shared, key: asked.key };
            tokio::time::sleep(time).await;
            Ok(written(&reply))
        }
        Some(Fault::Never) => std::future::pending().await,
        Some(Fault::AnswerLost) => reset(),
        Some(Fault::NotJson) => Ok(Response::new(Full::from("<html>"))),
        Some(Fault::Endless) => Ok(Response::new(Full::from(vec![b' '; 4 * 1024 * 1024]))),
        Some(Fault::WrongAmount) => Ok(bent(reply, |body| {
            for field in ["amount", "amount_received", "amount_capturable"] {
                if let Some(amount) = body[field].as_u64() {
                    body[field] = (amount + 1).into();
                }
            }
        })),
        Some(Fault::WrongId) => Ok(bent(reply, |body| {
            body["id"] = "pi_another".into();
            body["payment_intent"] = "pi_another".into();
            body["metadata"]["order"] = "another".into();
        })),
        Some(Fault::WrongCurrency) => Ok(bent(reply, |body| body["currency"] = "xts".into())),
        _ => Ok(written(&reply)),
    }
}

/// A request that is not answered yet; it ends with its answer or with its connection.
struct UnderWay<'a> {
    shared: &'a Shared,
    key: Option<String>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            lock(&self.shared.bank).under_way.remove(key);
        }
    }
}

/// The effect of a request and its answer, by the rules of its idempotency key.
fn carry_out(bank: &mut Bank, asked: &Asked, fault: Option<Fault>) -> Reply {
    bank.heard.push(format!("{} {}", asked.method, asked.path));
    bank.heard.extend(asked.fields.iter().map(|(name, value)| format!("{name}={value}")));
    if let Some(reply) = bank.recall(asked) {
        return reply;
    }
    let failed = || Reply::error(StatusCode::INTERNAL_SERVER_ERROR, "api_error", "internal");
    let reply = match fault {
        Some(Fault::FailedBefore) => failed(),
        Some(Fault::FailedAfter) => {
            bank.act(asked);
            failed()
        }
        _ => bank.act(asked),
    };
    if asked.method == Method::POST {
        bank.remember(asked, &reply);
        if let (Some(Fault::Late(_)), Some(key)) = (fault, &asked.key) {
            bank.under_way.insert(key.clone());
        }
    }
    reply
}

async fn parse(request: Request<Incoming>) -> io::Result<Asked> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MAX_REQUEST).collect().await.map_err(io::Error::other)?.to_bytes();
    let query = head.uri.query().unwrap_or_default();
    let fields = form_urlencoded::parse(if head.method == Method::GET { query.as_bytes() } else { &body });
    Ok(Asked {
        fields: fields.into_owned().collect(),
        key: head.headers.get("idempotency-key").and_then(|v| v.to_str().ok()).map(str::to_owned),
        path: head.uri.path().to_owned(),
        method: head.method,
    })
}

fn written(reply: &Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(reply.body.to_string()));
    *response.status_mut() = reply.status;
    if reply.replayed {
        response.headers_mut().insert("idempotent-replayed", http::HeaderValue::from_static("true"));
    }
    response
}

/// A good answer made wrong, in the object or in each of a list.
fn bent(mut reply: Reply, bend: impl Fn(&mut Value)) -> Response<Full<Bytes>> {
    match reply.body.get_mut("data").and_then(Value::as_array_mut) {
        Some(listed) => listed.iter_mut().for_each(bend),
        None => bend(&mut reply.body),
    }
    written(&reply)
}
