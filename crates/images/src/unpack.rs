//! Unpacking: layers into snapshots.
//!
//! The snapshot that holds the first *n* layers of an image is named by their chain ID. A layer
//! is unpacked into an active snapshot over the chain below it, checked against the diff ID that
//! the image config promises, and committed under its chain ID; images that share layers share
//! snapshots. Two unpackings of one chain ID do the work once.
//!
//! The files of a layer are on disk before its snapshot is committed, but the commits of one image
//! share one sync of the database: the write that ends the unpacking.

mod again;
mod ahead;
pub(crate) mod feed;
mod layers;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use gantry_core::image::{Manifest, chain_ids};
use gantry_core::platforms::Matcher;
use gantry_core::{Context, Descriptor, Digest, Labels};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_metadata::{Db, SharingPolicy, Snapshots};
use gantry_mount::Mount;
use gantry_snapshots::{CommitOptions, LayerOrigin, label};

use crate::differ::{ApplyRequest, Differ, LABEL_UNCOMPRESSED, LayerDiffer, Origin, Stop};
use crate::flights::Flights;
use crate::lease;
use crate::progress::ProgressSink;
use crate::read::{read_config, resolve_manifest};

pub(crate) use self::layers::{Arrival, Layers};

/// Prefix of the label on an image config that keeps the snapshot of the unpacked image.
const LABEL_GC_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";

/// Times a layer is begun again because another client of the store got between.
const ATTEMPT_COUNT_MAX: usize = 3;

/// Unpacks layers and images into snapshots. Cheap to clone; clones know of each other's work.
#[derive(Clone)]
pub struct Unpacker {
    db: Db,
    differ: Differ,
    /// Chain IDs being unpacked, by namespace (empty where they share) and snapshotter.
    flights: Arc<Flights<(String, String, Digest)>>,
    /// Who applies layers for a snapshotter, where it is not `differ`.
    appliers: Arc<BTreeMap<String, Arc<dyn LayerDiffer>>>,
}

impl fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let appliers: Vec<&String> = self.appliers.keys().collect();
        f.debug_struct("Unpacker").field("appliers", &appliers).finish_non_exhaustive()
    }
}

/// An unpacked image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// The manifest that was unpacked, chosen by platform when an index was given.
    pub manifest: Descriptor,
    /// Name of the snapshot with all layers; `None` for an image without layers.
    pub chain_id: Option<Digest>,
    /// Layers that were unpacked; the others were there.
    pub layers_unpacked: usize,
}

/// Where the bytes of a layer come from.
#[expect(clippy::large_enum_variant, reason = "made once a layer and moved twice")]
pub enum LayerSource {
    /// The content store of the namespace.
    Blob(Descriptor),
    /// A stream in any compression, read once, from a thread that may block. It is not read at
    /// all when the snapshot turns out to be there.
    Stream(Box<dyn Read + Send>),
}

/// A layer to unpack.
#[derive(Clone, Debug)]
pub struct LayerTask {
    /// The chain ID below; `None` for the lowest layer.
    pub parent: Option<Digest>,
    /// The chain ID with this layer.
    pub chain_id: Digest,
    /// The digest the plain tar must have.
    pub diff_id: Digest,
    /// The blob it comes in, if it is known.
    pub blob: Option<Digest>,
    /// Labels for the snapshot, such as what remote snapshotters want to know.
    pub labels: Labels,
}

impl Unpacker {
    /// An unpacker that applies layers with `differ`.
    pub fn new(db: Db, differ: Differ) -> Self {
        Self { db, differ, flights: Arc::default(), appliers: Arc::default() }
    }

    /// The same unpacker, with other differs for the snapshotters named.
    #[must_use]
    pub fn with_appliers(self, appliers: BTreeMap<String, Arc<dyn LayerDiffer>>) -> Self {
        Self { appliers: Arc::new(appliers), ..self }
    }

