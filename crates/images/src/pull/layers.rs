//! The layers of one manifest: fetched side by side, unpacked from the lowest up.
//!
//! Each layer is a task of its own that downloads into the content store. The unpacker goes
//! through the layers in order. If it waits for a layer when that layer's first byte comes, the
//! bytes take both ways at once; otherwise the layer is read back when it is complete, most likely
//! from the page cache.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use gantry_core::image::{ImageConfig, Manifest, chain_ids};
use gantry_core::{Context, Digest, Labels, Platform, media_types};
use gantry_errdefs::{Error, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::feed::{self, Want};
use super::fetch::Fetcher;
use super::graph::Found;
use crate::content;
use crate::progress::{ProgressSink, Reporter, Stage};
use crate::read::is_attestation;
use crate::transfer::{StoreOptions, Transfer, UnpackTarget};
use crate::unpack::{LayerSource, LayerTask};

/// How long a failed pull waits for its unpacking to stop: it stops at the next bytes it reads
/// and removes one directory tree.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// One manifest being pulled.
pub(super) struct ManifestPull<'a> {
    pub(super) transfer: &'a Transfer,
    pub(super) ctx: &'a Context,
    pub(super) fetcher: &'a Fetcher,
    pub(super) store: &'a StoreOptions,
    pub(super) progress: &'a ProgressSink,
}

/// What unpacking works from.
struct Plan<'a> {
    manifest: &'a Manifest,
    diff_ids: Vec<Digest>,
    chain: Vec<Digest>,
    targets: Vec<Target<'a>>,
}

/// One snapshotter to unpack to, and how many of its layers are there already.
struct Target<'a> {
    snapshotter: &'a str,
    have: usize,
}

/// The downloads of a manifest. Dropping them stops them.
struct Downloads {
    tasks: JoinSet<Result<()>>,
    done: HashMap<Digest, watch::Receiver<bool>>,
    wants: HashMap<Digest, Want>,
}

