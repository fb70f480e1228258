//! Mounts that the daemon makes for others and keeps by name: *activations*.
//!
//! Some mounts are more than what `mount(2)` takes: a layer that has to be mounted before the
//! overlay over it, options that name where another mount is, a directory that must exist. Who has
//! such mounts activates them under a name: [`Activations::activate`] makes those that have to be
//! made first, and returns the rest as plain mounts for the caller to make. An activation lives
//! until it is deactivated, or until the lease or the container it is bound to goes.
//!
//! What a mount needs is in its kind: `format/overlay`, `mkdir/bind`, `mkfs/loop`, `erofs` (see
//! `plan.rs`).
//!
//! # On disk
//! ```text
//! <state>/t/<n>.json     the activation: namespace, name, lease, mounts, labels
//! <state>/t/<n>/<i>      where its i-th mount is; a link to the device for a loop device, with
//! <state>/t/<n>/<i>.file a link to the file on it
//! ```
//! The state is gone after a reboot, as the mounts are. What a killed daemon left half made is
//! unmounted by the next [`Activations::open`].
#![forbid(unsafe_code)]

mod make;
mod mkfs;
mod plan;
mod record;
mod store;

pub use plan::needs_activation;
pub use record::{Activation, ActiveMount};
pub use store::{ACTIVATIONS_MAX, Activations};
