//! The examples as programs, and the guide's code.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "the guide tells what it does")]

mod engine;
mod guide;
mod short;
mod story;
