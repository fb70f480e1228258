//! Event payloads as JSON. The wire types carry no names at run time, so each is written out.

use gantry_api::containerd::events as e;
use gantry_api::containerd::services::images::v1 as images;
use gantry_core::{Any, timestamp};
use prost::Message;
use serde_json::{Map, Value, json};

use crate::convert::time_of;

/// The payload as JSON; for an unknown type or bad bytes, the type URL alone.
pub(crate) fn render(payload: &Any) -> Value {
    let name = payload.message_name();
    let bytes = payload.value.as_slice();
    let rendered = match name.strip_prefix("containerd.events.") {
        Some(event) if event.starts_with("Task") => task(event, bytes),
        Some(event) => other(event, bytes),
        None => image(name, bytes),
    };
    match rendered {
        Some(Value::Object(fields)) => Value::Object(without_empty(fields)),
        _ => json!({"type_url": payload.type_url}),
    }
}

fn task(event: &str, bytes: &[u8]) -> Option<Value> {
    Some(match event {
        "TaskCreate" => {
            let m = e::TaskCreate::decode(bytes).ok()?;
            let io = m.io.unwrap_or_default();
            json!({
                "container_id": m.container_id,
                "bundle": m.bundle,
                "rootfs": m.rootfs.iter().map(|m| json!({
                    "type": m.r#type, "source": m.source, "target": m.target, "options": m.options,
                })).collect::<Vec<_>>(),
                "io": without_empty_value(json!({
                    "stdin": io.stdin, "stdout": io.stdout, "stderr": io.stderr,
                    "terminal": io.terminal,
                })),
                "checkpoint": m.checkpoint,
                "pid": m.pid,
            })
        }
        "TaskStart" => {
            let m = e::TaskStart::decode(bytes).ok()?;
            json!({"container_id": m.container_id, "pid": m.pid})
        }
        "TaskExit" => {
            let m = e::TaskExit::decode(bytes).ok()?;
            json!({
                "container_id": m.container_id, "id": m.id, "pid": m.pid,
                "exit_status": m.exit_status, "exited_at": time(m.exited_at),
            })
        }
        "TaskDelete" => {
            let m = e::TaskDelete::decode(bytes).ok()?;
            json!({
                "container_id": m.container_id, "pid": m.pid, "exit_status": m.exit_status,
                "exited_at": time(m.exited_at), "id": m.id,
            })
        }
        "TaskExecAdded" => {
            let m = e::TaskExecAdded::decode(bytes).ok()?;
            json!({"container_id": m.container_id, "exec_id": m.exec_id})
        }
        "TaskExecStarted" => {
            let m = e::TaskExecStarted::decode(bytes).ok()?;
            json!({"container_id": m.container_id, "exec_id": m.exec_id, "pid": m.pid})
        }
        "TaskOOM" => json!({"container_id": e::TaskOom::decode(bytes).ok()?.container_id}),
        "TaskPaused" => json!({"container_id": e::TaskPaused::decode(bytes).ok()?.container_id}),
        "TaskResumed" => json!({"container_id": e::TaskResumed::decode(bytes).ok()?.container_id}),
        "TaskCheckpointed" => {
            let m = e::TaskCheckpointed::decode(bytes).ok()?;
            json!({"container_id": m.container_id, "checkpoint": m.checkpoint})
        }
        _ => return None,
    })
}

fn other(event: &str, bytes: &[u8]) -> Option<Value> {
    Some(match event {
        "ContainerCreate" => {
            let m = e::ContainerCreate::decode(bytes).ok()?;
            let runtime = m.runtime.unwrap_or_default();
            json!({
                "id": m.id, "image": m.image,
                "runtime": without_empty_value(json!({
                    "name": runtime.name,
                    "options": runtime.options.map(|o| json!({"type_url": o.type_url})),
                })),
            })
        }
        "ContainerUpdate" => {
            let m = e::ContainerUpdate::decode(bytes).ok()?;
            json!({
                "id": m.id, "image": m.image, "labels": m.labels, "snapshot_key": m.snapshot_key,
            })
        }
        "ContainerDelete" => json!({"id": e::ContainerDelete::decode(bytes).ok()?.id}),
        "ContentCreate" => {
            let m = e::ContentCreate::decode(bytes).ok()?;
            json!({"digest": m.digest, "size": m.size})
        }
        "ContentDelete" => json!({"digest": e::ContentDelete::decode(bytes).ok()?.digest}),
        "ImageCreate" | "ImageUpdate" | "ImageDelete" => return image(event, bytes),
        "NamespaceCreate" => {
            let m = e::NamespaceCreate::decode(bytes).ok()?;
            json!({"name": m.name, "labels": m.labels})
        }
        "NamespaceUpdate" => {
            let m = e::NamespaceUpdate::decode(bytes).ok()?;
            json!({"name": m.name, "labels": m.labels})
        }
        "NamespaceDelete" => json!({"name": e::NamespaceDelete::decode(bytes).ok()?.name}),
        "SandboxCreate" => json!({"sandbox_id": e::SandboxCreate::decode(bytes).ok()?.sandbox_id}),
        "SandboxStart" => json!({"sandbox_id": e::SandboxStart::decode(bytes).ok()?.sandbox_id}),
        "SandboxExit" => {
            let m = e::SandboxExit::decode(bytes).ok()?;
            json!({
                "sandbox_id": m.sandbox_id, "exit_status": m.exit_status,
                "exited_at": time(m.exited_at),
            })
        }
        "SnapshotPrepare" => {
            let m = e::SnapshotPrepare::decode(bytes).ok()?;
            json!({"key": m.key, "parent": m.parent, "snapshotter": m.snapshotter})
        }
        "SnapshotCommit" => {
            let m = e::SnapshotCommit::decode(bytes).ok()?;
            json!({"key": m.key, "name": m.name, "snapshotter": m.snapshotter})
        }
        "SnapshotRemove" => {
            let m = e::SnapshotRemove::decode(bytes).ok()?;
            json!({"key": m.key, "snapshotter": m.snapshotter})
        }
        _ => return None,
    })
}

/// Events of images are in the package of their service, whatever prefix the sender used.
fn image(name: &str, bytes: &[u8]) -> Option<Value> {
    Some(match name.rsplit('.').next().unwrap_or_default() {
        "ImageCreate" => {
            let m = images::ImageCreate::decode(bytes).ok()?;
            json!({"name": m.name, "labels": m.labels})
        }
        "ImageUpdate" => {
            let m = images::ImageUpdate::decode(bytes).ok()?;
            json!({"name": m.name, "labels": m.labels})
        }
        "ImageDelete" => json!({"name": images::ImageDelete::decode(bytes).ok()?.name}),
        _ => return None,
    })
}

fn time(t: Option<prost_types::Timestamp>) -> Value {
    t.map_or(Value::Null, |t| timestamp::format(time_of(&t)).into())
}

fn without_empty_value(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(without_empty(fields)),
        other => other,
    }
}

fn without_empty(fields: Map<String, Value>) -> Map<String, Value> {
    let empty = |v: &Value| match v {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Number(n) => n.as_i64() == Some(0),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Bool(true) => false,
    };
    fields.into_iter().filter(|(_, v)| !empty(v)).collect()
}
