//! The particulars of events, by type.

use gantry_api::containerd::events as e;
use gantry_api::containerd::services::images::v1 as images;
use gantry_core::Any;
use gantry_errdefs::{Error, Result};
use prost::Message;

use crate::events::Event;

/// Declares the variants with the names their messages have on the wire.
macro_rules! event_data {
    ($($(#[$doc:meta])* $variant:ident($message:ty), $name:literal;)*) => {
        /// What an event says, by its type.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum EventData {
            $($(#[$doc])* $variant($message),)*
            /// Of a type this client does not know.
            Other(Any),
        }

        impl EventData {
            fn decode(payload: &Any) -> Result<Self> {
                let name = payload.message_name();
                let bytes = payload.value.as_slice();
                let bad = |err| Error::invalid_argument(format!("event {name}: {err}"));
                Ok(match name {
                    $($name => Self::$variant(<$message>::decode(bytes).map_err(bad)?),)*
                    _ => Self::Other(payload.clone()),
                })
            }
        }
    };
}

event_data! {
    /// A task was made; it does not run yet.
    TaskCreate(e::TaskCreate), "containerd.events.TaskCreate";
    /// A task runs.
    TaskStart(e::TaskStart), "containerd.events.TaskStart";
    /// A process ended: the task's own when `id` is that of the container, else an exec.
    TaskExit(e::TaskExit), "containerd.events.TaskExit";
    /// A task or an exec was removed.
    TaskDelete(e::TaskDelete), "containerd.events.TaskDelete";
    /// An exec was added.
    TaskExecAdded(e::TaskExecAdded), "containerd.events.TaskExecAdded";
    /// An exec runs.
    TaskExecStarted(e::TaskExecStarted), "containerd.events.TaskExecStarted";
    /// The kernel killed a process of a task for want of memory.
    TaskOom(e::TaskOom), "containerd.events.TaskOOM";
    /// A task was frozen.
    TaskPaused(e::TaskPaused), "containerd.events.TaskPaused";
    /// A task was thawed.
    TaskResumed(e::TaskResumed), "containerd.events.TaskResumed";
    /// A task was checkpointed.
    TaskCheckpointed(e::TaskCheckpointed), "containerd.events.TaskCheckpointed";
    /// A container was made.
    ContainerCreate(e::ContainerCreate), "containerd.events.ContainerCreate";
    /// A container's record was changed.
    ContainerUpdate(e::ContainerUpdate), "containerd.events.ContainerUpdate";
    /// A container was removed.
    ContainerDelete(e::ContainerDelete), "containerd.events.ContainerDelete";
    /// A blob was committed.
    ContentCreate(e::ContentCreate), "containerd.events.ContentCreate";
    /// A blob was removed.
    ContentDelete(e::ContentDelete), "containerd.events.ContentDelete";
    /// An image was named.
    ImageCreate(images::ImageCreate), "containerd.services.images.v1.ImageCreate";
    /// An image's record was changed.
    ImageUpdate(images::ImageUpdate), "containerd.services.images.v1.ImageUpdate";
    /// An image's name was removed.
    ImageDelete(images::ImageDelete), "containerd.services.images.v1.ImageDelete";
    /// A namespace was made.
    NamespaceCreate(e::NamespaceCreate), "containerd.events.NamespaceCreate";
    /// A namespace's labels were changed.
    NamespaceUpdate(e::NamespaceUpdate), "containerd.events.NamespaceUpdate";
    /// A namespace was removed.
    NamespaceDelete(e::NamespaceDelete), "containerd.events.NamespaceDelete";
    /// A sandbox was made.
    SandboxCreate(e::SandboxCreate), "containerd.events.SandboxCreate";
    /// A sandbox runs.
    SandboxStart(e::SandboxStart), "containerd.events.SandboxStart";
    /// A sandbox ended.
    SandboxExit(e::SandboxExit), "containerd.events.SandboxExit";
    /// A snapshot was made.
    SnapshotPrepare(e::SnapshotPrepare), "containerd.events.SnapshotPrepare";
    /// A snapshot was committed.
    SnapshotCommit(e::SnapshotCommit), "containerd.events.SnapshotCommit";
    /// A snapshot was removed.
    SnapshotRemove(e::SnapshotRemove), "containerd.events.SnapshotRemove";
}

impl Event {
    /// The particulars by their type.
    ///
    /// # Errors
    /// InvalidArgument when the bytes are not what their type says.
    pub fn data(&self) -> Result<EventData> {
        // Daemons before 2.0 say `containerd.events` for some that are elsewhere.
        let image = self.payload.message_name().strip_prefix("containerd.events.Image");
        let moved = image.map(|image| format!("containerd.services.images.v1.Image{image}"));
        match moved {
            None => EventData::decode(&self.payload),
            Some(type_url) => {
                EventData::decode(&Any { type_url, value: self.payload.value.clone() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::typeurl;

    fn event(payload: Any) -> Event {
        let (namespace, topic) = (String::new(), String::new());
        Event { timestamp: SystemTime::UNIX_EPOCH, namespace, topic, payload }
    }

    #[test]
    fn events_have_types() {
        let oom = e::TaskOom { container_id: "c".into() };
        assert_eq!(event(typeurl::pack(&oom)).data().unwrap(), EventData::TaskOom(oom));
        let image = images::ImageCreate { name: "i".into(), ..Default::default() };
        let old =
            Any { type_url: "containerd.events.ImageCreate".into(), value: image.encode_to_vec() };
        assert_eq!(event(old).data().unwrap(), EventData::ImageCreate(image));
        let own = Any { type_url: "x/y".into(), value: vec![1] };
        assert_eq!(event(own.clone()).data().unwrap(), EventData::Other(own));
        let damaged = Any { type_url: "containerd.events.TaskExit".into(), value: vec![0xff] };
        assert!(event(damaged).data().unwrap_err().is_invalid_argument());
    }
}
