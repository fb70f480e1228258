//! gantryd: configuration, wiring, listeners and in-process use.
//!
//! [`Daemon::start`] opens everything below the configured directories and serves; the program
//! `gantryd` is little more than that with signals around it. [`Daemon::start_embedded`] serves
//! inside the process alone, over [`Running::channel`]. [`Daemon::builder`] takes parts of the
//! embedder's own, such as another [`Runtime`](gantry_runtime::plugin::Runtime).
//!
//! There is no dump of stacks on SIGUSR1: async tasks have none worth printing. Debug-level logs
//! and the metrics endpoint are what to look at instead.
#![forbid(unsafe_code)]

pub mod args;
mod catch_panic;
mod client;
mod connection;
mod count_calls;
mod daemon;
mod dirs;
mod http;
mod identity;
mod imaging;
pub mod logging;
mod marker;
pub mod memory;
pub mod oci_hook;
mod plugins;
mod proxies;
pub mod publish;
pub mod runtime;
mod server;
mod shims;
mod snapshotters;
mod socket;
mod stores;
mod wiring;

pub use gantry_config as config;

pub use daemon::{Builder, Daemon, Running};
