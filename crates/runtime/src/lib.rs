//! Bundles, shim start and reconnect, and the task client.
//!
//! A *task* is the running side of a container. It belongs to a *shim*, a process of its own
//! that outlives the daemon; the daemon keeps no state of it but how to reach it. This crate
//! starts shims ([`Manager`]), finds them again after a restart, speaks their task API (versions
//! 2 and 3, ours and other people's) and cleans up after those that died.
//!
//! - [`plugin`] has the traits that services use: [`plugin::Runtime`] and [`plugin::Task`].
//! - [`Manager`] is the one implementation, over shims.
//! - [`Deadlines`] names how long each call to a shim may take. A shim that does not answer
//!   costs its own callers that long and nobody else anything.
//! - [`EventService`] takes in the events of shims.
//! - [`Sandboxes`] are shims that are a sandbox by themselves; tasks may join them.
//!
//! # On disk
//!
//! ```text
//! <state>/<namespace>/<id>/       the bundle: 0700, or 0710 with the group of a remapped root
//!     config.json                 the runtime spec, byte for byte as the client sent it
//!     rootfs/                     where the shim mounts the root
//!     work -> <root>/<namespace>/<id>
//!     log                         fifo: the shim's log, read by the daemon
//!     shim-binary-path            the shim program
//!     bootstrap.json              {"version", "address", "protocol"} of the running shim
//!     address                     the same of shims before 2.0, which write it themselves
//!     told                        which facts of the task have been published, one a line
//!     sandbox                     id of the pod that the task joined, if any
//! <state>/<namespace>/.<id>/      a bundle being removed
//! <root>/<namespace>/<id>/        what the shim wants to keep over a reboot
//!     checkpoint/                 what the task is restored from, if it came as content
//! ```
//! Whatever else is there belongs to the shim.
#![forbid(unsafe_code)]

mod attach;
mod binary;
mod bootstrap;
mod bundle;
mod config;
mod convert;
mod deadlines;
mod events;
mod journal;
mod launch;
mod log;
mod manager;
mod names;
mod options;
mod phase;
pub mod plugin;
mod sandbox;
mod shim;
mod start;
mod task;
mod types;
mod waits;

pub use config::Config;
pub use deadlines::Deadlines;
pub use events::EventService;
pub use manager::{
    Leftover, LeftoverKind, Manager, ShimProcess, ShimStatus, UpgradeOptions, UpgradeOutcome,
};
pub use sandbox::{SandboxOptions, SandboxStarted, SandboxStatus, Sandboxes};
pub use types::{
    CreateOptions, ExecOptions, Exit, Io, ProcessInfo, State, Status, UNKNOWN_EXIT_STATUS,
};
