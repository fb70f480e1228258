//! The layers of one manifest on their way into one snapshotter.
//!
//! A layer is unpacked as its bytes arrive, or from the content store. Where the snapshotter allows
//! it, layers are unpacked side by side, ahead of those below them: the largest first, so that none
//! of them is begun when all others are done. A layer that cannot be has its turn when the one below
//! is there; chain order is kept by committing.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use gantry_core::image::Manifest;
use gantry_core::{Context, Digest};
use gantry_errdefs::{Error, Result};
use tokio::sync::watch;

use super::feed::{FeedReader, Want};
use super::{LayerSource, LayerTask, Unpacker, inherited_labels};
use crate::differ::{Origin, Stop, Stoppable};
use crate::progress::{ProgressSink, Reporter, Stage};

/// How long failed work waits for layers that it stopped: each stops at the next bytes it reads
/// and removes one directory tree.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The unpacking of one manifest into one snapshotter.
pub(crate) struct Layers<'a> {
    pub(crate) unpacker: &'a Unpacker,
    pub(crate) ctx: &'a Context,
    pub(crate) snapshotter: &'a str,
    pub(crate) manifest: &'a Manifest,
    pub(crate) diff_ids: &'a [Digest],
    /// Chain ID of each layer with those below it.
    pub(crate) chain: &'a [Digest],
    pub(crate) progress: &'a ProgressSink,
    /// What the layers belong to, for whoever follows the progress.
    pub(crate) parents: &'a [String],
}

/// A layer whose blob may not be complete.
pub(crate) struct Arrival {
    /// Its bytes, if they may come while they are downloaded.
    pub(crate) want: Option<Want>,
    /// Turns true when its blob is complete; the other half goes away only when the whole fails.
    pub(crate) arrived: watch::Receiver<bool>,
}

/// How far a layer got before its turn.
enum Early {
    /// It was unpacked, or (false) was there after all.
    Done(bool),
    /// It needs those below it.
    InTurn,
    /// Nobody tried.
    Untried,
}

