//! `chipbound-server`: the server's verbs as a program of its own.

use chipbound_host::Speech;
use chipbound_server::command::{Command, execute};
use clap::Parser;
use std::process::ExitCode;

/// The program distribution device of chipbound.
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
