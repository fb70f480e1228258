//! A small Docker-like engine on `gantry-libcontainerd`.
//!
//! ```text
//! engine DIR serve CONTAINERD-SOCKET [NAMESPACE]
//! engine DIR create NAME IMAGE [--restart no|always|on-failure:N] -- ARGS...
//! engine DIR start|stop|rm|logs NAME
//! engine DIR exec NAME -- ARGS...
//! engine DIR ps
//! engine DIR events
//! ```
//!
//! `serve` is the engine; everything else asks it over a socket in `DIR`. It may be killed at any
//! time: containers run on, and the next `serve` takes them up with their logs.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line")]

mod api;
mod engine;
mod logs;
mod restart;
mod server;
mod store;

use std::path::PathBuf;
use std::process::ExitCode;

use api::Request;
use gantry_client::{Error, Result};
use restart::Policy;

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(dir), Some(verb)) = (args.next(), args.next()) else {
        eprintln!("usage: engine DIR serve|create|start|stop|rm|logs|exec|ps|events ...");
        return ExitCode::from(2);
    };
    let done = run(PathBuf::from(dir), &verb, args.collect()).await;
    match done {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("engine: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn run(dir: PathBuf, verb: &str, args: Vec<String>) -> Result<u8> {
    let (own, command) = match args.iter().position(|a| a == "--") {
        Some(at) => (&args[..at], args[at + 1..].to_vec()),
        None => (&args[..], Vec::new()),
    };
    let name = own.first().cloned().unwrap_or_default();
    let request = match verb {
        "serve" => {
            let namespace = own.get(1).map_or("engine", String::as_str);
            server::serve(&dir, &name, namespace).await?;
            return Ok(0);
        }
        "create" => {
            let restart = match own.iter().position(|a| a == "--restart") {
                Some(at) => own.get(at + 1).map_or(Ok(Policy::No), |p| p.parse())?,
                None => Policy::No,
            };
            let image = own.get(1).cloned().unwrap_or_default();
            Request::Create { name, image, args: command, restart }
        }
        "start" => Request::Start { name },
        "stop" => Request::Stop { name },
        "rm" => Request::Remove { name },
        "logs" => Request::Logs { name },
        "exec" => Request::Exec { name, args: command },
        "ps" => Request::List,
        "events" => Request::Events,
        other => return Err(Error::invalid_argument(format!("command {other:?}"))),
    };
    api::ask(&dir, &request).await
}
