//! The simulation, with few seeds; `./soak simulation` plays many.

use chipbound_soak::simulation::{folder, play};

#[test]
fn whatever_is_lost_repeated_late_or_killed_nobody_pays_twice_or_for_nothing_and_everybody_gets_the_program() {
    for seed in 0..24 {
        let story = play(seed, &folder()).unwrap_or_else(|why| panic!("{why}"));
        println!("seed {seed}: {} events, {} paid, {} came to nothing", story.events.len(), story.paid, story.ended);
    }
}

#[test]
fn a_seed_tells_the_same_story_each_time() {
    let [first, second] = [0, 1].map(|_| play(4711, &folder()).unwrap_or_else(|why| panic!("{why}")));
    assert_eq!(first, second);
}
