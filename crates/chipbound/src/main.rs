//! The command `chipbound`; everything is in its library.

fn main() -> std::process::ExitCode {
    chipbound::cli::main()
}
