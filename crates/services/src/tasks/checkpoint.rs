//! `Checkpoint`: into a directory of the client's, or as blobs.

use std::path::{Path, PathBuf};

use gantry_api::Payload as _;
use gantry_api::containerd::linux::runc::CheckpointOptions as OldOptions;
use gantry_api::containerd::runc::v1::CheckpointOptions;
use gantry_api::containerd::services::tasks::v1 as wire;
use gantry_content::WriterOptions;
use gantry_core::{Context, Descriptor, Digest, Labels, media_types};
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_images::{DiffRequest, LayerDiffer};
use gantry_mount::{Mount, TempRoot};
use prost::Message as _;

use super::TasksService;
use crate::{call, convert};

/// Media type of a checkpoint's memory image, a tar of what criu writes.
pub(super) const CRIU_MEDIA_TYPE: &str =
    "application/vnd.containerd.container.criu.checkpoint.criu.tar";

/// Media type of the runtime spec of a checkpoint, an encoded `google.protobuf.Any`.
const SPEC_MEDIA_TYPE: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";

impl TasksService {
    pub(super) async fn checkpoint_task(
        &self,
        ctx: &Context,
        request: wire::CheckpointTaskRequest,
    ) -> Result<wire::CheckpointTaskResponse> {
        let container = self.db.containers().get(ctx, &request.container_id).await?;
        let task = self.runtime.get(&ctx.namespace, &request.container_id).await?;
        let named = image_path(request.options.as_ref())?;
        let options = request.options.map(convert::any);
        if !named.is_empty() {
            task.checkpoint(Path::new(&named), options).await?;
            return Ok(wire::CheckpointTaskResponse { descriptors: Vec::new() });
        }
        let spec = call::required(container.spec, "container spec")?;
        let dir = ScratchDir::make(&self.temp).await?;
        task.checkpoint(dir.path(), options).await?;
        let image = self.store_image(ctx, task.id(), &dir).await?;
        dir.remove().await;
        let spec = self.store_spec(ctx, task.id(), spec).await?;
        let descriptors = [image, spec].into_iter().map(convert::descriptor_to_wire).collect();
        Ok(wire::CheckpointTaskResponse { descriptors })
    }

    async fn store_image(&self, ctx: &Context, id: &str, dir: &ScratchDir) -> Result<Descriptor> {
        let request = DiffRequest {
            media_type: media_types::OCI_LAYER.to_owned(),
            reference: format!("checkpoint-image-{id}"),
            ..DiffRequest::default()
        };
        let stored = self.differ.diff(ctx, &[], &[dir.mount()], request).await?;
        Ok(Descriptor::new(CRIU_MEDIA_TYPE, stored.digest, stored.size))
    }

    async fn store_spec(
        &self,
        ctx: &Context,
        id: &str,
        spec: gantry_core::Any,
    ) -> Result<Descriptor> {
        let bytes = convert::any_to_wire(spec).encode_to_vec();
        let (digest, len) = (Digest::of(&bytes), bytes.len() as u64);
        let options = WriterOptions {
            reference: format!("checkpoint-spec-{id}"),
            total: len,
            expected: Some(digest.clone()),
        };
        let written = async {
            let mut writer = self.db.content().writer(ctx, options).await?;
            writer.truncate(0).await?;
            writer.write(bytes.into()).await?;
            writer.commit(len, Some(&digest), Labels::new()).await
        };
        match written.await {
            Err(e) if !e.is_already_exists() => return Err(e),
            _ => {}
        }
        Ok(Descriptor::new(SPEC_MEDIA_TYPE, digest, convert::size_to_wire(len)))
    }
}

/// The directory that the options name; empty when the client wants blobs.
fn image_path(options: Option<&prost_types::Any>) -> Result<String> {
    let Some(options) = options.filter(|o| !o.type_url.is_empty()) else {
        return Ok(String::new());
    };
    if let Some(new) = options.unpack::<CheckpointOptions>()? {
        return Ok(new.image_path);
    }
    if let Some(old) = options.unpack::<OldOptions>()? {
        return Ok(old.image_path);
    }
    Err(Error::unknown(format!("checkpoint options {:?}: unknown type", options.type_url)))
}

/// A directory for one checkpoint, below the temporary mounts so that a start clears it.
#[derive(Debug)]
pub(super) struct ScratchDir {
    path: Option<PathBuf>,
}

impl ScratchDir {
    /// Makes an empty one.
    ///
    /// # Errors
    /// The I/O error.
    pub(super) async fn make(temp: &TempRoot) -> Result<Self> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("checkpoint-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let path = temp.path().join(name);
        let made = path.clone();
        tokio::task::spawn_blocking(move || {
            std::fs::create_dir(&made).context(|| made.display().to_string())
        })
        .await
        .map_err(|e| Error::internal(format!("checkpoint directory: {e}")))??;
        Ok(Self { path: Some(path) })
    }

    pub(super) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new("/nonexistent"))
    }

    /// The directory as something a layer can be taken from or applied to.
    pub(super) fn mount(&self) -> Mount {
        Mount::new("bind", self.path().to_string_lossy(), ["rbind", "rw"])
    }

    /// It belongs to someone else now.
    pub(super) fn moved(mut self) {
        self.path = None;
    }

    /// Removes it.
    pub(super) async fn remove(mut self) {
        if let Some(path) = self.path.take() {
            let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(path)).await;
            if let Ok(Err(e)) = removed {
                tracing::warn!(error = %e, "a checkpoint directory stays until the next start");
            }
        }
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        // Only after an error; a few files, and the next start clears what is left.
        if let Some(path) = self.path.take() {
            let _ = std::fs::remove_dir_all(path);
        }
    }
}
