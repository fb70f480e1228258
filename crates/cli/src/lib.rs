//! gantry: the command line, with ctr's grammar.
//!
//! One file per command group in `cmd/`; each parses its flags with clap and speaks to the daemon
//! through `gantry-client` only. Started under the name `ctr` the program takes ctr's defaults.
//!
//! Exit codes: 0, 1 for any error with one line `gantry: <text>` on standard error, and the
//! container's own for the commands that wait for one.
#![forbid(unsafe_code)]

mod attach;
mod cli;
mod cmd;
mod docker_config;
mod in_place;
mod labels;
mod output;
mod progress;
mod raw_terminal;
mod registry_flags;
mod session;
mod signals;
mod snapshotter_flag;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::cli::Cli;

/// Runs the program with these arguments, the program's own name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let name = args
        .first()
        .and_then(|a| Path::new(a).file_name())
        .map_or_else(|| "gantry".to_owned(), |n| n.to_string_lossy().into_owned());
    let parsed = Cli::command()
        .name(if name == "ctr" { "ctr" } else { "gantry" })
        .try_get_matches_from(args)
        .and_then(|m| Cli::from_arg_matches(&m));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(usage) if !usage.use_stderr() => {
            output::text(&usage.render().to_string());
            return ExitCode::SUCCESS;
        }
        Err(usage) => {
            output::error(&name, &usage_line(&usage));
            return ExitCode::FAILURE;
        }
    };
    match cli.execute(&name) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            output::error(&name, &e.text());
            ExitCode::FAILURE
        }
    }
}

/// What is wrong with the command line, in one line.
fn usage_line(usage: &clap::Error) -> String {
    let text = usage.to_string();
    let wrong: Vec<&str> = text.lines().take_while(|l| !l.is_empty()).map(str::trim).collect();
    let wrong = wrong.join(" ");
    wrong.strip_prefix("error: ").unwrap_or(&wrong).to_owned()
}
