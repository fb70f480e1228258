//! Checkpoints as images, and containers from them: an index of everything a container is made of.
//!
//! The layout is that of Go's client, so that each restores what the other has checkpointed.

use bytes::Bytes;
use gantry_api::Payload as _;
use gantry_api::containerd::runc::v1 as runc;
use gantry_core::image::Index;
use gantry_core::{Descriptor, Digest, Labels, media_types, platforms};
use gantry_errdefs::{Error, Result};
use prost::Message as _;

use crate::checkpoint_image::{
    CRIU_MEDIA_TYPE, IMAGE_ANNOTATION, RUNTIME_ANNOTATION, SNAPSHOTTER_ANNOTATION, SPEC_MEDIA_TYPE,
    changes, index_of, write_index,
};
use crate::client::Client;
use crate::containers::{Container, ContainerRecord};
use crate::convert::{any, any_out};
use crate::diff::DiffOptions;
use crate::images::ImageRecord;
use crate::process::ProcessStatus;
use crate::tasks::{CheckpointOptions, Task};

/// Media types of an index's parts, besides memory and spec.
const OPTIONS: &str = "application/vnd.containerd.container.checkpoint.options.v1+proto";
const RUNTIME_OPTIONS: &str =
    "application/vnd.containerd.container.checkpoint.runtime.options+proto";

/// The image's name in a container's checkpoint; that of a task alone has [`IMAGE_ANNOTATION`].
const IMAGE_NAME: &str = "org.opencontainers.image.ref.name";

/// Marks images that are checkpoints of tasks.
const CHECKPOINT_LABEL: &str = "containerd.io/checkpoint";

/// What goes into a container's checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckpointParts {
    /// The image it was made from.
    pub image: bool,
    /// What it has written.
    pub rw: bool,
    /// Its processes.
    pub task: bool,
}

/// What is taken from a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreParts {
    /// What it had written.
    pub rw: bool,
}

impl Task {
    /// Checkpoints the task as an image: its processes, its image and what it has written, all
    /// while it is frozen. The name is given, or made from the container and the time.
    ///
    /// # Errors
    /// Unknown with criu's text.
    pub async fn checkpoint_image(
        &self,
        name: &str,
        options: &CheckpointOptions,
    ) -> Result<ImageRecord> {
        let client = self.client.clone();
        let record = client.containers().get(self.container_id()).await?;
        let guard = client.leases().guard().await?;
        let stored = async {
            let mut parts = Parts::new(guard.client());
            self.while_frozen(async {
                parts.descriptors = self.checkpoint_under(guard.client(), options).await?;
                if !record.image.is_empty() {
                    parts.add_image(&record.image).await?;
                    parts.annotate(IMAGE_ANNOTATION, &record.image);
                }
                parts.add_rw(&record).await
            })
            .await?;
            let labels = Labels::from([(CHECKPOINT_LABEL.to_owned(), "true".to_owned())]);
            parts.store(name, labels).await
        };
        let stored = stored.await;
        let released = guard.release().await;
        let stored = stored?;
        released.map(|()| stored)
    }

    /// Does `work` while the task is frozen, and thaws it unless it was frozen before.
    async fn while_frozen(&self, work: impl Future<Output = Result<()>>) -> Result<()> {
        let was_frozen = self.state().await?.status == ProcessStatus::Paused;
        if !was_frozen {
            self.pause().await?;
        }
        let done = work.await;
        if was_frozen {
            return done;
        }
        match self.resume().await {
            // One that was to end has ended.
            Err(e) if done.is_ok() && self.is_running().await => Err(e),
            _ => done,
        }
    }

    async fn is_running(&self) -> bool {
        let stopped = ProcessStatus::Stopped;
        self.state().await.is_ok_and(|state| state.status != stopped)
    }

    async fn checkpoint_under(
        &self,
        client: &Client,
        options: &CheckpointOptions,
    ) -> Result<Vec<Descriptor>> {
        client.tasks().load(self.container_id()).await?.checkpoint(options).await
    }
}

