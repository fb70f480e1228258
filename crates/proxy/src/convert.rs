//! Wire types to and from the project's own.

use std::time::SystemTime;

use gantry_api::containerd::types;
use gantry_core::Descriptor;
use gantry_errdefs::{Error, Result};
use gantry_mount::Mount;
use prost_types::Timestamp;

/// The time a plugin sent; one that no clock shows, or none, is the epoch.
pub(crate) fn time(time: Option<Timestamp>) -> SystemTime {
    time.and_then(|t| SystemTime::try_from(t).ok()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A size from the wire, where it is signed.
pub(crate) fn size(size: i64) -> u64 {
    u64::try_from(size).unwrap_or(0)
}

/// A size for the wire.
pub(crate) fn size_to_wire(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

pub(crate) fn mounts(wire: Vec<types::Mount>) -> Vec<Mount> {
    wire.into_iter()
        .map(|m| Mount { kind: m.r#type, source: m.source, target: m.target, options: m.options })
        .collect()
}

pub(crate) fn mounts_to_wire(mounts: &[Mount]) -> Vec<types::Mount> {
    mounts
        .iter()
        .cloned()
        .map(|m| types::Mount {
            r#type: m.kind,
            source: m.source,
            target: m.target,
            options: m.options,
        })
        .collect()
}

pub(crate) fn descriptor_to_wire(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: descriptor.size,
        annotations: descriptor.annotations.clone().into_iter().collect(),
    }
}

/// A descriptor that a plugin must have sent.
///
/// # Errors
/// Unknown when there is none; InvalidArgument for a digest that is none.
pub(crate) fn descriptor(wire: Option<types::Descriptor>) -> Result<Descriptor> {
    let wire = required(wire, "a descriptor")?;
    let mut descriptor = Descriptor::new(wire.media_type, wire.digest.parse()?, wire.size);
    descriptor.annotations = wire.annotations.into_iter().collect();
    Ok(descriptor)
}

/// A field that an answer cannot do without.
///
/// # Errors
/// Unknown naming the field.
pub(crate) fn required<T>(field: Option<T>, name: &str) -> Result<T> {
    field.ok_or_else(|| Error::unknown(format!("the plugin's answer lacks {name}")))
}
