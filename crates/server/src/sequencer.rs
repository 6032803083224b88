//! Settles orders in batches: one transaction, and so one commit, for all that wait. Receipts of a seller are numbered one after
//! another without a gap, and all receipts stand in one log; if each order had a commit of its own, each would wait for that of the
//! one before.

use crate::storage::{Repository, SettledOrder, Settling};
use chipbound_wire::{Code, Refusal, Result};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// Orders in one transaction.
const BATCH: usize = 64;

/// The one place of a server where orders are settled. Several servers on one database stay right by its locks.
pub struct Sequencer<R> {
    repository: R,
    queue: Arc<Mutex<Queue>>,
}

#[derive(Default)]
struct Queue {
    /// Whether somebody empties it.
    attended: bool,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    settling: Settling,
    answer: oneshot::Sender<Result<SettledOrder>>,
}

impl<R: Repository> Sequencer<R> {
    /// A sequencer that settles in those books.
    pub fn new(repository: R) -> Self {
        Self { repository, queue: Arc::default() }
    }

    /// Settles an order; what is on record when this returns is on the disk. Where the caller goes away meanwhile it is settled
    /// all the same.
    pub async fn settle(&self, settling: Settling) -> Result<SettledOrder> {
        let (answer, answered) = oneshot::channel();
        let attended = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.waiting.push_back(Waiting { settling, answer });
            std::mem::replace(&mut queue.attended, true)
        };
        if !attended {
            tokio::spawn(attend(self.repository.clone(), self.queue.clone()));
        }
        answered.await.map_err(|e| Refusal::new(Code::Internal, "a settlement ended without an answer").because(e))?
    }
}

/// Empties the queue, batch after batch.
async fn attend<R: Repository>(repository: R, queue: Arc<Mutex<Queue>>) {
    loop {
        let batch: Vec<_> = {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            if queue.waiting.is_empty() {
                queue.attended = false;
                return;
            }
            let most = queue.waiting.len().min(BATCH);
            queue.waiting.drain(..most).collect()
        };
        let (settlings, answers): (Vec<_>, Vec<_>) = batch.into_iter().map(|w| (w.settling, w.answer)).unzip();
        if answers.len() > 1
            && let Ok(settled) = repository.settle(settlings.clone()).await
        {
            settled.into_iter().zip(answers).for_each(|(settled, answer)| drop(answer.send(Ok(settled)))); // Or whoever asked went away.
            continue;
        }
        // There is only one, or one of them is refused: each by itself.
        for (settling, answer) in settlings.into_iter().zip(answers) {
            let alone = repository.settle(vec![settling]).await;
            let first = |mut settled: Vec<_>| settled.pop().ok_or_else(|| Refusal::new(Code::Internal, "nothing was settled"));
            drop(answer.send(alone.and_then(first)));
        }
    }
}
