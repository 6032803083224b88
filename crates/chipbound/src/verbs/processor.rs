//! The processor's verbs: its daemon's own, and what a client asks of it.

use super::bytes;
use crate::cli::Common;
use crate::control::{Description, describe, enroll, forget};
use crate::home::Home;
use crate::output::Output;
use crate::receipts::moment;
use chipbound_host::Speech;
use chipbound_wire::{Digest, ProgramId, Result};
use clap::Subcommand;
use serde_json::json;
use std::path::PathBuf;

/// What is done with a processor.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// The daemon's own.
    #[command(flatten)]
    Daemon(chipbound_processor::command::Command),
    /// Have the authority certify the running processor; later commands find it where it was enrolled
    #[command(
        after_help = "Example:\n  chipbound processor enroll --authority https://127.0.0.1:7701 --voucher cbv1-… --socket processor/processor.sock\n\nThe authority's operator makes the voucher: chipbound authority voucher --role processor"
    )]
    Enroll {
        /// The authority's address, https://host:port
        #[arg(long, value_name = "URL")]
        authority: String,
        /// The voucher, or - for the first line of stdin
        #[arg(long, value_name = "VOUCHER")]
        voucher: String,
        /// The processor's socket, as --processor
        #[arg(long, value_name = "SOCKET")]
        socket: Option<PathBuf>,
    },
    /// Show who the processor is
    #[command(after_help = "Example:\n  chipbound processor show")]
    Show,
    /// Drop opened programs and data from the processor's memory; running programs go on
    #[command(
        after_help = "Example:\n  chipbound processor forget\n  chipbound processor forget mfzwizdb3nyxi2lpnzxw63tfobzg6y3f/perl\n\nThe next start verifies and opens anew. Only root and the processor's own user may ask for it."
    )]
    Forget {
        /// The id of one program [default: all]
        program: Option<ProgramId>,
    },
}

/// Does it.
pub fn execute(verb: Verb, common: &Common, output: &Output) -> Result<()> {
    let home = || Home::locate(common.home.as_deref());
    match verb {
        Verb::Daemon(command) => chipbound_processor::command::execute(command, Speech::new(common.json)),
        Verb::Enroll { authority, voucher, socket } => {
            let home = home()?;
            let socket = home.processor(socket.as_deref().or(common.processor.as_deref()));
            let description = enroll(&socket, &authority, &super::voucher(voucher)?)?;
            home.remember_processor(&socket)?;
            home.remember_authority(&description.root)?;
            show(&description, output);
            Ok(())
        }
        Verb::Show => {
            show(&describe(&home()?.processor(common.processor.as_deref()))?, output);
            Ok(())
        }
        Verb::Forget { program } => {
            let (builds, freed) = forget(&home()?.processor(common.processor.as_deref()), program)?;
            let text = if builds == 0 { "nothing was kept".to_owned() } else { format!("dropped {builds}, {}", bytes(freed)) };
            output.result(text, &json!({ "dropped": builds, "bytes": freed }));
            Ok(())
        }
    }
}

fn show(description: &Description, output: &Output) {
    let Description { processor, class, valid_until, pid, root, .. } = description;
    let certified = valid_until.map_or_else(|| "not enrolled".to_owned(), |t| format!("certified until {}", moment(t)));
    let authority = (!root.is_empty()).then(|| Digest::of(root));
    let under = authority.map_or_else(String::new, |a| format!("\nauthority {a}"));
    let text = format!("processor {processor}\nkey store {class}\n{certified}{under}\ndaemon's process {pid}");
    output.result(text, &json!({ "processor": processor, "class": class, "valid_until": valid_until, "authority": authority, "pid": pid }));
}
