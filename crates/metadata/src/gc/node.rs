//! What the collector walks.

use gantry_core::Namespace;

/// An object of the graph.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Node {
    pub(crate) kind: NodeKind,
    pub(crate) namespace: String,
    /// Digest, key, name or id.
    pub(crate) key: String,
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
    /// A lease member of a kind the collector does not know: keeps nothing.
    Other,
}

impl Node {
    fn new(kind: NodeKind, namespace: &Namespace, key: &str) -> Self {
        Self { kind, namespace: namespace.as_str().to_owned(), key: key.to_owned() }
    }

    pub(crate) fn lease(namespace: &Namespace, id: &str) -> Self {
        Self::new(NodeKind::Lease, namespace, id)
    }

    pub(crate) fn container(namespace: &Namespace, id: &str) -> Self {
        Self::new(NodeKind::Container, namespace, id)
    }

    pub(crate) fn sandbox(namespace: &Namespace, id: &str) -> Self {
        Self::new(NodeKind::Sandbox, namespace, id)
    }

    pub(crate) fn image(namespace: &Namespace, name: &str) -> Self {
        Self::new(NodeKind::Image, namespace, name)
    }

    pub(crate) fn resource(namespace: &Namespace, kind: &str, id: &str) -> Self {
        let kind = match kind.split_once('/') {
            None if kind == "content" => NodeKind::Content,
            None if kind == "ingests" => NodeKind::Ingest,
            None if kind == "images" => NodeKind::Image,
            Some(("snapshots", name)) => NodeKind::Snapshot(name.to_owned()),
            _ => NodeKind::Other,
        };
        Self::new(kind, namespace, id)
    }
}
