//! The objects of the store, as callers see them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use gantry_core::{Any, Descriptor, Digest, Labels};

/// The runtime of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// Its name, such as `io.containerd.runc.v2`.
    pub name: String,
    /// Its options, untouched.
    pub options: Option<Any>,
}

/// A container: the record of what to run, not the running thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id, unique in its namespace.
    pub id: String,
    /// Labels.
    pub labels: Labels,
    /// Name of the image it was made from; not checked.
    pub image: String,
    /// What runs it.
    pub runtime: Runtime,
    /// The runtime spec, untouched.
    pub spec: Option<Any>,
    /// The snapshotter of `snapshot_key`.
    pub snapshotter: String,
    /// The snapshot that is its root filesystem; the container keeps it alive.
    pub snapshot_key: String,
    /// When it was created; set by the store.
    pub created_at: SystemTime,
    /// When it was last changed; set by the store.
    pub updated_at: SystemTime,
    /// What clients keep with it, untouched.
    pub extensions: BTreeMap<String, Any>,
    /// The sandbox it belongs to; empty for none.
    pub sandbox_id: String,
}

impl Container {
    /// A container of `id` with nothing else set.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            labels: Labels::new(),
            image: String::new(),
            runtime: Runtime::default(),
            spec: None,
            snapshotter: String::new(),
            snapshot_key: String::new(),
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
            extensions: BTreeMap::new(),
            sandbox_id: String::new(),
        }
    }
}

/// An image: a name for content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its name, exactly as the client gave it.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// What it names; the content need not be there.
    pub target: Descriptor,
    /// When it was created; set by the store.
    pub created_at: SystemTime,
    /// When it was last changed; set by the store.
    pub updated_at: SystemTime,
}

impl Image {
    /// An image `name` of `target` without labels.
    pub fn new(name: impl Into<String>, target: Descriptor) -> Self {
        Self {
            name: name.into(),
            labels: Labels::new(),
            target,
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
        }
    }
}

/// A change of an image.
#[derive(Clone, Debug, Default)]
pub struct ImageUpdate {
    /// The image to change.
    pub name: String,
    /// New labels, as far as the mask names them.
    pub labels: Labels,
    /// New target, as far as the mask names it. Masks on `annotations` take its annotations.
    pub target: Option<Descriptor>,
}

/// How to delete an image.
#[derive(Clone, Debug, Default)]
pub struct ImageDelete {
    /// Deletes only when the image still names this digest.
    pub target: Option<Digest>,
    /// Waits for a full garbage collection.
    pub synchronous: bool,
}

/// A lease: keeps the resources it lists from being collected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: String,
    /// When it was created.
    pub created_at: SystemTime,
    /// Labels; `containerd.io/gc.expire` ends it.
    pub labels: Labels,
}

/// A member of a lease.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// `content`, `ingests`, `images` or `snapshots/<snapshotter>`.
    pub kind: String,
    /// Digest, reference, name or key.
    pub id: String,
}

/// A sandbox: the record of a pod-like group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Its id, unique in its namespace.
    pub id: String,
    /// Labels.
    pub labels: Labels,
    /// What runs it.
    pub runtime: Runtime,
    /// The spec, untouched.
    pub spec: Option<Any>,
    /// Name of the controller that manages it.
    pub sandboxer: String,
    /// When it was created; set by the store.
    pub created_at: SystemTime,
    /// When it was last changed; set by the store.
    pub updated_at: SystemTime,
    /// What clients keep with it, untouched.
    pub extensions: BTreeMap<String, Any>,
}

impl Sandbox {
    /// A sandbox of `id` with nothing else set.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            labels: Labels::new(),
            runtime: Runtime::default(),
            spec: None,
            sandboxer: String::new(),
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
            extensions: BTreeMap::new(),
        }
    }
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Its name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
}

/// A blob as one namespace knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentInfo {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// When it came into the namespace.
    pub created_at: SystemTime,
    /// When its labels last changed.
    pub updated_at: SystemTime,
    /// Labels.
    pub labels: Labels,
}

/// Who may open a blob that another namespace holds by naming its digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SharingPolicy {
    /// Everyone: knowing the digest is enough.
    #[default]
    Shared,
    /// Only blobs of namespaces labelled `containerd.io/namespace.shareable=true`; for others the
    /// bytes must be sent.
    Isolated,
}
