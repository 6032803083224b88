//! Orders: confirmation, agreement, tickets (step 1002 and the way to 1003).

use crate::pages::{Page, moment_key, next};
use crate::server::Server;
use crate::storage::{NewOrder, NewTicket, Principal, Repository, StoredOrder};
use chipbound_wire::api::{self, Agreement, Base64, Order, OrderState, Orders, Payment, Ticket};
use chipbound_wire::bounded::Text;
use chipbound_wire::documents::{Confirmation, Manifest};
use chipbound_wire::payment::refuse_card_numbers;
use chipbound_wire::random::fresh;
use chipbound_wire::signed::read_claims;
use chipbound_wire::{AccountId, Code, Digest, OrderId, Refusal, Result, SystemRandom};

/// Seconds of a day.
const DAY: u64 = 24 * 3600;
/// The longest idempotency key, in visible ASCII characters.
const MAX_KEY: usize = 128;
/// Unused tickets of one order at once.
const TICKETS: u32 = 8;

impl<R: Repository> Server<R> {
    /// Places an order (step 1002): answers with a signed confirmation. The same key and request return the same bytes for ever; the
    /// same key with another request is [`Code::IdempotencyConflict`]. What was bought for that processor before, and can be downloaded
    /// again, is [`Code::AlreadyBought`] unless it is asked for again. What its vendor withdrew is [`Code::SequenceTooOld`].
    pub async fn place_order(&self, customer: &Principal, key: &str, request: &api::NewOrder) -> Result<Order> {
        if key.bytes().all(|b| !b.is_ascii_alphabetic()) {
            refuse_card_numbers("the idempotency key", key)?; // Digits among letters are chance.
        }
        for text in [Some(&request.program), request.version.as_ref()].into_iter().flatten() {
            refuse_card_numbers("the order", text)?;
        }
        if key.is_empty() || key.len() > MAX_KEY || !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Refusal::new(Code::Malformed, "an idempotency key is 1 to 128 visible ASCII characters"));
        }
        let release = self.repository.find_release(&request.program, request.version.as_deref()).await?;
        let manifest: Manifest = read_claims(&release.signed_manifest)?;
        let key_mode = request.key_mode.unwrap_or(self.policy.key_mode);
        if !manifest.key_modes.contains(&key_mode) {
            return Err(Refusal::new(Code::NothingInCommon, format!("the vendor does not release this in the key mode {key_mode}")));
        }
        let withdrawn = match &request.version {
            Some(_) => self.is_withdrawn(&manifest).await?,
            None => false, // It is the newest.
        };
        let now = self.now();
        let confirmation = Confirmation {
            order: OrderId(fresh(&mut SystemRandom)),
            account: customer.account,
            program: manifest.program,
            version: manifest.version,
            manifest: release.manifest,
            processor: request.processor,
            price: release.price,
            issued_at: now,
            expires_at: now.after(self.policy.order_seconds),
            conditions: Text::new(self.policy.conditions_text())?,
            redownload_until: now.after(self.policy.redownload_days.saturating_mul(DAY)),
        };
        let order = StoredOrder {
            order: confirmation.order,
            account: customer.account,
            manifest: release.manifest,
            seller: release.vendor,
            processor: request.processor,
            key_mode,
            price: release.price,
            state: OrderState::Confirmed,
            confirmation: self.keys.get().statement.signer().sign(&confirmation)?,
            issued_at: confirmation.issued_at,
            expires_at: confirmation.expires_at,
            redownload_until: confirmation.redownload_until,
            holds: 0,
            receipt: None,
        };
        let new = NewOrder { order, idempotency_key: key.to_owned(), parameters: parameters(request)?, again: request.again, withdrawn };
        self.repository.place_order(&new).await.map(shown)
    }

    /// Whether the newest release of the program says that this one is not to be opened any more.
    async fn is_withdrawn(&self, manifest: &Manifest) -> Result<bool> {
        let newest = self.repository.find_release(manifest.program.as_str(), None).await?;
        Ok(manifest.sequence < read_claims::<Manifest>(&newest.signed_manifest)?.minimum_sequence)
    }

    /// An order as its owner sees it.
    pub async fn order(&self, customer: &Principal, order: OrderId) -> Result<Order> {
        let order = self.repository.order(customer.account, order).await?;
        let proof = if order.receipt.is_some() { self.repository.log_proof(order.order).await? } else { None };
        Ok(Order { proof, ..shown(self.as_of_now(order)) })
    }

    /// A page of the customer's orders, newest first.
    pub async fn orders(&self, customer: &Principal, page: &Page) -> Result<Orders> {
        let (limit, before) = (page.limit()?, page.before("orders")?);
        let mut found = self.repository.orders(customer.account, before, limit + 1).await?;
        let next = next("orders", &mut found, limit, |o| moment_key(o.issued_at, o.order));
        Ok(Orders { orders: found.into_iter().map(|o| shown(self.as_of_now(o))).collect(), next })
    }

    /// An order that ran out is shown so, whether or not its hold was given back yet.
    fn as_of_now(&self, mut order: StoredOrder) -> StoredOrder {
        if order.state.runs_out() && self.now() > order.expires_at {
            order.state = OrderState::Expired;
        }
        order
    }

    /// The customer agrees to the confirmation with that digest: the price is held (step 1002, charge authorised).
    pub async fn agree(&self, customer: &Principal, order: OrderId, agreement: &Agreement) -> Result<Order> {
        if let Payment::Card(token) = &agreement.payment {
            self.hold_by_card(customer, order, agreement.confirmation, &token.parse()?).await?;
        }
        self.repository.authorise(customer.account, order, agreement.confirmation, self.now()).await.map(shown)
    }

    /// The customer gives the order up before anything was sealed for it; what is held is given back.
    pub async fn cancel(&self, customer: &Principal, order: OrderId) -> Result<Order> {
        let cancelled = self.repository.cancel(customer.account, order, self.now()).await?;
        tracing::info!(%order, "cancelled");
        Ok(shown(cancelled))
    }

    /// A one-use ticket for one second path (step 1003).
    pub async fn issue_ticket(&self, customer: &Principal, order: OrderId) -> Result<Ticket> {
        let now = self.now();
        let ticket = Digest(fresh(&mut SystemRandom));
        let expires_at = now.after(self.policy.ticket_seconds);
        let new = NewTicket { ticket: Digest::of(&ticket.0), order, account: customer.account, expires_at };
        self.repository.issue_ticket(&new, now, TICKETS).await?;
        Ok(Ticket { ticket, expires_at, line: self.line.get().cloned() })
    }

    /// Refuses a ticket that nobody could use now; nothing is changed by it.
    pub(crate) async fn check_ticket(&self, ticket: &Digest) -> Result<()> {
        match self.repository.has_ticket(Digest::of(&ticket.0), self.now()).await? {
            true => Ok(()),
            false => Err(Refusal::new(Code::TicketInvalid, "the ticket is unknown, used or expired")),
        }
    }

    /// Uses a ticket up: the order that may be delivered on the path that showed it. `account` is who is logged in, in the
    /// tunnel; on a line of its own the ticket alone admits.
    pub(crate) async fn redeem_ticket(&self, ticket: &Digest, account: Option<AccountId>) -> Result<StoredOrder> {
        self.repository.redeem_ticket(Digest::of(&ticket.0), account, self.now()).await
    }
}

/// What the customer asked for, as one digest. Whether it may be the same again is no part of it.
fn parameters(request: &api::NewOrder) -> Result<Digest> {
    let bytes = serde_json::to_vec(&api::NewOrder { again: false, ..request.clone() })
        .map_err(|e| Refusal::new(Code::Internal, "a request cannot be written").because(e))?;
    Ok(Digest::of(&bytes))
}

/// The order as it travels.
pub(crate) fn shown(order: StoredOrder) -> Order {
    Order {
        order: order.order,
        state: order.state,
        confirmation: Base64(order.confirmation),
        receipt: order.receipt.map(Base64),
        transfer: None,
        proof: None,
    }
}