impl Container {
    /// Checkpoints the container as the image `name`; its task, if it has one, is frozen meanwhile.
    ///
    /// # Errors
    /// AlreadyExists for the name; NotFound without a task that is asked for; Unknown with criu's
    /// text.
    pub async fn checkpoint(&self, name: &str, parts: CheckpointParts) -> Result<ImageRecord> {
        let guard = self.client().leases().guard().await?;
        let task = match self.task().await {
            Err(e) if e.is_not_found() && !parts.task => None,
            other => Some(other?),
        };
        let stored = async {
            let mut index = Parts::new(guard.client());
            let collected = index.collect(self.record(), task.as_ref(), parts);
            match &task {
                Some(task) if task.is_running().await => task.while_frozen(collected).await?,
                _ => collected.await?,
            }
            index.store(name, Labels::new()).await
        };
        let stored = stored.await;
        let released = guard.release().await;
        let stored = stored?;
        released.map(|()| stored)
    }
}

impl Client {
    /// Makes container `id` from the checkpoint `image`: its image, spec and runtime.
    ///
    /// # Errors
    /// NotFound for what the checkpoint does not have; AlreadyExists.
    pub async fn restore(
        &self,
        id: &str,
        image: &ImageRecord,
        parts: RestoreParts,
    ) -> Result<Container> {
        let guard = self.leases().guard().await?;
        let made = guard.client().restore_under(id, image, parts).await;
        let released = guard.release().await;
        let made = made?;
        released?;
        self.container(made.id()).await
    }

    /// The processes in the checkpoint `image`, to give to a task that is to go on with them.
    ///
    /// # Errors
    /// NotFound when it has none.
    pub async fn checkpoint_of(&self, image: &ImageRecord) -> Result<Descriptor> {
        part(&self.index(image).await?, CRIU_MEDIA_TYPE, image)
    }

    async fn index(&self, image: &ImageRecord) -> Result<Index> {
        let bytes = self.content().read(&image.target.digest).await?;
        Index::parse(&image.target.digest, &bytes)
    }

    async fn restore_under(
        &self,
        id: &str,
        image: &ImageRecord,
        parts: RestoreParts,
    ) -> Result<Container> {
        let index = self.index(image).await?;
        let annotation = |key: &str| {
            let missing = || Error::not_found(format!("image {:?}: annotation {key}", image.name));
            index.annotations.get(key).filter(|v| !v.is_empty()).cloned().ok_or_else(missing)
        };
        let spec = self.message(&part(&index, SPEC_MEDIA_TYPE, image)?).await?;
        let options = match part(&index, RUNTIME_OPTIONS, image) {
            Ok(options) => Some(any(self.message(&options).await?)),
            Err(_) => None,
        };
        let (name, snapshotter) = (annotation(IMAGE_NAME)?, annotation(SNAPSHOTTER_ANNOTATION)?);
        let base = self.resolve_image(&name, None).await?;
        let snapshots = self.snapshots(&snapshotter);
        let mounts = snapshots.prepare(id, base.chain_id().as_str(), Labels::new()).await?;
        let rest = async {
            if parts.rw {
                let layer = part(&index, media_types::OCI_LAYER_GZIP, image)?;
                self.diff().apply(&layer, &mounts).await?;
            }
            let builder = self.container_builder(id).image(name).snapshot(&snapshotter, id);
            builder
                .runtime(annotation(RUNTIME_ANNOTATION)?, options)
                .raw_spec(any(spec))
                .create()
                .await
        };
        let made = rest.await;
        if made.is_err() {
            // Its lease ends with the call; this is only sooner.
            let _ = snapshots.remove(id).await;
        }
        made
    }

    async fn message(&self, descriptor: &Descriptor) -> Result<prost_types::Any> {
        let bytes = self.content().read(&descriptor.digest).await?;
        prost_types::Any::decode(bytes)
            .map_err(|e| Error::invalid_argument(format!("{}: {e}", descriptor.digest)))
    }
}

