//! A customer with a client: the steps of a purchase, one at a time, each of which may be lost, repeated or late.

use super::network::{Cut, Fate};
use super::world::{PRICE, SIZE, World};
use crate::dice::Dice;
use crate::{Outcome, failed};
use chipbound_processor::receive::Held;
use chipbound_sealing::ReadAt;
use chipbound_server::storage::Principal;
use chipbound_trusted_core::open_package;
use chipbound_wire::api::{Acknowledge, Agreement, Base64, NewOrder, Order, OrderState, Payment, Redownload, Settled};
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Code, Digest, OrderId, Refusal, Result};
use std::fs::File;
use std::sync::Arc;

/// A request on the first path, as it may be repeated.
#[derive(Clone)]
pub(super) enum Request {
    Place(String),
    Agree(OrderId, Digest),
    Ticket(OrderId),
    Acknowledge(OrderId, Vec<u8>),
    Redownload(Vec<u8>),
    Cancel(OrderId),
}

/// What is answered.
pub(super) enum Answer {
    Order(Box<Order>),
    Ticket(Digest),
    Settled(Settled),
}

/// A delivery that the processor holds, and what the server answered to its acknowledgement.
struct Waiting {
    held: Held,
    token: Option<Vec<u8>>,
}

/// One client; two may be of one account, and at one order.
pub(super) struct Customer {
    pub(super) number: usize,
    pub(super) principal: Principal,
    pub(super) chip: usize,
    /// How many purchases were given up.
    tries: u32,
    /// What the client wrote down: the order as it was placed, its receipt, and the package.
    pub(super) order: Option<Order>,
    pub(super) receipt: Option<Vec<u8>>,
    pub(super) package: Option<Arc<File>>,
    /// What is gone with the client, or with its processor.
    agreed: bool,
    waiting: Option<Waiting>,
}

impl Customer {
    pub(super) fn new(number: usize, principal: Principal, chip: usize) -> Self {
        Self { number, principal, chip, tries: 0, order: None, receipt: None, package: None, agreed: false, waiting: None }
    }

    /// Names the purchase. Two clients of one account and processor that try for the first time are at the same order.
    fn key(&self) -> String {
        match self.tries {
            0 => format!("purchase-{}", self.chip),
            tries => format!("purchase-{}-{tries}-of-{}", self.chip, self.number),
        }
    }

    /// The client is killed: what it did not write down is gone.
    pub(super) fn crash(&mut self) {
        self.agreed = false;
        self.waiting = None;
    }

    /// The processor is killed.
    pub(super) fn lose_delivery(&mut self) {
        self.waiting = None;
    }

    /// The package is lost, and is to be had again for the receipt.
    pub(super) fn lose_package(&mut self) {
        self.package = None;
    }

    /// The acknowledgement that has not been answered yet, for the order.
    pub(super) fn acknowledgement(&self) -> Option<(OrderId, &Held)> {
        let waiting = self.waiting.as_ref().filter(|waiting| waiting.token.is_none())?;
        Some((self.order.as_ref()?.order, &waiting.held))
    }

    fn begin_anew(&mut self) {
        self.tries += 1;
        (self.order, self.receipt, self.agreed, self.waiting) = (None, None, false, None);
    }
}

impl World {
    /// A request of that customer's arrives at the server.
    pub(super) fn arrives(&self, principal: &Principal, chip: usize, request: &Request) -> Result<Answer> {
        let server = &self.server;
        self.runtime.block_on(async {
            Ok(match request {
                Request::Place(key) => {
                    let processor = self.chips[chip].id;
                    let new =
                        NewOrder { program: "tool".to_owned(), version: None, processor, key_mode: Some(KeyMode::Direct), again: true };
                    Answer::Order(Box::new(server.place_order(principal, key, &new).await?))
                }
                Request::Agree(order, confirmation) => {
                    let agreement = Agreement { confirmation: *confirmation, payment: Payment::Prepaid };
                    Answer::Order(Box::new(server.agree(principal, *order, &agreement).await?))
                }
                Request::Ticket(order) => Answer::Ticket(server.issue_ticket(principal, *order).await?.ticket),
                Request::Acknowledge(order, said) => {
                    let said = Acknowledge { acknowledgement: Base64(said.clone()) };
                    Answer::Settled(server.acknowledge(principal, *order, &said).await?)
                }
                Request::Redownload(receipt) => {
                    Answer::Order(Box::new(server.redownload(principal, &Redownload { receipt: Base64(receipt.clone()) }).await?))
                }
                Request::Cancel(order) => Answer::Order(Box::new(server.cancel(principal, *order).await?)),
            })
        })
    }

