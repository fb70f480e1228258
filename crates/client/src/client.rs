//! The client: a lazy connection, a namespace, a lease.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gantry_api::containerd::services::version::v1::version_client::VersionClient;
use gantry_api::grpc::health::v1::HealthCheckRequest;
use gantry_api::grpc::health::v1::health_check_response::ServingStatus;
use gantry_api::grpc::health::v1::health_client::HealthClient;
use gantry_errdefs::{Error, Result};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::cancel::Unsettled;
use crate::convert::{is_disconnected, status};
use crate::transport::Transport;

/// Largest message sent or received, in bytes: what every containerd daemon takes.
pub const MESSAGE_SIZE_MAX: usize = 16 << 20;

/// Namespace of a client that sets none.
const DEFAULT_NAMESPACE: &str = "default";

/// A local daemon that does not accept within this is stuck.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest frame taken, in bytes. Each is a system call of who sends it, and archives come in large
/// messages; with the 16 KiB that HTTP/2 begins with, an export is mostly calls.
const FRAME_SIZE_MAX: u32 = 512 << 10;

/// Flow-control window of one stream, in bytes: a whole content chunk, so that reads never wait
/// for a window update in the middle of one.
const STREAM_WINDOW: u32 = 4 << 20;

/// Pause between two looks for a daemon that is starting.
const SERVING_POLL_INTERVAL: Duration = Duration::from_millis(25);

/// How long calls that can be repeated wait for a daemon that went away: longer than a daemon
/// with many containers takes to start.
const RECONNECT_PATIENCE: Duration = Duration::from_secs(60);

/// A handle to a daemon. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
    namespace: String,
    lease: Option<String>,
    timeout: Option<Duration>,
    reconnect: Duration,
    unsettled: Unsettled,
}

/// Settings of a client before it connects.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    address: PathBuf,
    namespace: String,
    lease: Option<String>,
    connect_timeout: Duration,
    timeout: Option<Duration>,
    reconnect: Duration,
    windows: u32,
}

/// What the daemon says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Version, such as `v2.3.4`.
    pub version: String,
    /// Commit it was built from; may be empty.
    pub revision: String,
}

impl Client {
    /// A client for the daemon at `address`, a path of a unix socket with or without `unix://`.
    /// Does not connect yet.
    ///
    /// # Errors
    /// As [`ClientBuilder::build`].
    pub fn connect(address: impl Into<PathBuf>) -> Result<Self> {
        Self::builder(address).build()
    }

    /// Starts configuring a client for the daemon at `address`.
    pub fn builder(address: impl Into<PathBuf>) -> ClientBuilder {
        ClientBuilder {
            address: address.into(),
            namespace: DEFAULT_NAMESPACE.to_owned(),
            lease: None,
            connect_timeout: CONNECT_TIMEOUT,
            timeout: None,
            reconnect: RECONNECT_PATIENCE,
            windows: STREAM_WINDOW,
        }
    }

