//! `chipbound-processor`: the tamper-resistant processor and its downloading program, as a daemon.

use chipbound_host::Speech;
use chipbound_processor::command::{Command, execute};
use clap::Parser;
use std::process::ExitCode;

/// The tamper-resistant processor: receives programs that are bound to it, and runs them.
#[derive(Parser)]
#[command(name = "chipbound-processor", version)]
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
