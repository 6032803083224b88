//! Threads for deliveries: each stays a while after its delivery, for the next one. There are as many as there were deliveries at
//! once, which the places limit.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a thread waits for the next delivery.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// The threads of one server.
#[derive(Clone, Default)]
pub(crate) struct Threads(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    more: Condvar,
}

/// Never more jobs than threads that wait.
#[derive(Default)]
struct State {
    waiting: usize,
    jobs: VecDeque<Job>,
}

impl Threads {
    /// Runs `job` on a thread that waits, or else on a new one; fails where the system gives none.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let job: Job = Box::new(job);
        let mut state = self.lock();
        if state.waiting > state.jobs.len() {
            state.jobs.push_back(job);
            self.0.more.notify_one();
            return Ok(());
        }
        drop(state);
        let threads = self.clone();
        std::thread::Builder::new().name("delivery".to_owned()).spawn(move || threads.work(job)).map(drop)
    }

    fn work(&self, first: Job) {
        let mut job = first;
        loop {
            job();
            let mut state = self.lock();
            state.waiting += 1;
            let waited = self.0.more.wait_timeout_while(state, IDLE, |state| state.jobs.is_empty());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
            match state.jobs.pop_front() {
                Some(next) => job = next,
                None => return,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{channel, sync_channel};
    use std::thread::current;

    #[test]
    fn jobs_at_once_have_threads_of_their_own_and_later_ones_use_them_again() {
        let threads = Threads::default();
        let (told, said) = channel();
        let meet = |job: usize| {
            let (told, (go, wait)) = (told.clone(), sync_channel::<()>(0));
            threads
                .run(move || {
                    told.send((job, current().id())).expect("somebody listens");
                    let _ = wait.recv(); // Until all have begun.
                })
                .expect("a thread");
            go
        };
        let gates: Vec<_> = (0..3).map(meet).collect();
        let first: Vec<_> = (0..3).map(|_| said.recv().expect("a job began").1).collect();
        assert!(first[0] != first[1] && first[1] != first[2] && first[0] != first[2]);
        drop(gates);
        while threads.lock().waiting < 3 {
            std::thread::yield_now();
        }
        let gates: Vec<_> = (3..7).map(meet).collect();
        let again: Vec<_> = (0..4).map(|_| said.recv().expect("a job began").1).collect();
        assert_eq!(again.iter().filter(|id| first.contains(id)).count(), 3, "the three were used again, and one is new");
        drop(gates);
    }

    #[test]
    fn a_job_that_panics_takes_no_place_of_another() {
        let threads = Threads::default();
        threads.run(|| panic!("a fault of ours")).expect("a thread");
        let (told, said) = channel();
        threads.run(move || told.send(()).expect("somebody listens")).expect("a thread");
        said.recv().expect("the next job ran");
    }
}
