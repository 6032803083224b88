//! The command `chipbound`; everything is in its library, but for its beginning: the front of `chipbound_interpreter`, which does
//! `chipbound run` by itself and leads here for everything else.

use chipbound_interpreter as _;

fn main() -> std::process::ExitCode {
    chipbound::cli::main()
}
