//! The command line: `run` first and alone, everything else by clap.

use crate::home::Home;
use crate::output::{Output, exit_code};
use crate::run::{Wishes, run};
use crate::verbs::{customer, installed, package, processor, token, vendor};
use chipbound_host::Speech;
use chipbound_wire::{Code, Refusal, Result};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Buy programs that run on one tamper-resistant processor alone.
#[derive(Parser, Debug)]
#[command(name = "chipbound", version, arg_required_else_help = true, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

/// What every verb takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Common {
    /// Folder of log-in and receipts [default: $CHIPBOUND_HOME, else ~/.config/chipbound]
    #[arg(long, global = true, value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// The processor's socket [default: $CHIPBOUND_PROCESSOR, else the one last enrolled, else /run/chipbound/processor.sock]
    #[arg(long, global = true, value_name = "SOCKET")]
    pub processor: Option<PathBuf>,
    /// Print one JSON object a line
    #[arg(long, global = true)]
    pub json: bool,
}

/// The verbs.
#[derive(Subcommand, Debug)]
enum Verb {
    #[command(flatten)]
    Customer(customer::Verb),
    #[command(flatten)]
    Package(package::Verb),
    #[command(flatten)]
    Installed(installed::Verb),
    /// Publish a program or any other file, as its vendor
    #[command(after_help = vendor::PUBLISH_EXAMPLE)]
    Publish(vendor::Publish),
    /// The vendor's identity
    #[command(subcommand)]
    Vendor(vendor::Verb),
    /// API tokens, for programs that use a server in your name
    #[command(subcommand)]
    Token(token::Verb),
    /// The tamper-resistant processor of this machine
    #[command(subcommand)]
    Processor(processor::Verb),
    /// The certification authority
    #[command(subcommand)]
    Authority(chipbound_authority::command::Command),
    /// The program distribution server
    #[command(subcommand)]
    Server(chipbound_server::command::Command),
    /// Accounts and their money, for the server's operator
    #[command(subcommand)]
    Account(chipbound_server::command::AccountCommand),
    /// Show the whole way in one command: authority, server, two processors, a purchase, and every promise checked
    Demo(crate::demo::Arguments),
}

/// The command, from its arguments to its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let Some((common, rest)) = parse_run(&arguments) {
        return ExitCode::from(run_package(&common, &Wishes::default(), &rest));
    }
    let told_apart = arguments.iter().any(|argument| argument == "--");
    let cli = Cli::parse_from(arguments);
    if let Verb::Package(package::Verb::Run { wishes, package }) = &cli.verb {
        if let Some(option) = package.first().filter(|first| !told_apart && first.as_encoded_bytes().starts_with(b"-")) {
            no_such_option(&option.to_string_lossy());
        }
        return ExitCode::from(run_package(&cli.common, wishes, package));
    }
    let output = Output::new(cli.common.json);
    match execute(cli, &output).and_then(|()| output.unwritten().map_or(Ok(()), Err)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => {
            output.refusal(&refusal);
            ExitCode::from(exit_code(&refusal))
        }
    }
}

/// `run` takes whatever follows as the package and its arguments, so that clap does not see an option that is mistyped before it.
fn no_such_option(option: &str) -> ! {
    let text = format!("unexpected argument '{option}' found before the package (of one that is called so: run -- {option})");
    Cli::command().error(ErrorKind::UnknownArgument, text).exit()
}

fn execute(cli: Cli, output: &Output) -> Result<()> {
    let Cli { common, verb } = cli;
    match verb {
        Verb::Authority(command) => chipbound_authority::command::execute(command, Speech::new(common.json)),
        Verb::Server(command) => chipbound_server::command::execute(command, Speech::new(common.json)),
        Verb::Account(command) => chipbound_server::command::execute_account(command, Speech::new(common.json)),
        Verb::Demo(arguments) => crate::demo::execute(arguments, common.json),
        Verb::Processor(verb) => processor::execute(verb, &common, output),
        Verb::Installed(verb) => in_shell(|| installed::execute(verb, &common, output)),
        Verb::Package(verb) => in_shell(|| package::execute(verb, &common, output)),
        Verb::Customer(verb) => match verb.pauses() {
            true => in_shell_until(PAUSED, || customer::execute(verb, &common, output)),
            false => in_shell(|| customer::execute(verb, &common, output)),
        },
        Verb::Publish(publish) => in_shell(|| vendor::publish(publish, &common, output)),
        Verb::Token(verb) => in_shell(|| token::execute(verb, &common, output)),
        Verb::Vendor(verb) => in_shell(|| vendor::execute(verb, &common, output)),
    }
}

