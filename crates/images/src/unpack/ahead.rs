//! Unpacking a layer before the layers below it are there.
//!
//! The layer goes into a snapshot without a parent, with its deletions written the way overlayfs
//! keeps them, and gets its parent with the commit (a rebase). Most layers can be unpacked so. One
//! that can't is unpacked by the caller in its turn instead: a layer that names things only lower
//! layers have, which the archive code refuses, and a layer that deletes single names, since a
//! whiteout of something that is not there shows up in listings (overlayfs passes directories
//! that nothing lies below through as they are).

use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use gantry_archive::{ApplyOptions, Lowers, Target};
use gantry_core::{Context, Digest};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_metadata::Snapshots;
use gantry_mount::Mount;
use gantry_snapshots::{CommitOptions, Overlayfs};
use tokio::sync::watch;

use super::{LayerTask, Unpacker, committed_labels};
use crate::differ::{Differ, Origin, joined};

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
        let (unpacker, ctx) = (self.clone(), ctx.clone());
        // On its own task, so that the snapshot is cleaned up even when the caller goes away.
        let work = tokio::spawn(async move {
            let done = unpacker.extract_ahead(ctx, snapshots, task, reader, parent_there).await;
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
        reader: Box<dyn Read + Send>,
        parent_there: watch::Receiver<bool>,
    ) -> Result<bool> {
        if self.is_there(&ctx, &snapshots, &task.chain_id).await? {
            return Ok(false);
        }
        let alone = LayerTask { parent: None, ..task.clone() };
        let Some((key, mounts)) = self.prepare(&ctx, &snapshots, &alone).await? else {
            return Ok(false);
        };
        let ahead = Ahead { differ: self.differ.clone(), ctx, snapshots, task, key };
        let done = match plain_dir(&mounts) {
            Some(dir) => ahead.run(dir, reader, parent_there).await,
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
        reader: Box<dyn Read + Send>,
        mut parent_there: watch::Receiver<bool>,
    ) -> Result<bool> {
        let task = &self.task;
        let diff_id =
            self.apply(dir, reader).await.context(|| format!("layer {}", task.diff_id))?;
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

    async fn apply(&self, dir: PathBuf, reader: Box<dyn Read + Send>) -> Result<Digest> {
        let slot = self.differ.slot(Origin::Elsewhere).await?;
        let options = ApplyOptions {
            // In a user namespace these attributes are refused, and the layer waits its turn.
            target: Target::OverlayUpper { userxattr: false },
            lowers: Lowers::Unknown,
            ..ApplyOptions::default()
        };
        let work = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            let applied = gantry_archive::apply(reader, &dir, &options)?;
            if has_whiteouts(&dir).context(|| dir.display().to_string())? {
                let text = "the layer deletes names of layers that may not be there yet";
                return Err(Error::failed_precondition(text));
            }
            Ok(applied)
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

/// Whether a tree holds whiteouts of overlayfs: character devices with the number 0/0. Looks at
/// the kinds of directory entries, which costs no look at the files themselves.
fn has_whiteouts(dir: &Path) -> io::Result<bool> {
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_char_device() && entry.metadata()?.rdev() == 0 {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
