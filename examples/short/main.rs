//! Short examples, one for each part of the guide.
//!
//! ```text
//! short pull SOCKET REFERENCE          pull an image and tell what it is
//! short run SOCKET IMAGE ARGS...       run a container, show its output
//! short exec SOCKET CONTAINER ARGS...  run a command in a container
//! short attach SOCKET CONTAINER        feed standard input to a container, show its output
//! short checkpoint SOCKET CONTAINER    freeze a container into an image
//! short events SOCKET COUNT            show that many events
//! short embedded DIR                   run a daemon in this process, without a socket
//! ```
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line")]

mod attach;
mod checkpoint;
mod embedded;
mod events;
mod exec;
mod pull;
mod run;

use std::process::ExitCode;

use gantry_client::{Client, Error, Result};

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [verb, place, rest @ ..] = args.as_slice() else {
        eprintln!("usage: short pull|run|exec|attach|checkpoint|events|embedded ...");
        return ExitCode::from(2);
    };
    match example(verb, place, rest).await {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Err(e) => {
            eprintln!("short: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn example(verb: &str, place: &str, rest: &[String]) -> Result<u32> {
    if verb == "embedded" {
        return embedded::example(place.as_ref()).await;
    }
    let namespace = std::env::var("CONTAINERD_NAMESPACE").unwrap_or_else(|_| "default".to_owned());
    let client = Client::builder(place).namespace(namespace).build()?;
    let [first, args @ ..] = rest else {
        return Err(Error::invalid_argument(format!("{verb}: an argument is missing")));
    };
    match verb {
        "pull" => pull::example(&client, first).await,
        "run" => run::example(&client, first, args).await,
        "exec" => exec::example(&client, first, args).await,
        "attach" => attach::example(&client, first).await,
        "checkpoint" => checkpoint::example(&client, first).await,
        "events" => events::example(&client, first).await,
        other => Err(Error::invalid_argument(format!("example {other:?}"))),
    }
}
