//! Caps: how much may go on at once (A16).

use chipbound_wire::{Code, Refusal, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A number of places, in all and for each user.
#[derive(Debug)]
pub struct Places {
    what: &'static str,
    total: usize,
    per_user: usize,
    taken: Mutex<HashMap<u32, usize>>,
}

/// A place that is taken until this is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    uid: u32,
}

impl Places {
    /// `total` places, at most `per_user` of them for one user. `what` names them in refusals.
    #[must_use]
    pub fn new(what: &'static str, total: usize, per_user: usize) -> Arc<Self> {
        Arc::new(Self { what, total, per_user, taken: Mutex::default() })
    }

    /// Takes a place for that user, or refuses with [`Code::Busy`].
    pub fn enter(self: &Arc<Self>, uid: u32) -> Result<Place> {
        let mut taken = self.lock();
        let own = taken.get(&uid).copied().unwrap_or(0);
        if own >= self.per_user || taken.values().sum::<usize>() >= self.total {
            return Err(Refusal::new(Code::Busy, format!("as many {} as this processor takes at once", self.what)));
        }
        taken.insert(uid, own + 1);
        Ok(Place { places: Arc::clone(self), uid })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        match taken.get_mut(&self.uid) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.uid)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_all_places_and_a_place_left_is_free_again() {
        let places = Places::new("things", 3, 2);
        let held = [places.enter(1).expect("first"), places.enter(1).expect("second")];
        assert_eq!(places.enter(1).expect_err("a third for one user").code, Code::Busy);
        let other = places.enter(2).expect("another user");
        assert_eq!(places.enter(3).expect_err("all taken").code, Code::Busy);
        drop(other);
        drop(places.enter(3).expect("free again"));
        drop(held);
        assert!(places.lock().is_empty());
    }
}
