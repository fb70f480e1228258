//! A daemon on a root of its own.

use std::path::Path;

use gantry_daemon::config::Config;
use gantry_daemon::{Daemon, Running};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

/// The namespace of most tests.
pub(crate) const NAMESPACE: &str = "it";

/// A running daemon and a connection to its socket.
pub(crate) struct Harness {
    dir: TempDir,
    running: Option<Running>,
    channel: Channel,
}

impl Harness {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config_in(dir.path());
        let address = config.address().to_owned();
        let running = Daemon::start(config).await.unwrap();
        Self { channel: connect(&address).await, dir, running: Some(running) }
    }

    /// Stops the daemon and starts another one on the same root.
    pub(crate) async fn restart(&mut self) {
        self.running.take().unwrap().shutdown().await;
        let config = config_in(self.dir.path());
        let address = config.address().to_owned();
        self.running = Some(Daemon::start(config).await.unwrap());
        self.channel = connect(&address).await;
    }

    pub(crate) async fn stop(mut self) {
        self.running.take().unwrap().shutdown().await;
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

pub(crate) fn config_in(dir: &Path) -> Config {
    Config::private(dir.join("root"), dir.join("state"))
}

pub(crate) async fn connect(address: &str) -> Channel {
    let path = address.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
}

/// A request in [`NAMESPACE`].
pub(crate) fn ns<T>(message: T) -> Request<T> {
    in_ns(NAMESPACE, message)
}

/// A request in another namespace.
pub(crate) fn in_ns<T>(namespace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", namespace.parse().unwrap());
    request
}

/// The same request under a lease.
pub(crate) fn leased<T>(mut request: Request<T>, lease: &str) -> Request<T> {
    request.metadata_mut().insert("containerd-lease", lease.parse().unwrap());
    request
}

/// Checks code and text of a failed call.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, words: &str) {
    let status = result.expect_err("the call must fail");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(words), "{words:?} in {:?}", status.message());
}
