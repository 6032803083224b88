//! Whoever is killed in the middle of a purchase, a release, a transfer, a refund, a deposit or a payout, nobody pays twice or for nothing,
//! what is given back, added or paid out is so once, and whoever goes on gets the program. `./soak crash` is the same at length.

use chipbound_soak::crash::{Errand, Size, Victim, run};
use std::path::Path;
use std::sync::atomic::AtomicBool;

#[test]
fn purchases_that_are_killed_at_every_step_on_both_databases_leave_books_without_a_fault() {
    let size = Size { seed: 20_261_122, kills: 80, shops: 1, lanes: 2, order_seconds: 20 };
    let tally = run(Path::new(env!("CARGO_BIN_EXE_chipbound")), &size, &AtomicBool::new(false)).expect("a run");
    println!("seed {}\n{tally}", size.seed);
    assert_eq!(tally.violations, Vec::<String>::new());
    assert_eq!(tally.kills.values().sum::<u32>(), size.kills);
    for victim in [Victim::Server, Victim::Client, Victim::Processor] {
        assert!(tally.killed(victim) > 0, "{victim:?} was never killed");
    }
    for errand in [Errand::Publish, Errand::Transfer, Errand::Refund, Errand::Deposit, Errand::Payout] {
        assert!(tally.errands.contains_key(&errand), "no {errand:?}");
    }
    assert_eq!(tally.charges, tally.receipts);
}