    /// Sends a request through the network. Without an answer that is heard, [`Code::Transport`].
    fn send(&mut self, number: usize, request: Request, fate: Fate) -> Result<Answer> {
        let (principal, chip) = (self.customers[number].principal.clone(), self.customers[number].chip);
        let unheard = || Refusal::new(Code::TimedOut, "nothing was heard");
        match fate {
            Fate::Lost => return Err(unheard()),
            Fate::Late => {
                self.late.push((principal, chip, request));
                return Err(unheard());
            }
            Fate::AnswerLost => {
                self.arrives(&principal, chip, &request).and(Err(unheard()))?;
            }
            Fate::Twice => drop(self.arrives(&principal, chip, &request)),
            Fate::Answered => {}
        }
        self.arrives(&principal, chip, &request)
    }

    /// The next step of a customer's purchase; says which it was and what came of it.
    pub(super) fn step(&mut self, number: usize, dice: &mut Dice, calm: bool) -> Outcome<String> {
        let fate = if calm { Fate::Answered } else { Fate::draw(dice) };
        let cut = if calm { None } else { Cut::draw(dice, SIZE as u64) };
        let (what, done) = self.next_step(number, fate, cut);
        let refusal = match done {
            Ok(()) => return Ok(format!("{what} {fate:?}: done")),
            Err(refusal) => refusal,
        };
        match refusal.code {
            // What came to nothing is begun anew.
            Code::OrderExpired | Code::OrderCancelled | Code::OrderRefunded => self.customers[number].begin_anew(),
            // It was paid meanwhile, by another client or a late request: the receipt is at the server.
            Code::OrderState => self.look_up(number)?,
            Code::TimedOut | Code::PathTruncated | Code::TicketInvalid | Code::RateLimited | Code::InsufficientFunds => {}
            // A delivery that was repeated has a token of its own; the older one of two that were held at once has none.
            Code::TokenMismatch | Code::NotReceived => self.customers[number].lose_delivery(),
            _ if cut.is_some() && what == "deliver" => {}
            code => return Err(failed(format!("{what} of customer {number}: {code}: {refusal}"))),
        }
        Ok(format!("{what} {fate:?} {}: {}", if cut.is_some() { "cut" } else { "whole" }, refusal.code))
    }

    fn next_step(&mut self, number: usize, fate: Fate, cut: Option<Cut>) -> (&'static str, Result<()>) {
        let customer = &self.customers[number];
        if customer.package.is_some() {
            return ("have", Ok(()));
        }
        let Some(order) = customer.order.clone() else { return ("place", self.place(number, fate)) };
        match &customer.waiting {
            Some(Waiting { token: Some(_), .. }) => ("release", self.release(number)),
            Some(Waiting { held, token: None }) => {
                let request = Request::Acknowledge(order.order, held.acknowledged.acknowledgement.clone());
                ("acknowledge", self.acknowledge(number, request, fate))
            }
            None if customer.receipt.is_none() && !customer.agreed => ("agree", self.agree(number, &order, fate)),
            None => ("deliver", self.take_delivery(number, &order, fate, cut)),
        }
    }

