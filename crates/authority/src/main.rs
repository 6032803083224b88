//! `chipbound-authority`: the authority's verbs as a program of its own.

use chipbound_authority::command::{Command, execute};
use clap::Parser;
use std::process::ExitCode;

/// The certificate authority of chipbound.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    match execute(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => {
            eprint!("{}", refusal.for_people());
            ExitCode::from(refusal.code.fault().exit_code())
        }
    }
}