    /// A client over connections that `connect` makes, such as one end of an in-memory pipe into
    /// a daemon of the same process. Called again when a connection breaks.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn from_connector<F, Fut, Io>(mut connect: F) -> Self
    where
        F: FnMut() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<Io>> + Send + 'static,
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let channel = endpoint(CONNECT_TIMEOUT, STREAM_WINDOW).connect_with_connector_lazy(
            tower::service_fn(move |_: Uri| {
                let connecting = connect();
                async move { connecting.await.map(TokioIo::new) }
            }),
        );
        Self::from_channel(channel)
    }

    /// A client over a channel of the caller's making, such as that of a daemon in this process.
    pub fn from_channel(channel: Channel) -> Self {
        Self::over(Transport::new(Some(channel)))
    }

    /// A client without a daemon, for use with [`Self::with_service`]: other services answer
    /// Unimplemented.
    pub fn without_daemon() -> Self {
        Self::over(Transport::new(None))
    }

    fn over(transport: Transport) -> Self {
        Self {
            transport,
            namespace: DEFAULT_NAMESPACE.to_owned(),
            lease: None,
            timeout: None,
            reconnect: RECONNECT_PATIENCE,
            unsettled: Unsettled::default(),
        }
    }

    /// The same client with one service answered by `service` instead of the daemon: an
    /// implementation of the service's trait in [`crate::api`] inside its server, such as
    /// `ImagesServer::new(own)`. Everything that needs the service goes there; namespace and
    /// lease come with each request as metadata.
    #[must_use]
    pub fn with_service<S>(&self, service: S) -> Self
    where
        S: tower::Service<
                http::Request<tonic::body::Body>,
                Response = http::Response<tonic::body::Body>,
                Error = Infallible,
            > + tonic::server::NamedService,
        S: Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        Self { transport: self.transport.with(service), ..self.clone() }
    }

    /// The same client in another namespace; the lease, which belongs to the old one, is dropped.
    #[must_use]
    pub fn in_namespace(&self, namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), lease: None, ..self.clone() }
    }

    /// The same client with every call under `lease`.
    #[must_use]
    pub fn under_lease(&self, lease: impl Into<String>) -> Self {
        Self { lease: Some(lease.into()), ..self.clone() }
    }

    /// The same client with a deadline for each call, streams and waits included.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self.clone() }
    }

    /// The same client with another patience for a daemon that went away; see
    /// [`ClientBuilder::reconnect_patience`].
    #[must_use]
    pub fn with_reconnect_patience(&self, patience: Duration) -> Self {
        Self { reconnect: patience, ..self.clone() }
    }

    /// The namespace of calls.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The lease of calls, if there is one.
    pub fn lease(&self) -> Option<&str> {
        self.lease.as_deref()
    }

    /// The daemon's version.
    ///
    /// # Errors
    /// Unavailable when the daemon can't be reached.
    pub async fn version(&self) -> Result<Version> {
        let mut service = VersionClient::new(self.transport());
        let answer = service.version(self.request(())).await.map_err(status)?.into_inner();
        Ok(Version { version: answer.version, revision: answer.revision })
    }

    /// Whether the daemon says it is serving. A daemon that can't be reached is not.
    ///
    /// # Errors
    /// Those of the health service, other than Unavailable.
    pub async fn is_serving(&self) -> Result<bool> {
        let mut service = HealthClient::new(self.transport());
        let request = HealthCheckRequest { service: String::new() };
        match service.check(self.request(request)).await.map_err(status) {
            Ok(answer) => Ok(answer.into_inner().status() == ServingStatus::Serving),
            Err(e) if e.is_unavailable() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Waits until the daemon serves, also while its socket is not there yet.
    ///
    /// # Errors
    /// DeadlineExceeded when it does not within `patience`.
    pub async fn wait_until_serving(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !self.is_serving().await? {
            if Instant::now() >= deadline {
                let why = format!("daemon: not serving within {patience:?}");
                return Err(Error::deadline_exceeded(why));
            }
            tokio::time::sleep(SERVING_POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// What is being made, or undone, by clones of this client.
    pub(crate) fn unsettled(&self) -> &Unsettled {
        &self.unsettled
    }

    pub(crate) fn transport(&self) -> Transport {
        self.transport.clone()
    }

    /// Between two tries of a call that may be made again: when `failure` is that the daemon went
    /// away, waits for it to come back.
    ///
    /// # Errors
    /// `failure`, when it is another or the daemon stays away.
    pub(crate) async fn before_retry(&self, failure: Error) -> Result<()> {
        if !is_disconnected(&failure) {
            return Err(failure);
        }
        self.come_back().await.map_err(|_| failure)
    }

    /// Waits for a daemon that went away, with the client's patience.
    pub(crate) async fn come_back(&self) -> Result<()> {
        if self.reconnect.is_zero() {
            return Err(Error::unavailable("daemon: gone"));
        }
        self.wait_until_serving(self.reconnect).await
    }

    /// Wraps a message into a request with this client's headers.
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        let headers = request.metadata_mut();
        // A name that is no header value can't be valid either; the daemon then says that the
        // namespace is missing.
        if let Some(value) = header(&self.namespace) {
            headers.insert("containerd-namespace", value);
        }
        if let Some(value) = self.lease.as_deref().and_then(header) {
            headers.insert("containerd-lease", value);
        }
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        request
    }
}

impl ClientBuilder {
    /// The namespace of calls; `default` unless set.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// The lease of calls; none unless set.
    #[must_use]
    pub fn lease(mut self, lease: impl Into<String>) -> Self {
        self.lease = Some(lease.into());
        self
    }

    /// How long waits, pulls and other calls that can be repeated wait for a daemon that went
    /// away in the middle of them; a minute unless set. With zero they fail with Unavailable.
    #[must_use]
    pub fn reconnect_patience(mut self, patience: Duration) -> Self {
        self.reconnect = patience;
        self
    }

    /// Bytes the daemon may send ahead, per stream and in all; 4 MiB unless set.
    #[must_use]
    pub fn receive_window(mut self, bytes: u32) -> Self {
        self.windows = bytes;
        self
    }

    /// How long connecting may take; 10 seconds unless set.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// A deadline for every call; none unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The client. Does not connect yet.
    ///
    /// # Errors
    /// InvalidArgument for an empty address; FailedPrecondition outside of a tokio runtime, which
    /// is to work the connection.
    pub fn build(self) -> Result<Client> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::failed_precondition("client: made outside of a tokio runtime"));
        }
        let text = self.address.to_string_lossy();
        let path = PathBuf::from(text.strip_prefix("unix://").unwrap_or(&text));
        if path.as_os_str().is_empty() {
            return Err(Error::invalid_argument("address of the daemon must not be empty"));
        }
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move {
                let connected = UnixStream::connect(&path).await;
                let named = |e: io::Error| {
                    io::Error::new(e.kind(), format!("connecting to {}: {e}", path.display()))
                };
                connected.map(TokioIo::new).map_err(named)
            }
        });
        let channel =
            endpoint(self.connect_timeout, self.windows).connect_with_connector_lazy(connector);
        Ok(Client {
            transport: Transport::new(Some(channel)),
            namespace: self.namespace,
            lease: self.lease,
            timeout: self.timeout,
            reconnect: self.reconnect,
            unsettled: Unsettled::default(),
        })
    }
}

fn endpoint(connect_timeout: Duration, window: u32) -> Endpoint {
    // The authority is what containerd's own clients send.
    Endpoint::from_static("http://localhost")
        .connect_timeout(connect_timeout)
        .initial_stream_window_size(window)
        .initial_connection_window_size(window)
        .max_frame_size(FRAME_SIZE_MAX)
}

fn header(value: &str) -> Option<MetadataValue<Ascii>> {
    value.parse().ok()
}

/// A service's generated client over `$client`'s transport, with our message limits.
macro_rules! service {
    ($client:expr, $service:ident) => {
        $service::new($client.transport())
            .max_decoding_message_size(crate::client::MESSAGE_SIZE_MAX)
            .max_encoding_message_size(crate::client::MESSAGE_SIZE_MAX)
    };
}
pub(crate) use service;

/// Declares the handle of a service: a client and nothing else.
macro_rules! handle {
    ($(#[$doc:meta])* $name:ident, $accessor:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            pub(crate) client: crate::client::Client,
        }

        impl crate::client::Client {
            $(#[$doc])*
            pub fn $accessor(&self) -> $name {
                $name { client: self.clone() }
            }
        }
    };
}
pub(crate) use handle;
