//! Layers whose tree is not what was committed.

use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime};

use gantry_content::Reader;
use gantry_core::image::chain_ids;
use gantry_core::{Context, Digest, Namespace};
use gantry_errdefs::{Error, Result};
use gantry_mount::Mount;
use gantry_snapshots::{Layer, LayerOrigin, Remade, Verdict};
use gantry_store::KvRead;

use super::Upkeep;
use crate::gc::forget_snapshots;
use crate::inflight::Guard;
use crate::keys;
use crate::snapshots;

/// Longest pause between two layers.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Which layers are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerScan {
    /// Those that lost their directory or were found damaged before.
    Known,
    /// Those, and the ones committed at this time or later.
    Since(SystemTime),
    /// All.
    All,
}

/// A damaged layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLayer {
    /// Name of the snapshotter.
    pub snapshotter: String,
    /// Whose it is.
    pub namespace: String,
    /// Its name there, nearly always a chain ID.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
    /// What it can be unpacked from again.
    pub origin: Option<LayerOrigin>,
    backend_key: String,
}

/// A layer being made again.
pub struct Remaking {
    /// The bytes to unpack.
    pub reader: Box<dyn Reader>,
    /// Where to unpack them.
    pub mounts: Vec<Mount>,
    /// The digest their tar must have.
    pub diff_id: Digest,
    /// What to hand to [`Upkeep::finish`] in the end.
    pub tree: RemadeTree,
}

/// The new tree of a layer. Keeps the collector away from the layer.
#[derive(Debug)]
pub struct RemadeTree {
    remade: Remade,
    _used: Guard,
}

impl Upkeep {
    /// The layers that are damaged, those below others first. Only the snapshotters that keep trees
    /// themselves are looked at; that takes at most half of the disk's time.
    ///
    /// # Errors
    /// DataLoss or Unavailable when the database can't be read.
    pub async fn bad_layers(&self, scan: LayerScan) -> Result<Vec<BadLayer>> {
        let mut bad = Vec::new();
        for snapshotter in self.db.snapshotter_names() {
            let Some(upkeep) = self.db.shared.snapshotters[&snapshotter].upkeep() else { continue };
            for layer in upkeep.layers().await? {
                let wanted = match scan {
                    LayerScan::Known => false,
                    LayerScan::Since(time) => layer.committed >= time,
                    LayerScan::All => true,
                };
                if !wanted && !layer.damaged {
                    continue;
                }
                let begun = Instant::now();
                let reason = match upkeep.verify(&layer.name).await {
                    Ok(Verdict::Damaged(reason)) => reason,
                    Ok(Verdict::Whole | Verdict::Unknown) => {
                        // Others want the disk too.
                        tokio::time::sleep(begun.elapsed().min(PAUSE_MAX)).await;
                        continue;
                    }
                    Err(err) if err.is_not_found() => continue,
                    Err(err) => {
                        tracing::warn!(snapshotter, layer = layer.name, %err, "not verified");
                        continue;
                    }
                };
                bad.extend(self.bad_layer(&snapshotter, layer, reason).await?);
            }
        }
        Ok(bad)
    }

    /// None for one without a record: that is an orphan.
    async fn bad_layer(
        &self,
        snapshotter: &str,
        layer: Layer,
        reason: String,
    ) -> Result<Option<BadLayer>> {
        let mut owner = None;
        let records = keys::backend_snapshot(snapshotter, &layer.name);
        self.db.view()?.scan(&records, &mut |key, _| {
            let [_, _, namespace, key] = keys::parts(key)?;
            owner = Some((namespace, key));
            Ok(ControlFlow::Break(()))
        })?;
        let Some((namespace, key)) = owner else { return Ok(None) };
        let origin = self.origin(snapshotter, &namespace, &key, layer.origin).await?;
        Ok(Some(BadLayer {
            snapshotter: snapshotter.to_owned(),
            namespace,
            key,
            reason,
            origin,
            backend_key: layer.name,
        }))
    }

