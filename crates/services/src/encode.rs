//! Events of the metadata store as messages.

use gantry_api::TypeUrl as _;
use gantry_api::containerd::events as e;
use gantry_api::containerd::services::images::v1 as images;
use gantry_core::{Any, Labels};
use gantry_metadata::Event;
use prost::Name;

use crate::convert;

/// The message of `event`, packed as clients expect it.
pub fn encode_event(event: &Event) -> Any {
    match event.clone() {
        Event::NamespaceCreate { name, labels } => {
            pack(&e::NamespaceCreate { name, labels: wire(labels) })
        }
        Event::NamespaceUpdate { name, labels } => {
            pack(&e::NamespaceUpdate { name, labels: wire(labels) })
        }
        Event::NamespaceDelete { name } => pack(&e::NamespaceDelete { name }),
        Event::ContainerCreate { id, image, runtime_name, runtime_options } => {
            let runtime = e::container_create::Runtime {
                name: runtime_name,
                options: runtime_options.map(convert::any_to_wire),
            };
            pack(&e::ContainerCreate { id, image, runtime: Some(runtime) })
        }
        Event::ContainerUpdate { id, image, labels, snapshot_key } => {
            pack(&e::ContainerUpdate { id, image, labels: wire(labels), snapshot_key })
        }
        Event::ContainerDelete { id } => pack(&e::ContainerDelete { id }),
        Event::ImageCreate { name, labels } => {
            pack(&images::ImageCreate { name, labels: wire(labels) })
        }
        Event::ImageUpdate { name, labels } => {
            pack(&images::ImageUpdate { name, labels: wire(labels) })
        }
        Event::ImageDelete { name } => pack(&images::ImageDelete { name }),
        Event::ContentCreate { digest, size } => {
            pack(&e::ContentCreate { digest, size: convert::size_to_wire(size) })
        }
        Event::ContentDelete { digest } => pack(&e::ContentDelete { digest }),
        Event::SnapshotPrepare { key, parent, snapshotter } => {
            pack(&e::SnapshotPrepare { key, parent, snapshotter })
        }
        Event::SnapshotCommit { key, name, snapshotter } => {
            pack(&e::SnapshotCommit { key, name, snapshotter })
        }
        Event::SnapshotRemove { key, snapshotter } => pack(&e::SnapshotRemove { key, snapshotter }),
    }
}

fn wire(labels: Labels) -> std::collections::HashMap<String, String> {
    convert::labels_to_wire(labels)
}

fn pack<M: Name>(message: &M) -> Any {
    Any { type_url: M::type_url_bare(), value: message.encode_to_vec() }
}