    fn place(&mut self, number: usize, fate: Fate) -> Result<()> {
        let key = self.customers[number].key();
        if let Answer::Order(order) = self.send(number, Request::Place(key.clone()), fate)? {
            // The same key gets the same bytes for ever.
            let first = self.placed.entry(key).or_insert_with(|| order.confirmation.0.clone());
            if *first != order.confirmation.0 {
                return Err(Refusal::new(Code::IdempotencyConflict, "the same key was answered with another confirmation"));
            }
            self.customers[number].receipt = order.receipt.as_ref().map(|receipt| receipt.0.clone());
            self.customers[number].order = Some(*order);
        }
        Ok(())
    }

    fn agree(&mut self, number: usize, order: &Order, fate: Fate) -> Result<()> {
        let confirmation = Digest::of(&order.confirmation.0);
        self.send(number, Request::Agree(order.order, confirmation), fate)?;
        self.customers[number].agreed = true;
        Ok(())
    }

    fn take_delivery(&mut self, number: usize, order: &Order, fate: Fate, cut: Option<Cut>) -> Result<()> {
        let Customer { receipt, principal, chip, .. } = &self.customers[number];
        let (account, chip) = (principal.account, *chip);
        let mut confirmation = order.confirmation.0.clone();
        if let Some(receipt) = receipt.clone()
            && let Answer::Order(anew) = self.send(number, Request::Redownload(receipt), fate)?
        {
            confirmation = anew.confirmation.0;
        }
        let Answer::Ticket(ticket) = self.send(number, Request::Ticket(order.order), fate)? else { return Ok(()) };
        let held = self.deliver(ticket, account, chip, &confirmation, cut)?;
        self.customers[number].waiting = Some(Waiting { held, token: None });
        Ok(())
    }

    fn acknowledge(&mut self, number: usize, request: Request, fate: Fate) -> Result<()> {
        if let Answer::Settled(settled) = self.send(number, request, fate)? {
            let customer = &mut self.customers[number];
            if let Some(before) = &customer.receipt
                && *before != settled.receipt.0
            {
                return Err(Refusal::new(Code::ReceiptMismatch, "an order has two receipts"));
            }
            customer.receipt = Some(settled.receipt.0);
            if let Some(waiting) = &mut customer.waiting {
                waiting.token = Some(settled.token.0);
            }
        }
        Ok(())
    }

    fn release(&mut self, number: usize) -> Result<()> {
        let customer = &mut self.customers[number];
        let us = self.chips[customer.chip].us.clone();
        let (Some(waiting), Some(order)) = (&mut customer.waiting, &customer.order) else { return Ok(()) };
        let (file, _) = waiting.held.release(waiting.token.as_deref().unwrap_or_default(), &us)?;
        customer.package = Some(Arc::new(file));
        self.released.insert((customer.principal.account.0, order.order));
        if let Some(waiting) = customer.waiting.take() {
            waiting.held.taken();
        }
        Ok(())
    }

    fn look_up(&mut self, number: usize) -> Outcome<()> {
        let customer = &mut self.customers[number];
        let Some(order) = &customer.order else { return Ok(()) };
        let now = self.runtime.block_on(self.server.order(&customer.principal, order.order))?;
        customer.receipt = now.receipt.map(|receipt| receipt.0);
        customer.agreed = now.state != OrderState::Confirmed;
        Ok(())
    }

    /// The package is opened by the processor to the very bytes that the vendor published.
    pub(super) fn opens(&self, number: usize) -> Outcome<()> {
        let customer = &self.customers[number];
        let us = &self.chips[customer.chip].us;
        let file = customer.package.as_ref().ok_or_else(|| failed(format!("customer {number} has no program")))?.try_clone()?;
        let opened = open_package(file, &us.vault, &*us.vault.keys(), &us.vault.enrolment()?.root, false)?;
        let mut plain = vec![0; self.plain.len()];
        opened.plaintext.read_exact_at(&mut plain, 0)?;
        if plain != self.plain {
            return Err(failed(format!("customer {number} got another program")));
        }
        Ok(())
    }

    /// Whether the customer's account can pay once more.
    pub(super) fn can_pay(&self, number: usize) -> Outcome<bool> {
        Ok(self.funds(self.customers[number].principal.account)?.0 >= PRICE)
    }
}
