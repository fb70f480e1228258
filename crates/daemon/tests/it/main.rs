//! The daemon over its real socket, with the generated clients.

#![allow(clippy::unwrap_used, reason = "tests")]

mod codes;
mod conformance;
mod content;
mod events;
mod harness;
mod lifecycle;
mod own_runtime;
mod program;
mod restart;
mod streams;
mod transfer;
