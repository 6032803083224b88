//! The provider's own book: payments, refunds, remembered answers and events, and what each request does to them.

use super::faults::Operation;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where a payment stands, in the provider's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// `requires_payment_method`: the card was declined.
    RequiresPaymentMethod,
    /// `requires_action`: its holder would have to do something.
    RequiresAction,
    /// `processing`: not decided yet.
    Processing,
    /// `requires_capture`: held.
    RequiresCapture,
    /// `succeeded`: captured.
    Succeeded,
    /// `canceled`: the hold was given back.
    Canceled,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::RequiresPaymentMethod => "requires_payment_method",
            Self::RequiresAction => "requires_action",
            Self::Processing => "processing",
            Self::RequiresCapture => "requires_capture",
            Self::Succeeded => "succeeded",
            Self::Canceled => "canceled",
        }
    }
}

/// One payment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Payment {
    /// `pi_…`.
    pub id: String,
    /// What the server said it is for: `metadata[order]`.
    pub order: String,
    /// Minor units.
    pub amount: u64,
    /// Lower case, as Stripe writes it.
    pub currency: String,
    /// Where it stands.
    pub status: Status,
    /// Minor units that were taken.
    pub captured: u64,
    /// How many times they were taken; more than once would be a double charge.
    pub captures: u32,
    /// Minor units that were given back.
    pub refunded: u64,
    created: u64,
}

impl Payment {
    fn json(&self) -> Value {
        json!({
            "id": self.id, "object": "payment_intent", "amount": self.amount,
            "amount_capturable": if self.status == Status::RequiresCapture { self.amount } else { 0 },
            "amount_received": self.captured, "currency": self.currency, "capture_method": "manual",
            "status": self.status.as_str(), "created": self.created, "livemode": false, "metadata": { "order": self.order },
        })
    }
}

/// A request as it was parsed.
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    /// The form of a POST, the query of a GET.
    pub(super) fields: BTreeMap<String, String>,
    pub(super) key: Option<String>,
}

impl Asked {
    /// What it asks for, and of which payment.
    pub(super) fn operation(&self) -> Option<(Operation, Option<&str>)> {
        let parts: Vec<_> = self.path.trim_matches('/').split('/').collect();
        match (self.method.as_str(), parts.as_slice()) {
            ("POST", ["v1", "payment_intents"]) => Some((Operation::Create, None)),
            ("POST", ["v1", "payment_intents", id, "capture"]) => Some((Operation::Capture, Some(id))),
            ("POST", ["v1", "payment_intents", id, "cancel"]) => Some((Operation::Cancel, Some(id))),
            ("POST", ["v1", "refunds"]) => Some((Operation::Refund, None)),
            ("GET", ["v1", "payment_intents", id]) => Some((Operation::Read, Some(id))),
            ("GET", ["v1", "payment_intents" | "refunds"]) => Some((Operation::Read, None)),
            _ => None,
        }
    }

    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

/// An answer.
#[derive(Clone)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Value,
    pub(super) replayed: bool,
}

impl Reply {
    fn ok(body: Value) -> Self {
        Self { status: StatusCode::OK, body, replayed: false }
    }

    pub(super) fn error(status: StatusCode, kind: &str, code: &str) -> Self {
        Self { status, body: json!({ "error": { "type": kind, "code": code, "message": format!("simulated: {code}") } }), replayed: false }
    }

    fn invalid(code: &str) -> Self {
        Self::error(StatusCode::BAD_REQUEST, "invalid_request_error", code)
    }
}

/// An answer that is kept under its idempotency key.
struct Remembered {
    asked: (String, BTreeMap<String, String>),
    reply: Reply,
}

/// Everything that the provider knows.
#[derive(Default)]
pub(super) struct Bank {
    pub(super) payments: BTreeMap<String, Payment>,
    refunds: Vec<Value>,
    remembered: HashMap<String, Remembered>,
    /// Keys whose first request is not answered yet.
    pub(super) under_way: BTreeSet<String>,
    /// What webhooks tell, oldest first.
    pub(super) events: Vec<Value>,
    /// Every field of every request, so that a test can look for what should never have come.
    pub(super) heard: Vec<String>,
}

impl Bank {
    /// What was answered to this key before, or why it cannot be used: the semantics of `Idempotency-Key`.
    pub(super) fn recall(&self, asked: &Asked) -> Option<Reply> {
        let key = asked.key.as_ref()?;
        if self.under_way.contains(key) {
            return Some(Reply::error(StatusCode::CONFLICT, "idempotency_error", "idempotency_key_in_use"));
        }
        let remembered = self.remembered.get(key)?;
        if remembered.asked != (asked.path.clone(), asked.fields.clone()) {
            return Some(Reply::error(StatusCode::BAD_REQUEST, "idempotency_error", "idempotency_key_reused"));
        }
        Some(Reply { replayed: true, ..remembered.reply.clone() })
    }

    pub(super) fn remember(&mut self, asked: &Asked, reply: &Reply) {
        if let Some(key) = &asked.key {
            let asked = (asked.path.clone(), asked.fields.clone());
            self.remembered.insert(key.clone(), Remembered { asked, reply: reply.clone() });
        }
    }

    /// Carries a request out.
    pub(super) fn act(&mut self, asked: &Asked) -> Reply {
        match asked.operation() {
            Some((Operation::Create, _)) => self.create(asked),
            Some((Operation::Capture, Some(id))) => self.capture(id, asked),
            Some((Operation::Cancel, Some(id))) => self.cancel(id),
            Some((Operation::Refund, _)) => self.refund(asked),
            Some((Operation::Read, Some(id))) => self.payments.get(id).map_or_else(missing, |payment| Reply::ok(payment.json())),
            Some((Operation::Read, None)) => self.list(asked),
            _ => Reply::error(StatusCode::NOT_FOUND, "invalid_request_error", "unknown_route"),
        }
    }

