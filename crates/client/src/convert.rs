//! Wire types to ours and back.

use std::collections::{BTreeMap, HashMap};
use std::error::Error as _;
use std::time::SystemTime;

use gantry_api::containerd::types;
use gantry_core::{Any, Descriptor, Labels, Platform, timestamp};
use gantry_errdefs::{Class, Error, Result};

/// A mount as a snapshotter gives it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Mount {
    /// Filesystem type, such as `overlay` or `bind`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Where, relative to the mount point; usually empty.
    pub target: String,
    /// Options, in fstab's form.
    pub options: Vec<String>,
}

impl From<types::Mount> for Mount {
    fn from(m: types::Mount) -> Self {
        Self { kind: m.r#type, source: m.source, target: m.target, options: m.options }
    }
}

impl From<Mount> for types::Mount {
    fn from(m: Mount) -> Self {
        Self { r#type: m.kind, source: m.source, target: m.target, options: m.options }
    }
}

/// The time a protobuf timestamp stands for.
pub fn time_of(timestamp: &prost_types::Timestamp) -> SystemTime {
    timestamp::from_parts(timestamp.seconds, timestamp.nanos)
}

/// The time of an optional timestamp; the epoch when there is none.
pub(crate) fn time(timestamp: Option<prost_types::Timestamp>) -> SystemTime {
    timestamp.as_ref().map_or(SystemTime::UNIX_EPOCH, time_of)
}

/// What tonic and hyper say of a connection that broke. Without tonic's server half, which most
/// programs do not have, it is hyper's own words that arrive.
const BROKEN: [&str; 3] =
    ["transport error", "h2 protocol error", "error reading a body from connection"];

/// The error of a failed call. A broken connection is Unavailable, whatever tonic calls it.
pub(crate) fn status(status: tonic::Status) -> Error {
    let broken = status.source().is_some_and(|e| e.is::<tonic::transport::Error>())
        || (status.code() == tonic::Code::Unknown
            && BROKEN.iter().any(|text| status.message().contains(text)));
    if !broken {
        // A call's deadline, as tonic tells it on either side, and as containerd 1.x does.
        let error = Error::from(status);
        let late = match error.class() {
            Class::Canceled => error.message().contains("Timeout expired"),
            Class::Unknown => error.message().contains("context deadline exceeded"),
            _ => false,
        };
        return if late { Error::deadline_exceeded("daemon: no answer in time") } else { error };
    }
    // The innermost cause says why: no such file, connection refused. The message may end in it.
    let mut text = format!("daemon: {}", status.message());
    let mut cause = status.source().and_then(std::error::Error::source);
    while let Some(inner) = cause {
        let why = inner.to_string();
        if inner.source().is_none() && !text.ends_with(&why) {
            text.push_str(&format!(": {why}"));
        }
        cause = inner.source();
    }
    Error::unavailable(text).with_source(Disconnected)
}

/// The mark of errors that are about the connection to the daemon, not about its answer.
#[derive(Debug)]
pub(crate) struct Disconnected;

impl std::fmt::Display for Disconnected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection to the daemon broke")
    }
}

impl std::error::Error for Disconnected {}

/// Whether the connection broke, so that nobody knows what the daemon would have answered.
pub(crate) fn is_disconnected(error: &Error) -> bool {
    error.source().is_some_and(|e| e.is::<Disconnected>())
}

/// The error of a stream that ended before its time.
pub(crate) fn cut_off(what: impl std::fmt::Display) -> Error {
    Error::unavailable(format!("{what}: closed by the daemon")).with_source(Disconnected)
}

/// What must be in an answer.
pub(crate) fn required<T>(field: Option<T>, what: &str) -> Result<T> {
    field.ok_or_else(|| Error::internal(format!("daemon: answered without {what}")))
}

pub(crate) fn labels(map: HashMap<String, String>) -> Labels {
    map.into_iter().collect()
}

pub(crate) fn label_map(labels: &Labels) -> HashMap<String, String> {
    labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

pub(crate) fn any(value: prost_types::Any) -> Any {
    Any { type_url: value.type_url, value: value.value }
}

pub(crate) fn any_out(value: &Any) -> prost_types::Any {
    prost_types::Any { type_url: value.type_url.clone(), value: value.value.clone() }
}

pub(crate) fn descriptor(d: types::Descriptor) -> Result<Descriptor> {
    let annotations: BTreeMap<_, _> = d.annotations.into_iter().collect();
    Ok(Descriptor { annotations, ..Descriptor::new(d.media_type, d.digest.parse()?, d.size) })
}

pub(crate) fn descriptor_out(d: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: d.media_type.clone(),
        digest: d.digest.to_string(),
        size: d.size,
        annotations: d.annotations.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
    }
}

pub(crate) fn platform_out(p: &Platform) -> types::Platform {
    types::Platform {
        os: p.os.clone(),
        architecture: p.architecture.clone(),
        variant: p.variant.clone(),
        os_version: p.os_version.clone(),
        os_features: p.os_features.clone(),
    }
}

pub(crate) fn platform(p: types::Platform) -> Platform {
    Platform {
        architecture: p.architecture,
        os: p.os,
        os_version: p.os_version,
        os_features: p.os_features,
        variant: p.variant,
    }
}

/// A mask of `labels.<key>` for each of `keys`.
pub(crate) fn label_mask<'a>(keys: impl Iterator<Item = &'a String>) -> prost_types::FieldMask {
    prost_types::FieldMask { paths: keys.map(|k| format!("labels.{k}")).collect() }
}
