//! The daemon over its real socket, with the generated clients.

#![allow(clippy::unwrap_used, reason = "tests")]

mod codes;
mod conformance;
mod content;
mod events;
mod harness;
mod http;
mod introspection;
mod lifecycle;
mod listing;
mod mounts;
mod oracle;
mod own_runtime;
mod program;
mod restart;
mod sandboxes;
mod streams;
mod transfer;
