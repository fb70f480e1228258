//! Images as objects: a name, what it points to, and what can be asked of that.

use gantry_core::image::{Document, ImageConfig};
use gantry_core::platforms::Matcher;
use gantry_core::{Descriptor, Digest, Labels, Platform};
use gantry_errdefs::{Error, Result};

use crate::client::Client;
use crate::content::Content;
use crate::images::ImageRecord;
use crate::resolved::ResolvedImage;
use crate::unpack::UnpackOptions;

/// Documents that one image may reach when its content is added up.
const DOCUMENT_COUNT_MAX: usize = 10_000;

/// An image of the daemon's.
#[derive(Clone, Debug)]
pub struct Image {
    client: Client,
    record: ImageRecord,
    platform: Matcher,
}

/// What an image takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageUsage {
    /// Bytes of its content that are there, of every platform.
    pub content: i64,
    /// Bytes of its snapshots; those of layers it shares with others too.
    pub snapshots: i64,
}

impl Client {
    /// Image `name`, seen for this machine's platform.
    ///
    /// # Errors
    /// NotFound.
    pub async fn image(&self, name: &str) -> Result<Image> {
        Ok(self.image_of(self.images().get(name).await?))
    }

    /// The images that match any of `filters`; all when there are none.
    ///
    /// # Errors
    /// InvalidArgument for a bad filter.
    pub async fn list_images(&self, filters: &[String]) -> Result<Vec<Image>> {
        let records = self.images().list(filters).await?;
        Ok(records.into_iter().map(|record| self.image_of(record)).collect())
    }

    /// The image of a record that is known already.
    pub fn image_of(&self, record: ImageRecord) -> Image {
        Image { client: self.clone(), record, platform: Matcher::host() }
    }
}

impl Image {
    /// The full reference.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// What the name points to: manifest or index.
    pub fn target(&self) -> &Descriptor {
        &self.record.target
    }

    /// Labels of the record.
    pub fn labels(&self) -> &Labels {
        &self.record.labels
    }

    /// The record.
    pub fn record(&self) -> &ImageRecord {
        &self.record
    }

    /// The content store that the image's content is in.
    pub fn content_store(&self) -> Content {
        self.client.content()
    }

    /// The same image seen for another platform.
    #[must_use]
    pub fn for_platform(&self, platform: &Platform) -> Self {
        Self { platform: Matcher::only(platform), ..self.clone() }
    }

    /// Manifest and config for the platform.
    ///
    /// # Errors
    /// NotFound for content that is missing, or a platform the image does not have;
    /// InvalidArgument for what is no image.
    pub async fn resolve(&self) -> Result<ResolvedImage> {
        self.client
            .resolve_target(self.name(), self.target(), &self.platform)
            .await
            .map_err(|e| e.context(format!("image {:?}", self.name())))
    }

    /// Digests of the plain layers, lowest first.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub async fn rootfs(&self) -> Result<Vec<Digest>> {
        Ok(self.resolve().await?.config.rootfs.diff_ids)
    }

    /// The image config.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub async fn config(&self) -> Result<ImageConfig> {
        Ok(self.resolve().await?.config)
    }

    /// Bytes of the manifest, the config and the layers for the platform, as stored.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub async fn size(&self) -> Result<i64> {
        Ok(self.resolve().await?.size())
    }

    /// Whether the platform's snapshots are there.
    ///
    /// # Errors
    /// As [`Self::resolve`]; InvalidArgument for a snapshotter that is not loaded.
    pub async fn is_unpacked(&self, snapshotter: &str) -> Result<bool> {
        self.client.is_unpacked(&self.resolve().await?, snapshotter).await
    }

    /// Makes the platform's snapshots, those that are missing.
    ///
    /// # Errors
    /// As [`Client::unpack`].
    pub async fn unpack(&self, snapshotter: &str) -> Result<()> {
        let options = UnpackOptions::with_snapshotter(snapshotter);
        self.client.unpack(&self.resolve().await?, &options).await
    }

    /// What the image takes: content of every platform, snapshots of this one.
    ///
    /// # Errors
    /// Those of the daemon; content and snapshots that are missing take nothing.
    pub async fn usage(&self, snapshotter: &str) -> Result<ImageUsage> {
        let mut usage = ImageUsage { content: self.content_size().await?, snapshots: 0 };
        let resolved = match self.resolve().await {
            Err(e) if e.is_not_found() => return Ok(usage),
            other => other?,
        };
        let snapshots = self.client.snapshots(snapshotter);
        for chain in resolved.chain_ids() {
            match snapshots.usage(chain.as_str()).await {
                Ok(one) => usage.snapshots += one.size,
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(usage)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The service that has the record.
    pub(crate) fn client_images(&self) -> crate::images::Images {
        self.client.images()
    }

    async fn content_size(&self) -> Result<i64> {
        let content = self.content_store();
        let mut seen = std::collections::BTreeSet::new();
        let mut todo = vec![self.target().clone()];
        let mut size = 0;
        while let Some(next) = todo.pop() {
            if !seen.insert(next.digest.clone()) {
                continue;
            }
            match content.info(&next.digest).await {
                Ok(info) => size += info.size,
                Err(e) if e.is_not_found() => continue,
                Err(e) => return Err(e),
            }
            if !next.is_document() {
                continue;
            }
            if seen.len() > DOCUMENT_COUNT_MAX {
                let why = format!("image {:?}: too many documents", self.name());
                return Err(Error::resource_exhausted(why));
            }
            let document = Document::parse(&next, &content.read(&next.digest).await?)?;
            todo.extend(document.children().into_iter().map(|(_, child)| child.clone()));
        }
        Ok(size)
    }
}
