//! The layers of one manifest on their way into one snapshotter.

use std::collections::HashMap;
use std::io::Read;

use futures_util::future::try_join_all;
use gantry_core::Digest;
use gantry_errdefs::{Error, Result};
use tokio::sync::watch;

use super::feed::{FeedReader, Want};
use super::layers::{ManifestPull, Plan, Target};
use crate::differ::Origin;
use crate::progress::{Reporter, Stage};
use crate::unpack::{LayerSource, LayerTask, Unpacker, inherited_labels};

/// The unpacking of one manifest into one snapshotter.
pub(super) struct Unpacking<'a> {
    pub(super) pull: &'a ManifestPull<'a>,
    pub(super) plan: &'a Plan<'a>,
    pub(super) target: &'a Target<'a>,
    pub(super) parents: &'a [String],
}

/// What one layer waits for.
struct Step {
    /// Its place, from the lowest.
    i: usize,
    /// Its bytes, if they may come while they are downloaded.
    want: Option<Want>,
    /// Its blob is complete.
    arrived: watch::Receiver<bool>,
    /// The snapshot below is there; None for the lowest layer.
    below: Option<watch::Receiver<bool>>,
}

impl Unpacking<'_> {
    /// Unpacks every layer; returns the snapshotter with its top snapshot. `done` tells which
    /// blobs are complete; its senders go away only when the pull fails.
    pub(super) async fn run(
        self,
        mut wants: HashMap<Digest, Want>,
        done: &HashMap<Digest, watch::Receiver<bool>>,
    ) -> Result<Option<(String, Digest)>> {
        let layers = &self.plan.manifest.layers;
        let mut steps = Vec::new();
        let mut below = None;
        for (i, layer) in layers.iter().enumerate() {
            let there = watch::Sender::new(i < self.target.have);
            let above = Some(there.subscribe());
            if i < self.target.have {
                self.reporter(i).stage(Stage::Exists);
            } else {
                let arrived = done.get(&layer.digest).cloned().ok_or_else(|| {
                    Error::internal(format!("layer {}: not being fetched", layer.digest))
                })?;
                let want = wants.remove(&layer.digest);
                steps.push((Step { i, want, arrived, below: below.take() }, there));
            }
            below = above.filter(|_| i >= self.target.have);
        }
        let this = &self;
        let each = steps.into_iter().map(|(step, there)| async move {
            this.layer(step).await?;
            there.send_replace(true);
            Ok::<_, Error>(())
        });
        try_join_all(each).await?;
        let Some(top) = self.plan.chain.last() else { return Ok(None) };
        self.label(top).await?;
        Ok(Some((self.target.snapshotter.to_owned(), top.clone())))
    }

    /// Unpacks one layer, from the network if it can, else from the store.
    async fn layer(&self, mut step: Step) -> Result<()> {
        let ahead = Unpacker::goes_ahead(self.target.snapshotter);
        if !ahead {
            wait(&mut step.below).await;
        }
        let media_type = &self.plan.manifest.layers[step.i].media_type;
        let streams = self.pull.transfer.unpacker().streams(self.target.snapshotter, media_type);
        let reader = match step.want.take() {
            Some(want) if streams && !*step.arrived.borrow() => want.wait().await,
            _ => None,
        };
        let reporter = self.reporter(step.i);
        let mut unpacked = false;
        if let Some(reader) = reader {
            match self.stream(&step, reader).await {
                Ok(()) => unpacked = true,
                // The bytes took another way half way, or the layer needs those below, or it is
                // bad. The blob in the store is known to be the right bytes: it decides.
                Err(error) => tracing::debug!(digest = %self.plan.manifest.layers[step.i].digest,
                    %error, "not unpacked while downloading: unpacking from the store"),
            }
        }
        wait(&mut step.below).await;
        wait(&mut Some(step.arrived)).await;
        if !unpacked {
            reporter.stage(Stage::Extracting);
            let source = LayerSource::Blob(self.plan.manifest.layers[step.i].clone());
            let unpacker = self.pull.transfer.unpacker();
            let task = self.task(step.i);
            unpacker.unpack_layer(self.pull.ctx, self.target.snapshotter, task, source).await?;
        }
        reporter.stage(Stage::Extracted);
        Ok(())
    }

    /// Unpacks a layer while it is downloaded; ahead of those below if they are not there.
    async fn stream(&self, step: &Step, reader: FeedReader) -> Result<()> {
        let (ctx, snapshotter) = (self.pull.ctx, self.target.snapshotter);
        let (unpacker, task) = (self.pull.transfer.unpacker(), self.task(step.i));
        let reader = Box::new(reader);
        match step.below.clone().filter(|there| !*there.borrow()) {
            Some(below) => {
                let bytes: (Box<dyn Read + Send>, _) = (reader, Origin::Elsewhere);
                unpacker.unpack_ahead(ctx, snapshotter, task, bytes, below).await?
            }
            None => {
                let source = LayerSource::Stream(reader);
                unpacker.unpack_layer(ctx, snapshotter, task, source).await?
            }
        };
        Ok(())
    }

    fn task(&self, i: usize) -> LayerTask {
        LayerTask {
            parent: i.checked_sub(1).map(|below| self.plan.chain[below].clone()),
            chain_id: self.plan.chain[i].clone(),
            diff_id: self.plan.diff_ids[i].clone(),
            blob: Some(self.plan.manifest.layers[i].digest.clone()),
            labels: inherited_labels(&self.plan.manifest.layers[i]),
        }
    }

    fn reporter(&self, i: usize) -> Reporter {
        Reporter::new(self.pull.progress, &self.plan.manifest.layers[i], self.parents)
    }

    /// Labels layers and config; all at once, so that they share one durable write.
    async fn label(&self, top: &Digest) -> Result<()> {
        let (unpacker, ctx) = (self.pull.transfer.unpacker(), self.pull.ctx);
        let layers = self.plan.manifest.layers.iter().zip(&self.plan.diff_ids);
        let labels = layers.map(|(layer, diff)| unpacker.label_layer(ctx, layer, diff));
        let config = &self.plan.manifest.config.digest;
        let keep = unpacker.keep(ctx, config, self.target.snapshotter, top);
        tokio::try_join!(try_join_all(labels), keep)?;
        Ok(())
    }
}

/// Waits for something that happens unless the pull fails; then whoever fails ends the pull, and
/// this wait with it.
async fn wait(there: &mut Option<watch::Receiver<bool>>) {
    let Some(there) = there else { return };
    if there.wait_for(|there| *there).await.is_err() {
        std::future::pending::<()>().await;
    }
}
