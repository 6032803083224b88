//! What the daemon refuses stands in its log with the code and in the words that its peer gets: both ends of a refusal can be held
//! against each other.

use crate::daemon::{Installation, buy, log_in, operator, receive};
use crate::processor::Processor;
use crate::world::{dial, read_out, sample};
use chipbound_testkit::Pki;
use chipbound_transport::Client;
use chipbound_wire::api::*;
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Code, Digest, KeyId, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::spawn_blocking;

/// How often the log is looked at for what must appear in it, and how long between two looks.
const LOOKS: usize = 400;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The daemon's log, read on and on: no line counts for two refusals.
struct Log {
    path: PathBuf,
    read: usize,
}

impl Log {
    fn of(installation: &Installation) -> Self {
        Self { path: installation.log(), read: 0 }
    }

    /// Waits for a line with one of these texts.
    async fn shows(&mut self, texts: &[String]) {
        for _ in 0..LOOKS {
            let log = std::fs::read_to_string(&self.path).unwrap();
            if log[self.read..].lines().any(|line| texts.iter().any(|text| line.contains(text))) {
                self.read = log.len();
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        panic!("{texts:?} is not in the log:\n{}", &std::fs::read_to_string(&self.path).unwrap()[self.read..]);
    }

    /// The peer was refused with this code, and the log has it in the same words.
    async fn agrees<T>(&mut self, outcome: Result<T>, code: Code, what: &str) {
        let refusal = outcome.err().unwrap_or_else(|| panic!("{what} was not refused"));
        assert_eq!(refusal.code, code, "{what}: {refusal}");
        assert!(!refusal.detail.is_empty(), "{what}: not a word");
        self.shows(&[format!("code={code} detail={:?}", refusal.detail), format!("refusal={refusal}")]).await;
    }
}

/// Posts as the owner of `token`.
async fn post<T: serde::de::DeserializeOwned>(client: &Client, token: &str, path: &str, body: &impl serde::Serialize) -> Result<T> {
    client.post_json(path, Some(token), &[], body).await
}

async fn place(client: &Client, token: &str, program: &str, processor: KeyId) -> Result<Order> {
    let new = NewOrder { program: program.to_owned(), version: None, processor, key_mode: Some(KeyMode::Direct), again: false };
    let key = Digest(chipbound_wire::random::fresh(&mut chipbound_wire::SystemRandom)).to_string();
    client.post_json("/v1/orders", Some(token), &[(IDEMPOTENCY_HEADER, &key)], &new).await
}

/// One customer more, without money.
async fn poor_customer(installation: &Installation, client: &Client) -> String {
    let config = installation.config.to_str().unwrap().to_owned();
    let added = spawn_blocking(move || {
        operator(&["account", "add", "--config", &config, "--user", "bob", "--role", "customer"], "correct horse\n").unwrap()
    });
    added.await.unwrap();
    log_in(client, "bob").await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_first_path_refuses_is_in_the_servers_log_in_the_customers_words() {
    let installation = Installation::new().await;
    let daemon = installation.start().await;
    let client = installation.client(&daemon);
    let mut log = Log::of(&installation);
    installation.publish(&client, &sample(1000)).await;
    let (ann, bob) = (log_in(&client, "ann").await, poor_customer(&installation, &client).await);
    let processor = installation.processor().await;

    for user in ["ann", "nobody"] {
        let guess = LogIn { user: user.to_owned(), password: "guess".to_owned() };
        let refused = client.post_json::<_, Session>("/v1/sessions", None, &[], &guess).await;
        log.agrees(refused, Code::WrongCredentials, "a wrong password").await;
    }
    log.agrees(place(&client, &ann, "unknown", processor.id()).await, Code::UnknownProgram, "an unknown program").await;
    let order = place(&client, &bob, "tool", processor.id()).await.unwrap();
    let agreement = Agreement { confirmation: Digest::of(&order.confirmation.0), payment: Payment::Prepaid };
    let refused = post::<Order>(&client, &bob, &format!("/v1/orders/{}/agreement", order.order), &agreement).await;
    log.agrees(refused, Code::InsufficientFunds, "no money").await;

    // An acknowledgement of one order for another, an altered one; then the receipt, altered and in another's hands.
    let (order, second) = (buy(&client, &ann, processor.id(), None).await, buy(&client, &ann, processor.id(), None).await);
    let acknowledgement = receive(&client, &ann, &order, &processor).await.unwrap();
    let acknowledge = async |target: &Order, bytes: &[u8]| {
        let body = Acknowledge { acknowledgement: Base64(bytes.to_vec()) };
        post::<Settled>(&client, &ann, &format!("/v1/orders/{}/acknowledgement", target.order), &body).await
    };
    log.agrees(acknowledge(&second, &acknowledgement).await, Code::AcknowledgementMismatch, "a replayed acknowledgement").await;
    log.agrees(acknowledge(&order, &altered(&acknowledgement)).await, Code::SignatureInvalid, "an altered acknowledgement").await;
    let receipt = acknowledge(&order, &acknowledgement).await.unwrap().receipt.0;
    for (who, receipt, code, what) in [
        (&ann, altered(&receipt), Code::SignatureInvalid, "an altered receipt"),
        (&bob, receipt.clone(), Code::AccountMismatch, "a stolen receipt"),
        (&ann, acknowledgement, Code::WrongDocument, "an acknowledgement in place of a receipt"),
    ] {
        let refused = post::<Order>(&client, who, "/v1/redownloads", &Redownload { receipt: Base64(receipt) }).await;
        log.agrees(refused, code, what).await;
    }
}

fn altered(document: &[u8]) -> Vec<u8> {
    let mut altered = document.to_vec();
    *altered.last_mut().unwrap() ^= 1;
    altered
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_second_path_refuses_is_in_the_servers_log_in_the_processors_words() {
    let installation = Installation::new().await;
    let daemon = installation.start().await;
    let client = installation.client(&daemon);
    let mut log = Log::of(&installation);
    installation.publish(&client, &sample(1000)).await;
    let ann = log_in(&client, "ann").await;
    let (processor, other) = (installation.processor().await, installation.processor().await);
    let order = buy(&client, &ann, processor.id(), None).await;

    // A ticket that was used, in the tunnel and on the line, where a stranger hears nothing.
    let ticket: Ticket = post(&client, &ann, &format!("/v1/orders/{}/tickets", order.order), &()).await.unwrap();
    let header = ticket.ticket.to_string();
    let tunnel = async || client.upgrade("/v1/second-path", Some(&ann), &[(TICKET_HEADER, &header)]).await;
    drop(tunnel().await.unwrap());
    log.agrees(tunnel().await.map(drop), Code::TicketInvalid, "a replayed ticket").await;
    let line = daemon.line.parse().unwrap();
    let heard = spawn_blocking(move || read_out(dial(line, &ticket.ticket))).await.unwrap();
    assert_eq!(heard, b"");
    log.shows(&[format!("refusal={}: ", Code::TicketInvalid)]).await;

    // Another processor, which shows the confirmation of an order of its own: the server's certificate check comes first.
    let own = buy(&client, &ann, other.id(), None).await;
    let mixed = Order { confirmation: own.confirmation, ..order.clone() };
    log.agrees(receive(&client, &ann, &mixed, &other).await, Code::ProcessorMismatch, "another processor").await;
    // Genuine elsewhere: another authority's. The alert has its own words at the processor.
    let stranger = Pki::new(chipbound_host::now());
    let key = chipbound_sealing::SealingKeyPair::generate(chipbound_wire::suite::Kem::XWing, &mut chipbound_wire::SystemRandom);
    let trust = chipbound_wire::certificate::Trust::new(installation.root()).unwrap();
    let foreign = Arc::new(Processor::of(stranger.processor(vec![key.sealing_key()]), vec![key], trust));
    let order = buy(&client, &ann, foreign.id(), None).await;
    let refusal = receive(&client, &ann, &order, &foreign).await.expect_err("foreign");
    let words = "the other side says: our certificate was not issued under the authority that it trusts";
    assert_eq!((refusal.code, refusal.detail.as_str()), (Code::CertificateForeign, words));
    log.shows(&[format!("refusal={}: ", Code::CertificateForeign)]).await;
}
