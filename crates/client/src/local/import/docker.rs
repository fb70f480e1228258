//! Manifests for the images of docker's archives.

use bytes::Bytes;
use gantry_core::image::{Document, ImageConfig};
use gantry_core::{Descriptor, Digest, media_types};
use gantry_errdefs::{Error, Result};
use gantry_layout::DockerImage;

use super::gc_labels;
use crate::client::Client;

/// Makes the manifest of an image, stores it, and returns an entry for each name.
///
/// # Errors
/// InvalidArgument for what does not fit together.
pub(super) async fn entries(client: &Client, image: &DockerImage) -> Result<Vec<Descriptor>> {
    let bytes = client.content().read(&image.config.digest).await?;
    let parsed = ImageConfig::parse(&image.config.digest, &bytes)?;
    let manifest = image.manifest(&parsed)?;
    let bytes = serde_json::to_vec(&manifest)
        .map_err(|e| Error::internal(format!("encoding a manifest: {e}")))?;
    let bytes = Bytes::from(bytes);
    let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    let target = Descriptor::new(media_types::DOCKER_MANIFEST, Digest::of(&bytes), size);
    let labels = gc_labels(&Document::Manifest(Box::new(manifest)));
    client.content().write_blob(&target, bytes, &labels).await?;
    image.entries(target, &parsed)
}
