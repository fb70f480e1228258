//! Tests of the command line itself: help, output formats, error lines, `--embedded`.
//!
//! Scenarios with real clients, `gantry` among them, live in `crates/blackbox`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
