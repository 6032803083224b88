//! Random walks through the states of orders, compared with a small model after each step.

use super::fixture::{BUYER, Fixture, NOW, settlement};
use crate::storage::states::STEPS;
use crate::storage::{Deliveries, Orders, Settlement};
use chipbound_testkit::Repeatable;
use chipbound_wire::api::OrderState::{self, *};
use chipbound_wire::random::fresh;
use chipbound_wire::{OrderId, Time};

const ORDERS: u8 = 3;
const PRICE: u64 = 250;
/// What is tried, the way to the end more often than what ends it early: agree, second path, seal, cancel, acknowledge, request, settle,
/// refund, expire.
const ACTIONS: [u8; 20] = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 4, 4, 4, 5, 5, 6, 7, 7, 8];

/// What the books should say.
struct Model {
    orders: Vec<Modelled>,
    funds: u64,
    now: u64,
}

#[derive(Clone)]
struct Modelled {
    state: OrderState,
    sealed: bool,
}

impl Model {
    fn held(&self) -> u64 {
        let holds = |order: &&Modelled| matches!(order.state, Authorised | Delivering | Acknowledged | CaptureRequested);
        self.orders.iter().filter(holds).count() as u64 * PRICE
    }

    /// What happens to the order; none where it is refused.
    fn act(&mut self, number: usize, action: u8) -> Option<()> {
        let (late, very_late) = (self.now > 100, self.now > 200);
        let order = &mut self.orders[number];
        let over = matches!(order.state, Cancelled | Expired | Refunded);
        match action {
            0 => match order.state {
                Confirmed if !late && self.funds >= PRICE => {
                    self.funds -= PRICE;
                    order.state = Authorised;
                }
                Confirmed => return None,
                Authorised | Delivering if late => return None,
                _ if over => return None,
                _ => {}
            },
            1 => match order.state {
                Authorised | Delivering if !late => order.state = Delivering,
                Acknowledged | CaptureRequested => {}
                _ => return None,
            },
            2 if over || matches!(order.state, Confirmed | Authorised) => return None,
            2 => order.sealed = true,
            3 => match order.state {
                Cancelled => {}
                Confirmed => order.state = Cancelled,
                Authorised => self.give_back(number, Cancelled),
                Delivering if !order.sealed => self.give_back(number, Cancelled),
                _ => return None,
            },
            4..=6 if !order.sealed => return None,
            4 => self.acknowledge(number, very_late)?,
            5 => match order.state {
                Acknowledged => order.state = CaptureRequested,
                CaptureRequested => {}
                _ => return None,
            },
            6 => {
                if !order.state.is_paid() {
                    self.acknowledge(number, very_late)?;
                }
                self.orders[number].state = Released;
            }
            7 => match order.state {
                Refunded => {}
                Captured | Released => {
                    order.state = Refunded;
                    self.funds += PRICE;
                }
                _ => return None,
            },
            _ => {
                for number in (0..self.orders.len()).filter(|_| late) {
                    match self.orders[number].state {
                        Confirmed => self.orders[number].state = Expired,
                        Authorised | Delivering => self.give_back(number, Expired),
                        _ => {}
                    }
                }
            }
        }
        Some(())
    }

    fn give_back(&mut self, number: usize, to: OrderState) {
        self.funds += PRICE;
        self.orders[number].state = to;
    }

    fn acknowledge(&mut self, number: usize, very_late: bool) -> Option<()> {
        match self.orders[number].state {
            Delivering if !very_late => self.orders[number].state = Acknowledged,
            Expired if !very_late && self.funds >= PRICE => {
                self.funds -= PRICE;
                self.orders[number].state = Acknowledged;
            }
            Acknowledged | CaptureRequested => {}
            state if state.is_paid() => {}
            _ => return None,
        }
        Some(())
    }
}

/// The same to the books; whether it was not refused.
async fn act(books: &Fixture, number: u8, seal: &mut u8, sealed: Option<u8>, action: u8, now: Time) -> bool {
    let (repository, order) = (&books.repository, OrderId([number; 16]));
    let settlement = Settlement { at: now, ..settlement(number, sealed.unwrap_or(0)) };
    match action {
        0 => books.agree_at(number, now).await.is_ok(),
        1 => books.redeem(number, now).await.is_ok(),
        2 => {
            *seal += 1;
            books.seal(number, *seal).await.is_ok()
        }
        3 => repository.cancel(BUYER, order, now).await.is_ok(),
        4 => repository.acknowledge(&settlement).await.is_ok(),
        5 => repository.request_capture(order, "key").await.is_ok(),
        6 => books.settle_as(settlement).await.is_ok(),
        7 => repository.refund(order, "", now).await.is_ok(),
        _ => repository.expire(now).await.is_ok(),
    }
}

pub(super) async fn orders_walk_as_a_small_model_says(books: Fixture) {
    let drawn = u64::from_be_bytes(fresh(&mut chipbound_wire::SystemRandom));
    let seed = std::env::var("CHIPBOUND_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(drawn);
    let mut random = Repeatable::new(seed);
    let (mut funds, mut seal, mut visited) = (1000, 0, Vec::new());
    for walk in 0..8_u8 {
        let first = 1 + walk * ORDERS;
        for number in first..first + ORDERS {
            books.place(number, &format!("{number}"), b"p").await.expect("an order");
        }
        let mut model = Model { orders: vec![Modelled { state: Confirmed, sealed: false }; ORDERS.into()], funds, now: 0 };
        let mut seals = [None; ORDERS as usize];
        for step in 0..90 {
            let [which, action, time]: [u8; 3] = fresh(&mut random);
            let (which, action) = (which % ORDERS, ACTIONS[usize::from(action) % ACTIONS.len()]);
            model.now += u64::from(time % 3);
            let (before, last) = (model.orders[usize::from(which)].state, seal);
            let done = act(&books, first + which, &mut seal, seals[usize::from(which)], action, NOW.after(model.now)).await;
            if seal != last && done {
                seals[usize::from(which)] = Some(seal);
            }
            let place = format!("seed {seed}, walk {walk}, step {step}: action {action} on an order that is {}", before.as_str());
            assert_eq!(done, model.act(which.into(), action).is_some(), "{place}");
            for (number, modelled) in (first..).zip(&model.orders) {
                assert_eq!(books.state(number).await, modelled.state, "{place}");
            }
            assert_eq!(books.money().await, (model.funds, model.held()), "{place}");
            visited.push((before, model.orders[usize::from(which)].state));
        }
        books.audit().await;
        // What is under way ends before the next walk.
        for (number, order) in (first..).zip(&model.orders) {
            if matches!(order.state, Acknowledged | CaptureRequested) {
                let seal = seals[usize::from(number - first)].expect("acknowledged");
                books.settle_as(settlement(number, seal)).await.expect("settled");
            }
        }
        books.repository.expire(NOW.after(100_000)).await.expect("expiry");
        let (free, held) = books.money().await;
        assert_eq!(held, 0, "seed {seed}, walk {walk}: nothing stays held");
        books.repository_deposit(1000 - free.min(1000)).await;
        funds = books.money().await.0;
    }
    let single = STEPS.iter().filter(|step| visited.contains(step)).count();
    assert!(single >= 5, "seed {seed}: the walks took {single} of the legal steps");
}
