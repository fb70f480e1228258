//! docker's archives: `manifest.json` with configs and layers beside it.

use std::collections::BTreeMap;

use gantry_archive::Compression;
use gantry_core::image::{ArchivedImage, ImageConfig, Index};
use gantry_core::{Context, Descriptor, media_types};
use gantry_errdefs::{Error, Result};
use gantry_metadata::Db;

use super::members::{Archived, Stored};
use super::{squeeze, store_document};
use crate::content::read_document;

/// Makes manifests for the images, stores them, and returns the bytes of an index over them. With
/// `compress` plain layers are compressed for it.
///
/// # Errors
/// InvalidArgument for what does not fit together.
pub(super) async fn index(
    db: &Db,
    ctx: &Context,
    archived: &Archived,
    manifest: &[u8],
    compress: bool,
) -> Result<Vec<u8>> {
    let mut manifests = Vec::new();
    for image in ArchivedImage::parse_all(manifest)? {
        manifests.extend(entries(db, ctx, archived, &image, compress).await?);
    }
    let index = Index {
        schema_version: 2,
        media_type: media_types::OCI_INDEX.to_owned(),
        manifests,
        annotations: BTreeMap::new(),
    };
    encode(&index)
}

async fn entries(
    db: &Db,
    ctx: &Context,
    archived: &Archived,
    image: &ArchivedImage,
    compress: bool,
) -> Result<Vec<Descriptor>> {
    let find = |what: &str, name: &str| {
        archived.blob(name).ok_or_else(|| {
            Error::invalid_argument(format!(
                "archive member manifest.json: {what} {name:?} is not in the archive"
            ))
        })
    };
    let config = described(find("config", &image.config)?, media_types::DOCKER_CONFIG);
    let bytes = read_document(&db.content(), ctx, &config).await?;
    let parsed = ImageConfig::parse(&config.digest, &bytes)?;
    let mut layers = Vec::new();
    for name in &image.layers {
        let mut stored = find("layer", name)?.clone();
        if compress && Compression::of_magic(&stored.head) == Compression::None {
            stored = squeeze::gzip(db, ctx, &stored).await?;
        }
        let compression = Compression::of_magic(&stored.head);
        layers.push(described(
            &stored,
            &compression.layer_type_like(media_types::DOCKER_LAYER, false),
        ));
    }
    let manifest = image.manifest(config, &parsed, layers)?;
    let bytes = encode(&manifest)?;
    let target = store_document(db, ctx, media_types::DOCKER_MANIFEST, &bytes).await?;
    image.entries(target, &parsed)
}

fn described(stored: &Stored, media_type: &str) -> Descriptor {
    let size = i64::try_from(stored.size).unwrap_or(i64::MAX);
    Descriptor::new(media_type, stored.digest.clone(), size)
}

fn encode(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::internal(format!("encode a manifest: {e}")))
}
