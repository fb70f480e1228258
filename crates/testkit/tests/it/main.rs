//! The harness checked against programs that are not ours.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod containerd;
mod images;
mod vm;
