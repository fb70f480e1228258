//! The values of the database.
//!
//! Each record is a protobuf message whose tag numbers, given here, are the on-disk format: a tag
//! is never reused or given another type; new fields take new tags; readers skip unknown ones.
//! Times are nanoseconds since 1970 in one signed number (good until 2262).

mod stored;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use gantry_core::{Any, Descriptor, Digest, Labels};
use gantry_errdefs::{Error, Result};
use prost::Message;

use crate::event::AnyMap;
use crate::types::{Container, ContentInfo, Image, Lease, Runtime, Sandbox};

pub use stored::StoredContainer;

/// Encodes `time` for a record.
pub(crate) fn nanos(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |n| -n),
    }
}

/// Decodes a record's time.
pub(crate) fn time(nanos: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    let time = if nanos < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Decodes a record of the object `what`.
pub(crate) fn decode<R: Message + Default>(value: &[u8], what: &str) -> Result<R> {
    R::decode(value).map_err(|e| Error::data_loss(format!("{what}: its record is damaged: {e}")))
}

/// A typed opaque value.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct AnyRecord {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) value: Vec<u8>,
}

impl From<Any> for AnyRecord {
    fn from(any: Any) -> Self {
        Self { type_url: any.type_url, value: any.value }
    }
}

impl From<AnyRecord> for Any {
    fn from(record: AnyRecord) -> Self {
        Self { type_url: record.type_url, value: record.value }
    }
}

fn any_records(map: AnyMap) -> BTreeMap<String, AnyRecord> {
    map.into_iter().map(|(k, v)| (k, v.into())).collect()
}

fn anys(map: BTreeMap<String, AnyRecord>) -> AnyMap {
    map.into_iter().map(|(k, v)| (k, v.into())).collect()
}

/// A namespace.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct NamespaceRecord {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(crate) labels: Labels,
}

/// A container; its id is in the key.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContainerRecord {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(crate) labels: Labels,
    #[prost(string, tag = "2")]
    pub(crate) image: String,
    #[prost(string, tag = "3")]
    pub(crate) runtime_name: String,
    #[prost(message, optional, tag = "4")]
    pub(crate) runtime_options: Option<AnyRecord>,
    #[prost(message, optional, tag = "5")]
    pub(crate) spec: Option<AnyRecord>,
    #[prost(string, tag = "6")]
    pub(crate) snapshotter: String,
    #[prost(string, tag = "7")]
    pub(crate) snapshot_key: String,
    #[prost(int64, tag = "8")]
    pub(crate) created_at: i64,
    #[prost(int64, tag = "9")]
    pub(crate) updated_at: i64,
    #[prost(btree_map = "string, message", tag = "10")]
    pub(crate) extensions: BTreeMap<String, AnyRecord>,
    #[prost(string, tag = "11")]
    pub(crate) sandbox_id: String,
}

impl ContainerRecord {
    pub(crate) fn into_container(self, id: String) -> Container {
        Container {
            id,
            labels: self.labels,
            image: self.image,
            runtime: Runtime {
                name: self.runtime_name,
                options: self.runtime_options.map(Into::into),
            },
            spec: self.spec.map(Into::into),
            snapshotter: self.snapshotter,
            snapshot_key: self.snapshot_key,
            created_at: time(self.created_at),
            updated_at: time(self.updated_at),
            extensions: anys(self.extensions),
            sandbox_id: self.sandbox_id,
        }
    }
}

impl From<Container> for ContainerRecord {
    fn from(c: Container) -> Self {
        Self {
            labels: c.labels,
            image: c.image,
            runtime_name: c.runtime.name,
            runtime_options: c.runtime.options.map(Into::into),
            spec: c.spec.map(Into::into),
            snapshotter: c.snapshotter,
            snapshot_key: c.snapshot_key,
            created_at: nanos(c.created_at),
            updated_at: nanos(c.updated_at),
            extensions: any_records(c.extensions),
            sandbox_id: c.sandbox_id,
        }
    }
}

/// An image; its name is in the key. The descriptor's rarer fields (platform, urls, data) are not
/// part of an image on the wire and not kept.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImageRecord {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(crate) labels: Labels,
    #[prost(string, tag = "2")]
    pub(crate) media_type: String,
    #[prost(string, tag = "3")]
    pub(crate) digest: String,
    #[prost(int64, tag = "4")]
    pub(crate) size: i64,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[prost(int64, tag = "6")]
    pub(crate) created_at: i64,
    #[prost(int64, tag = "7")]
    pub(crate) updated_at: i64,
}

impl ImageRecord {
    pub(crate) fn into_image(self, name: String) -> Result<Image> {
        let digest = stored_digest(&self.digest)?;
        let mut target = Descriptor::new(self.media_type, digest, self.size);
        target.annotations = self.annotations;
        Ok(Image {
            name,
            labels: self.labels,
            target,
            created_at: time(self.created_at),
            updated_at: time(self.updated_at),
        })
    }
}

