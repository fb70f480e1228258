//! The ttrpc protocol: client and server on tokio.
