//! Enrolments between their two requests: bounded in number and time, one for each authorisation.

use crate::enrolment::Wanted;
use chipbound_wire::{Code, Refusal, Result, Time};
use std::collections::HashMap;
use zeroize::Zeroizing;

/// Enrolments that may be open at once.
const MOST: usize = 1024;
/// Seconds between [`Begin`](chipbound_wire::enrolment::Begin) and [`Finish`](chipbound_wire::enrolment::Finish).
pub(crate) const PATIENCE: u64 = 60;

/// What waits for the answers to its challenges.
pub(crate) struct Open {
    /// What will be certified.
    pub(crate) wanted: Wanted,
    /// The right answers.
    pub(crate) answers: Vec<Zeroizing<[u8; 32]>>,
    until: Time,
}

/// The open enrolments by session.
#[derive(Default)]
pub(crate) struct Pending(HashMap<[u8; 16], Open>);

impl Pending {
    /// Keeps an enrolment; an older one of the same authorisation and role ends. [`Code::Busy`] when too many are open.
    pub(crate) fn open(&mut self, session: [u8; 16], wanted: Wanted, answers: Vec<Zeroizing<[u8; 32]>>, now: Time) -> Result<()> {
        self.0.retain(|_, open| now <= open.until && !open.wanted.is_same_right(&wanted));
        if self.0.len() >= MOST {
            return Err(Refusal::new(Code::Busy, "too many enrolments are open"));
        }
        self.0.insert(session, Open { wanted, answers, until: now.after(PATIENCE) });
        Ok(())
    }

    /// Takes an enrolment out: its answers are heard once. [`Code::TimedOut`] when it is not or no longer there.
    pub(crate) fn take(&mut self, session: &[u8], now: Time) -> Result<Open> {
        let key = <[u8; 16]>::try_from(session).ok();
        let open = key.and_then(|key| self.0.remove(&key)).filter(|open| now <= open.until);
        open.ok_or_else(|| {
            Refusal::new(Code::TimedOut, format!("this enrolment is unknown, was answered already or ran out after {PATIENCE} s"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrolment::Right;
    use chipbound_wire::Digest;
    use chipbound_wire::certificate::Role;

    fn wanted(n: u64) -> Wanted {
        let right = Right::Voucher(Digest::of(&n.to_be_bytes()));
        Wanted { right, role: Role::Vendor, subject: "vendor".to_owned(), spki: vec![], sealing: None }
    }

    #[test]
    fn an_enrolment_is_answered_once_and_in_time() {
        let mut pending = Pending::default();
        pending.open([1; 16], wanted(1), vec![], Time(0)).expect("room");
        pending.open([2; 16], wanted(2), vec![], Time(0)).expect("room");
        pending.take(&[1; 16], Time(PATIENCE)).expect("in time");
        for (session, now) in [([1; 16], 0), ([2; 16], PATIENCE + 1), ([2; 16], 0), ([3; 16], 0)] {
            assert_eq!(pending.take(&session, Time(now)).err().expect("refused").code, Code::TimedOut);
        }
        assert_eq!(pending.take(&[1; 15], Time(0)).err().expect("no session").code, Code::TimedOut);
    }

    #[test]
    fn one_voucher_keeps_one_enrolment_open_and_all_together_are_bounded() {
        let mut pending = Pending::default();
        for n in 0..=255 {
            pending.open([n; 16], wanted(0), vec![], Time(0)).expect("room");
        }
        assert_eq!(pending.0.len(), 1);
        let session = |n: u64| <[u8; 16]>::try_from([n.to_be_bytes(), [9; 8]].concat()).expect("16 bytes");
        for n in 1..MOST as u64 {
            pending.open(session(n), wanted(n), vec![], Time(0)).expect("room");
        }
        assert_eq!(pending.open([7; 16], wanted(9999), vec![], Time(0)).expect_err("full").code, Code::Busy);
        pending.open([7; 16], wanted(9999), vec![], Time(PATIENCE + 1)).expect("the old ones ran out");
        assert_eq!(pending.0.len(), 1);
    }
}
