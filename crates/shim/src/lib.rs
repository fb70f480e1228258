//! `containerd-shim-runc-v2`: one small process per container or pod.
//!
//! A daemon executes the program three ways:
//! - `start` ([`bootstrap`](self)): finds or starts the serving process, prints its address, ends;
//! - `delete`: cleans up after a shim that died;
//! - `-info`, `-v`: tells about itself and the runtime.
//!
//! One shim executes the next (`takeover`): a live upgrade, see [`upgrade`](self).
//!
//! The **serving process** answers the task service over ttrpc until its last container is deleted
//! and it is told to shut down. It has one thread at rest, keeps its facts in the bundle
//! ([`state`]), makes containers through one seam ([`engine`]) and follows them by their exits
//! ([`reaper`]). It takes its listening socket as standard input, so a daemon that wants to save
//! an exec can skip `start` altogether: bind and listen itself, then run the program with the same
//! flags and no action, in the bundle, with the socket as standard input.
//!
//! Not here: images, snapshots, networks. The daemon hands over mounts that are ready to make.
#![forbid(unsafe_code)]

mod args;
mod blocking;
mod bootstrap;
mod cgroup;
mod checkpoint;
mod cleanup;
mod clock;
mod container;
pub mod engine;
mod events;
mod fd;
mod info;
mod log;
mod options;
mod phase;
mod process;
pub mod reaper;
mod sandbox;
mod serve;
mod socket;
mod spec;
pub mod state;
mod stdio;
mod task;
mod upgrade;

use std::io::Write as _;
use std::process::ExitCode;

use gantry_errdefs::Result;

pub use args::{Action, Args};

/// The version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The program. Its answer, if there is one, is all that is ever written to standard output;
/// an error goes to standard error.
pub fn main() -> ExitCode {
    let slots = stdio::Slots::reserve();
    match run(slots) {
        Ok(answer) => match std::io::stdout().write_all(&answer) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(err) => {
            // There is nobody else to tell.
            let _ = writeln!(std::io::stderr(), "containerd-shim-runc-v2: {err}");
            log::warning!("{err}");
            ExitCode::FAILURE
        }
    }
}

fn run(slots: stdio::Slots) -> Result<Vec<u8>> {
    let args = Args::parse(std::env::args().skip(1))?;
    match args.action {
        Some(Action::Version) => Ok(info::version().into_bytes()),
        Some(Action::Info) => info::runtime(),
        Some(Action::Start) => bootstrap::start(&args),
        Some(Action::Delete) => cleanup::delete(&args),
        Some(Action::TakeOver) if args.check => upgrade::check(),
        Some(Action::TakeOver) => serve::take_over(&args, slots).map(|()| Vec::new()),
        Some(Action::Serve) | None => serve::serve(&args, slots).map(|()| Vec::new()),
    }
}
