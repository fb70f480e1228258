//! The program against the real daemon, registry, shim and runc: what `crates/blackbox` does not
//! look at. Scenarios run with Debian's `ctr` too where it knows the flags.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bad_input;
mod content;
mod embedded;
mod images;
mod plugins;
mod restart;
mod run;
mod support;
