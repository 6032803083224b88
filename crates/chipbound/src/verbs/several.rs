//! Several programs that are bought at once.

use super::customer::delivered;
use crate::client::Device;
use crate::client::deliver::{Wish, buy};
use crate::output::{Named, Output};
use chipbound_processor::line::SLOWEST;
use chipbound_wire::error::Fault;
use chipbound_wire::{Code, Refusal, Result};
use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

/// Buys all, `jobs` at once; one that fails stops no other. Afterwards the worst refusal's code says what became of them. Dropped, each
/// of them pauses as it does by itself.
pub(super) async fn buy_all(device: &Device<'_>, output: &Output, mut wishes: Vec<Wish>, jobs: u32) -> Result<()> {
    let count = wishes.len();
    if let Some(twice) = wishes.iter().enumerate().find_map(|(n, w)| wishes[..n].iter().find(|before| before.program == w.program)) {
        return Err(Refusal::new(Code::Conflict, format!("{} is named twice: a program is bought once by one command", twice.program)));
    }
    let lanes = jobs.clamp(1, u32::try_from(count).unwrap_or(jobs));
    for wish in &mut wishes {
        wish.line.rate = wish.line.rate.map(|all| (all / lanes).max(SLOWEST));
    }
    let (queue, refusals) = (RefCell::new(wishes.into_iter()), RefCell::new(Vec::new()));
    let lane = async || {
        loop {
            let next = queue.borrow_mut().next();
            let Some(wish) = next else { return };
            let story = Named::new(output, &wish.program);
            match buy(&Device { story: &story, ..*device }, &wish).await {
                Ok(bought) => delivered(output, &bought),
                Err(refusal) => {
                    story.refusal(&refusal);
                    refusals.borrow_mut().push((wish.program.clone(), refusal));
                }
            }
        }
    };
    all((0..lanes).map(|_| Box::pin(lane()) as Pin<Box<dyn Future<Output = ()>>>).collect()).await;
    summary(output, count, &refusals.into_inner())
}

/// Polls all to their ends.
async fn all(mut lanes: Vec<Pin<Box<dyn Future<Output = ()> + '_>>>) {
    poll_fn(|context| {
        lanes.retain_mut(|lane| lane.as_mut().poll(context).is_pending());
        if lanes.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

fn summary(output: &Output, count: usize, refusals: &[(String, Refusal)]) -> Result<()> {
    let Some((_, worst)) = refusals.iter().max_by_key(|(_, refusal)| weight(refusal.code.fault())) else {
        output.note(&format!("all {count} programs are here"));
        return Ok(());
    };
    let names: Vec<_> = refusals.iter().map(|(program, refusal)| format!("{program} ({})", refusal.code)).collect();
    Err(Refusal::new(worst.code, format!("{} of {count} programs did not come: {}", names.len(), names.join(", "))))
}

/// The worse, the more: what the caller can mend by himself is the least.
fn weight(fault: Fault) -> u8 {
    match fault {
        Fault::Caller => 0,
        Fault::Denied => 1,
        Fault::Environment => 2,
        Fault::Peer => 3,
        Fault::Us => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_several_refusals_is_the_commands() {
        let output = Output::new(true);
        summary(&output, 2, &[]).expect("all came");
        let refused = |code| ("tool".to_owned(), Refusal::new(code, "why"));
        let refusals = [refused(Code::UnknownProgram), refused(Code::ReceiptMismatch), refused(Code::InsufficientFunds)];
        let summed = summary(&output, 4, &refusals).expect_err("three did not");
        assert_eq!(summed.code, Code::ReceiptMismatch, "the peer's fault is worse than the caller's");
        assert!(summed.detail.starts_with("3 of 4 programs did not come: tool (unknown_program), tool (receipt_mismatch)"), "{summed}");
    }
}
