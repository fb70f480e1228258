//! The connection to one plugin.

use std::fmt::Display;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gantry_core::{Context, deadlines};
use gantry_errdefs::{Class, Error, Result};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};
use tower::service_fn;

/// Calls to one plugin at a time, streams included. A plugin that does not answer keeps as many
/// requests in memory; others wait for their turn, within their own deadlines.
pub const CALLS_MAX: usize = 128;

/// Largest message either way, in bytes: containerd's own bound.
pub(crate) const MESSAGE_LEN_MAX: usize = 16 << 20;

/// The address tonic wants to see; nothing is resolved by it.
const PLACEHOLDER: &str = "http://localhost";

const NAMESPACE_HEADER: &str = "containerd-namespace";
const LEASE_HEADER: &str = "containerd-lease";

/// A plugin in another process. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Plugin {
    name: Arc<str>,
    address: Arc<str>,
    channel: Channel,
    turns: Arc<Semaphore>,
}

/// A call that is under way, from its turn on.
#[derive(Debug)]
pub(crate) struct Turn {
    _permit: OwnedSemaphorePermit,
}

impl Plugin {
    /// The plugin `name` that listens on the unix socket `address`, with or without `unix://`.
    /// Connects with the first call. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// InvalidArgument for an address that is no unix socket's.
    pub fn new(name: &str, address: &str) -> Result<Self> {
        let path = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
        if !path.is_absolute() {
            return Err(Error::invalid_argument(format!(
                "proxy plugin {name:?}: address {address:?}: expect the path of a unix socket"
            )));
        }
        let connector = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static(PLACEHOLDER)
            .connect_timeout(deadlines::PLUGIN_CONNECT)
            .connect_with_connector_lazy(connector);
        Ok(Self {
            name: name.into(),
            address: address.into(),
            channel,
            turns: Arc::new(Semaphore::new(CALLS_MAX)),
        })
    }

    /// Its name, which is also the name of what it serves.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The channel to it, for services that pass messages on as they are.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Makes one call, which may take `deadline`; `what` names it in errors.
    ///
    /// # Errors
    /// What the plugin answers; Unavailable when there is no way to it, DeadlineExceeded when it
    /// does not answer, both with the plugin's name.
    pub async fn call<T>(
        &self,
        what: impl Display,
        deadline: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T> {
        let answer = async {
            let _turn = self.turn().await?;
            call.await.map(Response::into_inner).map_err(|status| self.failed(&what, status))
        };
        tokio::time::timeout(deadline, answer)
            .await
            .unwrap_or_else(|_| Err(self.silent(&what, deadline)))
    }

    /// Makes a call that ends when something else does, and so has no deadline and takes no turn.
    ///
    /// # Errors
    /// As [`Plugin::call`].
    pub async fn wait<T>(
        &self,
        what: impl Display,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T> {
        call.await.map(Response::into_inner).map_err(|status| self.failed(&what, status))
    }

    /// Waits for a turn; to be held while a stream is open.
    pub(crate) async fn turn(&self) -> Result<Turn> {
        let turns = Arc::clone(&self.turns);
        let permit =
            turns.acquire_owned().await.map_err(|_| Error::internal("turns are closed"))?;
        Ok(Turn { _permit: permit })
    }

    /// Waits for `step`, a part of a longer call, at most `deadline`.
    pub(crate) async fn within<T>(
        &self,
        what: impl Display,
        deadline: Duration,
        step: impl Future<Output = Result<T, Status>>,
    ) -> Result<T> {
        match tokio::time::timeout(deadline, step).await {
            Ok(done) => done.map_err(|status| self.failed(&what, status)),
            Err(_) => Err(self.silent(&what, deadline)),
        }
    }

    pub(crate) fn silent(&self, what: &impl Display, deadline: Duration) -> Error {
        Error::deadline_exceeded(format!("{self}: {what}: no answer in {deadline:?}"))
    }

    /// An error that says which plugin did not do it.
    pub(crate) fn failed(&self, what: &impl Display, status: Status) -> Error {
        // What comes with a source was made here: the connection failed.
        let ours = std::error::Error::source(&status).map(deepest);
        if let Some(why) = ours
            && status.code() != Code::DeadlineExceeded
        {
            return Error::unavailable(format!("{self}: {what}: {why}"));
        }
        let err = Error::from(status);
        match err.class() {
            Class::Unavailable | Class::DeadlineExceeded | Class::Canceled => {
                err.context(format!("{self}: {what}"))
            }
            _ => err,
        }
    }
}

impl Display for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "proxy plugin {:?} at {}", self.name, self.address)
    }
}

/// The text of the error that caused all others.
fn deepest(err: &(dyn std::error::Error + 'static)) -> String {
    let mut err = err;
    while let Some(source) = err.source() {
        err = source;
    }
    err.to_string()
}

/// A request in `namespace`.
pub(crate) fn request<T>(namespace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    // Namespaces are identifiers, so they fit in a header.
    if let Ok(value) = namespace.parse() {
        request.metadata_mut().insert(NAMESPACE_HEADER, value);
    }
    request
}

/// A request in the namespace and under the lease of `ctx`.
pub(crate) fn request_of<T>(ctx: &Context, message: T) -> Request<T> {
    let mut request = request(ctx.namespace.as_str(), message);
    if let Some(lease) = ctx.lease.as_ref().and_then(|lease| lease.parse().ok()) {
        request.metadata_mut().insert(LEASE_HEADER, lease);
    }
    request
}
