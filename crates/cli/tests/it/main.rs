//! Black-box tests: real clients against the real daemon, registry, shim and runc.
//!
//! Each scenario runs with Debian's `ctr` and with `gantry` alike.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bad_input;
mod embedded;
mod images;
mod kill9;
mod restart;
mod run;
mod shims;
mod storage;
mod support;
