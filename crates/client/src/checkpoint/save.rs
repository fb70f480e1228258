//! From a container to an image.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use gantry_api::Payload as _;
use gantry_core::image::{Document, Index};
use gantry_core::platforms::{self, Matcher};
use gantry_core::{Descriptor, Digest, Labels, media_types, timestamp};
use gantry_errdefs::{Error, Result};
use prost::Message as _;

use super::{
    CHECKPOINT_LABEL, IMAGE_ANNOTATIONS, OPTIONS_MEDIA_TYPE, RUNTIME_ANNOTATION,
    RUNTIME_OPTIONS_MEDIA_TYPE, SNAPSHOTTER_ANNOTATION, SPEC_MEDIA_TYPE,
};
use crate::cancel::make_or_undo;
use crate::client::Client;
use crate::containers::{Container, ContainerRecord};
use crate::convert::any_out;
use crate::diff::DiffOptions;
use crate::image::Image;
use crate::images::ImageRecord;
use crate::local::gc_labels;
use crate::process::ProcessStatus;
use crate::tasks::{CheckpointOptions, Task};

/// What goes into a checkpoint's image: everything, unless it says otherwise.
#[derive(Clone, Debug, Default)]
pub struct CheckpointImageOptions {
    /// The image's name; None for `containerd.io/checkpoint/<id>:<time>`, to the second.
    pub name: Option<String>,
    /// How the processes are taken. An image path is refused: see [`Task::checkpoint`].
    pub criu: CheckpointOptions,
    /// Leaves out the processes; the container need have none.
    pub without_processes: bool,
    /// Leaves out what the container changed of its root filesystem.
    pub without_changes: bool,
    /// Leaves out the container's image: whoever restores must have it.
    pub without_image: bool,
}

impl CheckpointImageOptions {
    /// Names the image.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Ends the container once it is in the image.
    #[must_use]
    pub fn exit(mut self) -> Self {
        self.criu.exit = true;
        self
    }
}

impl Task {
    /// Checkpoints the task's container as an image; see [`Container::checkpoint_image`].
    ///
    /// # Errors
    /// As [`Container::checkpoint_image`].
    pub async fn checkpoint_image(&self, options: CheckpointImageOptions) -> Result<Image> {
        self.client.container(self.container_id()).await?.checkpoint_image(options).await
    }
}

impl Container {
    /// Checkpoints the container as an image: its processes, spec and runtime, its image and what
    /// it changed of its root filesystem. It is frozen meanwhile, and goes on after unless
    /// `options` say otherwise; one that was frozen before stays so. A container is made from it
    /// by [`crate::ContainerBuilder::from_checkpoint`], and its task by
    /// [`crate::TaskBuilder::from_checkpoint`]; Go's client and `ctr` restore it as well.
    ///
    /// Of an image of several platforms the one in use goes in, so that the checkpoint can be
    /// pushed whichever of the others are here.
    ///
    /// # Errors
    /// InvalidArgument for options with an image path; NotFound without a task, if its processes
    /// are wanted, or without its image; AlreadyExists when the name is another image's; Unknown
    /// with criu's text.
    pub async fn checkpoint_image(&self, options: CheckpointImageOptions) -> Result<Image> {
        if !options.criu.image_path.is_empty() {
            let why = format!("checkpoint of {:?}: an image has no image path", self.id());
            return Err(Error::invalid_argument(why));
        }
        let container = self.clone();
        let undo = |image: Image| async move {
            let images = image.client_images();
            if let Err(e) = images.delete(image.name(), false).await {
                tracing::debug!(image = image.name(), error = %e, "checkpoint left");
            }
        };
        make_or_undo(async move { container.save(options).await }, undo).await
    }

    async fn save(&self, options: CheckpointImageOptions) -> Result<Image> {
        let task = match self.task().await {
            Err(e) if e.is_not_found() && options.without_processes => None,
            other => Some(other?),
        };
        // Holds the parts until the image does.
        let guard = self.client().leases().guard().await?;
        let mut parts = Parts::new(guard.client());
        let record = guard.client().containers().get(self.id()).await?;
        let collected = parts.collect(&record, task.as_ref(), &options);
        let stored = match &task {
            Some(task) => task.while_frozen(collected).await,
            None => collected.await,
        };
        let stored = match stored {
            Ok(()) => parts.store(options.name.unwrap_or_else(|| default_name(self.id()))).await,
            Err(e) => Err(e),
        };
        if let Err(e) = guard.release().await {
            tracing::debug!(error = %e, "lease left to expire");
        }
        Ok(self.client().image_of(stored?))
    }
}

impl Task {
    /// Does `work` while the task is frozen, and thaws it unless it was frozen before.
    async fn while_frozen(&self, work: impl Future<Output = Result<()>>) -> Result<()> {
        if self.state().await?.status != ProcessStatus::Running {
            return work.await;
        }
        self.pause().await?;
        let done = work.await;
        match self.resume().await {
            // One that was to end has ended.
            Err(e) if done.is_ok() && self.is_there().await => Err(e),
            _ => done,
        }
    }

    async fn is_there(&self) -> bool {
        self.state().await.is_ok_and(|state| state.status != ProcessStatus::Stopped)
    }
}

