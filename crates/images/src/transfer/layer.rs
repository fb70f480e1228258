//! Single layers: from a stream into a snapshot, and out of one.

use gantry_archive::Compression;
use gantry_core::{Context, Descriptor, Digest, Labels, media_types};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_layout::ArchiveOut;
use gantry_metadata::Snapshots;
use gantry_mount::Mount;
use gantry_snapshots::{CommitOptions, Kind, LayerOrigin};
use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;

use super::Transfer;
use crate::lease;
use crate::progress::{Counted, Progress, ProgressSink, Stage};
use crate::unpack::unique;

/// A snapshot as one end of a transfer.
#[derive(Clone, Debug, Default)]
pub struct LayerSnapshot {
    /// Name of the snapshotter.
    pub snapshotter: String,
    /// The snapshot.
    pub key: String,
    /// What it is unpacked on; none for a lowest layer. Not looked at where the snapshot is read.
    pub parent: Option<String>,
    /// Labels of the committed snapshot.
    pub labels: Labels,
    /// The digest that the plain tar must have.
    pub diff_id: Option<Digest>,
    /// Latest time of modification in a layer that is made, in seconds since 1970.
    pub source_date_epoch: Option<i64>,
}

impl Transfer {
    /// Unpacks the layer read from `layer`, in any compression we know, on `to.parent` and commits
    /// it as `to.key`. It belongs to the lease of `ctx`; without one only a label keeps it.
    ///
    /// # Errors
    /// AlreadyExists for the key; NotFound for the parent or the snapshotter; Unimplemented for a
    /// media type that is no layer's (empty is any); FailedPrecondition for another diff ID; else
    /// as [`gantry_archive::apply`]. Nothing is left then.
    pub async fn unpack_stream(
        &self,
        ctx: &Context,
        layer: impl AsyncRead + Send + Unpin + 'static,
        media_type: &str,
        to: &LayerSnapshot,
        progress: &ProgressSink,
    ) -> Result<Descriptor> {
        if !media_type.is_empty() {
            compression_of(media_type)?;
        }
        let snapshots = self.db.snapshotter(&to.snapshotter)?;
        let (ctx, own) = lease::ensure(&self.db, ctx).await?;
        progress.message(format!("Unpacking to {} ({})", to.key, to.snapshotter));
        let layer = Counted::new(layer, progress.clone(), Stage::Extracting, &to.key);
        let unpacked = own.end(self.unpack_held(&ctx, &snapshots, layer, to).await).await?;
        progress.send(Progress::named(Stage::Extracted, &to.key));
        Ok(unpacked)
    }

