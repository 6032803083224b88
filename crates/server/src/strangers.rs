//! Peers that show bearer tokens which nobody has (attack A16).

use chipbound_wire::Time;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Unknown tokens of one peer within [`WINDOW`] that cost it nothing.
const UNKNOWN: u32 = 300;
/// Seconds for which they count.
const WINDOW: u64 = 60;
/// How long each further request of that peer waits before its token is looked up.
const PAUSE: Duration = Duration::from_secs(1);
/// Peers that are remembered at once.
const MAX_PEERS: usize = 16 * 1024;

/// How many unknown tokens came from where. Whoever shares an address with somebody who guesses is slowed, not kept out; so with the
/// connections of one peer its look-ups are bounded, too.
#[derive(Default)]
pub(crate) struct Strangers(Mutex<HashMap<IpAddr, (u32, Time)>>);

impl Strangers {
    /// How long a request of `peer` is to wait before anything is looked up for it.
    pub(crate) fn pause(&self, peer: IpAddr, now: Time) -> Option<Duration> {
        let peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, since) = peers.get(&peer)?;
        (counts(*since, now) && *count >= UNKNOWN).then_some(PAUSE)
    }

    /// A token of `peer` was nobody's. Peers beyond those that there is room for are not remembered.
    pub(crate) fn note(&self, peer: IpAddr, now: Time) {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= MAX_PEERS && !peers.contains_key(&peer) {
            peers.retain(|_, (_, since)| counts(*since, now));
            if peers.len() >= MAX_PEERS {
                return;
            }
        }
        let (count, since) = peers.entry(peer).or_insert((0, now));
        if !counts(*since, now) {
            (*count, *since) = (0, now);
        }
        *count = count.saturating_add(1);
    }
}

/// Whether what began at `since` still counts, whichever way the clock was set.
fn counts(since: Time, now: Time) -> bool {
    now.0.abs_diff(since.0) < WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_with_many_unknown_tokens_waits_for_each_further_look_up_and_no_other_does() {
        let strangers = Strangers::default();
        let (peer, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        for _ in 0..UNKNOWN {
            assert_eq!(strangers.pause(peer, Time(100)), None, "not yet too many");
            strangers.note(peer, Time(100));
        }
        assert_eq!((strangers.pause(peer, Time(100)), strangers.pause(other, Time(100))), (Some(PAUSE), None));
        assert_eq!(strangers.pause(peer, Time(100 + WINDOW)), None, "a minute later");
        assert_eq!(strangers.pause(peer, Time(10)), None, "after the clock was set back");
        strangers.note(peer, Time(100 + WINDOW));
        assert_eq!(strangers.pause(peer, Time(100 + WINDOW)), None, "counted anew");
    }

    #[test]
    fn no_more_peers_are_remembered_than_there_is_room_for() {
        let strangers = Strangers::default();
        let address = |n: usize| IpAddr::from(u32::try_from(n).expect("few").to_be_bytes());
        for n in 0..=MAX_PEERS {
            strangers.note(address(n), Time(100));
        }
        assert_eq!(strangers.0.lock().expect("whole").len(), MAX_PEERS);
        strangers.note(address(MAX_PEERS), Time(100 + WINDOW));
        assert_eq!(strangers.0.lock().expect("whole").len(), 1, "those of before are forgotten");
    }
}
