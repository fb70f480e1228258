//! Development tasks: `cargo xtask <task>`.
//!
//! | task | what it does |
//! |---|---|
//! | `codegen` | compiles `crates/api/proto` and writes `crates/api/src/generated` |
//! | `wire DIR` | writes `methods.tsv`, `fields.tsv` and `enums.tsv` of our own proto files to DIR |
//! | `tidy` | checks the rules of the tree that no compiler checks |
//! | `api` | writes `docs/api`: the public API of the libraries |
//!
//! The same checks run as tests (`cargo test -p xtask`): generated code that is stale, a wire
//! that differs from the recorded facts and an untidy tree all fail there.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a command line tool")]

mod api;
mod codegen;
mod tested;
mod tidy;
mod ttrpc_gen;
mod wire;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What every task returns; the text is for a person at a terminal.
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["codegen"] => codegen::run(&root().join(codegen::OUTPUT_DIR)),
        ["wire", dir] => wire::run(Path::new(dir)),
        ["tidy"] => tidy::run(&root()),
        ["api"] => api::run(&root(), false),
        _ => Err("usage: cargo xtask codegen | wire DIR | tidy | api".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            println!("error: {err}");
            ExitCode::FAILURE
        }
    }
}

/// The top of the work tree.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask has a parent").to_owned()
}
