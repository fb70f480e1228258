//! The daemon over its real socket, with the generated clients.

mod codes;
mod content;
mod events;
mod harness;
mod lifecycle;
mod program;
mod restart;
mod streams;
