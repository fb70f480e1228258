//! The ttrpc protocol: client and server on tokio.
//!
//! ttrpc is what shims speak: requests and answers as protobuf messages in frames with a
//! ten-byte header, many at a time over one unix socket, no HTTP. Layout on the wire is in
//! [`frame`](self) terms: length, stream id, kind, flags. Streams (several messages either way
//! under one id) are built as Go's ttrpc 1.2 has them.
//!
//! [`Client`] is cheap to clone; all clones share one connection, and all their calls fail with
//! Unavailable at once when it dies. [`Server`] serves [`Service`]s, which the api crate
//! generates; it needs no more than a current-thread runtime and keeps no buffers for idle
//! connections, since every container has a shim that runs one.
//!
//! Not here: reconnecting (the runtime crate decides whether a shim is dead) and encryption.
#![forbid(unsafe_code)]

mod address;
mod client;
mod context;
mod frame;
mod handover;
mod message;
mod server;
mod service;
mod stream;
mod writer;

#[cfg(test)]
mod tests;

/// For fuzz targets only.
#[doc(hidden)]
pub mod fuzz {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use crate::frame::{FrameReader, Incoming};

    /// Reads the frames in `data` to its end, or to the first error, as a connection would;
    /// returns how many bytes of payload there were.
    pub fn frames(data: &[u8]) -> usize {
        let mut reader = FrameReader::new(data);
        let mut bytes = 0;
        loop {
            // A slice always has its bytes ready, or none.
            let next = match pin!(reader.next()).poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(next) => next,
                Poll::Pending => unreachable!("a slice never waits"),
            };
            match next {
                Ok(Some(Incoming::Frame(_, payload))) => bytes += payload.len(),
                Ok(Some(Incoming::Oversized(_))) => {}
                Ok(None) | Err(_) => return bytes,
            }
        }
    }
}

pub use address::Address;
pub use client::Client;
pub use context::Context;
pub use frame::FRAME_BYTES_MAX;
pub use gantry_errdefs::{Error, Result};
pub use handover::{Carried, Handover, Repeats};
pub use server::{Server, ServerBuilder};
pub use service::{Finish, Open, Reply, Service, reply, unimplemented, unknown_method};
pub use stream::Stream;
