//! The simulated network: what becomes of a message, and a stream that is cut after so many bytes.

use crate::dice::Dice;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What becomes of a request on the first path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It arrives and is answered.
    Answered,
    /// It never arrives.
    Lost,
    /// It arrives; the answer does not.
    AnswerLost,
    /// It arrives twice, and the second answer is heard.
    Twice,
    /// It is given up, and arrives when nobody expects it any more.
    Late,
}

impl Fate {
    pub(super) fn draw(dice: &mut Dice) -> Self {
        match dice.below(10) {
            0 => Self::Lost,
            1 => Self::AnswerLost,
            2 => Self::Twice,
            3 => Self::Late,
            _ => Self::Answered,
        }
    }
}

/// Where a second path is cut: after so many bytes in one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Towards the processor, or towards the server.
    pub(super) to_processor: bool,
    /// Bytes that still arrive.
    pub(super) after: u64,
}

impl Cut {
    /// In half of all cases: somewhere in the handshake, in between, or in the body of so many bytes.
    pub(super) fn draw(dice: &mut Dice, body: u64) -> Option<Self> {
        let cut = dice.percent(40);
        let (to_processor, bytes) = (dice.percent(67), 12_000 + if dice.percent(50) { body } else { 0 });
        cut.then(|| Self { to_processor, after: dice.below(bytes) })
    }
}

/// One direction of a stream.
#[derive(Default)]
struct Lane {
    bytes: VecDeque<u8>,
    /// How many more arrive; none for all.
    left: Option<u64>,
    closed: bool,
}

/// A direction that both ends see. What is written beyond its cut is swallowed, and the reader finds the end there: whatever the
/// threads' order, each end reads the same bytes.
#[derive(Default)]
struct Shared {
    lane: Mutex<Lane>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Lane> {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One end of a stream in memory; dropped, the other end finds the end.
pub(super) struct End {
    incoming: Arc<Shared>,
    outgoing: Arc<Shared>,
}

/// The processor's end and the server's.
pub(super) fn stream(cut: Option<Cut>) -> (End, End) {
    let lane = |towards_processor| {
        let left = cut.filter(|cut| cut.to_processor == towards_processor).map(|cut| cut.after);
        Arc::new(Shared { lane: Mutex::new(Lane { left, ..Lane::default() }), changed: Condvar::new() })
    };
    let (to_processor, to_server) = (lane(true), lane(false));
    let processor = End { incoming: to_processor.clone(), outgoing: to_server.clone() };
    (processor, End { incoming: to_server, outgoing: to_processor })
}

impl Read for End {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut lane = self.incoming.lock();
        while lane.bytes.is_empty() && !lane.closed && lane.left != Some(0) {
            lane = self.incoming.changed.wait(lane).unwrap_or_else(PoisonError::into_inner);
        }
        lane.bytes.read(buffer)
    }
}

impl Write for End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lane = self.outgoing.lock();
        let arrive = lane.left.map_or(bytes.len(), |left| bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        lane.bytes.extend(&bytes[..arrive]);
        lane.left = lane.left.map(|left| left - arrive as u64);
        self.outgoing.changed.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        for shared in [&self.incoming, &self.outgoing] {
            shared.lock().closed = true;
            shared.changed.notify_all();
        }
    }
}
