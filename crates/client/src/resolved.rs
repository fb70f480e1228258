//! Images with what their names point to.

use gantry_core::image::{self, Document, INDEX_DEPTH_MAX, ImageConfig, Index, Manifest};
use gantry_core::platforms::Matcher;
use gantry_core::{Descriptor, Digest, Platform};
use gantry_errdefs::{Error, Result};

use crate::client::Client;

/// An image resolved to one platform.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// The name it was asked for.
    pub name: String,
    /// What the name points to: manifest or index.
    pub target: Descriptor,
    /// The manifest of the platform.
    pub manifest_descriptor: Descriptor,
    /// Its parsed form.
    pub manifest: Manifest,
    /// The parsed image config.
    pub config: ImageConfig,
}

impl ResolvedImage {
    /// Name of the snapshot that holds the whole image; of an empty image, the digest of nothing.
    pub fn chain_id(&self) -> Digest {
        image::chain_id(&self.config.rootfs.diff_ids).unwrap_or_else(|| Digest::of(b""))
    }

    /// The snapshot that a container's root filesystem is based on; empty for an image without
    /// layers.
    pub fn parent(&self) -> String {
        if self.config.rootfs.diff_ids.is_empty() {
            return String::new();
        }
        self.chain_id().to_string()
    }

    /// Digests of the plain layers, lowest first.
    pub fn diff_ids(&self) -> &[Digest] {
        &self.config.rootfs.diff_ids
    }

    /// Names of the snapshots of each layer and those below it, lowest first.
    pub fn chain_ids(&self) -> Vec<Digest> {
        image::chain_ids(&self.config.rootfs.diff_ids)
    }

    /// Bytes of the manifest, the config and the layers, as stored.
    pub fn size(&self) -> i64 {
        let layers = self.manifest.layers.iter().map(|l| l.size).sum::<i64>();
        layers + self.manifest.config.size + self.manifest_descriptor.size
    }
}

impl Client {
    /// The image `name` for `platform`, or for this machine's.
    ///
    /// # Errors
    /// NotFound for the name, content that is missing, or a platform it does not have;
    /// InvalidArgument for what is no image.
    pub async fn resolve_image(
        &self,
        name: &str,
        platform: Option<&Platform>,
    ) -> Result<ResolvedImage> {
        let record = self.images().get(name).await?;
        let matcher = platform.map_or_else(Matcher::host, Matcher::only);
        self.resolve_target(name, &record.target, &matcher)
            .await
            .map_err(|e| e.context(format!("image {name:?}")))
    }

    /// As [`Self::resolve_image`], for a descriptor.
    ///
    /// # Errors
    /// As [`Self::resolve_image`].
    pub async fn resolve_target(
        &self,
        name: &str,
        target: &Descriptor,
        matcher: &Matcher,
    ) -> Result<ResolvedImage> {
        let content = self.content();
        let mut current = target.clone();
        for _ in 0..INDEX_DEPTH_MAX {
            let bytes = content.read(&current.digest).await?;
            match Document::parse(&current, &bytes)? {
                Document::Manifest(manifest) => {
                    let config_bytes = content.read(&manifest.config.digest).await?;
                    let config = ImageConfig::parse(&manifest.config.digest, &config_bytes)?;
                    return Ok(ResolvedImage {
                        name: name.to_owned(),
                        target: target.clone(),
                        manifest_descriptor: current,
                        manifest: *manifest,
                        config,
                    });
                }
                Document::Index(index) => current = self.choose(&index, matcher).await?,
            }
        }
        let why = format!("index {}: nested deeper than {INDEX_DEPTH_MAX}", target.digest);
        Err(Error::invalid_argument(why))
    }

    /// The entry of an index that fits best and is there.
    async fn choose(&self, index: &Index, matcher: &Matcher) -> Result<Descriptor> {
        let ranked = index.ranked(matcher);
        for (_, entry) in &ranked {
            match self.content().info(&entry.digest).await {
                Ok(_) => return Ok((*entry).clone()),
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
        let what = ranked.first().map(|(_, e)| e.digest.to_string());
        Err(Error::not_found(match what {
            Some(digest) => format!("content of the platform's manifest {digest}"),
            None => "manifest for the platform".to_owned(),
        }))
    }
}
