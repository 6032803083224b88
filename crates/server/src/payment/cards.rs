//! The card provider: payments with manual capture over HTTPS, in the shape of Stripe's PaymentIntents (`docs/protocol.md`).
//!
//! A request that changes something carries an idempotency key made of the order, so that asking again, after a restart too, is
//! the same request. An answer is believed only where id, order, amount, currency and state are what was asked for; anything
//! else is [`Outcome::Unknown`], and the provider is asked where the payment stands.

use super::judge::{self, Wrong, currency};
use super::{Answer, Charge, Hold, ListedPage, Outcome, Provider, Standing};
use chipbound_transport::{Client, ServerTrust, client::ClientTimeouts};
use chipbound_wire::payment::CardToken;
use chipbound_wire::{Digest, Hex, Result, Time};
use http::header::RETRY_AFTER;
use http::{Method, StatusCode};
use serde_json::Value;
use std::time::Duration;
use zeroize::Zeroizing;

/// Bytes of an answer.
const MAX_ANSWER: usize = 1024 * 1024;
/// How long the provider may make us wait between two questions of one request.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Keys under which one capture, release or refund is asked for, where the provider keeps repeating a failure of its own.
const KEYS: u32 = 4;
/// Pages of 100 payments that are looked through for a lost one.
const PAGES: usize = 10;

/// How long the provider is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For one answer.
    pub answer: Duration,
    /// How many times the same is asked within one request of ours.
    pub tries: u32,
    /// Before the second try; doubled before each further one.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { answer: Duration::from_secs(10), tries: 3, pause: Duration::from_millis(250) }
    }
}

/// A card provider.
pub struct Cards {
    client: Client,
    key: Zeroizing<String>,
    patience: Patience,
}

impl std::fmt::Debug for Cards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cards({})", self.client.address())
    }
}

/// One question.
struct Question<'a> {
    method: Method,
    path: String,
    key: Option<String>,
    form: Vec<(&'a str, String)>,
}

/// What came back for one question.
enum Reply {
    /// 2xx with JSON.
    Good(Value),
    /// The provider says no, and why.
    No(String),
    /// The provider failed, and repeats that failure whenever this key comes.
    Stuck,
    /// No answer, or none that says anything; the pause that the provider wants.
    Lost(String, Duration),
}

impl Cards {
    /// The provider at `url` (`https://host`), its API key, and how long it is waited for. Nothing is sent yet.
    ///
    /// # Errors
    /// [`chipbound_wire::Code::ConfigInvalid`] for an address or a root that does not serve.
    pub fn new(url: &str, trust: ServerTrust, key: Zeroizing<String>, patience: Patience) -> Result<Self> {
        let timeouts = ClientTimeouts { connect: patience.answer, answer: patience.answer };
        Ok(Self { client: Client::new(url, trust)?.with_timeouts(timeouts), key, patience })
    }

    async fn create(&self, charge: &Charge, method: &CardToken) -> Outcome<Hold> {
        let question = Question {
            method: Method::POST,
            path: "/v1/payment_intents".to_owned(),
            key: Some(authorise_key(charge, method)),
            form: vec![
                ("amount", charge.amount.minor.to_string()),
                ("currency", currency(&charge.amount)),
                ("capture_method", "manual".to_owned()),
                ("confirm", "true".to_owned()),
                ("payment_method", method.as_str().to_owned()),
                ("payment_method_types[]", "card".to_owned()),
                ("metadata[order]", charge.order.to_string()),
            ],
        };
        let judged = |answer: &Value| judge::payment(answer, &charge.order, &charge.amount).map(held);
        match self.settle(&question, judged).await {
            Settled::Said(outcome) => outcome,
            Settled::Stuck => self.look_for(charge).await,
        }
    }

    /// What became of a payment when the provider only repeats that it failed.
    async fn look_for(&self, charge: &Charge) -> Outcome<Hold> {
        match self.list(charge).await {
            Outcome::Done(payments) => match payments.into_iter().find(|(_, standing)| *standing != Standing::Ended) {
                Some(payment) => held(payment),
                None => Outcome::Declined("it failed, and holds nothing".to_owned()),
            },
            Outcome::Declined(why) | Outcome::Unknown(why) => Outcome::Unknown(why),
            Outcome::Pending(_) => Outcome::Unknown("it has not decided yet".to_owned()),
        }
    }

