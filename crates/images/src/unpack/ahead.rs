//! Unpacking a layer before the layers below it are there.
//!
//! The layer goes into a snapshot without a parent, with its deletions written the way overlayfs
//! keeps them, and gets its parent with the commit (a rebase). Most layers can be unpacked so; one
//! that names things only lower layers have is refused by the archive code, and unpacked by the
//! caller in its turn instead. Before the commit is settled what depends on the layers below:
//! directories that the layer writes into without naming them look as they do there, and whiteouts
//! of what is not there go, which would show up in listings (overlayfs passes directories that
//! nothing lies below through as they are).

use std::io::Read;
use std::path::PathBuf;

use gantry_archive::{Applied, ApplyOptions, Lowers, Target, Unsettled};
use gantry_core::{Context, Digest};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_metadata::{Db, Snapshots};
use gantry_mount::Mount;
use gantry_snapshots::{Erofs, Overlayfs};
use tokio::sync::watch;

use super::{LayerTask, Unpacker, commit_options};
use crate::differ::{Differ, Origin, joined, lower_dirs};

/// How overlayfs' marks are written. In a user namespace these attributes are refused, and the
/// layer waits its turn.
const TARGET: Target = Target::OverlayUpper { userxattr: false };

/// One layer on its way into a snapshot without a parent.
struct Ahead {
    differ: Differ,
    ctx: Context,
    snapshots: Snapshots,
    task: LayerTask,
    key: String,
}

impl Unpacker {
    /// Whether layers may be unpacked ahead into this snapshotter: it keeps them as overlayfs
    /// does, until they are committed at least, and can give a snapshot its parent late.
    pub(crate) fn goes_ahead(snapshotter: &str) -> bool {
        [Overlayfs::NAME, Erofs::NAME].contains(&snapshotter)
    }

    /// Unpacks one layer whose parent may not be there yet: applies the stream at once, and
    /// commits when `parent_there` turns true. False when the snapshot was there already. When
    /// the other half of `parent_there` goes away, nothing is committed. The work ends when the bytes
    /// do, also when the future is dropped.
    ///
    /// # Errors
    /// FailedPrecondition when the layer cannot be unpacked without those below it, or need not be;
    /// else as [`Unpacker::unpack_layer`]. In any case nothing is left.
    pub(crate) async fn unpack_ahead(
        &self,
        ctx: &Context,
        snapshotter: &str,
        task: LayerTask,
        bytes: (Box<dyn Read + Send>, Origin),
        parent_there: watch::Receiver<bool>,
    ) -> Result<bool> {
        let snapshots = self.db.snapshotter(snapshotter)?;
        let turn = self.turn(ctx, snapshotter, &task.chain_id).lock_owned().await;
        let (unpacker, ctx) = (self.clone(), ctx.clone());
        // On its own task, so that the snapshot is cleaned up even when the caller goes away.
        let work = tokio::spawn(async move {
            let done = unpacker.extract_ahead(ctx, snapshots, task, bytes, parent_there).await;
            drop(turn);
            done
        });
        joined(work.await)
    }

    /// Unpacks ahead a layer that nobody else is unpacking.
    async fn extract_ahead(
        &self,
        ctx: Context,
        snapshots: Snapshots,
        task: LayerTask,
        bytes: (Box<dyn Read + Send>, Origin),
        parent_there: watch::Receiver<bool>,
    ) -> Result<bool> {
        if self.is_had(&ctx, &snapshots, &task).await? {
            return Ok(false);
        }
        if snapshots.is_elsewhere(&ctx, task.chain_id.as_str())? {
            let why = format!("layer {}: another namespace has it to share", task.diff_id);
            return Err(Error::failed_precondition(why));
        }
        let alone = LayerTask { parent: None, ..task.clone() };
        let Some((key, mounts)) = self.prepare(&ctx, &snapshots, &alone).await? else {
            return Ok(false);
        };
        let ahead = Ahead { differ: self.differ.clone(), ctx, snapshots, task, key };
        let done = match plain_dir(&mounts) {
            Some(dir) => ahead.run(dir, bytes, parent_there).await,
            None => Err(Error::failed_precondition("the snapshot is no plain directory")),
        };
        if !matches!(done, Ok(true)) {
            ahead.clean_up().await;
        }
        done
    }
}

impl Ahead {
    async fn run(
        &self,
        dir: PathBuf,
        bytes: (Box<dyn Read + Send>, Origin),
        mut parent_there: watch::Receiver<bool>,
    ) -> Result<bool> {
        let task = &self.task;
        let what = || format!("layer {}", task.diff_id);
        let applied = self.apply(dir.clone(), bytes).await.context(what)?;
        if applied.diff_id != task.diff_id {
            return Err(Error::failed_precondition(format!(
                "layer {}: the image config promises this diff ID, the layer unpacks to {}",
                task.diff_id, applied.diff_id
            )));
        }
        if parent_there.wait_for(|there| *there).await.is_err() {
            return Err(Error::canceled(format!("unpacking of {}", task.chain_id)));
        }
        self.settle(dir, applied.unsettled).await.context(what)?;
        let parent = task.parent.as_ref().map(Digest::to_string);
        let options = commit_options(task, parent);
        let name = task.chain_id.as_str();
        match Db::relaxed(self.snapshots.commit(&self.ctx, name, &self.key, options)).await {
            Ok(()) => Ok(true),
            // Another client was faster; its snapshot is as good.
            Err(err) if err.is_already_exists() => Ok(false),
            Err(err) => Err(err.context(what())),
        }
    }

    async fn apply(
        &self,
        dir: PathBuf,
        (reader, origin): (Box<dyn Read + Send>, Origin),
    ) -> Result<Applied> {
        let slot = self.differ.slot(origin).await?;
        let options =
            ApplyOptions { target: TARGET, lowers: Lowers::Unknown, ..ApplyOptions::default() };
        let work = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            gantry_archive::apply(reader, &dir, &options)
        });
        joined(work.await)
    }

    /// Finishes what depends on the layers below, now that they are there.
    async fn settle(&self, dir: PathBuf, unsettled: Unsettled) -> Result<()> {
        if unsettled.is_empty() {
            return Ok(());
        }
        let lowers = match &self.task.parent {
            Some(parent) => self.dirs_of(parent).await?,
            None => Vec::new(),
        };
        let settled = tokio::task::spawn_blocking(move || {
            gantry_archive::settle(&dir, TARGET, &lowers, &unsettled)
        });
        joined(settled.await)
    }

    /// The directories of a committed snapshot and those below it, newest first.
    async fn dirs_of(&self, name: &Digest) -> Result<Vec<PathBuf>> {
        let mounts = self.snapshots.layer_mounts(&self.ctx, name.as_str()).await?;
        mounts.as_deref().and_then(lower_dirs).ok_or_else(|| {
            Error::failed_precondition(format!("snapshot {name} is not plain directories"))
        })
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
