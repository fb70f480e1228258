//! How a pull would go, step by step, without pulling.

use std::sync::Arc;

use gantry_core::image::{Document, INDEX_DEPTH_MAX};
use gantry_core::platforms::{self, Matcher};
use gantry_core::{Descriptor, Platform, Reference};
use gantry_errdefs::{Error, Result};
use gantry_registry::{Observer, Repository, Step};

use crate::transfer::RegistryOptions;

/// What was found on the way, besides the steps.
#[derive(Clone, Debug)]
pub struct Explained {
    /// What the reference stands for.
    pub target: Descriptor,
    /// The manifest for the platform.
    pub manifest: Descriptor,
    /// Bytes of its layers.
    pub layers_size: i64,
    /// The layer whose first bytes were fetched; None for an image without layers.
    pub layer: Option<Descriptor>,
}

/// Hands steps to a function.
struct Told<F>(F);

impl<F: Fn(Step) + Send + Sync> Observer for Told<F> {
    fn step(&self, step: Step) {
        (self.0)(step);
    }
}

/// Goes the way of a pull of `reference` for one platform (this machine's by default) from this
/// program, to the first bytes of its smallest layer: which hosts are asked, in which order, what
/// each answers, who we are to them. `told` gets every step as it happens; nothing is stored.
///
/// # Errors
/// Those of the pull; the steps tell how it came to it.
pub async fn explain_pull(
    reference: &str,
    registry: &RegistryOptions,
    platform: Option<&Platform>,
    told: impl Fn(Step) + Send + Sync + 'static,
) -> Result<Explained> {
    let reference = Reference::parse(reference)?;
    let resolver = registry.resolver().observed(Arc::new(Told(told)));
    let repository = resolver.repository(&reference).await?;
    let resolved = repository.resolve().await?;
    let default = platforms::default();
    let matcher = Matcher::only(platform.unwrap_or(&default));
    let (manifest, layers) = manifest_of(&repository, &resolved.descriptor, &matcher).await?;
    let layer = layers.iter().min_by_key(|layer| layer.size).cloned();
    if let Some(layer) = &layer {
        repository.fetch(layer, 0).await?.next().await?;
    }
    let layers_size = layers.iter().map(|layer| layer.size).sum();
    Ok(Explained { target: resolved.descriptor, manifest, layers_size, layer })
}

/// The manifest for a platform, and its layers.
async fn manifest_of(
    repository: &Repository,
    target: &Descriptor,
    matcher: &Matcher,
) -> Result<(Descriptor, Vec<Descriptor>)> {
    let mut at = target.clone();
    for _ in 0..=INDEX_DEPTH_MAX {
        let bytes = repository.manifest(&at).await?;
        match Document::parse(&at, &bytes)? {
            Document::Manifest(manifest) => return Ok((at, manifest.layers)),
            Document::Index(index) => {
                let fits = |d: &Descriptor| d.platform.as_ref().is_none_or(|p| matcher.matches(p));
                at = index.manifests.into_iter().find(fits).ok_or_else(|| {
                    let text = format!("image {}: a manifest for {matcher}", target.digest);
                    Error::not_found(text)
                })?;
            }
        }
    }
    let text = format!("index {}: nested more than {INDEX_DEPTH_MAX} deep", target.digest);
    Err(Error::invalid_argument(text))
}
