//! Records of the metadata store.

use std::collections::HashMap;
use std::time::SystemTime;

use gantry_api::containerd::services::containers::v1 as containers;
use gantry_api::containerd::services::content::v1 as content;
use gantry_api::containerd::services::images::v1 as images;
use gantry_api::containerd::services::leases::v1 as leases;
use gantry_api::containerd::services::namespaces::v1 as namespaces;
use gantry_api::containerd::types;
use gantry_errdefs::{Error, Result};
use gantry_metadata::{
    Container, ContentInfo, Image, Lease, NamespaceInfo, Resource, Runtime, Sandbox,
};

use super::{any, any_to_wire, descriptor, descriptor_to_wire, labels, labels_to_wire};
use super::{size_to_wire, time, time_to_wire};

pub(crate) fn container(wire: containers::Container) -> Container {
    let runtime = wire.runtime.unwrap_or_default();
    Container {
        id: wire.id,
        labels: labels(wire.labels),
        image: wire.image,
        runtime: Runtime { name: runtime.name, options: runtime.options.map(any) },
        spec: wire.spec.map(any),
        snapshotter: wire.snapshotter,
        snapshot_key: wire.snapshot_key,
        created_at: SystemTime::UNIX_EPOCH,
        updated_at: SystemTime::UNIX_EPOCH,
        extensions: wire.extensions.into_iter().map(|(k, v)| (k, any(v))).collect(),
        sandbox_id: wire.sandbox,
    }
}

pub(crate) fn container_to_wire(c: Container) -> containers::Container {
    containers::Container {
        id: c.id,
        labels: labels_to_wire(c.labels),
        image: c.image,
        runtime: Some(containers::container::Runtime {
            name: c.runtime.name,
            options: c.runtime.options.map(any_to_wire),
        }),
        spec: c.spec.map(any_to_wire),
        snapshotter: c.snapshotter,
        snapshot_key: c.snapshot_key,
        created_at: time_to_wire(c.created_at),
        updated_at: time_to_wire(c.updated_at),
        extensions: c.extensions.into_iter().map(|(k, v)| (k, any_to_wire(v))).collect(),
        sandbox: c.sandbox_id,
    }
}

/// An image from the wire.
///
/// # Errors
/// InvalidArgument without a target, or for one whose digest is none.
pub(crate) fn image(wire: images::Image) -> Result<Image> {
    let target = wire.target.ok_or_else(|| {
        Error::invalid_argument(format!("image {:?}: target must be set", wire.name))
    })?;
    let mut image = Image::new(wire.name, descriptor(target)?);
    image.labels = labels(wire.labels);
    Ok(image)
}

pub(crate) fn image_to_wire(image: Image) -> images::Image {
    images::Image {
        name: image.name,
        labels: labels_to_wire(image.labels),
        target: Some(descriptor_to_wire(image.target)),
        created_at: time_to_wire(image.created_at),
        updated_at: time_to_wire(image.updated_at),
    }
}

pub(crate) fn lease_to_wire(lease: Lease) -> leases::Lease {
    leases::Lease {
        id: lease.id,
        created_at: time_to_wire(lease.created_at),
        labels: labels_to_wire(lease.labels),
    }
}

pub(crate) fn resource(wire: leases::Resource) -> Resource {
    Resource { kind: wire.r#type, id: wire.id }
}

pub(crate) fn resource_to_wire(resource: Resource) -> leases::Resource {
    leases::Resource { id: resource.id, r#type: resource.kind }
}

pub(crate) fn namespace_to_wire(namespace: NamespaceInfo) -> namespaces::Namespace {
    namespaces::Namespace { name: namespace.name, labels: labels_to_wire(namespace.labels) }
}

pub(crate) fn content_info_to_wire(info: ContentInfo) -> content::Info {
    content::Info {
        digest: info.digest.into(),
        size: size_to_wire(info.size),
        created_at: time_to_wire(info.created_at),
        updated_at: time_to_wire(info.updated_at),
        labels: labels_to_wire(info.labels),
    }
}

pub(crate) fn sandbox(wire: types::Sandbox) -> Sandbox {
    let runtime = wire.runtime.unwrap_or_default();
    Sandbox {
        id: wire.sandbox_id,
        labels: labels(wire.labels),
        runtime: Runtime { name: runtime.name, options: runtime.options.map(any) },
        spec: wire.spec.map(any),
        sandboxer: wire.sandboxer,
        created_at: wire.created_at.map_or(SystemTime::UNIX_EPOCH, time),
        updated_at: wire.updated_at.map_or(SystemTime::UNIX_EPOCH, time),
        extensions: wire.extensions.into_iter().map(|(k, v)| (k, any(v))).collect(),
    }
}

pub(crate) fn sandbox_to_wire(s: Sandbox) -> types::Sandbox {
    types::Sandbox {
        sandbox_id: s.id,
        runtime: Some(types::sandbox::Runtime {
            name: s.runtime.name,
            options: s.runtime.options.map(any_to_wire),
        }),
        spec: s.spec.map(any_to_wire),
        labels: labels_to_wire(s.labels),
        created_at: time_to_wire(s.created_at),
        updated_at: time_to_wire(s.updated_at),
        extensions: s
            .extensions
            .into_iter()
            .map(|(k, v)| (k, any_to_wire(v)))
            .collect::<HashMap<_, _>>(),
        sandboxer: s.sandboxer,
    }
}
