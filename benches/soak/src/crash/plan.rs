//! What is drawn from the seed: purchases, and the kills that are aimed at them.

use super::tally::{Errand, Victim};
use crate::dice::Dice;
use std::time::Duration;

/// A program of Debian's base system, and what it says.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) file: &'static str,
    pub(crate) arguments: &'static [&'static str],
    pub(crate) says: &'static str,
}

/// One below and one above the size from which interrupted deliveries go on.
pub(crate) const PROGRAMS: [Program; 2] = [
    Program { name: "basename", file: "/usr/bin/basename", arguments: &["chip/bound"], says: "bound\n" },
    Program { name: "bash", file: "/usr/bin/bash", arguments: &["-c", "echo bound"], says: "bound\n" },
];

/// When somebody is killed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moment {
    /// So many thousandths of the time that a purchase usually takes after its beginning.
    After(u64),
    /// So long after the client said that step.
    Step(u16, Duration),
    /// As soon as the card provider holds a price, which nobody else knows then.
    Held,
    /// As soon as it took one.
    Taken,
}

/// One kill.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stroke {
    pub(crate) victim: Victim,
    pub(crate) moment: Moment,
    /// How long a daemon stays away.
    pub(crate) away: Duration,
}

/// One kill in an errand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blow {
    pub(crate) victim: Victim,
    /// So many thousandths of the time that it usually takes after its beginning; a daemon is also hit right after it ended.
    pub(crate) after: u64,
    /// How long a daemon stays away.
    pub(crate) away: Duration,
}

/// One purchase.
pub(crate) struct Wish {
    pub(crate) program: &'static Program,
    pub(crate) card: bool,
    /// Further arguments of `chipbound buy`.
    pub(crate) how: Vec<&'static str>,
    pub(crate) strokes: Vec<Stroke>,
    /// Whether two clients are at it at once, each with a home of its own.
    pub(crate) race: bool,
    /// Whether the customer gives up after the last kill.
    pub(crate) left: bool,
    /// What is done besides.
    pub(crate) errand: Option<(Errand, Vec<Blow>)>,
}

/// The steps that the client says, each a moment to be aimed at.
const STEPS: [u16; 8] = [1001, 1002, 1002, 1007, 1008, 1009, 1010, 1011];

impl Wish {
    /// Draws a purchase in an installation; `databases` says whether its database can be killed.
    pub(crate) fn draw(dice: &mut Dice, databases: bool) -> Self {
        let program = &PROGRAMS[dice.below(PROGRAMS.len() as u64) as usize];
        let card = dice.percent(40);
        let mut how = vec!["--key-mode", dice.one_of(&["direct", "common"])];
        if dice.percent(30) {
            how.push("--own-line");
        }
        if dice.percent(25) {
            how.extend(["--limit-rate", "8M"]);
        }
        let race = dice.percent(25);
        let mut strokes: Vec<_> = (0..1 + dice.below(4)).map(|_| Stroke::draw(dice, card, databases)).collect();
        if race {
            // What the second client needs to know of the order is on the disk then.
            let moment = Moment::Step(1002, Duration::from_micros(dice.below(3000)));
            strokes.insert(0, Stroke { victim: Victim::Client, moment, away: Duration::ZERO });
        }
        let (left, errand) = (dice.percent(15), draw_errand(dice, databases));
        Self { program, card, how, strokes, race, left, errand }
    }
}

fn draw_errand(dice: &mut Dice, databases: bool) -> Option<(Errand, Vec<Blow>)> {
    let errand = match dice.below(100) {
        0..12 => Errand::Publish,
        12..24 => Errand::Transfer,
        24..36 => Errand::Refund,
        36..48 => Errand::Deposit,
        48..60 => Errand::Payout,
        _ => return None,
    };
    let blow = |dice: &mut Dice| {
        let victim = match (errand, dice.below(100)) {
            (_, 0..40) => Victim::Client,
            (Errand::Transfer, 40..65) => Victim::Processor,
            (_, 65..75) if databases => Victim::Database,
            _ => Victim::Server,
        };
        Blow { victim, after: dice.below(1100), away: Duration::from_millis(dice.below(4) * 40) }
    };
    let blows = 1 + dice.below(2);
    Some((errand, (0..blows).map(|_| blow(dice)).collect()))
}

impl Stroke {
    fn draw(dice: &mut Dice, card: bool, databases: bool) -> Self {
        let victim = match dice.below(100) {
            0..35 => Victim::Client,
            35..65 => Victim::Processor,
            65..72 if databases => Victim::Database,
            _ => Victim::Server,
        };
        let moment = match dice.below(100) {
            0..20 if card => Moment::Held,
            20..50 if card => Moment::Taken,
            0..50 => Moment::After(dice.below(1100)),
            // Right after a step, or in the middle of the next.
            50..75 => Moment::Step(dice.one_of(&STEPS), Duration::from_micros(dice.below(3000))),
            _ => Moment::Step(dice.one_of(&STEPS), Duration::from_micros(dice.below(60_000))),
        };
        Self { victim, moment, away: Duration::from_millis(dice.below(4) * 40) }
    }
}
