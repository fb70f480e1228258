//! The client against daemons: Debian's containerd and gantryd, the same scenarios.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod containers;
mod content;
mod support;
