//! Reading documents out of the content store.

use gantry_core::image::{Document, INDEX_DEPTH_MAX, ImageConfig, Manifest};
use gantry_core::platforms::Matcher;
use gantry_core::{Context, Descriptor, Platform};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_metadata::Content;

use crate::content::read_document;

/// The manifest or index that `target` describes.
///
/// # Errors
/// NotFound; InvalidArgument when the bytes are not what the media type says.
pub(crate) async fn read_parsed(
    content: &Content,
    ctx: &Context,
    target: &Descriptor,
) -> Result<Document> {
    let bytes = read_document(content, ctx, target).await?;
    Document::parse(target, &bytes)
}

/// The image config of a manifest.
///
/// # Errors
/// NotFound; InvalidArgument when it is no image config.
pub(crate) async fn read_config(
    content: &Content,
    ctx: &Context,
    manifest: &Manifest,
) -> Result<ImageConfig> {
    let bytes = read_document(content, ctx, &manifest.config).await?;
    ImageConfig::parse(&manifest.config.digest, &bytes)
}

/// The manifest for the best platform of `target`, which may be an index, of those whose manifest
/// is in the content store.
///
/// # Errors
/// NotFound when there is none for the platforms asked for; InvalidArgument for bad documents.
pub async fn resolve_manifest(
    content: &Content,
    ctx: &Context,
    target: &Descriptor,
    platforms: &Matcher,
) -> Result<(Descriptor, Manifest)> {
    let mut best: Option<(usize, Descriptor, Manifest)> = None;
    let mut todo = vec![(target.clone(), 0)];
    while let Some((at, depth)) = todo.pop() {
        let document = match read_parsed(content, ctx, &at).await {
            // Of an index only what was asked for has been pulled.
            Err(err) if err.is_not_found() && depth > 0 => continue,
            document => document.context(|| format!("image {}", target.digest))?,
        };
        match document {
            Document::Index(index) => {
                if depth == INDEX_DEPTH_MAX {
                    return Err(Error::invalid_argument(format!(
                        "index {}: more than {INDEX_DEPTH_MAX} indexes within each other",
                        target.digest
                    )));
                }
                // The first of an index is the first looked at.
                let children = index.manifests.into_iter().rev().filter(|m| {
                    m.platform.as_ref().is_none_or(|p| platforms.matches(p)) && !is_attestation(m)
                });
                todo.extend(children.map(|m| (m, depth + 1)));
            }
            Document::Manifest(manifest) => {
                let platform = platform_of(content, ctx, &at, &manifest).await?;
                let Some(rank) = platforms.rank(&platform) else { continue };
                if best.as_ref().is_none_or(|(r, ..)| rank < *r) {
                    best = Some((rank, at, *manifest));
                }
            }
        }
    }
    best.map(|(_, target, manifest)| (target, manifest)).ok_or_else(|| {
        Error::not_found(format!("image {}: manifest for the platform", target.digest))
    })
}

/// The platform a manifest is for: its descriptor says, or its config.
///
/// # Errors
/// NotFound, InvalidArgument for the config.
pub(crate) async fn platform_of(
    content: &Content,
    ctx: &Context,
    target: &Descriptor,
    manifest: &Manifest,
) -> Result<Platform> {
    if let Some(platform) = &target.platform {
        return Ok(platform.clone());
    }
    if !gantry_core::media_types::is_config(&manifest.config.media_type) {
        return Ok(Platform::default());
    }
    Ok(read_config(content, ctx, manifest).await?.platform.into())
}

/// Whether an entry of an index is an attestation about another entry, as BuildKit writes them.
pub(crate) fn is_attestation(target: &Descriptor) -> bool {
    target.annotations.get("vnd.docker.reference.type").is_some_and(|t| t == "attestation-manifest")
}
