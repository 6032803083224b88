//! What goes wrong, when: faults that a test plans, and faults that are drawn from a seed.

use crate::Repeatable;
use chipbound_wire::Random;
use chipbound_wire::random::fresh;
use std::collections::VecDeque;
use std::time::Duration;

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// `POST /v1/payment_intents`.
    Create,
    /// `POST /v1/payment_intents/{id}/capture`.
    Capture,
    /// `POST /v1/payment_intents/{id}/cancel`.
    Cancel,
    /// `POST /v1/refunds`.
    Refund,
    /// Any GET.
    Read,
}

/// What becomes of one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The effect, then the answer only after that time; meanwhile the same key is answered 409.
    Late(Duration),
    /// The effect, and no answer for as long as the connection lives.
    Never,
    /// The effect, then the connection is reset instead of an answer.
    AnswerLost,
    /// The connection is reset before anything had an effect.
    RequestLost,
    /// 503 before anything had an effect; not remembered.
    Unavailable,
    /// 500 without an effect, remembered under the key: every repeat gets the same.
    FailedBefore,
    /// The effect, then 500, remembered under the key: every repeat gets the same.
    FailedAfter,
    /// 429 with `Retry-After: 1`; not remembered.
    TooMany,
    /// The effect, then an answer that is no JSON.
    NotJson,
    /// The effect, then an answer in which every amount is one more than it is.
    WrongAmount,
    /// The effect, then an answer about another payment.
    WrongId,
    /// The effect, then an answer in another currency.
    WrongCurrency,
    /// The effect, then an answer longer than any client should read.
    Endless,
}

impl Fault {
    /// All faults that end without the help of a test's patience: what [`Plan::random`] draws from.
    const DRAWN: [Self; 11] = [
        Self::Late(Duration::from_millis(40)),
        Self::AnswerLost,
        Self::RequestLost,
        Self::Unavailable,
        Self::FailedBefore,
        Self::FailedAfter,
        Self::NotJson,
        Self::WrongAmount,
        Self::WrongId,
        Self::WrongCurrency,
        Self::Endless,
    ];
}

/// Which faults come.
pub(super) struct Plan {
    planned: VecDeque<(Operation, Fault)>,
    random: Option<(Repeatable, u32)>,
}

impl Plan {
    pub(super) fn new() -> Self {
        Self { planned: VecDeque::new(), random: None }
    }

    pub(super) fn add(&mut self, operation: Operation, fault: Fault) {
        self.planned.push_back((operation, fault));
    }

    /// `per_mille` of all requests meet a fault, which depends on the seed and the number of the request.
    pub(super) fn draw_from(&mut self, seed: u64, per_mille: u32) {
        self.random = Some((Repeatable::new(seed), per_mille));
    }

    /// No faults any more.
    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }

    /// The fault of this request: the first that was planned for its kind, or one that is drawn.
    pub(super) fn next(&mut self, operation: Operation) -> Option<Fault> {
        if let Some(place) = self.planned.iter().position(|(planned, _)| *planned == operation) {
            return self.planned.remove(place).map(|(_, fault)| fault);
        }
        let (random, per_mille) = self.random.as_mut()?;
        let drawn = u32::from_be_bytes(fresh(random as &mut dyn Random));
        if drawn % 1000 >= *per_mille {
            return None;
        }
        Fault::DRAWN.get(drawn as usize / 1000 % Fault::DRAWN.len()).copied()
    }
}