    /// Does something to a payment that can happen to it once: whatever the answer, what counts is where the payment stands.
    async fn once(&self, hold: &Hold, verb: &str, wanted: Standing, form: &[(&'static str, String)]) -> Outcome<()> {
        let mut why = "it keeps failing".to_owned();
        for turn in 1..=KEYS {
            let question = Question {
                method: Method::POST,
                path: format!("/v1/payment_intents/{}/{verb}", hold.reference),
                key: Some(turn_key(hold, verb, turn)),
                form: form.to_vec(),
            };
            let said = self.settle(&question, |answer| judge::payment_again(answer, hold).map(Outcome::Done)).await;
            let standing = match said {
                Settled::Said(Outcome::Done(standing)) if standing == wanted => Outcome::Done(standing),
                Settled::Said(Outcome::Unknown(lost)) => {
                    why = lost;
                    self.look(hold).await
                }
                _ => self.look(hold).await,
            };
            match standing {
                Outcome::Done(standing) if standing == wanted => return Outcome::Done(()),
                Outcome::Done(Standing::Held) => {} // Once more, under the next key.
                Outcome::Done(Standing::Undecided) => return Outcome::Pending(()),
                Outcome::Done(Standing::Captured) => return Outcome::Declined("it was taken before".to_owned()),
                Outcome::Done(Standing::Ended) => return Outcome::Declined("the hold has ended".to_owned()),
                Outcome::Declined(lost) | Outcome::Unknown(lost) => return Outcome::Unknown(lost),
                Outcome::Pending(_) => return Outcome::Pending(()),
            }
        }
        Outcome::Unknown(why)
    }

    async fn look(&self, hold: &Hold) -> Outcome<Standing> {
        let path = format!("/v1/payment_intents/{}", hold.reference);
        let question = Question { method: Method::GET, path, key: None, form: Vec::new() };
        self.settle(&question, |answer| judge::payment_again(answer, hold).map(Outcome::Done)).await.or_unknown()
    }

    async fn give_back(&self, hold: &Hold) -> Outcome<()> {
        let mut last = Outcome::Unknown("it keeps failing".to_owned());
        for turn in 1..=KEYS {
            let question = Question {
                method: Method::POST,
                path: "/v1/refunds".to_owned(),
                key: Some(turn_key(hold, "refund", turn)),
                form: vec![("payment_intent", hold.reference.clone()), ("amount", hold.amount.minor.to_string())],
            };
            let said = self.settle(&question, |answer| judge::refund(answer, hold)).await;
            if let Settled::Said(said @ (Outcome::Done(()) | Outcome::Pending(()))) = said {
                return said;
            }
            let stuck = matches!(said, Settled::Stuck);
            match self.refunded(hold).await {
                Outcome::Declined(_) if stuck => {} // Nothing was given back: once more, under the next key.
                Outcome::Declined(_) => return said.or_unknown(),
                found => return found,
            }
            last = said.or_unknown();
        }
        last
    }

    /// Whether the provider lists a refund of the payment; Declined where it lists none.
    async fn refunded(&self, hold: &Hold) -> Outcome<()> {
        let form = vec![("payment_intent", hold.reference.clone()), ("limit", "10".to_owned())];
        let question = Question { method: Method::GET, path: "/v1/refunds".to_owned(), key: None, form };
        let judged = |answer: &Value| {
            let listed = answer["data"].as_array().ok_or("the answer is no list")?;
            let mut refunds = listed.iter().map(|one| judge::refund(one, hold)).collect::<std::result::Result<Vec<_>, Wrong>>()?;
            refunds.retain(|one| !matches!(one, Outcome::Declined(_)));
            Ok(refunds.pop().unwrap_or_else(|| Outcome::Declined("no refund is there".to_owned())))
        };
        self.settle(&question, judged).await.or_unknown()
    }

    async fn list(&self, charge: &Charge) -> Outcome<Vec<(Hold, Standing)>> {
        let order = charge.order.to_string();
        let (mut found, mut after) = (Vec::new(), None::<String>);
        for _ in 0..PAGES {
            // A minute before the order: the two clocks may differ.
            let since = Time(charge.since.0.saturating_sub(60));
            let take = |one: &Value| match one["metadata"]["order"] == order.as_str() {
                true => judge::payment(one, &charge.order, &charge.amount).map(Some),
                false => Ok(None),
            };
            match self.page(since, after.as_deref(), take).await {
                Outcome::Done((ours, more)) => {
                    found.extend(ours);
                    after = more;
                }
                Outcome::Declined(why) | Outcome::Unknown(why) => return Outcome::Unknown(why),
                Outcome::Pending(_) => return Outcome::Unknown("it has not decided yet".to_owned()),
            }
            if after.is_none() {
                return Outcome::Done(found);
            }
        }
        Outcome::Unknown("it has too many payments since the order to look through".to_owned())
    }

    /// What `take` reads of a page of all payments since then, newest first, and after which one the next page begins.
    async fn page<T>(
        &self,
        since: Time,
        after: Option<&str>,
        take: impl Fn(&Value) -> std::result::Result<Option<T>, Wrong>,
    ) -> Outcome<(Vec<T>, Option<String>)> {
        let mut form = vec![("limit", "100".to_owned()), ("created[gte]", since.0.to_string())];
        form.extend(after.map(|id| ("starting_after", id.to_owned())));
        let question = Question { method: Method::GET, path: "/v1/payment_intents".to_owned(), key: None, form };
        let judged = |answer: &Value| {
            let listed = answer["data"].as_array().ok_or("the answer is no list")?;
            let taken = listed.iter().filter_map(|one| take(one).transpose()).collect::<std::result::Result<Vec<_>, Wrong>>()?;
            let more = answer["has_more"].as_bool().ok_or("the answer is no list")?;
            let last = listed.last().and_then(|one| one["id"].as_str()).filter(|id| more && judge::is_reference(id));
            Ok(Outcome::Done((taken, last.map(str::to_owned))))
        };
        self.settle(&question, judged).await.or_unknown()
    }

    /// Asks until something is known, as often as patience allows.
    async fn settle<T>(&self, question: &Question<'_>, judged: impl Fn(&Value) -> std::result::Result<Outcome<T>, Wrong>) -> Settled<T> {
        let mut pause = self.patience.pause;
        let mut tries = 1;
        loop {
            let (why, wanted) = match self.ask(question).await {
                Reply::Good(answer) => match judged(&answer) {
                    Ok(outcome) => return Settled::Said(outcome),
                    Err(wrong) => (wrong.to_owned(), Duration::ZERO),
                },
                Reply::No(reason) => return Settled::Said(Outcome::Declined(reason)),
                Reply::Stuck => return Settled::Stuck,
                Reply::Lost(why, wanted) => (why, wanted),
            };
            tracing::warn!(path = question.path, why, tries, "the card provider did not say what was asked");
            if tries >= self.patience.tries {
                return Settled::Said(Outcome::Unknown(why));
            }
            tokio::time::sleep(pause.max(wanted).min(MAX_PAUSE)).await;
            tries += 1;
            pause *= 2;
        }
    }

    async fn ask(&self, question: &Question<'_>) -> Reply {
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(&question.form).finish();
        let (path, body) = match (question.method == Method::GET, form.is_empty()) {
            (true, true) => (question.path.clone(), String::new()),
            (true, false) => (format!("{}?{form}", question.path), String::new()),
            (false, _) => (question.path.clone(), form),
        };
        let key = question.key.as_deref().map(|key| ("idempotency-key", key));
        let headers: Vec<_> = key.into_iter().collect();
        let kind = "application/x-www-form-urlencoded";
        let method = question.method.clone();
        let asked = self.client.request_foreign(method, &path, Some(&self.key), &headers, kind, body.into_bytes(), MAX_ANSWER);
        match asked.await {
            Ok(answer) => read(&answer),
            Err(refusal) => Reply::Lost(refusal.detail, Duration::ZERO),
        }
    }
}

/// What became of a question.
enum Settled<T> {
    Said(Outcome<T>),
    Stuck,
}

impl<T> Settled<T> {
    fn or_unknown(self) -> Outcome<T> {
        match self {
            Self::Said(outcome) => outcome,
            Self::Stuck => Outcome::Unknown("it keeps failing".to_owned()),
        }
    }
}

fn held((hold, standing): (Hold, Standing)) -> Outcome<Hold> {
    match standing {
        Standing::Held => Outcome::Done(hold),
        Standing::Undecided => Outcome::Pending(hold),
        // We take nothing before the goods are there; who did so was not asked by us.
        Standing::Captured => Outcome::Unknown("it says that the price was taken already".to_owned()),
        Standing::Ended => Outcome::Declined("nothing is held".to_owned()),
    }
}

/// Names the hold: the same order, attempt and method are the same hold.
fn authorise_key(charge: &Charge, method: &CardToken) -> String {
    let digest = Digest::of(method.as_str().as_bytes());
    format!("{}-authorise-{}-{}", charge.order, charge.attempt, Hex(&digest.0[..8]))
}

fn turn_key(hold: &Hold, verb: &str, turn: u32) -> String {
    format!("{}-{}-{verb}-{turn}", hold.order, hold.reference)
}

/// Sorts an answer by who has to do something about it.
fn read(answer: &http::Response<bytes::Bytes>) -> Reply {
    let status = answer.status();
    let body = serde_json::from_slice::<Value>(answer.body());
    if status.is_success() {
        return body.map_or_else(|_| Reply::Lost("the answer is no JSON".to_owned(), Duration::ZERO), Reply::Good);
    }
    let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok());
    let error = body.map(|mut body| body["error"].take()).unwrap_or_default();
    let code = judge::word(&error["decline_code"]).or_else(|| judge::word(&error["code"])).unwrap_or("no reason given");
    let wanted = header(RETRY_AFTER.as_str()).and_then(|v| v.parse().ok()).map_or(Duration::ZERO, Duration::from_secs);
    match status {
        _ if status.is_server_error() && header("idempotent-replayed") == Some("true") => Reply::Stuck,
        // Our key or our request is wrong, or another request with the same key is under way: nothing is decided by it.
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS => {
            Reply::Lost(format!("{} ({code})", status.as_u16()), wanted)
        }
        _ if error["type"] == "idempotency_error" => Reply::Lost(format!("{} ({code})", status.as_u16()), wanted),
        _ if status.is_client_error() => Reply::No(code.to_owned()),
        _ => Reply::Lost(format!("it answers {}", status.as_u16()), wanted),
    }
}

impl Provider for Cards {
    fn authorise<'a>(&'a self, charge: &'a Charge, method: &'a CardToken) -> Answer<'a, Hold> {
        Box::pin(self.create(charge, method))
    }

    fn capture<'a>(&'a self, hold: &'a Hold) -> Answer<'a, ()> {
        let form = [("amount_to_capture", hold.amount.minor.to_string())];
        Box::pin(async move { self.once(hold, "capture", Standing::Captured, &form).await })
    }

    fn cancel<'a>(&'a self, hold: &'a Hold) -> Answer<'a, ()> {
        Box::pin(self.once(hold, "cancel", Standing::Ended, &[]))
    }

    fn refund<'a>(&'a self, hold: &'a Hold) -> Answer<'a, ()> {
        Box::pin(self.give_back(hold))
    }

    fn standing<'a>(&'a self, hold: &'a Hold) -> Answer<'a, Standing> {
        Box::pin(self.look(hold))
    }

    fn payments_of<'a>(&'a self, charge: &'a Charge) -> Answer<'a, Vec<(Hold, Standing)>> {
        Box::pin(self.list(charge))
    }

    fn payments<'a>(&'a self, since: Time, after: Option<&'a str>) -> Answer<'a, ListedPage> {
        Box::pin(self.page(since, after, |one| Ok(judge::listed(one))))
    }

    fn given_back<'a>(&'a self, hold: &'a Hold) -> Answer<'a, ()> {
        Box::pin(self.refunded(hold))
    }
}
