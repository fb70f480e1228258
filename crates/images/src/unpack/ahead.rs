//! Unpacking a layer before the layers below it are there.
//!
//! The layer goes into a snapshot without a parent, with its deletions written the way overlayfs
//! keeps them, and gets its parent with the commit (a rebase). Most layers can be unpacked so: a
//! layer that can't (it names things only lower layers have) is refused by the archive code, and
//! the caller unpacks it in its turn instead.

use std::io::Read;
use std::path::PathBuf;

use gantry_archive::{ApplyOptions, Lowers, Target};
use gantry_core::{Context, Digest};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_metadata::Snapshots;
use gantry_mount::Mount;
use gantry_snapshots::{CommitOptions, Overlayfs};
use tokio::sync::watch;

use super::{LayerTask, Unpacker, committed_labels};
use crate::differ::{Origin, joined};

/// One layer on its way into a snapshot without a parent.
struct Ahead {
    unpacker: Unpacker,
    ctx: Context,
    snapshots: Snapshots,
    task: LayerTask,
    key: String,
    dir: PathBuf,
}

impl Unpacker {
    /// Whether layers may be unpacked ahead into this snapshotter: it keeps them as overlayfs
    /// does and can give a snapshot its parent late.
    pub(crate) fn goes_ahead(snapshotter: &str) -> bool {
        snapshotter == Overlayfs::NAME
    }

    /// Unpacks one layer whose parent may not be there yet: applies the stream at once, and
    /// commits when `parent_there` turns true. False when the snapshot was there already. When
    /// the other half of `parent_there` goes away, nothing is committed. The work ends when
    /// `reader` does, also when the future is dropped.
    ///
    /// # Errors
    /// FailedPrecondition when the layer cannot be unpacked without those below it; else as
    /// [`Unpacker::unpack_layer`]. In any case nothing is left.
    pub(crate) async fn unpack_ahead(
        &self,
        ctx: &Context,
        snapshotter: &str,
        task: LayerTask,
        reader: Box<dyn Read + Send>,
        parent_there: watch::Receiver<bool>,
    ) -> Result<bool> {
        let snapshots = self.db.snapshotter(snapshotter)?;
        let key = (ctx.namespace.to_string(), snapshotter.to_owned(), task.chain_id.clone());
        let turn = self.flights.enter(key).lock_owned().await;
        if self.is_there(ctx, &snapshots, &task.chain_id).await? {
            return Ok(false);
        }
        let alone = LayerTask { parent: None, ..task.clone() };
        let Some((key, mounts)) = self.prepare(ctx, &snapshots, &alone).await? else {
            return Ok(false);
        };
        let dir = plain_dir(&mounts);
        let ahead = Ahead {
            unpacker: self.clone(),
            ctx: ctx.clone(),
            snapshots,
            task,
            key,
            dir: dir.clone().unwrap_or_default(),
        };
        // On its own task, so that the snapshot is cleaned up even when the caller goes away.
        let work = tokio::spawn(async move {
            let done = match dir {
                Some(_) => ahead.run(reader, parent_there).await,
                None => Err(Error::failed_precondition("a snapshot that is no plain directory")),
            };
            if !matches!(done, Ok(true)) {
                ahead.clean_up().await;
            }
            drop(turn);
            done
        });
        joined(work.await)
    }
}

impl Ahead {
    async fn run(
        &self,
        reader: Box<dyn Read + Send>,
        mut parent_there: watch::Receiver<bool>,
    ) -> Result<bool> {
        let task = &self.task;
        let diff_id = self.apply(reader).await.context(|| format!("layer {}", task.diff_id))?;
        if diff_id != task.diff_id {
            return Err(Error::failed_precondition(format!(
                "layer {}: the image config promises this diff ID, the layer unpacks to {diff_id}",
                task.diff_id
            )));
        }
        if parent_there.wait_for(|there| *there).await.is_err() {
            return Err(Error::canceled(format!("unpacking of {}", task.chain_id)));
        }
        let parent = task.parent.as_ref().map(Digest::to_string);
        let options = CommitOptions { labels: committed_labels(task), parent };
        let name = task.chain_id.as_str();
        match self.snapshots.commit(&self.ctx, name, &self.key, options).await {
            Ok(()) => Ok(true),
            // Another client was faster; its snapshot is as good.
            Err(err) if err.is_already_exists() => Ok(false),
            Err(err) => Err(err.context(format!("layer {}", task.diff_id))),
        }
    }

    async fn apply(&self, reader: Box<dyn Read + Send>) -> Result<Digest> {
        let slot = self.unpacker.differ.slot(Origin::Elsewhere).await?;
        let options = ApplyOptions {
            // In a user namespace these attributes are refused, and the layer waits its turn.
            target: Target::OverlayUpper { userxattr: false },
            lowers: Lowers::Unknown,
            ..ApplyOptions::default()
        };
        let dir = self.dir.clone();
        let work = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            gantry_archive::apply(reader, &dir, &options)
        });
        joined(work.await).map(|applied| applied.diff_id)
    }

    async fn clean_up(&self) {
        match self.snapshots.remove(&self.ctx, &self.key).await {
            Err(err) if !err.is_not_found() => {
                tracing::warn!(key = self.key, %err, "a snapshot that was not needed is left");
            }
            _ => {}
        }
    }
}

/// The directory behind the mounts of a snapshot without parent, which is a bind mount of it.
fn plain_dir(mounts: &[Mount]) -> Option<PathBuf> {
    let [mount] = mounts else { return None };
    let plain = mount.kind == "bind" && mount.target.is_empty() && mount.is_writable();
    let mapped = mount.options.iter().any(|o| o.contains("idmap") || o.contains("mapping"));
    (plain && !mapped).then(|| PathBuf::from(&mount.source))
}