impl From<Image> for ImageRecord {
    fn from(image: Image) -> Self {
        Self {
            labels: image.labels,
            media_type: image.target.media_type,
            digest: image.target.digest.into(),
            size: image.target.size,
            annotations: image.target.annotations,
            created_at: nanos(image.created_at),
            updated_at: nanos(image.updated_at),
        }
    }
}

/// A lease; its id is in the key, its members are keys of their own.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct LeaseRecord {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(crate) labels: Labels,
    #[prost(int64, tag = "2")]
    pub(crate) created_at: i64,
}

impl LeaseRecord {
    pub(crate) fn into_lease(self, id: String) -> Lease {
        Lease { id, created_at: time(self.created_at), labels: self.labels }
    }
}

/// A sandbox; its id is in the key.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxRecord {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(crate) labels: Labels,
    #[prost(string, tag = "2")]
    pub(crate) runtime_name: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) runtime_options: Option<AnyRecord>,
    #[prost(message, optional, tag = "4")]
    pub(crate) spec: Option<AnyRecord>,
    #[prost(string, tag = "5")]
    pub(crate) sandboxer: String,
    #[prost(int64, tag = "6")]
    pub(crate) created_at: i64,
    #[prost(int64, tag = "7")]
    pub(crate) updated_at: i64,
    #[prost(btree_map = "string, message", tag = "8")]
    pub(crate) extensions: BTreeMap<String, AnyRecord>,
}

impl SandboxRecord {
    pub(crate) fn into_sandbox(self, id: String) -> Sandbox {
        Sandbox {
            id,
            labels: self.labels,
            runtime: Runtime {
                name: self.runtime_name,
                options: self.runtime_options.map(Into::into),
            },
            spec: self.spec.map(Into::into),
            sandboxer: self.sandboxer,
            created_at: time(self.created_at),
            updated_at: time(self.updated_at),
            extensions: anys(self.extensions),
        }
    }
}

impl From<Sandbox> for SandboxRecord {
    fn from(s: Sandbox) -> Self {
        Self {
            labels: s.labels,
            runtime_name: s.runtime.name,
            runtime_options: s.runtime.options.map(Into::into),
            spec: s.spec.map(Into::into),
            sandboxer: s.sandboxer,
            created_at: nanos(s.created_at),
            updated_at: nanos(s.updated_at),
            extensions: any_records(s.extensions),
        }
    }
}

/// A blob in a namespace; its digest is in the key.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct BlobRecord {
    #[prost(uint64, tag = "1")]
    pub(crate) size: u64,
    #[prost(int64, tag = "2")]
    pub(crate) created_at: i64,
    #[prost(int64, tag = "3")]
    pub(crate) updated_at: i64,
    #[prost(btree_map = "string, string", tag = "4")]
    pub(crate) labels: Labels,
}

impl BlobRecord {
    pub(crate) fn into_info(self, digest: Digest) -> ContentInfo {
        ContentInfo {
            digest,
            size: self.size,
            created_at: time(self.created_at),
            updated_at: time(self.updated_at),
            labels: self.labels,
        }
    }
}

/// An ingest in a namespace; its reference is in the key.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct IngestRecord {
    /// The reference in the backend, `<ns>/<n>/<ref>`.
    #[prost(string, tag = "1")]
    pub(crate) backend_ref: String,
    /// The expected digest, or empty.
    #[prost(string, tag = "2")]
    pub(crate) expected: String,
    /// When it expires; 0 for a leased one, which ends with its leases.
    #[prost(int64, tag = "3")]
    pub(crate) expires_at: i64,
    /// Size expected, 0 for unknown.
    #[prost(uint64, tag = "4")]
    pub(crate) total: u64,
    /// When it was opened first.
    #[prost(int64, tag = "5")]
    pub(crate) started_at: i64,
    /// Whether the backend holds no bytes because the blob is there already, shared from another
    /// namespace; `shared_size` is its size.
    #[prost(bool, tag = "6")]
    pub(crate) shared: bool,
    #[prost(uint64, tag = "7")]
    pub(crate) shared_size: u64,
}

/// A snapshot in a namespace; snapshotter and key are in the key.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SnapshotRecord {
    /// The key in the backend, `<ns>/<n>/<key>`.
    #[prost(string, tag = "1")]
    pub(crate) backend_key: String,
    /// Key of the parent in the same namespace, or empty.
    #[prost(string, tag = "2")]
    pub(crate) parent: String,
    #[prost(int64, tag = "3")]
    pub(crate) created_at: i64,
    #[prost(int64, tag = "4")]
    pub(crate) updated_at: i64,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(crate) labels: Labels,
    /// 1 view, 2 active, 3 committed.
    #[prost(uint32, tag = "6")]
    pub(crate) kind: u32,
}

/// A digest out of a record.
pub(crate) fn stored_digest(text: &str) -> Result<Digest> {
    text.parse().map_err(|_| Error::data_loss(format!("stored digest {text:?} is damaged")))
}
