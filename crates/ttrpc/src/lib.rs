//! The ttrpc protocol: client and server on tokio.
#![forbid(unsafe_code)]
mod context;
mod service;
mod client;
mod stream;
pub use context::Context;
pub use client::Client;
pub use stream::Stream;
pub use gantry_errdefs::Result;
pub use service::{Finish, Reply, Service, reply, unimplemented, unknown_method};
