//! The client library: containers, tasks, images, content, leases and events of a containerd
//! daemon, ours or another.
//!
//! A [`Client`] is cheap to clone and connects when it is first used; after a restart of the
//! daemon the next call connects again. Services hang off it by name, each usable alone. Calls
//! carry the client's namespace and, when it has one, its lease.
//!
//! ```no_run
//! # async fn story() -> gantry_client::Result<()> {
//! use gantry_client::{Client, PullOptions, Stdio};
//!
//! let client = Client::connect("/run/gantry/gantry.sock")?.in_namespace("demo");
//! let pull = PullOptions::new("docker.io/library/busybox:latest");
//! client.transfer().pull(pull, |_| {}).await?;
//! let image = client.resolve_image("docker.io/library/busybox:latest", None).await?;
//! let spec = gantry_client::oci::SpecBuilder::new("demo", "hello")
//!     .image_config(&image.config.config)
//!     .args(["echo", "hello"])
//!     .build()?;
//! let parent = image.chain_id().to_string();
//! client.snapshots("overlayfs").prepare("hello", &parent, Default::default()).await?;
//! let container = client
//!     .container_builder("hello")
//!     .image(&image.name)
//!     .snapshot("overlayfs", "hello")
//!     .spec(&spec)?
//!     .create()
//!     .await?;
//! let task = container.new_task(&Stdio::null()).create().await?;
//! task.start().await?;
//! let exit = task.wait().await?;
//! task.delete().await?;
//! # assert_eq!(exit.code, 0); Ok(())
//! # }
//! ```
//!
//! Errors are [`Error`]s with a class to test for (`is_not_found()` and so on). Dropping a call's
//! future cancels the call. Nothing here needs the daemon's files: only mounting a snapshot needs
//! the same machine.
#![forbid(unsafe_code)]

mod beside;
mod cancel;
mod checkpoint;
mod client;
mod container_builder;
mod containers;
mod content;
mod convert;
mod diff;
mod doctor;
mod event_data;
mod event_filter;
mod events;
mod events_json;
mod image;
mod image_convert;
mod images;
mod introspection;
mod io;
mod leases;
mod local;
mod moving;
mod namespaces;
mod process;
mod resolved;
pub mod rootfs;
mod shims;
mod snapshots;
mod streams;
mod tasks;
mod transfer;
mod transport;
pub mod typeurl;
mod unpack;

pub use checkpoint::{CRIU_MEDIA_TYPE, CheckpointImageOptions};
pub use client::{Client, ClientBuilder, MESSAGE_SIZE_MAX, Version};
pub use container_builder::{ContainerBuilder, DEFAULT_SNAPSHOTTER};
pub use containers::{Container, ContainerRecord, ContainerUpdate, Containers, Runtime};
pub use content::{BlobInfo, Content, ContentReader, ContentWriter, IngestStatus, WriterOptions};
pub use convert::{Mount, time_of};
pub use diff::{ApplyOptions, Diff, DiffOptions};
pub use doctor::{Doctor, Examination, ExamineOptions, Finding};
pub use event_data::EventData;
pub use event_filter::EventFilter;
pub use events::{Event, EventFollower, EventStream, Events, Followed};
pub use gantry_api as api;
pub use gantry_core as core;
pub use gantry_errdefs::{Class, Error, Result};
pub use gantry_oci as oci;
pub use gantry_registry::{HostStep, HttpLog, Step as RegistryStep, TlsFiles};
pub use image::{Image, ImageUsage};
pub use image_convert::ConvertOptions;
pub use images::{ImageRecord, Images};
pub use introspection::{Deprecation, Introspection, PluginRecord, RuntimeInfo, ServerInfo};
pub use io::{FifoSet, Output, Stdio, Streams};
pub use leases::{Lease, LeaseGuard, LeaseOptions, Leases};
pub use local::explain::{Explained, explain_pull};
pub use namespaces::{NamespaceRecord, Namespaces};
pub use process::{ExitStatus, KillOptions, Process, ProcessState, ProcessStatus, UNKNOWN_EXIT};
pub use resolved::ResolvedImage;
pub use rootfs::IdMap;
pub use shims::{ShimOutcome, ShimRecord, ShimStatus, ShimUpgradeOptions, Shims};
pub use snapshots::{SnapshotKind, SnapshotRecord, Snapshots, Usage, VOLATILE_LABEL};
pub use tasks::{CheckpointOptions, Metrics, PidInfo, Task, TaskBuilder, TaskMetrics, Tasks};
pub use transfer::{
    CopyOptions, Credentials, ExportOptions, ImportOptions, Progress, PullOptions, PushOptions,
    RegistryOptions, Transfer,
};
pub use typeurl::{pack as pack_any, unpack as unpack_any};
pub use unpack::UnpackOptions;

#[cfg(test)]
mod tests {
    use super::*;

    fn is_send<T: Send>(_: &T) {}

    /// Programs spawn calls; a call that cannot move to another thread would be of no use.
    #[tokio::test]
    async fn calls_may_be_spawned() {
        let client = Client::without_daemon();
        is_send(&client.pull(PullOptions::new("x")));
        is_send(&client.push(PushOptions::new("x", "y")));
        is_send(&client.import(tokio::io::empty(), ImportOptions::default()));
        is_send(&client.convert_image("x", "y", &ConvertOptions::default()));
        is_send(&client.container_builder("x").create());
        is_send(&client.tasks().process("x", "").wait());
        is_send(&client.events().follow(&[]));
        let mut out = Vec::new();
        is_send(&client.export(&[], true, &mut out));
    }
}
