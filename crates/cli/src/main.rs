//! The program `gantry`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    gantry_cli::main(std::env::args_os())
}