    /// Whether layers of this type can be unpacked into this snapshotter as their bytes come.
    pub(crate) fn streams(&self, snapshotter: &str, media_type: &str) -> bool {
        !self.appliers.contains_key(snapshotter) && self.differ.reads(media_type)
    }

    /// The differ layers are applied with.
    pub fn differ(&self) -> &Differ {
        &self.differ
    }

    /// Unpacks the image that `target` describes, for the best of `platforms`, into
    /// `snapshotter`. Layers that are there are not unpacked again. Afterwards each layer blob
    /// carries its diff ID as a label, and the config blob keeps the snapshot alive.
    ///
    /// # Errors
    /// NotFound for missing content or platform; InvalidArgument for documents that do not fit
    /// together, a damaged layer, or a snapshotter that is not there; FailedPrecondition for a
    /// layer that is not what the config promises; Unimplemented for a layer type we cannot read.
    pub async fn unpack(
        &self,
        ctx: &Context,
        target: &Descriptor,
        snapshotter: &str,
        platforms: &Matcher,
    ) -> Result<Unpacked> {
        let content = self.db.content();
        let (target, manifest) = resolve_manifest(&content, ctx, target, platforms).await?;
        self.unpack_manifest(ctx, target, &manifest, snapshotter).await
    }

    /// As [`Self::unpack`], for a manifest already read.
    ///
    /// # Errors
    /// As [`Self::unpack`].
    pub async fn unpack_manifest(
        &self,
        ctx: &Context,
        target: Descriptor,
        manifest: &Manifest,
        snapshotter: &str,
    ) -> Result<Unpacked> {
        self.unpack_told(ctx, target, manifest, snapshotter, &ProgressSink::default()).await
    }

    /// As [`Self::unpack_manifest`]; tells of each layer.
    pub(crate) async fn unpack_told(
        &self,
        ctx: &Context,
        target: Descriptor,
        manifest: &Manifest,
        snapshotter: &str,
        progress: &ProgressSink,
    ) -> Result<Unpacked> {
        let snapshots = self.db.snapshotter(snapshotter)?;
        let (ctx, own) = lease::ensure(&self.db, ctx).await?;
        own.end(self.unpack_held(&ctx, target, manifest, &snapshots, progress).await).await
    }