/// The name of a checkpoint made just now, as Go's client forms it.
fn default_name(id: &str) -> String {
    let now = timestamp::format(SystemTime::now());
    let (date, time) = now.split_once('T').unwrap_or((&now, ""));
    let (year, day) = date.split_once('-').unwrap_or((date, ""));
    let time: String = time.chars().take_while(|c| c.is_ascii_digit() || *c == ':').collect();
    format!("containerd.io/checkpoint/{id}:{day}-{year}-{time}")
}

/// The parts of an index that is being made.
struct Parts<'a> {
    client: &'a Client,
    descriptors: Vec<Descriptor>,
    annotations: BTreeMap<String, String>,
}

impl<'a> Parts<'a> {
    fn new(client: &'a Client) -> Self {
        Self { client, descriptors: Vec::new(), annotations: BTreeMap::new() }
    }

    /// Collects what `options` ask for. Memory first: it is what must be taken at one moment with
    /// the changes of the root filesystem, and what fails most.
    async fn collect(
        &mut self,
        record: &ContainerRecord,
        task: Option<&Task>,
        options: &CheckpointImageOptions,
    ) -> Result<()> {
        for key in IMAGE_ANNOTATIONS {
            self.annotate(key, &record.image);
        }
        self.annotate(RUNTIME_ANNOTATION, &record.runtime.name);
        self.annotate(SNAPSHOTTER_ANNOTATION, &record.snapshotter);
        if let Some(task) = task.filter(|_| !options.without_processes) {
            for descriptor in task.under(self.client).checkpoint(&options.criu).await? {
                self.add(descriptor);
            }
            let how = prost_types::Any::pack(&options.criu.to_wire());
            self.add_message(OPTIONS_MEDIA_TYPE, &how).await?;
        } else if let Some(spec) = &record.spec {
            // With the processes the daemon stores it.
            self.add_message(SPEC_MEDIA_TYPE, &any_out(spec)).await?;
        }
        if let Some(options) = &record.runtime.options {
            self.add_message(RUNTIME_OPTIONS_MEDIA_TYPE, &any_out(options)).await?;
        }
        if !options.without_image && !record.image.is_empty() {
            self.add_image(&record.image).await?;
        }
        if !options.without_changes && !record.snapshot_key.is_empty() {
            let stored = changes(self.client, record).await?;
            self.add(stored);
        }
        Ok(())
    }

    fn annotate(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.annotations.insert(key.to_owned(), value.to_owned());
        }
    }

    fn add(&mut self, mut descriptor: Descriptor) {
        descriptor.platform.get_or_insert_with(platforms::default);
        self.descriptors.push(descriptor);
    }

    async fn add_image(&mut self, name: &str) -> Result<()> {
        let target = self.client.images().get(name).await?.target;
        let image = self.client.resolve_target(name, &target, &Matcher::host()).await;
        self.add(image.map_err(|e| e.context(format!("image {name:?}")))?.manifest_descriptor);
        Ok(())
    }

    async fn add_message(&mut self, media_type: &str, message: &prost_types::Any) -> Result<()> {
        let bytes = Bytes::from(message.encode_to_vec());
        let descriptor = described(media_type, &bytes);
        self.client.content().write_blob(&descriptor, bytes, &Labels::new()).await?;
        self.add(descriptor);
        Ok(())
    }

    /// Stores the index, which keeps its parts, and the image.
    async fn store(self, name: String) -> Result<ImageRecord> {
        let index = Index { annotations: self.annotations, ..Index::over(self.descriptors) };
        let bytes = serde_json::to_vec(&index)
            .map_err(|e| Error::internal(format!("encoding a checkpoint's index: {e}")))?;
        let bytes = Bytes::from(bytes);
        let target = described(media_types::OCI_INDEX, &bytes);
        let labels = gc_labels(&Document::Index(index));
        self.client.content().write_blob(&target, bytes, &labels).await?;
        let mut record = ImageRecord::new(name, target);
        let (key, value) = CHECKPOINT_LABEL;
        record.labels.insert(key.to_owned(), value.to_owned());
        self.client.images().create(&record).await
    }
}

fn described(media_type: &str, bytes: &Bytes) -> Descriptor {
    let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    Descriptor::new(media_type, Digest::of(bytes), size)
}

/// What a container changed of its root filesystem, stored as a layer.
async fn changes(client: &Client, record: &ContainerRecord) -> Result<Descriptor> {
    let snapshots = client.snapshots(&record.snapshotter);
    let upper = snapshots.mounts(&record.snapshot_key).await?;
    let parent = snapshots.stat(&record.snapshot_key).await?.parent;
    let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(12).collect();
    let key = format!("checkpoint-{random} {}", record.id);
    let lower = snapshots.view(&key, &parent, Labels::new()).await?;
    let reference = format!("checkpoint-rw-{}", record.snapshot_key);
    let options = DiffOptions { reference, ..DiffOptions::default() };
    let stored = client.diff().diff(&lower, &upper, options).await;
    let removed = snapshots.remove(&key).await;
    let stored = stored?;
    removed?;
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_gos_client() {
        let name = default_name("c1");
        let rest = name.strip_prefix("containerd.io/checkpoint/c1:").unwrap();
        let shape: String =
            rest.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "00-00-0000-00:00:00", "{name}");
    }
}
