//! How long a start stops a process. Prints, asserts nothing: `cargo test --release -p chipbound-loader --test timing -- --ignored --nocapture`.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Case, Client};

const ROUNDS: usize = 200;

#[test]
#[ignore = "prints times and asserts nothing"]
fn from_the_exec_stop_to_the_detach() {
    let commands: [(&str, &[&str]); 4] =
        [("/bin/true", &[]), ("/bin/ls", &["/"]), ("/usr/bin/python3", &["-V"]), ("/usr/bin/openssl", &["version"])];
    for (program, args) in commands.into_iter().filter(|(program, _)| Path::new(program).exists()) {
        let case = Case::of(std::fs::canonicalize(program).unwrap());
        case.seal();
        let image = case.image();
        let mut times: Vec<Duration> = (0..ROUNDS)
            .map(|_| {
                let client = Client::spawn(&case, args, "");
                let started = client.start(&image).unwrap();
                client.output();
                started.stopped
            })
            .collect();
        times.sort();
        println!("{program}: median {:?}, {:?} to {:?}", times[ROUNDS / 2], times[0], times[ROUNDS * 95 / 100]);
    }
}
