//! Who may connect: caps on connections and rates of new handshakes, in total and per peer (attack A16; design §8 law 4).

use crate::serve::ServeLimits;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Peers that are remembered at once; a stranger beyond them is turned away.
const MAX_PEERS: usize = 16 * 1024;

/// The door of one listener.
pub(crate) struct Admission {
    limits: ServeLimits,
    state: Mutex<State>,
    left: Notify,
}

struct State {
    open: usize,
    bucket: Bucket,
    peers: HashMap<IpAddr, Peer>,
}

struct Peer {
    open: usize,
    bucket: Bucket,
}

/// A place among the connections; dropping it frees the place.
pub(crate) struct Admitted {
    door: Arc<Admission>,
    key: IpAddr,
}

impl Admission {
    pub(crate) fn new(limits: &ServeLimits, now: Instant) -> Arc<Self> {
        let bucket = Bucket::full(limits.handshake_burst, now);
        Arc::new(Self { limits: limits.clone(), state: Mutex::new(State { open: 0, bucket, peers: HashMap::new() }), left: Notify::new() })
    }

    /// A place for a connection from `ip`, or none: too many are open, or too many came lately.
    pub(crate) fn admit(self: &Arc<Self>, ip: IpAddr, now: Instant) -> Option<Admitted> {
        let limits = &self.limits;
        let key = network_of(ip);
        let mut state = self.lock();
        if state.open >= limits.connections {
            return None;
        }
        if state.peers.len() >= MAX_PEERS && !state.peers.contains_key(&key) {
            state.forget_idle(limits, now);
            if state.peers.len() >= MAX_PEERS {
                return None;
            }
        }
        let peer = state.peers.entry(key).or_insert_with(|| Peer { open: 0, bucket: Bucket::full(limits.peer_handshake_burst, now) });
        // The peer's own rate comes first, so that a flood from one address does not use up everybody's.
        if peer.open >= limits.connections_per_peer
            || !peer.bucket.take(limits.peer_handshakes_per_second, limits.peer_handshake_burst, now)
            || !state.bucket.take(limits.handshakes_per_second, limits.handshake_burst, now)
        {
            return None;
        }
        state.open += 1;
        if let Some(peer) = state.peers.get_mut(&key) {
            peer.open += 1;
        }
        Some(Admitted { door: self.clone(), key })
    }

    /// How many places are taken.
    pub(crate) fn open(&self) -> usize {
        self.lock().open
    }

    /// Waits until every place is free.
    pub(crate) async fn empty(&self) {
        loop {
            let left = self.left.notified();
            if self.open() == 0 {
                return;
            }
            left.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Forgets peers about whom there is nothing to remember.
    fn forget_idle(&mut self, limits: &ServeLimits, now: Instant) {
        let (rate, burst) = (limits.peer_handshakes_per_second, limits.peer_handshake_burst);
        self.peers.retain(|_, peer| peer.open > 0 || !peer.bucket.is_full(rate, burst, now));
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut state = self.door.lock();
        state.open -= 1;
        if let Some(peer) = state.peers.get_mut(&self.key) {
            peer.open -= 1;
        }
        drop(state);
        self.door.left.notify_waiters();
    }
}

/// Whom an address counts as: itself, or for IPv6 its /64, which one subscriber has whole.
#[must_use]
pub fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// A token bucket.
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn full(burst: u32, now: Instant) -> Self {
        Self { tokens: f64::from(burst), filled: now }
    }

    fn fill(&mut self, per_second: u32, burst: u32, now: Instant) {
        let grown = now.saturating_duration_since(self.filled).as_secs_f64() * f64::from(per_second);
        self.tokens = (self.tokens + grown).min(f64::from(burst));
        self.filled = now;
    }

    fn take(&mut self, per_second: u32, burst: u32, now: Instant) -> bool {
        self.fill(per_second, burst, now);
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }

    fn is_full(&mut self, per_second: u32, burst: u32, now: Instant) -> bool {
        self.fill(per_second, burst, now);
        self.tokens >= f64::from(burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn limits() -> ServeLimits {
        ServeLimits {
            connections: 3,
            connections_per_peer: 2,
            handshakes_per_second: 10,
            handshake_burst: 4,
            peer_handshakes_per_second: 1,
            peer_handshake_burst: 3,
            ..ServeLimits::default()
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_peer_gets_no_more_places_than_its_own_and_a_freed_place_is_given_again() {
        let now = Instant::now();
        let door = Admission::new(&limits(), now);
        let first = door.admit(ip("192.0.2.1"), now).unwrap();
        let _second = door.admit(ip("192.0.2.1"), now).unwrap();
        assert!(door.admit(ip("192.0.2.1"), now).is_none());
        drop(first);
        assert!(door.admit(ip("192.0.2.1"), now).is_some());
    }

    #[test]
    fn the_total_is_a_cap_over_all_peers() {
        let now = Instant::now();
        let door = Admission::new(&limits(), now);
        let held: Vec<_> = (1..=3).map(|n| door.admit(ip(&format!("192.0.2.{n}")), now).unwrap()).collect();
        assert_eq!(door.open(), 3);
        assert!(door.admit(ip("192.0.2.9"), now).is_none());
        drop(held);
        assert_eq!(door.open(), 0);
    }

    #[test]
    fn a_flood_from_one_network_is_cut_before_it_uses_up_everybodys_rate() {
        let now = Instant::now();
        let door = Admission::new(&limits(), now);
        let flood = (0..100).filter(|n| door.admit(ip(&format!("2001:db8::{n:x}")), now).is_some()).count();
        assert_eq!(flood, 3, "addresses of one /64 are one peer");
        assert!(door.admit(ip("192.0.2.1"), now).is_some(), "one token of four is left for others");
        assert!(door.admit(ip("192.0.2.2"), now).is_none(), "the total rate is used up");
        assert!(door.admit(ip("192.0.2.2"), now + Duration::from_millis(100)).is_some(), "and fills up with time");
    }

    #[test]
    fn peers_are_remembered_within_a_bound() {
        let now = Instant::now();
        let many = ServeLimits { handshake_burst: u32::MAX, connections: usize::MAX, ..limits() };
        let door = Admission::new(&many, now);
        let taken = (0..=MAX_PEERS as u32).filter(|n| door.admit(IpAddr::V4((0x0a00_0000 + n).into()), now).is_some()).count();
        assert_eq!(taken, MAX_PEERS);
        assert!(door.admit(ip("192.0.2.1"), now + Duration::from_secs(5)).is_some(), "idle peers are forgotten");
    }
}