impl ManifestPull<'_> {
    /// Fetches config and layers, and unpacks. Returns the top snapshot per snapshotter.
    pub(super) async fn run(&self, found: Found) -> Result<Vec<(String, Digest)>> {
        let mut parents = found.parents.clone();
        parents.push(content::ref_key(&found.descriptor));
        let manifest = &found.manifest;
        let config = if media_types::is_config(&manifest.config.media_type) {
            Some(self.fetcher.config(&manifest.config, &parents).await?)
        } else {
            self.fetcher.blob(&manifest.config, &parents, None).await?;
            None
        };
        if !found.layers {
            return Ok(Vec::new());
        }
        let plan = self.plan(&found, config).await?;
        let mut downloads = self.download(&plan, &parents);
        let unpacking = self.unpack_all(&plan, &parents, &mut downloads.wants, &downloads.done);
        let downloading = drain(&mut downloads.tasks);
        // A failed download ends the unpacking that waits for it, by ending the pull.
        let outcome = tokio::try_join!(unpacking, downloading);
        if outcome.is_err() {
            drop(downloads);
            self.settle(&plan).await;
        }
        outcome.map(|(unpacked, ())| unpacked)
    }

    /// Waits for unpacking that was stopped to clean up, so that a failed pull leaves nothing;
    /// not for ever, since someone else may be unpacking the same layers.
    async fn settle(&self, plan: &Plan<'_>) {
        let each = plan.targets.iter().map(|target| {
            self.transfer.unpacker().settle(self.ctx, target.snapshotter, &plan.chain)
        });
        let _ = tokio::time::timeout(SETTLE_TIMEOUT, join_all(each)).await;
    }

    /// Which snapshotters the image goes to, and from which layer on.
    async fn plan<'p>(&'p self, found: &'p Found, config: Option<ImageConfig>) -> Result<Plan<'p>> {
        let manifest = &found.manifest;
        let (diff_ids, platform) = match config {
            Some(config) => (config.rootfs.diff_ids, config.platform.into()),
            None => (Vec::new(), Platform::default()),
        };
        let platform = found.descriptor.platform.clone().unwrap_or(platform);
        let wanted: Vec<&UnpackTarget> = if is_attestation(&found.descriptor) {
            Vec::new()
        } else {
            self.store.unpacks.iter().filter(|t| t.matcher.matches(&platform)).collect()
        };
        if !wanted.is_empty() && diff_ids.len() != manifest.layers.len() {
            return Err(Error::invalid_argument(format!(
                "image {}: the manifest has {} layers, the config {}",
                found.descriptor.digest,
                manifest.layers.len(),
                diff_ids.len()
            )));
        }
        if wanted.is_empty() && !self.store.unpacks.is_empty() {
            tracing::debug!(manifest = %found.descriptor.digest, ?platform,
                "nothing unpacks this platform: fetching only");
        }
        let chain = chain_ids(&diff_ids);
        let mut targets = Vec::new();
        for target in wanted {
            let snapshots = self.transfer.db().snapshotter(&target.snapshotter)?;
            let have = self.transfer.unpacker().deepest(self.ctx, &snapshots, &chain).await?;
            targets.push(Target { snapshotter: &target.snapshotter, have });
        }
        Ok(Plan { manifest, diff_ids, chain, targets })
    }

    /// Starts the download of every layer that is needed: all of them without unpacking, else
    /// those that some snapshotter lacks.
    fn download(&self, plan: &Plan<'_>, parents: &[String]) -> Downloads {
        let from = plan.targets.iter().map(|t| t.have).min().unwrap_or(0);
        let mut downloads =
            Downloads { tasks: JoinSet::new(), done: HashMap::new(), wants: HashMap::new() };
        for layer in &plan.manifest.layers[from..] {
            if downloads.done.contains_key(&layer.digest) {
                continue;
            }
            let (done, is_done) = watch::channel(false);
            downloads.done.insert(layer.digest.clone(), is_done);
            let (offer, want) = feed::offer();
            downloads.wants.insert(layer.digest.clone(), want);
            let (fetcher, layer, parents) = (self.fetcher.clone(), layer.clone(), parents.to_vec());
            downloads.tasks.spawn(async move {
                fetcher.blob(&layer, &parents, Some(offer)).await?;
                done.send_replace(true);
                Ok(())
            });
        }
        downloads
    }

    async fn unpack_all(
        &self,
        plan: &Plan<'_>,
        parents: &[String],
        wants: &mut HashMap<Digest, Want>,
        done: &HashMap<Digest, watch::Receiver<bool>>,
    ) -> Result<Vec<(String, Digest)>> {
        let mut jobs = Vec::new();
        for target in &plan.targets {
            // Bytes can be fed to one unpacker only: the first target gets them.
            let wants = std::mem::take(wants);
            jobs.push(self.unpack(plan, target, parents, wants, done));
        }
        Ok(try_join_all(jobs).await?.into_iter().flatten().collect())
    }

    /// Unpacks to one snapshotter, layer after layer.
    async fn unpack(
        &self,
        plan: &Plan<'_>,
        target: &Target<'_>,
        parents: &[String],
        mut wants: HashMap<Digest, Want>,
        done: &HashMap<Digest, watch::Receiver<bool>>,
    ) -> Result<Option<(String, Digest)>> {
        for (i, layer) in plan.manifest.layers.iter().enumerate() {
            if i < target.have {
                Reporter::new(self.progress, layer, parents).stage(Stage::Exists);
                continue;
            }
            let want = wants.remove(&layer.digest);
            let arrived = done.get(&layer.digest).cloned();
            let arrived = arrived.ok_or_else(|| {
                Error::internal(format!("layer {}: not being fetched", layer.digest))
            })?;
            self.unpack_one(plan, target, i, parents, want, arrived).await?;
        }
        let Some(top) = plan.chain.last() else { return Ok(None) };
        let unpacker = self.transfer.unpacker();
        // At once, so that all of them share one durable write.
        let layers = plan.manifest.layers.iter().zip(&plan.diff_ids);
        let labels = layers.map(|(layer, diff)| unpacker.label_layer(self.ctx, layer, diff));
        let config = &plan.manifest.config.digest;
        let keep = unpacker.keep(self.ctx, config, target.snapshotter, top);
        tokio::try_join!(try_join_all(labels), keep)?;
        Ok(Some((target.snapshotter.to_owned(), top.clone())))
    }

    async fn unpack_one(
        &self,
        plan: &Plan<'_>,
        target: &Target<'_>,
        i: usize,
        parents: &[String],
        want: Option<Want>,
        mut arrived: watch::Receiver<bool>,
    ) -> Result<()> {
        let layer = &plan.manifest.layers[i];
        let task = LayerTask {
            parent: i.checked_sub(1).map(|below| plan.chain[below].clone()),
            chain_id: plan.chain[i].clone(),
            diff_id: plan.diff_ids[i].clone(),
            labels: Labels::new(),
        };
        let reporter = Reporter::new(self.progress, layer, parents);
        let unpacker = self.transfer.unpacker();
        let reader = match want {
            Some(want) if !*arrived.borrow() => want.wait().await,
            _ => None,
        };
        let mut unpacked = false;
        if let Some(reader) = reader {
            let source = LayerSource::Stream(Box::new(reader));
            match unpacker.unpack_layer(self.ctx, target.snapshotter, task.clone(), source).await {
                Ok(_) => unpacked = true,
                // Either the bytes took another way half way, or the layer is bad. The blob in
                // the store, once complete, is known to be the right bytes: it decides.
                Err(error) => tracing::debug!(layer = %layer.digest, %error,
                    "unpacking while downloading failed: unpacking from the store"),
            }
        }
        // The pull fails with the download's own error if this never becomes true.
        let complete = arrived.wait_for(|done| *done).await.is_ok();
        if !complete {
            return std::future::pending().await;
        }
        if !unpacked {
            reporter.stage(Stage::Extracting);
            let source = LayerSource::Blob(layer.clone());
            unpacker.unpack_layer(self.ctx, target.snapshotter, task, source).await?;
        }
        reporter.stage(Stage::Extracted);
        Ok(())
    }
}

/// Waits for every download, or the first that fails.
async fn drain(tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    while let Some(done) = tasks.join_next().await {
        crate::differ::joined(done)?;
    }
    Ok(())
}
