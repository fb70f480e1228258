//! Checkpoints as images: the memory of a container, its spec, its image and what it changed of
//! its root filesystem, under one index that can be pushed, pulled and restored from.

use std::collections::BTreeMap;
use std::time::SystemTime;

use gantry_core::image::{Document, Index};
use gantry_core::platforms::{self, Matcher};
use gantry_core::{Any, Descriptor, Digest, Labels, media_types, timestamp};
use gantry_errdefs::{Error, Result};
use prost::Message as _;

use crate::cancel::make_or_undo;
use crate::client::Client;
use crate::containers::ContainerRecord;
use crate::convert::any;
use crate::diff::DiffOptions;
use crate::image::Image;
use crate::images::ImageRecord;
use crate::process::ProcessStatus;
use crate::resolved::ResolvedImage;
use crate::tasks::{CheckpointOptions, Task};

/// Media type of the memory of a container: a tar of what criu writes.
pub const CRIU_MEDIA_TYPE: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";

/// Media type of the spec of a checkpoint: an encoded `google.protobuf.Any`.
pub(crate) const SPEC_MEDIA_TYPE: &str =
    "application/vnd.containerd.container.checkpoint.config.v1+proto";

/// Annotations of the index, by which a container is made again.
pub(crate) const IMAGE_ANNOTATION: &str = "image.name";
pub(crate) const RUNTIME_ANNOTATION: &str = "io.containerd.checkpoint.runtime";
pub(crate) const SNAPSHOTTER_ANNOTATION: &str = "io.containerd.checkpoint.snapshotter";

/// How a checkpoint becomes an image.
#[derive(Clone, Debug, Default)]
pub struct CheckpointImageOptions {
    /// The image's name; None for `containerd.io/checkpoint/<id>:<time>`.
    pub name: Option<String>,
    /// Ends the container.
    pub exit: bool,
    /// Leaves out what the container changed of its root filesystem.
    pub without_changes: bool,
    /// Leaves out the container's image: whoever restores must have it.
    pub without_image: bool,
}

/// What a checkpoint's index says.
#[derive(Debug)]
pub(crate) struct Saved {
    /// The memory, for the task that is restored.
    pub(crate) memory: Descriptor,
    spec: Option<Descriptor>,
    /// What the container changed of its root filesystem, as a layer.
    pub(crate) changes: Option<Descriptor>,
    image: Option<Descriptor>,
    /// Name of the container's image.
    pub(crate) image_name: String,
    /// Name of the container's runtime; may be empty.
    pub(crate) runtime: String,
}

impl Task {
    /// Checkpoints the container into an image: memory, spec, its image and what it changed of
    /// its root filesystem. The container is frozen meanwhile, and goes on after unless
    /// `options` say otherwise.
    ///
    /// # Errors
    /// Unknown with criu's text; AlreadyExists when the name is another image's.
    pub async fn checkpoint_as_image(&self, options: CheckpointImageOptions) -> Result<Image> {
        let task = self.clone();
        let undo = |image: Image| async move {
            let images = image.client_images();
            if let Err(e) = images.delete(image.name(), false).await {
                tracing::debug!(image = image.name(), error = %e, "checkpoint left");
            }
        };
        make_or_undo(async move { task.save(options).await }, undo).await
    }

    async fn save(&self, options: CheckpointImageOptions) -> Result<Image> {
        let guard = self.client.leases().guard().await?;
        let leased = guard.client().clone();
        let running = self.state().await?.status == ProcessStatus::Running;
        if running {
            self.pause().await?;
        }
        let saved = self.save_frozen(&leased, options).await;
        if running && let Err(e) = self.resume().await {
            // After an exit nothing is left to go on.
            tracing::debug!(task = self.container_id(), error = %e, "not resumed");
        }
        let record = saved?;
        if let Err(e) = guard.release().await {
            tracing::debug!(error = %e, "lease left to expire");
        }
        Ok(self.client.image_of(record))
    }

    async fn save_frozen(
        &self,
        client: &Client,
        options: CheckpointImageOptions,
    ) -> Result<ImageRecord> {
        let container = client.containers().get(self.container_id()).await?;
        let mut parts = {
            let criu = CheckpointOptions { exit: options.exit, ..Default::default() };
            self.under(client).checkpoint(&criu).await?
        };
        let mut annotations = BTreeMap::from([
            (IMAGE_ANNOTATION.to_owned(), container.image.clone()),
            (RUNTIME_ANNOTATION.to_owned(), container.runtime.name.clone()),
        ]);
        if !container.snapshotter.is_empty() {
            annotations.insert(SNAPSHOTTER_ANNOTATION.to_owned(), container.snapshotter.clone());
        }
        if !options.without_image && !container.image.is_empty() {
            let image = client.images().get(&container.image).await?;
            let manifest = client
                .resolve_target(&container.image, &image.target, &Matcher::host())
                .await?
                .manifest_descriptor;
            parts.push(Descriptor { platform: Some(platforms::default()), ..manifest });
        }
        if !options.without_changes && !container.snapshot_key.is_empty() {
            let changes = changes(client, &container, DiffOptions::default()).await?;
            parts.push(Descriptor { platform: Some(platforms::default()), ..changes });
        }
        let name = options.name.unwrap_or_else(|| {
            let now = timestamp::format(SystemTime::now());
            format!("containerd.io/checkpoint/{}:{}", container.id, now.replace([':', '.'], "-"))
        });
        let index = index_of(parts, annotations);
        let labels = gc_labels(&Document::Index(index.clone()));
        let target = write_index(client, &index, &labels).await?;
        client.images().create(&ImageRecord::new(name, target)).await
    }
}

