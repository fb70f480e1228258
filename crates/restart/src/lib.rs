//! The restart monitor: keeps containers in the state their labels ask for.
//!
//! A client asks by labels on the container record (`containerd.io/restart.*`, see [`labels`]);
//! [`Monitor`] starts the task again when it ends, by Docker's rules (see [`policy`]). Nothing is
//! polled: an exit, a deletion and a change of the record wake the one container they are about.
//!
//! - **When.** At once after the first exit, then with a growing pause ([`Backoff`]). What a client
//!   may still be about to do itself gets [`Config::interval`]: the first start of a container that
//!   was just created, and the end of a task whose status is to be `stopped`.
//! - **Restart of the daemon.** All that is remembered is in the labels and in the task. Everything
//!   is looked at again when the daemon starts, which for `always` also starts what was stopped
//!   explicitly.
//! - **Started by hand.** A task that a client starts begins anew: its count of restarts goes back
//!   to nothing, and it is no longer explicitly stopped.
//!
//! Not here: making shims and tasks; that is the runtime's ([`gantry_runtime::plugin::Runtime`]).
#![forbid(unsafe_code)]

mod backoff;
mod keeper;
pub mod labels;
mod monitor;
pub mod policy;
mod work;

pub use backoff::Backoff;
pub use monitor::{Config, Monitor};

#[cfg(test)]
mod tests;
