//! Unpacking by the client, for daemons without the transfer service and for images that were
//! imported.

use gantry_core::Labels;
use gantry_errdefs::{Error, Result};

use crate::client::Client;
use crate::diff::ApplyOptions;
use crate::resolved::ResolvedImage;

/// Label on a snapshot in the making that names what it becomes; snapshotters that fetch
/// elsewhere look at it.
const SNAPSHOT_REF_LABEL: &str = "containerd.io/snapshot.ref";

/// Label on a layer blob: the digest of its plain tar.
const UNCOMPRESSED_LABEL: &str = "containerd.io/uncompressed";

/// How an image is unpacked.
#[derive(Clone, Debug)]
pub struct UnpackOptions {
    /// The snapshotter.
    pub snapshotter: String,
    /// How each layer is applied.
    pub apply: ApplyOptions,
}

impl Default for UnpackOptions {
    fn default() -> Self {
        Self::with_snapshotter("overlayfs")
    }
}

impl UnpackOptions {
    /// To `snapshotter`, each layer applied as by default.
    pub fn with_snapshotter(snapshotter: impl Into<String>) -> Self {
        Self { snapshotter: snapshotter.into(), apply: ApplyOptions::default() }
    }
}

impl Client {
    /// Whether the image's snapshots are there.
    ///
    /// # Errors
    /// Those of the snapshotter, other than NotFound.
    pub async fn is_unpacked(&self, image: &ResolvedImage, snapshotter: &str) -> Result<bool> {
        match self.snapshots(snapshotter).stat(image.chain_id().as_str()).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Makes the image's snapshots, those that are missing, under a lease of its own.
    ///
    /// # Errors
    /// InvalidArgument when layers and config disagree; FailedPrecondition when a layer is not
    /// what its config says; NotFound for missing content.
    pub async fn unpack(&self, image: &ResolvedImage, options: &UnpackOptions) -> Result<()> {
        if self.lease().is_some() {
            return self.unpack_layers(image, options).await;
        }
        let guard = self.leases().guard().await?;
        let done = guard.client().unpack_layers(image, options).await;
        let released = guard.release().await;
        done.and(released)
    }

    async fn unpack_layers(&self, image: &ResolvedImage, options: &UnpackOptions) -> Result<()> {
        let layers = &image.manifest.layers;
        let diff_ids = &image.config.rootfs.diff_ids;
        if layers.len() != diff_ids.len() {
            return Err(Error::invalid_argument(format!(
                "image {:?}: {} layers, but {} diff ids in its config",
                image.name,
                layers.len(),
                diff_ids.len()
            )));
        }
        let snapshots = self.snapshots(&options.snapshotter);
        let mut parent = String::new();
        for ((layer, diff_id), chain) in layers.iter().zip(diff_ids).zip(image.chain_ids()) {
            let chain = chain.to_string();
            match snapshots.stat(&chain).await {
                Ok(_) => {}
                Err(e) if e.is_not_found() => {
                    let random: String =
                        std::iter::repeat_with(fastrand::alphanumeric).take(12).collect();
                    let key = format!("extract-{random} {chain}");
                    let labels = Labels::from([(SNAPSHOT_REF_LABEL.to_owned(), chain.clone())]);
                    let mounts = match snapshots.prepare(&key, &parent, labels).await {
                        // The snapshotter has it without our doing.
                        Err(e) if e.is_already_exists() => {
                            parent = chain;
                            continue;
                        }
                        other => other?,
                    };
                    let how = options.apply.clone();
                    let applied = self.diff().apply_with(layer, &mounts, how).await;
                    let applied = applied.and_then(|applied| {
                        if applied.digest == *diff_id {
                            return Ok(());
                        }
                        let why = format!(
                            "layer {}: it holds {}, its config says {diff_id}",
                            layer.digest, applied.digest
                        );
                        Err(Error::failed_precondition(why))
                    });
                    let committed = match applied {
                        Ok(()) => snapshots.commit(&chain, &key, Labels::new()).await,
                        Err(e) => Err(e),
                    };
                    match committed {
                        Ok(()) => {}
                        // Someone else was faster.
                        Err(e) if e.is_already_exists() => snapshots.remove(&key).await?,
                        Err(e) => {
                            let _ = snapshots.remove(&key).await;
                            return Err(e);
                        }
                    }
                    let label =
                        Labels::from([(UNCOMPRESSED_LABEL.to_owned(), diff_id.to_string())]);
                    self.content().set_labels(&layer.digest, &label).await?;
                }
                Err(e) => return Err(e),
            }
            parent = chain;
        }
        // The config keeps the snapshots alive as long as the image lives.
        let key = format!("containerd.io/gc.ref.snapshot.{}", options.snapshotter);
        let label = Labels::from([(key, image.chain_id().to_string())]);
        self.content().set_labels(&image.manifest.config.digest, &label).await?;
        Ok(())
    }
}
