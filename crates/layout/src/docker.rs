//! docker's archives: `manifest.json` with configs and layers beside it.

use gantry_core::image::{ArchivedImage, ImageConfig, Manifest};
use gantry_core::{Descriptor, media_types};
use gantry_errdefs::{Error, Result};

use crate::{Archived, Stored};

/// An image as docker saves it, its parts stored.
#[derive(Clone, Debug)]
pub struct DockerImage {
    /// The blob with the image config.
    pub config: Descriptor,
    /// The blobs with the layers, lowest first.
    pub layers: Vec<Stored>,
    image: ArchivedImage,
}

impl DockerImage {
    /// Finds the parts of `image`.
    pub(crate) fn new(archived: &Archived, image: ArchivedImage) -> Result<Self> {
        let find = |what: &str, name: &str| {
            archived.blob(name).ok_or_else(|| {
                Error::invalid_argument(format!(
                    "archive member manifest.json: {what} {name:?} is not in the archive"
                ))
            })
        };
        let config = find("config", &image.config)?.described(media_types::DOCKER_CONFIG);
        let layers = image.layers.iter().map(|name| find("layer", name).cloned());
        Ok(Self { config, layers: layers.collect::<Result<_>>()?, image })
    }

    /// The manifest over its parts; `parsed` is its config.
    ///
    /// # Errors
    /// As [`ArchivedImage::manifest`].
    pub fn manifest(&self, parsed: &ImageConfig) -> Result<Manifest> {
        let layers = self.layers.iter().map(|layer| {
            let plain = media_types::DOCKER_LAYER;
            layer.described(&layer.compression.layer_type_like(plain, false))
        });
        self.image.manifest(self.config.clone(), parsed, layers.collect())
    }

    /// The entries of an index for the image whose manifest is `target`.
    ///
    /// # Errors
    /// As [`ArchivedImage::entries`].
    pub fn entries(&self, target: Descriptor, parsed: &ImageConfig) -> Result<Vec<Descriptor>> {
        self.image.entries(target, parsed)
    }
}
