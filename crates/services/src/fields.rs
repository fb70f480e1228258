//! Fields of event payloads, for filters such as `event.container_id==c1`.

use std::collections::HashMap;

use gantry_api::containerd::events as e;
use gantry_api::containerd::services::images::v1 as images;
use gantry_core::Any;
use gantry_events::FieldAccess;
use prost::Message;

/// Reads the text fields of every event type of the API. An empty field counts as absent, as
/// clients expect of filters by presence.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventFields;

impl FieldAccess for EventFields {
    fn field(&self, event: &Any, path: &[&str]) -> Option<String> {
        read(event.message_name(), &event.value, path).filter(|text| !text.is_empty())
    }
}

/// Decodes `$bytes` as `$message` and picks the field by its name.
macro_rules! texts {
    ($bytes:expr, $path:expr, $message:ty, $($field:ident),+) => {{
        let message = <$message>::decode($bytes).ok()?;
        match $path {
            $([stringify!($field)] => Some(message.$field),)+
            _ => None,
        }
    }};
}

/// As `texts`, for messages with labels.
macro_rules! labelled {
    ($bytes:expr, $path:expr, $message:ty, $($field:ident),+) => {{
        let message = <$message>::decode($bytes).ok()?;
        match $path {
            $([stringify!($field)] => Some(message.$field),)+
            ["labels", key @ ..] => label(message.labels, key),
            _ => None,
        }
    }};
}

fn label(mut labels: HashMap<String, String>, key: &[&str]) -> Option<String> {
    labels.remove(&key.join("."))
}

fn read(name: &str, bytes: &[u8], path: &[&str]) -> Option<String> {
    let kind = match name.strip_prefix("containerd.events.") {
        Some(kind) => kind,
        None => return read_image(name, bytes, path),
    };
    match kind {
        "ContainerCreate" => {
            let message = e::ContainerCreate::decode(bytes).ok()?;
            match path {
                ["id"] => Some(message.id),
                ["image"] => Some(message.image),
                ["runtime", "name"] => message.runtime.map(|r| r.name),
                _ => None,
            }
        }
        "ContainerUpdate" => labelled!(bytes, path, e::ContainerUpdate, id, image, snapshot_key),
        "ContainerDelete" => texts!(bytes, path, e::ContainerDelete, id),
        "ContentCreate" => texts!(bytes, path, e::ContentCreate, digest),
        "ContentDelete" => texts!(bytes, path, e::ContentDelete, digest),
        "NamespaceCreate" => labelled!(bytes, path, e::NamespaceCreate, name),
        "NamespaceUpdate" => labelled!(bytes, path, e::NamespaceUpdate, name),
        "NamespaceDelete" => texts!(bytes, path, e::NamespaceDelete, name),
        "ImageCreate" | "ImageUpdate" | "ImageDelete" => read_image(name, bytes, path),
        "SandboxCreate" => texts!(bytes, path, e::SandboxCreate, sandbox_id),
        "SandboxStart" => texts!(bytes, path, e::SandboxStart, sandbox_id),
        "SandboxExit" => texts!(bytes, path, e::SandboxExit, sandbox_id),
        "SnapshotPrepare" => texts!(bytes, path, e::SnapshotPrepare, key, parent, snapshotter),
        "SnapshotCommit" => texts!(bytes, path, e::SnapshotCommit, key, name, snapshotter),
        "SnapshotRemove" => texts!(bytes, path, e::SnapshotRemove, key, snapshotter),
        _ => read_task(kind, bytes, path),
    }
}

fn read_task(kind: &str, bytes: &[u8], path: &[&str]) -> Option<String> {
    match kind {
        "TaskCreate" => {
            let message = e::TaskCreate::decode(bytes).ok()?;
            match path {
                ["container_id"] => Some(message.container_id),
                ["bundle"] => Some(message.bundle),
                ["checkpoint"] => Some(message.checkpoint),
                ["io", "stdin"] => message.io.map(|io| io.stdin),
                ["io", "stdout"] => message.io.map(|io| io.stdout),
                ["io", "stderr"] => message.io.map(|io| io.stderr),
                _ => None,
            }
        }
        "TaskStart" => texts!(bytes, path, e::TaskStart, container_id),
        "TaskDelete" => texts!(bytes, path, e::TaskDelete, container_id, id),
        "TaskExit" => texts!(bytes, path, e::TaskExit, container_id, id),
        "TaskOOM" => texts!(bytes, path, e::TaskOom, container_id),
        "TaskExecAdded" => texts!(bytes, path, e::TaskExecAdded, container_id, exec_id),
        "TaskExecStarted" => texts!(bytes, path, e::TaskExecStarted, container_id, exec_id),
        "TaskPaused" => texts!(bytes, path, e::TaskPaused, container_id),
        "TaskResumed" => texts!(bytes, path, e::TaskResumed, container_id),
        "TaskCheckpointed" => texts!(bytes, path, e::TaskCheckpointed, container_id, checkpoint),
        _ => None,
    }
}

/// Image events live in the package of the images service.
fn read_image(name: &str, bytes: &[u8], path: &[&str]) -> Option<String> {
    match name.rsplit('.').next()? {
        "ImageCreate" => labelled!(bytes, path, images::ImageCreate, name),
        "ImageUpdate" => labelled!(bytes, path, images::ImageUpdate, name),
        "ImageDelete" => texts!(bytes, path, images::ImageDelete, name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Name;

    fn any<M: Name>(message: &M) -> Any {
        Any { type_url: M::full_name(), value: message.encode_to_vec() }
    }

    #[test]
    fn reads_text_labels_and_nested_fields() {
        let exit = e::TaskExit { container_id: "c1".into(), pid: 9, ..Default::default() };
        assert_eq!(EventFields.field(&any(&exit), &["container_id"]).as_deref(), Some("c1"));
        assert_eq!(EventFields.field(&any(&exit), &["id"]), None, "empty counts as absent");
        assert_eq!(EventFields.field(&any(&exit), &["pid"]), None);

        let labels = [("a.b".to_owned(), "x".to_owned())].into();
        let image = images::ImageCreate { name: "n".into(), labels };
        assert_eq!(EventFields.field(&any(&image), &["labels", "a", "b"]).as_deref(), Some("x"));

        let runtime = e::container_create::Runtime { name: "r".into(), options: None };
        let create = e::ContainerCreate { runtime: Some(runtime), ..Default::default() };
        assert_eq!(EventFields.field(&any(&create), &["runtime", "name"]).as_deref(), Some("r"));
    }

    #[test]
    fn garbage_has_no_fields() {
        let bad = Any { type_url: "containerd.events.TaskExit".into(), value: vec![0xff] };
        assert_eq!(EventFields.field(&bad, &["container_id"]), None);
        let unknown = Any { type_url: "x.Y".into(), value: Vec::new() };
        assert_eq!(EventFields.field(&unknown, &["container_id"]), None);
    }
}