    async fn unpack_held(
        &self,
        ctx: &Context,
        snapshots: &Snapshots,
        layer: impl AsyncRead + Send + Unpin + 'static,
        to: &LayerSnapshot,
    ) -> Result<Descriptor> {
        match snapshots.stat(ctx, &to.key).await {
            Ok(_) => return Err(Error::already_exists(format!("snapshot {:?}", to.key))),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
        let key = format!("{} {}", unique("extract"), to.key);
        let mounts = snapshots.prepare(ctx, &key, to.parent.as_deref(), Labels::new()).await?;
        let done = self.unpack_onto(ctx, snapshots, layer, to, &key, mounts).await;
        if done.is_err() {
            match snapshots.remove(ctx, &key).await {
                Err(e) if !e.is_not_found() => {
                    tracing::warn!(key, error = %e, "a snapshot that failed to unpack is left");
                }
                _ => {}
            }
        }
        done
    }

    async fn unpack_onto(
        &self,
        ctx: &Context,
        snapshots: &Snapshots,
        layer: impl AsyncRead + Send + Unpin + 'static,
        to: &LayerSnapshot,
        key: &str,
        mounts: Vec<Mount>,
    ) -> Result<Descriptor> {
        let reader = Box::new(SyncIoBridge::new(layer));
        let applied = self.unpacker.differ().apply_stream(reader, mounts, false).await?;
        if let Some(want) = to.diff_id.as_ref().filter(|want| **want != applied.diff_id) {
            return Err(Error::failed_precondition(format!(
                "layer {want}: the stream unpacks to {}",
                applied.diff_id
            )));
        }
        let origin = Some(LayerOrigin { diff_id: applied.diff_id.clone(), blob: None });
        let options = CommitOptions { labels: to.labels.clone(), parent: None, origin };
        snapshots.commit(ctx, &to.key, key, options).await?;
        let size = i64::try_from(applied.size).unwrap_or(i64::MAX);
        Ok(Descriptor::new(media_types::OCI_LAYER, applied.diff_id, size))
    }

    /// Writes the layer that makes the parent of the snapshot `from` into it to `out`, as
    /// `media_type` (empty is OCI with gzip), and describes it.
    ///
    /// # Errors
    /// NotFound for the snapshot; Unimplemented for a media type that is no layer's; else as
    /// [`gantry_archive::diff()`], and the errors of `out`.
    pub async fn diff_stream(
        &self,
        ctx: &Context,
        from: &LayerSnapshot,
        media_type: &str,
        out: impl ArchiveOut,
        progress: &ProgressSink,
    ) -> Result<Descriptor> {
        let media_type =
            if media_type.is_empty() { media_types::OCI_LAYER_GZIP } else { media_type };
        let compression = compression_of(media_type)?;
        let snapshots = self.db.snapshotter(&from.snapshotter)?;
        let (ctx, own) = lease::ensure(&self.db, ctx).await?;
        progress.message(format!("Reading the changes of {} ({})", from.key, from.snapshotter));
        let views = Views { snapshots: &snapshots, ctx: &ctx };
        let work = async {
            let info = snapshots.stat(&ctx, &from.key).await?;
            let right = match info.kind {
                Kind::Committed => views.of(Some(&from.key)).await?,
                _ => views.there(&from.key).await?,
            };
            let left = match &info.parent {
                Some(parent) => views.of(Some(parent)).await?,
                None => View::default(),
            };
            let epoch = from.source_date_epoch;
            let differ = self.unpacker.differ();
            let diffed = differ.diff_to(&left.mounts, &right.mounts, compression, epoch, out).await;
            views.drop_view(left).await;
            views.drop_view(right).await;
            diffed.context(|| format!("snapshot {:?}", from.key))
        };
        let diffed = own.end(work.await).await?;
        let size = i64::try_from(diffed.size).unwrap_or(i64::MAX);
        let made = Descriptor::new(media_type, diffed.digest, size);
        let done = Progress::named(Stage::Complete, &from.key);
        progress.send(Progress { descriptor: Some(made.clone()), ..done });
        Ok(made)
    }
}

fn compression_of(media_type: &str) -> Result<Compression> {
    Compression::of_media_type(media_type)
        .ok_or_else(|| Error::unimplemented(format!("unsupported layer media type {media_type:?}")))
}

/// Mounts, and the view they belong to if it was made for them.
#[derive(Default)]
struct View {
    key: Option<String>,
    mounts: Vec<Mount>,
}

struct Views<'a> {
    snapshots: &'a Snapshots,
    ctx: &'a Context,
}

impl Views<'_> {
    /// A view of a committed snapshot.
    async fn of(&self, name: Option<&str>) -> Result<View> {
        let key = unique("diff");
        let mounts = self.snapshots.view(self.ctx, &key, name, Labels::new()).await?;
        Ok(View { key: Some(key), mounts })
    }

    /// An active snapshot or a view, as it is.
    async fn there(&self, key: &str) -> Result<View> {
        Ok(View { key: None, mounts: self.snapshots.mounts(self.ctx, key).await? })
    }

    /// The lease would have it collected as well, only later.
    async fn drop_view(&self, view: View) {
        let Some(key) = view.key else { return };
        if let Err(error) = self.snapshots.remove(self.ctx, &key).await {
            tracing::debug!(key, %error, "a view is left to the collector");
        }
    }
}