impl Layers<'_> {
    /// Unpacks the layers from `have` on, below which all are there, and labels layers and config.
    /// `arrival` tells how each comes; None for a layer that the content store has. Returns how many
    /// were unpacked; others were there after all.
    ///
    /// # Errors
    /// As [`Unpacker::unpack`]. Layers that were given up are still being cleaned up then, see
    /// [`Unpacker::settle`].
    pub(crate) async fn run(
        &self,
        have: usize,
        mut arrival: impl FnMut(usize) -> Result<Option<Arrival>>,
    ) -> Result<usize> {
        let mut below = None;
        let mut layers = Vec::new();
        for (i, described) in self.manifest.layers.iter().enumerate() {
            if i < have {
                self.reporter(i).stage(Stage::Exists);
                continue;
            }
            let there = watch::Sender::new(false);
            let above = there.subscribe();
            let layer = self.layer(i, arrival(i)?, below.replace(above));
            let layer = async move {
                let unpacked = layer.await?;
                there.send_replace(true);
                Ok::<_, Error>(usize::from(unpacked))
            };
            layers.push((described.size, layer));
        }
        // They are first polled in this order, which is that in which they wait for a place.
        layers.sort_by_key(|(size, _)| Reverse(*size));
        let unpacked = try_join_all(layers.into_iter().map(|(_, layer)| layer)).await?;
        self.label().await?;
        Ok(unpacked.into_iter().sum())
    }

    /// Unpacks one layer; `below` tells when the one below is there, if it was not already. False
    /// when the layer was there after all.
    async fn layer(
        &self,
        i: usize,
        arrival: Option<Arrival>,
        mut below: Option<watch::Receiver<bool>>,
    ) -> Result<bool> {
        let reporter = self.reporter(i);
        let mut early = Early::Untried;
        if let Some(Arrival { want, mut arrived }) = arrival {
            if let Some(want) = want.filter(|_| !*arrived.borrow() && self.streams(i)) {
                early = self.while_it_comes(i, want, &mut below).await;
            }
            wait(&mut arrived).await;
        }
        if let Some(below) = below.clone().filter(|there| !*there.borrow())
            && matches!(early, Early::Untried)
            && self.goes_ahead(i)
        {
            reporter.stage(Stage::Extracting);
            early = self.ahead(i, below).await?;
        }
        if let Some(below) = &mut below {
            wait(below).await;
        }
        let unpacked = match early {
            Early::Done(unpacked) => unpacked,
            Early::InTurn | Early::Untried => {
                reporter.stage(Stage::Extracting);
                let source = LayerSource::Blob(self.manifest.layers[i].clone());
                let task = self.task(i);
                self.unpacker.unpack_layer(self.ctx, self.snapshotter, task, source).await?
            }
        };
        reporter.stage(Stage::Extracted);
        Ok(unpacked)
    }

    /// Unpacks a layer while it is downloaded, if its bytes come this way to their end; ahead of
    /// those below if they are not there.
    async fn while_it_comes(
        &self,
        i: usize,
        want: Want,
        below: &mut Option<watch::Receiver<bool>>,
    ) -> Early {
        if !self.goes_ahead(i)
            && let Some(below) = below
        {
            wait(below).await;
        }
        let Some(reader) = want.wait().await else { return Early::Untried };
        match self.stream(i, reader, below.clone()).await {
            Ok(unpacked) => Early::Done(unpacked),
            // The bytes took another way half way, or the layer needs those below, or it is bad.
            // The blob in the store is known to be the right bytes: it decides.
            Err(err) => {
                tracing::debug!(digest = %self.manifest.layers[i].digest, %err,
                    "not unpacked while downloading: unpacking from the store");
                if err.is_failed_precondition() { Early::InTurn } else { Early::Untried }
            }
        }
    }

    async fn stream(
        &self,
        i: usize,
        reader: FeedReader,
        below: Option<watch::Receiver<bool>>,
    ) -> Result<bool> {
        let (unpacker, task) = (self.unpacker, self.task(i));
        let reader: Box<dyn Read + Send> = Box::new(reader);
        match below.filter(|there| !*there.borrow()) {
            Some(below) => {
                let bytes = (reader, Origin::Elsewhere);
                unpacker.unpack_ahead(self.ctx, self.snapshotter, task, bytes, below).await
            }
            None => {
                let source = LayerSource::Stream(reader);
                unpacker.unpack_layer(self.ctx, self.snapshotter, task, source).await
            }
        }
    }

    /// Unpacks a layer of the content store before those below it are there.
    async fn ahead(&self, i: usize, below: watch::Receiver<bool>) -> Result<Early> {
        let (unpacker, layer) = (self.unpacker, &self.manifest.layers[i]);
        let stop = Stop::default();
        let _stopped = stop.clone().on_drop();
        let inner = unpacker.differ().open(self.ctx, layer, &BTreeMap::new()).await?;
        let reader: Box<dyn Read + Send> = Box::new(Stoppable { inner, stop });
        let (task, bytes) = (self.task(i), (reader, Origin::Ahead));
        match unpacker.unpack_ahead(self.ctx, self.snapshotter, task, bytes, below).await {
            Ok(unpacked) => Ok(Early::Done(unpacked)),
            // It needs those below, or attributes that may not be set here, or it is bad, which is
            // told again.
            Err(err) => {
                tracing::debug!(digest = %layer.digest, %err,
                    "not unpacked ahead: waiting for the layers below");
                Ok(Early::InTurn)
            }
        }
    }

    fn goes_ahead(&self, i: usize) -> bool {
        Unpacker::goes_ahead(self.snapshotter) && self.streams(i)
    }

    fn streams(&self, i: usize) -> bool {
        self.unpacker.streams(self.snapshotter, &self.manifest.layers[i].media_type)
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

    /// Labels layers and config; all at once, so that they share one durable write.
    async fn label(&self) -> Result<()> {
        let layers = self.manifest.layers.iter().zip(self.diff_ids);
        let labels = layers.map(|(layer, diff)| self.unpacker.label_layer(self.ctx, layer, diff));
        let keep = async {
            let Some(top) = self.chain.last() else { return Ok(()) };
            let config = &self.manifest.config.digest;
            self.unpacker.keep(self.ctx, config, self.snapshotter, top).await
        };
        tokio::try_join!(try_join_all(labels), keep)?;
        Ok(())
    }
}

/// Waits for something that happens unless the whole fails; then whoever fails ends the whole, and
/// this wait with it.
async fn wait(there: &mut watch::Receiver<bool>) {
    if there.wait_for(|there| *there).await.is_err() {
        std::future::pending::<()>().await;
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