    /// What a layer can be unpacked from: the blob noted at its commit, or one of the namespace
    /// whose tar makes the chain ID that the layer is named by.
    async fn origin(
        &self,
        snapshotter: &str,
        namespace: &str,
        key: &str,
        noted: Option<LayerOrigin>,
    ) -> Result<Option<LayerOrigin>> {
        if let Some(origin) = noted
            && let Some(blob) = &origin.blob
            && self.has_blob(blob).await?
        {
            return Ok(Some(origin));
        }
        let ctx = Context::new(Namespace::new(namespace)?);
        let snapshots = self.db.snapshotter(snapshotter)?;
        let Ok(chain_id) = key.parse::<Digest>() else { return Ok(None) };
        let parent = match snapshots.stat(&ctx, key).await {
            Ok(info) => info.parent,
            Err(err) if err.is_not_found() => return Ok(None),
            Err(err) => return Err(err),
        };
        let below = parent.map(|p| p.parse::<Digest>()).transpose();
        let Ok(below) = below else { return Ok(None) };
        for (diff_id, blob) in self.tars(&ctx).await? {
            let chain: Vec<Digest> = below.iter().cloned().chain([diff_id.clone()]).collect();
            if chain_ids(&chain).last() == Some(&chain_id) && self.has_blob(&blob).await? {
                return Ok(Some(LayerOrigin { diff_id, blob: Some(blob) }));
            }
        }
        Ok(None)
    }

    /// Begins to make a damaged layer again.
    ///
    /// # Errors
    /// NotFound when layer or blob are gone; FailedPrecondition when the layer is mounted, or a
    /// layer below it is damaged too.
    pub async fn remake(&self, bad: &BadLayer) -> Result<Remaking> {
        let missing = || Error::not_found(format!("blob of layer {}", bad.key));
        let origin = bad.origin.as_ref().ok_or_else(missing)?;
        let blob = origin.blob.as_ref().ok_or_else(missing)?;
        let name = snapshots::inflight_name(&bad.snapshotter, &bad.backend_key);
        let used = self.db.shared.inflight.enter(&name).await;
        let reader = self.db.shared.content.reader(blob).await?;
        let remade = self.keeper(bad)?.remake(&bad.backend_key).await?;
        let (mounts, diff_id) = (remade.mounts.clone(), origin.diff_id.clone());
        Ok(Remaking { reader, mounts, diff_id, tree: RemadeTree { remade, _used: used } })
    }

    /// Puts the tree of a layer that was made again in its place, or drops it.
    ///
    /// # Errors
    /// As [`gantry_snapshots::Upkeep::replace`].
    pub async fn finish(&self, bad: &BadLayer, tree: RemadeTree, good: bool) -> Result<()> {
        let keeper = self.keeper(bad)?;
        if good {
            return keeper.replace(tree.remade).await;
        }
        keeper.discard(tree.remade).await;
        Ok(())
    }

    /// Removes a damaged layer that cannot be unpacked again, and the layers on top of it, so that
    /// the next pull makes them. Returns how many.
    ///
    /// # Errors
    /// FailedPrecondition while a container's snapshot is on top of one, or one that was removed and
    /// waits for the collector.
    pub async fn give_up(&self, bad: &BadLayer) -> Result<usize> {
        let keeper = self.keeper(bad)?;
        let gone = keeper.give_up(&bad.backend_key).await?;
        let count = gone.len();
        forget_snapshots(&self.db, &bad.snapshotter, gone).await?;
        Ok(count)
    }

    fn keeper(&self, bad: &BadLayer) -> Result<&dyn gantry_snapshots::Upkeep> {
        let snapshotter = self.db.shared.snapshotters.get(&bad.snapshotter);
        snapshotter.and_then(|s| s.upkeep()).ok_or_else(|| {
            Error::not_found(format!("snapshotter {} with trees of its own", bad.snapshotter))
        })
    }
}
