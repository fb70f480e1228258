//! Channels to a daemon: over its socket, or inside the process.

use std::path::PathBuf;

use gantry_errdefs::{Error, Result};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// Bytes buffered in each direction of an in-process connection.
const DUPLEX_LEN: usize = 64 << 10;

/// The address tonic wants to see; nothing is resolved by it.
const PLACEHOLDER: &str = "http://localhost";

/// Connects to the daemon on the unix socket `address` (with or without `unix://`).
///
/// # Errors
/// Unavailable when nobody answers.
pub(crate) async fn connect(address: &str) -> Result<Channel> {
    let path = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static(PLACEHOLDER).connect_with_connector(connector).await.map_err(|e| {
        let why = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
        Error::unavailable(format!("daemon at {address}: {e}{why}"))
    })
}

/// A channel whose connections are handed to a server in this process.
pub(crate) fn in_process(accept: mpsc::Sender<DuplexStream>) -> Channel {
    let connector = service_fn(move |_: Uri| {
        let accept = accept.clone();
        async move {
            let (ours, theirs) = tokio::io::duplex(DUPLEX_LEN);
            accept.send(theirs).await.map_err(|_| {
                std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "the daemon has stopped")
            })?;
            Ok::<_, std::io::Error>(TokioIo::new(ours))
        }
    });
    Endpoint::from_static(PLACEHOLDER).connect_with_connector_lazy(connector)
}
