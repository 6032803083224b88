//! A shop in which everything happened that happens to orders.

use super::bent::{Tampering, parse};
use crate::processor::{Delivered, Processor};
use crate::world::{User, World, eur, sample};
use chipbound_server::config::{Policy, Tax};
use chipbound_server::storage::{Accounts, Deliveries, Leaving, NewTransfer, Orders, Settlement, Shares, Transfers};
use chipbound_testkit::Repeatable;
use chipbound_wire::KeyId;
use chipbound_wire::api::{NewOrder, Order};
use chipbound_wire::certificate::Role;
use chipbound_wire::documents::{Acknowledgement, Confirmation, Transfer};
use chipbound_wire::random::fresh;
use chipbound_wire::signed::read_claims;
use chipbound_wire::suite::KeyMode;
use std::sync::Arc;

/// What becomes of an order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Placed,
    Agreed,
    Cancelled,
    Delivering,
    Expired,
    Late,
    Acknowledged,
    Requested,
    Bought,
    Again,
    Moved,
    Refunded,
}

const WAYS: [Way; 12] = [
    Way::Placed,
    Way::Agreed,
    Way::Cancelled,
    Way::Delivering,
    Way::Expired,
    Way::Late,
    Way::Acknowledged,
    Way::Requested,
    Way::Bought,
    Way::Again,
    Way::Moved,
    Way::Refunded,
];

pub(super) fn policy() -> Policy {
    let tax = |name: &str, rate| Tax { name: name.to_owned(), rate };
    Policy { house_share: 1250, taxes: vec![tax("VAT", 1900), tax("city", 250)], ..Policy::default() }
}

/// A shop in which every way was gone, some by chance more often.
pub(super) struct Busy {
    pub(super) world: World,
    pub(super) processor: Arc<Processor>,
}

impl Busy {
    pub(super) async fn new(world: World) -> Self {
        let busy = Self { processor: Processor::new(&world.pki), world };
        let (world, plain) = (&busy.world, sample(100));
        world.publish("tool", &plain).await;
        let vito = world.pki.holder(Role::Vendor);
        for (name, price) in [("game", 199), ("gift", 0)] {
            let program = chipbound_wire::ProgramId::new(&vito.id(), name).unwrap();
            let manifest = chipbound_wire::documents::Manifest { program, ..world.manifest(name, "1.0", 1, &plain) };
            world.log_in("vito").await.publish(&vito.sign(&manifest), eur(price), &plain).await.unwrap();
        }
        for user in ["ann", "bob"] {
            world.repository_deposit(user, 20_000).await;
        }
        busy.walk().await;
        busy
    }

    async fn walk(&self) {
        let world = &self.world;
        let seed = u64::from_be_bytes(fresh(&mut chipbound_wire::SystemRandom));
        println!("seed {seed}");
        let mut random = Repeatable::new(seed);
        let mut pick = |most: usize| usize::from(fresh::<1>(&mut random)[0]) % most;
        // Every way once with something that costs money, and more by chance.
        let mut ways: Vec<_> = WAYS.iter().map(|way| (*way, "tool")).collect();
        ways.extend((0..12).map(|_| (WAYS[pick(WAYS.len())], ["tool", "game", "gift"][pick(3)])));
        let (timed, others): (Vec<_>, Vec<_>) = ways.into_iter().partition(|(way, _)| matches!(way, Way::Expired | Way::Late));
        let (mut late, mut number) = (Vec::new(), 0);
        for (way, program) in timed {
            let name = ["ann", "bob"][pick(2)];
            number += 1;
            let (order, delivered) = self.delivered(&world.log_in(name).await, program, number).await;
            if way == Way::Late {
                late.push((name, order, delivered));
            }
        }
        world.pass(24 * 3600 + 1);
        world.server.expire().await.unwrap();
        for (user, order, delivered) in late {
            world.log_in(user).await.acknowledge(order.order, &delivered.acknowledgement).await.unwrap();
        }
        for (way, program) in others {
            let user = world.log_in(["ann", "bob"][pick(2)]).await;
            number += 1;
            self.go(way, &user, program, number).await;
            world.pass(7);
        }
        world.repository.payout("vera", eur(100), "transfer 17", "bank 17", world.now()).await.unwrap();
        world.repository.payout("ann", eur(10), "", "bank 18", world.now()).await.unwrap();
    }

    async fn placed(&self, user: &User<'_>, program: &str, number: u32) -> Order {
        let new = NewOrder {
            program: program.to_owned(),
            version: None,
            processor: self.processor.id(),
            key_mode: Some(KeyMode::Direct),
            again: true,
        };
        user.place(&format!("key-{number}"), &new).await.unwrap()
    }

    pub(super) async fn delivered(&self, user: &User<'_>, program: &str, number: u32) -> (Order, Delivered) {
        let order = self.placed(user, program, number).await;
        user.agree(&order).await.unwrap();
        let delivered = user.receive(&order, &self.processor).await.unwrap();
        (order, delivered)
    }

    async fn go(&self, way: Way, user: &User<'_>, program: &str, number: u32) {
        let (world, repository) = (&self.world, &self.world.repository);
        if matches!(way, Way::Placed | Way::Agreed | Way::Cancelled) {
            let order = self.placed(user, program, number).await;
            let confirmation: Confirmation = read_claims(&order.confirmation.0).unwrap();
            if way != Way::Placed {
                user.agree(&order).await.unwrap();
            }
            if way == Way::Cancelled {
                repository.cancel(confirmation.account, order.order, world.now()).await.unwrap();
            }
            return;
        }
        let (order, delivered) = self.delivered(user, program, number).await;
        let (id, confirmation) = (order.order, read_claims::<Confirmation>(&order.confirmation.0).unwrap());
        match way {
            Way::Delivering => return,
            Way::Acknowledged | Way::Requested => {
                repository.acknowledge(&self.settlement(&confirmation, &delivered)).await.unwrap();
                if way == Way::Requested {
                    repository.request_capture(id, "key").await.unwrap();
                }
                return;
            }
            _ => {}
        }
        let settled = user.acknowledge(id, &delivered.acknowledgement).await.unwrap();
        match way {
            Way::Again => {
                let again = user.redownload(&settled.receipt.0).await.unwrap();
                let second = user.receive(&again, &self.processor).await.unwrap();
                user.acknowledge(id, &second.acknowledgement).await.unwrap();
            }
            Way::Moved => {
                let (from, to, at) = (self.processor.id(), KeyId([9; 32]), world.now());
                let transfer = Transfer { order: id, account: confirmation.account, from, to, at };
                let transfer = world.keys.get().receipt.signer().sign(&transfer).unwrap();
                let new = NewTransfer { order: id, account: confirmation.account, from, to, leaving: Leaving::Revoked, transfer, at };
                repository.transfer(&new).await.unwrap();
            }
            Way::Refunded => drop(repository.refund(id, "it did not run", world.now()).await.unwrap()),
            _ => {}
        }
    }

    fn settlement(&self, confirmation: &Confirmation, delivered: &Delivered) -> Settlement {
        Settlement {
            order: confirmation.order,
            account: confirmation.account,
            seal: read_claims::<Acknowledgement>(&delivered.acknowledgement).unwrap().seal,
            acknowledgement: delivered.acknowledgement.clone(),
            token: b"token".to_vec(),
            shares: Shares::default(),
            at: self.world.now(),
            log: self.world.keys.get().log.clone(),
        }
    }

    pub(super) async fn tampering(&self) -> Tampering<'_> {
        Tampering { world: &self.world, lines: parse(&self.world.journal().await) }
    }
}
