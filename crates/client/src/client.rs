//! The client: a lazy connection, a namespace, a lease.

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

use crate::convert::status;

/// Largest message sent or received, in bytes: what every containerd daemon takes.
pub const MESSAGE_SIZE_MAX: usize = 16 << 20;

/// Namespace of a client that sets none.
const DEFAULT_NAMESPACE: &str = "default";

/// A local daemon that does not accept within this is stuck.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Flow-control window of one stream, in bytes: a whole content chunk, so that reads never wait
/// for a window update in the middle of one.
const STREAM_WINDOW: u32 = 4 << 20;

/// Pause between two looks for a daemon that is starting.
const SERVING_POLL_INTERVAL: Duration = Duration::from_millis(25);

/// A handle to a daemon. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    namespace: String,
    lease: Option<String>,
    timeout: Option<Duration>,
}

/// Settings of a client before it connects.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    address: PathBuf,
    namespace: String,
    connect_timeout: Duration,
    timeout: Option<Duration>,
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
    /// InvalidArgument for an empty address.
    pub fn connect(address: impl Into<PathBuf>) -> Result<Self> {
        Self::builder(address).build()
    }

    /// Starts configuring a client for the daemon at `address`.
    pub fn builder(address: impl Into<PathBuf>) -> ClientBuilder {
        ClientBuilder {
            address: address.into(),
            namespace: DEFAULT_NAMESPACE.to_owned(),
            connect_timeout: CONNECT_TIMEOUT,
            timeout: None,
        }
    }

    /// A client over connections that `connect` makes, such as one end of an in-memory pipe into
    /// a daemon of the same process. Called again when a connection breaks.
    pub fn from_connector<F, Fut, Io>(mut connect: F) -> Self
    where
        F: FnMut() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<Io>> + Send + 'static,
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let channel = endpoint(CONNECT_TIMEOUT).connect_with_connector_lazy(tower::service_fn(
            move |_: Uri| {
                let connecting = connect();
                async move { connecting.await.map(TokioIo::new) }
            },
        ));
        Self::from_channel(channel)
    }

    /// A client over a channel of the caller's making.
    pub fn from_channel(channel: Channel) -> Self {
        Self { channel, namespace: DEFAULT_NAMESPACE.to_owned(), lease: None, timeout: None }
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
        let mut service = VersionClient::new(self.channel());
        let answer = service.version(self.request(())).await.map_err(status)?.into_inner();
        Ok(Version { version: answer.version, revision: answer.revision })
    }

    /// Whether the daemon says it is serving. A daemon that can't be reached is not.
    ///
    /// # Errors
    /// Those of the health service, other than Unavailable.
    pub async fn is_serving(&self) -> Result<bool> {
        let mut service = HealthClient::new(self.channel());
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

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
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
    /// InvalidArgument for an empty address.
    pub fn build(self) -> Result<Client> {
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
        let channel = endpoint(self.connect_timeout).connect_with_connector_lazy(connector);
        let client = Client::from_channel(channel);
        Ok(Client { namespace: self.namespace, timeout: self.timeout, ..client })
    }
}

fn endpoint(connect_timeout: Duration) -> Endpoint {
    // The authority is what containerd's own clients send.
    Endpoint::from_static("http://localhost")
        .connect_timeout(connect_timeout)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW)
}

fn header(value: &str) -> Option<MetadataValue<Ascii>> {
    value.parse().ok()
}

/// A service's generated client over `$client`'s channel, with our message limits.
macro_rules! service {
    ($client:expr, $service:ident) => {
        $service::new($client.channel())
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
