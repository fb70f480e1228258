//! Wire types to and from the project's own.

mod records;

use std::collections::HashMap;
use std::time::SystemTime;

use gantry_api::containerd::types;
use gantry_core::{Any, Descriptor, Labels, Platform};
use gantry_errdefs::Result;
use gantry_mount::Mount;
use prost_types::Timestamp;

pub(crate) use records::{
    container, container_to_wire, content_info_to_wire, image, image_to_wire, lease_to_wire,
    namespace_to_wire, resource, resource_to_wire, sandbox, sandbox_to_wire,
};

pub(crate) fn labels(map: HashMap<String, String>) -> Labels {
    map.into_iter().collect()
}

pub(crate) fn labels_to_wire(labels: Labels) -> HashMap<String, String> {
    labels.into_iter().collect()
}

pub(crate) fn time_to_wire(time: SystemTime) -> Option<Timestamp> {
    Some(Timestamp::from(time))
}

/// The time a client sent; one that no clock shows is the epoch.
pub(crate) fn time(time: Timestamp) -> SystemTime {
    SystemTime::try_from(time).unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(crate) fn any(any: prost_types::Any) -> Any {
    Any { type_url: any.type_url, value: any.value }
}

pub(crate) fn any_to_wire(any: Any) -> prost_types::Any {
    prost_types::Any { type_url: any.type_url, value: any.value }
}

pub(crate) fn platform_to_wire(platform: &Platform) -> types::Platform {
    types::Platform {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}

pub(crate) fn platform(platform: types::Platform) -> Platform {
    Platform {
        os: platform.os,
        architecture: platform.architecture,
        variant: platform.variant,
        os_version: platform.os_version,
        os_features: platform.os_features,
    }
}

/// A descriptor from the wire.
///
/// # Errors
/// InvalidArgument for a digest that is none.
pub(crate) fn descriptor(wire: types::Descriptor) -> Result<Descriptor> {
    let mut descriptor = Descriptor::new(wire.media_type, wire.digest.parse()?, wire.size);
    descriptor.annotations = labels(wire.annotations);
    Ok(descriptor)
}

pub(crate) fn descriptor_to_wire(descriptor: Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type,
        digest: descriptor.digest.into(),
        size: descriptor.size,
        annotations: labels_to_wire(descriptor.annotations),
    }
}

pub(crate) fn mount(wire: types::Mount) -> Mount {
    Mount { kind: wire.r#type, source: wire.source, target: wire.target, options: wire.options }
}

pub(crate) fn mount_to_wire(mount: Mount) -> types::Mount {
    types::Mount {
        r#type: mount.kind,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    }
}

pub(crate) fn mounts(wire: Vec<types::Mount>) -> Vec<Mount> {
    wire.into_iter().map(mount).collect()
}

pub(crate) fn mounts_to_wire(mounts: Vec<Mount>) -> Vec<types::Mount> {
    mounts.into_iter().map(mount_to_wire).collect()
}

/// A size for the wire, where it is signed.
pub(crate) fn size_to_wire(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// The paths of a field mask; none when the client sent none, which means everything.
pub(crate) fn mask(mask: Option<prost_types::FieldMask>) -> Vec<String> {
    mask.map(|m| m.paths).unwrap_or_default()
}