    async fn unpack_held(
        &self,
        ctx: &Context,
        target: Descriptor,
        manifest: &Manifest,
        snapshots: &Snapshots,
        progress: &ProgressSink,
    ) -> Result<Unpacked> {
        let config = read_config(&self.db.content(), ctx, manifest).await?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(Error::invalid_argument(format!(
                "image {}: the manifest has {} layers, the config {}",
                target.digest,
                manifest.layers.len(),
                diff_ids.len()
            )));
        }
        let chain = chain_ids(diff_ids);
        // A name that is there stands for all below it.
        let have = self.deepest(ctx, snapshots, &chain).await?;
        let parents = [crate::content::ref_key(&target)];
        let layers = Layers {
            unpacker: self,
            ctx,
            snapshotter: snapshots.name(),
            manifest,
            diff_ids,
            chain: &chain,
            progress,
            parents: &parents,
        };
        let layers_unpacked = match layers.run(have, |_| Ok(None)).await {
            Ok(count) => count,
            Err(err) => {
                self.settle(ctx, snapshots.name(), &chain).await;
                return Err(err);
            }
        };
        Ok(Unpacked { manifest: target, chain_id: chain.last().cloned(), layers_unpacked })
    }

    /// Unpacks one layer; false when its snapshot was there already (then it joins the lease of
    /// `ctx`, which should have one). Concurrent calls for one chain ID wait for the first. The
    /// work ends soon after the future is dropped, and leaves no snapshot. The snapshot is durable
    /// with the caller's next write.
    ///
    /// # Errors
    /// As [`Self::unpack`]; NotFound when the parent is not there.
    pub async fn unpack_layer(
        &self,
        ctx: &Context,
        snapshotter: &str,
        task: LayerTask,
        source: LayerSource,
    ) -> Result<bool> {
        let snapshots = self.db.snapshotter(snapshotter)?;
        let turn = self.turn(ctx, snapshotter, &task.chain_id).lock_owned().await;
        // On its own task, so that the snapshot is cleaned up even when the caller goes away;
        // going away stops the applying by the guard it holds.
        let (caller_is_there, caller_left) = tokio::sync::oneshot::channel::<()>();
        let (unpacker, ctx) = (self.clone(), ctx.clone());
        let work = tokio::spawn(async move {
            let done = unpacker.extract(&ctx, snapshots, task, source, caller_left).await;
            drop(turn);
            done
        });
        let done = crate::differ::joined(work.await);
        drop(caller_is_there);
        done
    }

    /// The lock that is held by who unpacks a chain ID: one for all namespaces where they share
    /// what they unpack.
    fn turn(
        &self,
        ctx: &Context,
        snapshotter: &str,
        chain_id: &Digest,
    ) -> Arc<tokio::sync::Mutex<()>> {
        let namespace = match self.db.policy() {
            SharingPolicy::Shared => String::new(),
            SharingPolicy::Isolated => ctx.namespace.to_string(),
        };
        self.flights.enter((namespace, snapshotter.to_owned(), chain_id.clone()))
    }

    /// Whether the layer is there, or another namespace has one to share.
    async fn is_had(&self, ctx: &Context, snapshots: &Snapshots, task: &LayerTask) -> Result<bool> {
        if self.is_there(ctx, snapshots, &task.chain_id).await? {
            return Ok(true);
        }
        let (name, parent) = (task.chain_id.as_str(), task.parent.as_ref().map(Digest::as_str));
        let labels = committed_labels(task);
        match Db::relaxed(snapshots.share(ctx, name, parent, &task.diff_id, labels)).await {
            // Its parent is not there yet.
            Err(err) if err.is_not_found() => Ok(false),
            shared => shared,
        }
    }

    /// Unpacks a layer that nobody else is unpacking.
    async fn extract(
        &self,
        ctx: &Context,
        snapshots: Snapshots,
        task: LayerTask,
        source: LayerSource,
        caller_left: tokio::sync::oneshot::Receiver<()>,
    ) -> Result<bool> {
        if self.is_had(ctx, &snapshots, &task).await? {
            return Ok(false);
        }
        let applier = self.appliers.get(snapshots.name()).cloned();
        let bytes = match (source, applier) {
            (LayerSource::Blob(layer), Some(applier)) => Bytes::Theirs(Box::new(layer), applier),
            (LayerSource::Blob(layer), None) => {
                Bytes::Ours(self.differ.open(ctx, &layer, &BTreeMap::new()).await?, Origin::Store)
            }
            (LayerSource::Stream(reader), _) => Bytes::Ours(reader, Origin::Elsewhere),
        };
        let Some((key, mounts)) = self.prepare(ctx, &snapshots, &task).await? else {
            return Ok(false);
        };
        let (differ, ctx) = (self.differ.clone(), ctx.clone());
        let extraction = Extraction { differ, ctx, snapshots, task, key, mounts };
        let extracted = extraction.run(bytes, caller_left).await;
        if extracted.is_err() {
            extraction.clean_up().await;
        }
        extracted
    }

    /// How many layers, from the lowest, have their snapshots.
    pub(crate) async fn deepest(
        &self,
        ctx: &Context,
        snapshots: &Snapshots,
        chain: &[Digest],
    ) -> Result<usize> {
        for (i, chain_id) in chain.iter().enumerate().rev() {
            if self.is_there(ctx, snapshots, chain_id).await? {
                return Ok(i + 1);
            }
        }
        Ok(0)
    }

    /// Whether the snapshot is there; if so, it joins the lease.
    async fn is_there(
        &self,
        ctx: &Context,
        snapshots: &Snapshots,
        chain_id: &Digest,
    ) -> Result<bool> {
        let found = async || match snapshots.stat(ctx, chain_id.as_str()).await {
            Ok(_) => Ok(true),
            Err(err) if err.is_not_found() => Ok(false),
            Err(err) => Err(err),
        };
        // Most are not there, and joining a lease is a durable write.
        if !found().await? {
            return Ok(false);
        }
        let Some(lease) = &ctx.lease else { return Ok(true) };
        let resource = gantry_metadata::Resource {
            kind: format!("snapshots/{}", snapshots.name()),
            id: chain_id.to_string(),
        };
        Db::relaxed(self.db.leases().add_resource(ctx, lease, resource)).await?;
        // Looked at again: it may have been collected before the lease held it.
        found().await
    }

    /// Prepares the snapshot to unpack into; `None` when the snapshotter has the layer by itself.
    async fn prepare(
        &self,
        ctx: &Context,
        snapshots: &Snapshots,
        task: &LayerTask,
    ) -> Result<Option<(String, Vec<Mount>)>> {
        let mut labels = task.labels.clone();
        labels.insert(label::TARGET_REF.to_owned(), task.chain_id.to_string());
        let parent = task.parent.as_ref().map(Digest::as_str);
        for _ in 0..ATTEMPT_COUNT_MAX {
            let key = format!("{} {}", unique("extract"), task.chain_id);
            let prepared = snapshots.prepare(ctx, &key, parent, labels.clone());
            match Db::relaxed(prepared).await {
                Ok(mounts) => return Ok(Some((key, mounts))),
                Err(err) if err.is_already_exists() => {
                    if self.is_there(ctx, snapshots, &task.chain_id).await? {
                        return Ok(None);
                    }
                }
                Err(err) => return Err(err.context(format!("layer {}", task.diff_id))),
            }
        }
        Err(Error::unavailable(format!(
            "snapshot {} comes and goes: not unpacked after {ATTEMPT_COUNT_MAX} attempts",
            task.chain_id
        )))
    }

    pub(crate) async fn label_layer(
        &self,
        ctx: &Context,
        layer: &Descriptor,
        diff_id: &Digest,
    ) -> Result<()> {
        let labels = Labels::from([(LABEL_UNCOMPRESSED.to_owned(), diff_id.to_string())]);
        match crate::content::add_labels(&self.db.content(), ctx, layer, labels, None).await {
            // A layer may be unpacked though its blob was discarded.
            Err(err) if err.is_not_found() => Ok(()),
            done => done,
        }
    }

    /// Makes the image config keep the snapshot of its layers. For callers that unpack layer by
    /// layer; [`Self::unpack`] does it by itself.
    ///
    /// # Errors
    /// NotFound when the config is not in the content store.
    pub async fn keep(
        &self,
        ctx: &Context,
        config: &Digest,
        snapshotter: &str,
        chain_id: &Digest,
    ) -> Result<()> {
        let key = format!("{LABEL_GC_SNAPSHOT}{snapshotter}");
        let path = format!("labels.{key}");
        let labels = Labels::from([(key, chain_id.to_string())]);
        self.db.content().update(ctx, config, labels, &[path]).await.map(drop)
    }
}

