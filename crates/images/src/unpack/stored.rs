//! Unpacking the layers of an image that the content store has.
//!
//! Where the snapshotter allows it, layers are unpacked side by side, ahead of those below them,
//! as in a pull: the largest first, so that none of them is begun when all others are done. A layer
//! that cannot be has its turn when the one below is there.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use gantry_core::image::Manifest;
use gantry_core::{Context, Digest};
use gantry_errdefs::{Error, Result};
use gantry_metadata::Snapshots;
use tokio::sync::watch;

use super::{LayerSource, LayerTask, Unpacker, inherited_labels};
use crate::differ::{Origin, Stop, Stoppable};
use crate::progress::{ProgressSink, Reporter, Stage};

/// How long failed work waits for layers that it stopped: each stops at the next bytes it reads
/// and removes one directory tree.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The layers of one image on their way into one snapshotter.
pub(super) struct Stored<'a> {
    pub(super) unpacker: &'a Unpacker,
    pub(super) ctx: &'a Context,
    pub(super) snapshots: &'a Snapshots,
    pub(super) manifest: &'a Manifest,
    pub(super) diff_ids: &'a [Digest],
    /// Chain ID of each layer with those below it.
    pub(super) chain: &'a [Digest],
    pub(super) progress: &'a ProgressSink,
    /// What the layers belong to, for whoever follows the progress.
    pub(super) parents: &'a [String],
}

impl Stored<'_> {
    /// Unpacks the layers from `have` on, below which all are there. Returns how many were
    /// unpacked; others were there after all.
    ///
    /// # Errors
    /// As [`Unpacker::unpack`]; nothing is left of a layer that was not committed.
    pub(super) async fn run(&self, have: usize) -> Result<usize> {
        let mut below = None;
        let mut layers = Vec::new();
        for i in 0..self.chain.len() {
            if i < have {
                self.reporter(i).stage(Stage::Extracted);
                continue;
            }
            let there = watch::Sender::new(false);
            let above = there.subscribe();
            let layer = self.layer(i, below.replace(above));
            let layer = async move {
                let unpacked = layer.await?;
                there.send_replace(true);
                Ok::<_, Error>(usize::from(unpacked))
            };
            layers.push((self.manifest.layers[i].size, layer));
        }
        // They are first polled in this order, which is that in which they wait for a place.
        layers.sort_by_key(|(size, _)| Reverse(*size));
        match try_join_all(layers.into_iter().map(|(_, layer)| layer)).await {
            Ok(unpacked) => Ok(unpacked.into_iter().sum()),
            Err(err) => {
                self.unpacker.settle(self.ctx, self.snapshots.name(), self.chain).await;
                Err(err)
            }
        }
    }

    /// Unpacks one layer; `below` tells when the one below is there, if it was not already. False
    /// when the layer was there after all.
    async fn layer(&self, i: usize, mut below: Option<watch::Receiver<bool>>) -> Result<bool> {
        let reporter = self.reporter(i);
        let mut done = None;
        if let Some(below) = below.clone().filter(|_| self.goes_ahead(i)) {
            reporter.stage(Stage::Extracting);
            match self.ahead(i, below).await {
                Ok(unpacked) => done = Some(unpacked),
                Err(err) if err.is_failed_precondition() => {
                    tracing::debug!(digest = %self.manifest.layers[i].digest, %err,
                        "not unpacked ahead: waiting for the layers below");
                }
                Err(err) => return Err(err),
            }
        }
        let unpacked = match done {
            Some(unpacked) => unpacked,
            None => {
                if let Some(below) = &mut below
                    && below.wait_for(|there| *there).await.is_err()
                {
                    return Err(Error::canceled(format!("unpacking of {}", self.chain[i])));
                }
                reporter.stage(Stage::Extracting);
                let source = LayerSource::Blob(self.manifest.layers[i].clone());
                let name = self.snapshots.name();
                self.unpacker.unpack_layer(self.ctx, name, self.task(i), source).await?
            }
        };
        reporter.stage(Stage::Extracted);
        Ok(unpacked)
    }

    fn goes_ahead(&self, i: usize) -> bool {
        let name = self.snapshots.name();
        Unpacker::goes_ahead(name)
            && self.unpacker.streams(name, &self.manifest.layers[i].media_type)
    }

    async fn ahead(&self, i: usize, below: watch::Receiver<bool>) -> Result<bool> {
        let (unpacker, layer) = (self.unpacker, &self.manifest.layers[i]);
        let stop = Stop::default();
        let _stopped = stop.clone().on_drop();
        let inner = unpacker.differ().open(self.ctx, layer, &BTreeMap::new()).await?;
        let reader = Box::new(Stoppable { inner, stop });
        let (name, task) = (self.snapshots.name(), self.task(i));
        unpacker.unpack_ahead(self.ctx, name, task, (reader, Origin::Ahead), below).await
    }

    fn task(&self, i: usize) -> LayerTask {
        LayerTask {
            parent: i.checked_sub(1).map(|below| self.chain[below].clone()),
            chain_id: self.chain[i].clone(),
            diff_id: self.diff_ids[i].clone(),
            blob: Some(self.manifest.layers[i].digest.clone()),
            labels: inherited_labels(&self.manifest.layers[i]),
        }
    }

    fn reporter(&self, i: usize) -> Reporter {
        Reporter::new(self.progress, &self.manifest.layers[i], self.parents)
    }
}

impl Unpacker {
    /// Waits until nobody unpacks these chain IDs, so that what was given up and is still being
    /// cleaned up is gone; not for ever, since someone else may be unpacking the same layers.
    pub(crate) async fn settle(&self, ctx: &Context, snapshotter: &str, chain: &[Digest]) {
        let each = chain.iter().map(|chain_id| async move {
            drop(self.turn(ctx, snapshotter, chain_id).lock_owned().await);
        });
        let _done = tokio::time::timeout(SETTLE_TIMEOUT, join_all(each)).await;
    }
}
