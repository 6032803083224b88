//! `chipbound-authority`: the authority's verbs as a program of its own.

use chipbound_authority::command::{Command, execute};
use chipbound_host::Speech;
use clap::Parser;
use std::process::ExitCode;

/// The certificate authority of chipbound.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object a line
    #[arg(long, global = true)]
    json: bool,
}

fn main() -> ExitCode {
    let Arguments { command, json } = Arguments::parse();
    match execute(command, Speech::new(json)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => {
            eprint!("{}", refusal.for_people());
            ExitCode::from(refusal.code.fault().exit_code())
        }
    }
}