/// What is applied, and by whom.
enum Bytes {
    /// The bytes, by us.
    Ours(Box<dyn Read + Send>, Origin),
    /// A blob of the content store, by someone who finds it there.
    Theirs(Box<Descriptor>, Arc<dyn LayerDiffer>),
}

/// One layer on its way into a prepared snapshot.
struct Extraction {
    differ: Differ,
    ctx: Context,
    snapshots: Snapshots,
    task: LayerTask,
    /// Key of the snapshot.
    key: String,
    mounts: Vec<Mount>,
}

impl Extraction {
    /// Applies, checks and commits; false when another client of the store was faster.
    async fn run(
        &self,
        bytes: Bytes,
        caller_left: tokio::sync::oneshot::Receiver<()>,
    ) -> Result<bool> {
        let task = &self.task;
        let what = || format!("layer {}", task.diff_id);
        let diff_id = match bytes {
            Bytes::Ours(reader, origin) => self.apply(reader, origin, caller_left).await,
            Bytes::Theirs(layer, applier) => {
                self.have_applied(&layer, &*applier, caller_left).await
            }
        };
        let diff_id = diff_id.context(what)?;
        if diff_id != task.diff_id {
            return Err(Error::failed_precondition(format!(
                "layer {}: the image config promises this diff ID, the layer unpacks to {diff_id}",
                task.diff_id
            )));
        }
        let options = commit_options(task, None);
        let name = task.chain_id.as_str();
        match Db::relaxed(self.snapshots.commit(&self.ctx, name, &self.key, options)).await {
            Ok(()) => Ok(true),
            Err(err) if err.is_already_exists() => {
                // Another client was faster; its snapshot is as good.
                self.clean_up().await;
                Ok(false)
            }
            Err(err) => Err(err.context(what())),
        }
    }