/// What a container changed of its root filesystem, stored as a layer.
pub(crate) async fn changes(
    client: &Client,
    container: &ContainerRecord,
    options: DiffOptions,
) -> Result<Descriptor> {
    let snapshots = client.snapshots(&container.snapshotter);
    let upper = snapshots.mounts(&container.snapshot_key).await?;
    let parent = snapshots.stat(&container.snapshot_key).await?.parent;
    let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(12).collect();
    let key = format!("checkpoint-{random} {}", container.id);
    let lower = snapshots.view(&key, &parent, Labels::new()).await?;
    let stored = client.diff().diff(&lower, &upper, options).await;
    let removed = snapshots.remove(&key).await;
    let stored = stored?;
    removed?;
    Ok(stored)
}

/// The index of a checkpoint's parts.
pub(crate) fn index_of(manifests: Vec<Descriptor>, annotations: BTreeMap<String, String>) -> Index {
    let media_type = media_types::OCI_INDEX.to_owned();
    Index { schema_version: 2, media_type, manifests, annotations }
}

/// Stores an index; `labels` keep what it names.
pub(crate) async fn write_index(
    client: &Client,
    index: &Index,
    labels: &Labels,
) -> Result<Descriptor> {
    let bytes = serde_json::to_vec(index)
        .map_err(|e| Error::internal(format!("encoding a checkpoint's index: {e}")))?;
    let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    let target = Descriptor::new(media_types::OCI_INDEX, Digest::of(&bytes), size);
    client.content().write_blob(&target, bytes.into(), labels).await?;
    Ok(target)
}

/// Labels by which the garbage collector finds what a document refers to.
pub(crate) fn gc_labels(document: &Document) -> Labels {
    let label = |(suffix, child): (String, &Descriptor)| {
        (format!("containerd.io/gc.ref.content.{suffix}"), child.digest.to_string())
    };
    document.children().into_iter().map(label).collect()
}

impl Saved {
    /// Reads the index of a checkpoint.
    ///
    /// # Errors
    /// InvalidArgument for an image that is none.
    pub(crate) async fn read(client: &Client, checkpoint: &Image) -> Result<Self> {
        let target = checkpoint.target();
        let no_checkpoint = || {
            Error::invalid_argument(format!("image {:?}: it is no checkpoint", checkpoint.name()))
        };
        if !media_types::is_index(&target.media_type) {
            return Err(no_checkpoint());
        }
        let index = Index::parse(&target.digest, &client.content().read(&target.digest).await?)?;
        let of_kind =
            |is: fn(&str) -> bool| index.manifests.iter().find(|d| is(&d.media_type)).cloned();
        let annotation = |name| index.annotations.get(name).cloned().unwrap_or_default();
        Ok(Self {
            memory: of_kind(|kind| kind == CRIU_MEDIA_TYPE).ok_or_else(no_checkpoint)?,
            spec: of_kind(|kind| kind == SPEC_MEDIA_TYPE),
            changes: of_kind(media_types::is_layer),
            image: of_kind(|kind| media_types::is_manifest(kind) || media_types::is_index(kind)),
            image_name: annotation(IMAGE_ANNOTATION),
            runtime: annotation(RUNTIME_ANNOTATION),
        })
    }

    /// The container's image: that of the checkpoint, or the one of its name.
    pub(crate) async fn image(&self, client: &Client) -> Result<ResolvedImage> {
        match &self.image {
            Some(target) => client.resolve_target(&self.image_name, target, &Matcher::host()).await,
            None => client.resolve_image(&self.image_name, None).await,
        }
    }

    /// The container's spec.
    pub(crate) async fn spec(&self, client: &Client) -> Result<Any> {
        let missing = || Error::not_found("spec of the checkpoint");
        let stored = self.spec.as_ref().ok_or_else(missing)?;
        let bytes = client.content().read(&stored.digest).await?;
        prost_types::Any::decode(bytes).map(any).map_err(|e| {
            Error::invalid_argument(format!("spec of the checkpoint {}: {e}", stored.digest))
        })
    }
}