/// What Ctrl-C says of most verbs, and of those that bring packages.
const STOPPED: &str = "stopped before the end; nothing half-written is left";
const PAUSED: &str = "paused; what came of a large package is kept by the processor, see chipbound downloads";

/// Runs an asynchronous verb to its end, or to Ctrl-C or SIGTERM: then everything it began is undone as it is dropped.
pub(crate) fn in_shell<F: Future<Output = Result<()>>>(verb: impl FnOnce() -> F) -> Result<()> {
    in_shell_until(STOPPED, verb)
}

fn in_shell_until<F: Future<Output = Result<()>>>(stopped: &str, verb: impl FnOnce() -> F) -> Result<()> {
    let failed = |e| Refusal::io("the command's runtime", e);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = verb() => outcome,
            cancelled = cancelled(stopped) => Err(cancelled),
        }
    });
    runtime.shutdown_background(); // A thread that still waits for a processor must not keep the command.
    outcome
}

/// Waits for Ctrl-C or SIGTERM.
pub(crate) async fn cancelled(stopped: &str) -> Refusal {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () };
            Refusal::new(Code::Cancelled, stopped)
        }
        (Err(e), _) | (_, Err(e)) => Refusal::io("the command's signals", e),
    }
}

/// `run PACKAGE ARGS…` without clap, so that a program starts quickly. None for every other command line, help included.
fn parse_run(arguments: &[OsString]) -> Option<(Common, Vec<OsString>)> {
    let [_, verb, rest @ ..] = arguments else { return None };
    if verb != "run" {
        return None;
    }
    let mut common = Common { home: None, processor: None, json: false };
    let mut rest = rest;
    loop {
        match rest {
            [option, value, tail @ ..] if option == "--processor" => (common.processor, rest) = (Some(value.into()), tail),
            [option, value, tail @ ..] if option == "--home" => (common.home, rest) = (Some(value.into()), tail),
            [option, tail @ ..] if option == "--" && !tail.is_empty() => return Some((common, tail.to_vec())),
            [first, ..] if !first.as_encoded_bytes().starts_with(b"-") => return Some((common, rest.to_vec())),
            _ => return None,
        }
    }
}

fn run_package(common: &Common, wishes: &Wishes, arguments: &[OsString]) -> u8 {
    let told = common.processor.as_deref();
    // Without a home there is still the socket that is told or usual.
    let socket = Home::locate(common.home.as_deref())
        .map_or_else(|_| told.unwrap_or(Path::new(crate::home::SYSTEM_SOCKET)).to_owned(), |h| h.processor(told));
    let output = Output::new(common.json);
    match run(&socket, wishes, arguments, &output) {
        Ok(()) => 0,
        Err((refusal, code)) => {
            output.refusal(&refusal);
            code
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    /// Splits a line as a shell does where it knows quotes alone, up to a pipe.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut quote) = (vec![String::new()], None);
        for c in line.split(" | ").next().unwrap().chars() {
            match (c, quote) {
                ('"' | '\'', None) => quote = Some(c),
                (c, Some(q)) if c == q => quote = None,
                (' ', None) => words.push(String::new()),
                (c, _) => words.last_mut().unwrap().push(c),
            }
        }
        words
    }

    fn check_examples(command: &clap::Command, path: &str, seen: &mut usize) {
        for verb in command.get_subcommands().filter(|v| v.get_name() != "help") {
            let path = format!("{path} {}", verb.get_name());
            if verb.has_subcommands() {
                check_examples(verb, &path, seen);
                continue;
            }
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example:"), "{path} has no example");
            for line in help.lines().filter_map(|l| l.strip_prefix("  ")).filter(|l| l.starts_with("chipbound ")) {
                Cli::try_parse_from(words(line)).unwrap_or_else(|e| panic!("{line}\n{e}"));
                *seen += 1;
            }
        }
    }

    #[test]
    fn every_verb_has_an_example_and_every_example_is_a_good_command_line() {
        let mut seen = 0;
        check_examples(&Cli::command(), "chipbound", &mut seen);
        assert!(seen > 25, "only {seen} examples were found");
    }

    #[test]
    fn whatever_follows_the_package_is_the_programs_own() {
        let (common, rest) = parse_run(&strings("chipbound run --processor /p ./app --help --json -- x")).unwrap();
        assert_eq!(common.processor, Some(PathBuf::from("/p")));
        assert_eq!(rest, strings("./app --help --json -- x"));
        let (_, rest) = parse_run(&strings("chipbound run -- -odd-name")).unwrap();
        assert_eq!(rest, strings("-odd-name"));
        for other in ["chipbound run --help", "chipbound run", "chipbound buy run", "chipbound run --unknown app"] {
            assert!(parse_run(&strings(other)).is_none(), "{other}");
        }
    }
}
