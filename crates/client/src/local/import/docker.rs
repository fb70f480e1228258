//! docker's archives: `manifest.json` with configs and layers beside it.

use bytes::Bytes;
use gantry_archive::Compression;
use gantry_core::image::{ArchivedImage, Document, ImageConfig};
use gantry_core::{Descriptor, Digest, media_types};
use gantry_errdefs::{Error, Result};

use super::gc_labels;
use super::members::{Archived, Stored};
use crate::client::Client;

/// Makes manifests for the images, stores them, and returns an entry for each name.
///
/// # Errors
/// InvalidArgument for what does not fit together.
pub(super) async fn images(
    client: &Client,
    archived: &Archived,
    manifest: &[u8],
) -> Result<Vec<Descriptor>> {
    let mut entries = Vec::new();
    for image in ArchivedImage::parse_all(manifest)? {
        entries.extend(one(client, archived, &image).await?);
    }
    Ok(entries)
}

async fn one(
    client: &Client,
    archived: &Archived,
    image: &ArchivedImage,
) -> Result<Vec<Descriptor>> {
    let find = |what: &str, name: &str| {
        archived.blob(name).ok_or_else(|| {
            Error::invalid_argument(format!(
                "archive member manifest.json: {what} {name:?} is not in the archive"
            ))
        })
    };
    let config = described(find("config", &image.config)?, media_types::DOCKER_CONFIG);
    let bytes = client.content().read(&config.digest).await?;
    let parsed = ImageConfig::parse(&config.digest, &bytes)?;
    let mut layers = Vec::new();
    for name in &image.layers {
        let stored = find("layer", name)?;
        let compression = Compression::of_magic(&stored.head);
        layers.push(described(
            stored,
            &compression.layer_type_like(media_types::DOCKER_LAYER, false),
        ));
    }
    let manifest = image.manifest(config, &parsed, layers)?;
    let bytes = serde_json::to_vec(&manifest)
        .map_err(|e| Error::internal(format!("encoding a manifest: {e}")))?;
    let bytes = Bytes::from(bytes);
    let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    let target = Descriptor::new(media_types::DOCKER_MANIFEST, Digest::of(&bytes), size);
    let labels = gc_labels(&Document::Manifest(Box::new(manifest)));
    client.content().write_blob(&target, bytes, &labels).await?;
    image.entries(target, &parsed)
}

fn described(stored: &Stored, media_type: &str) -> Descriptor {
    Descriptor::new(media_type, stored.digest.clone(), stored.size)
}
