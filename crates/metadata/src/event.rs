//! What the store tells the world, after each commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_core::{Any, Labels, Namespace};
use gantry_events::Exchange;

/// Something that happened, durable when it is told. The fields are those of
/// `containerd.events.*`; encoding them is for the crate that knows the messages.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the messages' own")]
pub enum Event {
    /// `/namespaces/create`.
    NamespaceCreate { name: String, labels: Labels },
    /// `/namespaces/update`.
    NamespaceUpdate { name: String, labels: Labels },
    /// `/namespaces/delete`.
    NamespaceDelete { name: String },
    /// `/containers/create`.
    ContainerCreate {
        id: String,
        image: String,
        runtime_name: String,
        runtime_options: Option<Any>,
    },
    /// `/containers/update`.
    ContainerUpdate { id: String, image: String, labels: Labels, snapshot_key: String },
    /// `/containers/delete`.
    ContainerDelete { id: String },
    /// `/images/create`.
    ImageCreate { name: String, labels: Labels },
    /// `/images/update`.
    ImageUpdate { name: String, labels: Labels },
    /// `/images/delete`, by a caller or because the image expired.
    ImageDelete { name: String },
    /// `/content/create`.
    ContentCreate { digest: String, size: u64 },
    /// `/content/delete`, by a caller.
    ContentDelete { digest: String },
    /// `/snapshot/prepare`.
    SnapshotPrepare { key: String, parent: String, snapshotter: String },
    /// `/snapshot/commit`.
    SnapshotCommit { key: String, name: String, snapshotter: String },
    /// `/snapshot/remove`, by a caller or by garbage collection.
    SnapshotRemove { key: String, snapshotter: String },
}

impl Event {
    /// The topic it is published under.
    pub const fn topic(&self) -> &'static str {
        match self {
            Self::NamespaceCreate { .. } => "/namespaces/create",
            Self::NamespaceUpdate { .. } => "/namespaces/update",
            Self::NamespaceDelete { .. } => "/namespaces/delete",
            Self::ContainerCreate { .. } => "/containers/create",
            Self::ContainerUpdate { .. } => "/containers/update",
            Self::ContainerDelete { .. } => "/containers/delete",
            Self::ImageCreate { .. } => "/images/create",
            Self::ImageUpdate { .. } => "/images/update",
            Self::ImageDelete { .. } => "/images/delete",
            Self::ContentCreate { .. } => "/content/create",
            Self::ContentDelete { .. } => "/content/delete",
            Self::SnapshotPrepare { .. } => "/snapshot/prepare",
            Self::SnapshotCommit { .. } => "/snapshot/commit",
            Self::SnapshotRemove { .. } => "/snapshot/remove",
        }
    }
}

/// Where events go. Called on the database's writer thread in commit order: it must not block.
pub trait EventSink: Send + Sync + 'static {
    /// Tells that `event` happened in `namespace`.
    fn publish(&self, namespace: &Namespace, event: &Event);
}

/// A sink that encodes events and publishes them on an exchange.
pub struct ExchangeSink<F> {
    exchange: Exchange,
    encode: F,
}

impl<F: Fn(&Event) -> Any + Send + Sync + 'static> ExchangeSink<F> {
    /// A sink for `exchange`; `encode` makes the message of an event.
    pub fn new(exchange: Exchange, encode: F) -> Arc<Self> {
        Arc::new(Self { exchange, encode })
    }
}

impl<F: Fn(&Event) -> Any + Send + Sync + 'static> EventSink for ExchangeSink<F> {
    fn publish(&self, namespace: &Namespace, event: &Event) {
        if let Err(err) = self.exchange.publish(namespace, event.topic(), (self.encode)(event)) {
            tracing::error!(topic = event.topic(), "publishing an event: {err}");
        }
    }
}

impl<F> std::fmt::Debug for ExchangeSink<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExchangeSink").field("exchange", &self.exchange).finish_non_exhaustive()
    }
}

/// A sink that drops everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEvents;

impl EventSink for NoEvents {
    fn publish(&self, _namespace: &Namespace, _event: &Event) {}
}

/// Extensions and the like, by name.
pub(crate) type AnyMap = BTreeMap<String, Any>;
