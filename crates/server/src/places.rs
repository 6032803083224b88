//! Places for deliveries: so many at once in all, and so many of one account, so that nobody can take them all (attack A16).

use chipbound_wire::{AccountId, Code, Refusal, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// All places of a server.
#[derive(Debug)]
pub(crate) struct Places {
    all: Arc<Semaphore>,
    of_one_account: usize,
    taken: Arc<Mutex<HashMap<AccountId, usize>>>,
}

/// A place among the deliveries, freed when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    share: Option<Share>,
}

/// One of an account's places.
#[derive(Debug)]
struct Share {
    account: AccountId,
    taken: Arc<Mutex<HashMap<AccountId, usize>>>,
}

impl Places {
    /// So many places, so many of them for one account.
    pub(crate) fn new(all: usize, of_one_account: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), of_one_account, taken: Arc::default() }
    }

    /// How many are free.
    pub(crate) fn free(&self) -> usize {
        self.all.available_permits()
    }

    /// Waits until all deliveries have ended.
    pub(crate) async fn all_free(&self, all: u32) {
        // Never closed, so the only answer is that all are free.
        let _ = self.all.acquire_many(all).await;
    }

    /// A place that is nobody's yet; [`Code::Busy`] where all are taken.
    pub(crate) fn take(&self) -> Result<Place> {
        let permit = self.all.clone().try_acquire_owned();
        let permit = permit.map_err(|e| Refusal::new(Code::Busy, "too many deliveries at once").because(e))?;
        Ok(Place { _permit: permit, share: None })
    }

    /// The place becomes one of this account's; [`Code::Busy`] where it has its share already.
    pub(crate) fn give(&self, mut place: Place, account: AccountId) -> Result<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(account).or_default();
        if *count >= self.of_one_account {
            return Err(Refusal::new(Code::Busy, format!("this account has {count} deliveries under way")));
        }
        *count += 1;
        drop(taken);
        place.share = Some(Share { account, taken: self.taken.clone() });
        Ok(place)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.account) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_account_cannot_take_all_places_and_gets_its_own_back() {
        let places = Places::new(3, 2);
        let (ann, bob) = (AccountId([1; 16]), AccountId([2; 16]));
        let give = |account| places.take().and_then(|place| places.give(place, account));
        let first = give(ann).expect("a place");
        let _second = give(ann).expect("another");
        assert_eq!(give(ann).expect_err("her share is taken").code, Code::Busy);
        assert_eq!(places.free(), 1, "what was refused is free again");
        let _third = give(bob).expect("the last one");
        assert_eq!(give(bob).expect_err("all are taken").code, Code::Busy);
        drop(first);
        give(ann).expect("free again");
        assert_eq!(places.taken.lock().expect("whole").len(), 2);
    }
}
