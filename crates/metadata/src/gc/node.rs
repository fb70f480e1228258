//! What the collector walks.

use gantry_core::{Digest, Namespace};

/// An object of the graph.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Node {
    pub(crate) kind: NodeKind,
    pub(crate) namespace: String,
    /// Digest, key, name or id.
    pub(crate) key: String,
    /// Reached through a flat lease: kept without what its labels refer to.
    pub(crate) flat: bool,
}

/// The kind of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum NodeKind {
    Lease,
    Container,
    Sandbox,
    Image,
    Ingest,
    Content,
    /// On the snapshotter of this name.
    Snapshot(String),
    /// An activated mount.
    Mount,
    /// A client's stream.
    Stream,
    /// A lease member of a kind the collector does not know: keeps nothing.
    Other,
}

impl Node {
    pub(crate) fn new(kind: NodeKind, namespace: &str, key: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), key: key.to_owned(), flat: false }
    }

    pub(crate) fn lease(namespace: &Namespace, id: &str) -> Self {
        Self::new(NodeKind::Lease, namespace.as_str(), id)
    }

    pub(crate) fn container(namespace: &Namespace, id: &str) -> Self {
        Self::new(NodeKind::Container, namespace.as_str(), id)
    }

    pub(crate) fn sandbox(namespace: &Namespace, id: &str) -> Self {
        Self::new(NodeKind::Sandbox, namespace.as_str(), id)
    }

    pub(crate) fn image(namespace: &Namespace, name: &str) -> Self {
        Self::new(NodeKind::Image, namespace.as_str(), name)
    }

    pub(crate) fn content(namespace: &Namespace, digest: &Digest) -> Self {
        Self::new(NodeKind::Content, namespace.as_str(), digest.as_str())
    }

    pub(crate) fn snapshot(namespace: &Namespace, snapshotter: &str, key: &str) -> Self {
        Self::new(NodeKind::Snapshot(snapshotter.to_owned()), namespace.as_str(), key)
    }

    /// The member of a lease.
    pub(crate) fn resource(namespace: &Namespace, kind: &str, id: &str) -> Self {
        Self::new(NodeKind::of_resource(kind), namespace.as_str(), id)
    }
}

impl NodeKind {
    /// The kind of a lease member.
    pub(crate) fn of_resource(kind: &str) -> Self {
        match kind.split_once('/') {
            None if kind == "content" => Self::Content,
            None if kind == "ingests" => Self::Ingest,
            None if kind == "images" => Self::Image,
            Some(("snapshots", name)) => Self::Snapshot(name.to_owned()),
            _ => Self::Other,
        }
    }
}