    fn create(&mut self, asked: &Asked) -> Reply {
        let Ok(amount) = asked.field("amount").parse::<u64>() else { return Reply::invalid("parameter_invalid_integer") };
        if amount == 0 || asked.field("capture_method") != "manual" || asked.field("confirm") != "true" {
            return Reply::invalid("parameter_missing");
        }
        let status = match asked.field("payment_method") {
            "pm_card_visa" | "pm_card_mastercard" => Status::RequiresCapture,
            "pm_card_chargeDeclined" => Status::RequiresPaymentMethod,
            "pm_card_authenticationRequired" => Status::RequiresAction,
            "pm_card_processing" => Status::Processing,
            _ => return missing(),
        };
        let payment = Payment {
            id: format!("pi_3Sim{:08}", self.payments.len() + 1),
            order: asked.field("metadata[order]").to_owned(),
            amount,
            currency: asked.field("currency").to_owned(),
            status,
            captured: 0,
            captures: 0,
            refunded: 0,
            created: now(),
        };
        let id = payment.id.clone();
        self.payments.insert(id.clone(), payment);
        self.tell(&id);
        let body = self.payments[&id].json();
        if status == Status::RequiresPaymentMethod {
            let mut declined = Reply::error(StatusCode::PAYMENT_REQUIRED, "card_error", "card_declined");
            declined.body["error"]["decline_code"] = json!("generic_decline");
            declined.body["error"]["payment_intent"] = body;
            return declined;
        }
        Reply::ok(body)
    }

    fn capture(&mut self, id: &str, asked: &Asked) -> Reply {
        let Some(payment) = self.payments.get_mut(id) else { return missing() };
        let amount = asked.field("amount_to_capture").parse().unwrap_or(payment.amount);
        if payment.status != Status::RequiresCapture || amount > payment.amount {
            return unexpected(payment);
        }
        payment.status = Status::Succeeded;
        payment.captured += amount;
        payment.captures += 1;
        self.told(id)
    }

    fn cancel(&mut self, id: &str) -> Reply {
        let Some(payment) = self.payments.get_mut(id) else { return missing() };
        if matches!(payment.status, Status::Succeeded | Status::Canceled | Status::Processing) {
            return unexpected(payment);
        }
        payment.status = Status::Canceled;
        self.told(id)
    }

    fn refund(&mut self, asked: &Asked) -> Reply {
        let id = asked.field("payment_intent");
        let Some(payment) = self.payments.get_mut(id) else { return missing() };
        let amount = asked.field("amount").parse().unwrap_or(payment.captured);
        if payment.status != Status::Succeeded || amount == 0 || payment.refunded + amount > payment.captured {
            return Reply::invalid("charge_already_refunded");
        }
        payment.refunded += amount;
        let refund = json!({
            "id": format!("re_3Sim{:08}", self.refunds.len() + 1), "object": "refund", "amount": amount,
            "currency": payment.currency, "payment_intent": id, "status": "succeeded",
        });
        self.refunds.push(refund.clone());
        self.tell(id);
        Reply::ok(refund)
    }

    fn list(&self, asked: &Asked) -> Reply {
        let since = asked.field("created[gte]").parse().unwrap_or(0);
        let data: Vec<_> = match asked.path.ends_with("refunds") {
            true => self.refunds.iter().filter(|r| r["payment_intent"] == asked.field("payment_intent")).cloned().collect(),
            false => self.payments.values().rev().filter(|p| p.created >= since).map(Payment::json).collect(),
        };
        let after = data.iter().position(|d| d["id"] == asked.field("starting_after")).map_or(0, |place| place + 1);
        let limit = asked.field("limit").parse().unwrap_or(10).min(100);
        let page: Vec<_> = data.iter().skip(after).take(limit).cloned().collect();
        Reply::ok(json!({ "object": "list", "has_more": after + page.len() < data.len(), "data": page }))
    }

    /// A card that was not decided on is decided on, as happens in the provider's own time.
    pub(super) fn decide(&mut self, id: &str, status: Status) {
        if let Some(payment) = self.payments.get_mut(id) {
            payment.status = status;
            self.tell(id);
        }
    }

    fn told(&mut self, id: &str) -> Reply {
        self.tell(id);
        Reply::ok(self.payments[id].json())
    }

    fn tell(&mut self, id: &str) {
        let payment = &self.payments[id];
        let kind = match payment.status {
            Status::RequiresPaymentMethod => "payment_intent.payment_failed",
            Status::RequiresAction => "payment_intent.requires_action",
            Status::Processing => "payment_intent.processing",
            Status::RequiresCapture => "payment_intent.amount_capturable_updated",
            Status::Succeeded if payment.refunded > 0 => "charge.refunded",
            Status::Succeeded => "payment_intent.succeeded",
            Status::Canceled => "payment_intent.canceled",
        };
        let object = match kind {
            "charge.refunded" => {
                json!({ "id": "ch_3Sim", "object": "charge", "payment_intent": id, "metadata": { "order": payment.order } })
            }
            _ => payment.json(),
        };
        self.events.push(json!({
            "id": format!("evt_3Sim{:08}", self.events.len() + 1), "object": "event", "created": now(), "type": kind,
            "livemode": false, "data": { "object": object },
        }));
    }
}

fn missing() -> Reply {
    Reply::error(StatusCode::NOT_FOUND, "invalid_request_error", "resource_missing")
}

fn unexpected(payment: &Payment) -> Reply {
    let mut reply = Reply::invalid("payment_intent_unexpected_state");
    reply.body["error"]["payment_intent"] = payment.json();
    reply
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
