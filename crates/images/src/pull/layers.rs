//! The layers of one manifest: fetched side by side, and unpacked meanwhile.
//!
//! Each layer is a task of its own that downloads into the content store. Where an unpacker waits
//! for the layer when its first byte comes, the bytes take both ways at once; otherwise the layer
//! is read back when it is complete, most likely from the page cache. A snapshotter that allows
//! it has all layers unpacked side by side, another one from the lowest up.

use std::collections::HashMap;

use futures_util::future::{join_all, try_join_all};
use gantry_core::image::{ImageConfig, Manifest, chain_ids};
use gantry_core::{Context, Digest, Platform, media_types};
use gantry_errdefs::{Error, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::fetch::Fetcher;
use super::graph::Found;
use crate::content;
use crate::progress::ProgressSink;
use crate::read::is_attestation;
use crate::transfer::{StoreOptions, Transfer, UnpackTarget};
use crate::unpack::feed::{self, Want};
use crate::unpack::{Arrival, Layers};

/// One manifest being pulled.
pub(super) struct ManifestPull<'a> {
    pub(super) transfer: &'a Transfer,
    pub(super) ctx: &'a Context,
    pub(super) fetcher: &'a Fetcher,
    pub(super) store: &'a StoreOptions,
    pub(super) progress: &'a ProgressSink,
}

/// What unpacking works from.
pub(super) struct Plan<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) diff_ids: Vec<Digest>,
    /// Chain ID of each layer with those below it.
    pub(super) chain: Vec<Digest>,
    pub(super) targets: Vec<Target<'a>>,
}

/// One snapshotter to unpack to, and how many of its layers are there already.
pub(super) struct Target<'a> {
    pub(super) snapshotter: &'a str,
    pub(super) have: usize,
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

    /// Waits for unpacking that was stopped to clean up, so that a failed pull leaves nothing.
    async fn settle(&self, plan: &Plan<'_>) {
        let each = plan.targets.iter().map(|target| {
            self.transfer.unpacker().settle(self.ctx, target.snapshotter, &plan.chain)
        });
        join_all(each).await;
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

    /// Unpacks to every target; returns each snapshotter with its top snapshot.
    async fn unpack_all(
        &self,
        plan: &Plan<'_>,
        parents: &[String],
        wants: &mut HashMap<Digest, Want>,
        done: &HashMap<Digest, watch::Receiver<bool>>,
    ) -> Result<Vec<(String, Digest)>> {
        let mut jobs = Vec::new();
        for target in &plan.targets {
            let layers = Layers {
                unpacker: self.transfer.unpacker(),
                ctx: self.ctx,
                snapshotter: target.snapshotter,
                manifest: plan.manifest,
                diff_ids: &plan.diff_ids,
                chain: &plan.chain,
                progress: self.progress,
                parents,
            };
            // Bytes can be fed to one unpacker only: the first target gets them.
            let mut wants = std::mem::take(wants);
            jobs.push(async move {
                let arrival = |i: usize| {
                    let layer = &plan.manifest.layers[i];
                    let arrived = done.get(&layer.digest).cloned().ok_or_else(|| {
                        Error::internal(format!("layer {}: not being fetched", layer.digest))
                    })?;
                    Ok(Some(Arrival { want: wants.remove(&layer.digest), arrived }))
                };
                layers.run(target.have, arrival).await?;
                Ok::<_, Error>(
                    plan.chain.last().map(|top| (target.snapshotter.to_owned(), top.clone())),
                )
            });
        }
        Ok(try_join_all(jobs).await?.into_iter().flatten().collect())
    }
}

/// Waits for every download, or the first that fails.
async fn drain(tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    while let Some(done) = tasks.join_next().await {
        crate::differ::joined(done)?;
    }
    Ok(())
}