fn part(index: &Index, media_type: &str, image: &ImageRecord) -> Result<Descriptor> {
    let found = index.manifests.iter().find(|part| part.media_type == media_type);
    let missing = || Error::not_found(format!("image {:?}: {media_type}", image.name));
    found.cloned().ok_or_else(missing)
}

/// The parts of an index that is being made.
struct Parts<'a> {
    client: &'a Client,
    descriptors: Vec<Descriptor>,
    annotations: std::collections::BTreeMap<String, String>,
}

impl<'a> Parts<'a> {
    fn new(client: &'a Client) -> Self {
        Self { client, descriptors: Vec::new(), annotations: std::collections::BTreeMap::default() }
    }

    fn annotate(&mut self, key: &str, value: &str) {
        self.annotations.insert(key.to_owned(), value.to_owned());
    }

    fn add(&mut self, mut descriptor: Descriptor) {
        descriptor.platform.get_or_insert_with(platforms::default);
        self.descriptors.push(descriptor);
    }

    async fn collect(
        &mut self,
        record: &ContainerRecord,
        task: Option<&Task>,
        parts: CheckpointParts,
    ) -> Result<()> {
        self.annotate(IMAGE_NAME, &record.image);
        self.annotate(RUNTIME_ANNOTATION, &record.runtime.name);
        self.annotate(SNAPSHOTTER_ANNOTATION, &record.snapshotter);
        if let Some(options) = &record.runtime.options {
            self.add_message(RUNTIME_OPTIONS, &any_out(options)).await?;
        }
        if parts.image {
            self.add_image(&record.image).await?;
        }
        if parts.rw {
            self.add_rw(record).await?;
        }
        if let Some(task) = task.filter(|_| parts.task) {
            let options = CheckpointOptions::default();
            for descriptor in task.checkpoint_under(self.client, &options).await? {
                self.add(descriptor);
            }
            let options = runc::CheckpointOptions::default();
            self.add_message(OPTIONS, &prost_types::Any::pack(&options)).await?;
        }
        Ok(())
    }

    async fn add_image(&mut self, name: &str) -> Result<()> {
        self.descriptors.push(self.client.images().get(name).await?.target);
        Ok(())
    }

    /// What the container has written over its image.
    async fn add_rw(&mut self, record: &ContainerRecord) -> Result<()> {
        if record.snapshot_key.is_empty() {
            return Ok(());
        }
        let reference = format!("checkpoint-rw-{}", record.snapshot_key);
        let options = DiffOptions { reference, ..DiffOptions::default() };
        let stored = changes(self.client, record, options).await?;
        self.add(stored);
        Ok(())
    }

    async fn add_message(&mut self, media_type: &str, message: &prost_types::Any) -> Result<()> {
        let bytes = Bytes::from(message.encode_to_vec());
        let descriptor = Descriptor::new(media_type, Digest::of(&bytes), size(&bytes));
        self.client.content().write_blob(&descriptor, bytes, &Labels::new()).await?;
        self.add(descriptor);
        Ok(())
    }

    /// Stores the index, which keeps its parts, and the image.
    async fn store(self, name: &str, labels: Labels) -> Result<ImageRecord> {
        let referred = self.descriptors.iter().enumerate().map(|(n, part)| {
            (format!("containerd.io/gc.ref.content.{n}"), part.digest.to_string())
        });
        let blob_labels: Labels = referred.collect();
        let index = index_of(self.descriptors, self.annotations);
        let target = write_index(self.client, &index, &blob_labels).await?;
        let mut image = ImageRecord::new(name, target);
        image.labels = labels;
        self.client.images().create(&image).await
    }
}

fn size(bytes: &Bytes) -> i64 {
    i64::try_from(bytes.len()).unwrap_or(i64::MAX)
}
