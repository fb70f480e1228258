//! Manifests for the images of docker's archives.

use gantry_archive::Compression;
use gantry_core::image::{ImageConfig, Index};
use gantry_core::{Context, Descriptor, media_types};
use gantry_errdefs::{Error, Result};
use gantry_layout::DockerImage;
use gantry_metadata::Db;

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
    images: Vec<DockerImage>,
    compress: bool,
) -> Result<Vec<u8>> {
    let mut manifests = Vec::new();
    for image in images {
        manifests.extend(entries(db, ctx, image, compress).await?);
    }
    encode(&Index::over(manifests))
}

async fn entries(
    db: &Db,
    ctx: &Context,
    mut image: DockerImage,
    compress: bool,
) -> Result<Vec<Descriptor>> {
    let bytes = read_document(&db.content(), ctx, &image.config).await?;
    let parsed = ImageConfig::parse(&image.config.digest, &bytes)?;
    if compress {
        for layer in image.layers.iter_mut().filter(|l| l.compression == Compression::None) {
            *layer = squeeze::gzip(db, ctx, layer).await?;
        }
    }
    let bytes = encode(&image.manifest(&parsed)?)?;
    let target = store_document(db, ctx, media_types::DOCKER_MANIFEST, &bytes).await?;
    image.entries(target, &parsed)
}

fn encode(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::internal(format!("encode a manifest: {e}")))
}
