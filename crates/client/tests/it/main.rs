//! The client against daemons: Debian's containerd and gantryd, the same scenarios.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cancel;
mod checkpoint;
mod connect;
mod containers;
mod content;
mod events;
mod images;
mod options;
mod restart;
mod services;
mod support;
mod tasks;
