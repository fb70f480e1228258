//! The keys of the database; drawn in the crate's head comment.

use gantry_core::Namespace;
use gantry_errdefs::{Error, Result};
use gantry_store::Key;

/// First part of every key of this crate, with the version of the layout.
const ROOT: &str = "meta1";

/// A kind of record: the second part of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Namespace,
    Container,
    Image,
    Lease,
    LeaseResource,
    Sandbox,
    Blob,
    BlobNamespace,
    BlobBytes,
    Ingest,
    Snapshot,
    SnapshotChild,
    BackendSnapshot,
    Sequence,
    TrashBlob,
    TrashIngest,
    TrashSnapshot,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Container => "container",
            Self::Image => "image",
            Self::Lease => "lease",
            Self::LeaseResource => "lease-resource",
            Self::Sandbox => "sandbox",
            Self::Blob => "blob",
            Self::BlobNamespace => "blob-namespace",
            Self::BlobBytes => "blob-bytes",
            Self::Ingest => "ingest",
            Self::Snapshot => "snapshot",
            Self::SnapshotChild => "snapshot-child",
            Self::BackendSnapshot => "backend-snapshot",
            Self::Sequence => "sequence",
            Self::TrashBlob => "trash-blob",
            Self::TrashIngest => "trash-ingest",
            Self::TrashSnapshot => "trash-snapshot",
        }
    }
}

/// All keys of a kind start so.
pub(crate) fn all(kind: Kind) -> Key {
    Key::new().str(ROOT).str(kind.as_str())
}

/// The keys of a kind in a namespace start so.
pub(crate) fn within(kind: Kind, namespace: &Namespace) -> Key {
    all(kind).str(namespace.as_str())
}

/// The key of an object of a namespace by its one name.
pub(crate) fn object(kind: Kind, namespace: &Namespace, name: &str) -> Key {
    within(kind, namespace).str(name)
}

/// The record of a namespace.
pub(crate) fn namespace(name: &str) -> Key {
    all(Kind::Namespace).str(name)
}

/// A member of a lease.
pub(crate) fn lease_resource(ns: &Namespace, lease: &str, kind: &str, id: &str) -> Key {
    object(Kind::LeaseResource, ns, lease).str(kind).str(id)
}

/// The index of the namespaces that hold a blob.
pub(crate) fn blob_namespace(digest: &str, ns: &Namespace) -> Key {
    all(Kind::BlobNamespace).str(digest).str(ns.as_str())
}

/// The bytes of a small blob until its file is durable; `number` tells one commit of a blob from
/// the next.
pub(crate) fn blob_bytes(digest: &str, number: u64) -> Key {
    all(Kind::BlobBytes).str(digest).str(&number.to_string())
}

/// A snapshot.
pub(crate) fn snapshot(ns: &Namespace, snapshotter: &str, key: &str) -> Key {
    object(Kind::Snapshot, ns, snapshotter).str(key)
}

/// The index of a snapshot's children; all of them start so.
pub(crate) fn snapshot_children(ns: &Namespace, snapshotter: &str, parent: &str) -> Key {
    object(Kind::SnapshotChild, ns, snapshotter).str(parent)
}

/// The index of the records of a backend's snapshot; there is more than one only when a remote
/// snapshotter shows one snapshot to many namespaces.
pub(crate) fn backend_snapshot(snapshotter: &str, backend_key: &str) -> Key {
    all(Kind::BackendSnapshot).str(snapshotter).str(backend_key)
}

/// The parts of a key after `ROOT` and the kind.
///
/// # Errors
/// DataLoss when there are not `N` of them.
pub(crate) fn parts<const N: usize>(key: &[u8]) -> Result<[String; N]> {
    let parts = Key::str_parts(key)?;
    parts
        .into_iter()
        .skip(2)
        .collect::<Vec<_>>()
        .try_into()
        .map_err(|_| Error::data_loss(format!("key {:?} is damaged", String::from_utf8_lossy(key))))
}