    /// Applies the layer; returns the digest of its tar.
    async fn apply(
        &self,
        reader: Box<dyn Read + Send>,
        origin: Origin,
        caller_left: tokio::sync::oneshot::Receiver<()>,
    ) -> Result<Digest> {
        let stop = Stop::default();
        let mounts = self.mounts.clone();
        let applying = self.differ.apply_until(reader, origin, mounts, false, stop.clone());
        let mut applying = std::pin::pin!(applying);
        tokio::select! {
            applied = &mut applying => applied.map(|applied| applied.diff_id),
            // Resolves when the caller's half is dropped. The snapshot may go only when nothing
            // is written into it any more.
            _ = caller_left => {
                stop.stop();
                drop(applying.await);
                Err(self.canceled())
            }
        }
    }

    /// Has the layer applied by another process; returns the digest of its tar.
    async fn have_applied(
        &self,
        layer: &Descriptor,
        applier: &dyn LayerDiffer,
        caller_left: tokio::sync::oneshot::Receiver<()>,
    ) -> Result<Digest> {
        tokio::select! {
            applied = applier.apply(&self.ctx, layer, &self.mounts, ApplyRequest::default()) => {
                applied.map(|tar| tar.digest)
            }
            _ = caller_left => Err(self.canceled()),
        }
    }

    fn canceled(&self) -> Error {
        Error::canceled(format!("unpacking of {}", self.task.chain_id))
    }

    /// Removes the snapshot that came to nothing.
    async fn clean_up(&self) {
        if let Err(err) = self.snapshots.remove(&self.ctx, &self.key).await
            && !err.is_not_found()
        {
            tracing::warn!(key = self.key, %err, "a snapshot that failed to unpack is left");
        }
    }
}

/// How a layer is committed on `parent`, if that was not its parent already.
fn commit_options(task: &LayerTask, parent: Option<String>) -> CommitOptions {
    let origin = LayerOrigin { diff_id: task.diff_id.clone(), blob: task.blob.clone() };
    CommitOptions { labels: committed_labels(task), parent, origin: Some(origin) }
}

/// Labels of the committed snapshot: what the snapshotter was told of it.
fn committed_labels(task: &LayerTask) -> Labels {
    let mut labels = task.labels.clone();
    labels.insert(label::TARGET_REF.to_owned(), task.chain_id.to_string());
    labels
}

/// What the annotations of a layer tell its snapshotter.
pub(crate) fn inherited_labels(layer: &Descriptor) -> Labels {
    let told = layer.annotations.iter().filter(|(k, _)| k.starts_with(label::INHERITED_PREFIX));
    told.map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// A name nobody has had: what for, nanoseconds, four random letters.
pub(crate) fn unique(what: &str) -> String {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    let letters: String = std::iter::repeat_with(fastrand::alphanumeric).take(4).collect();
    format!("{what}-{nanos}-{letters}")
}
